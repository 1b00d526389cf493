//! Which path leads where.

use std::sync::Arc;

use axum::Router;
use axum::routing::{get, post};
use hyper::{Method, StatusCode, Uri};

use crate::http::error::{ApiError, code};
use crate::http::{Shared, health, ledger, wallets};
use crate::log::EventLog;
use crate::wallet::WalletId;

pub(super) fn routes<L: EventLog>(shared: Arc<Shared<L>>) -> Router {
    Router::new()
        .route("/wallets", get(wallets::list).post(wallets::create))
        .route("/wallets/{id}", get(wallets::read))
        .route("/wallets/{id}/credit", post(wallets::credit))
        .route("/wallets/{id}/debit", post(wallets::debit))
        .route("/wallets/{id}/transfer", post(wallets::transfer))
        .route("/ledger/wallet/{id}", get(ledger::of_wallet))
        .route("/ledger/wallet/{id}/summary", get(ledger::summary))
        .route("/ledger/reference/{id}", get(ledger::of_reference))
        .route("/ledger/transactions", get(ledger::of_all))
        .route("/ledger/health", get(health::ledger))
        .route("/users/health", get(health::users))
        .route("/integration/health", get(health::integration))
        .route("/health/live", get(health::live))
        .route("/health/ready", get(health::ready))
        .route("/health/kafka", get(health::kafka))
        .route("/health/kafka/stats", get(health::kafka_stats))
        .route("/health/progress", get(health::progress))
        .fallback(no_route)
        .method_not_allowed_fallback(no_method)
        .with_state(shared)
}

async fn no_route(method: Method, uri: Uri) -> ApiError {
    let path = uri.path();
    // A path with nothing where the id belongs is no route, but it is clear what was meant.
    let after_prefix = path.strip_prefix("/wallets/").or_else(|| path.strip_prefix("/ledger/wallet/"));
    if after_prefix.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        && let Err(error) = WalletId::new("")
    {
        return error.into();
    }
    ApiError::new(StatusCode::NOT_FOUND, code::NOT_FOUND, format!("there is no route {method} {path}"))
}

async fn no_method(method: Method, uri: Uri) -> ApiError {
    let message = format!("{} does not take {method}; the Allow header says what it takes", uri.path());
    ApiError::new(StatusCode::METHOD_NOT_ALLOWED, code::METHOD_NOT_ALLOWED, message)
}
