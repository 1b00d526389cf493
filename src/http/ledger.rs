//! The ledger routes: rows and summaries, from what the ledger's projection has posted so far.
//!
//! `count` is the number of rows in the answer. To read on, add `limit` to `offset` until fewer rows than `limit` come.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use chrono::{DateTime, Utc};
use hyper::Uri;
use serde::Serialize;
use serde_json::value::RawValue;
use uuid::Uuid;

use crate::http::answer::{ok, sum_number};
use crate::http::arrival::PathText;
use crate::http::error::ApiError;
use crate::http::wallets::WalletPath;
use crate::http::{Shared, in_time, query};
use crate::log::EventLog;
use crate::money::Currency;
use crate::postgres::queries::{LedgerFilter, LedgerRow};

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct TransactionsBody<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    wallet_id: Option<&'a str>,
    count: usize,
    transactions: Vec<TransactionBody<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct TransactionBody<'a> {
    id: Uuid,
    wallet_id: &'a str,
    transaction_type: &'static str,
    amount: String,
    balance_before: String,
    balance_after: String,
    description: Option<&'a str>,
    reference_id: Option<Uuid>,
    related_wallet_id: Option<&'a str>,
    metadata: Option<&'a RawValue>,
    created_at: DateTime<Utc>,
}

impl<'a> TransactionBody<'a> {
    fn of(row: &'a LedgerRow) -> Result<Self, ApiError> {
        let metadata = row.metadata.as_deref().map(serde_json::from_str).transpose().map_err(|error| {
            ApiError::internal(&format_args!("ledger row {}: metadata that is not JSON: {error}", row.id))
        })?;
        Ok(TransactionBody {
            id: row.id,
            wallet_id: &row.wallet_id,
            transaction_type: row.transaction_type.as_str(),
            amount: row.amount.to_text(row.currency),
            balance_before: row.balance_before.to_text(row.currency),
            balance_after: row.balance_after.to_text(row.currency),
            description: row.description.as_deref(),
            reference_id: row.reference_id,
            related_wallet_id: row.related_wallet_id.as_deref(),
            metadata,
            created_at: row.created_at,
        })
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct SummaryBody<'a> {
    wallet_id: &'a str,
    total_credits: Box<RawValue>,
    total_debits: Box<RawValue>,
    transaction_count: i64,
    last_transaction: Option<TransactionBody<'a>>,
}

pub(super) async fn of_wallet<L: EventLog>(
    State(shared): State<Arc<Shared<L>>>,
    WalletPath(id): WalletPath,
    uri: Uri,
) -> Result<Response, ApiError> {
    let filter = LedgerFilter { wallet_id: Some(id.clone()), ..query::ledger_filter(&uri)? };
    answer(&shared, Some(id.as_str()), filter).await
}

pub(super) async fn of_reference<L: EventLog>(
    State(shared): State<Arc<Shared<L>>>,
    PathText(reference): PathText,
    uri: Uri,
) -> Result<Response, ApiError> {
    let reference_id = Some(query::reference_id(&reference)?);
    answer(&shared, None, LedgerFilter { reference_id, ..query::ledger_filter(&uri)? }).await
}

pub(super) async fn of_all<L: EventLog>(State(shared): State<Arc<Shared<L>>>, uri: Uri) -> Result<Response, ApiError> {
    answer(&shared, None, query::ledger_filter(&uri)?).await
}

async fn answer<L: EventLog>(
    shared: &Shared<L>,
    wallet_id: Option<&str>,
    filter: LedgerFilter,
) -> Result<Response, ApiError> {
    let rows = in_time(shared.limits.read_deadline, shared.api.database.ledger_rows(&filter)).await?;
    let transactions = rows.iter().map(TransactionBody::of).collect::<Result<Vec<_>, _>>()?;
    Ok(ok(&TransactionsBody { wallet_id, count: transactions.len(), transactions }))
}

pub(super) async fn summary<L: EventLog>(
    State(shared): State<Arc<Shared<L>>>,
    WalletPath(id): WalletPath,
    uri: Uri,
) -> Result<Response, ApiError> {
    query::no_parameters(&uri)?;
    let summary = in_time(shared.limits.read_deadline, shared.api.database.ledger_summary(&id)).await?;
    // A ledger without rows has no currency, and its sums are 0 in any.
    let currency = summary.last.as_ref().map_or(Currency::USD, |last| last.currency);
    Ok(ok(&SummaryBody {
        wallet_id: id.as_str(),
        total_credits: sum_number(summary.credits, currency),
        total_debits: sum_number(summary.debits, currency),
        transaction_count: summary.transactions,
        last_transaction: summary.last.as_ref().map(TransactionBody::of).transpose()?,
    }))
}
