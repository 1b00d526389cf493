//! What travels with an event of a command that came with an idempotency key: the key, in the same append as the events.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::log::Metadata;

/// Metadata of an event in a store of single streams.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct CommandMetadata {
    #[serde(flatten)]
    pub(crate) shared: Metadata,
    /// On the first event of its command.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) idempotency: Option<KeyUse>,
}

/// What an idempotency key was used for. Which wallet, the stream says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct KeyUse {
    /// The kind of command.
    pub(crate) kind: String,
    /// The caller's key.
    pub(crate) key: String,
    /// SHA-256 of the command, in hexadecimal digits.
    fingerprint: String,
    /// How many events the command made in this stream.
    pub(crate) event_count: i32,
}

impl KeyUse {
    pub(crate) fn new(kind: &str, key: &str, fingerprint: &[u8; 32], event_count: i32) -> Self {
        let fingerprint = fingerprint.iter().map(|byte| format!("{byte:02x}")).collect();
        KeyUse { kind: kind.to_owned(), key: key.to_owned(), fingerprint, event_count }
    }

    /// The fingerprint's bytes; `None` where they are not 32.
    pub(crate) fn fingerprint(&self) -> Option<[u8; 32]> {
        let mut bytes = [0; 32];
        let digits = self.fingerprint.as_bytes();
        if digits.len() != 64 {
            return None;
        }
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
        }
        Some(bytes)
    }
}

impl CommandMetadata {
    pub(crate) fn to_bytes(&self) -> Arc<[u8]> {
        serde_json::to_vec(self).expect("texts and a number always serialise").into()
    }

    /// `None` where the metadata is somebody else's.
    pub(crate) fn read(bytes: &[u8]) -> Option<Self> {
        serde_json::from_slice(bytes).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_travels_in_the_metadata_and_comes_back() {
        let shared = Metadata { correlation_id: "c".into(), causation_id: "d".into() };
        let key = KeyUse::new("credit", "k \"1\"", &[0xa7; 32], 2);
        let with_key = CommandMetadata { shared: shared.clone(), idempotency: Some(key) };
        let read = CommandMetadata::read(&with_key.to_bytes()).expect("ours");
        assert_eq!(read, with_key);
        assert_eq!(read.idempotency.and_then(|key| key.fingerprint()), Some([0xa7; 32]));
        let without = CommandMetadata { shared, idempotency: None };
        assert_eq!(&*without.to_bytes(), br#"{"correlationId":"c","causationId":"d"}"#);
        assert_eq!(CommandMetadata::read(br#"{"occurredAt":"2020-01-01T00:00:00Z"}"#), None);
        for wrong in ["", "a7", &"x".repeat(64), &"é".repeat(32)] {
            let key = KeyUse { fingerprint: wrong.to_owned(), ..KeyUse::new("k", "k", &[0; 32], 1) };
            assert_eq!(key.fingerprint(), None);
        }
    }
}
