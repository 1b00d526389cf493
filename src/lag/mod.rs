//! What is behind, and by how much: the outbox behind the log, and each consumer group behind the topic.
//!
//! Two measures, because they fail apart. Kafka's offsets say how many records a group has still to read; the database's
//! checkpoints say up to which position of the log a group's tables are complete. With the broker away the second is still known.
//!
//! Where the events are in an event store, a third one stands before these: how far its copy in the database is behind it.
//!
//! Each of the ingest, the outbox and the groups has a [`State`]: one word for what to look at.

mod behind;
mod ingest;
mod probe;
mod standing;
mod state;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::kafka::KafkaConfig;
use crate::log::Position;
use crate::postgres::{Database, RelayStatus, WithheldWallet};

pub(crate) use behind::EventTime;
pub(crate) use ingest::Copied;
pub use ingest::{INGEST_COUNT_MAX, InTransit, IngestLag, StoreProgress, StoreState, Strays};
pub use probe::{BROKER_TIMEOUT, LagProbe};
pub(crate) use standing::{Standing, Through};
pub use state::{OVERDUE_AFTER, STUCK_AFTER, State};

/// How many parked wallets a report lists at most, the longest parked first.
pub const PARKED_WALLETS_MAX: usize = 1_000;

/// What is behind, all of it. Serialised in camelCase; this is what `lag -o json` prints.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LagReport {
    /// Ingest, outbox and groups together.
    pub total: TotalLag,
    /// What the copy of the event store lacks; absent where the events are in the database.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ingest: Option<IngestLag>,
    /// What the relay has still to publish.
    pub outbox: OutboxLag,
    /// Whether the broker answered.
    pub broker: BrokerState,
    /// The topics that there should be.
    pub topics: Vec<TopicLag>,
    /// The groups, by name; wallex's own are always among them.
    pub groups: Vec<GroupLag>,
    /// Wallets of which records were put aside; at most [`PARKED_WALLETS_MAX`].
    pub parked: Vec<ParkedWallet>,
}

/// Everything together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TotalLag {
    /// The most urgent state of the ingest, the outbox and the groups.
    pub state: State,
    /// Whether somebody should look, because it will not come right by just going on.
    pub needs_help: bool,
    /// Records to be read, over all groups; `None` where that is not known of each.
    pub lag: Option<i64>,
    /// Age of the oldest event that is not copied or not published or that a group lacks, in milliseconds; `None` where there is none.
    pub behind_ms: Option<i64>,
    /// Records put aside, over all groups.
    pub parked: i64,
}

/// One topic, as the broker shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TopicLag {
    /// Its name.
    pub topic: String,
    /// Whether it is there; `None` where the broker did not say.
    pub exists: Option<bool>,
    /// How many partitions it has; 0 where it is not known to exist.
    pub partitions: i32,
    /// How many records it holds, over all partitions; `None` where it is not known to exist.
    pub records: Option<i64>,
}

/// The outbox: the part of the log that the broker has not acknowledged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OutboxLag {
    /// How it stands.
    pub state: State,
    /// Position of the last event in the log.
    pub head: Position,
    /// Position up to which everything was acknowledged.
    pub published: Position,
    /// How many events wait: `head - published`.
    pub depth: i64,
    /// Age of the oldest that waits, in milliseconds; `None` where none waits.
    pub oldest_age_ms: Option<i64>,
    /// How long ago `published` moved last, in milliseconds.
    pub unmoved_ms: i64,
    /// What the relay is doing, and why it is not publishing, where it is not.
    pub relay: RelayStatus,
    /// Wallets whose events the relay does not publish, because one of them is larger than the topic takes; at most 1,000.
    pub withheld: Vec<WithheldWallet>,
}

/// Whether the broker answered just now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BrokerState {
    /// Whether it answered.
    pub connected: bool,
    /// What was wrong, where something was.
    pub error: Option<String>,
}

/// One consumer group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GroupLag {
    /// The group's id, which is the projection's name too.
    pub group: String,
    /// The topic that it reads.
    pub topic: String,
    /// How it stands.
    pub state: State,
    /// Whether somebody should look, because it will not come right by just going on.
    pub needs_help: bool,
    /// How many members Kafka says that it has; `None` where it does not say, as the embedded broker.
    pub members: Option<usize>,
    /// Everything in the log up to here is in the group's tables: the least of its partitions.
    pub position: Position,
    /// Records to be read, over all partitions; `None` where that is not known of each.
    pub lag: Option<i64>,
    /// Age of the oldest event that it lacks, in milliseconds; `None` where it lacks none.
    pub behind_ms: Option<i64>,
    /// Records that it has put aside.
    pub parked: i64,
    /// How many it may put aside at most before partitions are paused; `None` where none of its runners has said so.
    pub parked_max: Option<i64>,
    /// Its partitions, by number.
    pub partitions: Vec<PartitionLag>,
}

impl GroupLag {
    /// How many records or events wait at most: what Kafka says, or where it says nothing the part of the log, up to `head`, that
    /// the group may lack.
    pub fn waiting(&self, head: Position) -> i64 {
        self.lag.unwrap_or((head - self.position).max(0))
    }
}

/// One partition, as one group stands in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PartitionLag {
    /// The partition's number.
    pub partition: i32,
    /// How it stands: idle, moving or stuck.
    pub state: State,
    /// The offset that the next record will get; `None` where the broker did not say.
    pub end: Option<i64>,
    /// The group's committed offset; `None` where nothing is committed, or the broker did not say.
    pub committed: Option<i64>,
    /// `end - committed`.
    pub lag: Option<i64>,
    /// The checkpoint in the database: every event of this partition up to that position is in the group's tables. `None`
    /// before the first. This, and not the committed offset, is where the group goes on from.
    pub position: Option<Position>,
    /// The offset at which the checkpoint would go on reading. The committed one follows it, so that they differ for a moment;
    /// where they differ for longer, tools that look at Kafka alone are told something else than what is so.
    pub next_offset: Option<i64>,
    /// How long ago the checkpoint moved last, in milliseconds; `None` before the first.
    pub unmoved_ms: Option<i64>,
    /// Age of the oldest event of this partition that the group lacks, in milliseconds; `None` where it lacks none.
    pub behind_ms: Option<i64>,
}

/// A wallet of which a group has put records aside.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ParkedWallet {
    /// The group.
    pub group: String,
    /// The wallet; `None` for records that cannot be laid to any.
    pub wallet_id: Option<String>,
    /// How many records wait.
    pub records: i64,
    /// When the first of them failed.
    pub since: DateTime<Utc>,
    /// Why it failed.
    pub error: String,
}

/// How far everything has come, from the database alone: cheap enough to ask many times a second.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Progress {
    /// Position of the last event in the log.
    pub head: Position,
    /// Position up to which the broker has acknowledged everything.
    pub published: Position,
    /// The groups, by name; wallex's own are always among them.
    pub groups: Vec<GroupProgress>,
    /// Where the events are in an event store, how far the copy of it has come: `head` above is the copy's. Absent where the
    /// events are in the database.
    ///
    /// Once `copied` has come to what `head` in here was, the copy has every event that was answered before, and so has whoever is
    /// through the copy's head of that moment.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub event_store: Option<StoreProgress>,
}

/// How far one group has come.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GroupProgress {
    /// The group's id.
    pub group: String,
    /// Everything in the log up to here is in the group's tables.
    pub position: Position,
}

impl Progress {
    /// Whether the relay and every group are through a position.
    pub fn is_through(&self, position: Position) -> bool {
        self.published >= position && self.groups.iter().all(|group| group.position >= position)
    }
}

/// Why the lag is not known.
#[derive(Debug, Error)]
pub enum LagError {
    /// The database did not answer; it may well do so later.
    #[error("the database is away: {0}")]
    Away(String),
    /// The database refused.
    #[error("the database refused: {0}")]
    Refused(String),
}

/// How far everything has come, from the database alone: the event store is not asked for its head.
///
/// # Errors
/// [`LagError`] where the database does not answer.
pub async fn progress(database: &Database) -> Result<Progress, LagError> {
    Ok(database.standing().await?.progress())
}

/// What is behind now, asked once. Who asks again and again keeps a [`LagProbe`].
///
/// # Errors
/// [`LagError`] where the database does not answer.
pub async fn report(database: &Database, kafka: Option<&KafkaConfig>) -> Result<LagReport, LagError> {
    LagProbe::new(database.clone(), kafka.cloned()).report().await
}
