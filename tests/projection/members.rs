//! Runners come and go.

use std::time::Duration;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use tokio::sync::Semaphore;
use wallex::kafka::{EVENTS_PARTITIONS, EVENTS_TOPIC};
use wallex::postgres::sqlx;
use wallex::projection::{LEDGER_PROJECTOR, LedgerProjection, READ_MODEL_PROJECTOR, ReadModelProjection};

use crate::world::{Recorder, Topic, World};

fn names(count: usize) -> impl Iterator<Item = String> {
    (0..count).map(|number| format!("wallet-{number}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn ledger_and_read_model_are_what_the_log_says() {
    let mut world = World::new(1).await;
    let topic = Topic::new();
    world.open(names(40)).await;
    world.operate(1_500).await;
    world.relay(&topic, 0, world.head()).await;
    let ledger = world.start(LedgerProjection::new(), &topic);
    let read_model = world.start(ReadModelProjection::new(), &topic);
    world.through(LEDGER_PROJECTOR, world.head()).await;
    world.through(READ_MODEL_PROJECTOR, world.head()).await;
    world.assert_ledger_and_read_model().await;

    let before = world.head();
    world.operate(500).await;
    world.relay(&topic, before, world.head()).await;
    world.through(LEDGER_PROJECTOR, world.head()).await;
    world.through(READ_MODEL_PROJECTOR, world.head()).await;
    world.assert_ledger_and_read_model().await;
    ledger.stop().await;
    read_model.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_every_event_is_applied_once_over_restarts_at_random_moments() {
    let seed = 2;
    let mut world = World::new(seed).await;
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let topic = Topic::new();
    world.open(names(40)).await;
    world.relay(&topic, 0, world.head()).await;
    for _ in 0..6 {
        let before = world.head();
        world.operate(400).await;
        world.relay(&topic, before, world.head()).await;
        let mut running = world.start(Recorder::new("recorder"), &topic);
        let ledger = world.start(LedgerProjection::new(), &topic);
        running.has_partitions(EVENTS_PARTITIONS as usize).await;
        // Any moment will do; that is the test.
        tokio::time::sleep(Duration::from_millis(random.random_range(0..120))).await;
        // Dropped, not stopped: as good as killed, for what is in the database.
        drop(running);
        ledger.stop().await;
    }
    let running = world.start(Recorder::new("recorder"), &topic);
    let others = (world.start(LedgerProjection::new(), &topic), world.start(ReadModelProjection::new(), &topic));
    world.through("recorder", world.head()).await;
    world.through(LEDGER_PROJECTOR, world.head()).await;
    world.through(READ_MODEL_PROJECTOR, world.head()).await;
    world.assert_each_once("recorder").await;
    world.assert_ledger_and_read_model().await;
    running.stop().await;
    others.0.stop().await;
    others.1.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_is_delivered_again_changes_nothing() {
    let mut world = World::new(3).await;
    let topic = Topic::new();
    world.open(names(20)).await;
    world.operate(300).await;
    let events = world.events(0, world.head()).await;
    topic.publish(&events[..200]);
    topic.publish(&events[50..250]);
    topic.publish(&events);
    world.published(world.head()).await;
    let running = world.start(Recorder::new("recorder"), &topic);
    world.through("recorder", world.head()).await;
    topic.publish(&events[100..]);
    let before = world.head();
    world.operate(50).await;
    world.relay(&topic, before, world.head()).await;
    world.through("recorder", world.head()).await;
    world.assert_each_once("recorder").await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_members_share_the_partitions_and_a_change_midway_doubles_nothing() {
    let mut world = World::new(4).await;
    let topic = Topic::new();
    world.open(names(40)).await;
    world.operate(2_000).await;
    world.relay(&topic, 0, world.head()).await;
    // Slow enough that the second one comes midway.
    let gate = std::sync::Arc::new(Semaphore::new(5));
    let mut first = world.start(Recorder::new("recorder").behind(&gate), &topic);
    first.has_partitions(EVENTS_PARTITIONS as usize).await;
    let mut second = world.start(Recorder::new("recorder").behind(&gate), &topic);
    let feeding = tokio::spawn({
        let gate = std::sync::Arc::clone(&gate);
        async move {
            loop {
                tokio::time::sleep(Duration::from_millis(40)).await;
                gate.add_permits(1);
            }
        }
    });
    second.has_partitions(5).await;
    first.has_partitions(5).await;
    gate.add_permits(1_000_000);
    let before = world.head();
    world.operate(500).await;
    world.relay(&topic, before, world.head()).await;
    world.through("recorder", world.head()).await;
    first.stop().await;
    let before = world.head();
    world.operate(500).await;
    world.relay(&topic, before, world.head()).await;
    second.has_partitions(EVENTS_PARTITIONS as usize).await;
    world.through("recorder", world.head()).await;
    world.assert_each_once("recorder").await;
    second.stop().await;
    feeding.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_runner_whose_checkpoint_was_moved_by_another_writes_nothing_and_goes_on_from_there() {
    let mut world = World::new(5).await;
    let topic = Topic::new();
    world.open(names(20)).await;
    world.operate(400).await;
    let events = world.events(0, world.head()).await;
    let coming = &events[200..];
    world.relay(&topic, 0, 200).await;
    let running = world.start(Recorder::new("recorder"), &topic);
    world.through("recorder", 200).await;

    // Whoever looks at the log has to wait: the runner, with records in its hands.
    let mut transaction = world.database.database.pool().begin().await.expect("a transaction");
    sqlx::query("LOCK TABLE events").execute(&mut *transaction).await.expect("a lock");
    topic.publish(coming);
    let waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'events'::regclass";
    world.until("the runner waits", || async { world.database.number(waiting).await > 0 }).await;
    // Somebody else, who thinks that he has all partitions, takes the next hundred events.
    for event in &coming[..100] {
        sqlx::query("INSERT INTO seen (projection, position, wallet_id, revision) VALUES ('recorder', $1, $2, $3)")
            .bind(event.position)
            .bind(event.stream.as_str())
            .bind(event.revision)
            .execute(&mut *transaction)
            .await
            .expect("a row");
    }
    sqlx::query("UPDATE projection_checkpoints SET position = 300 WHERE projection = 'recorder'")
        .execute(&mut *transaction)
        .await
        .expect("checkpoints");
    transaction.commit().await.expect("a commit");
    world.published(world.head()).await;

    world.through("recorder", world.head()).await;
    world.assert_each_once("recorder").await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kafka_is_told_how_far_the_tables_are() {
    let mut world = World::new(6).await;
    let topic = Topic::new();
    world.open(names(40)).await;
    world.operate(500).await;
    world.relay(&topic, 0, world.head()).await;
    let running = world.start(Recorder::new("recorder"), &topic);
    world.through("recorder", world.head()).await;
    running.stop().await;

    let kafka = topic.kafka();
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", &kafka.brokers)
        .set("group.id", "recorder")
        .create()
        .expect("a consumer");
    let patience = Duration::from_secs(10);
    let mut asked = TopicPartitionList::new();
    (0..EVENTS_PARTITIONS).for_each(|partition| _ = asked.add_partition(EVENTS_TOPIC, partition));
    let committed = consumer.committed_offsets(asked, patience).expect("an answer");
    for element in committed.elements() {
        let (_, end) = consumer.fetch_watermarks(EVENTS_TOPIC, element.partition(), patience).expect("an answer");
        assert_eq!(element.offset(), Offset::Offset(end), "partition {}", element.partition());
    }
}
