//! The database goes away and comes back.

use std::time::{Duration, Instant};

use wallex::kafka::EVENTS_PARTITIONS;
use wallex::projection::{LEDGER_PROJECTOR, LedgerProjection, READ_MODEL_PROJECTOR, ReadModelProjection, RunnerState};

use crate::support::TestServer;
use crate::world::{Recorder, Topic, World};

fn names(count: usize) -> impl Iterator<Item = String> {
    (0..count).map(|number| format!("wallet-{number}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_are_cut_again_and_again_lose_and_double_nothing() {
    let mut world = World::new(21).await;
    let topic = Topic::new();
    world.open(names(40)).await;
    world.operate(3_000).await;
    world.relay(&topic, 0, world.head()).await;
    let ledger = world.start(LedgerProjection::new(), &topic);
    let read_model = world.start(ReadModelProjection::new(), &topic);
    let recorder = world.start(Recorder::new("recorder"), &topic);
    for _ in 0..15 {
        tokio::time::sleep(Duration::from_millis(40)).await;
        world.database.end_connections().await;
    }
    for projection in [LEDGER_PROJECTOR, READ_MODEL_PROJECTOR, "recorder"] {
        world.through(projection, world.head()).await;
    }
    world.assert_ledger_and_read_model().await;
    world.assert_each_once("recorder").await;
    assert_eq!(world.database.number("SELECT count(*) FROM parked_records").await, 0, "an outage parks nothing");
    for running in [ledger, read_model, recorder] {
        running.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_is_away_for_a_while_is_waited_for_with_the_membership_kept() {
    let mut world = World::new(22).await;
    let topic = Topic::new();
    world.open(names(40)).await;
    world.operate(500).await;
    world.relay(&topic, 0, world.head()).await;
    let mut running = world.start(Recorder::new("recorder"), &topic);
    running.has_partitions(EVENTS_PARTITIONS as usize).await;
    world.through("recorder", world.head()).await;
    let before = world.head();
    world.operate(300).await;
    world.relay(&topic, before, world.head() - 100).await;
    world.database.refuse_connections().await;
    let held_up = running.until(|state| matches!(state, RunnerState::HeldUp { .. })).await;
    let RunnerState::HeldUp { reason } = held_up else { unreachable!("waited for just that") };
    assert!(!reason.is_empty());
    // Longer than a session lasts: a member that is not polled or does not beat is out by then.
    tokio::time::sleep(Duration::from_millis(2_500)).await;
    world.database.accept_connections().await;
    running.has_partitions(EVENTS_PARTITIONS as usize).await;
    world.relay(&topic, world.head() - 100, world.head()).await;
    world.through("recorder", world.head()).await;
    world.assert_each_once("recorder").await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_does_not_wait_for_a_database_that_is_away() {
    let mut world = World::new(23).await;
    let topic = Topic::new();
    world.open(names(10)).await;
    world.relay(&topic, 0, world.head()).await;
    let mut running = world.start(Recorder::new("recorder"), &topic);
    world.through("recorder", world.head()).await;
    world.database.refuse_connections().await;
    running.until(|state| matches!(state, RunnerState::HeldUp { .. })).await;
    let stopped = Instant::now();
    running.stop().await;
    assert!(stopped.elapsed() < Duration::from_secs(5), "took {:?}", stopped.elapsed());
    world.database.accept_connections().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_does_not_wait_for_a_broker_that_is_away() {
    let mut world = World::new(26).await;
    let topic = Topic::new();
    world.open(names(10)).await;
    world.relay(&topic, 0, world.head()).await;
    let running = world.start(Recorder::new("recorder"), &topic);
    world.through("recorder", world.head()).await;
    drop(topic);
    let stopped = Instant::now();
    running.stop().await;
    assert!(stopped.elapsed() < Duration::from_secs(5), "took {:?}", stopped.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_table_parks_nobody_and_is_waited_for() {
    let mut world = World::new(24).await;
    let topic = Topic::new();
    world.open(names(10)).await;
    world.operate(50).await;
    let mut running = world.start(Recorder::new("recorder"), &topic);
    running.has_partitions(EVENTS_PARTITIONS as usize).await;
    world.database.run("ALTER TABLE seen RENAME TO seen_elsewhere").await;
    world.relay(&topic, 0, world.head()).await;
    let held_up = running.until(|state| matches!(state, RunnerState::HeldUp { .. })).await;
    assert!(matches!(held_up, RunnerState::HeldUp { reason } if reason.contains("seen")));
    world.database.run("ALTER TABLE seen_elsewhere RENAME TO seen").await;
    world.through("recorder", world.head()).await;
    world.assert_each_once("recorder").await;
    assert_eq!(world.database.number("SELECT count(*) FROM parked_records").await, 0);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_killed_midway_loses_and_doubles_nothing() {
    let server = TestServer::start().await;
    let mut world = World::on(server.database().await, 25).await;
    let topic = Topic::new();
    world.open(names(40)).await;
    world.operate(3_000).await;
    world.relay(&topic, 0, world.head()).await;
    let running = world.start(Recorder::new("recorder"), &topic);
    world.until("it has begun", || async { world.position("recorder").await > 0 }).await;
    server.kill();
    world.through("recorder", world.head()).await;
    world.assert_each_once("recorder").await;
    running.stop().await;
}
