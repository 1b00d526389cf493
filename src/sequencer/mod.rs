//! The write path. One task, the [`Sequencer`], decides commands one after another against wallets that it holds in memory,
//! and makes many of them durable in one commit: while that commit is under way, the next batch gathers, and where many
//! wait it is decided as well.
//!
//! Callers talk to a [`CommandService`]; each waits for its own durable answer. What makes this safe:
//!
//! - **Several processes on one log.** Each append is a compare-and-swap on the log's head. If somebody else has appended,
//!   nothing is written: the sequencer reads what is new, decides again, and from then on takes the head's lock first for
//!   as long as others keep writing, so that nobody starves. No caller ever sees a conflict.
//! - **A rejection is as true as a success.** It is given only once the head is known not to have moved under the decision.
//! - **An append with an unknown outcome** (the connection died, the time ran out) is sent again, byte for byte. At most
//!   one of the attempts can win the swap; if the swap is lost, the event ids that stand in the log tell whose it was.
//! - **What is decided ahead** stands on a batch that is not durable yet: it is sent only once that one is, and is decided
//!   anew if that one fails.
//! - **Idempotency keys** are written in the same commit, and an append that would write a known key writes nothing.
//!
//! The idea of deciding in memory and committing in groups is the LMAX architecture's, with group commit as databases do it.

mod batch;
mod durability;
mod foresight;
mod idempotency;
mod memory;
mod run;
mod setback;
mod snapshots;
mod timely;

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use thiserror::Error;
use tokio::sync::{Notify, mpsc, oneshot};
use uuid::Uuid;

use crate::log::Position;
use crate::wallet::{Command, Rejection, Wallet, WalletId};

pub use idempotency::forget_old_keys;
pub(crate) use idempotency::{fingerprint, scope};
pub use run::Sequencer;
pub(crate) use setback::{Setback, backoff};
pub(crate) use timely::Timely;

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

impl Request {
    /// A request without an idempotency key, under a correlation id of its own.
    pub fn new(command: Command) -> Self {
        Request { command, idempotency_key: None, correlation_id: Uuid::now_v7().to_string().into() }
    }
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
#[derive(Clone, Debug, PartialEq, Eq, Error)]
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
    /// The log did not answer in time, or this process is stopping. `maybe_done` says whether the command may have happened
    /// all the same: a retry with the same idempotency key tells.
    #[error("the event log did not answer in time")]
    Unavailable {
        /// Whether the command may have happened.
        maybe_done: bool,
        /// When to try again.
        retry_after: Duration,
    },
    /// The log holds something that must not be, or refused for good; an operator has to look. Nothing was done.
    #[error("the event log holds something wrong: {0}")]
    Corrupt(String),
    /// The wallet's history has an event of the earlier system that cannot be read; an operator has to look. Nothing was done.
    #[error("wallet {wallet_id} cannot be used, for its history cannot be read: {reason}")]
    Unreadable {
        /// The wallet. Of a transfer, it may be the receiver.
        wallet_id: WalletId,
        /// Why.
        reason: String,
    },
}

/// Bounds of the write path.
#[derive(Clone, Debug)]
pub struct SequencerOptions {
    /// How many commands may wait; one more is answered with [`CommandError::Busy`].
    pub queue_max: usize,
    /// How many commands share a commit at most.
    pub batch_max: usize,
    /// How many wallets are held in memory; the least recently used one goes first.
    pub cached_wallets_max: usize,
    /// How long a caller waits for its answer at most.
    pub command_deadline: Duration,
    /// After how long a call to the log counts as unanswered, and an append without an answer as one of unknown outcome.
    pub append_timeout: Duration,
}

impl Default for SequencerOptions {
    fn default() -> Self {
        SequencerOptions {
            queue_max: 4_096,
            batch_max: 512,
            cached_wallets_max: 100_000,
            command_deadline: Duration::from_secs(5),
            append_timeout: Duration::from_secs(10),
        }
    }
}

/// When a caller who was turned away should try again.
pub(crate) const RETRY_AFTER: Duration = Duration::from_secs(1);

/// The callers' end of the write path. Cheap to clone.
#[derive(Clone, Debug)]
pub struct CommandService {
    queue: mpsc::Sender<Job>,
    /// Rung while [`foresight::MANY`] commands or more wait.
    many_wait: Arc<Notify>,
    command_deadline: Duration,
}

/// A command on its way through the queue.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) request: Request,
    pub(crate) reply: oneshot::Sender<Result<Answer, CommandError>>,
    pub(crate) claim: Arc<Claim>,
}

/// Who has the say over a waiting command: the caller, who may give up, or the sequencer, once it has taken it.
#[derive(Debug, Default)]
pub(crate) struct Claim(AtomicU8);

impl Claim {
    const WAITING: u8 = 0;
    const TAKEN: u8 = 1;
    const GIVEN_UP: u8 = 2;

    pub(crate) fn take(&self) -> bool {
        self.0.compare_exchange(Self::WAITING, Self::TAKEN, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// Whether the command will certainly never be done.
    fn give_up(&self) -> bool {
        self.0.compare_exchange(Self::WAITING, Self::GIVEN_UP, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }
}

impl CommandService {
    /// A service, and the queue whose commands somebody has to answer.
    pub(crate) fn new(options: &SequencerOptions) -> (Self, mpsc::Receiver<Job>) {
        let (queue, jobs) = mpsc::channel(options.queue_max.max(1));
        (CommandService { queue, many_wait: Arc::default(), command_deadline: options.command_deadline }, jobs)
    }

    /// Executes a command and waits until it is durable.
    ///
    /// Dropping the future does not undo anything: a command that has been queued may still happen.
    ///
    /// # Errors
    /// [`CommandError`]. Of all but [`CommandError::Unavailable`] with `maybe_done` it is certain that nothing was changed.
    pub async fn execute(&self, request: Request) -> Result<Answer, CommandError> {
        let (reply, answer) = oneshot::channel();
        let claim = Arc::new(Claim::default());
        self.queue.try_send(Job { request, reply, claim: Arc::clone(&claim) }).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => CommandError::Busy { retry_after: RETRY_AFTER },
            mpsc::error::TrySendError::Closed(_) => {
                CommandError::Unavailable { maybe_done: false, retry_after: RETRY_AFTER }
            }
        })?;
        if self.queue.max_capacity() - self.queue.capacity() >= foresight::MANY {
            self.many_wait.notify_one();
        }
        match tokio::time::timeout(self.command_deadline, answer).await {
            Ok(Ok(answer)) => answer,
            // No answer in time, or the sequencer is gone with the command in its hands.
            Ok(Err(_)) | Err(_) => {
                Err(CommandError::Unavailable { maybe_done: !claim.give_up(), retry_after: RETRY_AFTER })
            }
        }
    }
}
