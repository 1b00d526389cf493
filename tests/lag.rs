//! `lag` says what is behind and by how much, with the broker there or away.

mod world;

use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::mocking::MockCluster;
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use wallex::kafka::{EVENTS_PARTITIONS, EVENTS_TOPIC, KafkaConfig, partition_of};
use wallex::lag::{BROKER_TIMEOUT, GroupLag, LagProbe, LagReport, STUCK_AFTER, State, progress, report};
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
    let outbox = &json["outbox"];
    assert_eq!(outbox["state"], "brokerAway");
    assert_eq!((&outbox["head"], &outbox["depth"], &outbox["oldestAgeMs"]), (&0.into(), &0.into(), &().into()));
    assert_eq!(json["total"]["state"], "brokerAway");
    // What is a list is one, also where nothing is known.
    for list in ["groups", "topics", "parked"] {
        assert!(json[list].is_array(), "{list}: {json}");
    }
    for (number, topic) in ["wallet-events", "wallet-events-dlq"].into_iter().enumerate() {
        let unknown = serde_json::json!({"topic": topic, "exists": null, "partitions": 0, "records": null});
        assert_eq!(json["topics"][number], unknown);
    }
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
    // Five share the waiting, also those who come while the others wait already.
    let asking: Vec<_> = (0..5)
        .map(|number| {
            tokio::spawn({
                let probe = probe.clone();
                async move {
                    tokio::time::sleep(Duration::from_millis(200 * number)).await;
                    probe.report().await
                }
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
    assert!(began.elapsed() < 2 * BROKER_TIMEOUT, "{:?}", began.elapsed());
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

impl World {
    /// How this group stands now.
    async fn state(&self, group_name: &str) -> (State, bool) {
        let report = report(&self.database, Some(&self.kafka)).await.expect("a report");
        let group = group(&report, group_name);
        (group.state, group.needs_help)
    }

    /// Time passes: longer than it takes to be stuck, for every event and checkpoint that there is.
    async fn grow_old(&self) {
        let age = STUCK_AFTER.as_secs() + 1;
        for statement in [
            "UPDATE events SET recorded_at = recorded_at - interval",
            "UPDATE projection_checkpoints SET moved_at = moved_at - interval",
            "UPDATE relay_checkpoint SET moved_at = moved_at - interval",
        ] {
            self.sql(&format!("{statement} '{age} seconds'")).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_moves_is_idle_or_is_stuck() {
    let mut world = World::settled().await;
    let group = BUILT_IN[0];
    assert_eq!(world.state(group).await, (State::Idle, false));
    world.grow_old().await;
    assert_eq!(world.state(group).await, (State::Idle, false), "nothing waits, for however long");

    world.live(200..230).await;
    assert_eq!(world.state(group).await, (State::Idle, false), "nothing of it has been published to the group");
    world.publish(|_, record| vec![record]).await;
    assert_eq!(world.state(group).await, (State::Moving, false), "it has waited for no time yet");
    world.grow_old().await;
    assert_eq!(world.state(group).await, (State::Stuck, true));

    // One partition that moves does not hide another that does not.
    let lacking = report(&world.database, Some(&world.kafka)).await.expect("a report");
    let lacking = self::group(&lacking, group).partitions.clone();
    let stuck: Vec<_> = lacking.iter().filter(|it| it.state == State::Stuck).map(|it| it.partition).collect();
    assert!(stuck.len() > 1, "{lacking:?}");
    world
        .sql(&format!(
            "UPDATE projection_checkpoints SET moved_at = now() WHERE projection = '{group}' AND partition = {}",
            stuck[0]
        ))
        .await;
    let one_moves = report(&world.database, Some(&world.kafka)).await.expect("a report");
    let one_moves = self::group(&one_moves, group);
    assert_eq!(one_moves.state, State::Stuck);
    assert_eq!(one_moves.partitions[stuck[0] as usize].state, State::Moving);

    world.sql(&format!("UPDATE projection_checkpoints SET moved_at = now() WHERE projection = '{group}'")).await;
    assert_eq!(world.state(group).await, (State::Moving, false), "an old backlog that is worked off");
    world.project(&BUILT_IN[..1]).await;
    assert_eq!(world.state(group).await, (State::Idle, false));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_that_never_committed_is_not_taken_for_one_that_moves() {
    let mut world = World::empty().await;
    assert_eq!(world.state(BUILT_IN[0]).await, (State::Idle, false), "there is nothing to commit");
    world.live(0..30).await;
    world.publish(|_, record| vec![record]).await;
    assert_eq!(world.state(BUILT_IN[0]).await, (State::NeverCommitted, false));
    let age = STUCK_AFTER.as_secs() + 1;
    world.sql(&format!("UPDATE events SET recorded_at = recorded_at - interval '{age} seconds'")).await;
    assert_eq!(world.state(BUILT_IN[0]).await, (State::NeverCommitted, true), "it has had its time");
    world.project(&BUILT_IN[..1]).await;
    assert_eq!(world.state(BUILT_IN[0]).await, (State::Idle, false));
    assert_eq!(world.state(BUILT_IN[1]).await, (State::NeverCommitted, true));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_with_parked_records_is_parked_whether_or_not_it_moves() {
    let world = World::settled().await;
    world
        .sql(
            "INSERT INTO parked_records (projection, wallet_id, position, topic, partition, record_headers, error_class, error,
                                         attempts, first_failed_at, last_failed_at)
             VALUES ('ledger-projector', 'wallet-3', 17, 'wallet-events', 0, '{}', 'APPLY', 'why', 1, now(), now())",
        )
        .await;
    assert_eq!(world.state(BUILT_IN[0]).await, (State::Parked, false));
    assert_eq!(world.state(BUILT_IN[1]).await, (State::Idle, false));
    let report = report(&world.database, Some(&world.kafka)).await.expect("a report");
    assert_eq!((report.total.state, report.total.parked, group(&report, BUILT_IN[0]).parked), (State::Parked, 1, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_absent_topic_and_an_absent_broker_are_told_apart() {
    let world = World::settled().await;
    let elsewhere: MockCluster<'_, _> = MockCluster::new(1).expect("a mock cluster");
    let without_topic = report(&world.database, Some(&KafkaConfig::new(elsewhere.bootstrap_servers()))).await;
    let without_topic = without_topic.expect("a report");
    let without_broker = report(&world.database, Some(&nobody())).await.expect("a report");
    for (report, state, exists) in
        [(without_topic, State::TopicAbsent, Some(false)), (without_broker, State::BrokerAway, None)]
    {
        assert_eq!((report.total.state, report.total.needs_help), (state, true), "{report:?}");
        assert_eq!((report.outbox.state, group(&report, BUILT_IN[0]).state), (state, state));
        assert_eq!((report.topics[0].exists, report.topics[0].records), (exists, None));
        assert_eq!(group(&report, BUILT_IN[0]).members, None, "nobody was asked, or nobody has answered");
        assert!(report.broker.error.is_some());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_kafka_was_told_is_shown_beside_the_checkpoint_that_counts() {
    let world = World::settled().await;
    commit(&world.kafka, BUILT_IN[0], 2, 1);
    world
        .sql(
            "UPDATE projection_checkpoints SET next_offset = 7 WHERE projection = 'ledger-projector' AND partition = 2",
        )
        .await;
    let report = report(&world.database, Some(&world.kafka)).await.expect("a report");
    let partition = group(&report, BUILT_IN[0]).partitions[2];
    assert_eq!(
        (partition.committed, partition.next_offset, partition.position),
        (Some(1), Some(7), Some(world.head()))
    );
    let topics: Vec<_> = report.topics.iter().map(|it| (it.topic.as_str(), it.exists, it.records)).collect();
    let absent = ("wallet-events-dlq", Some(false), None);
    assert_eq!(topics, [("wallet-events", Some(true), Some(world.head())), absent]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_relay_says_of_itself_is_part_of_the_answer() {
    let world = World::settled().await;
    let outbox = async || report(&world.database, Some(&world.kafka)).await.expect("a report").outbox;
    assert_eq!(outbox().await.state, State::Idle);
    world
        .sql("INSERT INTO relay_withheld (wallet_id, position, partition, record_bytes, reason) VALUES ('wallet-3', 17, 0, 9, 'too large')")
        .await;
    let withholding = outbox().await;
    assert_eq!((withholding.state, withholding.withheld.len()), (State::Parked, 1));
    world
        .sql("UPDATE relay_status SET state = 'blocked', reason = 'seven partitions', holder = 'me', since = now(), seen_at = now()")
        .await;
    let blocked = outbox().await;
    assert_eq!((blocked.state, blocked.relay.reason.as_deref()), (State::Stuck, Some("seven partitions")));
    world.sql("UPDATE relay_status SET seen_at = now() - interval '1 hour'").await;
    let gone = outbox().await;
    assert_eq!(
        (gone.relay.state, gone.state),
        (wallex::relay::RelayState::Absent, State::Parked),
        "nothing waits for it now"
    );
}
