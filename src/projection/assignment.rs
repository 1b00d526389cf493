//! The partitions that a runner has, and how far each is.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::kafka::Assignments;
use crate::log::Position;
use crate::postgres::Checkpoint;

/// How far one partition is, and whether the topic is known to continue from there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) checkpoint: Checkpoint,
    /// The offset that the next record must have for nothing to lie between; `None` until the topic has shown the very record
    /// that the checkpoint names.
    pub(super) continues_at: Option<i64>,
}

impl From<Checkpoint> for Place {
    fn from(checkpoint: Checkpoint) -> Self {
        Place { checkpoint, continues_at: None }
    }
}

/// Reads the checkpoints of these partitions, making those that are not there yet. Waits as long as the database is away;
/// `None` if the runner is being stopped meanwhile.
type Load = Box<dyn Fn(&[i32]) -> Option<Vec<Checkpoint>> + Send + Sync>;

/// The partitions that a runner has. Changed from within the consumer's poll, on the runner's own thread.
pub(super) struct Assigned {
    load: Load,
    places: Mutex<BTreeMap<i32, Place>>,
}

impl Assigned {
    pub(super) fn new(load: impl Fn(&[i32]) -> Option<Vec<Checkpoint>> + Send + Sync + 'static) -> Self {
        Assigned { load: Box::new(load), places: Mutex::default() }
    }

    pub(super) fn places(&self) -> MutexGuard<'_, BTreeMap<i32, Place>> {
        // Each change is one insert or remove, so a poisoned lock guards a whole map.
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn partitions(&self) -> Vec<i32> {
        self.places().keys().copied().collect()
    }

    pub(super) fn position(&self, partition: i32) -> Option<Position> {
        self.places().get(&partition).map(|place| place.checkpoint.position)
    }
}

/// Reading begins at the record that the checkpoint names, so that it can be seen to be the same one.
pub(super) fn begin_at(checkpoint: &Checkpoint) -> Option<i64> {
    checkpoint.next_offset.map(|next| next - 1).filter(|offset| *offset >= 0)
}

impl Assignments for Assigned {
    fn assigned(&self, partitions: &[i32]) -> Vec<(i32, Option<i64>)> {
        let Some(checkpoints) = (self.load)(partitions) else {
            return Vec::new();
        };
        tracing::debug!(?partitions, "partitions assigned");
        let mut places = self.places();
        let mut begin = Vec::with_capacity(checkpoints.len());
        for checkpoint in checkpoints {
            begin.push((checkpoint.partition, begin_at(&checkpoint)));
            places.insert(checkpoint.partition, checkpoint.into());
        }
        begin
    }

    fn revoked(&self, partitions: &[i32]) {
        tracing::debug!(?partitions, "partitions revoked");
        let mut places = self.places();
        for partition in partitions {
            places.remove(partition);
        }
    }
}
