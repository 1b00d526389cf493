//! What a wallex is told: where its data is, which database, which broker, which parts to run.

use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::kurrentdb::KurrentConfig;
use crate::lease::RedisConfig;
use crate::sequencer::SequencerOptions;

/// How to open a wallex. [`Config::default`] is the embedded default: PostgreSQL and a broker of its own, under the
/// user's data directory.
#[derive(Clone, Default)]
pub struct Config {
    /// Where the managed PostgreSQL keeps its data, and where commands find the running `serve`. `None`: `/var/lib/wallex`
    /// for root, else the XDG data home.
    pub data_dir: Option<PathBuf>,
    /// A database of one's own instead of the managed one: `postgres://user:password@host:5432/database`.
    pub database_url: Option<String>,
    /// Brokers of one's own instead of the embedded one: `host:port`, separated by commas.
    pub kafka_brokers: Option<String>,
    /// Anything else that librdkafka can be told, by its own names, but for what promises stand on; see
    /// [`PropertyError`](crate::kafka::PropertyError).
    pub kafka_properties: BTreeMap<String, String>,
    /// Which parts to run.
    pub parts: Parts,
    /// The name under which the projections of this process are static members of their groups, unlike that of any other
    /// process: after a restart within the session's timeout they get their partitions back. `None`: members like any other.
    pub instance_id: Option<String>,
    /// How many records each projection may park; `None` for [`PARKED_MAX`](crate::projection::PARKED_MAX).
    pub parked_max: Option<i64>,
    /// An event store of its own for the events; the database then has a copy of them beside everything else. `None`: the events
    /// are in the database. The first start that writes settles it for ever; another one is refused
    /// ([`OpenError::EventsAreHere`](crate::runtime::OpenError::EventsAreHere),
    /// [`OpenError::EventsAreElsewhere`](crate::runtime::OpenError::EventsAreElsewhere)). Its client makes rustls's default
    /// provider of cryptography its own (aws-lc-rs), and does not come up in a process that has chosen another one before.
    pub event_store: Option<KurrentConfig>,
    /// A Redis in which servers that write to the same wallets of an event store queue, so that they need not collide. For speed
    /// alone: whatever becomes of it, everything goes on. With the events in the database there is nothing to queue for, and it is
    /// refused ([`OpenError::NothingToQueueFor`](crate::runtime::OpenError::NothingToQueueFor)).
    pub redis: Option<RedisConfig>,
    /// Bounds of the write path.
    pub sequencer: SequencerOptions,
}

impl Config {
    /// The embedded default in this directory.
    pub fn embedded(data_dir: impl Into<PathBuf>) -> Self {
        Config { data_dir: Some(data_dir.into()), ..Config::default() }
    }
}

/// The parts of a wallex. They may run in one process or in several.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parts {
    /// The write path: without it, no command is taken.
    pub commands: bool,
    /// The relay, from the log to Kafka.
    pub relay: bool,
    /// The `ledger-projector`.
    pub ledger: bool,
    /// The `read-model-projector`.
    pub read_model: bool,
}

impl Parts {
    /// No part.
    pub const NONE: Parts = Parts { commands: false, relay: false, ledger: false, read_model: false };
    /// Every part.
    pub const ALL: Parts = Parts { commands: true, relay: true, ledger: true, read_model: true };
}

impl Default for Parts {
    fn default() -> Self {
        Parts::ALL
    }
}
