//! A consumed record, read as far as it can be.

use crate::kafka::{ConsumedRecord, EventRecord, HEADER_POSITION, HEADER_REVISION};
use crate::log::{Position, RecordedEvent, Revision};
use crate::wallet::WalletId;

/// A record that the relay may have written: it is laid to a wallet and a place in the log. Whether its value can be read
/// is another matter.
#[derive(Clone, Debug)]
pub(super) struct Item {
    pub(super) partition: i32,
    pub(super) wallet_id: WalletId,
    pub(super) position: Position,
    /// The event, or why it cannot be read.
    pub(super) event: Result<EventRecord, String>,
    /// The record as it came; `None` of an event that was read from the log itself.
    pub(super) record: Option<ConsumedRecord>,
}

/// A record that is not the relay's.
#[derive(Clone, Debug)]
pub(super) struct Foreign {
    pub(super) record: ConsumedRecord,
    /// How that is known.
    pub(super) reason: String,
}

impl Item {
    /// Reads a consumed record.
    ///
    /// # Errors
    /// [`Foreign`] where it is no record of the relay's.
    pub(super) fn read(record: ConsumedRecord) -> Result<Item, Box<Foreign>> {
        match laid_to(&record) {
            Ok((wallet_id, position, revision)) => {
                let value = record.value.as_deref().unwrap_or_default();
                let event = EventRecord::from_value(wallet_id.clone(), position, revision, value)
                    .map_err(|error| error.to_string());
                Ok(Item { partition: record.partition, wallet_id, position, event, record: Some(record) })
            }
            Err(reason) => Err(Box::new(Foreign { record, reason })),
        }
    }

    /// It has turned out that the log has no such event.
    pub(super) fn into_foreign(self) -> Foreign {
        let reason = format!("the log has no such event at position {}", self.position);
        let record =
            self.record.unwrap_or_else(|| ConsumedRecord { partition: self.partition, ..ConsumedRecord::default() });
        Foreign { record, reason }
    }

    /// An event of the log that the topic does not have.
    pub(super) fn from_log(partition: i32, recorded: &RecordedEvent) -> Item {
        Item {
            partition,
            wallet_id: recorded.stream.clone(),
            position: recorded.position,
            event: EventRecord::try_from(recorded).map_err(|error| error.to_string()),
            record: None,
        }
    }
}

fn laid_to(record: &ConsumedRecord) -> Result<(WalletId, Position, Revision), String> {
    let key = record.key.as_deref().ok_or("it has no key")?;
    let key = std::str::from_utf8(key).map_err(|_| "its key is no text")?;
    let wallet_id = WalletId::new(key).map_err(|_| "its key is no wallet id")?;
    let number = |name: &str| {
        let text = record.header(name).ok_or_else(|| format!("it has no {name} header"))?;
        text.parse::<i64>().map_err(|_| format!("its {name} header is no number"))
    };
    let (position, revision) = (number(HEADER_POSITION)?, number(HEADER_REVISION)?);
    if position < 1 || revision < 0 {
        return Err("its position or revision is out of bounds".to_owned());
    }
    Ok((wallet_id, position, revision))
}
