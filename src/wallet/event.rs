//! What has happened to a wallet, and its JSON: the payload that the log keeps and Kafka carries.
//!
//! Amounts in the payload are decimal text with the currency's digits, so that a person and any JSON reader see the
//! exact value. Each event carries the balance as of itself and its currency: a consumer needs no state.

use serde::{Deserialize, Serialize};
use thiserror::Error;
use uuid::Uuid;

use crate::money::{Amount, Currency, MoneyError};
use crate::wallet::earlier::{self, EARLIER_SYSTEM_VERSION, EarlierError};
use crate::wallet::{Description, OwnerId, WalletId};

/// The version of the payloads that this program writes, `eventVersion` on the wire.
pub const EVENT_VERSION: u32 = 1;

/// A fact about one wallet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WalletEvent {
    /// The wallet began, empty.
    WalletCreated {
        /// Whose it is.
        owner_id: OwnerId,
        /// What it holds.
        currency: Currency,
    },
    /// Money came in.
    WalletCredited {
        /// How much, in minor units.
        amount: Amount,
        /// The wallet's balance after it, in minor units.
        balance: Amount,
        /// The wallet's currency.
        currency: Currency,
        /// What for.
        description: Option<Description>,
        /// The transfer whose receiving leg this is.
        transfer: Option<Transfer>,
    },
    /// Money went out.
    WalletDebited {
        /// How much, in minor units.
        amount: Amount,
        /// The wallet's balance after it, in minor units.
        balance: Amount,
        /// The wallet's currency.
        currency: Currency,
        /// What for.
        description: Option<Description>,
        /// The transfer whose paying leg this is.
        transfer: Option<Transfer>,
    },
}

/// Which transfer a credit or debit is one leg of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Transfer {
    /// Shared by both legs.
    pub id: Uuid,
    /// The wallet at the other end.
    pub counterparty: WalletId,
}

/// Why stored bytes are no event of ours. Such a record is kept, parked and reported, never skipped.
#[derive(Debug, Error)]
pub enum EventError {
    /// The type is not one that this program knows.
    #[error("unknown event type {0:?}")]
    UnknownType(String),
    /// The version is newer than this program.
    #[error("event version {0} is not one that this program reads (it reads {EVENT_VERSION})")]
    UnknownVersion(u32),
    /// The system before wallex wrote it, and it could not be brought into our terms.
    #[error("an event of the earlier system, kept as it is: {0}")]
    Earlier(#[from] EarlierError),
    /// The payload is not the JSON that the type calls for.
    #[error("the payload of {event_type} cannot be read: {source}")]
    Payload {
        /// The event's type.
        event_type: &'static str,
        /// What the JSON reader says.
        source: serde_json::Error,
    },
    /// An amount in the payload is not one of its currency.
    #[error("the payload of {event_type} holds a wrong {field}: {source}")]
    Money {
        /// The event's type.
        event_type: &'static str,
        /// Which field.
        field: &'static str,
        /// What is wrong with it.
        source: MoneyError,
    },
}

/// A history that contradicts itself: an event that cannot follow the state before it.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("the history of wallet {wallet_id} contradicts itself at revision {revision}: {reason}")]
pub struct Corrupt {
    /// The wallet.
    pub wallet_id: WalletId,
    /// The revision of the event that does not fit.
    pub revision: i64,
    /// Why it does not fit.
    pub reason: String,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct CreatedPayload {
    owner_id: OwnerId,
    currency: Currency,
}

#[derive(Serialize, Deserialize)]
struct MovementPayload {
    amount: String,
    balance: String,
    currency: Currency,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    description: Option<Description>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    transfer: Option<Transfer>,
}

pub(super) const CREATED: &str = "WalletCreated";
pub(super) const CREDITED: &str = "WalletCredited";
pub(super) const DEBITED: &str = "WalletDebited";

impl WalletEvent {
    /// The type's name in the log, on the wire and in audit trails.
    pub fn event_type(&self) -> &'static str {
        match self {
            WalletEvent::WalletCreated { .. } => CREATED,
            WalletEvent::WalletCredited { .. } => CREDITED,
            WalletEvent::WalletDebited { .. } => DEBITED,
        }
    }

    /// The amount moved, if any.
    pub fn amount(&self) -> Option<Amount> {
        match self {
            WalletEvent::WalletCreated { .. } => None,
            WalletEvent::WalletCredited { amount, .. } | WalletEvent::WalletDebited { amount, .. } => Some(*amount),
        }
    }

    /// The wallet's balance after the event, in minor units.
    pub fn balance(&self) -> Amount {
        match self {
            WalletEvent::WalletCreated { .. } => Amount::ZERO,
            WalletEvent::WalletCredited { balance, .. } | WalletEvent::WalletDebited { balance, .. } => *balance,
        }
    }

    /// The wallet's currency.
    pub fn currency(&self) -> Currency {
        match self {
            WalletEvent::WalletCreated { currency, .. }
            | WalletEvent::WalletCredited { currency, .. }
            | WalletEvent::WalletDebited { currency, .. } => *currency,
        }
    }

    /// What the movement was for.
    pub fn description(&self) -> Option<&Description> {
        match self {
            WalletEvent::WalletCreated { .. } => None,
            WalletEvent::WalletCredited { description, .. } | WalletEvent::WalletDebited { description, .. } => {
                description.as_ref()
            }
        }
    }

    /// The transfer that the movement is a leg of.
    pub fn transfer(&self) -> Option<&Transfer> {
        match self {
            WalletEvent::WalletCreated { .. } => None,
            WalletEvent::WalletCredited { transfer, .. } | WalletEvent::WalletDebited { transfer, .. } => {
                transfer.as_ref()
            }
        }
    }

    /// The payload as JSON bytes.
    pub fn to_payload(&self) -> Vec<u8> {
        let json = match self {
            WalletEvent::WalletCreated { owner_id, currency } => {
                serde_json::to_vec(&CreatedPayload { owner_id: owner_id.clone(), currency: *currency })
            }
            WalletEvent::WalletCredited { amount, balance, currency, description, transfer }
            | WalletEvent::WalletDebited { amount, balance, currency, description, transfer } => {
                serde_json::to_vec(&MovementPayload {
                    amount: amount.to_text(*currency),
                    balance: balance.to_text(*currency),
                    currency: *currency,
                    description: description.clone(),
                    transfer: transfer.clone(),
                })
            }
        };
        json.expect("plain structs of strings always serialise")
    }

    /// Reads a payload back.
    ///
    /// # Errors
    /// [`EventError`] where the type, the version or the payload is not ours.
    pub fn from_payload(event_type: &str, event_version: u32, payload: &[u8]) -> Result<Self, EventError> {
        if event_version == EARLIER_SYSTEM_VERSION {
            return Err(earlier::why_left(event_type, payload).into());
        }
        if event_version != EVENT_VERSION {
            return Err(EventError::UnknownVersion(event_version));
        }
        match event_type {
            CREATED => {
                let CreatedPayload { owner_id, currency } = serde_json::from_slice(payload)
                    .map_err(|source| EventError::Payload { event_type: CREATED, source })?;
                Ok(WalletEvent::WalletCreated { owner_id, currency })
            }
            CREDITED => {
                let (amount, balance, payload) = read_movement(CREDITED, payload)?;
                let MovementPayload { currency, description, transfer, .. } = payload;
                Ok(WalletEvent::WalletCredited { amount, balance, currency, description, transfer })
            }
            DEBITED => {
                let (amount, balance, payload) = read_movement(DEBITED, payload)?;
                let MovementPayload { currency, description, transfer, .. } = payload;
                Ok(WalletEvent::WalletDebited { amount, balance, currency, description, transfer })
            }
            other => Err(EventError::UnknownType(other.chars().take(64).collect())),
        }
    }
}

fn read_movement(event_type: &'static str, payload: &[u8]) -> Result<(Amount, Amount, MovementPayload), EventError> {
    let payload: MovementPayload =
        serde_json::from_slice(payload).map_err(|source| EventError::Payload { event_type, source })?;
    let read = |field: &'static str, text: &str| {
        Amount::parse(text, payload.currency).map_err(|source| EventError::Money { event_type, field, source })
    };
    let (amount, balance) = (read("amount", &payload.amount)?, read("balance", &payload.balance)?);
    Ok((amount, balance, payload))
}
