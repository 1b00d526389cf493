//! A store, its copy, and servers that write to the one and copy to the other.

use std::time::Duration;

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use wallex::ingest::Ingest;
use wallex::kurrentdb::{KurrentConfig, KurrentLog};
use wallex::lanes::{Lanes, LanesError};
use wallex::lease::Leases;
use wallex::log::{EventLog, PostgresLog, RecordedEvent, read_wallet};
use wallex::money::{Amount, Currency};
use wallex::postgres::Database;
use wallex::relay::Bell;
use wallex::sequencer::{Answer, CommandError, CommandService, Request, SequencerOptions};
use wallex::wallet::{Command, OwnerId, WalletId};

use crate::kurrentdb_server::KurrentServer;
use crate::support::TestDatabase;

/// How long a test waits for what must come; never a measure.
pub const PATIENCE: Duration = Duration::from_secs(120);

pub fn id(name: &str) -> WalletId {
    WalletId::new(name).expect("a wallet id of the test")
}

pub fn opening(name: &str, minor: i64) -> Command {
    let balance = Amount::from_minor(minor).expect("a balance");
    Command::create(id(name), OwnerId::new("owner").expect("an owner"), Currency::USD, balance)
}

pub fn with_key(command: Command, key: &str) -> Request {
    Request { idempotency_key: Some(key.into()), ..Request::new(command) }
}

pub struct World {
    pub store: KurrentServer,
    pub database: TestDatabase,
    /// The test's own eyes.
    reader: KurrentLog,
}

/// What the test itself asks is asked until it is answered: on a busy machine a store may well be away for a while.
pub async fn patiently<T, E: std::fmt::Display>(mut call: impl AsyncFnMut() -> Result<T, E>) -> T {
    let begun = std::time::Instant::now();
    loop {
        match call().await {
            Ok(answer) => return answer,
            Err(error) => assert!(begun.elapsed() < PATIENCE, "{error}"),
        }
    }
}

/// A write path, as one process has it.
pub struct Writer {
    pub service: CommandService,
    stop: CancellationToken,
    lanes: JoinHandle<Result<(), LanesError>>,
}

impl World {
    pub async fn new() -> Self {
        let store = KurrentServer::start();
        let reader = KurrentLog::new(KurrentConfig::new(&store.connection_string()).expect("a connection string"));
        World { store, database: TestDatabase::new().await, reader }
    }

    /// A client of its own.
    pub fn log(&self) -> KurrentLog {
        KurrentLog::new(KurrentConfig::new(&self.store.connection_string()).expect("a connection string"))
    }

    pub fn writer(&self) -> Writer {
        self.writer_with(None)
    }

    /// One that queues with others in a Redis.
    pub fn writer_with(&self, leases: Option<Leases>) -> Writer {
        // Others use the machine too: no answer of a test's is to be late for that.
        let options = SequencerOptions { command_deadline: PATIENCE, ..SequencerOptions::default() };
        let (service, lanes) = Lanes::new(self.log(), self.database.database.clone(), options, || {});
        let (stop, lanes) = (CancellationToken::new(), lanes.with_leases(leases));
        Writer { service, lanes: tokio::spawn(lanes.run(stop.clone())), stop }
    }

    /// Copies until the copy has everything that the store has now.
    pub async fn copy(&self) {
        let stop = CancellationToken::new();
        let running = self.ingest(stop.clone());
        self.copied().await;
        stop.cancel();
        running.await.expect("an ingest that stopped");
    }

    pub fn ingest(&self, stop: CancellationToken) -> JoinHandle<()> {
        tokio::spawn(Ingest::new(self.log(), self.database.database.clone(), Bell::new(), || {}).run(stop))
    }

    /// Waits until the copy has come to what is the store's end now.
    pub async fn copied(&self) {
        let Some(end) = self.store.log().last().map(|last| last.position as i64) else { return };
        let reached = async {
            while patiently(async || self.database.database.ingested().await)
                .await
                .is_none_or(|(commit, _)| commit < end)
            {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, reached).await.expect("a copy in time");
    }

    /// How many transfers the copy has as in transit.
    pub async fn in_transit(&self) -> i64 {
        self.database.number("SELECT count(*) FROM stream_transfers WHERE credit_position IS NULL").await
    }

    pub async fn balance(&self, name: &str) -> i64 {
        let view = patiently(async || read_wallet(&self.reader, &id(name), 10).await).await;
        view.expect("a wallet").wallet.balance.minor()
    }

    /// A wallet's events.
    pub async fn events(&self, name: &str) -> Vec<RecordedEvent> {
        patiently(async || self.reader.read_stream(&id(name), 0, usize::MAX).await).await
    }

    /// The copy holds each wallet's events as the store does, in positions without a gap.
    pub async fn assert_copy_is_true(&self) {
        let copy = PostgresLog::new(Database::clone(&self.database.database));
        let copied = patiently(async || copy.read(0, 1_000_000).await).await;
        let stored = patiently(async || self.reader.read(0, 1_000_000).await).await;
        assert_eq!(copied.len(), stored.len());
        for (place, (copied, stored)) in copied.iter().zip(&stored).enumerate() {
            assert_eq!(copied.position, place as i64 + 1);
            assert_eq!(
                (&copied.stream, copied.revision, copied.event_id),
                (&stored.stream, stored.revision, stored.event_id)
            );
            assert_eq!((&copied.payload, &copied.event_type), (&stored.payload, &stored.event_type));
            assert_eq!((copied.recorded_at, copied.event_version), (stored.recorded_at, stored.event_version));
        }
    }
}

impl Writer {
    pub async fn ok(&self, command: Command) -> Answer {
        self.service.execute(Request::new(command)).await.expect("a command that goes well")
    }

    pub async fn keyed(&self, command: Command, key: &str) -> Result<Answer, CommandError> {
        self.service.execute(with_key(command, key)).await
    }

    /// As a process ends that is told to.
    pub async fn stop(self) {
        self.stop.cancel();
        let ended = tokio::time::timeout(PATIENCE, self.lanes).await.expect("an end in time");
        ended.expect("no panic").expect("a good end");
    }

    /// Ends as a process does that is killed; it can still be asked, in vain.
    pub fn kill(&self) {
        self.lanes.abort();
    }
}
