//! An event as a Kafka record. The value is JSON `{id, aggregateId, eventType, eventVersion, payload, metadata, createdAt}`;
//! payload and metadata are the log's own bytes, spliced in unread.

use chrono::{DateTime, SecondsFormat, Utc};
use serde::Deserialize;
use serde_json::value::RawValue;
use thiserror::Error;
use uuid::Uuid;

use crate::log::{Metadata, Position, RecordedEvent, Revision};
use crate::wallet::{EventError, WalletEvent, WalletId};

/// The event's type.
pub const HEADER_EVENT_TYPE: &str = "event-type";
/// The wallet id, as in the key.
pub const HEADER_AGGREGATE_ID: &str = "aggregate-id";
/// What one outside request caused shares this.
pub const HEADER_CORRELATION_ID: &str = "correlation-id";
/// What directly caused the event.
pub const HEADER_CAUSATION_ID: &str = "causation-id";
/// The event's position in the log, decimal text. Within a partition it grows from record to record.
pub const HEADER_POSITION: &str = "position";
/// The event's revision in its wallet's stream, decimal text.
pub const HEADER_REVISION: &str = "revision";

/// Proof that the topic lacks nothing, decimal text: the log has no event of this partition between that position and the
/// record's own. So whoever has every event of the partition up to there has nothing left out by going on with this record,
/// whatever topic it was read from.
pub const HEADER_FOLLOWS: &str = "follows";

/// The record was withheld when its turn came, and stands behind records of higher positions: whoever passes over what is not above
/// the last position of its partition must make an exception. The records of a wallet still follow one another.
pub const HEADER_LATE: &str = "late";

/// An event made ready to send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutgoingRecord {
    /// The wallet id.
    pub key: String,
    /// The JSON value.
    pub value: Vec<u8>,
    /// Names and values, in order.
    pub headers: Vec<(&'static str, String)>,
}

impl OutgoingRecord {
    /// The record of an event of the log. `follows` is a position below the event's, with no event of the same partition
    /// between the two.
    pub fn of(event: &RecordedEvent, follows: Position) -> Self {
        let mut value = Vec::with_capacity(event.payload.len() + event.metadata.len() + 256);
        // Wallet ids, type names, uuids and times need no escaping: their alphabets hold no quote or backslash.
        value.extend_from_slice(
            format!(
                r#"{{"id":"{}","aggregateId":"{}","eventType":"{}","eventVersion":{},"payload":"#,
                event.event_id, event.stream, event.event_type, event.event_version
            )
            .as_bytes(),
        );
        value.extend_from_slice(&event.payload);
        value.extend_from_slice(br#","metadata":"#);
        value.extend_from_slice(&event.metadata);
        let created_at = event.recorded_at.to_rfc3339_opts(SecondsFormat::Micros, true);
        value.extend_from_slice(format!(r#","createdAt":"{created_at}"}}"#).as_bytes());
        let (correlation_id, causation_id) = match serde_json::from_slice::<Metadata>(&event.metadata) {
            Ok(metadata) => (metadata.correlation_id.to_string(), metadata.causation_id.to_string()),
            Err(_) => Default::default(),
        };
        OutgoingRecord {
            key: event.stream.to_string(),
            value,
            headers: vec![
                (HEADER_EVENT_TYPE, event.event_type.clone()),
                (HEADER_AGGREGATE_ID, event.stream.to_string()),
                (HEADER_CORRELATION_ID, correlation_id),
                (HEADER_CAUSATION_ID, causation_id),
                (HEADER_POSITION, event.position.to_string()),
                (HEADER_REVISION, event.revision.to_string()),
                (HEADER_FOLLOWS, follows.to_string()),
            ],
        }
    }
}

impl OutgoingRecord {
    /// The record of an event that was withheld when its turn came.
    pub fn late(event: &RecordedEvent) -> Self {
        let mut record = Self::of(event, event.position - 1);
        record.headers.push((HEADER_LATE, "true".to_owned()));
        record
    }

    /// About how many bytes it takes in a topic, uncompressed.
    pub fn bytes(&self) -> usize {
        let headers: usize = self.headers.iter().map(|(name, value)| name.len() + value.len() + 4).sum();
        self.key.len() + self.value.len() + headers + 16
    }
}

/// An event as a consumer gets it: everything that a projection may need, not the event alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventRecord {
    /// The wallet.
    pub wallet_id: WalletId,
    /// Its place in the log. The key to deduplicate by: one event has one position for ever.
    pub position: Position,
    /// Its place in the wallet's stream, from 0 without a gap.
    pub revision: Revision,
    /// Its id.
    pub event_id: Uuid,
    /// When it happened.
    pub recorded_at: DateTime<Utc>,
    /// The metadata, JSON `{correlationId, causationId}`.
    pub metadata: Vec<u8>,
    /// What happened.
    pub event: WalletEvent,
}

/// Why a record is no event of ours.
#[derive(Debug, Error)]
pub enum RecordError {
    /// A header or the key is missing or not what it should be: a foreign producer's record. It belongs to no wallet.
    #[error("not a record of the relay's: {0}")]
    Foreign(String),
    /// The record is laid to a wallet and a position, but its value is not the JSON of the contract.
    #[error("the value cannot be read: {0}")]
    Value(String),
    /// The value holds an event that cannot be read.
    #[error(transparent)]
    Event(#[from] EventError),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Envelope<'a> {
    id: Uuid,
    aggregate_id: WalletId,
    event_type: String,
    event_version: u32,
    #[serde(borrow)]
    payload: &'a RawValue,
    #[serde(borrow)]
    metadata: &'a RawValue,
    created_at: DateTime<Utc>,
}

impl EventRecord {
    /// Reads a record's value. Wallet id, position and revision come from the key and headers, which stay readable
    /// where the value is not.
    ///
    /// # Errors
    /// [`RecordError::Value`] or [`RecordError::Event`] where the value is not ours.
    pub fn from_value(
        wallet_id: WalletId,
        position: Position,
        revision: Revision,
        value: &[u8],
    ) -> Result<Self, RecordError> {
        let envelope: Envelope<'_> =
            serde_json::from_slice(value).map_err(|error| RecordError::Value(error.to_string()))?;
        if envelope.aggregate_id != wallet_id {
            return Err(RecordError::Value(format!("aggregateId is {}, the key {wallet_id}", envelope.aggregate_id)));
        }
        let event =
            WalletEvent::from_payload(&envelope.event_type, envelope.event_version, envelope.payload.get().as_bytes())?;
        Ok(EventRecord {
            wallet_id,
            position,
            revision,
            event_id: envelope.id,
            recorded_at: envelope.created_at,
            metadata: envelope.metadata.get().as_bytes().to_vec(),
            event,
        })
    }
}

impl TryFrom<&RecordedEvent> for EventRecord {
    type Error = EventError;

    /// The event as the log has it, without the way through Kafka.
    fn try_from(recorded: &RecordedEvent) -> Result<Self, EventError> {
        Ok(EventRecord {
            wallet_id: recorded.stream.clone(),
            position: recorded.position,
            revision: recorded.revision,
            event_id: recorded.event_id,
            recorded_at: recorded.recorded_at,
            metadata: recorded.metadata.clone(),
            event: recorded.decode()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::money::{Amount, Currency};

    fn recorded() -> RecordedEvent {
        let event = WalletEvent::WalletCredited {
            amount: Amount::from_minor(1_050).expect("positive"),
            balance: Amount::from_minor(2_050).expect("positive"),
            currency: Currency::USD,
            description: crate::wallet::Description::new("for \"tea\" \\ 💶").ok(),
            transfer: None,
        };
        RecordedEvent {
            position: 7,
            stream: WalletId::new("wallet-1").expect("an id"),
            revision: 2,
            event_id: Uuid::now_v7(),
            event_type: event.event_type().to_owned(),
            event_version: 1,
            recorded_at: DateTime::from_timestamp_micros(1_700_000_000_123_456).expect("a time"),
            payload: event.to_payload(),
            metadata: br#"{"correlationId":"c","causationId":"d"}"#.to_vec(),
        }
    }

    #[test]
    fn what_is_sent_can_be_read_back() {
        let recorded = recorded();
        let record = OutgoingRecord::of(&recorded, 4);
        let read = EventRecord::from_value(recorded.stream.clone(), 7, 2, &record.value).expect("our own record");
        assert_eq!(read, EventRecord::try_from(&recorded).expect("our own event"));
        assert_eq!(record.key, "wallet-1");
        let headers: Vec<_> = record.headers.iter().map(|(name, value)| format!("{name}={value}")).collect();
        assert_eq!(
            headers,
            [
                "event-type=WalletCredited",
                "aggregate-id=wallet-1",
                "correlation-id=c",
                "causation-id=d",
                "position=7",
                "revision=2",
                "follows=4"
            ]
        );
    }

    #[test]
    fn the_value_is_the_json_of_the_contract() {
        let value: serde_json::Value = serde_json::from_slice(&OutgoingRecord::of(&recorded(), 6).value).expect("JSON");
        let mut names: Vec<_> = value.as_object().expect("an object").keys().map(String::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, ["aggregateId", "createdAt", "eventType", "eventVersion", "id", "metadata", "payload"]);
        assert_eq!(value["payload"]["amount"], "10.50");
        assert_eq!(value["createdAt"], "2023-11-14T22:13:20.123456Z");
    }

    #[test]
    fn a_value_of_another_wallet_is_refused() {
        let record = OutgoingRecord::of(&recorded(), 6);
        let other = WalletId::new("wallet-2").expect("an id");
        assert!(matches!(EventRecord::from_value(other, 7, 2, &record.value), Err(RecordError::Value(_))));
    }
}
