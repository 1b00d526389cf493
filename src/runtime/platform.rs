//! What a wallex stands on: a data directory, a database, a broker; its own where none is named.

use std::path::Path;

use thiserror::Error;

use crate::embedded::{BrokerError, DataDir, DataDirError, EmbeddedBroker, ManagedPostgres, PostgresError, ServeInfo};
use crate::ingest::AnotherStore;
use crate::kafka::{DLQ_PARTITIONS, DLQ_TOPIC, EVENTS_PARTITIONS, EVENTS_TOPIC, KafkaConfig, PropertyError};
use crate::kurrentdb::{KurrentConfig, KurrentConfigError};
use crate::postgres::{Database, DatabaseError};
use crate::runtime::Config;

/// How many connections each of a process's two pools may open. The managed PostgreSQL allows 200.
const CONNECTIONS_MAX: u32 = 16;

/// Why a wallex could not be opened. One clear line each.
#[derive(Debug, Error)]
pub enum OpenError {
    /// The data directory.
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    /// The managed PostgreSQL.
    #[error(transparent)]
    Postgres(#[from] PostgresError),
    /// The embedded broker.
    #[error(transparent)]
    Broker(#[from] BrokerError),
    /// A property of the Kafka clients.
    #[error(transparent)]
    Property(#[from] PropertyError),
    /// The database.
    #[error(transparent)]
    Database(#[from] DatabaseError),
    /// A command that works on a running `serve` found none, and no database was named either.
    #[error(
        "no wallex serve runs in {0} and no database is kept there; start `wallex serve`, or name a database with \
         --database-url or WALLEX_DATABASE_URL"
    )]
    NothingThere(String),
    /// A part that publishes or consumes found no broker.
    #[error(
        "no broker to work on: the embedded one lives in `wallex serve`, which does not run; start it, or name brokers with \
         --kafka-brokers or WALLEX_KAFKA_BROKERS"
    )]
    NoBroker,
    /// The database holds the events itself, and an event store was named.
    #[error(
        "the events of this database are in the database itself; another event store would begin without them. Leave \
         --event-store or WALLEX_EVENT_STORE out, or name an empty database"
    )]
    EventsAreHere,
    /// The database holds a copy of an event store, and none was named.
    #[error(
        "the events of this database are in an event store, of which it holds a copy; what was written here would be missing \
         there. Name that event store with --event-store or WALLEX_EVENT_STORE"
    )]
    EventsAreElsewhere,
    /// A Redis was named, and no event store.
    #[error(
        "--redis or WALLEX_REDIS is for events in an event store, where servers that share a wallet would collide; with the events in \
         the database they do not. Leave it out, or name an event store with --event-store or WALLEX_EVENT_STORE"
    )]
    NothingToQueueFor,
    /// The event store.
    #[error(transparent)]
    EventStore(#[from] KurrentConfigError),
    /// The event store lets nobody in under this user and password.
    #[error(
        "the event store at {0} denies access: its user, named in --event-store or WALLEX_EVENT_STORE, must be known there, read $all, \
         and read and append to the wallets' streams"
    )]
    EventStoreDenies(String),
    /// The event store is not the one that the database has a copy of.
    #[error(transparent)]
    AnotherEventStore(#[from] AnotherStore),
    /// Where the events are could not be found out.
    #[error("the database did not say where its events are: {0}")]
    Log(String),
    /// HTTP cannot be served.
    #[error("cannot serve HTTP: {0}")]
    Listener(String),
}

/// The data directory held, and what was started in it.
pub struct Platform {
    /// The data directory, locked for as long as this lives.
    pub(crate) data_dir: DataDir,
    postgres: Option<ManagedPostgres>,
    broker: Option<EmbeddedBroker>,
    database_url: String,
    event_store: Option<KurrentConfig>,
    /// The database, migrated.
    pub(crate) database: Database,
    /// The broker.
    pub(crate) kafka: KafkaConfig,
}

impl Platform {
    /// Takes the data directory, starts what is not named elsewhere, and brings the database's schema up to date.
    ///
    /// # Errors
    /// [`OpenError`], by what could not be had.
    pub async fn start(config: &Config) -> Result<Self, OpenError> {
        // What can be known to be wrong is known before anything is started.
        kafka_of(config, config.kafka_brokers.clone().unwrap_or_default(), config.kafka_brokers.is_none()).check()?;
        let path = DataDir::resolve(config.data_dir.clone())?;
        let data_dir = DataDir::acquire(&path)?;
        let postgres = match config.database_url {
            Some(_) => None,
            None => Some(ManagedPostgres::start(data_dir.path()).await?),
        };
        let database_url = match (&config.database_url, &postgres) {
            (Some(url), _) => url.clone(),
            (None, Some(postgres)) => postgres.url().to_owned(),
            (None, None) => String::new(),
        };
        let database = Database::connect(&database_url, CONNECTIONS_MAX).await?;
        database.migrate().await?;
        let broker = match config.kafka_brokers {
            Some(_) => None,
            None => Some(EmbeddedBroker::start(&[(EVENTS_TOPIC, EVENTS_PARTITIONS), (DLQ_TOPIC, DLQ_PARTITIONS)])?),
        };
        let brokers = match (&config.kafka_brokers, &broker) {
            (Some(brokers), _) => brokers.clone(),
            (None, Some(broker)) => broker.bootstrap_servers().to_owned(),
            (None, None) => String::new(),
        };
        let kafka = kafka_of(config, brokers, broker.is_some());
        let event_store = config.event_store.clone();
        Ok(Platform { data_dir, postgres, broker, database_url, event_store, database, kafka })
    }

    /// Leaves a note in the data directory by which other commands find this process.
    ///
    /// # Errors
    /// [`DataDirError`] where the note cannot be written.
    pub fn announce(&self, url: &str) -> Result<(), DataDirError> {
        self.data_dir.write_serve_info(&ServeInfo {
            pid: std::process::id(),
            url: url.to_owned(),
            database_url: self.database_url.clone(),
            event_store: self.event_store.as_ref().map(|store| store.connection_string().to_owned()),
            event_store_prefix: self.event_store.as_ref().map(|store| store.stream_prefix().to_owned()),
            kafka_brokers: self.kafka.brokers.clone(),
            embedded_postgres: self.postgres.is_some(),
            embedded_kafka: self.broker.is_some(),
            started_at: chrono::Utc::now(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        })
    }

    /// Whether the database is the managed one.
    pub fn manages_postgres(&self) -> bool {
        self.postgres.is_some()
    }

    /// Stops what was started, the database last.
    pub async fn stop(self) {
        self.database.close().await;
        drop(self.broker);
        if let Some(postgres) = self.postgres {
            postgres.stop().await;
        }
    }
}

/// Where a command that works on an existing wallex connects to.
pub struct Attachment {
    /// The database; its schema is left as it is.
    pub database: Database,
    /// The broker; `None` where none runs, as the embedded one runs in `serve` alone.
    pub kafka: Option<KafkaConfig>,
    /// The event store; `None` where none is named and the running `serve`, if there is one, has none either.
    pub event_store: Option<KurrentConfig>,
    /// The running `serve`, if one was found.
    pub serve: Option<ServeInfo>,
    /// What was started because nothing ran.
    platform: Option<Platform>,
}

impl Attachment {
    /// Finds the running `serve` by its data directory, unless database and broker are both named. Where nothing runs but
    /// the data directory has a database, that one is started for as long as the attachment lives.
    ///
    /// # Errors
    /// [`OpenError`], by what could not be had.
    pub async fn find(config: &Config) -> Result<Self, OpenError> {
        let path = DataDir::resolve(config.data_dir.clone())?;
        let serve = DataDir::find_running(&path)?;
        let kafka = broker_of(config, serve.as_ref())?;
        let event_store = event_store_of(config, serve.as_ref())?;
        let url = config.database_url.clone().or(serve.as_ref().map(|serve| serve.database_url.clone()));
        if let Some(url) = url {
            let database = Database::connect(&url, CONNECTIONS_MAX).await?;
            return Ok(Attachment { database, kafka, event_store, serve, platform: None });
        }
        if !has_cluster(&path) {
            return Err(OpenError::NothingThere(path.display().to_string()));
        }
        let data_dir = DataDir::acquire(&path)?;
        let postgres = ManagedPostgres::start(data_dir.path()).await?;
        let database_url = postgres.url().to_owned();
        let database = Database::connect(&database_url, CONNECTIONS_MAX).await?;
        let platform = Platform {
            data_dir,
            postgres: Some(postgres),
            broker: None,
            database_url,
            event_store: None,
            database: database.clone(),
            kafka: KafkaConfig::new(""),
        };
        Ok(Attachment { database, kafka, event_store, serve: None, platform: Some(platform) })
    }

    /// The broker alone, for a command that needs no database.
    ///
    /// # Errors
    /// [`OpenError::NoBroker`] where none is named and no `serve` runs.
    pub fn find_broker(config: &Config) -> Result<KafkaConfig, OpenError> {
        let running = match &config.kafka_brokers {
            Some(_) => None,
            None => DataDir::find_running(&DataDir::resolve(config.data_dir.clone())?)?,
        };
        broker_of(config, running.as_ref())?.ok_or(OpenError::NoBroker)
    }

    /// Stops what was started for this attachment.
    pub async fn close(self) {
        match self.platform {
            Some(platform) => platform.stop().await,
            None => self.database.close().await,
        }
    }
}

/// The broker that is named, or else that of the running `serve`.
fn broker_of(config: &Config, serve: Option<&ServeInfo>) -> Result<Option<KafkaConfig>, OpenError> {
    let named = config.kafka_brokers.clone().map(|brokers| (brokers, false));
    let found = serve.map(|serve| (serve.kafka_brokers.clone(), serve.embedded_kafka));
    let Some((brokers, embedded)) = named.or(found) else { return Ok(None) };
    let kafka = kafka_of(config, brokers, embedded);
    kafka.check()?;
    Ok(Some(kafka))
}

/// The event store that is named, or else that of the running `serve`.
fn event_store_of(config: &Config, serve: Option<&ServeInfo>) -> Result<Option<KurrentConfig>, OpenError> {
    if let Some(named) = &config.event_store {
        return Ok(Some(named.clone()));
    }
    let Some(serve) = serve else { return Ok(None) };
    let Some(found) = serve.event_store.as_deref().map(KurrentConfig::new).transpose()? else { return Ok(None) };
    Ok(Some(match &serve.event_store_prefix {
        Some(prefix) => found.with_stream_prefix(prefix)?,
        None => found,
    }))
}

fn kafka_of(config: &Config, brokers: String, embedded: bool) -> KafkaConfig {
    KafkaConfig { brokers, embedded, properties: config.kafka_properties.clone() }
}

fn has_cluster(data_dir: &Path) -> bool {
    data_dir.join("postgres").join("PG_VERSION").exists()
}
