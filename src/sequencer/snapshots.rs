//! Snapshots on their way into the store: beside the write path, now and then, and one save at a time.

use std::collections::HashMap;
use std::time::Duration;

use tokio::task::JoinHandle;

use crate::log::{EventLog, SNAPSHOT_EVERY, Snapshot};
use crate::sequencer::batch::Held;

/// Wallets whose snapshot waits to be saved; when saving cannot keep up, further ones are let go (they are only a cache).
const WAITING_MAX: usize = 10_000;
/// How often they are saved at most: each save is a commit that the write path's own would wait for.
pub(super) const SAVE_EVERY: Duration = Duration::from_secs(1);

/// Takes snapshots and saves them.
pub(super) struct Snapshots<L> {
    log: L,
    /// The newest of each stream, by the stream's name in the store.
    waiting: HashMap<i64, Snapshot>,
    saving: Option<JoinHandle<()>>,
}

impl<L: EventLog> Snapshots<L> {
    pub(super) fn new(log: L) -> Self {
        Snapshots { log, waiting: HashMap::new(), saving: None }
    }

    /// Takes one where the wallet has come past the next multiple since version `before`, -1 of a new wallet.
    pub(super) fn take(&mut self, held: &Held, before: i64) {
        let is_due = held.wallet.version / SNAPSHOT_EVERY > before.max(0) / SNAPSHOT_EVERY;
        if let (true, Some(stream_key)) = (is_due, held.stream_key)
            && (self.waiting.len() < WAITING_MAX || self.waiting.contains_key(&stream_key.0))
        {
            self.waiting.insert(stream_key.0, Snapshot::of(&held.wallet, stream_key));
        }
    }

    pub(super) fn are_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Begins to save those that wait, unless the ones before are still on their way.
    pub(super) fn save(&mut self) {
        if self.saving.as_ref().is_some_and(|saving| !saving.is_finished()) {
            return;
        }
        let mut newest: Vec<Snapshot> = std::mem::take(&mut self.waiting).into_values().collect();
        // In one order in every process: rows taken in different orders could be a deadlock.
        newest.sort_unstable_by_key(|taken| taken.stream_key.0);
        let log = self.log.clone();
        self.saving = Some(tokio::spawn(async move {
            if let Err(error) = log.save_snapshots(&newest).await {
                tracing::warn!(%error, count = newest.len(), "snapshots were not saved; they are only a cache");
            }
        }));
    }

    /// Saves those that still wait, and ends when nothing is on its way any more.
    pub(super) async fn finish(mut self) {
        // Errors of a save are logged where they occur.
        if let Some(saving) = self.saving.take() {
            let _ = saving.await;
        }
        if self.are_waiting() {
            self.save();
        }
        if let Some(saving) = self.saving {
            let _ = saving.await;
        }
    }
}
