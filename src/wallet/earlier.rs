//! What the system before wallex wrote, and what it is in our terms.
//!
//! Its events carry less than ours: no currency and no balance, no version, and amounts that binary floating point numbers were.
//! They are read one after the other, each with what the one before it has left ([`Before`]), and come out as if we had
//! written them. Where that is not possible exactly, the event is left as it is under [`EARLIER_SYSTEM_VERSION`], which nobody
//! reads, and with it every later one of that wallet: it is parked, and [`EarlierError`] says why.
//!
//! - **Amounts** are JSON numbers in major units of [`EARLIER_SYSTEM_CURRENCY`], the traces of floats in them
//!   ([`Amount::parse_float`]).
//! - **`initialBalance`** of a `WalletCreated` repeats what the next event credits. It is not looked at.
//! - **Legs of transfers** stay plain credits and debits with their descriptions. Nothing but words that any caller could have
//!   chosen makes them legs, no id pairs them, and some have lost their other leg: taken for transfers, money would be for ever
//!   in transit, or be sent a second time.

use serde::Deserialize;
use serde_json::value::RawValue;
use thiserror::Error;

use crate::money::{Amount, Currency, MoneyError};
use crate::wallet::event::{CREATED, CREDITED, DEBITED};
use crate::wallet::{Description, OwnerId, WalletEvent};

/// The version under which events of the earlier system are known: it wrote none.
pub const EARLIER_SYSTEM_VERSION: u32 = 0;

/// What every wallet of the earlier system held.
pub const EARLIER_SYSTEM_CURRENCY: Currency = Currency::USD;

/// How much of an amount that is none is quoted, in characters.
const QUOTED_MAX: usize = 40;

/// What is known of a wallet before an event of its stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Before {
    /// There is no wallet yet: the stream begins here.
    Nothing,
    /// The wallet, by the event before.
    Wallet {
        /// What it holds.
        balance: Amount,
        /// In which currency.
        currency: Currency,
    },
    /// The event before cannot be read, so nobody knows.
    Unknown,
}

impl Before {
    /// After an event.
    pub fn after(event: &WalletEvent) -> Self {
        Before::Wallet { balance: event.balance(), currency: event.currency() }
    }
}

/// Why an event of the earlier system is left as it is.
#[derive(Debug, Error)]
pub enum EarlierError {
    /// It is none that a wallet of that system had.
    #[error("it had no event type {0:?} in a wallet's stream")]
    UnknownType(String),
    /// Its data is not what that system wrote.
    #[error("its {event_type} cannot be read: {source}")]
    Data {
        /// The event's type.
        event_type: &'static str,
        /// What the JSON reader says.
        source: serde_json::Error,
    },
    /// Its amount is none, or none that is exact.
    #[error("its {event_type} of {amount} is not exact: {source}")]
    Amount {
        /// The event's type.
        event_type: &'static str,
        /// The amount as it stands there, cut if it is long.
        amount: String,
        /// What is wrong with it.
        source: MoneyError,
    },
    /// It moves nothing.
    #[error("its {0} moves nothing")]
    Zero(&'static str),
    /// It says nothing wrong by itself.
    #[error(
        "what the wallet holds after it cannot be told: it takes more than there was, it follows an event that cannot be \
         read, or the wallet is created by another event than its first"
    )]
    DoesNotFollow,
}

/// What an event says by itself.
enum Fact {
    Created(OwnerId),
    Moved { amount: Amount, description: Option<Description> },
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct CreatedData {
    owner_id: OwnerId,
}

#[derive(Deserialize)]
struct MovementData<'a> {
    #[serde(borrow)]
    amount: &'a RawValue,
    #[serde(default)]
    description: Option<Description>,
}

fn read(event_type: &str, data: &[u8]) -> Result<(&'static str, Fact), EarlierError> {
    match event_type {
        CREATED => {
            let CreatedData { owner_id } =
                serde_json::from_slice(data).map_err(|source| EarlierError::Data { event_type: CREATED, source })?;
            Ok((CREATED, Fact::Created(owner_id)))
        }
        CREDITED => Ok((CREDITED, read_movement(CREDITED, data)?)),
        DEBITED => Ok((DEBITED, read_movement(DEBITED, data)?)),
        other => Err(EarlierError::UnknownType(other.chars().take(QUOTED_MAX).collect())),
    }
}

fn read_movement(event_type: &'static str, data: &[u8]) -> Result<Fact, EarlierError> {
    let MovementData { amount: written, description } =
        serde_json::from_slice(data).map_err(|source| EarlierError::Data { event_type, source })?;
    let written = written.get();
    let amount = Amount::parse_float(written, EARLIER_SYSTEM_CURRENCY).map_err(|source| {
        let amount = written.chars().take(QUOTED_MAX).collect();
        EarlierError::Amount { event_type, amount, source }
    })?;
    if amount.is_zero() {
        return Err(EarlierError::Zero(event_type));
    }
    Ok(Fact::Moved { amount, description })
}

/// The event in our terms.
///
/// # Errors
/// [`EarlierError`] where it is to be left as it is.
pub fn upcast(before: Before, event_type: &str, data: &[u8]) -> Result<WalletEvent, EarlierError> {
    let currency = EARLIER_SYSTEM_CURRENCY;
    match (before, read(event_type, data)?) {
        (Before::Nothing, (_, Fact::Created(owner_id))) => Ok(WalletEvent::WalletCreated { owner_id, currency }),
        (Before::Wallet { balance, currency: held }, (event_type, Fact::Moved { amount, description }))
            if held == currency =>
        {
            let is_debit = event_type == DEBITED;
            let after = if is_debit { balance.checked_sub(amount) } else { balance.checked_add(amount) };
            let balance = after.ok_or(EarlierError::DoesNotFollow)?;
            Ok(match is_debit {
                true => WalletEvent::WalletDebited { amount, balance, currency, description, transfer: None },
                false => WalletEvent::WalletCredited { amount, balance, currency, description, transfer: None },
            })
        }
        _ => Err(EarlierError::DoesNotFollow),
    }
}

/// Why an event was left as it is, as far as it says so itself.
pub(super) fn why_left(event_type: &str, data: &[u8]) -> EarlierError {
    read(event_type, data).err().unwrap_or(EarlierError::DoesNotFollow)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wallet::{EVENT_VERSION, EventError};

    fn held(minor: i64) -> Before {
        let balance = Amount::from_minor(minor).expect("an amount");
        Before::Wallet { balance, currency: EARLIER_SYSTEM_CURRENCY }
    }

    #[test]
    fn what_comes_out_is_read_as_our_own() {
        let credit = br#"{"amount": 0.30000000000000004, "description": "Initial balance"}"#;
        let event = upcast(held(5), "WalletCredited", credit).expect("an event");
        let payload = event.to_payload();
        let expected = r#"{"amount":"0.30","balance":"0.35","currency":"USD","description":"Initial balance"}"#;
        assert_eq!(String::from_utf8(payload.clone()).expect("text"), expected);
        assert_eq!(WalletEvent::from_payload("WalletCredited", EVENT_VERSION, &payload).expect("ours"), event);
        assert_eq!(Before::after(&event), held(35));
    }

    #[test]
    fn a_wallet_begins_empty_whatever_its_creation_says_of_a_balance() {
        for data in [
            r#"{"ownerId":"u"}"#,
            r#"{"ownerId":"u","initialBalance":100.1}"#,
            r#"{"initialBalance":null,"ownerId":"u"}"#,
        ] {
            let event = upcast(Before::Nothing, "WalletCreated", data.as_bytes()).expect("an event");
            assert_eq!(Before::after(&event), held(0), "{data}");
        }
    }

    #[test]
    fn what_is_left_as_it_is_says_why() {
        let reason = |before: Before, event_type: &str, data: &str| {
            let refused = upcast(before, event_type, data.as_bytes()).expect_err(data).to_string();
            // Whoever has only the event is told the same.
            let read = WalletEvent::from_payload(event_type, EARLIER_SYSTEM_VERSION, data.as_bytes());
            let Err(EventError::Earlier(alone)) = read else { panic!("{data} was read: {read:?}") };
            assert_eq!(alone.to_string(), refused);
            refused
        };
        for (data, word) in [
            (r#"{"amount":10.005}"#, "10.005"),
            (r#"{"amount":-1}"#, "negative"),
            (r#"{"amount":"abc"}"#, r#""abc""#),
            (r#"{"amount":"10"}"#, r#""10""#),
            (r#"{"amount":true}"#, "true"),
            (r#"{"amount":null}"#, "null"),
            (r#"{"amount":1e309}"#, "1e309"),
            (r#"{"amount":0}"#, "moves nothing"),
            (r#"{"description":"x"}"#, "amount"),
            (r#"{"amount":1,"description":7}"#, "cannot be read"),
            (r#"[]"#, "cannot be read"),
            ("", "cannot be read"),
        ] {
            let said = reason(held(100), "WalletDebited", data);
            assert!(said.contains(word), "{data}: {said}");
        }
        assert!(reason(held(100), "WalletFrozen", "{}").contains("WalletFrozen"));
        assert!(reason(Before::Nothing, "WalletCreated", r#"{"ownerId":""}"#).contains("ownerId"));
        let euros = Before::Wallet { balance: Amount::MAX, currency: Currency::from_code("EUR").expect("a currency") };
        for (before, event_type, data) in [
            (held(99), "WalletDebited", r#"{"amount":1}"#),
            (Before::Wallet { balance: Amount::MAX, currency: Currency::USD }, "WalletCredited", r#"{"amount":1}"#),
            (euros, "WalletDebited", r#"{"amount":1}"#),
            (Before::Nothing, "WalletCredited", r#"{"amount":1}"#),
            (Before::Unknown, "WalletCredited", r#"{"amount":1}"#),
            (Before::Unknown, "WalletCreated", r#"{"ownerId":"u"}"#),
            (held(0), "WalletCreated", r#"{"ownerId":"u"}"#),
        ] {
            let said = reason(before, event_type, data);
            assert!(said.contains("cannot be told"), "{data}: {said}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_data_is_read_or_refused_without_a_panic(data in ".{0,60}", amount in "[-+0-9.eE]{0,30}") {
            for data in [data, format!(r#"{{"amount":{amount}}}"#)] {
                for event_type in [CREATED, CREDITED, DEBITED] {
                    let _ = upcast(held(1), event_type, data.as_bytes());
                }
            }
        }
    }
}
