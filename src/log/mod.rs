//! The event log: streams with revisions, in one gapless order of positions.
//!
//! [`EventLog`] is the port that the write path and every reader go through. [`PostgresLog`] is the store of record;
//! [`MemoryLog`] is for tests. Both pass the same contract suite (`tests/log_contract.rs`), and the part of it that is about single
//! streams is passed by [`KurrentLog`](crate::kurrentdb::KurrentLog) too.
//!
//! A batch is appended whole or not at all. A store may be unable to do that over several streams ([`Atomicity::Stream`],
//! as KurrentDB's first protocol is); it then refuses a batch of more than one stream, and whoever writes to it must plan
//! for that. Nothing in this port assumes more.

mod earlier;
mod memory;
mod read_ahead;
mod snapshot;
mod view;

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use uuid::Uuid;

use crate::wallet::{EventError, WalletEvent, WalletId};

pub use crate::postgres::log::{NOTIFY_CHANNEL, PostgresLog};
pub(crate) use earlier::{left_before, to_look_up, upcast};
pub use memory::MemoryLog;
pub(crate) use read_ahead::ReadAhead;
pub(crate) use snapshot::apply_next;
pub use snapshot::{SNAPSHOT_EVERY, SNAPSHOT_FORMAT, restore};
pub use view::{ViewError, WalletView, read_wallet};

/// An event's place in the whole log, from 1 without a gap; 0 is before the first.
pub type Position = i64;

/// An event's place in its stream, from 0 without a gap.
pub type Revision = i64;

/// How many streams one append can write at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Atomicity {
    /// Any number: a batch is one commit, and it can be made conditional on the head of the whole log.
    Log,
    /// One.
    Stream,
}

/// The store's own name for a stream, learned when the stream is loaded and handed back on append to save a look-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamKey(pub(crate) i64);

/// Where a command comes from; it travels with the events into Kafka's headers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Metadata {
    /// Shared by everything that one outside request caused.
    pub correlation_id: Arc<str>,
    /// The id of what directly caused the event: the command.
    pub causation_id: Arc<str>,
}

/// An event to append. Its place in its stream is part of it: that is the expected revision.
#[derive(Clone, Debug)]
pub struct NewEvent {
    /// The stream.
    pub stream: WalletId,
    /// The store's name for it, where known.
    pub stream_key: Option<StreamKey>,
    /// The revision that it must get: the stream's last one plus one.
    pub revision: Revision,
    /// Its id, unique.
    pub event_id: Uuid,
    /// Its type's name.
    pub event_type: &'static str,
    /// Its payload, JSON.
    pub payload: Vec<u8>,
    /// Its metadata, JSON.
    pub metadata: Arc<[u8]>,
}

/// An idempotency key to keep, or to look for. It counts per wallet and kind of command.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct KeyScope {
    /// The wallet that the command was addressed to.
    pub wallet_id: WalletId,
    /// The kind of command.
    pub command_kind: &'static str,
    /// The caller's key.
    pub key: Arc<str>,
}

/// What a key stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyRecord {
    /// The key.
    pub scope: KeyScope,
    /// SHA-256 of the command that it was used with.
    pub fingerprint: [u8; 32],
    /// The position of the command's first event.
    pub position: Position,
    /// How many events it made.
    pub event_count: i32,
}

/// Events and idempotency keys that become durable together or not at all.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// The position that the log's head must still have. Who names it has read every stream of the batch up to there and
    /// vouches for their revisions: a store looks no further than that none is written twice. `None` leaves it to the streams'
    /// revisions alone, and then the store makes sure that each goes on where it ended.
    pub expected_head: Option<Position>,
    /// When the events happened, to the microsecond.
    pub recorded_at: DateTime<Utc>,
    /// The events, in order.
    pub events: Vec<NewEvent>,
    /// The keys of the commands that made them. Positions in them count from the batch's first event as 1, plus
    /// `expected_head`; a batch with keys has an `expected_head`.
    pub keys: Vec<KeyRecord>,
}

impl Batch {
    /// Of each event, the place in the batch of its stream's first one, counted from 1. `None` where the events of a stream do
    /// not follow one another, without a gap or a double.
    pub(crate) fn first_places(&self) -> Option<Vec<i64>> {
        let mut streams: HashMap<&WalletId, (i64, Revision)> = HashMap::with_capacity(self.events.len());
        let places = (1..).zip(&self.events).map(|(place, event)| {
            let (first_place, next) = streams.entry(&event.stream).or_insert((place, event.revision));
            let follows = event.revision == *next;
            *next += 1;
            follows.then_some(*first_place)
        });
        places.collect()
    }
}

/// What became of an append.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Appended {
    /// Durable. The last event got this position; the ones before it lie directly before.
    At(Position),
    /// The head or a stream's revision is not the expected one, or one of the keys is known already. Nothing was written.
    Conflict,
}

/// An event as the log holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordedEvent {
    /// Its place in the log.
    pub position: Position,
    /// Its stream.
    pub stream: WalletId,
    /// Its place in the stream.
    pub revision: Revision,
    /// Its id.
    pub event_id: Uuid,
    /// Its type's name.
    pub event_type: String,
    /// The payload's version.
    pub event_version: u32,
    /// When it happened.
    pub recorded_at: DateTime<Utc>,
    /// The payload, JSON.
    pub payload: Vec<u8>,
    /// The metadata, JSON.
    pub metadata: Vec<u8>,
}

impl RecordedEvent {
    /// The event in the domain's terms.
    ///
    /// # Errors
    /// [`EventError`] where the payload is not ours.
    pub fn decode(&self) -> Result<WalletEvent, EventError> {
        WalletEvent::from_payload(&self.event_type, self.event_version, &self.payload)
    }
}

/// A stream's state at a revision, as bytes that only the write path reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// The stream's name in the store.
    pub stream_key: StreamKey,
    /// The revision that the state includes.
    pub revision: Revision,
    /// Which encoding the bytes are in; another one than the reader's is no snapshot.
    pub format: i32,
    /// The state.
    pub state: Vec<u8>,
}

/// A stream as loaded: the newest snapshot of the wanted format, if any, and every event after it.
#[derive(Clone, Debug)]
pub struct LoadedStream {
    /// The stream.
    pub stream: WalletId,
    /// The store's name for it.
    pub stream_key: StreamKey,
    /// The snapshot.
    pub snapshot: Option<Snapshot>,
    /// The events after it, oldest first.
    pub tail: Vec<RecordedEvent>,
}

/// Why the log could not answer.
#[derive(Debug, Error)]
pub enum LogError {
    /// The store cannot be reached, or has lost the connection. Of an append that ended so, the outcome is unknown:
    /// send the same batch again, or read.
    #[error("the event log is away: {0}")]
    Away(String),
    /// This store cannot do that, such as writing two streams at once.
    #[error("this event log cannot do that: {0}")]
    Unsupported(&'static str),
    /// The store answered with something that must not be.
    #[error("the event log holds something wrong: {0}")]
    Corrupt(String),
    /// The store refused for a reason that a retry will not change.
    #[error("the event log refused: {0}")]
    Refused(String),
}

/// The port to a log. Each call is one answer; nothing is cached behind it.
pub trait EventLog: Clone + Send + Sync + 'static {
    /// How many streams one append can write.
    fn atomicity(&self) -> Atomicity;

    /// Appends a batch whole or not at all. To send the very same batch again is safe if it has an
    /// `expected_head`: at most one of the attempts can succeed.
    fn append(&self, batch: &Batch) -> impl Future<Output = Result<Appended, LogError>> + Send;

    /// Keeps every other writer waiting until this log's next [`append`](EventLog::append), which must follow (an empty batch
    /// will do) and answers the head's position. For a writer that has lost the race and wants to win the next one.
    /// The lock is gone with the connection, so nobody is kept waiting by a writer that died.
    fn lock_head(&self) -> impl Future<Output = Result<Position, LogError>> + Send;

    /// The position of the last event, 0 of an empty log.
    fn head(&self) -> impl Future<Output = Result<Position, LogError>> + Send;

    /// Up to `limit` events after a position, in order, never past a gap.
    fn read(&self, after: Position, limit: usize) -> impl Future<Output = Result<Vec<RecordedEvent>, LogError>> + Send;

    /// Up to `limit` events of one stream from a revision on, oldest first.
    fn read_stream(
        &self,
        stream: &WalletId,
        from: Revision,
        limit: usize,
    ) -> impl Future<Output = Result<Vec<RecordedEvent>, LogError>> + Send;

    /// The newest `limit` events of one stream, oldest of them first.
    fn read_stream_end(
        &self,
        stream: &WalletId,
        limit: usize,
    ) -> impl Future<Output = Result<Vec<RecordedEvent>, LogError>> + Send;

    /// Loads many streams at once; a stream that does not exist is left out.
    fn load(
        &self,
        streams: &[WalletId],
        snapshot_format: i32,
    ) -> impl Future<Output = Result<Vec<LoadedStream>, LogError>> + Send;

    /// The keys among these that are known.
    fn find_keys(&self, keys: &[KeyScope]) -> impl Future<Output = Result<Vec<KeyRecord>, LogError>> + Send;

    /// Keeps snapshots; an older one never replaces a newer one.
    fn save_snapshots(&self, snapshots: &[Snapshot]) -> impl Future<Output = Result<(), LogError>> + Send;

    /// Forgets up to `limit` idempotency keys from before a time; how many were forgotten.
    fn forget_keys(&self, before: DateTime<Utc>, limit: usize) -> impl Future<Output = Result<u64, LogError>> + Send;
}
