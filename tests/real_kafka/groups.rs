//! Offsets and lag of the groups, as `wallex lag` shows them and as Kafka's own tool does.

use std::collections::BTreeMap;
use std::process::Stdio;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::kafka::{CONSUMER_GROUPS, Kafka};
use crate::load::{Callers, Load};
use crate::process::{Serve, room, run, wallex};

const PATIENCE: Duration = Duration::from_secs(120);

/// Committed offset, end and lag by partition; a dash where there is none.
type Offsets = BTreeMap<i64, [String; 3]>;

/// As kafka-consumer-groups tells them.
fn told_by_kafka(kafka: &Kafka, group: &str) -> Offsets {
    let told = kafka.tool(CONSUMER_GROUPS, &["--describe", "--group", group]);
    let mut lines = told.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let header = lines.by_ref().find(|line| line.first() == Some(&"GROUP")).expect("a header");
    let column = |name: &str| header.iter().position(|found| *found == name).expect(name);
    let [partition, committed, end, lag] = ["PARTITION", "CURRENT-OFFSET", "LOG-END-OFFSET", "LAG"].map(column);
    lines
        .filter(|line| line.first() == Some(&group))
        .map(|line| {
            (line[partition].parse().expect("a number"), [committed, end, lag].map(|column| line[column].to_owned()))
        })
        .collect()
}

fn lag(serve: &Serve) -> Value {
    let output = run(&["lag", "-o", "json", "--log", "error", "--data-dir", serve.data_dir()]);
    serde_json::from_slice(&output.stdout).expect("JSON")
}

/// As `wallex lag` tells them.
fn told_by_wallex(lag: &Value, group: &str) -> Offsets {
    let groups = lag["groups"].as_array().expect("groups");
    let found = groups.iter().find(|found| found["group"] == group).expect("the group");
    let text = |value: &Value| value.as_i64().map_or("-".to_owned(), |number| number.to_string());
    let partitions = found["partitions"].as_array().expect("partitions").iter();
    partitions
        .map(|it| {
            (it["partition"].as_i64().expect("a number"), ["committed", "end", "lag"].map(|name| text(&it[name])))
        })
        .collect()
}

fn until(what: &str, serve: &Serve, holds: impl Fn(&Value) -> bool) -> Value {
    let started = Instant::now();
    loop {
        let lag = lag(serve);
        if holds(&lag) {
            return lag;
        }
        assert!(started.elapsed() < PATIENCE, "{what}: {lag}");
        std::thread::sleep(Duration::from_millis(200));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_offsets_and_lag_are_what_kafkas_own_tool_says() {
    let (room, kafka) = (room(), Kafka::start());
    let only = ["--only", "http,relay", "--kafka-brokers", &kafka.address()];
    let serve = Serve::start_with(&room.path().join("data"), &only);
    let mut projections = wallex(&["project", "--log", "error", "--data-dir", serve.data_dir()])
        .stderr(Stdio::null())
        .spawn()
        .expect("wallex runs");
    // So many wallets that every partition has some: of one in which nothing is committed Kafka's tool tells less than wallex,
    // and nothing at all once the group has no members.
    let loaded = run(&["loadtest", "--wallets", "300", "--operations", "300", "--data-dir", serve.data_dir()]);
    assert!(loaded.status.success(), "{}", String::from_utf8_lossy(&loaded.stderr));
    let groups = ["ledger-projector", "read-model-projector"];
    let is_empty = |lag: &Value| lag["outbox"]["depth"] == 0 && lag["total"]["lag"] == 0;
    let settled = until("the projections come after", &serve, is_empty);
    for group in groups {
        let told = told_by_kafka(&kafka, group);
        assert_eq!(told_by_wallex(&settled, group), told);
        assert!(told.values().all(|[_, _, lag]| lag == "0"), "{told:?}");
    }

    // Nobody is there to read what comes now.
    kill(Pid::from_raw(projections.id() as i32), Signal::SIGTERM).expect("a signal");
    projections.wait().expect("its end");
    let mut load = Load::start(4, Callers::Patient, vec![serve.info.url.clone()]).await;
    load.until_acknowledged(300).await;
    load.end().await;
    let behind = until("all is published", &serve, |lag| lag["outbox"]["depth"] == 0);
    for group in groups {
        let told = told_by_kafka(&kafka, group);
        assert_eq!(told_by_wallex(&behind, group), told);
        let lag: i64 = told.values().filter_map(|[_, _, lag]| lag.parse::<i64>().ok()).sum();
        assert!(lag >= 300, "{told:?}");
    }
}
