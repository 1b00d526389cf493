//! The wallet routes: commands, one wallet from the log, and the list of wallets from the read model.

use std::sync::Arc;

use axum::extract::{FromRequestParts, State};
use axum::http::request::Parts;
use axum::response::Response;
use hyper::header::{HeaderName, HeaderValue, LINK};
use hyper::{StatusCode, Uri};

use crate::http::answer::{TransferBody, WalletBody, json, ok};
use crate::http::arrival::{PathText, Posted};
use crate::http::error::ApiError;
use crate::http::{Shared, body, in_time, query};
use crate::log::{EventLog, read_wallet};
use crate::sequencer::{Answer, Request};
use crate::wallet::{Command, Rejection, WalletId};

/// How many of a wallet's newest events `auditTrail` holds; the ledger has the rest.
const TRAIL_MAX: usize = 100;

const IDEMPOTENCY_REPLAYED: HeaderName = HeaderName::from_static("idempotency-replayed");

/// The wallet id of the path: decoded once, then checked.
pub(super) struct WalletPath(pub(super) WalletId);

impl<S: Send + Sync> FromRequestParts<S> for WalletPath {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let PathText(text) = PathText::from_request_parts(parts, state).await?;
        Ok(WalletPath(WalletId::new(text)?))
    }
}

pub(super) async fn create<L: EventLog>(
    State(shared): State<Arc<Shared<L>>>,
    posted: Posted,
) -> Result<Response, ApiError> {
    let command = body::create(&posted.body)?;
    execute(&shared, posted, command).await
}

pub(super) async fn credit<L: EventLog>(
    State(shared): State<Arc<Shared<L>>>,
    WalletPath(id): WalletPath,
    posted: Posted,
) -> Result<Response, ApiError> {
    let command = body::credit(id, &posted.body)?;
    execute(&shared, posted, command).await
}

pub(super) async fn debit<L: EventLog>(
    State(shared): State<Arc<Shared<L>>>,
    WalletPath(id): WalletPath,
    posted: Posted,
) -> Result<Response, ApiError> {
    let command = body::debit(id, &posted.body)?;
    execute(&shared, posted, command).await
}

pub(super) async fn transfer<L: EventLog>(
    State(shared): State<Arc<Shared<L>>>,
    WalletPath(id): WalletPath,
    posted: Posted,
) -> Result<Response, ApiError> {
    let command = body::transfer(id, &posted.body)?;
    execute(&shared, posted, command).await
}

async fn execute<L: EventLog>(shared: &Shared<L>, posted: Posted, command: Command) -> Result<Response, ApiError> {
    let Posted { correlation_id, idempotency_key, .. } = posted;
    let request = Request { command, idempotency_key, correlation_id };
    let Answer { wallet, transfer, replayed, .. } = shared.api.commands.execute(request).await?;
    let mut response = match &transfer {
        Some((transfer_id, receiver)) => json(
            StatusCode::CREATED,
            &TransferBody { from_wallet: (&wallet).into(), to_wallet: receiver.into(), transfer_id: *transfer_id },
        ),
        None => json(StatusCode::CREATED, &WalletBody::from(&wallet)),
    };
    if replayed {
        response.headers_mut().insert(IDEMPOTENCY_REPLAYED, HeaderValue::from_static("true"));
    }
    Ok(response)
}

pub(super) async fn read<L: EventLog>(
    State(shared): State<Arc<Shared<L>>>,
    WalletPath(id): WalletPath,
    uri: Uri,
) -> Result<Response, ApiError> {
    query::no_parameters(&uri)?;
    let reading = read_wallet(&shared.api.log, &id, TRAIL_MAX);
    match in_time(shared.limits.read_deadline, reading).await? {
        Some(view) => Ok(ok(&WalletBody::from(&view))),
        None => Err(Rejection::WalletNotFound(id).into()),
    }
}

pub(super) async fn list<L: EventLog>(State(shared): State<Arc<Shared<L>>>, uri: Uri) -> Result<Response, ApiError> {
    let (limit, cursor) = query::wallets_page(&uri)?;
    // One more than the page holds: whether it is there tells whether there is a next page.
    let reading = shared.api.database.listed_wallets(cursor.as_ref(), limit + 1);
    let mut wallets = in_time(shared.limits.read_deadline, reading).await?;
    let more = wallets.len() as i64 > limit;
    if more {
        wallets.pop();
    }
    let mut response = ok(&wallets.iter().map(WalletBody::from).collect::<Vec<_>>());
    if let (true, Some(last)) = (more, wallets.last()) {
        // A wallet id has nothing in it that a query or a header would have to escape.
        let next = format!("</wallets?limit={limit}&cursor={}>; rel=\"next\"", last.id);
        let link = HeaderValue::from_str(&next).map_err(|error| ApiError::internal(&error))?;
        response.headers_mut().insert(LINK, link);
    }
    Ok(response)
}
