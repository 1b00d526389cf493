//! One dead letter with all that is known of it: for whoever has to decide what becomes of it.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use uuid::Uuid;

use crate::dlq::DlqError;
use crate::hex;
use crate::kafka::kept_headers;
use crate::log::{Position, RecordedEvent, Revision};
use crate::money::{Amount, Currency};
use crate::postgres::{CAUSED_BY, Database, StoredRecord};
use crate::wallet::WalletEvent;

/// A dead letter.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Letter {
    /// Its number.
    pub record_id: i64,
    /// The group that could not process it.
    pub group: String,
    /// The wallet; `None` where it belongs to none.
    pub wallet_id: Option<String>,
    /// Its position in the log; `None` where it is no event of the log's.
    pub position: Option<Position>,
    /// The topic that it came from.
    pub topic: String,
    /// The partition.
    pub partition: i32,
    /// Its offset; `None` of an event that the topic did not have, so that it was read from the log.
    pub offset: Option<i64>,
    /// Its timestamp in the topic.
    pub timestamp: Option<DateTime<Utc>>,
    /// Its key, as it came.
    pub key: Option<Bytes>,
    /// Its value, as it came; `None` of a tombstone.
    pub value: Option<Bytes>,
    /// Its headers, as they came.
    pub headers: Vec<LetterHeader>,
    /// What kind of failure it was.
    pub error_class: String,
    /// Why it failed last.
    pub error: String,
    /// The same, from the outermost to the innermost cause.
    pub error_chain: Vec<String>,
    /// How often it was tried; 0 of one that only waits.
    pub attempts: i32,
    /// When it failed first.
    pub first_failed_at: DateTime<Utc>,
    /// When it failed last.
    pub last_failed_at: DateTime<Utc>,
    /// The event that the log has at its position.
    pub event: Option<LetterEvent>,
    /// What it would do to the balance.
    pub balance: Option<Change>,
}

/// Bytes that need not be text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Bytes {
    /// As text, where they are text.
    pub text: Option<String>,
    /// Each byte as two hexadecimal digits.
    pub hex: String,
}

impl Bytes {
    fn of(bytes: &[u8]) -> Self {
        Bytes { text: std::str::from_utf8(bytes).ok().map(str::to_owned), hex: hex::encode(bytes) }
    }
}

/// One header.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LetterHeader {
    /// Its name.
    pub name: String,
    /// Its value, if it has one.
    pub value: Option<Bytes>,
}

/// An event of the log, as far as it can be read.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LetterEvent {
    /// Its id.
    pub id: Uuid,
    /// Its type.
    pub event_type: String,
    /// Its payload's version.
    pub event_version: u32,
    /// Its place in the wallet's stream.
    pub revision: Revision,
    /// When it happened.
    pub recorded_at: DateTime<Utc>,
    /// What it says; `None` where that is no JSON.
    pub payload: Option<Value>,
    /// Why it cannot be read; `None` where it can.
    pub unreadable: Option<String>,
}

/// What an event does to a balance: decimal text with the currency's digits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Change {
    /// The currency's code.
    pub currency: String,
    /// What the group's own tables hold of the wallet now; `None` where they hold nothing, or the tables are not wallex's.
    pub held: Option<String>,
    /// The balance that the event departs from.
    pub before: String,
    /// The balance that it leads to.
    pub after: String,
}

/// The balance before and after an event, in minor units, with the currency; `None` of one that cannot be read.
pub(super) fn balances(event: &RecordedEvent) -> Option<(i64, i64, Currency)> {
    let event = event.decode().ok()?;
    let after = event.balance().minor();
    let before = match &event {
        WalletEvent::WalletCreated { .. } => 0,
        WalletEvent::WalletCredited { amount, .. } => after.checked_sub(amount.minor())?,
        WalletEvent::WalletDebited { amount, .. } => after.checked_add(amount.minor())?,
    };
    Some((before, after, event.currency()))
}

/// Minor units as decimal text; an amount that cannot be one, such as a negative balance, in minor units.
pub(super) fn money(minor: i64, currency: Currency) -> String {
    Amount::from_minor(minor).map_or_else(|| format!("{minor} minor units"), |amount| amount.to_text(currency))
}

/// What is kept, with what the log and the group's tables say of it.
pub(super) async fn read(database: &Database, stored: Vec<StoredRecord>) -> Result<Vec<Letter>, DlqError> {
    let positions: Vec<Position> = stored.iter().filter_map(|stored| stored.record.position).collect();
    let events: HashMap<Position, RecordedEvent> =
        database.events_at(&positions).await?.into_iter().map(|event| (event.position, event)).collect();
    let mut held: HashMap<(String, String), Option<i64>> = HashMap::new();
    let mut letters = Vec::with_capacity(stored.len());
    for stored in stored {
        let event = stored.record.position.and_then(|position| events.get(&position));
        let balance = match (event.and_then(balances), &stored.record.wallet_id) {
            (Some((before, after, currency)), Some(wallet)) => {
                let whose = (stored.group.clone(), wallet.clone());
                let held = match held.get(&whose) {
                    Some(held) => *held,
                    None => {
                        let found = database.balances_held(&whose.0, &[&whose.1]).await?.remove(wallet);
                        *held.entry(whose).or_insert(found)
                    }
                };
                Some(Change {
                    currency: currency.code().to_owned(),
                    held: held.map(|minor| money(minor, currency)),
                    before: money(before, currency),
                    after: money(after, currency),
                })
            }
            _ => None,
        };
        letters.push(letter(stored, event, balance));
    }
    Ok(letters)
}

fn letter(stored: StoredRecord, event: Option<&RecordedEvent>, balance: Option<Change>) -> Letter {
    let StoredRecord { parked_id, group, record } = stored;
    let header =
        |(name, value): (String, Option<Vec<u8>>)| LetterHeader { name, value: value.as_deref().map(Bytes::of) };
    Letter {
        record_id: parked_id,
        group,
        wallet_id: record.wallet_id,
        position: record.position,
        topic: record.topic.into_owned(),
        partition: record.partition,
        offset: record.kafka_offset,
        timestamp: record.record_time,
        key: record.key.as_deref().map(Bytes::of),
        value: record.value.as_deref().map(Bytes::of),
        headers: kept_headers(&record.headers).into_iter().map(header).collect(),
        error_class: record.error_class.into_owned(),
        error_chain: record.error.split(CAUSED_BY).map(str::to_owned).collect(),
        error: record.error,
        attempts: record.attempts,
        first_failed_at: record.first_failed_at,
        last_failed_at: record.last_failed_at,
        event: event.map(|event| LetterEvent {
            id: event.event_id,
            event_type: event.event_type.clone(),
            event_version: event.event_version,
            revision: event.revision,
            recorded_at: event.recorded_at,
            payload: serde_json::from_slice(&event.payload).ok(),
            unreadable: event.decode().err().map(|error| error.to_string()),
        }),
        balance,
    }
}
