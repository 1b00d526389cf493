//! States of `wallex lag` that only a real Kafka can show: it alone tells of members, and lets a topic be deleted.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::kafka::{Kafka, TOPICS};
use crate::process::{Part, Serve, room, run};

/// How long a group may take to notice who has come or gone, on a machine that is busy with other tests.
const PATIENCE: Duration = Duration::from_secs(180);

/// Waits until `lag` says this of the group `ledger-projector`, or what it says in the end.
fn until_ledger_is(serve: &Serve, state: &str, members: impl Into<Value>) {
    let (began, members) = (Instant::now(), members.into());
    loop {
        let lag = run(&["lag", "-o", "json", "--log", "error", "--data-dir", serve.data_dir()]);
        let lag: Value = serde_json::from_slice(&lag.stdout).expect("lag answers in JSON");
        let ledger = &lag["groups"][0];
        if ledger["state"] == state && ledger["members"] == members {
            return;
        }
        assert!(began.elapsed() < PATIENCE, "not {state} with {members} members: {lag:#}");
        std::thread::sleep(Duration::from_millis(200));
    }
}

#[test]
fn slow_a_group_without_members_is_absent_and_a_topic_that_was_deleted_too() {
    let (room, kafka) = (room(), Kafka::start());
    let brokers = kafka.address();
    let data_dir = room.path().join("data");
    let serve = Serve::start_with(&data_dir, &["--only", "http,relay", "--kafka-brokers", &brokers]);
    until_ledger_is(&serve, "groupAbsent", 0);

    let project = Part::start(&["project", "--data-dir", serve.data_dir(), "--kafka-brokers", &brokers]);
    until_ledger_is(&serve, "idle", 1);
    // Killed, not stopped: it cannot say that it goes.
    drop(project);
    until_ledger_is(&serve, "groupAbsent", 0);

    // Without a relay nobody makes the topic again.
    assert_eq!(serve.stop(Signal::SIGTERM), 143);
    let serve = Serve::start_with(&data_dir, &["--only", "http", "--kafka-brokers", &brokers]);
    kafka.tool(TOPICS, &["--delete", "--topic", wallex::kafka::EVENTS_TOPIC]);
    until_ledger_is(&serve, "topicAbsent", 0);

    kafka.kill(1);
    until_ledger_is(&serve, "brokerAway", Value::Null);
}
