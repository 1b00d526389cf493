//! The partitions that a runner has, and how far each is.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use crate::crash_point::CrashPoint;
use crate::kafka::Assignments;
use crate::log::Position;
use crate::postgres::Checkpoint;
use crate::projection::RunnerState;

/// How far one partition is, and whether the topic is known to continue from there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) checkpoint: Checkpoint,
    /// The offset that the next record must have for no event to lie between. `None` while that is not known: the log has to
    /// be asked then whether it has events of this partition between the checkpoint and that record.
    pub(super) continues_at: Option<i64>,
    /// Whether nothing has come since the last look at the log.
    pub(super) is_quiet: bool,
}

impl From<Checkpoint> for Place {
    fn from(checkpoint: Checkpoint) -> Self {
        Place { checkpoint, continues_at: None, is_quiet: true }
    }
}

impl Place {
    /// A record whose event is next.
    pub(super) fn take(&mut self, offset: i64, position: Position) {
        self.checkpoint.position = position;
        self.read_past(offset);
        self.continues_at = Some(offset + 1);
    }

    /// A record whose event is in the tables already.
    pub(super) fn pass_over(&mut self, offset: i64) {
        let continues = self.continues_at == Some(offset);
        self.read_past(offset);
        self.continues_at = continues.then_some(offset + 1);
    }

    /// A record that is not the relay's. It may stand where an event should, so the log is asked before the next one.
    pub(super) fn take_foreign(&mut self, offset: i64) {
        self.read_past(offset);
        self.continues_at = None;
    }

    fn read_past(&mut self, offset: i64) {
        self.checkpoint.next_offset = Some(offset + 1);
        self.is_quiet = false;
    }
}

/// Reads the checkpoints of these partitions, making those that are not there yet. Waits as long as the database is away;
/// `None` if the runner is being stopped meanwhile.
type Load = Box<dyn Fn(&[i32]) -> Option<Vec<Checkpoint>> + Send + Sync>;

/// The partitions that a runner has. Changed from within the consumer's poll, on the runner's own thread.
pub(super) struct Assigned {
    load: Load,
    places: Mutex<BTreeMap<i32, Place>>,
    has_changed: AtomicBool,
    state: watch::Sender<RunnerState>,
}

impl Assigned {
    pub(super) fn new(
        load: impl Fn(&[i32]) -> Option<Vec<Checkpoint>> + Send + Sync + 'static,
        state: watch::Sender<RunnerState>,
    ) -> Self {
        Assigned { load: Box::new(load), places: Mutex::default(), has_changed: AtomicBool::new(false), state }
    }

    pub(super) fn places(&self) -> MutexGuard<'_, BTreeMap<i32, Place>> {
        // Each change is one insert or remove, so a poisoned lock guards a whole map.
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads the checkpoints again; where to begin in each partition. `None` if the runner is being stopped.
    pub(super) fn reload(&self) -> Option<Vec<(i32, Option<i64>)>> {
        let partitions: Vec<i32> = self.places().keys().copied().collect();
        self.load(&partitions)
    }

    /// Whether partitions have come or gone since this was last asked.
    pub(super) fn take_change(&self) -> bool {
        self.has_changed.swap(false, Ordering::Relaxed)
    }

    /// Tells whoever watches that the runner is at work.
    pub(super) fn is_running(&self) {
        let partitions = self.places().keys().copied().collect();
        self.state.send_replace(RunnerState::Running { partitions });
    }

    /// Tells whoever watches why the runner does not go on.
    pub(super) fn is_held_up(&self, reason: &str) {
        self.state.send_replace(RunnerState::HeldUp { reason: reason.to_owned() });
    }

    fn load(&self, partitions: &[i32]) -> Option<Vec<(i32, Option<i64>)>> {
        let checkpoints = (self.load)(partitions)?;
        let mut places = self.places();
        let mut begin = Vec::with_capacity(checkpoints.len());
        for checkpoint in checkpoints {
            begin.push((checkpoint.partition, checkpoint.next_offset));
            places.insert(checkpoint.partition, checkpoint.into());
        }
        Some(begin)
    }
}

impl Assignments for Assigned {
    fn assigned(&self, partitions: &[i32]) -> Vec<(i32, Option<i64>)> {
        let begin = self.load(partitions).unwrap_or_default();
        tracing::debug!(?begin, "partitions assigned");
        CrashPoint::Assigned.pass();
        self.has_changed.store(true, Ordering::Relaxed);
        self.is_running();
        begin
    }

    fn revoked(&self, partitions: &[i32]) {
        tracing::debug!(?partitions, "partitions revoked");
        CrashPoint::Revoked.pass();
        self.places().retain(|partition, _| !partitions.contains(partition));
        self.has_changed.store(true, Ordering::Relaxed);
        self.is_running();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place() -> Place {
        Checkpoint { partition: 0, position: 10, next_offset: Some(5) }.into()
    }

    #[test]
    fn a_topic_continues_only_after_an_event_that_was_taken_from_it() {
        let mut place = place();
        assert_eq!(place.continues_at, None);
        place.pass_over(5);
        assert_eq!(place.continues_at, None, "an event passed over says nothing of those after it");
        place.take(6, 11);
        assert_eq!((place.continues_at, place.checkpoint.position), (Some(7), 11));
        place.pass_over(7);
        assert_eq!((place.continues_at, place.checkpoint.position), (Some(8), 11));
    }

    #[test]
    fn a_topic_does_not_continue_over_a_hole_or_a_foreign_record() {
        let mut place = place();
        place.take(6, 11);
        place.pass_over(9);
        assert_eq!(place.continues_at, None);
        place.take(10, 12);
        place.take_foreign(11);
        assert_eq!((place.continues_at, place.checkpoint.position), (None, 12));
        assert_eq!(place.checkpoint.next_offset, Some(12));
    }
}
