//! Reading everything back for a verification: page by page, each page a plain range of an index.

use sqlx::Row;
use sqlx::postgres::PgRow;

use crate::kafka::EVENTS_TOPIC;
use crate::log::{Position, Revision};
use crate::postgres::{Database, is_transient};
use crate::verify::{
    DiscardedRow, EventRow, KeyRow, OutboxRow, ParkedRow, PostingRow, SnapshotRow, Strangers, Stray, StreamId,
    VerifyError, WalletRow, WithheldSpan,
};

/// Discarded records of no wallet that a verification knows of at most; what is beyond in the topic counts as a difference.
const DISCARDED_STRANGERS_MAX: i64 = 100_000;

fn verify_error(error: sqlx::Error) -> VerifyError {
    if is_transient(&error) { VerifyError::Away(error.to_string()) } else { VerifyError::Refused(error.to_string()) }
}

fn all<T>(rows: &[PgRow], read: impl Fn(&PgRow) -> Result<T, sqlx::Error>) -> Result<Vec<T>, VerifyError> {
    rows.iter().map(read).collect::<Result<_, _>>().map_err(verify_error)
}

fn event_row(row: &PgRow) -> Result<EventRow, sqlx::Error> {
    // By number: looking a column up by its name costs more than reading it, and there are millions of rows.
    Ok(EventRow {
        position: row.try_get(0)?,
        stream_id: row.try_get(1)?,
        revision: row.try_get(2)?,
        event_id: row.try_get(3)?,
        event_type: row.try_get(4)?,
        event_version: row.try_get(5)?,
        recorded_at: row.try_get(6)?,
        payload: row.try_get(7)?,
        metadata: row.try_get(8)?,
    })
}

fn posting_row(row: &PgRow) -> Result<PostingRow, sqlx::Error> {
    Ok(PostingRow {
        position: row.try_get(0)?,
        leg: row.try_get(1)?,
        account: row.try_get(2)?,
        currency: row.try_get(3)?,
        amount: row.try_get(4)?,
        balance_after: row.try_get(5)?,
        event_id: row.try_get(6)?,
        transaction_type: row.try_get(7)?,
        description: row.try_get(8)?,
        reference_id: row.try_get(9)?,
        related_wallet_id: row.try_get(10)?,
        metadata: row.try_get(11)?,
        created_at: row.try_get(12)?,
    })
}

impl Database {
    /// The events at positions `first..=last`, in order.
    pub(crate) async fn event_rows(&self, first: Position, last: Position) -> Result<Vec<EventRow>, VerifyError> {
        let statement =
            "SELECT position, stream_id, revision, event_id, event_type, event_version, recorded_at, payload, metadata
                           FROM events WHERE position BETWEEN $1 AND $2 ORDER BY position";
        let rows = sqlx::query(statement).bind(first).bind(last).fetch_all(self.pool()).await.map_err(verify_error)?;
        all(&rows, event_row)
    }

    /// The postings at positions `first..=last`, in order.
    pub(crate) async fn posting_rows(&self, first: Position, last: Position) -> Result<Vec<PostingRow>, VerifyError> {
        let statement =
            "SELECT position, leg, account, currency, amount, balance_after, event_id, transaction_type, description,
                                reference_id, related_wallet_id, metadata, created_at
                           FROM ledger_postings WHERE position BETWEEN $1 AND $2 ORDER BY position, leg";
        let rows = sqlx::query(statement).bind(first).bind(last).fetch_all(self.pool()).await.map_err(verify_error)?;
        all(&rows, posting_row)
    }

    /// The names of these streams; one that has none is left out.
    pub(crate) async fn stream_names(&self, streams: &[StreamId]) -> Result<Vec<(StreamId, String)>, VerifyError> {
        let statement = "SELECT stream_id, name FROM streams WHERE stream_id = ANY($1)";
        let rows = sqlx::query(statement).bind(streams).fetch_all(self.pool()).await.map_err(verify_error)?;
        all(&rows, |row| Ok((row.try_get(0)?, row.try_get(1)?)))
    }

    /// Up to `limit` streams of numbers in `after+1..=last`, in order.
    pub(crate) async fn streams_after(
        &self,
        after: StreamId,
        last: StreamId,
        limit: i64,
    ) -> Result<Vec<(StreamId, String)>, VerifyError> {
        let statement =
            "SELECT stream_id, name FROM streams WHERE stream_id > $1 AND stream_id <= $2 ORDER BY stream_id LIMIT $3";
        let query = sqlx::query(statement).bind(after).bind(last).bind(limit);
        let rows = query.fetch_all(self.pool()).await.map_err(verify_error)?;
        all(&rows, |row| Ok((row.try_get(0)?, row.try_get(1)?)))
    }

    /// The read model's rows of these wallets, in no order.
    pub(crate) async fn wallet_rows(&self, names: &[&str]) -> Result<Vec<WalletRow>, VerifyError> {
        let statement =
            "SELECT wallet_id, owner_id, currency, balance, status, version, position, created_at, updated_at
                           FROM read_model_wallets WHERE wallet_id = ANY($1)";
        let rows = sqlx::query(statement).bind(names).fetch_all(self.pool()).await.map_err(verify_error)?;
        all(&rows, |row| {
            Ok(WalletRow {
                wallet_id: row.try_get(0)?,
                owner_id: row.try_get(1)?,
                currency: row.try_get(2)?,
                balance: row.try_get(3)?,
                status: row.try_get(4)?,
                version: row.try_get(5)?,
                position: row.try_get(6)?,
                created_at: row.try_get(7)?,
                updated_at: row.try_get(8)?,
            })
        })
    }

    /// The snapshots of these streams, in no order.
    pub(crate) async fn snapshot_rows(&self, streams: &[StreamId]) -> Result<Vec<SnapshotRow>, VerifyError> {
        let statement = "SELECT stream_id, revision, snapshot_format, state FROM snapshots WHERE stream_id = ANY($1)";
        let rows = sqlx::query(statement).bind(streams).fetch_all(self.pool()).await.map_err(verify_error)?;
        all(&rows, |row| {
            Ok(SnapshotRow {
                stream_id: row.try_get(0)?,
                revision: row.try_get(1)?,
                format: row.try_get(2)?,
                state: row.try_get(3)?,
            })
        })
    }

    /// Up to `limit` events in the order of (stream, revision): those behind `after`, of streams up to `last`, at positions up to
    /// `head`. Without metadata.
    pub(crate) async fn history_rows(
        &self,
        after: (StreamId, Revision),
        last: StreamId,
        head: Position,
        limit: i64,
    ) -> Result<Vec<EventRow>, VerifyError> {
        let statement =
            "SELECT position, stream_id, revision, event_id, event_type, event_version, recorded_at, payload, ''::bytea
                           FROM events
                          WHERE (stream_id, revision) > ($1, $2) AND stream_id <= $3 AND position <= $4
                          ORDER BY stream_id, revision LIMIT $5";
        let query = sqlx::query(statement).bind(after.0).bind(after.1).bind(last).bind(head).bind(limit);
        let rows = query.fetch_all(self.pool()).await.map_err(verify_error)?;
        all(&rows, event_row)
    }

    /// How many idempotency keys there are.
    pub(crate) async fn key_count(&self) -> Result<i64, VerifyError> {
        let statement = "SELECT count(*) FROM idempotency_keys";
        sqlx::query_scalar(statement).fetch_one(self.pool()).await.map_err(verify_error)
    }

    /// The first idempotency key that does not stand for events of its wallet, if there is one.
    pub(crate) async fn key_stray(&self) -> Result<Option<KeyRow>, VerifyError> {
        // One statement and not pages: keys are ordered by wallet, and looking millions of positions up in that order costs
        // far more than one join, which the server keeps within its own bounds.
        let statement = "SELECT k.wallet_id, k.command_kind, k.key, k.position, k.event_count, s.name, count(*) OVER ()
                           FROM log_head h, idempotency_keys k
                           LEFT JOIN events e ON e.position = k.position
                           LEFT JOIN streams s ON s.stream_id = e.stream_id
                          WHERE s.name IS DISTINCT FROM k.wallet_id OR k.event_count < 1
                             OR k.position > h.position - k.event_count + 1
                          ORDER BY k.position, k.wallet_id LIMIT 1";
        let row = sqlx::query(statement).fetch_optional(self.pool()).await.map_err(verify_error)?;
        let read = |row: PgRow| -> Result<KeyRow, sqlx::Error> {
            Ok(KeyRow {
                wallet_id: row.try_get(0)?,
                command_kind: row.try_get(1)?,
                key: row.try_get(2)?,
                position: row.try_get(3)?,
                event_count: row.try_get(4)?,
                event_wallet_id: row.try_get(5)?,
                alike: row.try_get(6)?,
            })
        };
        row.map(read).transpose().map_err(verify_error)
    }

    /// A wallet of the read model that has no stream, if there is one.
    pub(crate) async fn read_model_stray(&self) -> Result<Option<(String, Position)>, VerifyError> {
        let statement = "SELECT wallet_id, position FROM read_model_wallets r
                          WHERE NOT EXISTS (SELECT FROM streams s WHERE s.name = r.wallet_id) LIMIT 1";
        let row = sqlx::query(statement).fetch_optional(self.pool()).await.map_err(verify_error)?;
        row.map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).transpose().map_err(verify_error)
    }

    /// A snapshot that has no stream, if there is one.
    pub(crate) async fn snapshot_stray(&self) -> Result<Option<StreamId>, VerifyError> {
        let statement = "SELECT stream_id FROM snapshots n
                          WHERE NOT EXISTS (SELECT FROM streams s WHERE s.stream_id = n.stream_id) LIMIT 1";
        sqlx::query_scalar(statement).fetch_optional(self.pool()).await.map_err(verify_error)
    }

    /// A posting at a position where no event can be, if there is one.
    pub(crate) async fn posting_stray(&self) -> Result<Option<(String, Position)>, VerifyError> {
        let statement = "(SELECT account, p.position FROM ledger_postings p WHERE p.position < 1 LIMIT 1)
                         UNION ALL
                         (SELECT account, p.position FROM ledger_postings p, log_head h WHERE p.position > h.position LIMIT 1)";
        let row = sqlx::query(statement).fetch_optional(self.pool()).await.map_err(verify_error)?;
        row.map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).transpose().map_err(verify_error)
    }

    /// Checkpoints beyond the log's head.
    pub(crate) async fn checkpoint_strays(&self) -> Result<Vec<Stray>, VerifyError> {
        let statement = "SELECT c.what, c.position FROM log_head h, (
                             SELECT 'checkpoint of the relay' AS what, position FROM relay_checkpoint
                             UNION ALL
                             SELECT format('tail of the relay, partition %s', partition), position
                               FROM relay_tails WHERE topic = $1
                             UNION ALL
                             SELECT format('checkpoint of %s, partition %s', projection, partition), position
                               FROM projection_checkpoints) c
                          WHERE c.position > h.position ORDER BY c.what";
        let rows = sqlx::query(statement).bind(EVENTS_TOPIC).fetch_all(self.pool()).await.map_err(verify_error)?;
        all(&rows, |row| Ok(Stray { what: row.try_get(0)?, position: row.try_get(1)? }))
    }

    /// What the log says of its length, and the outbox of what waits in it, at one moment.
    pub(crate) async fn outbox_row(&self) -> Result<OutboxRow, VerifyError> {
        let statement = "SELECT h.position, r.position,
                                (SELECT count(*) FROM outbox WHERE processed_at IS NULL),
                                (SELECT coalesce(max(position), 0) FROM events)
                           FROM log_head h, relay_checkpoint r";
        let row = sqlx::query(statement).fetch_one(self.pool()).await.map_err(verify_error)?;
        let read = || -> Result<OutboxRow, sqlx::Error> {
            Ok(OutboxRow {
                head: row.try_get(0)?,
                published: row.try_get(1)?,
                pending: row.try_get(2)?,
                last_event: row.try_get(3)?,
            })
        };
        read().map_err(verify_error)
    }

    /// The log's head.
    pub(crate) async fn log_head_position(&self) -> Result<Position, VerifyError> {
        sqlx::query_scalar("SELECT position FROM log_head").fetch_one(self.pool()).await.map_err(verify_error)
    }

    /// The positions in `first..=last` whose events were discarded for a group.
    pub(crate) async fn discarded_positions(
        &self,
        group: &str,
        first: Position,
        last: Position,
    ) -> Result<Vec<Position>, VerifyError> {
        let statement = "SELECT position FROM discarded_records WHERE projection = $1 AND position BETWEEN $2 AND $3";
        let query = sqlx::query_scalar(statement).bind(group).bind(first).bind(last);
        query.fetch_all(self.pool()).await.map_err(verify_error)
    }

    /// Which revisions of these wallets were discarded for a group.
    pub(crate) async fn discarded_revisions(
        &self,
        group: &str,
        wallets: &[&str],
    ) -> Result<Vec<(String, Revision)>, VerifyError> {
        let statement = "SELECT wallet_id, revision FROM discarded_records
                          WHERE projection = $1 AND wallet_id = ANY($2) AND revision IS NOT NULL";
        sqlx::query_as(statement).bind(group).bind(wallets).fetch_all(self.pool()).await.map_err(verify_error)
    }

    /// The discarded records that belong to no wallet; the newest, up to [`DISCARDED_STRANGERS_MAX`].
    pub(crate) async fn discarded_strangers(&self) -> Result<Strangers, VerifyError> {
        let statement = "SELECT partition, kafka_offset, sha256(coalesce(record_value, '')) FROM discarded_records
                          WHERE wallet_id IS NULL AND topic = $1 AND kafka_offset IS NOT NULL
                          ORDER BY parked_id DESC LIMIT $2";
        let query = sqlx::query_as(statement).bind(EVENTS_TOPIC).bind(DISCARDED_STRANGERS_MAX);
        let found: Vec<(i32, i64, Vec<u8>)> = query.fetch_all(self.pool()).await.map_err(verify_error)?;
        let mut strangers = Strangers::new();
        for (partition, offset, digest) in found {
            strangers.entry((partition, offset)).or_default().push(digest);
        }
        Ok(strangers)
    }

    /// What the relay has withheld from the topic, and what it has published late.
    pub(crate) async fn withheld_spans(&self) -> Result<Vec<WithheldSpan>, VerifyError> {
        let statement = "SELECT wallet_id, position, published_to FROM relay_withheld ORDER BY position";
        let found: Vec<(String, Position, Option<Position>)> =
            sqlx::query_as(statement).fetch_all(self.pool()).await.map_err(verify_error)?;
        Ok(found
            .into_iter()
            .map(|(wallet_id, from, published_to)| WithheldSpan { wallet_id, from, published_to })
            .collect())
    }

    /// How much was discarded, by group.
    pub(crate) async fn discarded_counts(&self) -> Result<Vec<DiscardedRow>, VerifyError> {
        let statement = "SELECT projection, count(wallet_id), count(DISTINCT wallet_id), count(*) - count(wallet_id)
                           FROM discarded_records GROUP BY projection ORDER BY projection";
        let rows = sqlx::query(statement).fetch_all(self.pool()).await.map_err(verify_error)?;
        all(&rows, |row| {
            Ok(DiscardedRow {
                projection: row.try_get(0)?,
                events: row.try_get(1)?,
                wallets: row.try_get(2)?,
                strangers: row.try_get(3)?,
            })
        })
    }

    /// The parked records, if there are any.
    pub(crate) async fn parked_row(&self) -> Result<Option<ParkedRow>, VerifyError> {
        let statement = "SELECT count(*) OVER (), (SELECT count(DISTINCT wallet_id) FROM parked_records),
                                projection, wallet_id, position, error
                           FROM parked_records ORDER BY position, parked_id LIMIT 1";
        let row = sqlx::query(statement).fetch_optional(self.pool()).await.map_err(verify_error)?;
        let read = |row: PgRow| -> Result<ParkedRow, sqlx::Error> {
            Ok(ParkedRow {
                records: row.try_get(0)?,
                wallets: row.try_get(1)?,
                projection: row.try_get(2)?,
                wallet_id: row.try_get(3)?,
                position: row.try_get(4)?,
                error: row.try_get(5)?,
            })
        };
        row.map(read).transpose().map_err(verify_error)
    }
}
