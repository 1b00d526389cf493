//! Writing the read model.

use chrono::{DateTime, Utc};
use sqlx::PgConnection;

use crate::log::{Position, Revision};
use crate::projection::READ_MODEL_PROJECTOR;

/// A wallet that is new to the read model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NewWalletRow {
    pub(crate) wallet_id: String,
    pub(crate) owner_id: String,
    pub(crate) currency: &'static str,
    pub(crate) balance: i64,
    pub(crate) status: &'static str,
    pub(crate) version: Revision,
    pub(crate) position: Position,
    pub(crate) created_at: DateTime<Utc>,
    pub(crate) updated_at: DateTime<Utc>,
}

/// A wallet's way from one state to a later one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct WalletRowChange {
    pub(crate) wallet_id: String,
    pub(crate) version_before: Revision,
    pub(crate) balance_before: i64,
    pub(crate) balance: i64,
    pub(crate) version: Revision,
    pub(crate) position: Position,
    pub(crate) updated_at: DateTime<Utc>,
}

/// Writes new rows; one that is there already is an error.
pub(crate) async fn insert_wallet_rows(
    transaction: &mut PgConnection,
    rows: &[NewWalletRow],
) -> Result<(), sqlx::Error> {
    sqlx::query(
        "INSERT INTO read_model_wallets (wallet_id, owner_id, currency, balance, status, version, position, created_at, updated_at)
         SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::bigint[], $5::text[], $6::bigint[], $7::bigint[],
                              $8::timestamptz[], $9::timestamptz[])",
    )
    .bind(rows.iter().map(|row| row.wallet_id.as_str()).collect::<Vec<_>>())
    .bind(rows.iter().map(|row| row.owner_id.as_str()).collect::<Vec<_>>())
    .bind(rows.iter().map(|row| row.currency).collect::<Vec<_>>())
    .bind(rows.iter().map(|row| row.balance).collect::<Vec<_>>())
    .bind(rows.iter().map(|row| row.status).collect::<Vec<_>>())
    .bind(rows.iter().map(|row| row.version).collect::<Vec<_>>())
    .bind(rows.iter().map(|row| row.position).collect::<Vec<_>>())
    .bind(rows.iter().map(|row| row.created_at).collect::<Vec<_>>())
    .bind(rows.iter().map(|row| row.updated_at).collect::<Vec<_>>())
    .execute(transaction)
    .await?;
    Ok(())
}

/// Changes rows that have exactly the version and balance from which the change departs; how many had.
///
/// A row may lie further back if each event in between was discarded. And a wallet whose creation was discarded has no row and
/// gets none: it counts as one that had.
pub(crate) async fn update_wallet_rows(
    transaction: &mut PgConnection,
    changes: &[WalletRowChange],
) -> Result<u64, sqlx::Error> {
    let statement = "UPDATE read_model_wallets w
                        SET balance = c.balance, version = c.version, position = c.position, updated_at = c.updated_at
                       FROM unnest($1::text[], $2::bigint[], $3::bigint[], $4::bigint[], $5::bigint[], $6::bigint[],
                                   $7::timestamptz[])
                            AS c(wallet_id, version_before, balance_before, balance, version, position, updated_at)
                      WHERE w.wallet_id = c.wallet_id
                        AND CASE WHEN w.version = c.version_before THEN w.balance = c.balance_before
                                 ELSE w.version < c.version_before
                                      AND c.version_before - w.version =
                                          (SELECT count(DISTINCT d.revision) FROM discarded_records d
                                            WHERE d.projection = $8 AND d.wallet_id = w.wallet_id
                                              AND d.revision > w.version AND d.revision <= c.version_before) END";
    let changed = sqlx::query(statement)
        .bind(changes.iter().map(|change| change.wallet_id.as_str()).collect::<Vec<_>>())
        .bind(changes.iter().map(|change| change.version_before).collect::<Vec<_>>())
        .bind(changes.iter().map(|change| change.balance_before).collect::<Vec<_>>())
        .bind(changes.iter().map(|change| change.balance).collect::<Vec<_>>())
        .bind(changes.iter().map(|change| change.version).collect::<Vec<_>>())
        .bind(changes.iter().map(|change| change.position).collect::<Vec<_>>())
        .bind(changes.iter().map(|change| change.updated_at).collect::<Vec<_>>())
        .bind(READ_MODEL_PROJECTOR)
        .execute(&mut *transaction)
        .await?
        .rows_affected();
    if changed == changes.len() as u64 {
        return Ok(changed);
    }
    let statement = "SELECT count(*) FROM unnest($1::text[]) AS c(wallet_id)
                      WHERE NOT EXISTS (SELECT FROM read_model_wallets w WHERE w.wallet_id = c.wallet_id)
                        AND EXISTS (SELECT FROM discarded_records d
                                     WHERE d.projection = $2 AND d.wallet_id = c.wallet_id AND d.revision = 0)";
    let absent: i64 = sqlx::query_scalar(statement)
        .bind(changes.iter().map(|change| change.wallet_id.as_str()).collect::<Vec<_>>())
        .bind(READ_MODEL_PROJECTOR)
        .fetch_one(transaction)
        .await?;
    Ok(changed + absent as u64)
}
