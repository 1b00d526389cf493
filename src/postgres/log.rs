//! The event log in PostgreSQL.

use chrono::{DateTime, Utc};
use sqlx::postgres::PgRow;
use sqlx::{Connection, PgConnection, PgPool, Row};
use std::collections::HashMap;
use std::sync::Arc;
use tokio::sync::Mutex;
use uuid::Uuid;

use crate::log::{
    Appended, Atomicity, Batch, EventLog, KeyRecord, KeyScope, LoadedStream, LogError, Position, RecordedEvent,
    Revision, Snapshot, StreamKey,
};
use crate::postgres::{Database, is_transient, keys};
use crate::wallet::{EVENT_VERSION, WalletId};

/// PostgreSQL's notification channel that is rung once for each append; the payload is the new head's position.
pub const NOTIFY_CHANNEL: &str = "wallex_log";

/// How long the head's lock may be held without a word from its holder, as PostgreSQL writes durations.
const HEAD_LOCK_IDLE_MAX: &str = "5s";

/// One statement, so that an append is one round trip and one commit.
///
/// `head` is the compare-and-swap, and everything else hangs on its row: no row, nothing is written. Where the batch names the
/// head, its writer has read every stream up to it. Where it does not, each stream must hold the event before the batch's first
/// one of it; that reading may be older than the row lock, but then the unique index on (stream, revision) refuses. Only that one
/// event is looked for: to find a stream's last one PostgreSQL reads all of the stream that an index page holds.
///
/// The events are unnested once, where they are inserted, and neither joined with themselves, grouped, sorted nor kept beside:
/// without statistics of an array PostgreSQL joins it event by event, so the cost of an append would grow with the square of its
/// events, and a copy of them in a table expression of their own cost a fifth of the whole. So each event comes with its stream's
/// number or, where the stream is new, with its first event's place in the batch as a negative number; the new streams come in
/// arrays of their own.
const APPEND: &str = "
WITH head AS (
    UPDATE log_head SET position = position + $2
     WHERE (position = $1 OR $1::bigint IS NULL AND NOT EXISTS (
               SELECT FROM unnest($3::bigint[], $4::bigint[]) AS f(stream_id, revision) WHERE NOT EXISTS (
                   SELECT FROM events e WHERE e.stream_id = f.stream_id AND e.revision = f.revision - 1)))
       AND NOT EXISTS (
           SELECT FROM unnest($15::text[], $16::text[], $17::text[]) AS k(wallet_id, command_kind, key)
             JOIN idempotency_keys i USING (wallet_id, command_kind, key))
    RETURNING position
), new_streams AS (
    INSERT INTO streams (stream_id, name)
    SELECT h.position - $2 + n.place, n.name FROM head h, unnest($5::text[], $6::bigint[]) AS n(name, place)
), new_events AS (
    INSERT INTO events (position, stream_id, revision, event_id, event_type, event_version, recorded_at, payload, metadata)
    SELECT h.position - $2 + b.place, CASE WHEN b.stream > 0 THEN b.stream ELSE h.position - $2 - b.stream END, b.revision,
           b.event_id, b.event_type, $13, $14, b.payload, b.metadata
      FROM head h, unnest($7::bigint[], $8::bigint[], $9::uuid[], $10::text[], $11::bytea[], $12::bytea[])
           WITH ORDINALITY AS b(stream, revision, event_id, event_type, payload, metadata, place)
), new_keys AS (
    INSERT INTO idempotency_keys (wallet_id, command_kind, key, fingerprint, position, event_count, created_at)
    SELECT k.*, $14
      FROM unnest($15::text[], $16::text[], $17::text[], $18::bytea[], $19::bigint[], $20::int[])
        AS k(wallet_id, command_kind, key, fingerprint, position, event_count), head h
)
SELECT position, pg_notify('wallex_log', position::text) FROM head";

/// The streams of a batch, as [`APPEND`] takes them.
struct Streams<'batch> {
    /// For each event its stream's number, or, negative, the place of a new stream's first event.
    of_events: Vec<i64>,
    new_names: Vec<&'batch str>,
    new_places: Vec<i64>,
    /// Where the batch does not name the head: the streams that are there already, each with the batch's first revision
    /// of it.
    known: Vec<i64>,
    known_revisions: Vec<Revision>,
}

impl<'batch> Streams<'batch> {
    /// `None` where a stream that should go on has no event yet. `looked_up` are the numbers that the batch does not say.
    fn of(batch: &'batch Batch, first_places: &[i64], looked_up: &HashMap<String, i64>) -> Option<Self> {
        let mut streams = Streams {
            of_events: Vec::with_capacity(batch.events.len()),
            new_names: Vec::new(),
            new_places: Vec::new(),
            known: Vec::new(),
            known_revisions: Vec::new(),
        };
        for ((place, event), first_place) in (1..).zip(&batch.events).zip(first_places) {
            let known = event.stream_key.map(|key| key.0).or_else(|| looked_up.get(event.stream.as_str()).copied());
            streams.of_events.push(known.unwrap_or(-first_place));
            if place != *first_place {
                continue;
            }
            match known {
                Some(stream_id) if event.revision > 0 && batch.expected_head.is_none() => {
                    streams.known.push(stream_id);
                    streams.known_revisions.push(event.revision);
                }
                Some(_) => {}
                None if event.revision > 0 => return None,
                None => {
                    streams.new_names.push(event.stream.as_str());
                    streams.new_places.push(place);
                }
            }
        }
        Some(streams)
    }
}

/// The log of record.
#[derive(Clone, Debug)]
pub struct PostgresLog {
    database: Database,
    /// The connection that appends go through, one at a time. `None` until the first append and after an error.
    writer: Arc<Mutex<Option<Writer>>>,
}

#[derive(Debug)]
struct Writer {
    connection: PgConnection,
    /// Whether a transaction is open that holds the head's row lock.
    holds_head: bool,
}

impl PostgresLog {
    /// The log in this database. Nothing is sent yet.
    pub fn new(database: Database) -> Self {
        PostgresLog { database, writer: Arc::default() }
    }

    fn pool(&self) -> &PgPool {
        self.database.by_index()
    }

    async fn take_writer(&self, kept: &mut Option<Writer>) -> Result<Writer, sqlx::Error> {
        match kept.take() {
            Some(writer) => Ok(writer),
            None => {
                // A writer that is halted while it holds the head's lock must not halt the others with it.
                let options = self.database.connect_options().clone();
                let options = options.options([("idle_in_transaction_session_timeout", HEAD_LOCK_IDLE_MAX)]);
                let connection = PgConnection::connect_with(&options).await?;
                Ok(Writer { connection, holds_head: false })
            }
        }
    }

    async fn append_on(
        connection: &mut PgConnection,
        batch: &Batch,
        first_places: &[i64],
    ) -> Result<Appended, sqlx::Error> {
        let looked_up = Self::stream_numbers(connection, batch, first_places).await?;
        let Some(streams) = Streams::of(batch, first_places, &looked_up) else {
            return Ok(Appended::Conflict);
        };
        let events = &batch.events;
        let row = sqlx::query(APPEND)
            .bind(batch.expected_head)
            .bind(events.len() as i64)
            .bind(streams.known)
            .bind(streams.known_revisions)
            .bind(streams.new_names)
            .bind(streams.new_places)
            .bind(streams.of_events)
            .bind(events.iter().map(|event| event.revision).collect::<Vec<_>>())
            .bind(events.iter().map(|event| event.event_id).collect::<Vec<Uuid>>())
            .bind(events.iter().map(|event| event.event_type).collect::<Vec<_>>())
            .bind(events.iter().map(|event| event.payload.as_slice()).collect::<Vec<_>>())
            .bind(events.iter().map(|event| event.metadata.as_ref()).collect::<Vec<_>>())
            .bind(EVENT_VERSION as i32)
            .bind(batch.recorded_at)
            .bind(batch.keys.iter().map(|key| key.scope.wallet_id.as_str()).collect::<Vec<_>>())
            .bind(batch.keys.iter().map(|key| key.scope.command_kind).collect::<Vec<_>>())
            .bind(batch.keys.iter().map(|key| key.scope.key.as_ref()).collect::<Vec<_>>())
            .bind(batch.keys.iter().map(|key| key.fingerprint.as_slice()).collect::<Vec<_>>())
            .bind(batch.keys.iter().map(|key| key.position).collect::<Vec<_>>())
            .bind(batch.keys.iter().map(|key| key.event_count).collect::<Vec<_>>())
            .fetch_optional(connection)
            .await;
        match row {
            Ok(Some(row)) => Ok(Appended::At(row.try_get(0)?)),
            Ok(None) => Ok(Appended::Conflict),
            Err(error) if is_unique_violation(&error) => Ok(Appended::Conflict),
            Err(error) => Err(error),
        }
    }

    /// The numbers of the streams that the batch goes on without naming them. A writer that has loaded them names them, so
    /// that this costs the sequencer nothing.
    async fn stream_numbers(
        connection: &mut PgConnection,
        batch: &Batch,
        first_places: &[i64],
    ) -> Result<HashMap<String, i64>, sqlx::Error> {
        let firsts = (1..).zip(&batch.events).zip(first_places).filter(|((place, _), first)| place == *first);
        let unnamed = firsts.filter(|((_, event), _)| event.stream_key.is_none() && event.revision > 0);
        let names: Vec<&str> = unnamed.map(|((_, event), _)| event.stream.as_str()).collect();
        if names.is_empty() {
            return Ok(HashMap::new());
        }
        let statement = "SELECT name, stream_id FROM streams WHERE name = ANY($1)";
        Ok(sqlx::query_as(statement).bind(names).fetch_all(connection).await?.into_iter().collect())
    }
}

fn is_unique_violation(error: &sqlx::Error) -> bool {
    error.as_database_error().is_some_and(|database| database.is_unique_violation())
}

pub(super) fn log_error(error: sqlx::Error) -> LogError {
    match &error {
        sqlx::Error::ColumnDecode { .. } | sqlx::Error::Decode(_) => LogError::Corrupt(error.to_string()),
        _ if is_transient(&error) => LogError::Away(error.to_string()),
        _ => LogError::Refused(error.to_string()),
    }
}

pub(super) fn wallet_id(name: String) -> Result<WalletId, LogError> {
    WalletId::new(name).map_err(|error| LogError::Corrupt(format!("a stream's name: {error}")))
}

pub(super) fn recorded_event(row: &PgRow, stream: WalletId) -> Result<RecordedEvent, sqlx::Error> {
    Ok(RecordedEvent {
        position: row.try_get("position")?,
        stream,
        revision: row.try_get("revision")?,
        event_id: row.try_get("event_id")?,
        event_type: row.try_get("event_type")?,
        event_version: row.try_get::<i32, _>("event_version")? as u32,
        recorded_at: row.try_get("recorded_at")?,
        payload: row.try_get("payload")?,
        metadata: row.try_get("metadata")?,
    })
}

impl EventLog for PostgresLog {
    fn atomicity(&self) -> Atomicity {
        Atomicity::Log
    }

    async fn append(&self, batch: &Batch) -> Result<Appended, LogError> {
        let mut kept = self.writer.lock().await;
        let mut writer = self.take_writer(&mut kept).await.map_err(log_error)?;
        // The connection is kept only after an answer: one that was dropped half-way (a caller's time-out) or that
        // failed is in a state that nobody knows.
        let appended = match batch.first_places() {
            Some(first_places) => {
                Self::append_on(&mut writer.connection, batch, &first_places).await.map_err(log_error)?
            }
            None => Appended::Conflict,
        };
        if writer.holds_head {
            sqlx::query("COMMIT").execute(&mut writer.connection).await.map_err(log_error)?;
            writer.holds_head = false;
        }
        *kept = Some(writer);
        Ok(appended)
    }

    async fn lock_head(&self) -> Result<Position, LogError> {
        let mut kept = self.writer.lock().await;
        let mut writer = self.take_writer(&mut kept).await.map_err(log_error)?;
        if !writer.holds_head {
            sqlx::query("BEGIN").execute(&mut writer.connection).await.map_err(log_error)?;
            writer.holds_head = true;
        }
        let position = sqlx::query_scalar("SELECT position FROM log_head FOR UPDATE")
            .fetch_one(&mut writer.connection)
            .await
            .map_err(log_error)?;
        *kept = Some(writer);
        Ok(position)
    }

    async fn head(&self) -> Result<Position, LogError> {
        let statement = "SELECT position FROM log_head";
        sqlx::query_scalar(statement).fetch_one(self.pool()).await.map_err(log_error)
    }

    async fn read(&self, after: Position, limit: usize) -> Result<Vec<RecordedEvent>, LogError> {
        let statement = "SELECT e.position, e.revision, e.event_id, e.event_type, e.event_version, e.recorded_at,
                                e.payload, e.metadata, s.name
                           FROM events e JOIN streams s USING (stream_id)
                          WHERE e.position > $1 ORDER BY e.position LIMIT $2";
        let rows =
            sqlx::query(statement).bind(after).bind(limit as i64).fetch_all(self.pool()).await.map_err(log_error)?;
        rows.iter()
            .map(|row| {
                let stream = wallet_id(row.try_get("name").map_err(log_error)?)?;
                recorded_event(row, stream).map_err(log_error)
            })
            .collect()
    }

    async fn read_stream(
        &self,
        stream: &WalletId,
        from: Revision,
        limit: usize,
    ) -> Result<Vec<RecordedEvent>, LogError> {
        let statement = "SELECT e.position, e.revision, e.event_id, e.event_type, e.event_version, e.recorded_at,
                                e.payload, e.metadata
                           FROM streams s JOIN events e USING (stream_id)
                          WHERE s.name = $1 AND e.revision >= $2 ORDER BY e.revision LIMIT $3";
        let rows = sqlx::query(statement)
            .bind(stream.as_str())
            .bind(from)
            .bind(limit as i64)
            .fetch_all(self.pool())
            .await
            .map_err(log_error)?;
        rows.iter().map(|row| recorded_event(row, stream.clone()).map_err(log_error)).collect()
    }

    async fn read_stream_end(&self, stream: &WalletId, limit: usize) -> Result<Vec<RecordedEvent>, LogError> {
        let statement = "SELECT e.position, e.revision, e.event_id, e.event_type, e.event_version, e.recorded_at,
                                e.payload, e.metadata
                           FROM streams s JOIN events e USING (stream_id)
                          WHERE s.name = $1 ORDER BY e.revision DESC LIMIT $2";
        let rows = sqlx::query(statement)
            .bind(stream.as_str())
            .bind(limit as i64)
            .fetch_all(self.pool())
            .await
            .map_err(log_error)?;
        rows.iter().rev().map(|row| recorded_event(row, stream.clone()).map_err(log_error)).collect()
    }

    async fn load(&self, streams: &[WalletId], snapshot_format: i32) -> Result<Vec<LoadedStream>, LogError> {
        // One row a stream and event of its tail; a stream always has events, but a snapshot may leave an empty tail.
        let statement = "SELECT s.name, s.stream_id, n.revision AS snapshot_revision, n.state,
                                e.position, e.revision, e.event_id, e.event_type, e.event_version, e.recorded_at,
                                e.payload, e.metadata
                           FROM streams s
                           LEFT JOIN snapshots n ON n.stream_id = s.stream_id AND n.snapshot_format = $2
                           LEFT JOIN events e ON e.stream_id = s.stream_id AND e.revision > coalesce(n.revision, -1)
                          WHERE s.name = ANY($1) ORDER BY s.stream_id, e.revision";
        let names: Vec<&str> = streams.iter().map(WalletId::as_str).collect();
        let rows =
            sqlx::query(statement).bind(names).bind(snapshot_format).fetch_all(self.pool()).await.map_err(log_error)?;
        let mut loaded: Vec<LoadedStream> = Vec::with_capacity(streams.len());
        for row in &rows {
            let stream_key = StreamKey(row.try_get("stream_id").map_err(log_error)?);
            if loaded.last().is_none_or(|last| last.stream_key != stream_key) {
                let revision: Option<Revision> = row.try_get("snapshot_revision").map_err(log_error)?;
                let snapshot = match revision {
                    Some(revision) => Some(Snapshot {
                        stream_key,
                        revision,
                        format: snapshot_format,
                        state: row.try_get("state").map_err(log_error)?,
                    }),
                    None => None,
                };
                let stream = wallet_id(row.try_get("name").map_err(log_error)?)?;
                loaded.push(LoadedStream { stream, stream_key, snapshot, tail: Vec::new() });
            }
            let has_event = row.try_get::<Option<Position>, _>("position").map_err(log_error)?.is_some();
            if let (true, Some(last)) = (has_event, loaded.last_mut()) {
                let event = recorded_event(row, last.stream.clone()).map_err(log_error)?;
                last.tail.push(event);
            }
        }
        Ok(loaded)
    }

    async fn find_keys(&self, keys: &[KeyScope]) -> Result<Vec<KeyRecord>, LogError> {
        keys::find(self.pool(), keys).await.map_err(log_error)
    }

    async fn save_snapshots(&self, snapshots: &[Snapshot]) -> Result<(), LogError> {
        let statement = "INSERT INTO snapshots (stream_id, revision, snapshot_format, state)
                         SELECT * FROM unnest($1::bigint[], $2::bigint[], $3::int[], $4::bytea[])
                         ON CONFLICT (stream_id) DO UPDATE
                            SET revision = excluded.revision, snapshot_format = excluded.snapshot_format, state = excluded.state
                          WHERE snapshots.revision < excluded.revision";
        sqlx::query(statement)
            .bind(snapshots.iter().map(|snapshot| snapshot.stream_key.0).collect::<Vec<_>>())
            .bind(snapshots.iter().map(|snapshot| snapshot.revision).collect::<Vec<_>>())
            .bind(snapshots.iter().map(|snapshot| snapshot.format).collect::<Vec<_>>())
            .bind(snapshots.iter().map(|snapshot| snapshot.state.as_slice()).collect::<Vec<_>>())
            .execute(self.pool())
            .await
            .map_err(log_error)?;
        Ok(())
    }

    async fn forget_keys(&self, before: DateTime<Utc>, limit: usize) -> Result<u64, LogError> {
        keys::forget(self.pool(), before, limit).await.map_err(log_error)
    }
}
