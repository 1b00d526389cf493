//! The write path. One task, the sequencer, decides commands one after another against wallets that it holds in memory,
//! and commits many of them at once.
//!
//! Callers talk to a [`CommandService`]; each waits for its own durable answer.

use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use uuid::Uuid;

use crate::log::Position;
use crate::wallet::{Command, Rejection, Wallet};

/// A command with what travels beside it.
#[derive(Clone, Debug)]
pub struct Request {
    /// What is asked.
    pub command: Command,
    /// The caller's key: the same key and command give the same answer and one effect.
    pub idempotency_key: Option<Arc<str>>,
    /// The caller's correlation id; it travels into event metadata and Kafka headers.
    pub correlation_id: Arc<str>,
}

/// A durable answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The wallet that the command was addressed to, as the command left it.
    pub wallet: Wallet,
    /// Of a transfer, its id and the receiver as the transfer left it.
    pub transfer: Option<(Uuid, Wallet)>,
    /// The position of the last event that the command made.
    pub position: Position,
    /// Whether the answer is an earlier one, given again for its idempotency key.
    pub replayed: bool,
}

/// Why a command was not answered with a state.
#[derive(Debug, Error)]
pub enum CommandError {
    /// The command broke a rule. Nothing was changed.
    #[error(transparent)]
    Rejected(#[from] Rejection),
    /// The idempotency key was used before with another command. Nothing was changed.
    #[error("this idempotency key was used before with another request")]
    KeyReused,
    /// The queue is full. Nothing was done; try again after a while.
    #[error("too many commands are waiting; nothing was done")]
    Busy {
        /// When to try again.
        retry_after: Duration,
    },
    /// The store did not answer in time. `maybe_done` says whether the command may have happened all the same: a retry
    /// with the same idempotency key tells.
    #[error("the event log did not answer in time")]
    Unavailable {
        /// Whether the command may have happened.
        maybe_done: bool,
        /// When to try again.
        retry_after: Duration,
    },
    /// The store holds something that must not be; an operator has to look.
    #[error("the event log holds something wrong: {0}")]
    Corrupt(String),
}

mod snapshot;

pub use snapshot::{SNAPSHOT_FORMAT, restore};
