//! What is applied together, and what of it is not.

use std::borrow::Cow;
use std::collections::{BTreeSet, HashMap};
use std::ops::Range;

use crate::kafka::{ConsumedRecord, EventRecord};
use crate::log::Position;
use crate::postgres::{CheckpointMove, ParkedRecord};
use crate::projection::parking::Failure;
use crate::projection::record::{Foreign, Item};

/// What is applied together.
#[derive(Debug, Default)]
pub(super) struct Batch {
    /// Events that can be read, in order.
    pub(super) events: Vec<EventRecord>,
    /// Where each of `events` came from.
    origins: Vec<Origin>,
    /// Events that cannot be read.
    pub(super) unreadable: Vec<Item>,
    pub(super) foreign: Vec<Foreign>,
    pub(super) moves: Vec<CheckpointMove>,
}

#[derive(Debug)]
struct Origin {
    partition: i32,
    record: Option<ConsumedRecord>,
}

impl Batch {
    pub(super) fn push(&mut self, item: Item) {
        match item.event {
            Ok(event) => {
                self.events.push(event);
                self.origins.push(Origin { partition: item.partition, record: item.record });
            }
            Err(_) => self.unreadable.push(item),
        }
    }

    pub(super) fn push_foreign(&mut self, foreign: Foreign) {
        self.foreign.push(foreign);
    }

    pub(super) fn len(&self) -> usize {
        self.events.len() + self.unreadable.len() + self.foreign.len()
    }

    /// Leaves partitions out: it is as if nothing had come from them.
    pub(super) fn leave_out(&mut self, partitions: &BTreeSet<i32>) {
        let (events, origins) = (std::mem::take(&mut self.events), std::mem::take(&mut self.origins));
        let kept = events.into_iter().zip(origins).filter(|(_, origin)| !partitions.contains(&origin.partition));
        (self.events, self.origins) = kept.unzip();
        self.unreadable.retain(|item| !partitions.contains(&item.partition));
        self.foreign.retain(|foreign| !partitions.contains(&foreign.record.partition));
        self.moves.retain(|to| !partitions.contains(&to.to.partition));
    }

    pub(super) fn wallets(&self) -> Vec<&str> {
        let readable = self.events.iter().map(|event| event.wallet_id.as_str());
        let wallets: BTreeSet<&str> =
            readable.chain(self.unreadable.iter().map(|item| item.wallet_id.as_str())).collect();
        wallets.into_iter().collect()
    }

    /// Those of a range of events that are not to be parked.
    pub(super) fn free(&self, range: Range<usize>, blocked: &Blocked) -> Cow<'_, [EventRecord]> {
        let events = &self.events[range];
        if blocked.is_empty() || !events.iter().any(|event| is_blocked(blocked, event)) {
            return Cow::Borrowed(events);
        }
        Cow::Owned(events.iter().filter(|event| !is_blocked(blocked, event)).cloned().collect())
    }

    pub(super) fn parked(&self, at: usize, failure: Failure) -> ParkedRecord {
        let (event, origin) = (&self.events[at], &self.origins[at]);
        failure.of_event(&event.wallet_id, event.position, origin.partition, origin.record.as_ref())
    }
}

/// From which position on each wallet's events are not applied but parked.
pub(super) type Blocked = HashMap<String, Position>;

pub(super) fn is_blocked(blocked: &Blocked, event: &EventRecord) -> bool {
    blocked.get(event.wallet_id.as_str()).is_some_and(|from| event.position >= *from)
}
