//! Dead letters, as Kafka's own producer brings them and its own consumer reads them.

use std::collections::BTreeSet;
use std::io::Write;
use std::process::Stdio;

use serde_json::Value;
use wallex::dlq;
use wallex::kafka::{DLQ_PARTITIONS, DLQ_TOPIC, EVENTS_TOPIC, partition_of};
use wallex::projection::BUILT_IN;

use super::records::printed;
use crate::kafka::{CONSOLE_PRODUCER, Kafka};
use crate::process::{Serve, room, run};

#[test]
fn slow_what_a_java_producer_brings_is_kept_and_a_java_consumer_reads_the_copies() {
    let (room, kafka) = (room(), Kafka::start());
    let serve = Serve::start_with(&room.path().join("data"), &["--kafka-brokers", &kafka.address()]);
    let loaded = run(&["loadtest", "--wallets", "10", "--operations", "50", "--data-dir", serve.data_dir()]);
    assert!(loaded.status.success(), "{}", String::from_utf8_lossy(&loaded.stderr));

    let properties = ["parse.key=true", "parse.headers=true", "headers.separator=,", "null.marker=NULL"];
    let properties = properties.iter().flat_map(|property| ["--reader-property", property]);
    let arguments: Vec<&str> = ["--topic", EVENTS_TOPIC].into_iter().chain(properties).collect();
    let mut producer = kafka
        .tool_command(CONSOLE_PRODUCER, &arguments)
        .stdin(Stdio::piped())
        .spawn()
        .expect("Java's console producer");
    // Headers, key, value: no key; a tombstone; no JSON; a position that the log does not have.
    let lines = "trace:1\tNULL\twithout a key\n\
                 trace:2\twallet-1\tNULL\n\
                 trace:3\twallet-2\tno JSON\n\
                 position:999999,revision:1\twallet-3\t{}\n";
    producer.stdin.take().expect("its input").write_all(lines.as_bytes()).expect("lines");
    assert!(producer.wait().expect("its end").success());

    // Both groups keep all four.
    let copies = printed(&kafka, DLQ_TOPIC, 8);
    assert_eq!(copies.len(), 8);
    let mut seen = BTreeSet::new();
    for copy in &copies {
        let header = |name: &str| copy.headers.get(name).unwrap_or_else(|| panic!("no header {name}")).as_str();
        assert_eq!((header(dlq::HEADER_ORIGINAL_TOPIC), header(dlq::HEADER_ERROR_CLASS)), (EVENTS_TOPIC, "FOREIGN"));
        assert!(BUILT_IN.contains(&header(dlq::HEADER_CONSUMER_GROUP)));
        assert!(copy.headers.contains_key("trace") || header("position") == "999999");
        if copy.key != "null" {
            assert_eq!(copy.partition, partition_of(copy.key.as_bytes(), DLQ_PARTITIONS), "{}", copy.key);
        }
        seen.insert((header(dlq::HEADER_CONSUMER_GROUP).to_owned(), copy.key.clone(), copy.value.clone()));
    }
    let originals = [("null", "without a key"), ("wallet-1", "null"), ("wallet-2", "no JSON"), ("wallet-3", "{}")];
    let expected = BUILT_IN
        .iter()
        .flat_map(|group| originals.map(|(key, value)| ((*group).to_owned(), key.to_owned(), value.to_owned())));
    assert_eq!(seen, expected.collect());

    // They hold nobody back, and once they are discarded everything agrees again.
    let ask = |arguments: &[&str]| run(&[arguments, &["--data-dir", serve.data_dir(), "-o", "json"]].concat());
    let list: Value = serde_json::from_slice(&ask(&["dlq", "list"]).stdout).expect("JSON");
    assert_eq!(list.as_array().map(Vec::len), Some(2), "{list:#}");
    assert!(
        list.as_array()
            .is_some_and(|list| list.iter().all(|queue| queue["records"] == 4 && queue["walletId"].is_null()))
    );
    let discarded = ask(&["dlq", "discard", "--all", "--execute", "--reason", "a stray producer"]);
    assert!(discarded.status.success(), "{}", String::from_utf8_lossy(&discarded.stderr));
    let proof = ask(&["verify"]);
    assert!(proof.status.success(), "{}", String::from_utf8_lossy(&proof.stdout));
}
