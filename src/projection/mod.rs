//! Projections: tables made of events, each by a consumer group of its own, kept exactly once.
//!
//! A [`Projection`] says only *these rows for these events*. Everything else is the [`ProjectionRunner`]'s: the consumer,
//! the transaction, retries, parking, checkpoints.
//!
//! # What a projection can rely on
//! - Each event is applied once in effect: its rows and the checkpoint that stands for it are one transaction, and a record that
//!   comes a second time is passed over before the projection sees it.
//! - The events of one wallet come in the order of their revisions, without a gap but where an operator has discarded some (see
//!   [`dlq`](crate::dlq)). Between wallets of different partitions there is no order.
//! - Only events that stand in the log are applied, whatever else somebody has written to the topic.
//!
//! Whoever consumes `wallet-events` without this runner gets each record *at least* once, in order per wallet, and
//! deduplicates by the `position` header: one event has one position for ever, and within a partition positions only grow.
//!
//! # Where the truth is
//! Within a partition positions strictly increase, so a checkpoint is one number a partition: every event of this
//! partition up to that position is in the tables. It moves only with the rows that it stands for, from the value that the runner
//! believes it to have, so a runner that no longer owns a partition writes nothing. The Kafka offset beside it is a hint where
//! to go on reading. Whether anything lies between the checkpoint and the record found there is for the log to say, and what
//! the topic does not have (it was made anew, it is another cluster's, retention was faster) is read from the log.
//!
//! # When an event cannot be applied
//! - [`ApplyError::Transient`] (the database is away, a deadlock, a broken table) is tried again for as long as it lasts, with
//!   the partitions paused and the group membership kept.
//! - [`ApplyError::Permanent`] (an invariant is broken, a value does not fit, the handler panics) and events that cannot be read
//!   are about that event alone. It is tried a few times more, then it is parked: kept in `parked_records`, and every later event of
//!   the same wallet behind it, in order. All other wallets go on. What was parked is put right with [`dlq`](crate::dlq).
//! - As many records may be parked as [`RunnerOptions::parked_max`] says. Near that there is an alarm; past it the partition that
//!   would have to park more is paused until there is room, and loses nothing.
//! - A record that is not the relay's (no key, a position that the log does not have, another event's) is kept there too, but holds
//!   nobody back.
//!
//! # A projection of one's own
//! ```
//! use wallex::kafka::EventRecord;
//! use wallex::postgres::{PgConnection, sqlx};
//! use wallex::projection::{ApplyError, Projection};
//!
//! /// How many events there have been.
//! struct Count;
//!
//! impl Projection for Count {
//!     fn name(&self) -> &str {
//!         "count"
//!     }
//!
//!     async fn prepare(&mut self, transaction: &mut PgConnection) -> Result<(), ApplyError> {
//!         let table = "CREATE TABLE IF NOT EXISTS event_counts (currency text PRIMARY KEY, events bigint NOT NULL)";
//!         sqlx::query(table).execute(transaction).await?;
//!         Ok(())
//!     }
//!
//!     async fn apply(&mut self, events: &[EventRecord], transaction: &mut PgConnection) -> Result<(), ApplyError> {
//!         let count = "INSERT INTO event_counts SELECT currency, count(*) FROM unnest($1::text[]) AS currency GROUP BY currency
//!                      ON CONFLICT (currency) DO UPDATE SET events = event_counts.events + excluded.events";
//!         let currencies: Vec<&str> = events.iter().map(|record| record.event.currency().code()).collect();
//!         sqlx::query(count).bind(currencies).execute(transaction).await?;
//!         Ok(())
//!     }
//! }
//! ```

mod apply;
mod assignment;
mod batch;
mod full;
mod gaps;
#[cfg(test)]
mod history;
mod intake;
mod ledger;
mod parking;
mod persevere;
mod read_model;
pub mod rebuild;
mod record;
mod runner;

use std::future::Future;

use thiserror::Error;

use crate::kafka::EventRecord;
use crate::postgres::{PgConnection, causes, is_about_the_data, sqlx};

pub(crate) use apply::{Applier, is_nearly_full};
pub use ledger::{LEDGER_PROJECTOR, LedgerProjection};
pub(crate) use parking::Failure;
pub use read_model::{READ_MODEL_PROJECTOR, ReadModelProjection};
pub use runner::{PARKED_MAX, ProjectionRunner, RunnerError, RunnerOptions, RunnerState};

/// The projections that wallex itself keeps.
pub const BUILT_IN: [&str; 2] = [LEDGER_PROJECTOR, READ_MODEL_PROJECTOR];

/// Rows for events.
pub trait Projection: Send + 'static {
    /// Its name, which is its consumer group too. It names the checkpoints, so it never changes.
    fn name(&self) -> &str;

    /// Makes its tables, if it needs any and they are not there yet. Called when a runner starts, before the first event, in a
    /// transaction of its own; one runner of this name after the other.
    fn prepare(&mut self, transaction: &mut PgConnection) -> impl Future<Output = Result<(), ApplyError>> + Send {
        let _ = transaction;
        async { Ok(()) }
    }

    /// Writes the rows for these events, in order, inside the transaction that moves the checkpoint. It may be called
    /// again with the same events after a failure: the transaction was rolled back, so nothing may be kept outside of it.
    ///
    /// The connection is set to look rows up by index (`enable_seqscan` and so on are off): what it finds by, it should have
    /// an index for.
    fn apply(
        &mut self,
        events: &[EventRecord],
        transaction: &mut PgConnection,
    ) -> impl Future<Output = Result<(), ApplyError>> + Send;
}

/// Why events could not be applied. What the database says is sorted by `From<sqlx::Error>`: only what it says about the values
/// (classes 22 and 23: out of range, a constraint broken, and the like), or what a row cannot be read for, is permanent.
#[derive(Debug, Error)]
pub enum ApplyError {
    /// It is not about these events: the database is away, somebody was in the way, a table is missing. Any other event would
    /// fare the same, so nothing is parked: it is tried again for as long as it lasts.
    #[error("{0}")]
    Transient(String),
    /// It will not go however often it is tried. The event is parked, and its wallet behind it; the others go on.
    #[error("{0}")]
    Permanent(String),
}

impl From<sqlx::Error> for ApplyError {
    fn from(error: sqlx::Error) -> Self {
        if is_about_the_data(&error) {
            ApplyError::Permanent(causes(&error))
        } else {
            ApplyError::Transient(error.to_string())
        }
    }
}
