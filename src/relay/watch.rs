//! What a session looks at beside the records: whether it gets on, and whether the topic is still the one that it was.

use std::time::{Duration, Instant};

use crate::kafka::batch_bytes_max;
use crate::log::EventLog;
use crate::postgres::RelayState;
use crate::relay::session::Session;
use crate::relay::setback::Setback;

/// How often the topic is looked at.
pub(super) const EVERY: Duration = Duration::from_secs(10);
/// How long an acknowledgement may take before the relay says that it waits.
const SLOW: Duration = Duration::from_secs(2);

impl<L: EventLog> Session<'_, '_, L> {
    /// Says what the relay is doing.
    pub(super) fn say_how_it_stands(&mut self, is_held_up: bool) -> Result<(), Setback> {
        let is_slow = self.acknowledged.oldest_sent_at().is_some_and(|sent_at| sent_at.elapsed() > SLOW);
        let (state, reason) = if is_slow {
            (RelayState::Waiting, Some(self.publisher.trouble()))
        } else if is_held_up {
            let reason = "the embedded broker holds no more: ledger and read model have to take what is there first";
            (RelayState::Waiting, Some(reason.to_owned()))
        } else if self.acknowledged.through() < self.refill_to {
            (RelayState::Refilling, Some("the topic lacked what was published before".to_owned()))
        } else {
            (RelayState::Publishing, None)
        };
        self.lease.say(state, reason)
    }

    /// Looks whether the topic is still there and has not gone back: whoever deletes it and makes it anew, or restores it from
    /// the past, tells nobody. `true` if it takes larger records than before and some are withheld.
    pub(super) fn watch(&mut self) -> Result<bool, Setback> {
        self.watch_due = Instant::now() + EVERY;
        match self.publisher.ends() {
            Ok(None) => return Err(Setback::from("the topic is gone")),
            Ok(Some(ends)) => {
                let (partitions, known) = (0.., &self.ends);
                if let Some((partition, (end, known))) =
                    partitions.zip(ends.iter().zip(known)).find(|(_, (end, known))| end < known)
                {
                    return Err(Setback::from(format!(
                        "partition {partition} ends at offset {end} and has ended at {known}: the topic is another one"
                    )));
                }
            }
            // What is away is waited for, and noticed by what is not acknowledged.
            Err(reason) => tracing::debug!(reason, "the topic could not be looked at"),
        }
        let said =
            if self.withheld.is_empty() { None } else { self.runtime.block_on(batch_bytes_max(&self.relay.kafka)) };
        Ok(said.is_some_and(|bytes| bytes > self.record_bytes_max))
    }
}
