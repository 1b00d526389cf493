//! A wallet as the log has it now: what a reader sees who must never see less than an answer already given.

use chrono::{DateTime, Utc};
use thiserror::Error;

use crate::log::{EventLog, LogError, SNAPSHOT_FORMAT, apply_next, restore};
use crate::wallet::{Corrupt, EventError, Wallet, WalletEvent, WalletId};

/// A wallet and the newest part of its history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WalletView {
    /// Its state, from every event.
    pub wallet: Wallet,
    /// Its newest events with their times, oldest of them first.
    pub trail: Vec<(WalletEvent, DateTime<Utc>)>,
}

/// Why a wallet could not be read.
#[derive(Debug, Error)]
pub enum ViewError {
    /// The log did not answer.
    #[error(transparent)]
    Log(#[from] LogError),
    /// An event cannot be read.
    #[error(transparent)]
    Event(#[from] EventError),
    /// The events contradict each other.
    #[error(transparent)]
    Corrupt(#[from] Corrupt),
}

/// Reads a wallet from the log, with its newest `trail_max` events; `None` if there is none of that name.
///
/// # Errors
/// [`ViewError`] where the log is away or the wallet's history is wrong.
pub async fn read_wallet<L: EventLog>(
    log: &L,
    id: &WalletId,
    trail_max: usize,
) -> Result<Option<WalletView>, ViewError> {
    // The state first: the trail is read after it and reaches at least as far, and what it has more is applied.
    let Some(loaded) = log.load(std::slice::from_ref(id), SNAPSHOT_FORMAT).await?.pop() else {
        return Ok(None);
    };
    let mut wallet = restore(&loaded)?;
    let newest = log.read_stream_end(id, trail_max).await?;
    // A wallet in heavy use may have got more events between the two reads than the trail is long.
    if let Some(first) = newest.first()
        && let Ok(between @ 1..) = usize::try_from(first.revision - wallet.version - 1)
    {
        for recorded in log.read_stream(id, wallet.version + 1, between).await? {
            apply_next(&mut wallet, &recorded)?;
        }
    }
    let mut trail = Vec::with_capacity(newest.len());
    for recorded in newest {
        if recorded.revision > wallet.version {
            apply_next(&mut wallet, &recorded)?;
        }
        trail.push((recorded.decode()?, recorded.recorded_at));
    }
    Ok(Some(WalletView { wallet, trail }))
}
