//! A consumed record, read as far as it can be, and held against the log.

use crate::kafka::{
    ConsumedRecord, EVENTS_PARTITIONS, EventRecord, HEADER_FOLLOWS, HEADER_POSITION, HEADER_REVISION, partition_of,
};
use crate::log::{Position, RecordedEvent, Revision};
use crate::postgres::LoggedEvent;
use crate::wallet::WalletId;

/// A record that the relay may have written: it is laid to a wallet and a place in the log. Whether its value can be read
/// is another matter.
#[derive(Clone, Debug)]
pub(super) struct Item {
    pub(super) partition: i32,
    pub(super) wallet_id: WalletId,
    pub(super) position: Position,
    pub(super) revision: Revision,
    /// The event, or why it cannot be read.
    pub(super) event: Result<EventRecord, String>,
    /// The position between which and this one the log has no event of the partition; `None` where the record does not say.
    pub(super) follows: Option<Position>,
    /// The record as it came; `None` of an event that was read from the log itself.
    pub(super) record: Option<ConsumedRecord>,
}

/// A record that the relay has not written.
#[derive(Clone, Debug)]
pub(super) struct Foreign {
    pub(super) record: ConsumedRecord,
    /// How that shows.
    pub(super) reason: String,
}

impl Item {
    /// Reads a consumed record.
    pub(super) fn read(record: ConsumedRecord) -> Result<Item, Box<Foreign>> {
        match laid_to(&record) {
            Ok((wallet_id, position, revision)) => {
                let value = record.value.as_deref().unwrap_or_default();
                let event = EventRecord::from_value(wallet_id.clone(), position, revision, value)
                    .map_err(|error| error.to_string());
                let follows = record.header(HEADER_FOLLOWS).and_then(|text| text.parse().ok());
                let follows = follows.filter(|follows| (0..position).contains(follows));
                let partition = record.partition;
                Ok(Item { partition, wallet_id, position, revision, event, follows, record: Some(record) })
            }
            Err(reason) => Err(Box::new(Foreign { record, reason })),
        }
    }

    /// An event of the log that the topic does not have.
    pub(super) fn from_log(partition: i32, recorded: &RecordedEvent) -> Item {
        Item {
            partition,
            wallet_id: recorded.stream.clone(),
            position: recorded.position,
            revision: recorded.revision,
            event: EventRecord::try_from(recorded).map_err(|error| error.to_string()),
            follows: None,
            record: None,
        }
    }

    /// Whether the log has this event at this place, by what can be told without its value; else why it is foreign.
    pub(super) fn hold_against(&self, logged: Option<&LoggedEvent>) -> Result<(), String> {
        match logged {
            None => Err(format!("the log has no position {}", self.position)),
            Some(logged) if logged.revision != self.revision => {
                Err(format!("the log has revision {} at position {}", logged.revision, self.position))
            }
            Some(logged) if self.event.as_ref().is_ok_and(|event| event.event_id != logged.event_id) => {
                Err(format!("the log has another event at position {}", self.position))
            }
            Some(_) => Ok(()),
        }
    }

    /// Of an item whose value cannot be read: whether the log's own event cannot be read either. If it can, this record is
    /// not the one that the relay has sent.
    pub(super) fn hold_unreadable_against(&self, recorded: Option<&RecordedEvent>) -> Result<(), String> {
        let recorded = recorded.filter(|recorded| recorded.position == self.position);
        match recorded {
            Some(recorded) if recorded.stream != self.wallet_id => {
                Err(format!("position {} is an event of wallet {}", self.position, recorded.stream))
            }
            Some(recorded) if recorded.decode().is_err() => Ok(()),
            _ => {
                let reason = self.event.as_ref().err().map_or("", String::as_str);
                Err(format!("its value is not that of position {}: {reason}", self.position))
            }
        }
    }

    /// The record as a foreign one; `None` of an event that was read from the log.
    pub(super) fn into_foreign(self, reason: String) -> Option<Foreign> {
        self.record.map(|record| Foreign { record, reason })
    }
}

fn laid_to(record: &ConsumedRecord) -> Result<(WalletId, Position, Revision), String> {
    let key = record.key.as_deref().ok_or("it has no key")?;
    let text = std::str::from_utf8(key).map_err(|_| "its key is no text")?;
    let wallet_id = WalletId::new(text).map_err(|_| "its key is no wallet id")?;
    let number = |name: &str| {
        let text = record.header(name).ok_or_else(|| format!("it has no {name} header"))?;
        text.parse::<i64>().map_err(|_| format!("its {name} header is no number"))
    };
    let (position, revision) = (number(HEADER_POSITION)?, number(HEADER_REVISION)?);
    if position < 1 || revision < 0 {
        return Err("its position or revision is out of bounds".to_owned());
    }
    let partition = partition_of(key, EVENTS_PARTITIONS);
    if partition != record.partition {
        return Err(format!("its key belongs to partition {partition}"));
    }
    Ok((wallet_id, position, revision))
}
