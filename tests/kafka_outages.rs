//! Everything that a cluster does to its clients: leaders move, brokers are killed, halted, too few, away, out of disk.
//! Commands go on meanwhile, `lag` shows what waits, and once the cluster is well again everything is there, once.

#[path = "full_disk/disk.rs"]
mod disk;
mod kafka;
#[path = "crash/load.rs"]
mod load;
mod process;

use std::time::{Duration, Instant};

use disk::{Ballast, on_a_disk_of};
use kafka::{CONFIGS, Kafka, LEADER_ELECTION, TOPICS};
use load::{Callers, Load};
use process::{Serve, room, run};
use serde_json::Value;
use wallex::kafka::{DLQ_TOPIC, EVENTS_TOPIC};

/// How long the way from log to ledger may take to be whole again. The broker that was killed counts as alive for 9 seconds,
/// clients come back with a backoff, and machines under test are busy.
const RECOVERY: Duration = Duration::from_secs(180);
/// How often something that changes by itself is looked at.
const LOOK: Duration = Duration::from_millis(250);

/// Callers that leave the machine to the brokers.
async fn callers(serve: &Serve) -> Load {
    let urls = vec![serve.info.url.clone()];
    Load::start_paced(11, Callers::Patient, urls, Duration::from_millis(50)).await
}

/// A service on a cluster, under load.
struct Scene<'a> {
    kafka: &'a Kafka,
    serve: &'a Serve,
    load: Load,
}

impl Scene<'_> {
    /// `lag -o json`; its exit code is of no interest here.
    fn lag(&self) -> Value {
        let output = run(&["lag", "-o", "json", "--log", "error", "--data-dir", self.serve.data_dir()]);
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
    }

    fn number(&self, what: &str) -> i64 {
        self.lag()["outbox"][what].as_i64().unwrap_or_else(|| panic!("no {what} in the outbox"))
    }

    /// Waits until everything that is in the log now is published and in the tables of both groups.
    async fn until_caught_up(&self, after: &str) {
        let head = self.number("head");
        let started = Instant::now();
        loop {
            let progress = load::get(self.serve, "/health/progress").await;
            let through = |value: &Value| value.as_i64().is_some_and(|position| position >= head);
            let groups = progress["groups"].as_array().expect("groups");
            if through(&progress["published"]) && groups.iter().all(|group| through(&group["position"])) {
                println!("caught up {:?} after {after}", started.elapsed());
                return;
            }
            assert!(started.elapsed() < RECOVERY, "{after}: not caught up with {head}: {progress} {}", self.lag());
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Waits until nothing is published any more, though commands are acknowledged: the outbox grows, and `lag` says no.
    async fn until_publishing_has_stopped(&mut self) {
        let started = Instant::now();
        loop {
            let before = self.number("published");
            self.load.until_acknowledged(200).await;
            tokio::time::sleep(Duration::from_secs(2)).await;
            if self.number("published") == before {
                break;
            }
            assert!(started.elapsed() < RECOVERY, "records are published all the time");
        }
        assert!(self.number("depth") > 0);
        let lag = run(&["lag", "--max", "0", "--log", "error", "--data-dir", self.serve.data_dir()]);
        assert_eq!(lag.status.code(), Some(1), "{}", String::from_utf8_lossy(&lag.stdout));
    }

    /// Waits until `lag` gives this as the reason why the relay does not publish.
    async fn until_lag_says(&self, reason: &str) {
        let started = Instant::now();
        loop {
            let lag = self.lag();
            if lag["outbox"]["relay"]["reason"].as_str().is_some_and(|said| said.contains(reason)) {
                return;
            }
            assert!(started.elapsed() < RECOVERY, "not said: {reason}: {lag}");
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Ends the load and proves everything, with the count of Kafka's own tool.
    async fn prove(mut self) {
        self.load.end().await;
        self.until_caught_up("the end of the load").await;
        let head = self.number("head");
        self.load.prove(self.serve).await;
        assert_eq!(self.kafka.held(EVENTS_TOPIC) as i64, head, "each event once, by Kafka's own count");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_three_brokers_that_fail_one_after_another_lose_and_double_nothing_on_a_real_kafka() {
    let (room, kafka) = (room(), Kafka::start_with(&["--brokers", "3"]));
    let made = run(&["topics", "--apply", "--kafka-brokers", &kafka.address()]);
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    for topic in [EVENTS_TOPIC, DLQ_TOPIC] {
        assert!(kafka.tool(TOPICS, &["--describe", "--topic", topic]).contains("ReplicationFactor: 3"), "{topic}");
        let settings = kafka.tool(CONFIGS, &["--describe", "--entity-type", "topics", "--entity-name", topic]);
        assert!(settings.contains("min.insync.replicas=2"), "{topic}: {settings}");
    }
    let serve = Serve::start_with(&room.path().join("data"), &["--kafka-brokers", &kafka.address()]);
    let load = callers(&serve).await;
    let mut scene = Scene { kafka: &kafka, serve: &serve, load };
    scene.load.until_acknowledged(100).await;
    scene.until_caught_up("the start").await;

    // A broker that ends in order hands its partitions over, and is given them back.
    kafka.stop(2);
    scene.load.until_acknowledged(100).await;
    scene.until_caught_up("the leaders moved").await;
    kafka.start_again(2);
    kafka.tool(LEADER_ELECTION, &["--election-type", "preferred", "--all-topic-partitions"]);
    scene.load.until_acknowledged(100).await;
    scene.until_caught_up("the leaders moved back").await;

    // One of three killed: it goes on with two.
    kafka.kill(3);
    scene.load.until_acknowledged(100).await;
    scene.until_caught_up("one of three was killed").await;

    // Two of three killed: no record can be in sync with a second copy. It waits, and goes on once a second one is there.
    kafka.kill(2);
    scene.until_publishing_has_stopped().await;
    scene.until_lag_says("1 of 3 replicas in sync").await;
    // The relay lets go of what was not acknowledged in time. It lies with the leader, unseen until there are two again.
    scene.until_lag_says("takes no records with fewer than 2").await;
    kafka.start_again(2);
    scene.until_caught_up("a second broker came back").await;
    kafka.start_again(3);

    // Halted for longer than the cluster waits for it: its connections stay open, and nothing answers.
    kafka.halt(1);
    scene.load.until_acknowledged(100).await;
    scene.until_caught_up("a broker was halted").await;
    kafka.go_on(1);
    scene.load.until_acknowledged(100).await;
    scene.until_caught_up("it woke").await;

    // All of them away for a minute.
    (1..=3).for_each(|broker| kafka.kill(broker));
    let away_since = Instant::now();
    scene.until_publishing_has_stopped().await;
    assert_eq!(scene.lag()["broker"]["connected"], false);
    while away_since.elapsed() < Duration::from_secs(60) {
        scene.load.until_acknowledged(100).await;
    }
    kafka.start_all_again();
    scene.until_caught_up("a minute without any broker").await;
    scene.prove().await;
}

#[test]
fn slow_a_broker_whose_disk_is_full_is_waited_for_on_a_real_kafka() {
    on_a_disk_of(96, "slow_a_broker_whose_disk_is_full_is_waited_for_on_a_real_kafka", |disk| {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        runtime.expect("a runtime").block_on(async {
            let (room, kafka) = (room(), Kafka::start_in(disk, &[]));
            let serve = Serve::start_with(&room.path().join("data"), &["--kafka-brokers", &kafka.address()]);
            let load = callers(&serve).await;
            let mut scene = Scene { kafka: &kafka, serve: &serve, load };
            scene.load.until_acknowledged(100).await;
            scene.until_caught_up("the start").await;

            let ballast = Ballast::leaving(0, disk);
            scene.until_publishing_has_stopped().await;
            // A broker that cannot write to its only disk ends by itself.
            let started = Instant::now();
            while kafka.runs(1) {
                assert!(started.elapsed() < RECOVERY, "the broker goes on without a disk");
                tokio::time::sleep(LOOK).await;
            }
            drop(ballast);
            kafka.start_again(1);
            scene.until_caught_up("the disk had room again").await;
            scene.prove().await;
        });
    });
}
