//! On a real Kafka: its group coordinator decides who has what.

use std::collections::BTreeSet;
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use wallex::kafka::{EVENTS_PARTITIONS, KafkaConfig};
use wallex::projection::{LedgerProjection, ProjectionRunner, RunnerError, RunnerOptions, RunnerState};

use crate::kafka::Kafka;
use crate::processes::{Place, come_and_go};
use crate::world::World;

fn place(kafka: &Kafka) -> Place {
    Place {
        brokers: kafka.address(),
        options: Vec::new(),
        longer_than_a_session: Duration::from_secs(13),
        data_dir: tempfile::tempdir().expect("a directory"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_processes_that_come_go_and_stand_still_double_and_skip_nothing() {
    let kafka = Kafka::start();
    come_and_go(82, &place(&kafka)).await;
}

/// A member in this process, and every set of partitions that it has had.
struct Member {
    task: JoinHandle<Result<(), RunnerError>>,
    stop: CancellationToken,
    had: Arc<Mutex<Vec<BTreeSet<i32>>>>,
    changed: Arc<tokio::sync::Notify>,
}

impl Member {
    fn start(world: &World, kafka: &Kafka, instance_id: Option<&str>) -> Member {
        let options = RunnerOptions { instance_id: instance_id.map(str::to_owned), ..RunnerOptions::default() };
        let (database, log) = (world.database.database.clone(), world.database.log());
        let kafka = KafkaConfig::new(kafka.address());
        let runner = ProjectionRunner::new(LedgerProjection::new(), database, log, kafka, options);
        let (had, changed) = (Arc::new(Mutex::new(Vec::new())), Arc::new(tokio::sync::Notify::new()));
        let mut state = runner.state();
        let (kept, notify) = (Arc::clone(&had), Arc::clone(&changed));
        tokio::spawn(async move {
            while state.changed().await.is_ok() {
                if let RunnerState::Running { partitions } = &*state.borrow_and_update() {
                    kept.lock().expect("no panic").push(partitions.iter().copied().collect());
                }
                notify.notify_one();
            }
        });
        let stop = CancellationToken::new();
        Member { task: tokio::spawn(runner.run(stop.clone())), stop, had, changed }
    }

    fn had(&self) -> Vec<BTreeSet<i32>> {
        self.had.lock().expect("no panic").clone()
    }

    async fn has(&self, count: usize) -> BTreeSet<i32> {
        let reached = async {
            loop {
                if let Some(last) = self.had().pop().filter(|last| last.len() == count) {
                    return last;
                }
                self.changed.notified().await;
            }
        };
        let reached = tokio::time::timeout(Duration::from_secs(90), reached).await;
        reached.unwrap_or_else(|_| panic!("never had {count} partitions: {:?}", self.had()))
    }

    async fn end(self) {
        self.stop.cancel();
        self.task.await.expect("no panic").expect("no error");
    }
}

/// A log, and the topic that the relay has made of it.
async fn published(seed: u64, place: &Place) -> World {
    let mut world = World::new(seed).await;
    world.open((0..10).map(|number| format!("wallet-{number}"))).await;
    let mut relay = place.start(&world, &["relay"], Stdio::null());
    let published = "SELECT position FROM relay_checkpoint";
    world.until("the relay is through", || async { world.database.number(published).await == world.head() }).await;
    relay.stop();
    world
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_joins_takes_only_what_it_gets_and_the_others_keep_the_rest() {
    let kafka = Kafka::start();
    let place = place(&kafka);
    let world = published(83, &place).await;
    let all = EVENTS_PARTITIONS as usize;
    let first = Member::start(&world, &kafka, None);
    first.has(all).await;
    let second = Member::start(&world, &kafka, None);
    let taken = second.has(all / 2).await;
    let kept = first.has(all / 2).await;
    assert!(kept.is_disjoint(&taken));
    // Cooperative: from the moment it had all of them it has never let go of those that it kept.
    let had = first.had();
    let whole = had.iter().position(|had| had.len() == all).expect("it had all");
    assert!(had[whole..].iter().all(|had| had.is_superset(&kept)), "{had:?}");
    first.end().await;
    second.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_static_member_that_is_back_in_time_has_its_partitions_and_no_other_notices() {
    let kafka = Kafka::start();
    let place = place(&kafka);
    let world = published(84, &place).await;
    let half = EVENTS_PARTITIONS as usize / 2;
    let first = Member::start(&world, &kafka, Some("first"));
    let second = Member::start(&world, &kafka, Some("second"));
    first.has(half).await;
    let before = second.has(half).await;
    let changes = first.had().len();
    second.end().await;
    let second = Member::start(&world, &kafka, Some("second"));
    assert_eq!(second.has(half).await, before);
    // Longer than a session: had it been missed, the first one would have got its partitions.
    tokio::time::sleep(Duration::from_secs(13)).await;
    assert_eq!(first.had().len(), changes, "{:?}", first.had());

    // Two of one name: the one that was there ends, and says why.
    let other = place.start(&world, &["project", "ledger", "--instance-id", "second"], Stdio::piped());
    let fenced = tokio::time::timeout(Duration::from_secs(90), second.task).await.expect("an end").expect("no panic");
    assert!(matches!(&fenced, Err(RunnerError::Consumer { reason, .. }) if reason.contains("enced")), "{fenced:?}");
    let again = place.start(&world, &["project", "ledger", "--instance-id", "second"], Stdio::null());
    let (code, said) = tokio::task::spawn_blocking(|| other.ended()).await.expect("no panic");
    assert!(code == Some(2) && said.contains("ledger-projector") && said.contains("enced"), "{code:?} {said}");
    drop(again);
    first.end().await;
}
