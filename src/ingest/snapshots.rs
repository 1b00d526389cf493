//! Snapshots of wallets whose histories are long, made of what was copied: a wallet that nobody holds in memory is then loaded from
//! one and the few events after it.
//!
//! They are taken of the copy and not where commands are decided, because a snapshot must never be ahead of the copy: whether a key
//! was used is looked for among the copied events and in those that are read after them (see [`lanes`](crate::lanes)), and what a
//! snapshot had passed over would be in neither.

use std::collections::HashSet;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::log::{EventLog, LogError, PostgresLog, SNAPSHOT_EVERY, SNAPSHOT_FORMAT, Snapshot, restore};
use crate::postgres::{CopiedEvent, Database};
use crate::wallet::WalletId;

/// Wallets that wait for their snapshot; when saving cannot keep up, further ones are let go until their next turn.
const WAITING_MAX: usize = 10_000;
/// How often they are saved at most.
const SAVE_EVERY: Duration = Duration::from_secs(1);
/// How many wallets are loaded and saved in one go.
const WALLETS_PAGE: usize = 100;

/// Takes snapshots, beside the copying, one save at a time.
pub(super) struct Snapshots {
    copy: PostgresLog,
    waiting: HashSet<WalletId>,
    saving: Option<JoinHandle<()>>,
    not_before: Instant,
}

impl Snapshots {
    pub(super) fn new(database: Database) -> Self {
        let copy = PostgresLog::new(database);
        Snapshots { copy, waiting: HashSet::new(), saving: None, not_before: Instant::now() }
    }

    /// The wallets that come past their next multiple with this page.
    pub(super) fn due(page: &[CopiedEvent]) -> Vec<WalletId> {
        let is_due = |copied: &&CopiedEvent| copied.event.revision > 0 && copied.event.revision % SNAPSHOT_EVERY == 0;
        page.iter().filter(is_due).map(|copied| copied.event.stream.clone()).collect()
    }

    /// Notes wallets whose events are copied by now.
    pub(super) fn note(&mut self, due: Vec<WalletId>) {
        for wallet in due {
            if self.waiting.len() < WAITING_MAX {
                self.waiting.insert(wallet);
            }
        }
    }

    /// Begins to save those that wait, where it is time and the ones before are not still on their way.
    pub(super) fn save(&mut self) {
        let is_free = self.saving.as_ref().is_none_or(JoinHandle::is_finished);
        if self.waiting.is_empty() || !is_free || Instant::now() < self.not_before {
            return;
        }
        self.not_before = Instant::now() + SAVE_EVERY;
        let (copy, waiting) = (self.copy.clone(), std::mem::take(&mut self.waiting));
        self.saving = Some(tokio::spawn(async move {
            let count = waiting.len();
            if let Err(error) = take(&copy, waiting.into_iter().collect()).await {
                tracing::warn!(%error, count, "snapshots were not saved; they are only a cache");
            }
        }));
    }

    /// Ends when nothing is on its way any more. Those that still wait are let go.
    pub(super) async fn finish(self) {
        if let Some(saving) = self.saving {
            // Errors are logged where they occur.
            let _ = saving.await;
        }
    }
}

async fn take(copy: &PostgresLog, mut wallets: Vec<WalletId>) -> Result<(), LogError> {
    // In one order in every process: rows taken in different orders could be a deadlock.
    wallets.sort_unstable();
    for page in wallets.chunks(WALLETS_PAGE) {
        let loaded = copy.load(page, SNAPSHOT_FORMAT).await?;
        // One that cannot be read is told to whoever asks for it.
        let snapshot = |loaded| restore(loaded).ok().map(|wallet| Snapshot::of(&wallet, loaded.stream_key));
        let mut snapshots: Vec<Snapshot> = loaded.iter().filter_map(snapshot).collect();
        snapshots.sort_unstable_by_key(|taken| taken.stream_key.0);
        copy.save_snapshots(&snapshots).await?;
    }
    Ok(())
}
