//! Receivers of transfers as they began: that one is there, and its currency, never change.

use std::sync::{MutexGuard, PoisonError};

use lru::LruCache;

use crate::lanes::Shared;
use crate::lanes::known::unusable;
use crate::lanes::metadata::CommandMetadata;
use crate::log::{EventLog, RecordedEvent, ViewError};
use crate::sequencer::Setback;
use crate::wallet::{Wallet, WalletId};

impl<L: EventLog> Shared<L> {
    /// A receiver as it began; `None` where there is none. One whose history cannot be read is an error: it can take nothing, and
    /// money that is sent to it would stay on its way.
    pub(super) async fn beginning(&self, id: &WalletId) -> Result<Option<Wallet>, Setback> {
        let held = self.beginnings().get(id).cloned();
        if held.is_some() {
            return Ok(held);
        }
        let first = self.log.read_stream(id, 0, 1).await?;
        let Some(first) = first.first() else { return Ok(None) };
        let begun = |event| Wallet::begin(id.clone(), &event, first.recorded_at).map_err(ViewError::from);
        let wallet = first.decode().map_err(ViewError::from).and_then(begun);
        let wallet = wallet.map_err(|error| unusable(id, Some(first.revision), error))?;
        if CommandMetadata::read(&first.metadata).is_none() {
            // The earlier system began it. Where one of its events cannot be read, none after it can, and so not the last.
            let end = self.log.read_stream_end(id, 1).await?;
            let last = end.last().map(RecordedEvent::decode).transpose();
            last.map_err(|error| unusable(id, None, error.into()))?;
        }
        self.beginnings().put(id.clone(), wallet.clone());
        Ok(Some(wallet))
    }

    fn beginnings(&self) -> MutexGuard<'_, LruCache<WalletId, Wallet>> {
        self.beginnings.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
