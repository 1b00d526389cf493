//! Processes that die at a named place (`src/crash_point.rs`), as the code runs through it under load. The broker and the
//! database outlive them, so whatever they leave half-done is there for the next one to find.

use std::time::Duration;

use wallex::embedded::EmbeddedBroker;
use wallex::kafka::{EVENTS_PARTITIONS, EVENTS_TOPIC};

use crate::load::{Callers, Load, get};
use crate::process::{Part, Serve, room};
use crate::seed;

/// How long a part may take to come to the place where it dies: as long as a group takes to give it partitions.
const PATIENCE: Duration = Duration::from_secs(120);

/// The web process, a broker, and callers: all that stays.
struct System {
    serve: Serve,
    load: Load,
    /// What a part is told to find both.
    place: Vec<String>,
    _broker: EmbeddedBroker,
    _room: tempfile::TempDir,
}

impl System {
    async fn start() -> System {
        let room = room();
        let broker = EmbeddedBroker::start(&[(EVENTS_TOPIC, EVENTS_PARTITIONS)]).expect("a broker");
        let brokers = broker.bootstrap_servers().to_owned();
        let serve = Serve::start_with(&room.path().join("data"), &["--only", "http", "--kafka-brokers", &brokers]);
        let load = Load::start(seed(), Callers::Patient, vec![serve.info.url.clone()]).await;
        // The dead are to be missed soon: the group waits for them.
        let group = ["--kafka-config", "session.timeout.ms=6000", "--kafka-config", "heartbeat.interval.ms=500"];
        let place = ["--data-dir", serve.data_dir(), "--kafka-brokers", &brokers].into_iter().chain(group);
        System { place: place.map(str::to_owned).collect(), serve, load, _broker: broker, _room: room }
    }

    fn arguments<'a>(&'a self, part: &[&'a str]) -> Vec<&'a str> {
        part.iter().copied().chain(self.place.iter().map(String::as_str)).collect()
    }

    fn part(&self, part: &[&str]) -> Part {
        Part::start(&self.arguments(part))
    }

    fn part_to_crash_at(&self, point: &str, part: &[&str]) -> Part {
        Part::start_to_crash_at(point, &self.arguments(part))
    }

    /// Waits until both projections have applied something.
    async fn until_projected(&self) {
        let waiting = async {
            loop {
                let progress = get(&self.serve, "/health/progress").await;
                let groups = progress["groups"].as_array().expect("an array");
                if groups.iter().all(|group| group["position"].as_i64().is_some_and(|position| position > 0)) {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(PATIENCE, waiting).await.expect("the projections are at work");
    }

    /// Parts that die at these places one after the other while the callers go on.
    async fn dies_at(&self, points: &[&str], part: &[&str]) {
        for point in points {
            self.part_to_crash_at(point, part).until_killed(PATIENCE).await;
            self.load.until_acknowledged(20).await;
        }
    }

    /// With every part in place at last, everything agrees.
    async fn prove(mut self) {
        self.load.end().await;
        self.load.prove(&self.serve).await;
    }
}

/// A relay that dies at these places, then one that does not; the topic has each record once, or `verify` says no.
async fn relays_die_at(points: &[&str]) {
    let system = System::start().await;
    let _projections = system.part(&["project"]);
    system.dies_at(points, &["relay"]).await;
    let _relay = system.part(&["relay"]);
    system.prove().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_a_relay_killed_before_it_sends_leaves_nothing_out() {
    relays_die_at(&["before-send", "before-send:40", "before-send:300"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_a_relay_killed_after_it_has_sent_and_before_the_acknowledgement_sends_nothing_twice() {
    relays_die_at(&["after-send", "after-send:40", "after-send:300"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_a_relay_killed_between_acknowledgement_and_checkpoint_sends_nothing_twice() {
    relays_die_at(&["before-checkpoint", "before-checkpoint:2", "before-checkpoint:10"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_a_projection_killed_within_its_transaction_applies_everything_once() {
    let system = System::start().await;
    let _relay = system.part(&["relay"]);
    system.dies_at(&["in-transaction", "in-transaction:5"], &["project", "ledger"]).await;
    system.dies_at(&["in-transaction", "in-transaction:5"], &["project", "read-model"]).await;
    let _projections = system.part(&["project"]);
    system.prove().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_a_member_killed_while_it_is_given_partitions_skips_and_doubles_nothing() {
    let system = System::start().await;
    let _relay = system.part(&["relay"]);
    system.dies_at(&["assigned", "assigned:2"], &["project"]).await;
    let _projections = system.part(&["project"]);
    system.prove().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_a_member_killed_while_its_partitions_are_taken_skips_and_doubles_nothing() {
    let system = System::start().await;
    let _relay = system.part(&["relay"]);
    let first = system.part_to_crash_at("revoked", &["project"]);
    // Only who has partitions can lose them to another.
    system.until_projected().await;
    let _second = system.part(&["project"]);
    first.until_killed(PATIENCE).await;
    system.load.until_acknowledged(50).await;
    system.prove().await;
}
