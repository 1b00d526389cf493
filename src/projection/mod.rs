//! Projections: tables made of events, each by a consumer group of its own, kept exactly once.
//!
//! A [`Projection`] says only *these rows for these events*. Everything else is the [`ProjectionRunner`]'s: the consumer,
//! the transaction, retries, parking, checkpoints.
//!
//! # What a projection can rely on
//! - Each event is applied once in effect: its rows and the checkpoint that stands for it are one transaction, and a record that
//!   comes a second time is passed over before the projection sees it.
//! - The events of one wallet come in the order of their revisions, without a gap. Between wallets of different
//!   partitions there is no order.
//! - Only events that stand in the log are applied, whatever else somebody has written to the topic.
//!
//! Whoever consumes `wallet-events` without this runner gets each record *at least* once, in order per wallet, and
//! deduplicates by the `position` header: one event has one position for ever, and within a partition positions only grow.
//!
//! # Where the truth is
//! Within a partition positions strictly increase, so a checkpoint is one number a partition: everything of this
//! partition up to that position is in the tables. The Kafka offset beside it is only a hint where to go on reading. The
//! record found there must be the one that the checkpoint names; where it is not (a topic made anew, another cluster,
//! records that retention has removed) what is missing is read from the log itself.

mod apply;
mod assignment;
mod ledger;
mod read_model;
mod record;
mod runner;

use std::future::Future;

use thiserror::Error;

use crate::kafka::EventRecord;
use crate::postgres::{PgConnection, is_transient, sqlx};

pub use ledger::{LEDGER_PROJECTOR, LedgerProjection};
pub use read_model::{READ_MODEL_PROJECTOR, ReadModelProjection};
pub use runner::{ProjectionRunner, RunnerError, RunnerOptions};

/// The projections that wallex itself keeps.
pub const BUILT_IN: [&str; 2] = [LEDGER_PROJECTOR, READ_MODEL_PROJECTOR];

/// Rows for events.
pub trait Projection: Send + 'static {
    /// Its name, which is its consumer group too. It names the checkpoints, so it never changes.
    fn name(&self) -> &str;

    /// Makes its tables, if it needs any. Called once, before the first event, in a transaction of its own.
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

/// Why events could not be applied.
#[derive(Debug, Error)]
pub enum ApplyError {
    /// It may well go later: the database is away, or somebody was in the way. Retried for as long as it lasts.
    #[error("{0}")]
    Transient(String),
    /// It will not go however often it is tried. The event is parked, and its wallet behind it; the others go on.
    #[error("{0}")]
    Permanent(String),
}

impl From<sqlx::Error> for ApplyError {
    fn from(error: sqlx::Error) -> Self {
        if is_transient(&error) {
            ApplyError::Transient(error.to_string())
        } else {
            ApplyError::Permanent(error.to_string())
        }
    }
}
