//! What the database knows of how far everything has come.

use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::Row;
use sqlx::postgres::PgRow;

use crate::kafka::EVENTS_TOPIC;
use crate::lag::{
    Copied, EventTime, InTransit, LagError, OVERDUE_AFTER, PARKED_WALLETS_MAX, ParkedWallet, Standing, Through,
};
use crate::log::Position;
use crate::postgres::ingest_checkpoint::{Reached, reached};
use crate::postgres::{Database, EventHome, RelayStatus, WithheldWallet, is_transient};

fn lag_error(error: sqlx::Error) -> LagError {
    if is_transient(&error) { LagError::Away(error.to_string()) } else { LagError::Refused(error.to_string()) }
}

fn stand(standing: &mut Standing, row: &PgRow) -> Result<(), sqlx::Error> {
    let what: String = row.try_get("what")?;
    let place: i32 = row.try_get("place")?;
    let position: i64 = row.try_get("position")?;
    let unmoved = Duration::from_millis(row.try_get::<i64, _>("unmoved_ms")?.max(0).unsigned_abs());
    match what.as_str() {
        "head" => standing.head = position,
        "published" => (standing.published, standing.published_unmoved) = (position, unmoved),
        "tail" => _ = standing.tails.insert(place, position),
        "bound" => _ = standing.parked_max.insert(row.try_get("name")?, position),
        "home" => standing.is_a_copy = EventHome::is_event_store(&row.try_get::<String, _>("name")?),
        "copied" => standing.copied = Some(Copied { commit: position, unmoved }),
        "paused" => _ = standing.paused.insert((row.try_get("name")?, place)),
        "parked" => _ = standing.parked.insert(row.try_get("name")?, position),
        _ => {
            let through = Through { position, next_offset: row.try_get("next_offset")?, unmoved };
            standing.checkpoints.insert((row.try_get("name")?, place), through);
        }
    }
    Ok(())
}

impl Database {
    /// One moment: a single statement, so that all its numbers belong together.
    pub(crate) async fn standing(&self) -> Result<Standing, LagError> {
        // Ages by the clock that wrote the times.
        let statement = "SELECT 'head' AS what, '' AS name, 0 AS place, position, NULL::bigint AS next_offset, 0::bigint AS unmoved_ms
                           FROM log_head
                   UNION ALL SELECT 'published', '', 0, position, NULL, (extract(epoch FROM now() - moved_at) * 1000)::bigint
                               FROM relay_checkpoint
                   UNION ALL SELECT 'tail', '', partition, position, NULL, 0 FROM relay_tails WHERE topic = $1
                   UNION ALL SELECT 'parked', projection, 0, count(*), NULL, 0 FROM parked_records GROUP BY projection
                   UNION ALL SELECT 'bound', projection, 0, parked_max, NULL, 0 FROM parked_bounds
                   UNION ALL SELECT 'paused', projection, partition, position, NULL, 0
                               FROM projection_checkpoints WHERE paused_since IS NOT NULL
                   UNION ALL SELECT 'home', home, 0, 0, NULL, 0 FROM event_home
                   UNION ALL SELECT 'copied', '', 0, commit_position, NULL,
                                    (extract(epoch FROM now() - moved_at) * 1000)::bigint
                               FROM ingest_checkpoint
                   UNION ALL SELECT 'checkpoint', projection, partition, position, next_offset,
                                    (extract(epoch FROM now() - moved_at) * 1000)::bigint
                               FROM projection_checkpoints";
        let rows = sqlx::query(statement).bind(EVENTS_TOPIC).fetch_all(self.pool()).await.map_err(lag_error)?;
        let mut standing = Standing::default();
        for row in &rows {
            stand(&mut standing, row).map_err(lag_error)?;
        }
        Ok(standing)
    }

    /// What the relay is doing, and what it withholds.
    pub(crate) async fn relay(&self) -> Result<(RelayStatus, Vec<WithheldWallet>), LagError> {
        let status = self.relay_status().await.map_err(lag_error)?;
        Ok((status, self.relay_withheld().await.map_err(lag_error)?))
    }

    /// How many transfers are in transit, for how long the oldest has been, and how many are overdue, by the clock that wrote the times.
    pub(crate) async fn in_transit_now(&self) -> Result<InTransit, LagError> {
        // What the copy has learned of just now may be years old: a store's past that is being copied.
        let statement = "SELECT count(*), max((extract(epoch FROM now() - e.recorded_at) * 1000)::bigint),
                                count(*) FILTER (WHERE t.seen_at < now() - make_interval(secs => $1))
                           FROM stream_transfers t JOIN events e ON e.position = t.debit_position
                          WHERE t.credit_position IS NULL";
        let asking = sqlx::query_as(statement).bind(OVERDUE_AFTER.as_secs_f64());
        let (transfers, oldest, overdue): (i64, Option<i64>, i64) =
            asking.fetch_one(self.pool()).await.map_err(lag_error)?;
        Ok(InTransit { transfers, oldest_age_ms: oldest.map(|age| age.max(0)), overdue })
    }

    /// How far the copy is, with what its store is known by.
    pub(crate) async fn reached_now(&self) -> Result<Option<Reached>, LagError> {
        let mut connection = self.pool().acquire().await.map_err(lag_error)?;
        reached(&mut connection).await.map_err(lag_error)
    }

    /// When the first event after a position was recorded.
    pub(crate) async fn first_event_after(&self, position: Position) -> Result<Option<DateTime<Utc>>, LagError> {
        let statement = "SELECT recorded_at FROM events WHERE position > $1 ORDER BY position LIMIT 1";
        sqlx::query_scalar(statement).bind(position).fetch_optional(self.pool()).await.map_err(lag_error)
    }

    /// Up to `limit` events after a position, without what they say.
    pub(crate) async fn event_times_after(&self, position: Position, limit: i64) -> Result<Vec<EventTime>, LagError> {
        let statement = "SELECT e.position, s.name, e.recorded_at FROM events e JOIN streams s USING (stream_id)
                          WHERE e.position > $1 ORDER BY e.position LIMIT $2";
        let rows = sqlx::query(statement).bind(position).bind(limit).fetch_all(self.pool()).await.map_err(lag_error)?;
        let read = |row: &PgRow| -> Result<EventTime, sqlx::Error> {
            Ok(EventTime {
                position: row.try_get("position")?,
                wallet_id: row.try_get("name")?,
                recorded_at: row.try_get("recorded_at")?,
            })
        };
        rows.iter().map(read).collect::<Result<_, _>>().map_err(lag_error)
    }

    /// The wallets that have records parked, the longest parked first; those that the relay withholds from the topic are among
    /// them, under its name.
    pub(crate) async fn parked_wallets(&self) -> Result<Vec<ParkedWallet>, LagError> {
        // Of a wallet's records the first one is the cause; the others only wait behind it.
        let statement = "SELECT projection, wallet_id, count(*) AS records, min(first_failed_at) AS since,
                                (array_agg(error ORDER BY position, parked_id))[1] AS error
                           FROM parked_records GROUP BY projection, wallet_id
                          UNION ALL
                         SELECT 'relay', w.wallet_id,
                                (SELECT count(*) FROM events e JOIN streams s USING (stream_id)
                                  WHERE s.name = w.wallet_id AND e.position BETWEEN w.position AND r.position),
                                w.withheld_at, w.reason
                           FROM relay_withheld w CROSS JOIN relay_checkpoint r WHERE w.published_to IS NULL
                          ORDER BY since, projection, wallet_id LIMIT $1";
        let rows =
            sqlx::query(statement).bind(PARKED_WALLETS_MAX as i64).fetch_all(self.pool()).await.map_err(lag_error)?;
        let read = |row: &PgRow| -> Result<ParkedWallet, sqlx::Error> {
            Ok(ParkedWallet {
                group: row.try_get("projection")?,
                wallet_id: row.try_get("wallet_id")?,
                records: row.try_get("records")?,
                since: row.try_get("since")?,
                error: row.try_get("error")?,
            })
        };
        rows.iter().map(read).collect::<Result<_, _>>().map_err(lag_error)
    }
}
