//! Idempotency keys: found by what is asked for, or all of one wallet, and forgotten when they are old. They are written with the
//! events of their command.

use chrono::{DateTime, Utc};
use sqlx::postgres::PgRow;
use sqlx::{PgPool, Row};

use crate::log::{KeyRecord, KeyScope, LogError};
use crate::postgres::Database;
use crate::postgres::log::log_error;
use crate::wallet::{Command, WalletId};

/// Those of these that are there.
pub(super) async fn find(pool: &PgPool, keys: &[KeyScope]) -> Result<Vec<KeyRecord>, sqlx::Error> {
    let statement = "SELECT w.place, i.fingerprint, i.position, i.event_count
                       FROM unnest($1::text[], $2::text[], $3::text[])
                            WITH ORDINALITY AS w(wallet_id, command_kind, key, place)
                       JOIN idempotency_keys i USING (wallet_id, command_kind, key)";
    let rows = sqlx::query(statement)
        .bind(keys.iter().map(|scope| scope.wallet_id.as_str()).collect::<Vec<_>>())
        .bind(keys.iter().map(|scope| scope.command_kind).collect::<Vec<_>>())
        .bind(keys.iter().map(|scope| scope.key.as_ref()).collect::<Vec<_>>())
        .fetch_all(pool)
        .await?;
    let read = |row: &PgRow| {
        let place: i64 = row.try_get("place")?;
        record(row, keys[place as usize - 1].clone())
    };
    rows.iter().map(read).collect()
}

/// Forgets up to `limit` of those that are older; how many there were.
pub(super) async fn forget(pool: &PgPool, before: DateTime<Utc>, limit: usize) -> Result<u64, sqlx::Error> {
    let statement = "DELETE FROM idempotency_keys
                      WHERE ctid = ANY(ARRAY(SELECT ctid FROM idempotency_keys WHERE created_at < $1 LIMIT $2))";
    Ok(sqlx::query(statement).bind(before).bind(limit as i64).execute(pool).await?.rows_affected())
}

impl Database {
    /// Up to `limit` of a wallet's idempotency keys, all of kinds of command that are known here: nobody can ask for others.
    pub(crate) async fn keys_of(&self, id: &WalletId, limit: usize) -> Result<Vec<KeyRecord>, LogError> {
        let statement = "SELECT command_kind, key, fingerprint, position, event_count FROM idempotency_keys
                          WHERE wallet_id = $1 AND command_kind = ANY($2) LIMIT $3";
        let query = sqlx::query(statement).bind(id.as_str()).bind(Command::KINDS).bind(limit as i64);
        let rows = query.fetch_all(self.by_index()).await.map_err(log_error)?;
        let read = |row: &PgRow| {
            let (kind, key): (String, String) = (row.try_get("command_kind")?, row.try_get("key")?);
            let unasked = || sqlx::Error::Decode("a kind that was not asked for".into());
            let command_kind = Command::kind_of(&kind).ok_or_else(unasked)?;
            record(row, KeyScope { wallet_id: id.clone(), command_kind, key: key.as_str().into() })
        };
        rows.iter().map(read).collect::<Result<_, _>>().map_err(log_error)
    }
}

fn record(row: &PgRow, scope: KeyScope) -> Result<KeyRecord, sqlx::Error> {
    let fingerprint: Vec<u8> = row.try_get("fingerprint")?;
    let is_odd = |_| sqlx::Error::Decode("a fingerprint that is not 32 bytes".into());
    let fingerprint = fingerprint.try_into().map_err(is_odd)?;
    Ok(KeyRecord { scope, fingerprint, position: row.try_get("position")?, event_count: row.try_get("event_count")? })
}
