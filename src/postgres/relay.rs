//! The relay's lock, checkpoint and bell in the database.

use std::collections::BTreeMap;
use std::time::Duration;

use sqlx::postgres::PgListener;
use sqlx::{Connection, PgConnection, PgPool};

use crate::kafka::EVENTS_TOPIC;
use crate::log::Position;
use crate::postgres::log::NOTIFY_CHANNEL;
use crate::postgres::{Database, RelayState};

/// The advisory lock that the active relay holds: "wallex", then the relay's number.
pub(super) const RELAY_LOCK: i64 = 0x7761_6c6c_6578_0001;

/// The last record that the broker acknowledged in a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RelayTail {
    pub(crate) next_offset: i64,
    pub(crate) position: Position,
}

/// How long PostgreSQL keeps the session of a relay that says nothing: so long after its last word nobody else can be the active
/// one. It is longer than what a Kafka cluster takes to do without one of its brokers, because what the client has not sent by then
/// is given up (`message.timeout.ms`), and the lease must last longer than that.
pub(crate) const LEASE: Duration = Duration::from_secs(45);

/// The active relay's own connection. Its lock and its checkpoint live and die with it, so a relay that has lost its lock
/// cannot move the checkpoint either.
pub(crate) struct RelaySession {
    connection: PgConnection,
    holder: String,
}

/// A wallet that is withheld from the topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Withheld {
    pub(crate) wallet_id: String,
    /// Its first event that is not in the topic.
    pub(crate) position: Position,
    pub(crate) partition: i32,
    /// What that one takes as a record.
    pub(crate) record_bytes: i64,
}

impl RelaySession {
    /// Becomes the active relay; `None` while another one is.
    pub(crate) async fn begin(database: &Database, holder: String) -> Result<Option<Self>, sqlx::Error> {
        let limit = format!("{}ms", LEASE.as_millis());
        let options = database.connect_options().clone();
        let options =
            options.options([("idle_session_timeout", &limit), ("idle_in_transaction_session_timeout", &limit)]);
        let mut connection = PgConnection::connect_with(&options).await?;
        let is_ours: bool =
            sqlx::query_scalar("SELECT pg_try_advisory_lock($1)").bind(RELAY_LOCK).fetch_one(&mut connection).await?;
        Ok(is_ours.then_some(RelaySession { connection, holder }))
    }

    /// Says what the relay is doing. That is its heartbeat too.
    pub(crate) async fn say(&mut self, state: RelayState, reason: Option<&str>) -> Result<(), sqlx::Error> {
        let statement = "UPDATE relay_status
                            SET state = $1, reason = $2, holder = $3, seen_at = now(),
                                since = CASE WHEN state = $1 THEN since ELSE now() END";
        sqlx::query(statement).bind(state.name()).bind(reason).bind(&self.holder).execute(&mut self.connection).await?;
        Ok(())
    }

    /// How far everything has been published, and the last record in each partition.
    pub(crate) async fn checkpoint(&mut self) -> Result<(Position, BTreeMap<i32, RelayTail>), sqlx::Error> {
        let position =
            sqlx::query_scalar("SELECT position FROM relay_checkpoint").fetch_one(&mut self.connection).await?;
        let tails: Vec<(i32, i64, Position)> =
            sqlx::query_as("SELECT partition, next_offset, position FROM relay_tails WHERE topic = $1")
                .bind(EVENTS_TOPIC)
                .fetch_all(&mut self.connection)
                .await?;
        let tails = tails
            .into_iter()
            .map(|(partition, next_offset, position)| (partition, RelayTail { next_offset, position }))
            .collect();
        Ok((position, tails))
    }

    /// Moves the checkpoint on, and notes the last record of each partition that has a new one.
    pub(crate) async fn move_checkpoint(
        &mut self,
        position: Position,
        tails: &BTreeMap<i32, RelayTail>,
    ) -> Result<(), sqlx::Error> {
        let statement = "WITH tails AS (
                INSERT INTO relay_tails (topic, partition, next_offset, position)
                SELECT $2, * FROM unnest($3::int[], $4::bigint[], $5::bigint[])
                ON CONFLICT (topic, partition) DO UPDATE
                   SET next_offset = excluded.next_offset, position = excluded.position)
            UPDATE relay_checkpoint SET position = $1, moved_at = now() WHERE position < $1";
        sqlx::query(statement)
            .bind(position)
            .bind(EVENTS_TOPIC)
            .bind(tails.keys().copied().collect::<Vec<_>>())
            .bind(tails.values().map(|tail| tail.next_offset).collect::<Vec<_>>())
            .bind(tails.values().map(|tail| tail.position).collect::<Vec<_>>())
            .execute(&mut self.connection)
            .await?;
        Ok(())
    }

    /// Begins with another topic: takes the checkpoint back, and forgets the last records of these partitions.
    pub(crate) async fn go_back(&mut self, position: Position, forgotten: &[i32]) -> Result<(), sqlx::Error> {
        let statement = "WITH forgotten AS (DELETE FROM relay_tails WHERE topic = $2 AND partition = ANY($3))
                         UPDATE relay_checkpoint SET position = $1, moved_at = now()";
        sqlx::query(statement).bind(position).bind(EVENTS_TOPIC).bind(forgotten).execute(&mut self.connection).await?;
        Ok(())
    }

    /// The wallets that are withheld from the topic now, in order of position.
    pub(crate) async fn withheld(&mut self) -> Result<Vec<Withheld>, sqlx::Error> {
        let statement = "SELECT wallet_id, position, partition, record_bytes FROM relay_withheld
                          WHERE published_to IS NULL ORDER BY position";
        let rows: Vec<(String, Position, i32, i64)> = sqlx::query_as(statement).fetch_all(&mut self.connection).await?;
        let read =
            |(wallet_id, position, partition, record_bytes)| Withheld { wallet_id, position, partition, record_bytes };
        Ok(rows.into_iter().map(read).collect())
    }

    /// Withholds a wallet from this event on.
    pub(crate) async fn withhold(&mut self, withheld: &Withheld, reason: &str) -> Result<(), sqlx::Error> {
        let statement = "INSERT INTO relay_withheld (wallet_id, position, partition, record_bytes, reason)
                         VALUES ($1, $2, $3, $4, $5) ON CONFLICT DO NOTHING";
        sqlx::query(statement)
            .bind(&withheld.wallet_id)
            .bind(withheld.position)
            .bind(withheld.partition)
            .bind(withheld.record_bytes)
            .bind(reason)
            .execute(&mut self.connection)
            .await?;
        Ok(())
    }

    /// What was withheld of a wallet has been published up to a position; the rest, if there is any, stays withheld.
    pub(crate) async fn published_late(
        &mut self,
        wallet_id: &str,
        to: Position,
        rest: Option<&(Withheld, String)>,
    ) -> Result<(), sqlx::Error> {
        // The second half hangs on the first, because there can be only one row of a wallet that is withheld now.
        let statement = "WITH published AS (
                UPDATE relay_withheld SET published_to = $2, published_at = now()
                 WHERE wallet_id = $1 AND published_to IS NULL RETURNING wallet_id)
            INSERT INTO relay_withheld (wallet_id, position, partition, record_bytes, reason)
            SELECT wallet_id, $3, $4, $5, $6 FROM published WHERE $3::bigint IS NOT NULL";
        sqlx::query(statement)
            .bind(wallet_id)
            .bind(to)
            .bind(rest.map(|(rest, _)| rest.position))
            .bind(rest.map(|(rest, _)| rest.partition))
            .bind(rest.map(|(rest, _)| rest.record_bytes))
            .bind(rest.map(|(_, reason)| reason.as_str()))
            .execute(&mut self.connection)
            .await?;
        Ok(())
    }

    /// Fails if the session, and the lock with it, is gone.
    pub(crate) async fn ping(&mut self) -> Result<(), sqlx::Error> {
        self.connection.ping().await
    }

    /// Makes way for another relay.
    pub(crate) async fn end(self) {
        // Where the connection is gone already, so is the lock.
        let _ = self.connection.close().await;
    }
}

/// How far the slowest of these projections is in each partition; 0 where one has not begun.
pub(crate) async fn slowest_positions(
    pool: &PgPool,
    projections: &[&str],
    partitions: i32,
) -> Result<BTreeMap<i32, Position>, sqlx::Error> {
    let statement = "SELECT partition, min(coalesce(c.position, 0))
                       FROM generate_series(0, $2 - 1) AS partition
                       CROSS JOIN unnest($1::text[]) AS projection
                       LEFT JOIN projection_checkpoints c USING (projection, partition)
                      GROUP BY partition";
    let rows: Vec<(i32, Position)> =
        sqlx::query_as(statement).bind(projections).bind(partitions).fetch_all(pool).await?;
    Ok(rows.into_iter().collect())
}

/// Calls `heard` for each append of any process, until the connection fails.
pub(crate) async fn listen_for_appends(database: &Database, heard: impl Fn()) -> Result<(), sqlx::Error> {
    let mut listener = PgListener::connect_with(database.pool()).await?;
    listener.listen(NOTIFY_CHANNEL).await?;
    loop {
        listener.recv().await?;
        heard();
    }
}
