//! The partitions that a runner has, and how far each is.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::watch;

use crate::crash_point::CrashPoint;
use crate::kafka::Assignments;
use crate::log::Position;
use crate::postgres::Checkpoint;
use crate::projection::RunnerState;

/// How far one partition is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) checkpoint: Checkpoint,
    /// Since which look at the log nothing has come; `None` where something has since the last one.
    pub(super) quiet_since: Option<Instant>,
    /// Whether it is left alone until there is room for what it has to park.
    pub(super) is_held: bool,
}

impl From<Checkpoint> for Place {
    fn from(checkpoint: Checkpoint) -> Self {
        Place { checkpoint, quiet_since: Some(Instant::now()), is_held: false }
    }
}

impl Place {
    /// A record whose event is next.
    pub(super) fn take(&mut self, offset: i64, position: Position) {
        self.checkpoint.position = position;
        self.read_past(offset);
    }

    /// A record that needs no applying: its event is in the tables already, or it is not the relay's.
    pub(super) fn read_past(&mut self, offset: i64) {
        self.checkpoint.next_offset = Some(offset + 1);
        self.quiet_since = None;
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

    /// The partitions that are left alone for now.
    pub(super) fn held(&self) -> BTreeSet<i32> {
        let places = self.places();
        places.iter().filter(|(_, place)| place.is_held).map(|(partition, _)| *partition).collect()
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
