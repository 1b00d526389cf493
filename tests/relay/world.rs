//! A log to write to, relays to run, and a topic to read as it is.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::Utc;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::{Header, Headers, Message, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;
use wallex::embedded::EmbeddedBroker;
use wallex::kafka::{EVENTS_PARTITIONS, EVENTS_TOPIC, KafkaConfig, OutgoingRecord, partition_of};
use wallex::log::{Appended, Batch, EventLog, NewEvent, PostgresLog, RecordedEvent};
use wallex::money::{Amount, Currency};
use wallex::postgres::Database;
use wallex::relay::{Bell, Relay, RelayError, RelayOptions, RelayState};
use wallex::wallet::{Description, WalletEvent, WalletId};

use crate::support::TestDatabase;

/// How long a test waits for what should take milliseconds.
pub const PATIENCE: Duration = Duration::from_secs(60);

pub const PROJECTIONS: [&str; 2] = ["ledger-projector", "read-model-projector"];

/// Appends credits to wallets, some at a time, and keeps count of their revisions.
pub struct Writer {
    log: PostgresLog,
    revisions: HashMap<String, i64>,
    pub description: Option<Description>,
}

impl Writer {
    pub fn new(log: PostgresLog) -> Self {
        Writer { log, revisions: HashMap::new(), description: None }
    }

    /// Appends one event to each of these wallets; the last position.
    pub async fn append(&mut self, wallets: impl IntoIterator<Item = String>) -> i64 {
        let metadata: Arc<[u8]> = br#"{"correlationId":"correlation","causationId":"causation"}"#.as_slice().into();
        let amount = Amount::from_minor(1_000).expect("an amount");
        let mut batch = Batch { recorded_at: Utc::now(), ..Batch::default() };
        for wallet in wallets {
            let revision = self.revisions.entry(wallet.clone()).and_modify(|revision| *revision += 1).or_insert(0);
            let event = WalletEvent::WalletCredited {
                amount,
                balance: amount,
                currency: Currency::USD,
                description: self.description.clone(),
                transfer: None,
            };
            batch.events.push(NewEvent {
                stream: WalletId::new(wallet).expect("an id"),
                stream_key: None,
                revision: *revision,
                event_id: Uuid::now_v7(),
                event_type: event.event_type(),
                payload: event.to_payload(),
                metadata: metadata.clone(),
            });
        }
        match self.log.append(&batch).await.expect("appends") {
            Appended::At(position) => position,
            Appended::Conflict => panic!("nobody else writes"),
        }
    }

    /// Appends so many events over 200 wallets, 250 at a time; the last position.
    pub async fn append_many(&mut self, count: usize) -> i64 {
        let mut head = 0;
        for first in (0..count).step_by(250) {
            let wallets = (first..count.min(first + 250)).map(|number| format!("wallet-{}", number * 7 % 200));
            head = self.append(wallets).await;
        }
        head
    }
}

/// A relay at work.
pub struct Running {
    task: JoinHandle<Result<(), RelayError>>,
    stop: CancellationToken,
    pub bell: Bell,
}

impl Running {
    pub fn start(database: &Database, kafka: &KafkaConfig, options: RelayOptions) -> Self {
        let (bell, stop) = (Bell::new(), CancellationToken::new());
        let log = PostgresLog::new(database.clone());
        let relay = Relay::new(log, database.clone(), kafka.clone(), bell.clone(), options);
        Running { task: tokio::spawn(relay.run(stop.clone())), stop, bell }
    }

    /// Drops it where it stands.
    pub async fn kill(self) {
        self.task.abort();
        assert!(self.task.await.expect_err("it was aborted").is_cancelled());
    }

    pub async fn stop(self) {
        self.stop.cancel();
        self.task.await.expect("no panic").expect("no error");
    }
}

pub fn broker() -> (EmbeddedBroker, KafkaConfig) {
    let broker = EmbeddedBroker::start(&[(EVENTS_TOPIC, EVENTS_PARTITIONS)]).expect("a broker");
    let config = KafkaConfig::new(broker.bootstrap_servers());
    (broker, config)
}

pub async fn checkpoint(database: &TestDatabase) -> i64 {
    database.number("SELECT position FROM relay_checkpoint").await
}

/// Waits until the checkpoint is there.
pub async fn published(database: &TestDatabase, position: i64) {
    let started = Instant::now();
    while checkpoint(database).await < position {
        assert!(started.elapsed() < PATIENCE, "the checkpoint stands at {}", checkpoint(database).await);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Sets how far both projections have come, in every partition.
pub async fn project(database: &TestDatabase, position: i64) {
    for projection in PROJECTIONS {
        database
            .run(&format!(
                "INSERT INTO projection_checkpoints (projection, partition, position)
                 SELECT '{projection}', partition, {position} FROM generate_series(0, {}) AS partition
                     ON CONFLICT (projection, partition) DO UPDATE SET position = excluded.position",
                EVENTS_PARTITIONS - 1
            ))
            .await;
    }
}

#[derive(Debug)]
pub struct Seen {
    pub partition: i32,
    pub offset: i64,
    pub timestamp: i64,
    pub position: i64,
    pub key: Vec<u8>,
    pub value: Vec<u8>,
    pub headers: BTreeMap<String, String>,
}

/// Everything that the topic holds, in order of partition and offset.
pub async fn topic(kafka: &KafkaConfig) -> Vec<Seen> {
    let brokers = kafka.brokers.clone();
    tokio::task::spawn_blocking(move || read_topic(&brokers)).await.expect("the topic is read")
}

fn read_topic(brokers: &str) -> Vec<Seen> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("group.id", "test")
        .set("enable.partition.eof", "true")
        .create()
        .expect("a consumer");
    let mut assignment = TopicPartitionList::new();
    for partition in 0..EVENTS_PARTITIONS {
        assignment.add_partition_offset(EVENTS_TOPIC, partition, Offset::Beginning).expect("a partition");
    }
    consumer.assign(&assignment).expect("an assignment");
    let (mut seen, mut ended) = (Vec::new(), 0);
    while ended < EVENTS_PARTITIONS {
        match consumer.poll(PATIENCE).expect("a record or an end") {
            Ok(message) => {
                let headers: BTreeMap<String, String> = message
                    .headers()
                    .expect("headers")
                    .iter()
                    .map(|header| {
                        (header.key.to_owned(), String::from_utf8_lossy(header.value.expect("a value")).into())
                    })
                    .collect();
                seen.push(Seen {
                    partition: message.partition(),
                    offset: message.offset(),
                    timestamp: message.timestamp().to_millis().expect("a time"),
                    position: headers["position"].parse().expect("a position"),
                    key: message.key().expect("a key").to_vec(),
                    value: message.payload().expect("a value").to_vec(),
                    headers,
                });
            }
            Err(KafkaError::PartitionEOF(_)) => ended += 1,
            Err(error) => panic!("{error}"),
        }
    }
    seen.sort_by_key(|record| (record.partition, record.offset));
    seen
}

/// That each record follows what it says: between the two the log has no event of its partition.
pub async fn assert_follows(database: &TestDatabase, seen: &[Seen]) {
    let log = database.log();
    let head = log.head().await.expect("the head");
    let mut before: BTreeMap<(i32, i64), i64> = BTreeMap::new();
    let mut last: BTreeMap<i32, i64> = BTreeMap::new();
    for event in log.read(0, head as usize).await.expect("the log") {
        let partition = partition_of(event.stream.as_str().as_bytes(), EVENTS_PARTITIONS);
        before.insert((partition, event.position), last.insert(partition, event.position).unwrap_or(0));
    }
    for record in seen {
        let follows: i64 = record.headers["follows"].parse().expect("a position");
        let before = before[&(record.partition, record.position)];
        assert!((before..record.position).contains(&follows), "{record:?} comes after {before}");
    }
}

/// That each of these positions is there once, and that positions grow within each partition.
pub fn assert_once_and_in_order(seen: &[Seen], positions: impl IntoIterator<Item = i64>) {
    for pair in seen.windows(2) {
        if pair[0].partition == pair[1].partition {
            assert!(pair[0].position < pair[1].position, "{:?} before {:?}", pair[0], pair[1]);
        }
    }
    let mut found: Vec<i64> = seen.iter().map(|record| record.position).collect();
    found.sort_unstable();
    assert_eq!(found, positions.into_iter().collect::<Vec<_>>());
}

/// Ends the session of whichever relay is the active one.
pub async fn end_session(database: &TestDatabase) -> i64 {
    database
        .number(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_locks WHERE locktype = 'advisory' AND granted
                AND database = (SELECT oid FROM pg_database WHERE datname = current_database())",
        )
        .await
}

/// Waits until the relay says that it is in this state; the reason that it gives.
pub async fn until_state(database: &TestDatabase, state: RelayState) -> String {
    let started = Instant::now();
    loop {
        let status = database.database.relay_status().await.expect("a status");
        if status.state == state {
            return status.reason.unwrap_or_default();
        }
        assert!(started.elapsed() < PATIENCE, "{status:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Sends the right records of events, as a relay that has begun with each of them would.
pub fn send<'a>(kafka: &KafkaConfig, events: impl IntoIterator<Item = &'a RecordedEvent>) {
    let producer: BaseProducer =
        ClientConfig::new().set("bootstrap.servers", &kafka.brokers).create().expect("a producer");
    for event in events {
        let record = OutgoingRecord::of(event, event.position - 1);
        let headers = record.headers.iter().fold(OwnedHeaders::new(), |headers, (name, value)| {
            headers.insert(Header { key: name, value: Some(value) })
        });
        let partition = partition_of(record.key.as_bytes(), EVENTS_PARTITIONS);
        let record =
            BaseRecord::to(EVENTS_TOPIC).partition(partition).key(&record.key).payload(&record.value).headers(headers);
        producer.send(record).map_err(|(error, _)| error).expect("it is queued");
    }
    producer.flush(PATIENCE).expect("all are there");
}
