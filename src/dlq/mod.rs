//! Dead letters: what a consumer group could not process, and how it is put right.
//!
//! A projection parks what it cannot process in `parked_records`, in the transaction that moves its checkpoint: the event that
//! fails, and every later event of the same wallet behind it. Those of one wallet and one group are a *queue*. Records that belong to
//! no wallet (a foreign producer's) are kept there too, each by itself; nobody waits for them.
//!
//! # Replay
//! A replay applies a queue again, in order, in transactions of its own: each takes the row of the partition's checkpoint first, as
//! the runner's do, then reads the beginning of the queue, applies it, and lets it go. So
//! - an event that comes meanwhile is parked behind the others or, once the queue is empty, applied after them;
//! - two replays at once take turns, and each goes on with what the other has left;
//! - a replay that is killed has done whole steps and no halves. What it has done is in its account, `dead_letter_actions`, which
//!   is written in the same transactions.
//!
//! What is applied are the log's events at the positions of the parked records, not the bytes that came through the topic. Where
//! one fails again, those before it are applied, its error and its attempts are brought up to date, and the rest stays.
//!
//! # Discard
//! To discard is to decide that a group shall do without an event for good. Nothing in the log changes, and the record with its bytes
//! moves to `discarded_records`. Only the beginning of a queue can be discarded, by itself or with all that was behind it, so that
//! what is left is still one stretch of the wallet's history. After that the group has to go on with a gap:
//! - The **ledger** lacks the postings. Each posting stands by itself and carries the balance after it, so later ones are
//!   written as ever; sums over the account lack what was discarded.
//! - The **read model** changes a row only from the very state that an event departs from. It passes over a gap if, and only if, each
//!   event in it was discarded: until the wallet's next event its row stays as it was, and then it is right again, because an
//!   event carries the balance after it. A wallet whose *creation* was discarded is not in the read model and never will be:
//!   its later events have no row to change, and are passed over.
//! - A **projection of one's own** is given the next event after the gap, and sees it by the revision.
//!
//! `verify` tells what was discarded from what is missing, and a rebuild leaves it out again.
//!
//! # Copies
//! Each parked record is copied to the topic `wallet-events-dlq` ([`copy_dead_letters`]), for whoever watches that with the tools of
//! Kafka. The copies are for reading: the database is where the records are, and nothing is ever read back from the topic.
//!
//! # Groups that are not projections
//! Records can be parked for others as well. They are listed, shown and copied like any; to replay or to discard them takes the
//! one who parked them, so this room refuses.

mod copies;
mod discard;
mod letter;
mod plan;
mod replay;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use uuid::Uuid;

use crate::log::Position;
use crate::postgres::Database;

pub use copies::{
    ERROR_CHARACTERS_MAX, HEADER_ATTEMPTS, HEADER_CONSUMER_GROUP, HEADER_ERROR_CLASS, HEADER_ERROR_MESSAGE,
    HEADER_EVENT_ID, HEADER_FIRST_FAILURE, HEADER_LAST_FAILURE, HEADER_ORIGINAL_OFFSET, HEADER_ORIGINAL_PARTITION,
    HEADER_ORIGINAL_TIMESTAMP, HEADER_ORIGINAL_TOPIC, HEADER_PARKED_ID, HEADER_VALUE_OMITTED, copy_dead_letters,
};
pub use discard::discard;
pub use letter::{Bytes, Change, Letter, LetterEvent, LetterHeader};
pub use plan::{PLANNED_QUEUES_MAX, Plan, PlannedEvent, PlannedQueue, Reach, plan};
pub use replay::replay;

/// Which dead letters are meant. Of a wallet's queue its first record decides: it is the cause, the others only wait.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    /// Those of this group.
    pub group: Option<String>,
    /// Those of this wallet.
    pub wallet: Option<String>,
    /// Those whose error, or its class, has this in it; capitals do not matter.
    pub error: Option<String>,
    /// Those whose event is of this type.
    pub event_type: Option<String>,
    /// Those that failed first at this time or before.
    pub failed_before: Option<DateTime<Utc>>,
    /// The queue that begins with the record of this number, or that record alone where it belongs to no wallet.
    pub record: Option<i64>,
}

/// A part of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Page {
    /// How many at most.
    pub limit: i64,
    /// How many to pass over first.
    pub offset: i64,
}

/// What waits behind one wallet's event that failed, or a group's records of no wallet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Queue {
    /// The group.
    pub group: String,
    /// The wallet; `None` for the records of no wallet.
    pub wallet_id: Option<String>,
    /// How many records there are.
    pub records: i64,
    /// How many of them only wait for the first.
    pub behind: i64,
    /// When the first one failed first.
    pub since: DateTime<Utc>,
    /// When it failed last.
    pub last_failed_at: DateTime<Utc>,
    /// What kind of failure it was: `APPLY`, `DECODE`, `FOREIGN`, `BEHIND`.
    pub error_class: String,
    /// Why it failed last.
    pub error: String,
    /// How often it was tried.
    pub attempts: i32,
    /// The first one's type, where it is an event of the log.
    pub event_type: Option<String>,
    /// The first one's position.
    pub first_position: Option<Position>,
    /// The last one's position.
    pub last_position: Option<Position>,
    /// The first one's number.
    pub record_id: i64,
    /// Their partition; of records of no wallet that of the first.
    pub partition: i32,
}

/// What an operator can have done with dead letters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ActionKind {
    /// Apply them again.
    Replay,
    /// Do without them for good.
    Discard,
}

impl ActionKind {
    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            ActionKind::Replay => "replay",
            ActionKind::Discard => "discard",
        }
    }
}

/// One command of an operator's, as it stands in the account of what was done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Action {
    /// Its id, new for each.
    pub id: Uuid,
    /// What is done.
    pub kind: ActionKind,
    /// Who does it.
    pub by: String,
    /// Why.
    pub reason: Option<String>,
    /// When it began.
    pub begun_at: DateTime<Utc>,
}

impl Action {
    /// A new one, beginning now.
    pub fn new(kind: ActionKind, by: impl Into<String>, reason: Option<String>) -> Self {
        Action { id: Uuid::now_v7(), kind, by: by.into(), reason, begun_at: Utc::now() }
    }
}

/// What has been done with one queue.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Settled {
    /// The group.
    pub group: String,
    /// The wallet; `None` for the records of no wallet.
    pub wallet_id: Option<String>,
    /// How many records were applied or discarded.
    pub records: i64,
    /// The first one's position.
    pub first_position: Option<Position>,
    /// The last one's position.
    pub last_position: Option<Position>,
    /// How many are parked still.
    pub remaining: i64,
    /// What it stopped at.
    pub error: Option<String>,
}

impl Settled {
    fn of(queue: &PlannedQueue) -> Self {
        Settled { group: queue.group.clone(), wallet_id: queue.wallet_id.clone(), ..Settled::default() }
    }

    /// Adds a further step.
    fn add(&mut self, step: Settled) {
        self.records += step.records;
        self.first_position = self.first_position.or(step.first_position);
        self.last_position = step.last_position.or(self.last_position);
        self.remaining = step.remaining;
        self.error = step.error;
    }
}

/// A line of the account of what operators have done: one command and one queue.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Deed {
    /// The command's id; what one command did to several queues shares it.
    pub action_id: Uuid,
    /// `replay` or `discard`.
    pub action: String,
    /// The group.
    pub group: String,
    /// The wallet; `None` for records of no wallet.
    pub wallet_id: Option<String>,
    /// Who did it.
    pub by: String,
    /// Why.
    pub reason: Option<String>,
    /// When the command began.
    pub begun_at: DateTime<Utc>,
    /// When it did the last of this.
    pub ended_at: DateTime<Utc>,
    /// How many records were applied or discarded.
    pub records: i64,
    /// The first one's position.
    pub first_position: Option<Position>,
    /// The last one's position.
    pub last_position: Option<Position>,
    /// How many were left parked then.
    pub remaining: i64,
    /// What it stopped at; `None` where nothing was in the way.
    pub error: Option<String>,
}

/// Why dead letters could not be read or settled.
#[derive(Debug, Error)]
pub enum DlqError {
    /// The database did not answer; what was done until then is durable. Ask again.
    #[error("the database is away: {0}")]
    Away(String),
    /// The database refused, or holds something that must not be.
    #[error("the database refused: {0}")]
    Refused(String),
    /// The task that was at work ended without a word.
    #[error("it ended without a word: {0}")]
    Ended(String),
}

/// The queues of a selection, the longest parked first.
///
/// # Errors
/// [`DlqError`] where the database does not answer.
pub async fn list(database: &Database, selection: &Selection, page: Page) -> Result<Vec<Queue>, DlqError> {
    database.parked_queues(selection, page).await
}

/// The records of a queue, in order, with all that is kept of each; those of no wallet where `wallet` is `None`.
///
/// # Errors
/// [`DlqError`] where the database does not answer.
pub async fn show(database: &Database, group: &str, wallet: Option<&str>, page: Page) -> Result<Vec<Letter>, DlqError> {
    letter::read(database, database.parked_of_queue(group, wallet, page).await?).await
}

/// The record of this number, if it is parked.
///
/// # Errors
/// [`DlqError`] where the database does not answer.
pub async fn show_record(database: &Database, record: i64) -> Result<Option<Letter>, DlqError> {
    let found = database.parked_record(record).await?.into_iter().collect();
    Ok(letter::read(database, found).await?.pop())
}

/// What operators have done, the newest first.
///
/// # Errors
/// [`DlqError`] where the database does not answer.
pub async fn history(
    database: &Database,
    group: Option<&str>,
    wallet: Option<&str>,
    page: Page,
) -> Result<Vec<Deed>, DlqError> {
    database.dead_letter_deeds(group, wallet, page).await
}
