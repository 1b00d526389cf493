//! Records that could not be processed, kept with their bytes.

use std::borrow::Cow;

use chrono::{DateTime, Utc};
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, PgConnection, PgPool, Row};

use crate::log::Position;

/// A record to keep.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ParkedRecord {
    /// The wallet that waits behind it; `None` of a record that cannot be laid to one.
    pub(crate) wallet_id: Option<String>,
    pub(crate) position: Option<Position>,
    pub(crate) topic: Cow<'static, str>,
    pub(crate) partition: i32,
    pub(crate) kafka_offset: Option<i64>,
    pub(crate) record_time: Option<DateTime<Utc>>,
    pub(crate) key: Option<Vec<u8>>,
    pub(crate) value: Option<Vec<u8>>,
    /// `[[name, value], …]`, values as text where they are text, else as `{"hex": …}`.
    pub(crate) headers: serde_json::Value,
    pub(crate) error_class: Cow<'static, str>,
    pub(crate) error: String,
    pub(crate) attempts: i32,
    pub(crate) first_failed_at: DateTime<Utc>,
    pub(crate) last_failed_at: DateTime<Utc>,
}

/// A record as it is kept.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct StoredRecord {
    /// Its number, in the order in which records were parked.
    pub(crate) parked_id: i64,
    /// Whose it is: the projection that could not process it.
    pub(crate) group: String,
    pub(crate) record: ParkedRecord,
}

/// The columns that [`stored_record`] reads, of `parked_records p`.
pub(super) const STORED_COLUMNS: &str = "p.parked_id, p.projection, p.wallet_id, p.position, p.topic, p.partition,
    p.kafka_offset, p.record_time, p.record_key, p.record_value, p.record_headers::text, p.error_class, p.error, p.attempts,
    p.first_failed_at, p.last_failed_at";

/// Reads a row of [`STORED_COLUMNS`].
pub(super) fn stored_record(row: &PgRow) -> Result<StoredRecord, sqlx::Error> {
    Ok(StoredRecord {
        parked_id: row.try_get(0)?,
        group: row.try_get(1)?,
        record: ParkedRecord {
            wallet_id: row.try_get(2)?,
            position: row.try_get(3)?,
            topic: Cow::Owned(row.try_get(4)?),
            partition: row.try_get(5)?,
            kafka_offset: row.try_get(6)?,
            record_time: row.try_get(7)?,
            key: row.try_get(8)?,
            value: row.try_get(9)?,
            headers: serde_json::from_str(row.try_get(10)?).map_err(|error| sqlx::Error::Decode(error.into()))?,
            error_class: Cow::Owned(row.try_get(11)?),
            error: row.try_get(12)?,
            attempts: row.try_get(13)?,
            first_failed_at: row.try_get(14)?,
            last_failed_at: row.try_get(15)?,
        },
    })
}

/// Which of these wallets wait behind a parked record of this projection.
///
/// A statement of its own, after the one that has locked the checkpoints: so it sees what a replay that held them has
/// unparked.
pub(crate) async fn parked_wallets(
    transaction: &mut PgConnection,
    projection: &str,
    wallets: &[&str],
) -> Result<Vec<String>, sqlx::Error> {
    // One probe of the index for each wallet: behind a parked record there may be a million of the same wallet. It is the order
    // that keeps the planner on the index: for one row of a table that is mostly one wallet's it would read the table.
    let statement = "SELECT asked.wallet_id FROM unnest($2::text[]) AS asked(wallet_id)
                      CROSS JOIN LATERAL (SELECT FROM parked_records p
                                           WHERE p.projection = $1 AND p.wallet_id = asked.wallet_id COLLATE \"C\"
                                           ORDER BY p.position LIMIT 1) AS found";
    sqlx::query_scalar(statement).bind(projection).bind(wallets).fetch_all(transaction).await
}

/// Keeps records, in this order. One that is kept already is left as it is: a foreign record may be read a second time
/// after a restart.
pub(crate) async fn park(
    transaction: &mut PgConnection,
    projection: &str,
    records: &[ParkedRecord],
) -> Result<(), sqlx::Error> {
    let statement = "INSERT INTO parked_records (projection, wallet_id, position, topic, partition, kafka_offset, record_time,
                            record_key, record_value, record_headers, error_class, error, attempts, first_failed_at,
                            last_failed_at)
         SELECT $1, r.wallet_id, r.position, r.topic, r.partition, r.kafka_offset, r.record_time, r.record_key, r.record_value,
                r.record_headers::jsonb, r.error_class, r.error, r.attempts, r.first_failed_at, r.last_failed_at
           FROM unnest($2::text[], $3::bigint[], $4::text[], $5::int[], $6::bigint[], $7::timestamptz[], $8::bytea[],
                       $9::bytea[], $10::text[], $11::text[], $12::text[], $13::int[], $14::timestamptz[], $15::timestamptz[])
                WITH ORDINALITY
                AS r(wallet_id, position, topic, partition, kafka_offset, record_time, record_key, record_value,
                     record_headers, error_class, error, attempts, first_failed_at, last_failed_at, place)
          WHERE r.wallet_id IS NOT NULL
             OR NOT EXISTS (SELECT FROM parked_records p
                             WHERE p.projection = $1 AND p.wallet_id IS NULL AND p.partition = r.partition
                               AND p.kafka_offset = r.kafka_offset AND p.record_value IS NOT DISTINCT FROM r.record_value)
          ORDER BY r.place
             ON CONFLICT (projection, wallet_id, position) DO NOTHING";
    sqlx::query(statement)
        .bind(projection)
        .bind(records.iter().map(|record| record.wallet_id.as_deref()).collect::<Vec<_>>())
        .bind(records.iter().map(|record| record.position).collect::<Vec<_>>())
        .bind(records.iter().map(|record| record.topic.as_ref()).collect::<Vec<_>>())
        .bind(records.iter().map(|record| record.partition).collect::<Vec<_>>())
        .bind(records.iter().map(|record| record.kafka_offset).collect::<Vec<_>>())
        .bind(records.iter().map(|record| record.record_time).collect::<Vec<_>>())
        .bind(records.iter().map(|record| record.key.as_deref()).collect::<Vec<_>>())
        .bind(records.iter().map(|record| record.value.as_deref()).collect::<Vec<_>>())
        .bind(records.iter().map(|record| record.headers.to_string()).collect::<Vec<_>>())
        .bind(records.iter().map(|record| record.error_class.as_ref()).collect::<Vec<_>>())
        .bind(records.iter().map(|record| record.error.as_str()).collect::<Vec<_>>())
        .bind(records.iter().map(|record| record.attempts).collect::<Vec<_>>())
        .bind(records.iter().map(|record| record.first_failed_at).collect::<Vec<_>>())
        .bind(records.iter().map(|record| record.last_failed_at).collect::<Vec<_>>())
        .execute(transaction)
        .await?;
    Ok(())
}

/// How many records a group has parked; counted no further than `limit`.
pub(crate) async fn count_parked(
    connection: &mut PgConnection,
    projection: &str,
    limit: i64,
) -> Result<i64, sqlx::Error> {
    let statement = "SELECT count(*) FROM (SELECT FROM parked_records WHERE projection = $1 LIMIT $2) AS counted";
    sqlx::query_scalar(statement).bind(projection).bind(limit).fetch_one(connection).await
}

/// Notes how many records a group may have parked, for those who look from outside.
pub(crate) async fn note_parked_max(
    connection: &mut PgConnection,
    projection: &str,
    parked_max: i64,
) -> Result<(), sqlx::Error> {
    let statement = "INSERT INTO parked_bounds (projection, parked_max, noted_at) VALUES ($1, $2, now())
                         ON CONFLICT (projection) DO UPDATE SET parked_max = excluded.parked_max, noted_at = excluded.noted_at";
    sqlx::query(statement).bind(projection).bind(parked_max).execute(connection).await?;
    Ok(())
}

/// Notes that partitions are paused because nothing more may be parked, or no longer are.
pub(crate) async fn note_pause(
    pool: &PgPool,
    projection: &str,
    partitions: &[i32],
    paused: bool,
) -> Result<(), sqlx::Error> {
    let statement = "UPDATE projection_checkpoints
                        SET paused_since = CASE WHEN $3 THEN coalesce(paused_since, now()) END
                      WHERE projection = $1 AND partition = ANY($2)";
    sqlx::query(statement).bind(projection).bind(partitions).bind(paused).execute(pool).await?;
    Ok(())
}

/// Takes the right to copy until the transaction ends; `false` where somebody else has it.
pub(crate) async fn lock_copies(transaction: &mut PgConnection) -> Result<bool, sqlx::Error> {
    let statement = "SELECT pg_try_advisory_xact_lock(hashtextextended('wallex copies of dead letters', 0))";
    sqlx::query_scalar(statement).fetch_one(transaction).await
}

/// Up to `limit` records that have no copy yet, in the order in which they were parked.
pub(crate) async fn uncopied(connection: &mut PgConnection, limit: i64) -> Result<Vec<StoredRecord>, sqlx::Error> {
    let statement = format!(
        "SELECT {STORED_COLUMNS} FROM parked_records p WHERE p.copied_at IS NULL ORDER BY p.parked_id LIMIT $1"
    );
    let rows = sqlx::query(AssertSqlSafe(statement)).bind(limit).fetch_all(connection).await?;
    rows.iter().map(stored_record).collect()
}

/// Notes which records have a copy now. One that has failed again since it was read is due another.
pub(crate) async fn note_copies(
    connection: &mut PgConnection,
    copied: &[(i64, DateTime<Utc>)],
) -> Result<(), sqlx::Error> {
    let statement = "UPDATE parked_records p SET copied_at = clock_timestamp()
                       FROM unnest($1::bigint[], $2::timestamptz[]) AS c(parked_id, last_failed_at)
                      WHERE p.parked_id = c.parked_id AND p.last_failed_at = c.last_failed_at";
    sqlx::query(statement)
        .bind(copied.iter().map(|(parked, _)| *parked).collect::<Vec<_>>())
        .bind(copied.iter().map(|(_, failed_at)| *failed_at).collect::<Vec<_>>())
        .execute(connection)
        .await?;
    Ok(())
}
