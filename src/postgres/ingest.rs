//! The copy of an event store's log: what the ingest writes, and what is asked of it.

use std::collections::HashMap;
use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, Connection, PgConnection, Row};
use thiserror::Error;
use uuid::Uuid;

use crate::log::{KeyRecord, LogError, Position, RecordedEvent, Revision, to_look_up, upcast};
use crate::postgres::ingest_checkpoint::{move_checkpoint, reached};
use crate::postgres::log::{log_error, recorded_event, wallet_id};
use crate::postgres::{Database, PageEnd, Reached, StorePlace};
use crate::wallet::{Before, WalletEvent, WalletId};

/// The advisory lock that the active ingest holds: "wallex", then the ingest's number.
const INGEST_LOCK: i64 = 0x7761_6c6c_6578_0008;

/// How many transfers in transit are read at once.
const IN_TRANSIT_PAGE: i64 = 1_000;

/// An event to copy. Its position is the copy's to give.
#[derive(Clone, Debug)]
pub(crate) struct CopiedEvent {
    pub(crate) event: RecordedEvent,
    /// The key whose command it begins; its position is the copy's to give.
    pub(crate) key: Option<KeyRecord>,
    /// Which leg of which transfer it is.
    pub(crate) leg: Option<(Uuid, TransferLeg)>,
}

/// One of a transfer's two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TransferLeg {
    Paying,
    Receiving,
}

/// Why a page was not copied. Nothing of it was.
#[derive(Debug, Error)]
pub(crate) enum CopyError {
    #[error("the copy: {0}")]
    Database(#[from] sqlx::Error),
    #[error("the copy's checkpoint was moved by somebody else")]
    Fenced,
    #[error("wallet {stream} goes on at revision {found} in the event store, but the copy ends before {expected}")]
    Gap { stream: WalletId, expected: Revision, found: Revision },
}

/// The active ingest's own connection. Its lock lives and dies with it.
pub(crate) struct IngestSession {
    connection: PgConnection,
}

impl IngestSession {
    /// Becomes the active ingest; `None` while another one is.
    pub(crate) async fn begin(database: &Database) -> Result<Option<Self>, CopyError> {
        let mut connection = PgConnection::connect_with(database.connect_options()).await?;
        let is_ours: bool =
            sqlx::query_scalar("SELECT pg_try_advisory_lock($1)").bind(INGEST_LOCK).fetch_one(&mut connection).await?;
        Ok(is_ours.then_some(IngestSession { connection }))
    }

    /// How far the copy reaches; `None` before its first page.
    pub(crate) async fn reached(&mut self) -> Result<Option<Reached>, CopyError> {
        Ok(reached(&mut self.connection).await?)
    }

    /// Copies a page and moves the checkpoint over it, both or neither. Events that the copy has are passed over. How many were
    /// new.
    pub(crate) async fn copy(
        &mut self,
        from: Option<StorePlace>,
        to: PageEnd,
        page: Vec<CopiedEvent>,
    ) -> Result<usize, CopyError> {
        let mut transaction = self.connection.begin().await?;
        move_checkpoint(&mut transaction, from, &to).await?;
        let mut new = new_events(&mut transaction, page).await?;
        in_our_terms(&mut transaction, &mut new).await?;
        if !new.is_empty() {
            write(&mut transaction, &new).await?;
        }
        transaction.commit().await?;
        Ok(new.len())
    }

    /// Makes way for another ingest.
    pub(crate) async fn end(self) {
        // Where the connection is gone already, so is the lock.
        let _ = self.connection.close().await;
    }
}

/// An event that the copy does not have, with its stream's number; a stream that is new has none yet.
struct New {
    copied: CopiedEvent,
    stream_id: Option<i64>,
}

/// Those that go on where their streams end in the copy.
async fn new_events(transaction: &mut PgConnection, page: Vec<CopiedEvent>) -> Result<Vec<New>, CopyError> {
    let mut names: Vec<&str> = page.iter().map(|copied| copied.event.stream.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    let statement = "SELECT s.name, s.stream_id,
                            (SELECT e.revision FROM events e WHERE e.stream_id = s.stream_id
                              ORDER BY e.revision DESC LIMIT 1)
                       FROM streams s WHERE s.name = ANY($1)";
    let rows: Vec<(String, i64, Revision)> = sqlx::query_as(statement).bind(names).fetch_all(transaction).await?;
    let mut ends: HashMap<String, (Option<i64>, Revision)> =
        rows.into_iter().map(|(name, stream_id, last)| (name, (Some(stream_id), last))).collect();
    let mut new = Vec::with_capacity(page.len());
    for copied in page {
        let (stream, found) = (&copied.event.stream, copied.event.revision);
        let (stream_id, last) = ends.entry(stream.to_string()).or_insert((None, -1));
        let expected = *last + 1;
        if found > expected {
            return Err(CopyError::Gap { stream: stream.clone(), expected, found });
        }
        if found == expected {
            *last = found;
            new.push(New { stream_id: *stream_id, copied });
        }
    }
    Ok(new)
}

/// Brings events of the earlier system into our terms, each by the one before it, which the copy may have.
async fn in_our_terms(transaction: &mut PgConnection, new: &mut [New]) -> Result<(), sqlx::Error> {
    if !new.iter().any(|new| new.copied.event.is_of_the_earlier_system()) {
        return Ok(());
    }
    let stream_ids: HashMap<&WalletId, i64> =
        new.iter().filter_map(|new| Some((&new.copied.event.stream, new.stream_id?))).collect();
    let wanted = to_look_up(new.iter().map(|new| &new.copied.event));
    let wanted = wanted.into_iter().filter_map(|(stream, revision)| Some((stream, *stream_ids.get(stream)?, revision)));
    let wanted: Vec<(&WalletId, i64, Revision)> = wanted.collect();
    let statement = "SELECT f.stream_id, e.event_type, e.event_version, e.payload
                       FROM unnest($1::bigint[], $2::bigint[]) AS f(stream_id, revision),
                            LATERAL (SELECT * FROM events e
                                      WHERE e.stream_id = f.stream_id AND e.revision = f.revision - 1 LIMIT 1) AS e";
    let rows: Vec<(i64, String, i32, Vec<u8>)> = sqlx::query_as(statement)
        .bind(wanted.iter().map(|(_, stream_id, _)| *stream_id).collect::<Vec<_>>())
        .bind(wanted.iter().map(|(_, _, revision)| *revision).collect::<Vec<_>>())
        .fetch_all(transaction)
        .await?;
    let left: HashMap<i64, Before> = rows
        .into_iter()
        .map(|(stream_id, event_type, version, payload)| {
            let event = WalletEvent::from_payload(&event_type, version as u32, &payload);
            (stream_id, event.map_or(Before::Unknown, |event| Before::after(&event)))
        })
        .collect();
    let before = wanted.into_iter().filter_map(|(stream, id, _)| Some((stream.clone(), *left.get(&id)?))).collect();
    upcast(new.iter_mut().map(|new| &mut new.copied.event), before);
    Ok(())
}

async fn write(transaction: &mut PgConnection, new: &[New]) -> Result<(), sqlx::Error> {
    let count = new.len() as i64;
    let head: Position = sqlx::query_scalar("UPDATE log_head SET position = position + $1 RETURNING position")
        .bind(count)
        .fetch_one(&mut *transaction)
        .await?;
    let first = head - count + 1;
    // A new stream's number is the position of its first event.
    let mut made: HashMap<&WalletId, i64> = HashMap::new();
    let mut stream_ids = Vec::with_capacity(new.len());
    for (position, New { copied, stream_id }) in (first..).zip(new) {
        stream_ids.push(stream_id.unwrap_or_else(|| *made.entry(&copied.event.stream).or_insert(position)));
    }
    sqlx::query("INSERT INTO streams (name, stream_id) SELECT * FROM unnest($1::text[], $2::bigint[])")
        .bind(made.keys().map(|name| name.as_str()).collect::<Vec<_>>())
        .bind(made.values().copied().collect::<Vec<_>>())
        .execute(&mut *transaction)
        .await?;
    let events = || new.iter().map(|new| &new.copied.event);
    let statement =
        "INSERT INTO events (position, stream_id, revision, event_id, event_type, event_version, recorded_at,
                                         payload, metadata)
                     SELECT $1 - 1 + e.place, e.stream_id, e.revision, e.event_id, e.event_type, e.event_version,
                            e.recorded_at, e.payload, e.metadata
                       FROM unnest($2::bigint[], $3::bigint[], $4::uuid[], $5::text[], $6::int[], $7::timestamptz[],
                                   $8::bytea[], $9::bytea[])
                            WITH ORDINALITY AS e(stream_id, revision, event_id, event_type, event_version, recorded_at,
                                                 payload, metadata, place)";
    sqlx::query(statement)
        .bind(first)
        .bind(&stream_ids)
        .bind(events().map(|event| event.revision).collect::<Vec<_>>())
        .bind(events().map(|event| event.event_id).collect::<Vec<_>>())
        .bind(events().map(|event| event.event_type.as_str()).collect::<Vec<_>>())
        .bind(events().map(|event| event.event_version as i32).collect::<Vec<_>>())
        .bind(events().map(|event| event.recorded_at).collect::<Vec<DateTime<Utc>>>())
        .bind(events().map(|event| event.payload.as_slice()).collect::<Vec<_>>())
        .bind(events().map(|event| event.metadata.as_slice()).collect::<Vec<_>>())
        .execute(&mut *transaction)
        .await?;
    write_keys(transaction, first, new).await?;
    write_transfers(transaction, first, new).await?;
    sqlx::query("SELECT pg_notify('wallex_log', $1::text)").bind(head.to_string()).execute(transaction).await?;
    Ok(())
}

async fn write_keys(transaction: &mut PgConnection, first: Position, new: &[New]) -> Result<(), sqlx::Error> {
    let keys: Vec<(Position, &KeyRecord, DateTime<Utc>)> = (first..)
        .zip(new)
        .filter_map(|(position, new)| Some((position, new.copied.key.as_ref()?, new.copied.event.recorded_at)))
        .collect();
    if keys.is_empty() {
        return Ok(());
    }
    // The first use of a key is the one that counts.
    let statement =
        "INSERT INTO idempotency_keys (wallet_id, command_kind, key, fingerprint, position, event_count, created_at)
                     SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::bytea[], $5::bigint[], $6::int[],
                                          $7::timestamptz[])
                     ON CONFLICT DO NOTHING";
    sqlx::query(statement)
        .bind(keys.iter().map(|(_, key, _)| key.scope.wallet_id.as_str()).collect::<Vec<_>>())
        .bind(keys.iter().map(|(_, key, _)| key.scope.command_kind).collect::<Vec<_>>())
        .bind(keys.iter().map(|(_, key, _)| key.scope.key.as_ref()).collect::<Vec<_>>())
        .bind(keys.iter().map(|(_, key, _)| key.fingerprint.as_slice()).collect::<Vec<_>>())
        .bind(keys.iter().map(|(position, _, _)| *position).collect::<Vec<_>>())
        .bind(keys.iter().map(|(_, key, _)| key.event_count).collect::<Vec<_>>())
        .bind(keys.iter().map(|(_, _, at)| *at).collect::<Vec<_>>())
        .execute(transaction)
        .await?;
    Ok(())
}

async fn write_transfers(transaction: &mut PgConnection, first: Position, new: &[New]) -> Result<(), sqlx::Error> {
    let legs = |wanted: TransferLeg| -> (Vec<Uuid>, Vec<Position>) {
        let legs = (first..).zip(new).filter_map(|(position, new)| Some((new.copied.leg?, position)));
        legs.filter(|((_, leg), _)| *leg == wanted).map(|((id, _), position)| (id, position)).unzip()
    };
    // A paying leg always lies before its receiving one.
    let (ids, positions) = legs(TransferLeg::Paying);
    if !ids.is_empty() {
        let statement = "INSERT INTO stream_transfers (transfer_id, debit_position)
                         SELECT * FROM unnest($1::uuid[], $2::bigint[]) ON CONFLICT DO NOTHING";
        sqlx::query(statement).bind(ids).bind(positions).execute(&mut *transaction).await?;
    }
    let (ids, positions) = legs(TransferLeg::Receiving);
    if !ids.is_empty() {
        let statement = "UPDATE stream_transfers t SET credit_position = r.position
                           FROM unnest($1::uuid[], $2::bigint[]) AS r(transfer_id, position)
                          WHERE t.transfer_id = r.transfer_id AND t.credit_position IS NULL";
        sqlx::query(statement).bind(ids).bind(positions).execute(transaction).await?;
    }
    Ok(())
}

impl Database {
    /// Of these transfers, those whose receiving leg the copy has, with its position.
    pub(crate) async fn received_transfers(&self, ids: &[Uuid]) -> Result<Vec<(Uuid, Position)>, LogError> {
        let statement = "SELECT transfer_id, credit_position FROM stream_transfers
                          WHERE transfer_id = ANY($1) AND credit_position IS NOT NULL";
        sqlx::query_as(statement).bind(ids).fetch_all(self.by_index()).await.map_err(log_error)
    }

    /// The paying legs of up to `limit` transfers in transit that the copy has known for that long, the oldest first.
    pub(crate) async fn transfers_in_transit(
        &self,
        known_for: Duration,
        limit: i64,
    ) -> Result<Vec<RecordedEvent>, LogError> {
        let statement = format!(
            "{PAYING_LEGS} WHERE t.credit_position IS NULL AND t.seen_at <= now() - make_interval(secs => $1)
              ORDER BY t.seen_at, t.debit_position LIMIT $2"
        );
        let rows = sqlx::query(AssertSqlSafe(statement))
            .bind(known_for.as_secs_f64())
            .bind(limit)
            .fetch_all(self.by_index())
            .await
            .map_err(log_error)?;
        rows.iter().map(paying_leg).collect()
    }

    /// A page of the paying legs of transfers that are in transit as of a position of the copy, those after another one, in order.
    pub(crate) async fn in_transit_at(
        &self,
        position: Position,
        after: Position,
    ) -> Result<Vec<RecordedEvent>, LogError> {
        let statement = format!(
            "{PAYING_LEGS} WHERE t.debit_position > $2 AND t.debit_position <= $1
                AND coalesce(t.credit_position, $1 + 1) > $1
              ORDER BY t.debit_position LIMIT $3"
        );
        let reading = sqlx::query(AssertSqlSafe(statement)).bind(position).bind(after).bind(IN_TRANSIT_PAGE);
        reading.fetch_all(self.pool()).await.map_err(log_error)?.iter().map(paying_leg).collect()
    }
}

/// The paying legs of transfers, as [`paying_leg`] reads them.
const PAYING_LEGS: &str =
    "SELECT e.position, e.revision, e.event_id, e.event_type, e.event_version, e.recorded_at, e.payload, e.metadata, s.name
       FROM stream_transfers t JOIN events e ON e.position = t.debit_position JOIN streams s USING (stream_id)";

fn paying_leg(row: &PgRow) -> Result<RecordedEvent, LogError> {
    let stream = wallet_id(row.try_get("name").map_err(log_error)?)?;
    recorded_event(row, stream).map_err(log_error)
}
