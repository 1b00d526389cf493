//! `wallex topics`, with Kafka's own tools as the judge of what it made, set and left alone.

use std::process::{Output, Stdio};

use serde_json::Value;

use crate::kafka::{CONFIGS, Kafka, TOPICS};
use crate::process::{Serve, room, run, wallex};

fn topics(kafka: &Kafka, arguments: &[&str]) -> Output {
    run(&[&["topics", "--kafka-brokers", &kafka.address()], arguments].concat())
}

/// The answer in JSON, and the exit code that goes with it.
fn compared(kafka: &Kafka) -> Value {
    let output = topics(kafka, &["-o", "json"]);
    let answer: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)));
    assert_eq!(output.status.code(), Some(if answer["ok"] == true { 0 } else { 1 }), "{answer}");
    answer
}

/// What differs: `topic setting verdict`.
fn differences(answer: &Value) -> Vec<String> {
    let mut found = Vec::new();
    for topic in answer["topics"].as_array().expect("topics") {
        for setting in topic["settings"].as_array().expect("settings") {
            let text = |value: &Value| value.as_str().expect("text").to_owned();
            if setting["verdict"] != "ok" {
                found.push([text(&topic["topic"]), text(&setting["name"]), text(&setting["verdict"])].join(" "));
            }
        }
    }
    found
}

/// The settings that somebody gave a topic, as Kafka's own tool tells them.
fn configured(kafka: &Kafka, topic: &str) -> Vec<String> {
    let told = kafka.tool(CONFIGS, &["--describe", "--entity-type", "topics", "--entity-name", topic]);
    let mut settings: Vec<String> =
        told.lines().skip(1).filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect();
    settings.sort();
    settings
}

fn configure(kafka: &Kafka, topic: &str, settings: &str) {
    let to = ["--alter", "--entity-type", "topics", "--entity-name", topic, "--add-config", settings];
    kafka.tool(CONFIGS, &to);
}

#[test]
fn slow_topics_are_made_and_set_as_they_should_be_and_nothing_else_is_touched() {
    let kafka = Kafka::start();
    let missing = compared(&kafka);
    assert!(missing["topics"].as_array().expect("two").iter().all(|topic| topic["exists"] == false), "{missing}");
    // Asking has made nothing: this broker makes what is asked for by name.
    assert_eq!(kafka.tool(TOPICS, &["--list"]).trim(), "");

    let applied = topics(&kafka, &["--apply"]);
    assert!(applied.status.success(), "{}", String::from_utf8_lossy(&applied.stderr));
    assert!(String::from_utf8_lossy(&applied.stderr).contains("made wallet-events-dlq"));
    assert_eq!(compared(&kafka)["ok"], true);
    let described = kafka.tool(TOPICS, &["--describe"]);
    let of = |topic: &str| {
        let line = described.lines().find(|line| line.starts_with(&format!("Topic: {topic}\t"))).expect("the topic");
        line.split('\t').map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(of("wallet-events")[2..4], ["PartitionCount: 10", "ReplicationFactor: 1"]);
    assert_eq!(of("wallet-events-dlq")[2..4], ["PartitionCount: 5", "ReplicationFactor: 1"]);
    let same = ["cleanup.policy=delete", "compression.type=producer", "min.insync.replicas=1", "retention.bytes=-1"];
    assert_eq!(configured(&kafka, "wallet-events"), [&same[..], &["retention.ms=604800000"]].concat());
    assert_eq!(configured(&kafka, "wallet-events-dlq"), [&same[..], &["retention.ms=2592000000"]].concat());

    // Too short, compressed anew, and a setting of the operator's own, which stays; and one that keeps more than it has to.
    configure(&kafka, "wallet-events", "retention.ms=1000,compression.type=lz4,max.message.bytes=2000000");
    configure(&kafka, "wallet-events-dlq", "retention.ms=-1");
    let differing = compared(&kafka);
    assert_eq!(
        differences(&differing),
        ["wallet-events retention.ms settable", "wallet-events compression.type settable"]
    );
    assert!(topics(&kafka, &["--apply"]).status.success());
    let expected = [&same[..2], &["max.message.bytes=2000000"], &same[2..], &["retention.ms=604800000"]].concat();
    assert_eq!(configured(&kafka, "wallet-events"), expected);
    assert!(configured(&kafka, "wallet-events-dlq").contains(&"retention.ms=-1".to_owned()));

    let again = topics(&kafka, &["--apply"]);
    assert!(again.status.success() && again.stderr.is_empty(), "{}", String::from_utf8_lossy(&again.stderr));
}

#[test]
fn slow_a_topic_with_other_partitions_is_explained_left_alone_and_not_published_to() {
    let (room, kafka) = (room(), Kafka::start());
    kafka.tool(TOPICS, &["--create", "--topic", "wallet-events", "--partitions", "4"]);

    let applied = topics(&kafka, &["--apply"]);
    let answer = String::from_utf8_lossy(&applied.stdout);
    assert_eq!(applied.status.code(), Some(1), "{answer}");
    for words in ["partitions of wallet-events: more partitions would", "delete the topic", "wallex topics --apply"] {
        assert!(answer.contains(words), "{words:?} is not in {answer}");
    }
    assert_eq!(differences(&compared(&kafka)), ["wallet-events partitions byHand"]);
    assert!(kafka.tool(TOPICS, &["--describe", "--topic", "wallet-events"]).contains("PartitionCount: 4"));

    let serve = Serve::start_with(&room.path().join("data"), &["--kafka-brokers", &kafka.address()]);
    let mut relay = wallex(&["relay", "--data-dir", serve.data_dir()]).stderr(Stdio::piped()).spawn().expect("a relay");
    let said = std::io::BufReader::new(relay.stderr.take().expect("its words"));
    let words = std::io::BufRead::lines(said).map_while(Result::ok).find(|line| line.contains("partitions is 4"));
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(relay.id() as i32), nix::sys::signal::Signal::SIGTERM).ok();
    relay.wait().expect("its end");
    assert!(words.is_some_and(|line| line.contains("wallex topics")));
}
