//! Making a batch durable: the head's lock under contention, the append, and finding out what became of one that nobody
//! answered.

use tokio_util::sync::CancellationToken;

use crate::log::{Appended, Batch, EventLog, LogError, Position};
use crate::sequencer::RETRY_AFTER;
use crate::sequencer::setback::{Setback, backoff};

/// For how many batches after a lost swap the head is locked before deciding.
const CONTENDED_BATCHES: u32 = 16;

/// The one hand in this process that appends.
pub(super) struct Appender<L> {
    log: L,
    contended_batches: u32,
    /// Whether other writers wait for this one's next append.
    holds_head: bool,
}

impl<L: EventLog> Appender<L> {
    pub(super) fn new(log: L) -> Self {
        Appender { log, contended_batches: 0, holds_head: false }
    }

    /// The head to decide on. Without contention it is the one that is known already: the swap finds out whether it still
    /// holds. Under contention it is locked first: then nobody else can append before we have.
    pub(super) async fn settle_head(&mut self, known: Option<Position>) -> Result<Position, LogError> {
        let actual = match known {
            Some(head) if self.contended_batches == 0 => return Ok(head),
            None if self.contended_batches == 0 => return self.log.head().await,
            _ => self.log.lock_head().await?,
        };
        self.holds_head = true;
        match known {
            Some(head) if head == actual => self.contended_batches = self.contended_batches.saturating_sub(1),
            // Others go on writing.
            Some(_) => self.lost_the_race(),
            None => {}
        }
        Ok(actual)
    }

    /// Whether others write too: then the head is to be settled before each decision.
    pub(super) fn is_contended(&self) -> bool {
        self.contended_batches > 0
    }

    /// Others write too, and were faster.
    pub(super) fn lost_the_race(&mut self) {
        self.contended_batches = CONTENDED_BATCHES;
    }

    /// Lets other writers go on, where a batch has failed between the lock and the append.
    pub(super) async fn release_head(&mut self) {
        if std::mem::take(&mut self.holds_head)
            && let Err(error) = self.log.append(&Batch::default()).await
        {
            // The lock is gone with the connection all the same.
            tracing::debug!(%error, "the head's lock was not released in the usual way");
        }
    }

    /// Appends the batch, sending it again for as long as its outcome is unknown. `false`: nothing was written, the
    /// decisions were made on a state that no longer holds.
    pub(super) async fn make_durable(&mut self, batch: &Batch, stop: &CancellationToken) -> Result<bool, Setback> {
        let Some(expected) = batch.expected_head else {
            return Err(Setback::corrupt("a batch without an expected head".to_owned()));
        };
        if batch.events.is_empty() && !self.holds_head {
            // Rejections and replays only: they are true if the head has not moved.
            return Ok(self.log.head().await? == expected);
        }
        let mut waits = backoff();
        let mut outcome_unknown = false;
        loop {
            let attempt = self.log.append(batch).await;
            // Whatever became of it: an answer ends the lock, and so does the loss of the connection.
            self.holds_head = false;
            let found_out = match attempt {
                Ok(Appended::At(_)) => Ok(true),
                Ok(Appended::Conflict) if outcome_unknown => self.is_in_the_log(batch, expected).await,
                Ok(Appended::Conflict) => Ok(false),
                Err(error) => Err(error),
            };
            let reason = match found_out {
                Ok(ours) => return Ok(ours),
                Err(LogError::Away(reason)) => reason,
                // This attempt has failed for good, but an earlier one may have succeeded.
                Err(other) if outcome_unknown => return Err(Setback::Unknown(other.to_string())),
                Err(other) => return Err(other.into()),
            };
            outcome_unknown = !batch.events.is_empty();
            tracing::warn!(reason, events = batch.events.len(), "an append's outcome is unknown; sending it again");
            if stop.is_cancelled() {
                return Err(if outcome_unknown { Setback::Unknown(reason) } else { Setback::Away(reason) });
            }
            tokio::time::sleep(waits.next().unwrap_or(RETRY_AFTER)).await;
        }
    }

    /// Whether an earlier attempt at this batch was the one that moved the head: its event ids tell.
    async fn is_in_the_log(&self, batch: &Batch, expected: Position) -> Result<bool, LogError> {
        let next = self.log.read(expected, 1).await?;
        Ok(next.first().map(|event| event.event_id) == batch.events.first().map(|event| event.event_id))
    }
}
