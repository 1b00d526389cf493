//! Records that could not be processed, kept with their bytes.

use chrono::{DateTime, Utc};
use sqlx::PgConnection;

use crate::log::Position;

/// A record to keep.
#[derive(Clone, Debug)]
pub(crate) struct ParkedRecord {
    /// The wallet that waits behind it; `None` of a record that cannot be laid to one.
    pub(crate) wallet_id: Option<String>,
    pub(crate) position: Option<Position>,
    pub(crate) topic: &'static str,
    pub(crate) partition: i32,
    pub(crate) kafka_offset: Option<i64>,
    pub(crate) record_time: Option<DateTime<Utc>>,
    pub(crate) key: Option<Vec<u8>>,
    pub(crate) value: Option<Vec<u8>>,
    /// `[[name, value], …]`, values as text where they are text, else as `{"hex": …}`.
    pub(crate) headers: serde_json::Value,
    pub(crate) error_class: &'static str,
    pub(crate) error: String,
    pub(crate) attempts: i32,
    pub(crate) first_failed_at: DateTime<Utc>,
    pub(crate) last_failed_at: DateTime<Utc>,
}

/// Which of these wallets wait behind a parked record of this projection.
pub(crate) async fn parked_wallets(
    transaction: &mut PgConnection,
    projection: &str,
    wallets: &[&str],
) -> Result<Vec<String>, sqlx::Error> {
    sqlx::query_scalar("SELECT DISTINCT wallet_id FROM parked_records WHERE projection = $1 AND wallet_id = ANY($2)")
        .bind(projection)
        .bind(wallets)
        .fetch_all(transaction)
        .await
}

/// Keeps a record.
pub(crate) async fn park(
    transaction: &mut PgConnection,
    projection: &str,
    parked: &ParkedRecord,
) -> Result<(), sqlx::Error> {
    sqlx::query(
        "INSERT INTO parked_records (projection, wallet_id, position, topic, partition, kafka_offset, record_time, record_key,
                                     record_value, record_headers, error_class, error, attempts, first_failed_at,
                                     last_failed_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10::jsonb, $11, $12, $13, $14, $15)",
    )
    .bind(projection)
    .bind(&parked.wallet_id)
    .bind(parked.position)
    .bind(parked.topic)
    .bind(parked.partition)
    .bind(parked.kafka_offset)
    .bind(parked.record_time)
    .bind(&parked.key)
    .bind(&parked.value)
    .bind(parked.headers.to_string())
    .bind(parked.error_class)
    .bind(&parked.error)
    .bind(parked.attempts)
    .bind(parked.first_failed_at)
    .bind(parked.last_failed_at)
    .execute(transaction)
    .await?;
    Ok(())
}

/// Keeps a record that cannot be laid to a wallet, unless the very same one is kept already: after a restart it may be
/// read again.
pub(crate) async fn park_foreign(
    transaction: &mut PgConnection,
    projection: &str,
    parked: &ParkedRecord,
) -> Result<(), sqlx::Error> {
    let statement = "SELECT EXISTS (SELECT FROM parked_records
                      WHERE projection = $1 AND wallet_id IS NULL AND partition = $2 AND kafka_offset = $3
                        AND record_value IS NOT DISTINCT FROM $4)";
    let known: bool = sqlx::query_scalar(statement)
        .bind(projection)
        .bind(parked.partition)
        .bind(parked.kafka_offset)
        .bind(&parked.value)
        .fetch_one(&mut *transaction)
        .await?;
    if known { Ok(()) } else { park(transaction, projection, parked).await }
}
