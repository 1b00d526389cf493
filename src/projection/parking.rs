//! What is kept of a record that is put aside: its bytes, where it stood, and why.

use chrono::{DateTime, Utc};

use crate::kafka::{ConsumedRecord, EVENTS_TOPIC, keep_headers};
use crate::log::Position;
use crate::postgres::ParkedRecord;
use crate::wallet::WalletId;

/// The longest error text that is kept.
const ERROR_CHARACTERS_MAX: usize = 2_000;

/// Why a record is put aside.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    class: &'static str,
    error: String,
    attempts: i32,
    first_failed_at: DateTime<Utc>,
}

impl Failure {
    /// The projection refused it, so many times.
    pub(super) fn refused(error: &str, attempts: i32, first_failed_at: DateTime<Utc>) -> Self {
        Failure { attempts, first_failed_at, ..Failure::new("APPLY", error) }
    }

    /// Its event cannot be read.
    pub(crate) fn unreadable(error: &str) -> Self {
        Failure::new("DECODE", error)
    }

    /// It was not written by the relay.
    pub(super) fn foreign(reason: &str) -> Self {
        Failure::new("FOREIGN", reason)
    }

    /// An earlier one of its wallet is parked.
    pub(super) fn behind() -> Self {
        Failure { attempts: 0, ..Failure::new("BEHIND", "an earlier event of this wallet is parked") }
    }

    /// What kind of failure it is.
    pub(crate) fn class(&self) -> &'static str {
        self.class
    }

    /// Why, as it is kept.
    pub(crate) fn error(&self) -> &str {
        &self.error
    }

    fn new(class: &'static str, error: &str) -> Self {
        // PostgreSQL's text holds no NUL.
        let error =
            error.chars().take(ERROR_CHARACTERS_MAX).map(|it| if it == '\0' { '\u{fffd}' } else { it }).collect();
        Failure { class, error, attempts: 1, first_failed_at: Utc::now() }
    }

    /// An event of a wallet, put aside for this. Without the record it was read from the log, which has its bytes under its
    /// position.
    pub(super) fn of_event(
        self,
        wallet_id: &WalletId,
        position: Position,
        partition: i32,
        record: Option<&ConsumedRecord>,
    ) -> ParkedRecord {
        ParkedRecord { wallet_id: Some(wallet_id.to_string()), position: Some(position), ..self.of(partition, record) }
    }

    /// A record that belongs to no wallet, put aside for this.
    pub(super) fn of_record(self, record: &ConsumedRecord) -> ParkedRecord {
        self.of(record.partition, Some(record))
    }

    fn of(self, partition: i32, record: Option<&ConsumedRecord>) -> ParkedRecord {
        let timestamp_ms = record.and_then(|record| record.timestamp_ms);
        ParkedRecord {
            wallet_id: None,
            position: None,
            topic: EVENTS_TOPIC.into(),
            partition,
            kafka_offset: record.map(|record| record.offset),
            record_time: timestamp_ms.and_then(DateTime::from_timestamp_millis),
            key: record.and_then(|record| record.key.clone()),
            value: record.and_then(|record| record.value.clone()),
            headers: keep_headers(record.map_or(&[][..], |record| &record.headers)),
            error_class: self.class.into(),
            error: self.error,
            attempts: self.attempts,
            first_failed_at: self.first_failed_at,
            last_failed_at: Utc::now(),
        }
    }
}
