//! Writing the ledger.

use chrono::{DateTime, Utc};
use sqlx::PgConnection;
use uuid::Uuid;

use crate::log::Position;

/// One entry of the ledger: what the wallet's account gets, its counter-account gives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LedgerEntry {
    /// The event's position.
    pub position: Position,
    /// The wallet's account.
    pub account: String,
    /// The account on the other side.
    pub counter_account: String,
    /// The currency's code.
    pub currency: &'static str,
    /// Minor units; positive credits the wallet's account, negative debits it.
    pub amount: i64,
    /// The wallet's balance after it, in minor units.
    pub balance_after: i64,
    /// The event's id.
    pub event_id: Uuid,
    /// `CREDIT`, `DEBIT`, `TRANSFER_OUT` or `TRANSFER_IN`.
    pub transaction_type: &'static str,
    /// What for.
    pub description: Option<String>,
    /// The transfer's id, or else the event's own.
    pub reference_id: Uuid,
    /// A transfer's other wallet.
    pub related_wallet_id: Option<String>,
    /// The event's metadata, JSON.
    pub metadata: Vec<u8>,
    /// When it happened.
    pub created_at: DateTime<Utc>,
}

/// Both postings of each entry, side by side: so the primary key only ever grows at its end.
const INSERT: &str = "
INSERT INTO ledger_postings (position, leg, account, currency, amount, balance_after, event_id, transaction_type,
                             description, reference_id, related_wallet_id, metadata, created_at)
SELECT e.position, l.leg, CASE l.leg WHEN 0 THEN e.account ELSE e.counter_account END, e.currency,
       CASE l.leg WHEN 0 THEN e.amount ELSE -e.amount END,
       CASE l.leg WHEN 0 THEN e.balance_after END, CASE l.leg WHEN 0 THEN e.event_id END,
       CASE l.leg WHEN 0 THEN e.transaction_type END, CASE l.leg WHEN 0 THEN e.description END,
       CASE l.leg WHEN 0 THEN e.reference_id END, CASE l.leg WHEN 0 THEN e.related_wallet_id END,
       CASE l.leg WHEN 0 THEN e.metadata END, e.created_at
  FROM unnest($1::bigint[], $2::text[], $3::text[], $4::text[], $5::bigint[], $6::bigint[], $7::uuid[], $8::text[],
              $9::text[], $10::uuid[], $11::text[], $12::bytea[], $13::timestamptz[])
       AS e(position, account, counter_account, currency, amount, balance_after, event_id, transaction_type,
            description, reference_id, related_wallet_id, metadata, created_at)
 CROSS JOIN (VALUES (0), (1)) AS l(leg)";

/// Writes entries, both postings of each.
pub(crate) async fn insert_ledger_entries(
    transaction: &mut PgConnection,
    entries: &[LedgerEntry],
) -> Result<(), sqlx::Error> {
    sqlx::query(INSERT)
        .bind(entries.iter().map(|entry| entry.position).collect::<Vec<_>>())
        .bind(entries.iter().map(|entry| entry.account.as_str()).collect::<Vec<_>>())
        .bind(entries.iter().map(|entry| entry.counter_account.as_str()).collect::<Vec<_>>())
        .bind(entries.iter().map(|entry| entry.currency).collect::<Vec<_>>())
        .bind(entries.iter().map(|entry| entry.amount).collect::<Vec<_>>())
        .bind(entries.iter().map(|entry| entry.balance_after).collect::<Vec<_>>())
        .bind(entries.iter().map(|entry| entry.event_id).collect::<Vec<_>>())
        .bind(entries.iter().map(|entry| entry.transaction_type).collect::<Vec<_>>())
        .bind(entries.iter().map(|entry| entry.description.as_deref()).collect::<Vec<_>>())
        .bind(entries.iter().map(|entry| entry.reference_id).collect::<Vec<_>>())
        .bind(entries.iter().map(|entry| entry.related_wallet_id.as_deref()).collect::<Vec<_>>())
        .bind(entries.iter().map(|entry| entry.metadata.as_slice()).collect::<Vec<_>>())
        .bind(entries.iter().map(|entry| entry.created_at).collect::<Vec<_>>())
        .execute(transaction)
        .await?;
    Ok(())
}
