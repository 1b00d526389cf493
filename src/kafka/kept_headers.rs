//! A record's headers as they are kept beside it: `[[name, value], …]`, a value as text, or as `{"hex": …}` where it is none.

use serde_json::{Value, json};

use crate::hex;

/// A header's name, and its value if it has one.
pub(crate) type RecordHeader = (String, Option<Vec<u8>>);

/// Headers, to be kept.
pub(crate) fn keep_headers(headers: &[RecordHeader]) -> Value {
    let keep = |(name, value): &RecordHeader| {
        let value = value.as_deref().map(|bytes| match std::str::from_utf8(bytes) {
            // PostgreSQL's JSON holds no NUL.
            Ok(text) if !text.contains('\0') => Value::from(text),
            _ => json!({ "hex": hex::encode(bytes) }),
        });
        // A name is as foreign as a value. It is for reading, so a NUL in it is shown as what cannot be shown.
        json!([name.replace('\0', "\u{fffd}"), value])
    };
    headers.iter().map(keep).collect()
}

/// Headers as they were before they were kept.
pub(crate) fn kept_headers(kept: &Value) -> Vec<RecordHeader> {
    let read = |header: &Value| {
        let name = header.get(0)?.as_str()?.to_owned();
        let value = header.get(1)?;
        let value = match (value.as_str(), value.get("hex").and_then(Value::as_str)) {
            (Some(text), _) => Some(text.as_bytes().to_vec()),
            (None, Some(digits)) => hex::decode(digits),
            (None, None) => None,
        };
        Some((name, value))
    };
    kept.as_array().map(|headers| headers.iter().filter_map(read).collect()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn kept_headers_are_what_they_were(headers: Vec<([char; 3], Option<Vec<u8>>)>) {
            let headers: Vec<RecordHeader> = headers
                .into_iter()
                .map(|(name, value)| (name.iter().filter(|it| **it != '\0').collect(), value))
                .collect();
            proptest::prop_assert_eq!(kept_headers(&keep_headers(&headers)), headers);
        }
    }
}
