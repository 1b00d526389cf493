//! The tables' rows as they are read for a verification: everything that could be wrong is still text.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use uuid::Uuid;

use crate::log::{Position, Revision};

/// The number of a stream in the log's tables.
pub(crate) type StreamId = i64;

/// A row of `events`.
#[derive(Clone, Debug)]
pub(crate) struct EventRow {
    pub position: Position,
    pub stream_id: StreamId,
    pub revision: Revision,
    pub event_id: Uuid,
    pub event_type: String,
    pub event_version: i32,
    pub recorded_at: DateTime<Utc>,
    pub payload: Vec<u8>,
    /// Empty where it was not asked for.
    pub metadata: Vec<u8>,
}

/// A row of `ledger_postings`.
#[derive(Clone, Debug)]
pub(crate) struct PostingRow {
    pub position: Position,
    pub leg: i16,
    pub account: String,
    pub currency: String,
    pub amount: i64,
    pub balance_after: Option<i64>,
    pub event_id: Option<Uuid>,
    pub transaction_type: Option<String>,
    pub description: Option<String>,
    pub reference_id: Option<Uuid>,
    pub related_wallet_id: Option<String>,
    pub metadata: Option<Vec<u8>>,
    pub created_at: DateTime<Utc>,
}

/// A row of `read_model_wallets`.
#[derive(Clone, Debug)]
pub(crate) struct WalletRow {
    pub wallet_id: String,
    pub owner_id: String,
    pub currency: String,
    pub balance: i64,
    pub status: String,
    pub version: Revision,
    pub position: Position,
    pub created_at: DateTime<Utc>,
    pub updated_at: DateTime<Utc>,
}

/// A row of `snapshots`.
#[derive(Clone, Debug)]
pub(crate) struct SnapshotRow {
    pub stream_id: StreamId,
    pub revision: Revision,
    pub format: i32,
    pub state: Vec<u8>,
}

/// A row of `idempotency_keys` that is wrong, with whose event it points to: `None` where there is no such event.
#[derive(Clone, Debug)]
pub(crate) struct KeyRow {
    pub wallet_id: String,
    pub command_kind: String,
    pub key: String,
    pub position: Position,
    pub event_count: i32,
    pub event_wallet_id: Option<String>,
    /// How many rows are wrong.
    pub alike: i64,
}

/// Something that speaks of a position that the log has not reached.
#[derive(Clone, Debug)]
pub(crate) struct Stray {
    /// What it is, such as `checkpoint of ledger-projector, partition 3`.
    pub what: String,
    pub position: Position,
}

/// The log's own account of itself, and the outbox's, at one moment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OutboxRow {
    pub head: Position,
    pub published: Position,
    pub pending: i64,
    pub last_event: Position,
}

/// The parked records: how many, and the first.
#[derive(Clone, Debug)]
pub(crate) struct ParkedRow {
    pub records: i64,
    pub wallets: i64,
    pub projection: String,
    pub wallet_id: Option<String>,
    pub position: Option<Position>,
    pub error: String,
}

/// How much of a group was discarded.
#[derive(Clone, Debug)]
pub(crate) struct DiscardedRow {
    pub projection: String,
    pub events: i64,
    /// How many wallets the events are of.
    pub wallets: i64,
    /// Records of no wallet.
    pub strangers: i64,
}

/// Discarded records of no wallet: by partition and offset, the SHA-256 of each one's value (of nothing, where it had none). More than
/// one lay there if the topic was made anew.
pub(crate) type Strangers = HashMap<(i32, i64), Vec<Vec<u8>>>;
