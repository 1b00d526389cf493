//! When as many records are parked as may be: the partitions that would have to park more are left alone, and the others go on.
//!
//! Nothing of a held partition is applied and its checkpoint stays, so nothing is lost: once there is room, it is read again from
//! there.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use crate::log::EventLog;
use crate::postgres::{count_parked, note_pause};
use crate::projection::Projection;
use crate::projection::apply::unless_stopped;
use crate::projection::runner::Loop;

/// How often to look whether there is room again. Those who make it are other processes, and do not tell.
const ROOM_LOOK: Duration = Duration::from_secs(1);

impl<P: Projection, L: EventLog> Loop<P, L> {
    /// Leaves partitions alone for now.
    pub(super) fn hold(&mut self, partitions: &BTreeSet<i32>) {
        let parked_max = self.options.parked_max;
        tracing::error!(
            projection = self.name,
            ?partitions,
            parked_max,
            "as many records are parked as may be: these partitions are paused until there is room. `wallex dlq list` shows \
             why, `wallex dlq replay` and `discard` make room"
        );
        for (_, place) in self.assigned.places().iter_mut().filter(|(partition, _)| partitions.contains(partition)) {
            place.is_held = true;
        }
        self.consumer.pause_only(partitions);
        self.waiting.retain(|record| !partitions.contains(&record.partition));
        self.note_pause(partitions, true);
        self.room_looked_at = Instant::now();
    }

    /// Goes on with the partitions that are held, if there is room by now.
    pub(super) fn release_held(&mut self) {
        let held = self.assigned.held();
        if held.is_empty() || self.room_looked_at.elapsed() < ROOM_LOOK {
            return;
        }
        self.room_looked_at = Instant::now();
        let counting = async {
            let mut connection = unless_stopped(&self.stop, self.pool.acquire()).await?;
            count_parked(&mut connection, &self.name, self.options.parked_max).await
        };
        match self.runtime.block_on(counting) {
            Ok(parked) if parked < self.options.parked_max => {}
            Ok(_) => return,
            Err(error) => {
                tracing::debug!(projection = self.name, %error, "whether there is room is not known");
                return;
            }
        }
        self.consumer.resume_but(&BTreeSet::new());
        let mut released = BTreeSet::new();
        for partition in held {
            let Some(offset) = self.assigned.places().get(&partition).map(|place| place.checkpoint.next_offset) else {
                continue;
            };
            // What it would have parked that is not in the log, a foreign producer's, stands in the topic alone.
            match self.consumer.seek(partition, offset) {
                Ok(()) => {
                    if let Some(place) = self.assigned.places().get_mut(&partition) {
                        place.is_held = false;
                    }
                    released.insert(partition);
                }
                Err(error) => {
                    tracing::warn!(projection = self.name, partition, %error, "could not go back to the checkpoint's offset");
                }
            }
        }
        tracing::info!(projection = self.name, ?released, "there is room for parked records again; going on");
        self.consumer.pause_only(&self.assigned.held());
        self.note_pause(&released, false);
    }

    /// For those who look from outside; the partitions are held, or not, whether or not it can be noted.
    fn note_pause(&self, partitions: &BTreeSet<i32>, paused: bool) {
        let partitions: Vec<i32> = partitions.iter().copied().collect();
        let noting = unless_stopped(&self.stop, note_pause(&self.pool, &self.name, &partitions, paused));
        if let Err(error) = self.runtime.block_on(noting) {
            tracing::debug!(projection = self.name, %error, "the pause was not noted");
        }
    }
}
