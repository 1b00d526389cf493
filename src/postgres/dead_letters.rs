//! Parked records as operators see and settle them: queues, replays, discards, and the account of both.

use std::collections::HashMap;

use chrono::Utc;
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, PgConnection, Row};

use crate::dlq::{Action, Deed, DlqError, Page, Queue, Selection, Settled};
use crate::log::{Position, RecordedEvent};
use crate::postgres::log::recorded_event;
use crate::postgres::parked::{STORED_COLUMNS, StoredRecord, stored_record};
use crate::postgres::{Database, is_transient};
use crate::projection::{LEDGER_PROJECTOR, READ_MODEL_PROJECTOR};
use crate::wallet::WalletId;

impl From<sqlx::Error> for DlqError {
    fn from(error: sqlx::Error) -> Self {
        if is_transient(&error) { DlqError::Away(error.to_string()) } else { DlqError::Refused(error.to_string()) }
    }
}

/// The queues that a selection is about: of each wallet its first record decides. Records of no wallet are looked at one by one,
/// and make one line a group.
const QUEUES: &str = "
WITH queues AS (
    SELECT projection, wallet_id, count(*) AS records, min(position) AS first_position, max(position) AS last_position
      FROM parked_records
     WHERE wallet_id IS NOT NULL AND ($1::text IS NULL OR projection = $1) AND ($2::text IS NULL OR wallet_id = $2)
     GROUP BY projection, wallet_id
), heads AS (
    SELECT q.projection, q.wallet_id, q.records, q.first_position, q.last_position, p.parked_id, p.partition, e.event_type,
           p.error_class, p.error, p.attempts, p.first_failed_at, p.last_failed_at
      FROM queues q
      JOIN parked_records p ON (p.projection, p.wallet_id, p.position) = (q.projection, q.wallet_id, q.first_position)
      LEFT JOIN events e ON e.position = p.position
     WHERE ($3::text IS NULL OR strpos(lower(p.error_class || ' ' || p.error), lower($3)) > 0)
       AND ($4::text IS NULL OR e.event_type = $4)
       AND ($5::timestamptz IS NULL OR p.first_failed_at <= $5)
       AND ($6::bigint IS NULL OR p.parked_id = $6)
), strangers AS (
    SELECT p.projection, count(*) AS records, min(p.parked_id) AS parked_id
      FROM parked_records p
     WHERE STRANGER
     GROUP BY p.projection
)
SELECT projection, wallet_id, records, first_position, last_position, parked_id, partition, event_type,
       error_class, error, attempts, first_failed_at, last_failed_at
  FROM heads
UNION ALL
SELECT s.projection, NULL, s.records, NULL, NULL, s.parked_id, p.partition, NULL,
       p.error_class, p.error, p.attempts, p.first_failed_at, p.last_failed_at
  FROM strangers s JOIN parked_records p ON p.parked_id = s.parked_id
 ORDER BY first_failed_at, projection, wallet_id
 LIMIT $7 OFFSET $8";

/// Which records of no wallet a selection is about.
const STRANGER: &str = "p.wallet_id IS NULL AND ($1::text IS NULL OR p.projection = $1) AND $2::text IS NULL
       AND ($3::text IS NULL OR strpos(lower(p.error_class || ' ' || p.error), lower($3)) > 0)
       AND ($4::text IS NULL OR EXISTS (SELECT FROM jsonb_array_elements(p.record_headers) h
                                         WHERE h->>0 = 'event-type' AND h->>1 = $4))
       AND ($5::timestamptz IS NULL OR p.first_failed_at <= $5)
       AND ($6::bigint IS NULL OR p.parked_id = $6)";

fn queue(row: &PgRow) -> Result<Queue, sqlx::Error> {
    let records: i64 = row.try_get(2)?;
    let wallet_id: Option<String> = row.try_get(1)?;
    Ok(Queue {
        group: row.try_get(0)?,
        behind: if wallet_id.is_some() { records - 1 } else { 0 },
        wallet_id,
        records,
        first_position: row.try_get(3)?,
        last_position: row.try_get(4)?,
        record_id: row.try_get(5)?,
        partition: row.try_get(6)?,
        event_type: row.try_get(7)?,
        error_class: row.try_get(8)?,
        error: row.try_get(9)?,
        attempts: row.try_get(10)?,
        since: row.try_get(11)?,
        last_failed_at: row.try_get(12)?,
    })
}

impl Database {
    /// The queues of a selection, the longest parked first.
    pub(crate) async fn parked_queues(&self, selection: &Selection, page: Page) -> Result<Vec<Queue>, DlqError> {
        let rows = sqlx::query(AssertSqlSafe(QUEUES.replace("STRANGER", STRANGER)))
            .bind(&selection.group)
            .bind(&selection.wallet)
            .bind(&selection.error)
            .bind(&selection.event_type)
            .bind(selection.failed_before)
            .bind(selection.record)
            .bind(page.limit)
            .bind(page.offset)
            .fetch_all(self.pool())
            .await?;
        Ok(rows.iter().map(queue).collect::<Result<_, _>>()?)
    }

    /// Records of one queue, in order; those of no wallet where `wallet` is `None`.
    pub(crate) async fn parked_of_queue(
        &self,
        group: &str,
        wallet: Option<&str>,
        page: Page,
    ) -> Result<Vec<StoredRecord>, DlqError> {
        let statement = format!(
            "SELECT {STORED_COLUMNS} FROM parked_records p
              WHERE p.projection = $1 AND (p.wallet_id = $2 OR (p.wallet_id IS NULL AND $2 IS NULL))
              ORDER BY p.position, p.parked_id LIMIT $3 OFFSET $4"
        );
        let query = sqlx::query(AssertSqlSafe(statement)).bind(group).bind(wallet).bind(page.limit).bind(page.offset);
        let rows = query.fetch_all(self.pool()).await?;
        Ok(rows.iter().map(stored_record).collect::<Result<_, _>>()?)
    }

    /// The record of this number, if it is parked.
    pub(crate) async fn parked_record(&self, parked_id: i64) -> Result<Option<StoredRecord>, DlqError> {
        let statement = format!("SELECT {STORED_COLUMNS} FROM parked_records p WHERE p.parked_id = $1");
        let row = sqlx::query(AssertSqlSafe(statement)).bind(parked_id).fetch_optional(self.pool()).await?;
        Ok(row.as_ref().map(stored_record).transpose()?)
    }

    /// The numbers of the records of no wallet that a selection is about, in order, up to `limit` of them after `after`.
    pub(crate) async fn parked_strangers(
        &self,
        selection: &Selection,
        after: i64,
        limit: i64,
    ) -> Result<Vec<i64>, DlqError> {
        let statement = format!(
            "SELECT p.parked_id FROM parked_records p WHERE {STRANGER} AND p.parked_id > $7 ORDER BY p.parked_id LIMIT $8"
        );
        let query = sqlx::query_scalar(AssertSqlSafe(statement))
            .bind(&selection.group)
            .bind(&selection.wallet)
            .bind(&selection.error)
            .bind(&selection.event_type)
            .bind(selection.failed_before)
            .bind(selection.record)
            .bind(after)
            .bind(limit);
        Ok(query.fetch_all(self.pool()).await?)
    }

    /// The log's events at these positions; those that there are.
    pub(crate) async fn events_at(&self, positions: &[Position]) -> Result<Vec<RecordedEvent>, DlqError> {
        Ok(events_at(&mut *self.by_index().acquire().await?, positions).await?)
    }

    /// What a group's own tables hold of wallets now, in minor units. A wallet of which they hold nothing is left out, and so are
    /// all of a group whose tables are not wallex's.
    pub(crate) async fn balances_held(&self, group: &str, wallets: &[&str]) -> Result<HashMap<String, i64>, DlqError> {
        let statement = match group {
            READ_MODEL_PROJECTOR => "SELECT wallet_id, balance FROM read_model_wallets WHERE wallet_id = ANY($1)",
            LEDGER_PROJECTOR => {
                "SELECT asked.wallet_id, last.balance_after FROM unnest($1::text[]) AS asked(wallet_id)
                  CROSS JOIN LATERAL (SELECT p.balance_after FROM ledger_postings p
                                       WHERE p.account = 'wallet/' || asked.wallet_id AND p.leg = 0
                                       ORDER BY p.position DESC LIMIT 1) AS last"
            }
            _ => return Ok(HashMap::new()),
        };
        let held: Vec<(String, i64)> = sqlx::query_as(statement).bind(wallets).fetch_all(self.by_index()).await?;
        Ok(held.into_iter().collect())
    }

    /// The groups that are projections: they have checkpoints.
    pub(crate) async fn projections(&self) -> Result<Vec<String>, DlqError> {
        let statement = "SELECT DISTINCT projection FROM projection_checkpoints ORDER BY projection";
        Ok(sqlx::query_scalar(statement).fetch_all(self.pool()).await?)
    }

    /// What operators have done, the newest first.
    pub(crate) async fn dead_letter_deeds(
        &self,
        group: Option<&str>,
        wallet: Option<&str>,
        page: Page,
    ) -> Result<Vec<Deed>, DlqError> {
        let statement = "SELECT action_id, action, projection, wallet_id, done_by, reason, begun_at, ended_at, records,
                                first_position, last_position, remaining, error
                           FROM dead_letter_actions
                          WHERE ($1::text IS NULL OR projection = $1) AND ($2::text IS NULL OR wallet_id = $2)
                          ORDER BY sequence DESC LIMIT $3 OFFSET $4";
        let query = sqlx::query(statement).bind(group).bind(wallet).bind(page.limit).bind(page.offset);
        let rows = query.fetch_all(self.pool()).await?;
        let read = |row: &PgRow| -> Result<Deed, sqlx::Error> {
            Ok(Deed {
                action_id: row.try_get(0)?,
                action: row.try_get(1)?,
                group: row.try_get(2)?,
                wallet_id: row.try_get(3)?,
                by: row.try_get(4)?,
                reason: row.try_get(5)?,
                begun_at: row.try_get(6)?,
                ended_at: row.try_get(7)?,
                records: row.try_get(8)?,
                first_position: row.try_get(9)?,
                last_position: row.try_get(10)?,
                remaining: row.try_get(11)?,
                error: row.try_get(12)?,
            })
        };
        Ok(rows.iter().map(read).collect::<Result<_, _>>()?)
    }
}

/// The log's events at these positions, in order; those that there are.
pub(crate) async fn events_at(
    connection: &mut PgConnection,
    positions: &[Position],
) -> Result<Vec<RecordedEvent>, sqlx::Error> {
    let statement =
        "SELECT e.position, e.revision, e.event_id, e.event_type, e.event_version, e.recorded_at, e.payload,
                            e.metadata, s.name
                       FROM events e JOIN streams s USING (stream_id) WHERE e.position = ANY($1) ORDER BY e.position";
    let rows = sqlx::query(statement).bind(positions).fetch_all(connection).await?;
    let read = |row: &PgRow| -> Result<RecordedEvent, sqlx::Error> {
        let name: String = row.try_get("name")?;
        recorded_event(row, WalletId::new(name).map_err(|error| sqlx::Error::Decode(error.into()))?)
    };
    rows.iter().map(read).collect()
}

/// Takes a queue for this transaction alone: whoever else settles records of the group's partition waits, and so does the runner
/// that would add some. `false` where the group has no checkpoint there, and so is no projection that could be kept waiting.
pub(crate) async fn lock_queue(
    transaction: &mut PgConnection,
    group: &str,
    partition: i32,
) -> Result<bool, sqlx::Error> {
    let statement = "SELECT FROM projection_checkpoints WHERE projection = $1 AND partition = $2 FOR UPDATE";
    let row = sqlx::query(statement).bind(group).bind(partition).fetch_optional(transaction).await?;
    Ok(row.is_some())
}

/// The first records of a wallet's queue, in order: numbers and positions.
///
/// A statement of its own, after [`lock_queue`]: so it sees what was added or settled by whoever held the lock before.
pub(crate) async fn queue_beginning(
    transaction: &mut PgConnection,
    group: &str,
    wallet: &str,
    limit: i64,
) -> Result<Vec<(i64, Position)>, sqlx::Error> {
    let statement = "SELECT parked_id, position FROM parked_records
                      WHERE projection = $1 AND wallet_id = $2 ORDER BY position LIMIT $3";
    sqlx::query_as(statement).bind(group).bind(wallet).bind(limit).fetch_all(transaction).await
}

/// How many records a queue has.
pub(crate) async fn queue_length(
    transaction: &mut PgConnection,
    group: &str,
    wallet: Option<&str>,
) -> Result<i64, sqlx::Error> {
    let statement = "SELECT count(*) FROM parked_records
                      WHERE projection = $1 AND (wallet_id = $2 OR (wallet_id IS NULL AND $2 IS NULL))";
    sqlx::query_scalar(statement).bind(group).bind(wallet).fetch_one(transaction).await
}

/// Lets records go: they have been applied.
pub(crate) async fn unpark(transaction: &mut PgConnection, parked: &[i64]) -> Result<(), sqlx::Error> {
    sqlx::query("DELETE FROM parked_records WHERE parked_id = ANY($1)").bind(parked).execute(transaction).await?;
    Ok(())
}

/// Notes that a parked record has failed again. The copy of it is due again too.
pub(crate) async fn note_failure(
    transaction: &mut PgConnection,
    parked_id: i64,
    error_class: &str,
    error: &str,
) -> Result<(), sqlx::Error> {
    let statement = "UPDATE parked_records SET error_class = $2, error = $3, attempts = attempts + 1, copied_at = NULL,
                            last_failed_at = clock_timestamp()
                      WHERE parked_id = $1";
    sqlx::query(statement).bind(parked_id).bind(error_class).bind(error).execute(transaction).await?;
    Ok(())
}

/// Moves records from the parked to the discarded ones; how many were there still, with the first and last position.
pub(crate) async fn discard(
    transaction: &mut PgConnection,
    action: &Action,
    parked: &[i64],
) -> Result<Settled, sqlx::Error> {
    let statement = "WITH gone AS (DELETE FROM parked_records WHERE parked_id = ANY($1) RETURNING *),
         kept AS (
            INSERT INTO discarded_records (parked_id, action_id, discarded_at, projection, wallet_id, position, revision, topic,
                   partition, kafka_offset, record_time, record_key, record_value, record_headers, error_class, error, attempts,
                   first_failed_at, last_failed_at)
            SELECT g.parked_id, $2, $3, g.projection, g.wallet_id, g.position, e.revision, g.topic, g.partition, g.kafka_offset,
                   g.record_time, g.record_key, g.record_value, g.record_headers, g.error_class, g.error, g.attempts,
                   g.first_failed_at, g.last_failed_at
              FROM gone g LEFT JOIN events e ON e.position = g.position)
         SELECT count(*), min(position), max(position) FROM gone";
    let (records, first, last) =
        sqlx::query_as(statement).bind(parked).bind(action.id).bind(Utc::now()).fetch_one(transaction).await?;
    Ok(Settled { records, first_position: first, last_position: last, ..Settled::default() })
}

/// Notes what an operator's command has done to one queue, on top of what it did there before.
pub(crate) async fn note_deed(
    transaction: &mut PgConnection,
    action: &Action,
    group: &str,
    wallet: Option<&str>,
    settled: &Settled,
) -> Result<(), sqlx::Error> {
    let statement =
        "INSERT INTO dead_letter_actions AS a (action_id, action, projection, wallet_id, done_by, reason, begun_at,
                            ended_at, records, first_position, last_position, remaining, error)
         VALUES ($1, $2, $3, $4, $5, $6, $7, clock_timestamp(), $8, $9, $10, $11, $12)
             ON CONFLICT (action_id, projection, (coalesce(wallet_id, ''))) DO UPDATE
            SET ended_at = excluded.ended_at, records = a.records + excluded.records,
                first_position = least(a.first_position, excluded.first_position),
                last_position = greatest(a.last_position, excluded.last_position),
                remaining = excluded.remaining, error = excluded.error";
    sqlx::query(statement)
        .bind(action.id)
        .bind(action.kind.as_str())
        .bind(group)
        .bind(wallet)
        .bind(&action.by)
        .bind(&action.reason)
        .bind(action.begun_at)
        .bind(settled.records)
        .bind(settled.first_position)
        .bind(settled.last_position)
        .bind(settled.remaining)
        .bind(&settled.error)
        .execute(transaction)
        .await?;
    Ok(())
}
