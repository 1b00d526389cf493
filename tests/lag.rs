//! `lag` says what is behind and by how much, with the broker there or away.

mod world;

use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use wallex::kafka::{EVENTS_PARTITIONS, EVENTS_TOPIC, KafkaConfig, partition_of};
use wallex::lag::{BROKER_TIMEOUT, GroupLag, LagProbe, LagReport, progress, report};
use wallex::projection::BUILT_IN;

use world::{World, fresh_database};

fn group<'a>(report: &'a LagReport, name: &str) -> &'a GroupLag {
    report.groups.iter().find(|group| group.group == name).expect("a group of that name")
}

/// Commits an offset for a group, as its projection does.
fn commit(kafka: &KafkaConfig, group: &str, partition: i32, offset: i64) {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", &kafka.brokers)
        .set("group.id", group)
        .set("enable.auto.commit", "false")
        .create()
        .expect("a consumer");
    let mut offsets = TopicPartitionList::new();
    offsets.add_partition_offset(EVENTS_TOPIC, partition, Offset::Offset(offset)).expect("an offset");
    consumer.commit(&offsets, CommitMode::Sync).expect("a commit");
}

/// An address where nobody listens.
fn nobody() -> KafkaConfig {
    let socket = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    KafkaConfig::new(socket.local_addr().expect("an address").to_string())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_system_has_nothing_behind() {
    let report = report(&fresh_database().await, None).await.expect("a report");
    assert_eq!((report.outbox.head, report.outbox.depth, report.outbox.oldest_age_ms), (0, 0, None));
    let names: Vec<_> = report.groups.iter().map(|group| group.group.as_str()).collect();
    assert_eq!(names, BUILT_IN);
    for group in &report.groups {
        assert_eq!((group.position, group.lag, group.behind_ms), (0, None, None));
        assert_eq!(group.partitions.len(), EVENTS_PARTITIONS as usize);
    }
    assert!(!report.broker.connected);
    let json = serde_json::to_value(&report).expect("JSON");
    assert_eq!(json["parked"], serde_json::json!([]));
    assert_eq!(json["outbox"], serde_json::json!({"head": 0, "published": 0, "depth": 0, "oldestAgeMs": null}));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_is_counted_in_the_outbox_and_in_each_group() {
    let mut world = World::empty().await;
    world.live(0..60).await;
    let first = report(&world.database, Some(&world.kafka)).await.expect("a report");
    assert_eq!((first.outbox.published, first.outbox.depth), (0, world.head()));
    let age = first.outbox.oldest_age_ms.expect("events that wait");
    assert!((0..60_000).contains(&age));
    assert_eq!(first.broker.error, None);
    // Nothing is in the topic, so no record waits for anybody; but the groups lack events, and that is said too.
    let ledger = group(&first, BUILT_IN[0]);
    assert_eq!((ledger.lag, ledger.position), (Some(0), 0));
    assert!(ledger.behind_ms.is_some());

    world.publish(|_, record| vec![record]).await;
    let second = report(&world.database, Some(&world.kafka)).await.expect("a report");
    assert_eq!((second.outbox.depth, second.outbox.oldest_age_ms), (0, None));
    let ledger = group(&second, BUILT_IN[0]);
    assert_eq!(ledger.lag, None, "nothing is committed");
    assert_eq!(ledger.waiting(second.outbox.head), world.head());
    let ends: i64 = ledger.partitions.iter().filter_map(|partition| partition.end).sum();
    assert_eq!(ends, world.head());
    assert!(ledger.partitions.iter().all(|partition| partition.committed.is_none()));

    world.project(&BUILT_IN[..1]).await;
    for partition in &ledger.partitions {
        commit(&world.kafka, BUILT_IN[0], partition.partition, partition.end.expect("an end"));
    }
    let third = report(&world.database, Some(&world.kafka)).await.expect("a report");
    let ledger = group(&third, BUILT_IN[0]);
    assert_eq!((ledger.lag, ledger.position, ledger.behind_ms), (Some(0), world.head(), None));
    let read_model = group(&third, BUILT_IN[1]);
    assert_eq!((read_model.lag, read_model.position), (None, 0));
    assert!(read_model.behind_ms.is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_partition_that_is_behind_is_told_from_those_that_are_not() {
    let world = World::settled().await;
    let events = world.events().await;
    let last = events.last().expect("an event");
    let partition = partition_of(last.stream.as_str().as_bytes(), EVENTS_PARTITIONS);
    let before: Vec<_> = events
        .iter()
        .filter(|event| partition_of(event.stream.as_str().as_bytes(), EVENTS_PARTITIONS) == partition)
        .map(|event| event.position)
        .collect();
    let done = before[before.len() - 3];
    world
        .sql(&format!(
            "UPDATE projection_checkpoints SET position = {done}
              WHERE projection = 'read-model-projector' AND partition = {partition}"
        ))
        .await;
    commit(&world.kafka, BUILT_IN[1], partition, before.len() as i64 - 2);
    let report = report(&world.database, Some(&world.kafka)).await.expect("a report");
    let group = group(&report, BUILT_IN[1]);
    assert_eq!(group.position, done);
    for found in &group.partitions {
        assert_eq!(found.behind_ms.is_some(), found.partition == partition, "{found:?}");
    }
    let behind = &group.partitions[partition as usize];
    assert_eq!((behind.committed, behind.lag), (Some(before.len() as i64 - 2), Some(2)));
    let progress = progress(&world.database).await.expect("the progress");
    assert!(progress.is_through(done) && !progress.is_through(done + 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_is_away_takes_only_its_own_columns_with_it() {
    let world = World::settled().await;
    let probe = LagProbe::new(world.database.clone(), Some(nobody()));
    let began = Instant::now();
    // Five at once share the waiting.
    let asking: Vec<_> = (0..5)
        .map(|_| {
            tokio::spawn({
                let probe = probe.clone();
                async move { probe.report().await }
            })
        })
        .collect();
    for asked in asking {
        let report = asked.await.expect("a task").expect("a report");
        assert!(!report.broker.connected);
        assert!(report.broker.error.as_deref().expect("a reason").contains("127.0.0.1"));
        let group = group(&report, BUILT_IN[0]);
        assert_eq!((group.position, group.lag), (world.head(), None));
        assert!(group.partitions.iter().all(|partition| partition.end.is_none() && partition.committed.is_none()));
        assert!(group.partitions.iter().any(|partition| partition.position.is_some()));
    }
    assert!(began.elapsed() < 2 * BROKER_TIMEOUT + Duration::from_secs(1), "{:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_comes_back_is_found_by_the_same_probe() {
    let world = World::settled().await;
    let probe = LagProbe::new(world.database.clone(), Some(world.kafka.clone()));
    assert!(probe.report().await.expect("a report").broker.connected);
    world.cluster.broker_down(1).expect("down");
    assert!(!probe.report().await.expect("a report").broker.connected);
    world.cluster.broker_up(1).expect("up");
    let began = Instant::now();
    while !probe.report().await.expect("a report").broker.connected {
        assert!(began.elapsed() < Duration::from_secs(20), "the broker is up and not found");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn parked_wallets_and_groups_of_others_are_listed() {
    let world = World::settled().await;
    world
        .sql(
            "INSERT INTO parked_records (projection, wallet_id, position, topic, partition, record_headers, error_class, error,
                                         attempts, first_failed_at, last_failed_at)
             SELECT 'ledger-projector', w, p, 'wallet-events', 0, '{}'::jsonb, 'poison', 'cause ' || p, 1,
                    now() - make_interval(mins => p), now()
               FROM (VALUES ('wallet-3', 17), ('wallet-3', 19), (NULL, NULL)) AS v(w, p)
              WHERE p IS NOT NULL
             UNION ALL
             SELECT 'spending', NULL, NULL, 'wallet-events', 0, '{}'::jsonb, 'foreign', 'no header', 1, now(), now()",
        )
        .await;
    world.sql("INSERT INTO projection_checkpoints (projection, partition, position) VALUES ('spending', 0, 3)").await;
    let report = report(&world.database, Some(&world.kafka)).await.expect("a report");
    let parked: Vec<_> = report
        .parked
        .iter()
        .map(|parked| (parked.group.as_str(), parked.wallet_id.as_deref(), parked.records, parked.error.as_str()))
        .collect();
    assert_eq!(parked, [("ledger-projector", Some("wallet-3"), 2, "cause 17"), ("spending", None, 1, "no header")]);
    let names: Vec<_> = report.groups.iter().map(|group| group.group.as_str()).collect();
    assert_eq!(names, ["ledger-projector", "read-model-projector", "spending"]);
}
