//! The wallets that the sequencer holds, all of them true as of one head: loaded when they are first asked for, kept true by
//! its own appends and by reading what others have appended.

use std::collections::HashMap;
use std::num::NonZeroUsize;

use lru::LruCache;

use crate::log::{EventLog, Position, SNAPSHOT_FORMAT, apply_next, restore};
use crate::sequencer::batch::Held;
use crate::sequencer::setback::Setback;
use crate::sequencer::{CommandError, Job};
use crate::wallet::WalletId;

/// Of a tail longer than this it is cheaper to forget every wallet than to read it.
const CATCH_UP_EVENTS_MAX: i64 = 20_000;
/// How many events of the tail are read at once.
const CATCH_UP_PAGE: usize = 2_000;

/// Recently used wallets.
pub(super) struct Memory {
    wallets: LruCache<WalletId, Held>,
    /// The head as of which `wallets` is true; `None` before the first batch and after everything was forgotten.
    head: Option<Position>,
}

impl Memory {
    /// An empty memory for so many wallets; the least recently used one goes first.
    pub(super) fn new(wallets_max: usize) -> Self {
        let wallets_max = NonZeroUsize::new(wallets_max).unwrap_or(NonZeroUsize::MIN);
        Memory { wallets: LruCache::new(wallets_max), head: None }
    }

    pub(super) fn head(&self) -> Option<Position> {
        self.head
    }

    /// A wallet, if it is here.
    pub(super) fn held(&mut self, id: &WalletId) -> Option<&Held> {
        self.wallets.get(id)
    }

    pub(super) fn forget_everything(&mut self) {
        self.wallets.clear();
        self.head = None;
    }

    /// Makes it true as of this head, by reading what lies between.
    pub(super) async fn advance<L: EventLog>(&mut self, log: &L, actual: Position) -> Result<(), Setback> {
        match self.head {
            Some(head) if head == actual => {}
            Some(head) if head < actual && actual - head <= CATCH_UP_EVENTS_MAX => {
                self.catch_up(log, head, actual).await?;
            }
            // Too far behind to catch up, or before what is held: a log that was restored from the past.
            _ => self.wallets.clear(),
        }
        self.head = Some(actual);
        Ok(())
    }

    async fn catch_up<L: EventLog>(&mut self, log: &L, mut from: Position, to: Position) -> Result<(), Setback> {
        while from < to {
            let page = log.read(from, CATCH_UP_PAGE).await?;
            let Some(last) = page.last() else {
                return Err(Setback::corrupt(format!("the log ends at {from}, though its head is {to}")));
            };
            from = last.position;
            for recorded in &page {
                let Some(held) = self.wallets.peek_mut(&recorded.stream) else { continue };
                // A wallet that was loaded lately may hold the event already.
                if recorded.revision <= held.wallet.version {
                    continue;
                }
                if let Err(reason) = apply_next(&mut held.wallet, recorded) {
                    // Only this wallet is wrong: whoever asks for it is told so when it is loaded.
                    tracing::error!(%reason, wallet = %recorded.stream, "an event does not fit its wallet");
                    self.wallets.pop(&recorded.stream);
                }
            }
        }
        Ok(())
    }

    /// The wallets that the jobs touch: those in memory, and the others loaded all at once. A job whose wallet cannot be
    /// read is answered here and now, so that one bad history does not keep the others from working.
    pub(super) async fn load<L: EventLog>(
        &mut self,
        log: &L,
        jobs: &mut Vec<Job>,
    ) -> Result<HashMap<WalletId, Held>, Setback> {
        let mut found = HashMap::new();
        let mut cold: Vec<WalletId> = Vec::new();
        for job in jobs.iter() {
            for id in job.request.command.wallet_ids() {
                if found.contains_key(id) {
                    continue;
                }
                match self.held(id) {
                    Some(held) => {
                        found.insert(id.clone(), held.clone());
                    }
                    None => cold.push(id.clone()),
                }
            }
        }
        if cold.is_empty() {
            return Ok(found);
        }
        cold.sort_unstable();
        cold.dedup();
        let mut unreadable: HashMap<WalletId, String> = HashMap::new();
        for loaded in log.load(&cold, SNAPSHOT_FORMAT).await? {
            match restore(&loaded) {
                Ok(wallet) => {
                    let held = Held { wallet, stream_key: Some(loaded.stream_key) };
                    self.wallets.put(loaded.stream.clone(), held.clone());
                    found.insert(loaded.stream, held);
                }
                Err(error) => {
                    unreadable.insert(loaded.stream, error.to_string());
                }
            }
        }
        if !unreadable.is_empty() {
            let reason = |job: &Job| job.request.command.wallet_ids().find_map(|id| unreadable.get(id));
            for job in jobs.extract_if(.., |job| reason(job).is_some()) {
                let error = CommandError::Corrupt(reason(&job).cloned().unwrap_or_default());
                // The caller may have gone.
                let _ = job.reply.send(Err(error));
            }
        }
        Ok(found)
    }

    /// Takes in the states that an append of our own made, true as of the new head. `advanced` is told of each wallet that
    /// changed, as it is and with the version that was held before.
    pub(super) fn keep(
        &mut self,
        head: Position,
        wallets: HashMap<WalletId, Held>,
        mut advanced: impl FnMut(&Held, i64),
    ) {
        self.head = Some(head);
        for (id, held) in wallets {
            let before = self.wallets.peek(&id).map_or(-1, |before| before.wallet.version);
            if held.wallet.version != before {
                advanced(&held, before);
                self.wallets.put(id, held);
            }
        }
    }
}
