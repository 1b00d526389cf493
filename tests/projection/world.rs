//! A small world for runners to work in: a log written through the domain, a topic to which its events are published or not,
//! and a projection that shows what was applied, how often, and in which order.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rdkafka::ClientConfig;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;
use wallex::embedded::EmbeddedBroker;
use wallex::embedded::broker::PRODUCER_SETTINGS;
use wallex::kafka::{
    DLQ_PARTITIONS, DLQ_TOPIC, EVENTS_PARTITIONS, EVENTS_TOPIC, EventRecord, KafkaConfig, OutgoingRecord, partition_of,
};
use wallex::log::{Appended, Batch, EventLog, NewEvent, PostgresLog, RecordedEvent};
use wallex::money::{Amount, Currency};
use wallex::postgres::{PgConnection, sqlx};
use wallex::projection::{
    ApplyError, PARKED_MAX, Projection, ProjectionRunner, RunnerError, RunnerOptions, RunnerState,
};
use wallex::wallet::{Description, Ends, OwnerId, Wallet, WalletEvent, WalletId, credit, debit, open, transfer};

use crate::support::TestDatabase;

/// Position, leg, account, amount, balance after, type.
type StoredPosting = (i64, i32, String, i64, Option<i64>, Option<String>);

/// How long a test waits for what should take far less.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// What a [`Recorder`] writes to. It has no key: what is applied twice is to be seen twice.
const SEEN: &str = "CREATE TABLE IF NOT EXISTS seen
                        (place bigserial, projection text, position bigint, wallet_id text, revision bigint)";

/// A topic, and a producer that writes to it what a test says.
pub struct Topic {
    broker: EmbeddedBroker,
    producer: BaseProducer,
}

/// A record to send as it is, right or wrong.
#[derive(Clone, Debug, Default)]
pub struct Raw {
    pub key: Option<Vec<u8>>,
    pub value: Option<Vec<u8>>,
    pub headers: Vec<(String, Vec<u8>)>,
}

impl Raw {
    /// The right record of an event, as a relay that has begun with it would send it.
    pub fn of(event: &RecordedEvent) -> Self {
        Self::following(event, event.position - 1)
    }

    fn following(event: &RecordedEvent, follows: i64) -> Self {
        let record = OutgoingRecord::of(event, follows);
        let headers = record.headers.into_iter().map(|(name, value)| (name.to_owned(), value.into_bytes())).collect();
        Raw { key: Some(record.key.into_bytes()), value: Some(record.value), headers }
    }
}

impl Topic {
    pub fn new() -> Self {
        let topics = [(EVENTS_TOPIC, EVENTS_PARTITIONS), (DLQ_TOPIC, DLQ_PARTITIONS)];
        let broker = EmbeddedBroker::start(&topics).expect("a broker");
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", broker.bootstrap_servers());
        PRODUCER_SETTINGS.iter().for_each(|(name, value)| _ = config.set(*name, *value));
        let producer = config.create().expect("a producer");
        Topic { broker, producer }
    }

    /// How runners reach it: with a session that is over soon, because this broker lets it run out at each change of members.
    pub fn kafka(&self) -> KafkaConfig {
        let mut kafka = KafkaConfig::new(self.broker.bootstrap_servers());
        kafka.embedded = true;
        kafka.properties.insert("session.timeout.ms".to_owned(), "1500".to_owned());
        kafka.properties.insert("heartbeat.interval.ms".to_owned(), "200".to_owned());
        kafka
    }

    pub fn send(&self, partition: i32, raw: &Raw) {
        let mut record: BaseRecord<'_, [u8], [u8]> = BaseRecord::to(EVENTS_TOPIC).partition(partition);
        record.key = raw.key.as_deref();
        record.payload = raw.value.as_deref();
        let headers = raw.headers.iter().fold(OwnedHeaders::new(), |headers, (name, value)| {
            headers.insert(Header { key: name, value: Some(value) })
        });
        self.producer.send(record.headers(headers)).map_err(|(error, _)| error).expect("a record sent");
    }

    /// Sends the right records of events, as a relay that has begun with the first of them would, and waits until they are there.
    pub fn publish<'a>(&self, events: impl IntoIterator<Item = &'a RecordedEvent>) {
        let (mut began, mut seen) = (None, BTreeMap::new());
        for event in events {
            let began = *began.get_or_insert(event.position - 1);
            let partition = partition(event.stream.as_str());
            let follows = seen.insert(partition, event.position).unwrap_or(began);
            self.send(partition, &Raw::following(event, follows));
        }
        self.flush();
    }

    pub fn flush(&self) {
        self.producer.flush(PATIENCE).expect("all records acknowledged");
    }
}

pub fn partition(wallet: &str) -> i32 {
    partition_of(wallet.as_bytes(), EVENTS_PARTITIONS)
}

/// Names of wallets, so many in each partition.
pub fn wallets_of(partition_number: i32, count: usize) -> Vec<String> {
    let names = (0..).map(|number| format!("wallet-{number}"));
    names.filter(|name| partition(name) == partition_number).take(count).collect()
}

/// A log and the tables beside it.
pub struct World {
    pub database: TestDatabase,
    pub log: PostgresLog,
    wallets: BTreeMap<WalletId, Wallet>,
    head: i64,
    random: ChaCha8Rng,
}

impl World {
    pub async fn new(seed: u64) -> Self {
        World::on(TestDatabase::new().await, seed).await
    }

    /// In a database that is there.
    pub async fn on(database: TestDatabase, seed: u64) -> Self {
        println!("seed {seed}");
        database.run(SEEN).await;
        let log = database.log();
        World { database, log, wallets: BTreeMap::new(), head: 0, random: ChaCha8Rng::seed_from_u64(seed) }
    }

    /// Opens wallets, every fourth in yen.
    pub async fn open(&mut self, names: impl IntoIterator<Item = String>) {
        let owner = OwnerId::new("Zoë").expect("an owner");
        let mut events = Vec::new();
        for (number, name) in names.into_iter().enumerate() {
            let id = WalletId::new(name).expect("a wallet id");
            let currency = Currency::from_code(if number % 4 == 3 { "JPY" } else { "USD" }).expect("a currency");
            let amount = Amount::from_minor(number as i64 * 1_000).expect("an amount");
            let opened = open(self.wallets.get(&id), &id, &owner, currency, amount).expect("a new wallet");
            events.extend(self.decided(&id, opened));
        }
        self.append(events).await;
    }

    /// Operations on random wallets, until there are so many more events.
    pub async fn operate(&mut self, count: usize) {
        let ids: Vec<WalletId> = self.wallets.keys().cloned().collect();
        let mut left = count;
        while left > 0 {
            let mut events = Vec::new();
            while events.len() < left.min(200) {
                let one = ids[self.random.random_range(0..ids.len())].clone();
                let other = ids[self.random.random_range(0..ids.len())].clone();
                let amount = self.random.random_range(1..50).to_string();
                events.extend(match self.random.random_range(0..3) {
                    0 => self.credited(&one, &amount),
                    1 => self.debited(&one, &amount),
                    _ => self.transferred(&one, &other, &amount),
                });
            }
            left = left.saturating_sub(events.len());
            self.append(events).await;
        }
    }

    /// One credit to this wallet; its position.
    pub async fn credit(&mut self, name: &str) -> i64 {
        let id = WalletId::new(name).expect("a wallet id");
        let events = self.credited(&id, "1");
        self.append(events).await;
        self.head
    }

    /// Many credits with long descriptions to this wallet.
    pub async fn credit_at_length(&mut self, name: &str, count: usize) {
        let id = WalletId::new(name).expect("a wallet id");
        let words = Description::new("x".repeat(1_000)).expect("a description");
        for part in (0..count).collect::<Vec<_>>().chunks(500) {
            let mut events = Vec::new();
            for _ in part {
                let event = credit(self.wallets.get(&id), &id, "1", Some(&words)).expect("a credit");
                events.extend(self.decided(&id, vec![event]));
            }
            self.append(events).await;
        }
    }

    fn credited(&mut self, id: &WalletId, amount: &str) -> Vec<NewEvent> {
        let event = credit(self.wallets.get(id), id, amount, None).expect("a credit");
        self.decided(id, vec![event])
    }

    /// Nothing where the funds are not there.
    fn debited(&mut self, id: &WalletId, amount: &str) -> Vec<NewEvent> {
        let event = debit(self.wallets.get(id), id, amount, None);
        event.map_or(Vec::new(), |event| self.decided(id, vec![event]))
    }

    fn transferred(&mut self, from: &WalletId, to: &WalletId, amount: &str) -> Vec<NewEvent> {
        let ends = Ends { from_id: from, from: self.wallets.get(from), to_id: to, to: self.wallets.get(to) };
        let Ok((out, into)) = transfer(ends, Uuid::now_v7(), amount, None) else {
            return Vec::new();
        };
        let mut events = self.decided(from, vec![out]);
        events.extend(self.decided(to, vec![into]));
        events
    }

    fn decided(&mut self, id: &WalletId, events: Vec<WalletEvent>) -> Vec<NewEvent> {
        let metadata: Arc<[u8]> = br#"{"correlationId":"c-1","causationId":"d-1"}"#.as_slice().into();
        let mut new = Vec::new();
        for event in events {
            match self.wallets.get_mut(id) {
                Some(wallet) => wallet.apply(&event, DateTime::UNIX_EPOCH).expect("an event that follows"),
                None => {
                    let wallet = Wallet::begin(id.clone(), &event, DateTime::UNIX_EPOCH).expect("a first event");
                    self.wallets.insert(id.clone(), wallet);
                }
            }
            new.push(NewEvent {
                stream: id.clone(),
                stream_key: None,
                revision: self.wallets[id].version,
                event_id: Uuid::now_v7(),
                event_type: event.event_type(),
                payload: event.to_payload(),
                metadata: metadata.clone(),
            });
        }
        new
    }

    async fn append(&mut self, events: Vec<NewEvent>) {
        let recorded_at = DateTime::from_timestamp_micros(Utc::now().timestamp_micros()).expect("a time");
        let batch = Batch { expected_head: Some(self.head), recorded_at, events, ..Batch::default() };
        match self.log.append(&batch).await.expect("an append") {
            Appended::At(position) => self.head = position,
            Appended::Conflict => panic!("nobody else writes to this log"),
        }
    }

    pub fn head(&self) -> i64 {
        self.head
    }

    /// The log's events after a position and up to another.
    pub async fn events(&self, after: i64, to: i64) -> Vec<RecordedEvent> {
        self.log.read(after, (to - after) as usize).await.expect("the log")
    }

    /// Publishes events and moves the relay's checkpoint, as the relay would.
    pub async fn relay(&self, topic: &Topic, after: i64, to: i64) {
        topic.publish(&self.events(after, to).await);
        self.published(to).await;
    }

    /// Says that the relay has published so much.
    pub async fn published(&self, position: i64) {
        self.database.run(&format!("UPDATE relay_checkpoint SET position = {position}, moved_at = now()")).await;
    }

    /// The position up to which a projection's tables are complete.
    pub async fn position(&self, projection: &str) -> i64 {
        let query = format!(
            "SELECT CASE WHEN count(*) = {EVENTS_PARTITIONS} THEN min(position) ELSE 0 END
               FROM projection_checkpoints WHERE projection = '{projection}'"
        );
        self.database.number(&query).await
    }

    /// Waits until a projection is through up to a position. The database may be away meanwhile.
    pub async fn through(&self, projection: &str, position: i64) {
        let query = "SELECT count(*) FROM projection_checkpoints WHERE projection = $1 AND position >= $2";
        self.until(&format!("{projection} is through {position}"), || async {
            let through = sqlx::query_scalar::<_, i64>(query).bind(projection).bind(position);
            let through = through.fetch_one(self.database.database.pool()).await;
            through.is_ok_and(|partitions| partitions == i64::from(EVENTS_PARTITIONS))
        })
        .await;
    }

    pub async fn until<F: Future<Output = bool>>(&self, what: &str, mut holds: impl FnMut() -> F) {
        let started = Instant::now();
        while !holds().await {
            if started.elapsed() > PATIENCE {
                let checkpoints: Vec<(String, i32, i64, Option<i64>)> = sqlx::query_as(
                    "SELECT projection, partition, position, next_offset FROM projection_checkpoints ORDER BY 1, 2",
                )
                .fetch_all(self.database.database.pool())
                .await
                .expect("checkpoints");
                panic!("not in time: {what}; {checkpoints:?}");
            }
            // The progress is another task's, made through the database.
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// What a [`Recorder`] has applied, in the order in which it did.
    pub async fn seen(&self, projection: &str) -> Vec<(i64, String, i64)> {
        let query = "SELECT position, wallet_id, revision FROM seen WHERE projection = $1 ORDER BY place";
        sqlx::query_as(query).bind(projection).fetch_all(self.database.database.pool()).await.expect("what was seen")
    }

    /// Asserts that a [`Recorder`] has applied just these events of the log, each once, each wallet's in order.
    async fn assert_each_once_of(&self, projection: &str, is_meant: impl Fn(&RecordedEvent) -> bool) {
        let seen = self.seen(projection).await;
        let positions: BTreeSet<i64> = seen.iter().map(|(position, ..)| *position).collect();
        let expected: BTreeSet<i64> =
            self.events(0, self.head).await.into_iter().filter(is_meant).map(|event| event.position).collect();
        let lost: Vec<_> = expected.difference(&positions).collect();
        let strange: Vec<_> = positions.difference(&expected).collect();
        assert!(lost.is_empty() && strange.is_empty(), "lost {lost:?}, strange {strange:?}");
        assert_eq!(seen.len(), positions.len(), "applied twice");
        let mut last: BTreeMap<&str, i64> = BTreeMap::new();
        for (position, wallet, revision) in &seen {
            let before = last.insert(wallet, *revision).unwrap_or(-1);
            assert_eq!(before + 1, *revision, "order of {wallet} at {position}");
        }
    }

    pub async fn assert_each_once(&self, projection: &str) {
        self.assert_each_once_of(projection, |_| true).await;
    }

    /// The same, but for a wallet's events from a position on.
    pub async fn assert_each_once_but_from(&self, projection: &str, wallet: &str, from: i64) {
        self.assert_each_once_of(projection, |event| event.stream.as_str() != wallet || event.position < from).await;
    }

    /// Asserts that ledger and read model are what the log says, computed here anew.
    pub async fn assert_ledger_and_read_model(&self) {
        let mut postings = BTreeSet::new();
        let mut wallets: BTreeMap<String, (i64, i64, i64)> = BTreeMap::new();
        for recorded in self.events(0, self.head).await {
            let event = recorded.decode().expect("an event");
            let balance = event.balance().minor();
            wallets.insert(recorded.stream.to_string(), (balance, recorded.revision, recorded.position));
            let Some(amount) = event.amount() else { continue };
            let incoming = matches!(event, WalletEvent::WalletCredited { .. });
            let amount = if incoming { amount.minor() } else { -amount.minor() };
            let (currency, wallet) = (event.currency().code(), format!("wallet/{}", recorded.stream));
            let kind = match (incoming, event.transfer().is_some()) {
                (true, true) => "TRANSFER_IN",
                (false, true) => "TRANSFER_OUT",
                (true, false) => "CREDIT",
                (false, false) => "DEBIT",
            };
            let counter = if event.transfer().is_some() { "clearing" } else { "external" };
            postings.insert((recorded.position, 0, wallet, amount, Some(balance), Some(kind.to_owned())));
            postings.insert((recorded.position, 1, format!("{counter}/{currency}"), -amount, None, None));
        }
        let pool = self.database.database.pool();
        let found: Vec<StoredPosting> = sqlx::query_as(
            "SELECT position, leg::int, account, amount, balance_after, transaction_type FROM ledger_postings",
        )
        .fetch_all(pool)
        .await
        .expect("postings");
        assert_eq!(found.len(), postings.len());
        assert!(found.into_iter().collect::<BTreeSet<_>>() == postings, "the ledger is not what the log says");
        let found: Vec<(String, i64, i64, i64)> =
            sqlx::query_as("SELECT wallet_id, balance, version, position FROM read_model_wallets")
                .fetch_all(pool)
                .await
                .expect("wallets");
        let found: BTreeMap<_, _> =
            found.into_iter().map(|(id, balance, version, at)| (id, (balance, version, at))).collect();
        assert!(found == wallets, "the read model is not what the log says");
        let unbalanced = "SELECT count(*) FROM (SELECT currency FROM ledger_postings GROUP BY currency
                           HAVING sum(amount) <> 0 UNION ALL
                          SELECT account FROM ledger_postings WHERE account LIKE 'clearing/%' GROUP BY account
                           HAVING sum(amount) <> 0) AS u";
        assert_eq!(self.database.number(unbalanced).await, 0, "double entry");
    }

    pub fn start(&self, projection: impl Projection, topic: &Topic) -> Running {
        self.start_with(projection, topic.kafka())
    }

    pub fn start_with(&self, projection: impl Projection, kafka: KafkaConfig) -> Running {
        self.start_within(projection, kafka, PARKED_MAX)
    }

    /// One that may have so many records parked.
    pub fn start_within(&self, projection: impl Projection, kafka: KafkaConfig, parked_max: i64) -> Running {
        // Small batches, so that there is a time between them.
        let options = RunnerOptions { batch_max: 50, parked_max, ..RunnerOptions::default() };
        let database = self.database.database.clone();
        let runner = ProjectionRunner::new(projection, database, self.database.log(), kafka, options);
        let (stop, state) = (CancellationToken::new(), runner.state());
        Running { task: tokio::spawn(runner.run(stop.clone())), stop, state }
    }
}

/// A runner at work.
pub struct Running {
    task: JoinHandle<Result<(), RunnerError>>,
    stop: CancellationToken,
    pub state: watch::Receiver<RunnerState>,
}

impl Running {
    pub async fn stop(mut self) {
        self.stop.cancel();
        tokio::time::timeout(PATIENCE, &mut self.task)
            .await
            .expect("ends in time")
            .expect("no panic")
            .expect("no error");
    }

    pub async fn until(&mut self, holds: impl FnMut(&RunnerState) -> bool) -> RunnerState {
        let state =
            tokio::time::timeout(PATIENCE, self.state.wait_for(holds)).await.expect("in time").expect("it lives");
        state.clone()
    }

    /// Waits until it has this many partitions.
    pub async fn has_partitions(&mut self, count: usize) {
        self.until(|state| matches!(state, RunnerState::Running { partitions } if partitions.len() == count)).await;
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

type Refusal = dyn Fn(&EventRecord) -> Option<ApplyError> + Send + Sync;

/// A projection that notes each event it is given; and may be told to refuse some, or to wait.
#[derive(Clone)]
pub struct Recorder {
    name: String,
    refusal: Arc<Refusal>,
    gate: Option<Arc<Semaphore>>,
}

impl Recorder {
    pub fn new(name: &str) -> Self {
        Recorder { name: name.to_owned(), refusal: Arc::new(|_| None), gate: None }
    }

    pub fn refusing(mut self, refusal: impl Fn(&EventRecord) -> Option<ApplyError> + Send + Sync + 'static) -> Self {
        self.refusal = Arc::new(refusal);
        self
    }

    /// Takes a permit for each batch.
    pub fn behind(mut self, gate: &Arc<Semaphore>) -> Self {
        self.gate = Some(Arc::clone(gate));
        self
    }
}

impl Projection for Recorder {
    fn name(&self) -> &str {
        &self.name
    }

    async fn prepare(&mut self, transaction: &mut PgConnection) -> Result<(), ApplyError> {
        sqlx::query(SEEN).execute(transaction).await?;
        Ok(())
    }

    async fn apply(&mut self, events: &[EventRecord], transaction: &mut PgConnection) -> Result<(), ApplyError> {
        if let Some(gate) = &self.gate {
            gate.acquire().await.expect("an open gate").forget();
        }
        // The rows come first: whoever is refused has left something that must not stay.
        sqlx::query(
            "INSERT INTO seen (projection, position, wallet_id, revision)
             SELECT $1, * FROM unnest($2::bigint[], $3::text[], $4::bigint[])",
        )
        .bind(&self.name)
        .bind(events.iter().map(|record| record.position).collect::<Vec<_>>())
        .bind(events.iter().map(|record| record.wallet_id.as_str()).collect::<Vec<_>>())
        .bind(events.iter().map(|record| record.revision).collect::<Vec<_>>())
        .execute(transaction)
        .await?;
        events.iter().find_map(|record| (self.refusal)(record)).map_or(Ok(()), Err)
    }
}
