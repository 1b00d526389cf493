//! The way of events to the topic, and what ends it.

use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use wallex::kafka::{EVENTS_PARTITIONS, EVENTS_TOPIC, EventRecord, KafkaConfig, partition_of};
use wallex::log::{EventLog, RecordedEvent};
use wallex::relay::RelayOptions;
use wallex::wallet::Description;

use crate::support::TestDatabase;
use crate::world::{
    PATIENCE, Running, Writer, assert_follows, assert_once_and_in_order, broker, checkpoint, end_session, project,
    published, topic,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_event_is_published_once_in_order_where_it_belongs() {
    let database = TestDatabase::new().await;
    let (_broker, kafka) = broker();
    let mut writer = Writer::new(database.log());
    writer.append_many(2_000).await;
    let relay = Running::start(&database.database, &kafka, RelayOptions::default());
    published(&database, 2_000).await;
    for _ in 0..12 {
        writer.append_many(250).await;
        relay.bell.ring();
    }
    published(&database, 5_000).await;
    relay.stop().await;

    let seen = topic(&kafka).await;
    assert_once_and_in_order(&seen, 1..=5_000);
    assert_follows(&database, &seen).await;
    let first_of_partitions = seen.chunk_by(|one, next| one.partition == next.partition).map(|records| &records[0]);
    assert!(first_of_partitions.into_iter().all(|record| record.headers["follows"] == "0"));
    for pair in seen.windows(2).filter(|pair| pair[0].partition == pair[1].partition) {
        assert_eq!(pair[1].headers["follows"], pair[0].position.to_string());
    }
    let log = database.log();
    let mut events: Vec<RecordedEvent> = Vec::new();
    while events.len() < 5_000 {
        events.extend(log.read(events.len() as i64, 1_000).await.expect("a page"));
    }
    for record in &seen {
        let event = &events[record.position as usize - 1];
        assert_eq!(record.key, event.stream.as_str().as_bytes());
        assert_eq!(record.partition, partition_of(&record.key, EVENTS_PARTITIONS));
        assert_eq!(record.timestamp, event.recorded_at.timestamp_millis());
        assert_eq!(record.headers["aggregate-id"], event.stream.as_str());
        assert_eq!(record.headers["event-type"], event.event_type);
        assert_eq!(record.headers["correlation-id"], "correlation");
        assert_eq!(record.headers["causation-id"], "causation");
        assert_eq!(record.headers["revision"], event.revision.to_string());
        let read = EventRecord::from_value(event.stream.clone(), event.position, event.revision, &record.value);
        assert_eq!(read.expect("the event"), EventRecord::try_from(event).expect("the event"));
    }
    // The tails say what is in the topic.
    let wrong = seen.chunk_by(|one, next| one.partition == next.partition).map(|records| {
        let last = records.last().expect("a record");
        format!("({}, {}, {})", last.partition, last.offset + 1, last.position)
    });
    let query = format!(
        "SELECT count(*) FROM relay_tails WHERE topic = '{EVENTS_TOPIC}' AND (partition, next_offset, position) IN ({})",
        wrong.collect::<Vec<_>>().join(", ")
    );
    assert_eq!(database.number(&query).await, i64::from(EVENTS_PARTITIONS));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_empty_broker_gets_what_the_projections_lack() {
    let database = TestDatabase::new().await;
    let (first_broker, kafka) = broker();
    let mut writer = Writer::new(database.log());
    let head = writer.append_many(1_000).await;
    let relay = Running::start(&database.database, &kafka, RelayOptions::default());
    published(&database, head).await;
    relay.stop().await;
    drop(first_broker);

    project(&database, 900).await;
    database
        .run("UPDATE projection_checkpoints SET position = 400 WHERE projection = 'ledger-projector' AND partition = 3")
        .await;
    let (_broker, kafka) = broker();
    let relay = Running::start(&database.database, &kafka, RelayOptions::default());
    let head = {
        // The checkpoint goes back before it goes on, so wait for something new.
        let head = writer.append_many(100).await;
        published(&database, head).await;
        head
    };
    relay.stop().await;

    let seen = topic(&kafka).await;
    let log = database.log();
    let mut lacking = Vec::new();
    for event in log.read(0, 2_000).await.expect("the log") {
        let partition = partition_of(event.stream.as_str().as_bytes(), EVENTS_PARTITIONS);
        if event.position > if partition == 3 { 400 } else { 900 } {
            lacking.push(event.position);
        }
    }
    assert_eq!(lacking.last(), Some(&head));
    assert_once_and_in_order(&seen, lacking);
    assert_follows(&database, &seen).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn relays_killed_and_stopped_half_way_leave_nothing_doubled_and_nothing_missing() {
    let database = TestDatabase::new().await;
    let (_broker, kafka) = broker();
    let mut writer = Writer::new(database.log());
    let mut head = 0;
    for round in 0..6 {
        head = writer.append_many(1_500).await;
        let relay = Running::start(&database.database, &kafka, RelayOptions::default());
        published(&database, head - 1_499 + round * 200).await;
        if round % 2 == 0 {
            end_session(&database).await;
            relay.kill().await;
        } else {
            relay.stop().await;
        }
    }
    let relay = Running::start(&database.database, &kafka, RelayOptions::default());
    published(&database, head).await;
    relay.stop().await;
    let seen = topic(&kafka).await;
    assert_once_and_in_order(&seen, 1..=head);
    assert_follows(&database, &seen).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_whose_session_is_ended_makes_room_for_another() {
    let database = TestDatabase::new().await;
    let (_broker, kafka) = broker();
    let relays = [(); 2].map(|()| Running::start(&database.database, &kafka, RelayOptions::default()));
    let mut writer = Writer::new(database.log());
    let mut head = writer.append_many(300).await;
    published(&database, head).await;
    for _ in 0..3 {
        // While it is idle: what it sends next would be in the topic twice if it did not look first.
        assert_eq!(end_session(&database).await, 1, "one relay holds the lock");
        head = writer.append_many(300).await;
        published(&database, head).await;
    }
    for relay in relays {
        relay.stop().await;
    }
    let seen = topic(&kafka).await;
    assert_once_and_in_order(&seen, 1..=head);
    assert_follows(&database, &seen).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_ended_while_it_fills_a_new_broker_is_followed_by_one_that_fills_the_rest() {
    let database = TestDatabase::new().await;
    let (first_broker, kafka) = broker();
    let mut writer = Writer::new(database.log());
    writer.description = Description::new("x".repeat(1_000)).ok();
    let head = writer.append_many(20_000).await;
    let relay = Running::start(&database.database, &kafka, RelayOptions::default());
    published(&database, head).await;
    relay.stop().await;
    drop(first_broker);

    let (_broker, mut kafka) = broker();
    // No projection comes after, so it cannot finish: it is ended half-way for certain.
    kafka.embedded = true;
    let relay = Running::start(&database.database, &kafka, RelayOptions::default());
    let before = full(&kafka).await;
    relay.stop().await;
    // The next one counts what is there: it goes no further.
    let relay = Running::start(&database.database, &kafka, RelayOptions::default());
    tokio::time::sleep(Duration::from_millis(700)).await;
    assert_eq!(topic(&kafka).await.len(), before);
    let mut last = before;
    while last < head as usize {
        let through = topic(&kafka).await.iter().map(|record| record.position).max().unwrap_or(0);
        project(&database, through).await;
        last = full(&kafka).await;
        if through == head {
            break;
        }
    }
    relay.stop().await;
    assert!(last > before);
    assert_eq!(topic(&kafka).await.iter().map(|record| record.position).max(), Some(head));
}

/// Waits until the embedded broker gets no more; how many records there are.
async fn full(kafka: &KafkaConfig) -> usize {
    let mut before = 0;
    loop {
        tokio::time::sleep(Duration::from_millis(300)).await;
        let seen = topic(kafka).await;
        if seen.len() == before && before > 0 {
            return before;
        }
        before = seen.len();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_forged_position_at_the_end_of_the_topic_makes_no_relay_pass_events_over() {
    let database = TestDatabase::new().await;
    let (_broker, kafka) = broker();
    let mut writer = Writer::new(database.log());
    let head = writer.append_many(500).await;
    let relay = Running::start(&database.database, &kafka, RelayOptions::default());
    published(&database, head).await;
    relay.stop().await;
    let brokers = kafka.brokers.clone();
    tokio::task::spawn_blocking(move || forge(&brokers, 900)).await.expect("it is sent");
    let head = writer.append_many(500).await;
    let relay = Running::start(&database.database, &kafka, RelayOptions::default());
    published(&database, head).await;
    relay.stop().await;
    let mut seen = topic(&kafka).await;
    seen.retain(|record| record.value != b"forged");
    assert_once_and_in_order(&seen, 1..=head);
}

/// Sends a record that claims this position to every partition.
fn forge(brokers: &str, position: i64) {
    let producer: BaseProducer = ClientConfig::new().set("bootstrap.servers", brokers).create().expect("a producer");
    for partition in 0..EVENTS_PARTITIONS {
        let headers = OwnedHeaders::new().insert(Header { key: "position", value: Some(&position.to_string()) });
        let record =
            BaseRecord::to(EVENTS_TOPIC).partition(partition).key("wallet-1").payload("forged").headers(headers);
        producer.send(record).expect("it is queued");
    }
    producer.flush(PATIENCE).expect("it is sent");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_stopped_while_the_broker_is_away_ends() {
    let database = TestDatabase::new().await;
    let mut writer = Writer::new(database.log());
    let head = writer.append_many(100).await;
    let (broker, kafka) = broker();
    let relay = Running::start(&database.database, &kafka, RelayOptions::default());
    published(&database, head).await;
    drop(broker);
    writer.append_many(100).await;
    relay.bell.ring();
    tokio::time::sleep(Duration::from_millis(400)).await;
    assert_eq!(checkpoint(&database).await, head);
    tokio::time::timeout(Duration::from_secs(12), relay.stop()).await.expect("it ends");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_that_the_broker_refuses_is_not_left_out() {
    use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};
    let database = TestDatabase::new().await;
    let cluster = rdkafka::mocking::MockCluster::new(1).expect("a broker");
    cluster.create_topic(EVENTS_TOPIC, EVENTS_PARTITIONS, 1).expect("a topic");
    let kafka = KafkaConfig::new(cluster.bootstrap_servers());
    let mut writer = Writer::new(database.log());
    let relay = Running::start(&database.database, &kafka, RelayOptions::default());
    writer.append_many(100).await;
    relay.bell.ring();
    published(&database, 100).await;
    cluster.request_errors(RDKafkaApiKey::Produce, &[RDKafkaRespErr::RD_KAFKA_RESP_ERR_POLICY_VIOLATION]);
    let mut head = 0;
    for _ in 0..40 {
        head = writer.append_many(50).await;
        relay.bell.ring();
    }
    published(&database, head).await;
    relay.stop().await;
    let mut positions: Vec<i64> = topic(&kafka).await.iter().map(|record| record.position).collect();
    positions.sort_unstable();
    positions.dedup();
    let missing: Vec<i64> = (1..=head).filter(|position| positions.binary_search(position).is_err()).collect();
    assert!(missing.is_empty(), "{} missing: {:?}", missing.len(), &missing[..missing.len().min(20)]);
}
