//! Transfers that are half-way: who looks is shown them, and those that somebody has left so, because the server ended between the
//! legs or could not append the second one, are taken up.

use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::lanes::Shared;
use crate::lanes::decide::leg_of;
use crate::lanes::metadata::CommandMetadata;
use crate::lanes::work::Work;
use crate::log::{EventLog, LogError, RecordedEvent};
use crate::postgres::Database;
use crate::wallet::WalletEvent;

/// How often they are looked for.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// For how long the copy must have known of one: until then the server that took it is at work on it.
const LEFT_AFTER: Duration = Duration::from_secs(3);
/// How many are taken up at once.
const TAKEN_MAX: i64 = 200;

/// A transfer whose paying leg the copy has, and whose receiving leg it does not. Serialised in camelCase.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PendingTransfer {
    /// The transfer; a return of what a receiver could not take has an id of its own.
    pub transfer_id: Uuid,
    /// Whom the money has left.
    pub from_wallet_id: String,
    /// Whom it goes to.
    pub to_wallet_id: String,
    /// How much: decimal text with the currency's digits.
    pub amount: String,
    /// The currency's code.
    pub currency: String,
    /// When it was decided.
    pub since: DateTime<Utc>,
    /// How long ago that was, in milliseconds.
    pub age_ms: i64,
}

/// Up to `limit` transfers whose money is in transit, as the copy knows it; those that it has known the longest first. Where the
/// events are in the database there are none.
///
/// # Errors
/// [`LogError`] where the database does not answer, or what it holds cannot be read.
pub async fn pending_transfers(database: &Database, limit: i64) -> Result<Vec<PendingTransfer>, LogError> {
    let debits = database.transfers_in_transit(Duration::ZERO, limit).await?;
    let now = Utc::now();
    debits.iter().map(|debit| pending_transfer(debit, now)).collect()
}

fn pending_transfer(debit: &RecordedEvent, now: DateTime<Utc>) -> Result<PendingTransfer, LogError> {
    let corrupt = |why: String| LogError::Corrupt(format!("the event at position {}: {why}", debit.position));
    match debit.decode().map_err(|error| corrupt(error.to_string()))? {
        WalletEvent::WalletDebited { amount, currency, transfer: Some(transfer), .. } => Ok(PendingTransfer {
            transfer_id: transfer.id,
            from_wallet_id: debit.stream.to_string(),
            to_wallet_id: transfer.counterparty.to_string(),
            amount: amount.to_text(currency),
            currency: currency.code().to_owned(),
            since: debit.recorded_at,
            age_ms: (now - debit.recorded_at).num_milliseconds().max(0),
        }),
        _ => Err(corrupt("it is no transfer's paying leg".to_owned())),
    }
}

/// Runs until it is dropped.
pub(super) async fn take_up<L: EventLog>(shared: Arc<Shared<L>>) {
    while !shared.stop.is_cancelled() {
        match shared.database.transfers_in_transit(LEFT_AFTER, TAKEN_MAX).await {
            Ok(debits) => {
                for recorded in debits {
                    let metadata = CommandMetadata::read(&recorded.metadata)
                        .map(|metadata| CommandMetadata { idempotency: None, ..metadata }.to_bytes());
                    let leg = recorded.decode().ok().zip(metadata);
                    let leg = leg.and_then(|(event, metadata)| leg_of(&recorded.stream, &event, metadata));
                    let Some(leg) = leg else {
                        tracing::error!(
                            position = recorded.position,
                            "a transfer in transit whose paying leg cannot be read"
                        );
                        continue;
                    };
                    // Where it is there already, its lane finds that out.
                    if shared.follow_up.send((leg.to.clone(), Work::Leg(leg))).is_err() {
                        return;
                    }
                }
            }
            Err(error) => tracing::debug!(%error, "transfers in transit could not be looked for; trying again"),
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}
