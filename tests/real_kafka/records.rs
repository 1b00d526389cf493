//! What is in the topic, as Kafka's own consumer and partitioner see it.

use std::collections::BTreeMap;
use std::io::Write;
use std::process::Stdio;

use serde_json::Value;
use wallex::kafka::{EVENTS_PARTITIONS, EVENTS_TOPIC, partition_of};

use crate::kafka::{CONSOLE_CONSUMER, CONSOLE_PRODUCER, Kafka, TOPICS};
use crate::process::{Serve, room, run};

/// A record as Java's console consumer prints it.
pub struct Printed {
    pub partition: i32,
    pub headers: BTreeMap<String, String>,
    pub key: String,
    pub value: String,
}

/// The first records of a topic, this many, or fewer where no more come.
pub fn printed(kafka: &Kafka, topic: &str, count: usize) -> Vec<Printed> {
    let count = count.to_string();
    let mut arguments = vec!["--topic", topic, "--from-beginning", "--max-messages", &count, "--timeout-ms", "60000"];
    for property in ["print.partition=true", "print.headers=true", "print.key=true"] {
        arguments.extend(["--formatter-property", property]);
    }
    kafka.tool(CONSOLE_CONSUMER, &arguments).lines().map(read).collect()
}

fn read(line: &str) -> Printed {
    let fields: Vec<&str> = line.splitn(4, '\t').collect();
    let [partition, headers, key, value] = fields[..] else { panic!("not four fields: {line}") };
    let headers = headers.split(',').filter_map(|header| header.split_once(':'));
    Printed {
        partition: partition.strip_prefix("Partition:").and_then(|number| number.parse().ok()).expect("a partition"),
        headers: headers.map(|(name, value)| (name.to_owned(), value.to_owned())).collect(),
        key: key.to_owned(),
        value: value.to_owned(),
    }
}

#[test]
fn slow_a_java_consumer_reads_each_event_once_with_key_headers_and_value() {
    let (room, kafka) = (room(), Kafka::start());
    let serve = Serve::start_with(&room.path().join("data"), &["--kafka-brokers", &kafka.address()]);
    let loaded = run(&["loadtest", "--wallets", "20", "--operations", "100", "--data-dir", serve.data_dir()]);
    assert!(loaded.status.success(), "{}", String::from_utf8_lossy(&loaded.stderr));
    let lag: Value = serde_json::from_slice(&run(&["lag", "-o", "json", "--data-dir", serve.data_dir()]).stdout)
        .expect("lag answers in JSON");
    let head = lag["outbox"]["head"].as_u64().expect("the log's head") as usize;

    assert_eq!(kafka.held(EVENTS_TOPIC), head);
    let records = printed(&kafka, EVENTS_TOPIC, head);

    let mut last_of = BTreeMap::new();
    for record in &records {
        let value: Value = serde_json::from_str(&record.value).expect("a value in JSON");
        let header = |name: &str| record.headers.get(name).unwrap_or_else(|| panic!("no header {name}")).as_str();
        assert_eq!(value["aggregateId"], record.key.as_str());
        assert_eq!(header("aggregate-id"), record.key);
        assert_eq!(value["eventType"], header("event-type"));
        assert_eq!(value["metadata"]["correlationId"], header("correlation-id"));
        assert_eq!(value["metadata"]["causationId"], header("causation-id"));
        assert!(header("revision").parse::<u64>().is_ok());
        assert_eq!(
            record.partition,
            partition_of(record.key.as_bytes(), EVENTS_PARTITIONS),
            "the partition of {}",
            record.key
        );
        let position: usize = header("position").parse().expect("a position");
        let last = last_of.insert(record.partition, position).unwrap_or(0);
        assert!(position > last, "in partition {} position {position} comes after {last}", record.partition);
    }
    // As many as the log has, and growing in each partition: each position is there, once.
    assert_eq!(records.len(), head);
}

#[test]
fn slow_javas_default_partitioner_places_keys_where_wallex_does() {
    let kafka = Kafka::start();
    kafka.tool(TOPICS, &["--create", "--topic", "placed", "--partitions", "10"]);
    // Of each length, so that each way in which the hash treats the rest of four bytes is met; and of more than ASCII.
    let keys: Vec<String> = (0..2_000)
        .map(|number| match number % 4 {
            0 => format!("wallet-{number}"),
            1 => format!("{number:x}"),
            2 => format!("кошелёк-{number}-€"),
            _ => "é".repeat(1 + number % 23) + &number.to_string(),
        })
        .collect();

    let properties = ["--reader-property", "parse.key=true", "--reader-property", "key.separator=|"];
    let mut producer = kafka
        .tool_command(CONSOLE_PRODUCER, &[&["--topic", "placed"], &properties[..]].concat())
        .stdin(Stdio::piped())
        .spawn()
        .expect("Java's console producer");
    let lines: String = keys.iter().map(|key| format!("{key}|{key}\n")).collect();
    producer.stdin.take().expect("its input").write_all(lines.as_bytes()).expect("lines");
    assert!(producer.wait().expect("its end").success());

    let records = printed(&kafka, "placed", keys.len());
    assert_eq!(records.len(), keys.len());
    let elsewhere: Vec<&str> = records
        .iter()
        .filter(|record| record.partition != partition_of(record.key.as_bytes(), EVENTS_PARTITIONS))
        .map(|record| record.key.as_str())
        .collect();
    assert!(elsewhere.is_empty(), "Java places these elsewhere: {elsewhere:?}");
    assert_eq!(records.iter().map(|record| record.partition).collect::<std::collections::BTreeSet<_>>().len(), 10);
}
