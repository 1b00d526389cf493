//! Streams that the earlier system began, brought into our terms event by event.
//!
//! Whoever reads such events, from wherever in a stream, comes to the very same bytes: each is made of itself and of what the one
//! before it has left, and that is what the event before says where it is ours. Place, id and time stay what they are.

use std::collections::{HashMap, HashSet};

use serde::de::IgnoredAny;

use crate::log::{RecordedEvent, Revision};
use crate::wallet::{self, Before, EARLIER_SYSTEM_VERSION, EVENT_VERSION, WalletId};

impl RecordedEvent {
    /// Whether the earlier system wrote it, and it is not in our terms (yet).
    pub(crate) fn is_of_the_earlier_system(&self) -> bool {
        self.event_version == EARLIER_SYSTEM_VERSION
    }
}

/// What an event leaves to the one after it.
pub(crate) fn left_before(event: &RecordedEvent) -> Before {
    event.decode().map_or(Before::Unknown, |event| Before::after(&event))
}

/// Of events that follow one another within their streams: the streams for which it has to be looked up what they held, and before
/// which revision.
pub(crate) fn to_look_up<'a>(events: impl Iterator<Item = &'a RecordedEvent>) -> Vec<(&'a WalletId, Revision)> {
    let mut met = HashSet::new();
    let first = events.filter(|event| met.insert(&event.stream));
    first
        .filter(|event| event.is_of_the_earlier_system() && event.revision > 0)
        .map(|event| (&event.stream, event.revision))
        .collect()
}

/// Brings those events of the earlier system into our terms for which that goes; the others, and what comes after them in their
/// streams, stay as they are. `before` is what was looked up.
pub(crate) fn upcast<'a>(events: impl Iterator<Item = &'a mut RecordedEvent>, mut before: HashMap<WalletId, Before>) {
    for event in events {
        let begins = if event.revision == 0 { Before::Nothing } else { Before::Unknown };
        let before = before.entry(event.stream.clone()).or_insert(begins);
        let ours = event.is_of_the_earlier_system().then(|| wallet::upcast(*before, &event.event_type, &event.payload));
        let Some(Ok(ours)) = ours else {
            *before = left_before(event);
            continue;
        };
        *before = Before::after(&ours);
        event.payload = ours.to_payload();
        event.event_version = EVENT_VERSION;
        // It goes into larger JSON as it is.
        if serde_json::from_slice::<HashMap<String, IgnoredAny>>(&event.metadata).is_err() {
            event.metadata = b"{}".to_vec();
        }
    }
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;
    use proptest::prelude::*;
    use uuid::Uuid;

    use super::*;

    /// One event of a stream: which type, how many cents, and who wrote it.
    fn any_event() -> impl Strategy<Value = (u8, i64, bool)> {
        (0..20_u8, 1..10_000_i64, prop::bool::weighted(0.1))
    }

    /// Streams as the earlier system leaves them, with what cannot be read now and then, and some events of ours.
    fn stored(steps: &[(u8, i64, bool)]) -> Vec<RecordedEvent> {
        let mut events = Vec::new();
        let mut next = [0; 3];
        for (step, (kind, cents, is_ours)) in steps.iter().enumerate() {
            let stream = step % next.len();
            let revision = next[stream];
            next[stream] += 1;
            let amount = format!("{}.{:02}", cents / 100, cents % 100);
            let (event_type, payload) = match kind {
                _ if revision == 0 => ("WalletCreated", r#"{"ownerId":"u"}"#.to_owned()),
                0 => ("WalletCredited", r#"{"amount":0.001}"#.to_owned()),
                1..=5 => ("WalletDebited", format!(r#"{{"amount":{amount}}}"#)),
                _ => ("WalletCredited", format!(r#"{{"amount":{amount}}}"#)),
            };
            let ours = format!(r#"{{"amount":"{amount}","balance":"{amount}","currency":"USD"}}"#);
            let is_ours = *is_ours && revision > 0;
            events.push(RecordedEvent {
                position: step as i64,
                stream: WalletId::new(format!("w{stream}")).expect("an id"),
                revision,
                event_id: Uuid::nil(),
                event_type: event_type.to_owned(),
                event_version: if is_ours { EVENT_VERSION } else { EARLIER_SYSTEM_VERSION },
                recorded_at: DateTime::UNIX_EPOCH,
                payload: if is_ours { ours } else { payload }.into_bytes(),
                metadata: b"not JSON".to_vec(),
            });
        }
        events
    }

    proptest! {
        #[test]
        fn wherever_a_history_is_cut_it_comes_to_the_same_bytes(
            steps in prop::collection::vec(any_event(), 0..60), page in 1..20_usize
        ) {
            let mut whole = stored(&steps);
            upcast(whole.iter_mut(), HashMap::new());
            let mut in_pages: Vec<RecordedEvent> = Vec::new();
            for page in stored(&steps).chunks(page) {
                let mut page = page.to_vec();
                let before = to_look_up(page.iter())
                    .into_iter()
                    .map(|(stream, revision)| {
                        let is_before = |event: &&RecordedEvent| event.stream == *stream && event.revision + 1 == revision;
                        (stream.clone(), in_pages.iter().find(is_before).map_or(Before::Unknown, left_before))
                    })
                    .collect();
                upcast(page.iter_mut(), before);
                in_pages.extend(page);
            }
            prop_assert_eq!(&in_pages, &whole);
            // What is ours is read, and only what cannot be read is left.
            for event in &whole {
                prop_assert_eq!(event.decode().is_err(), event.is_of_the_earlier_system());
                let is_json = serde_json::from_slice::<serde_json::Value>(&event.metadata).is_ok();
                prop_assert!(is_json || event.is_of_the_earlier_system() || stored(&steps).contains(event));
            }
        }
    }
}
