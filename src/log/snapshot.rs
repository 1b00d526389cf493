//! A wallet's state as bytes, so that a long history need not be read again. Only a cache: the events are the truth.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::log::{LoadedStream, RecordedEvent, Revision, Snapshot, StreamKey, ViewError};
use crate::money::{Amount, Currency};
use crate::wallet::{Corrupt, OwnerId, Wallet, WalletStatus};

/// The encoding below. A change of [`Wallet`]'s meaning gets a new number; snapshots of another number are not read.
pub const SNAPSHOT_FORMAT: i32 = 1;

/// A snapshot is taken each time a wallet's version passes a multiple of this, so that a cold load reads little more than
/// this many events.
pub const SNAPSHOT_EVERY: Revision = 100;

#[derive(Serialize, Deserialize)]
struct State {
    owner_id: OwnerId,
    currency: Currency,
    balance_minor: i64,
    status: WalletStatus,
    created_at: DateTime<Utc>,
    updated_at: DateTime<Utc>,
}

impl Snapshot {
    /// The wallet as it is, of the stream with this name in the store.
    pub(crate) fn of(wallet: &Wallet, stream_key: StreamKey) -> Self {
        let state = State {
            owner_id: wallet.owner_id.clone(),
            currency: wallet.currency,
            balance_minor: wallet.balance.minor(),
            status: wallet.status,
            created_at: wallet.created_at,
            updated_at: wallet.updated_at,
        };
        let state = serde_json::to_vec(&state).expect("a plain struct always serialises");
        Snapshot { stream_key, revision: wallet.version, format: SNAPSHOT_FORMAT, state }
    }
}

/// The wallet that a loaded stream holds. A snapshot that cannot be read is an error and not silently passed over: it was
/// written in this very format, so something has damaged it.
///
/// # Errors
/// [`ViewError`] where the snapshot or an event cannot be read, or events contradict each other.
pub fn restore(loaded: &LoadedStream) -> Result<Wallet, ViewError> {
    let mut tail = loaded.tail.iter();
    let damaged = |reason: String| Corrupt { wallet_id: loaded.stream.clone(), revision: 0, reason };
    let mut wallet = match (&loaded.snapshot, tail.as_slice().first()) {
        (Some(snapshot), _) => {
            let state: State = serde_json::from_slice(&snapshot.state)
                .map_err(|error| damaged(format!("its snapshot cannot be read: {error}")))?;
            Wallet {
                id: loaded.stream.clone(),
                owner_id: state.owner_id,
                currency: state.currency,
                balance: Amount::from_minor(state.balance_minor)
                    .ok_or_else(|| damaged("its snapshot has a negative balance".to_owned()))?,
                status: state.status,
                version: snapshot.revision,
                created_at: state.created_at,
                updated_at: state.updated_at,
            }
        }
        (None, Some(first)) => {
            tail.next();
            Wallet::begin(loaded.stream.clone(), &first.decode()?, first.recorded_at)?
        }
        (None, None) => return Err(damaged("it has no events".to_owned()).into()),
    };
    for recorded in tail {
        apply_next(&mut wallet, recorded)?;
    }
    Ok(wallet)
}

/// Folds the next recorded event in. It must be the very next: two lost events can cancel each other out, and then only
/// their revisions tell that they are missing.
pub(crate) fn apply_next(wallet: &mut Wallet, recorded: &RecordedEvent) -> Result<(), ViewError> {
    if recorded.revision != wallet.version + 1 {
        let reason = format!("the event after revision {} is {}", wallet.version, recorded.revision);
        return Err(Corrupt { wallet_id: wallet.id.clone(), revision: wallet.version + 1, reason }.into());
    }
    wallet.apply(&recorded.decode()?, recorded.recorded_at)?;
    Ok(())
}
