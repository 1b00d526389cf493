//! What the relay has withheld from the topic because it was too large: such an event is not in its place. Published later, its
//! record stands behind higher positions, and says so.

use std::collections::{BTreeMap, HashMap};

use crate::kafka::{HEADER_LATE, TopicRecord};
use crate::log::{Position, RecordedEvent};

/// The events of a wallet from a position on that were withheld: up to another one, if they were published after all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct WithheldSpan {
    pub(crate) wallet_id: String,
    pub(crate) from: Position,
    pub(crate) published_to: Option<Position>,
}

impl WithheldSpan {
    fn holds(&self, position: Position) -> bool {
        position >= self.from && self.published_to.is_none_or(|to| position <= to)
    }
}

/// What is not in its place, and has to be, or need not be, in another.
#[derive(Debug, Default)]
pub(super) struct Withheld {
    spans: HashMap<String, Vec<WithheldSpan>>,
    /// Events whose records must stand somewhere behind their places.
    late: BTreeMap<Position, RecordedEvent>,
    /// How many events are not in the topic.
    pub(super) events: u64,
}

impl Withheld {
    pub(super) fn new(spans: Vec<WithheldSpan>) -> Self {
        let mut withheld = Withheld::default();
        for span in spans {
            withheld.spans.entry(span.wallet_id.clone()).or_default().push(span);
        }
        withheld
    }

    /// Whether an event was withheld when its turn came. If it was published later, its record is expected from now on.
    pub(super) fn was(&mut self, event: &RecordedEvent) -> bool {
        let spans = self.spans.get(event.stream.as_str());
        let Some(span) = spans.and_then(|spans| spans.iter().find(|span| span.holds(event.position))) else {
            return false;
        };
        if span.published_to.is_some() {
            self.late.insert(event.position, event.clone());
        } else {
            self.events += 1;
        }
        true
    }

    /// The event of a record that stands behind its place as it should.
    pub(super) fn take(&mut self, record: &TopicRecord) -> Option<RecordedEvent> {
        if !record.headers.iter().any(|(name, _)| name == HEADER_LATE) {
            return None;
        }
        self.late.remove(&record.position()?)
    }

    /// Whether a record is one that may stand behind its place, of an event that was not compared.
    pub(super) fn may_be(&self, record: &TopicRecord) -> bool {
        let is_late = record.headers.iter().any(|(name, _)| name == HEADER_LATE);
        let wallet = record.key.as_deref().and_then(|key| std::str::from_utf8(key).ok());
        let spans = wallet.and_then(|wallet| self.spans.get(wallet));
        is_late
            && record
                .position()
                .is_some_and(|position| spans.is_some_and(|spans| spans.iter().any(|span| span.holds(position))))
    }

    /// The first event whose record did not come.
    pub(super) fn missing(&self) -> Option<&RecordedEvent> {
        self.late.values().next()
    }
}
