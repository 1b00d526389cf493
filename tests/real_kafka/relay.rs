//! The relay beside a broker that it cannot bend: topics deleted and made anew, halted processes, a limit on records.

use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use serde_json::Value;
use wallex::kafka::EVENTS_TOPIC;

use crate::kafka::{CONFIGS, Kafka, OFFSETS, TOPICS};
use crate::process::{Part, Serve, room, run};

/// How long what takes seconds may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(180);

fn json(arguments: &[&str]) -> Value {
    let output = run(arguments);
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{arguments:?}: {error}: {}", String::from_utf8_lossy(&output.stderr)))
}

fn load(serve: &Serve, seed: &str, operations: &str) {
    let arguments =
        ["loadtest", "--wallets", "20", "--operations", operations, "--seed", seed, "--data-dir", serve.data_dir()];
    let loaded = run(&arguments);
    assert!(loaded.status.success(), "{}", String::from_utf8_lossy(&loaded.stdout));
}

fn held(kafka: &Kafka) -> usize {
    let ends = kafka.tool(OFFSETS, &["--topic", EVENTS_TOPIC]);
    ends.lines().map(|line| line.rsplit(':').next().and_then(|end| end.parse::<usize>().ok()).expect("an end")).sum()
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < PATIENCE, "not in time: {what}");
        // The progress is another process's.
        std::thread::sleep(Duration::from_millis(200));
    }
}

fn is_proven(serve: &Serve) -> bool {
    run(&["verify", "--data-dir", serve.data_dir()]).status.success()
}

fn head(serve: &Serve) -> usize {
    json(&["lag", "-o", "json", "--data-dir", serve.data_dir()])["outbox"]["head"].as_u64().expect("a head") as usize
}

#[test]
fn slow_a_topic_deleted_under_a_running_serve_is_made_anew_and_no_event_is_passed_over() {
    let (room, kafka) = (room(), Kafka::start());
    let serve = Serve::start_with(&room.path().join("data"), &["--kafka-brokers", &kafka.address()]);
    load(&serve, "1", "200");
    kafka.tool(TOPICS, &["--delete", "--topic", EVENTS_TOPIC]);
    let before = head(&serve);
    // It may well find the topic wanting: what counts is that commands go on, and what comes of it in the end.
    run(&["loadtest", "--wallets", "20", "--operations", "200", "--seed", "2", "--data-dir", serve.data_dir()]);
    assert!(head(&serve) > before);
    until("everything agrees", || is_proven(&serve));
    assert!(held(&kafka) > 0);
}

#[test]
fn slow_a_relay_halted_for_longer_than_its_lease_wakes_and_doubles_nothing() {
    let (room, kafka) = (room(), Kafka::start());
    let address = kafka.address();
    let arguments = ["--only", "http,project", "--kafka-brokers", &address];
    let serve = Serve::start_with(&room.path().join("data"), &arguments);
    let relay = || Part::start(&["relay", "--data-dir", serve.data_dir(), "--kafka-brokers", &address]);
    let first = relay();
    load(&serve, "1", "200");
    let _second = relay();
    std::thread::scope(|scope| {
        let loading = scope.spawn(|| {
            let arguments = ["--wallets", "200", "--operations", "20000", "--seed", "2"];
            run(&[&["loadtest", "--data-dir", serve.data_dir()], &arguments[..]].concat())
        });
        let before = head(&serve);
        until("the load is on", || head(&serve) > before + 2_000);
        kill(first.pid(), Signal::SIGSTOP).expect("a halt");
        // Longer than the lease: the second one is at it when the first one wakes.
        std::thread::sleep(Duration::from_secs(60));
        kill(first.pid(), Signal::SIGCONT).expect("it goes on");
        loading.join().expect("the load is over");
    });
    until("everything agrees", || is_proven(&serve));
    assert_eq!(held(&kafka), head(&serve));
}

#[test]
fn slow_an_event_over_the_topics_limit_is_withheld_with_its_wallet_until_the_limit_is_raised() {
    let (room, kafka) = (room(), Kafka::start());
    let serve = Serve::start_with(&room.path().join("data"), &["--kafka-brokers", &kafka.address()]);
    load(&serve, "1", "100");
    let limit = |bytes: &str| {
        let setting = format!("max.message.bytes={bytes}");
        let topic = ["--entity-type", "topics", "--entity-name", EVENTS_TOPIC];
        kafka.tool(CONFIGS, &[&["--alter", "--add-config", &setting], &topic[..]].concat());
    };
    limit("1100");
    let post = |path: &str, body: Value| {
        let url = format!("{}{path}", serve.info.url);
        let body = body.to_string();
        let arguments = ["-sf", "-H", "content-type: application/json", "-d", &body, &url];
        let posted = Command::new("curl").args(arguments).output().expect("curl");
        assert!(posted.status.success(), "{}", String::from_utf8_lossy(&posted.stderr));
    };
    post("/wallets", serde_json::json!({"walletId": "wordy", "ownerId": "zoe"}));
    // Characters of three bytes without a pattern: the broker looks at what is left of them when they are compressed.
    let character = |number: u32| char::from_u32(0x4e00 + (number.wrapping_mul(0x9E37_79B9) >> 8) % 20_000);
    let words: String = (0..1_000).filter_map(character).collect();
    post("/wallets/wordy/credit", serde_json::json!({"amount": "5", "description": words}));
    post("/wallets/wordy/credit", serde_json::json!({"amount": "6"}));
    load(&serve, "2", "100");
    let parked = || json(&["lag", "-o", "json", "--data-dir", serve.data_dir()])["parked"].clone();
    until("it is withheld with what comes behind it", || parked()[0]["records"] == 2);
    assert_eq!((&parked()[0]["group"], &parked()[0]["walletId"]), (&"relay".into(), &"wordy".into()));
    until("everything else agrees", || is_proven(&serve));
    assert_eq!(held(&kafka), head(&serve) - 2);
    let listed = run(&["dlq", "list", "--data-dir", serve.data_dir()]);
    let told = String::from_utf8_lossy(&listed.stderr);
    assert!(told.contains("1 wallets are withheld from the topic") && told.contains("max.message.bytes"), "{told}");

    limit("1048588");
    until("it is published", || held(&kafka) == head(&serve));
    until("nothing is withheld", || parked() == serde_json::json!([]));
    until("everything agrees", || is_proven(&serve));
}
