//! Events as KurrentDB keeps them: the data is our payload, the metadata ours with two fields more at its beginning.

use bytes::Bytes;
use chrono::{DateTime, Datelike, SecondsFormat, SubsecRound, Utc};
use eventstore::{EventData, RecordedEvent as Stored};
use serde::Deserialize;
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::log::{LogError, NewEvent, Position, RecordedEvent, Revision};
use crate::wallet::{EARLIER_SYSTEM_VERSION, EVENT_VERSION, WalletId};

/// An event's id: a function of the command that makes it (by any text that is the command's alone) and of its place. The same
/// command at another revision gets another id.
pub fn event_id(command: &str, stream: &WalletId, revision: Revision) -> Uuid {
    let mut hash = Sha256::new();
    for field in [command, stream.as_str(), &revision.to_string()] {
        hash.update((field.len() as u64).to_le_bytes());
        hash.update(field);
    }
    let digest: [u8; 32] = hash.finalize().into();
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&digest[..16]);
    uuid::Builder::from_custom_bytes(bytes).into_uuid()
}

/// Our two fields. The server's own time has seconds only by the time it gets here.
fn beginning(recorded_at: DateTime<Utc>, event_version: u32) -> String {
    let at = recorded_at.to_rfc3339_opts(SecondsFormat::Micros, true);
    format!(r#"{{"occurredAt":"{at}","eventVersion":{event_version}"#)
}

pub(super) fn to_event_data(event: &NewEvent, recorded_at: DateTime<Utc>) -> Result<EventData, LogError> {
    let refused = |what: &str| LogError::Refused(format!("event {} has {what}", event.event_id));
    let payload: &RawValue =
        serde_json::from_slice(&event.payload).map_err(|_| refused("a payload that is not JSON"))?;
    let rest = event.metadata.strip_prefix(b"{").ok_or_else(|| refused("metadata that is no JSON object"))?;
    let mut metadata = beginning(recorded_at, EVENT_VERSION).into_bytes();
    if rest.first() != Some(&b'}') {
        metadata.push(b',');
    }
    metadata.extend_from_slice(rest);
    let data = EventData::json(event.event_type, &payload).map_err(|error| refused(&error.to_string()))?;
    Ok(data.id(event.event_id).metadata(Bytes::from(metadata)))
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Times {
    occurred_at: Option<DateTime<Utc>>,
    event_version: Option<u32>,
}

/// The event as it is stored. What the earlier system wrote has no version of its own and comes out under
/// [`EARLIER_SYSTEM_VERSION`].
pub(super) fn from_stored(stored: &Stored, stream: WalletId) -> Result<RecordedEvent, LogError> {
    let too_large = |_| LogError::Corrupt(format!("event {} of {stream} lies at an impossible place", stored.id));
    // Metadata of others may be anything; then there is a time of the server's, and no version.
    let times: Option<Times> = serde_json::from_slice(&stored.custom_metadata).ok();
    // A time of no calendar is as good as none: the copy could not keep it.
    let occurred_at = times.as_ref().and_then(|times| times.occurred_at);
    let occurred_at = occurred_at.filter(|at| (1..=9_999).contains(&at.year()));
    let event_version = times.and_then(|times| times.event_version).unwrap_or(EARLIER_SYSTEM_VERSION);
    let metadata = match occurred_at {
        Some(at) => without_beginning(&stored.custom_metadata, at, event_version),
        None => stored.custom_metadata.to_vec(),
    };
    Ok(RecordedEvent {
        position: Position::try_from(stored.position.commit).map_err(too_large)?,
        revision: Revision::try_from(stored.revision).map_err(too_large)?,
        stream,
        event_id: stored.id,
        event_type: stored.event_type.clone(),
        event_version,
        // As precise as the copy's times are.
        recorded_at: occurred_at.unwrap_or(stored.created).trunc_subsecs(6),
        payload: stored.data.to_vec(),
        metadata,
    })
}

/// The metadata as it was handed in; whatever does not begin as ours does is left as it is.
fn without_beginning(metadata: &[u8], recorded_at: DateTime<Utc>, event_version: u32) -> Vec<u8> {
    let Some(rest) = metadata.strip_prefix(beginning(recorded_at, event_version).as_bytes()) else {
        return metadata.to_vec();
    };
    let rest = rest.strip_prefix(b",").unwrap_or(rest);
    [b"{", rest].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_the_commands_and_the_places_alone() {
        let id = |text: &str| WalletId::new(text).expect("an id");
        let one = event_id("command-1", &id("a"), 3);
        assert_eq!(one, event_id("command-1", &id("a"), 3));
        assert_eq!(one.get_version_num(), 8);
        for other in [
            event_id("command-1", &id("a"), 4),
            event_id("command-1", &id("a1"), 3),
            event_id("command-", &id("1a"), 3),
            event_id("command-2", &id("a"), 3),
        ] {
            assert_ne!(one, other);
        }
    }

    #[test]
    fn metadata_comes_back_as_it_was() {
        let at = DateTime::from_timestamp(1_700_000_000, 123_456_000).expect("a time");
        for metadata in [r#"{"correlationId":"c", "x": "é"}"#, "{}"] {
            let event = NewEvent {
                stream: WalletId::new("a").expect("an id"),
                stream_key: None,
                revision: 0,
                event_id: Uuid::nil(),
                event_type: "T",
                payload: b"{}".to_vec(),
                metadata: metadata.as_bytes().into(),
            };
            assert!(to_event_data(&event, at).is_ok());
            let stored = beginning(at, 1) + if metadata == "{}" { "" } else { "," } + &metadata[1..];
            serde_json::from_str::<serde_json::Value>(&stored).expect("JSON");
            assert_eq!(without_beginning(stored.as_bytes(), at, 1), metadata.as_bytes());
        }
    }
}
