//! A small world for tests of `lag` and `verify`: a log written through the domain, and the tables and the topic filled by
//! a few plain statements, so that a fault of the projections' own code would show here.
#![allow(dead_code, reason = "each test file uses its own part of it")]

#[path = "../support/mod.rs"]
mod support;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use rdkafka::ClientConfig;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::mocking::MockCluster;
use rdkafka::producer::{BaseProducer, BaseRecord, DefaultProducerContext, Producer};
use uuid::Uuid;
use wallex::kafka::{EVENTS_PARTITIONS, EVENTS_TOPIC, KafkaConfig, OutgoingRecord, partition_of};
use wallex::log::{Appended, Batch, EventLog, KeyRecord, KeyScope, NewEvent, PostgresLog, RecordedEvent};
use wallex::money::{Amount, Currency};
use wallex::postgres::{Database, sqlx};
use wallex::projection::{BUILT_IN, LEDGER_PROJECTOR};
use wallex::verify::{Check, Proof, VerifyOptions, verify};
use wallex::wallet::{Description, Ends, OwnerId, Wallet, WalletEvent, WalletId, credit, debit, open, transfer};

const METADATA: &[u8] = br#"{"correlationId":"c-1","causationId":"d-1"}"#;

/// A database of its own, empty and migrated.
pub async fn fresh_database() -> Database {
    let server = support::TestServer::shared().await;
    let database = server.database().await;
    // Dropped with the server: the world keeps connections of its own to it.
    let url = database.url.clone();
    std::mem::forget(database);
    Database::connect(&url, 8).await.expect("the test's database")
}

pub fn id(name: &str) -> WalletId {
    WalletId::new(name).expect("a wallet id of the test")
}

pub struct World {
    pub database: Database,
    pub log: PostgresLog,
    pub kafka: KafkaConfig,
    pub cluster: MockCluster<'static, DefaultProducerContext>,
    producer: BaseProducer,
    wallets: BTreeMap<WalletId, Wallet>,
    head: i64,
    /// What is to be committed with the next batch.
    batch: Batch,
}

impl World {
    pub async fn empty() -> Self {
        let database = fresh_database().await;
        let cluster = MockCluster::new(1).expect("a mock cluster");
        cluster.create_topic(EVENTS_TOPIC, EVENTS_PARTITIONS, 1).expect("a topic");
        let brokers = cluster.bootstrap_servers();
        let producer = ClientConfig::new()
            .set("bootstrap.servers", &brokers)
            .set("linger.ms", "1")
            .set("enable.idempotence", "true")
            .create()
            .expect("a producer");
        World {
            log: PostgresLog::new(database.clone()),
            database,
            kafka: KafkaConfig::new(brokers),
            cluster,
            producer,
            wallets: BTreeMap::new(),
            head: 0,
            batch: Batch::default(),
        }
    }

    /// Twelve wallets in two currencies and some 150 events, all of it projected and published.
    pub async fn settled() -> Self {
        let mut world = World::empty().await;
        world.live(0..120).await;
        world.project(&BUILT_IN).await;
        world.publish(|_, record| vec![record]).await;
        world
    }

    /// Twelve wallets, if there are none, and an operation for each turn.
    pub async fn live(&mut self, turns: std::ops::Range<u32>) {
        if self.wallets.is_empty() {
            for number in 0..12 {
                self.open(&format!("wallet-{number}"), if number % 4 == 3 { "JPY" } else { "USD" }, number * 1_000);
            }
        }
        for turn in turns {
            let (one, other) = (format!("wallet-{}", turn * 7 % 12), format!("wallet-{}", (turn * 7 + 4) % 12));
            match turn % 3 {
                0 => self.credit(&one, "25"),
                1 => self.debit(&one, "3"),
                _ => self.transfer(&one, &other, "2"),
            }
        }
        self.commit().await;
    }

    pub fn open(&mut self, name: &str, currency: &str, minor: u32) {
        let (currency, owner) =
            (Currency::from_code(currency).expect("a currency"), OwnerId::new("Zoë").expect("an owner"));
        let amount = Amount::from_minor(i64::from(minor)).expect("an amount");
        let events = open(self.wallets.get(&id(name)), &id(name), &owner, currency, amount).expect("a new wallet");
        self.append(events.into_iter().map(|event| (id(name), event)).collect());
    }

    pub fn credit(&mut self, name: &str, amount: &str) {
        let words = Description::new("tea \"and\" more").ok();
        let event = credit(self.wallets.get(&id(name)), &id(name), amount, words.as_ref()).expect("a credit");
        self.append(vec![(id(name), event)]);
    }

    /// Does nothing where the funds are not there.
    pub fn debit(&mut self, name: &str, amount: &str) {
        if let Ok(event) = debit(self.wallets.get(&id(name)), &id(name), amount, None) {
            self.append(vec![(id(name), event)]);
        }
    }

    /// Does nothing where the funds are not there.
    pub fn transfer(&mut self, from: &str, to: &str, amount: &str) {
        let (from, to) = (id(from), id(to));
        let ends = Ends { from_id: &from, from: self.wallets.get(&from), to_id: &to, to: self.wallets.get(&to) };
        if let Ok((out, into)) = transfer(ends, Uuid::now_v7(), amount, None) {
            self.append(vec![(from, out), (to, into)]);
        }
    }

    fn append(&mut self, events: Vec<(WalletId, WalletEvent)>) {
        let first = self.head + self.batch.events.len() as i64 + 1;
        let scope =
            KeyScope { wallet_id: events[0].0.clone(), command_kind: "test", key: format!("key-{first}").into() };
        self.batch.keys.push(KeyRecord {
            scope,
            fingerprint: [0; 32],
            position: first,
            event_count: events.len() as i32,
        });
        if self.batch.events.is_empty() {
            self.batch.recorded_at = DateTime::from_timestamp_micros(Utc::now().timestamp_micros()).expect("a time");
        }
        let recorded_at = self.batch.recorded_at;
        for (wallet_id, event) in events {
            let revision = match self.wallets.get_mut(&wallet_id) {
                Some(wallet) => {
                    wallet.apply(&event, recorded_at).expect("an event that follows");
                    wallet.version
                }
                None => {
                    let wallet = Wallet::begin(wallet_id.clone(), &event, recorded_at).expect("a first event");
                    self.wallets.insert(wallet_id.clone(), wallet);
                    0
                }
            };
            self.batch.events.push(NewEvent {
                stream: wallet_id,
                stream_key: None,
                revision,
                event_id: Uuid::now_v7(),
                event_type: event.event_type(),
                payload: event.to_payload(),
                metadata: Arc::from(METADATA),
            });
        }
    }

    /// Appends what was decided since the last time.
    pub async fn commit(&mut self) {
        let mut batch = std::mem::take(&mut self.batch);
        batch.expected_head = Some(self.head);
        match self.log.append(&batch).await.expect("an append") {
            Appended::At(position) => self.head = position,
            Appended::Conflict => panic!("nobody else writes to this log"),
        }
    }

    pub fn head(&self) -> i64 {
        self.head
    }

    /// Every event of the log.
    pub async fn events(&self) -> Vec<RecordedEvent> {
        self.log.read(0, 1_000_000).await.expect("the log")
    }

    /// The first event, from the middle of the log on, that this is true of.
    pub async fn event_where(&self, is_it: impl Fn(&WalletEvent) -> bool) -> RecordedEvent {
        let events = self.events().await;
        let from = events.len() / 2;
        let found = events.into_iter().skip(from).find(|event| is_it(&event.decode().expect("an event")));
        found.expect("the small world has such an event")
    }

    /// A credit from outside, somewhere in the middle.
    pub async fn a_credit(&self) -> RecordedEvent {
        self.event_where(|event| matches!(event, WalletEvent::WalletCredited { transfer: None, .. })).await
    }

    /// Writes everything that is not there yet into the ledger and the read model, each in its own transaction.
    pub async fn project(&self, groups: &[&str]) {
        for group in groups {
            project_as(&self.database, &self.log, group).await;
        }
    }

    /// Publishes what is not published yet; `records` makes the records of an event, usually the one that is right.
    pub async fn publish(&self, records: impl Fn(&RecordedEvent, OutgoingRecord) -> Vec<OutgoingRecord>) {
        let published: i64 = self.number("SELECT position FROM relay_checkpoint").await;
        let events = self.log.read(published, 1_000_000).await.expect("the log");
        let mut seen = BTreeMap::new();
        for event in &events {
            let partition = partition_of(event.stream.as_str().as_bytes(), EVENTS_PARTITIONS);
            let follows = seen.insert(partition, event.position).unwrap_or(published);
            for record in records(event, OutgoingRecord::of(event, follows)) {
                self.send(partition, &record);
            }
        }
        self.flush();
        let Some(last) = events.last() else { return };
        self.sql(&format!("UPDATE relay_checkpoint SET position = {}, moved_at = now()", last.position)).await;
    }

    /// Sends one record, right or wrong.
    pub fn send(&self, partition: i32, record: &OutgoingRecord) {
        let headers = record.headers.iter().fold(OwnedHeaders::new(), |headers, (name, value)| {
            headers.insert(Header { key: name, value: Some(value) })
        });
        let record =
            BaseRecord::to(EVENTS_TOPIC).partition(partition).key(&record.key).payload(&record.value).headers(headers);
        self.producer.send(record).map_err(|(error, _)| error).expect("a record sent");
    }

    pub fn flush(&self) {
        self.producer.flush(Duration::from_secs(10)).expect("all records acknowledged");
    }

    /// Runs a statement that breaks something, or sets it up.
    pub async fn sql(&self, statement: &str) {
        let statement = sqlx::AssertSqlSafe(statement.to_owned());
        let done = sqlx::query(statement).execute(self.database.pool()).await.expect("a statement");
        assert!(done.rows_affected() > 0, "the statement has changed something");
    }

    pub async fn number(&self, statement: &str) -> i64 {
        let statement = sqlx::AssertSqlSafe(statement.to_owned());
        sqlx::query_scalar(statement).fetch_one(self.database.pool()).await.expect("a number")
    }

    /// Verifies, waiting for nobody.
    pub async fn verify(&self) -> Proof {
        let options = VerifyOptions { wait_max: Duration::ZERO };
        verify(&self.database, Some(&self.kafka), &options, &mut |_| {}).await.expect("a verification")
    }
}

/// The plainest projection: one statement an event.
pub async fn project_as(database: &Database, log: &PostgresLog, group: &str) {
    let statement =
        sqlx::query_scalar("SELECT coalesce(max(position), 0) FROM projection_checkpoints WHERE projection = $1");
    let done: i64 = statement.bind(group).fetch_one(database.pool()).await.expect("a checkpoint");
    let mut transaction = database.pool().begin().await.expect("a transaction");
    let mut last = done;
    for recorded in log.read(done, 1_000_000).await.expect("the log") {
        let event = recorded.decode().expect("an event");
        if group == LEDGER_PROJECTOR {
            post(&mut transaction, &recorded, &event).await;
        } else {
            show(&mut transaction, &recorded, &event).await;
        }
        last = recorded.position;
    }
    for partition in 0..EVENTS_PARTITIONS {
        sqlx::query(
            "INSERT INTO projection_checkpoints (projection, partition, position) VALUES ($1, $2, $3)
             ON CONFLICT (projection, partition) DO UPDATE SET position = excluded.position",
        )
        .bind(group)
        .bind(partition)
        .bind(last)
        .execute(&mut *transaction)
        .await
        .expect("a checkpoint");
    }
    transaction.commit().await.expect("a commit");
}

async fn post(connection: &mut sqlx::PgConnection, recorded: &RecordedEvent, event: &WalletEvent) {
    let (amount, kind) = match event {
        WalletEvent::WalletCreated { .. } => return,
        WalletEvent::WalletCredited { amount, transfer: None, .. } => (amount.minor(), "CREDIT"),
        WalletEvent::WalletCredited { amount, .. } => (amount.minor(), "TRANSFER_IN"),
        WalletEvent::WalletDebited { amount, transfer: None, .. } => (-amount.minor(), "DEBIT"),
        WalletEvent::WalletDebited { amount, .. } => (-amount.minor(), "TRANSFER_OUT"),
    };
    let counter = if event.transfer().is_some() { "clearing" } else { "external" };
    sqlx::query(
        "INSERT INTO ledger_postings (position, leg, account, currency, amount, balance_after, event_id, transaction_type,
                                      description, reference_id, related_wallet_id, metadata, created_at)
         VALUES ($1, 0, 'wallet/' || $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12),
                ($1, 1, $13 || '/' || $3, $3, -$4, NULL, $6, NULL, NULL, $9, NULL, NULL, $12)",
    )
    .bind(recorded.position)
    .bind(recorded.stream.as_str())
    .bind(event.currency().code())
    .bind(amount)
    .bind(event.balance().minor())
    .bind(recorded.event_id)
    .bind(kind)
    .bind(event.description().map(|words| words.as_str().to_owned()))
    .bind(event.transfer().map_or(recorded.event_id, |transfer| transfer.id))
    .bind(event.transfer().map(|transfer| transfer.counterparty.as_str().to_owned()))
    .bind(&recorded.metadata)
    .bind(recorded.recorded_at)
    .bind(counter)
    .execute(connection)
    .await
    .expect("two postings");
}

async fn show(connection: &mut sqlx::PgConnection, recorded: &RecordedEvent, event: &WalletEvent) {
    let statement = match event {
        WalletEvent::WalletCreated { .. } => {
            "INSERT INTO read_model_wallets
             VALUES ($1, $2, $3, $4, 'ACTIVE', $5, $6, $7, $7)"
        }
        _ => {
            "UPDATE read_model_wallets SET balance = $4, version = $5, position = $6, updated_at = $7
              WHERE wallet_id = $1 AND $2 <> '' AND currency = $3"
        }
    };
    sqlx::query(statement)
        .bind(recorded.stream.as_str())
        .bind("Zoë")
        .bind(event.currency().code())
        .bind(event.balance().minor())
        .bind(recorded.revision)
        .bind(recorded.position)
        .bind(recorded.recorded_at)
        .execute(connection)
        .await
        .expect("a row");
}

/// The names of the checks that failed.
pub fn failed(proof: &Proof) -> Vec<&str> {
    proof.checks.iter().filter(|check| !check.ok).map(|check| check.name.as_str()).collect()
}

/// A check by its name.
pub fn check<'a>(proof: &'a Proof, name: &str) -> &'a Check {
    proof.checks.iter().find(|check| check.name == name).expect("a check of that name")
}

/// Asserts that just these checks fail, and that the named one says all these words.
#[track_caller]
pub fn assert_finds(proof: &Proof, failing: &[&str], name: &str, words: &[&str]) {
    assert_eq!(failed(proof), failing, "{proof:#?}");
    assert!(!proof.ok);
    let check = check(proof, name);
    let line = format!("expected {}, found {}", check.expected, check.actual);
    for word in words {
        assert!(line.contains(word), "{word:?} is not in {line:?}");
    }
}
