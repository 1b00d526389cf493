//! Why a projection could not be made anew.

use thiserror::Error;

use crate::log::{LogError, Position};
use crate::postgres::{is_in_passing, sqlx};

/// Why a projection could not be made anew. The live table is as it was.
#[derive(Debug, Error)]
pub enum RebuildError {
    /// The database is away or refused.
    #[error("the database: {0}")]
    Database(sqlx::Error),
    /// Applying events failed for a reason that is not theirs.
    #[error("the database: {0}")]
    Away(String),
    /// The log could not be read.
    #[error(transparent)]
    Log(#[from] LogError),
    /// Another rebuild, or a drop, of the same projection is at work.
    #[error("another rebuild of {projection} is at work; wait until it is through")]
    AtWork {
        /// The projection.
        projection: &'static str,
    },
    /// The table that the last rebuild replaced is still kept, and there is room for one only.
    #[error("{kept} is still kept ({note}); once nobody needs it, drop it with --drop-previous --execute")]
    Kept {
        /// The table.
        kept: String,
        /// Since when.
        note: String,
    },
    /// What hangs on the table would go on with the old one.
    #[error(
        "{} hang on the table {table} itself and would stay with the old one; drop them, rebuild, and make them again",
        dependents.join(", ")
    )]
    Dependents {
        /// The table.
        table: &'static str,
        /// What hangs on it.
        dependents: Vec<String>,
    },
    /// An event cannot be applied, though the live table has it and nothing of its wallet is parked.
    #[error("the event at position {position}, of wallet {wallet}, cannot be applied: {reason}")]
    Event {
        /// Where it is.
        position: Position,
        /// Whose it is.
        wallet: String,
        /// Why it cannot be.
        reason: String,
    },
    /// Somebody used the live table for so long that it could not be replaced.
    #[error("the table {table} was in use all the time and could not be replaced: {}", readers.join("; "))]
    InTheWay {
        /// The table.
        table: &'static str,
        /// Who uses it.
        readers: Vec<String>,
    },
}

impl RebuildError {
    /// Whether the step that failed is worth another attempt.
    pub(super) fn is_in_passing(&self) -> bool {
        match self {
            RebuildError::Database(error) => is_in_passing(error),
            RebuildError::Away(_) => true,
            _ => false,
        }
    }
}
