//! What the topic does not have.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use wallex::kafka::{EVENTS_PARTITIONS, HEADER_FOLLOWS};
use wallex::projection::{LEDGER_PROJECTOR, LedgerProjection, READ_MODEL_PROJECTOR, ReadModelProjection};

use crate::world::{Raw, Recorder, Topic, World, partition, wallets_of};

fn names(count: usize) -> impl Iterator<Item = String> {
    (0..count).map(|number| format!("wallet-{number}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_new_topic_does_not_have_is_read_from_the_log() {
    let mut world = World::new(11).await;
    let topic = Topic::new();
    world.open(names(40)).await;
    world.operate(1_000).await;
    world.relay(&topic, 0, 300).await;
    let ledger = world.start(LedgerProjection::new(), &topic);
    let read_model = world.start(ReadModelProjection::new(), &topic);
    world.through(LEDGER_PROJECTOR, 300).await;
    world.through(READ_MODEL_PROJECTOR, 300).await;
    ledger.stop().await;
    read_model.stop().await;
    drop(topic);

    let topic = Topic::new();
    world.relay(&topic, 700, world.head()).await;
    let ledger = world.start(LedgerProjection::new(), &topic);
    let read_model = world.start(ReadModelProjection::new(), &topic);
    world.through(LEDGER_PROJECTOR, world.head()).await;
    world.through(READ_MODEL_PROJECTOR, world.head()).await;
    world.assert_ledger_and_read_model().await;
    ledger.stop().await;
    read_model.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_topic_that_is_filled_step_by_step_under_an_old_relay_checkpoint_loses_nothing() {
    let mut world = World::new(12).await;
    let topic = Topic::new();
    let hot = wallets_of(3, 1).remove(0);
    world.open([hot.clone()]).await;
    world.operate(200).await;
    world.relay(&topic, 0, 100).await;
    let running = world.start(Recorder::new("recorder"), &topic);
    world.through("recorder", 100).await;
    running.stop().await;
    drop(topic);

    // The relay had published everything to a topic that is gone, and publishes it again: with a pause, in which a runner
    // that trusts the relay's checkpoint and the end of the topic would think that it is through.
    let topic = Topic::new();
    world.published(world.head()).await;
    topic.publish(&world.events(100, 101).await);
    let running = world.start(Recorder::new("recorder"), &topic);
    world.until("the first one is there", || async { world.seen("recorder").await.len() >= 101 }).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    topic.publish(&world.events(101, world.head()).await);
    world.through("recorder", world.head()).await;
    world.assert_each_once("recorder").await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_whose_offsets_go_on_may_be_another_one_that_began_later() {
    let mut world = World::new(16).await;
    let topic = Topic::new();
    world.open(names(40)).await;
    world.operate(400).await;
    world.relay(&topic, 0, 100).await;
    let running = world.start(Recorder::new("recorder"), &topic);
    world.through("recorder", 100).await;
    // The topic is deleted, made anew, and has grown to where the runner reads on before that notices: what came in between
    // lies before its offset, in a topic that it has never seen.
    world.relay(&topic, 250, world.head()).await;
    world.through("recorder", world.head()).await;
    world.assert_each_once("recorder").await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn records_that_do_not_say_what_they_follow_are_held_against_the_log() {
    let mut world = World::new(17).await;
    let topic = Topic::new();
    world.open(names(40)).await;
    world.operate(400).await;
    for event in world.events(0, world.head()).await.iter().filter(|event| !(100..200).contains(&event.position)) {
        let mut raw = Raw::of(event);
        raw.headers.retain(|(name, _)| name != HEADER_FOLLOWS);
        let nonsense = ["", "-1", "none", "99999999999999999999"].get(event.position as usize % 5);
        raw.headers.extend(nonsense.map(|value| (HEADER_FOLLOWS.to_owned(), value.as_bytes().to_vec())));
        topic.send(partition(event.stream.as_str()), &raw);
    }
    topic.flush();
    world.published(world.head()).await;
    let running = world.start(Recorder::new("recorder"), &topic);
    world.through("recorder", world.head()).await;
    world.assert_each_once("recorder").await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn events_that_are_published_but_never_come_are_read_from_the_log() {
    let mut world = World::new(13).await;
    let topic = Topic::new();
    world.open(names(40)).await;
    world.operate(300).await;
    world.published(world.head()).await;
    let running = world.start(Recorder::new("recorder"), &topic);
    world.through("recorder", world.head()).await;
    world.assert_each_once("recorder").await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_events_that_never_come_are_read_from_the_log_also_while_other_partitions_are_busy() {
    let mut world = World::new(18).await;
    let topic = Topic::new();
    let (quiet, busy) = (wallets_of(8, 1).remove(0), wallets_of(3, 1).remove(0));
    world.open([quiet.clone(), busy.clone()]).await;
    world.relay(&topic, 0, world.head()).await;
    let running = world.start(Recorder::new("recorder"), &topic);
    world.through("recorder", world.head()).await;
    // This one is published, as far as the relay can tell, and no consumer ever gets it.
    let lacking = world.credit(&quiet).await;
    world.published(lacking).await;
    let mut ticks = tokio::time::interval(Duration::from_millis(200));
    let waited = std::time::Instant::now();
    while !world.seen("recorder").await.iter().any(|(position, ..)| *position == lacking) {
        assert!(waited.elapsed() < Duration::from_secs(60), "it is waited for in vain while others come");
        ticks.tick().await;
        let after = world.head();
        world.credit(&busy).await;
        world.relay(&topic, after, world.head()).await;
    }
    world.through("recorder", world.head()).await;
    world.assert_each_once("recorder").await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn records_that_the_topic_dropped_before_they_were_read_come_from_the_log() {
    let mut world = World::new(14).await;
    let topic = Topic::new();
    let hot = wallets_of(7, 1).remove(0);
    world.open([hot.clone()]).await;
    world.relay(&topic, 0, world.head()).await;
    let gate = Arc::new(Semaphore::new(1));
    let mut kafka = topic.kafka();
    // Nothing is fetched ahead.
    for (name, value) in
        [("queued.min.messages", "1"), ("queued.max.messages.kbytes", "1"), ("fetch.message.max.bytes", "1000")]
    {
        kafka.properties.insert(name.to_owned(), value.to_owned());
    }
    let running = world.start_with(Recorder::new("recorder").behind(&gate), kafka);
    world.until("the first batch is in", || async { world.seen("recorder").await.len() as i64 == world.head() }).await;
    let before = world.head();
    world.credit_at_length(&hot, 7_000).await;
    world.relay(&topic, before, world.head()).await;
    gate.add_permits(1_000_000);
    world.through("recorder", world.head()).await;
    world.assert_each_once("recorder").await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn partitions_without_events_move_on_with_the_relay_and_nothing_is_written_once_all_are_through() {
    let mut world = World::new(15).await;
    let topic = Topic::new();
    let hot = wallets_of(2, 1).remove(0);
    world.open([hot.clone()]).await;
    world.relay(&topic, 0, world.head()).await;
    let running = world.start(Recorder::new("recorder"), &topic);
    world.through("recorder", world.head()).await;
    for _ in 0..20 {
        let before = world.head();
        world.credit(&hot).await;
        world.relay(&topic, before, world.head()).await;
        world.through("recorder", world.head()).await;
    }
    let quiet = "SELECT count(*) FROM projection_checkpoints WHERE projection = 'recorder' AND position = (SELECT position FROM log_head)";
    assert_eq!(world.database.number(quiet).await, i64::from(EVENTS_PARTITIONS));
    let versions = "SELECT sum(xmin::text::bigint)::bigint FROM projection_checkpoints";
    let before = world.database.number(versions).await;
    tokio::time::sleep(Duration::from_millis(2_500)).await;
    assert_eq!(world.database.number(versions).await, before, "an idle runner writes nothing");
    running.stop().await;
}
