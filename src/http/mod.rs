//! HTTP: the wallet over a socket.
//!
//! [`serve`] answers on a listener until it is told to stop. Commands go to the [`CommandService`], `GET /wallets/{id}` reads
//! the log and so is never older than an answer already given, and everything else reads what the projections have
//! made of the log so far.
//!
//! | call | answer |
//! |---|---|
//! | `POST /wallets`, `POST /wallets/{id}/credit`, `/debit`, `/transfer` | 201, the state that the command made |
//! | `GET /wallets/{id}` | the wallet and its newest 100 events |
//! | `GET /wallets?limit=100&cursor=…` | an array of wallets by id; the next page is in the `Link` header |
//! | `GET /ledger/wallet/{id}`, `/ledger/reference/{id}`, `/ledger/transactions` | ledger rows, newest first; `count` is how many there are in this answer |
//! | `GET /ledger/wallet/{id}/summary` | totals, and `lastTransaction`: the newest row or null |
//! | `GET /health/live`, `/health/ready`, `/ledger/health`, `/users/health`, `/integration/health` | 200 or 503 |
//! | `GET /health/kafka`, `/health/kafka/stats`, `/health/progress` | what is behind, and by how much |
//!
//! # Errors
//!
//! Every error is `{statusCode, error, message, code}`. The codes are stable:
//!
//! | status | code | when |
//! |---|---|---|
//! | 400 | `VALIDATION` | a field, header, path or query parameter is not as it should be; a transfer to self or across currencies |
//! | 400 | `INVALID_AMOUNT` | an amount is missing, no plain decimal number, zero, negative, too precise or too large |
//! | 400 | `INSUFFICIENT_FUNDS` | the payer has less than that |
//! | 404 | `WALLET_NOT_FOUND`, `NOT_FOUND` | no such wallet; no such route |
//! | 405 | `METHOD_NOT_ALLOWED` | the route has other methods: see `Allow` |
//! | 408 | `REQUEST_TIMEOUT` | the body did not come in time |
//! | 409 | `WALLET_EXISTS` | a wallet of that id is there already |
//! | 413 | `BODY_TOO_LARGE` | more than 64 KiB |
//! | 415 | `UNSUPPORTED_MEDIA_TYPE` | the body is not `application/json`, or is compressed |
//! | 422 | `IDEMPOTENCY_KEY_REUSED` | the key was used before with another body |
//! | 500 | `WALLET_UNREADABLE` | the wallet, or the receiver of a transfer, has an event of the earlier system that cannot be read exactly |
//! | 500 | `INTERNAL` | a fault of ours that a retry will not mend |
//! | 503 | `BUSY`, `UNAVAILABLE` | come back after `Retry-After` seconds; the message says whether the command may have happened |
//!
//! What is no HTTP at all, or has more than 16 KiB of headers, is answered by status alone (400, 414, 431), and the
//! connection is closed.

mod answer;
mod arrival;
mod body;
mod connection;
mod error;
mod health;
mod ledger;
mod limits;
mod query;
mod routes;
mod wallets;

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::response::{IntoResponse, Response};
use hyper::Request;
use hyper::body::Incoming;
use hyper::header::{CACHE_CONTROL, HeaderName, HeaderValue};
use hyper::service::Service;
use hyper_util::service::TowerToHyperService;
use nix::errno::Errno;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::http::arrival::{Arrival, Correlation, X_CORRELATION_ID, read_body};
use crate::http::connection::{Ends, serve_connection};
use crate::http::error::ApiError;
use crate::kafka::KafkaConfig;
use crate::kurrentdb::KurrentLog;
use crate::lag::LagProbe;
use crate::lease::Leases;
use crate::log::EventLog;
use crate::postgres::Database;
use crate::sequencer::CommandService;

pub use limits::Limits;

/// Between two attempts to accept when the machine has no room for a connection: nothing tells when it has again.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What the routes answer from.
#[derive(Clone, Debug)]
pub struct Api<L> {
    /// Takes the commands.
    pub commands: CommandService,
    /// Has the wallets as of now.
    pub log: L,
    /// Has the projections' tables.
    pub database: Database,
    /// The broker that the health routes ask about; `None` where none is configured.
    pub kafka: Option<KafkaConfig>,
    /// The event store that the health routes ask about; `None` where the events are in the database.
    pub event_store: Option<KurrentLog>,
    /// The Redis that readiness tells of; `None` where servers do not queue.
    pub leases: Option<Leases>,
}

/// What every route has at hand.
struct Shared<L> {
    api: Api<L>,
    /// Asks how far everything is; kept, because it keeps its connections to the broker.
    lag: LagProbe,
    limits: Limits,
}

/// Answers on `listener` until `stop`. Then nothing new is accepted, idle connections are closed, and what is under way is
/// answered within [`Limits::drain`]; so whoever stops the write path waits for this first.
///
/// # Errors
/// Where the listener itself is broken. A lack of room (file descriptors, memory) is waited out.
pub async fn serve<L: EventLog>(
    listener: TcpListener,
    api: Api<L>,
    limits: Limits,
    stop: CancellationToken,
) -> io::Result<()> {
    let lag = LagProbe::new(api.database.clone(), api.kafka.clone()).with_event_store(api.event_store.clone());
    let shared = Arc::new(Shared { api, lag, limits: limits.clone() });
    let routes = TowerToHyperService::new(routes::routes(Arc::clone(&shared)));
    let ends = Ends { stop: stop.child_token(), cut: CancellationToken::new() };
    // Connections outlive this function only as long as it takes to close them, even where it is dropped half-way.
    let _cut_at_the_end = ends.cut.clone().drop_guard();
    let slots = Arc::new(Semaphore::new(limits.connections));
    let connections = TaskTracker::new();
    let broken = loop {
        let slot = tokio::select! {
            () = stop.cancelled() => break None,
            slot = Arc::clone(&slots).acquire_owned() => match slot {
                Ok(slot) => slot,
                Err(_) => break None,
            },
        };
        let stream = tokio::select! {
            () = stop.cancelled() => break None,
            accepted = accept(&listener) => match accepted {
                Ok(stream) => stream,
                Err(error) => break Some(error),
            },
        };
        let (routes, limits, ends) = (routes.clone(), Arc::clone(&shared), ends.clone());
        connections.spawn(async move {
            let limits = &limits.limits;
            serve_connection(stream, limits, ends, |request| answer(&routes, limits, request)).await;
            drop(slot);
        });
    };
    drop(listener);
    // Where the listener broke nobody has said stop, but there is nothing to stay for.
    ends.stop.cancel();
    connections.close();
    if tokio::time::timeout(limits.drain, connections.wait()).await.is_err() {
        tracing::warn!(connections = connections.len(), "requests were still under way when the time to stop was over");
        ends.cut.cancel();
        connections.wait().await;
    }
    broken.map_or(Ok(()), Err)
}

async fn accept(listener: &TcpListener) -> io::Result<TcpStream> {
    loop {
        let error = match listener.accept().await {
            Ok((stream, _)) => match stream.set_nodelay(true) {
                Ok(()) => return Ok(stream),
                // It was closed before it was looked at.
                Err(error) => error,
            },
            Err(error) => error,
        };
        match error.raw_os_error().map(Errno::from_raw) {
            Some(Errno::EBADF | Errno::EINVAL | Errno::ENOTSOCK | Errno::EFAULT) => return Err(error),
            Some(Errno::EMFILE | Errno::ENFILE | Errno::ENOMEM | Errno::ENOBUFS) => {
                tracing::warn!(%error, "no room for another connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
            // The connection's fault, not the listener's.
            _ => tracing::debug!(%error, "a connection was not made"),
        }
    }
}

/// One request's answer: what is the same for all routes, and the route's own part.
async fn answer<R>(routes: &R, limits: &Limits, mut request: Request<Incoming>) -> Response
where
    R: Service<Request<axum::body::Body>, Response = Response, Error = Infallible>,
{
    let correlation = Correlation::of(request.headers());
    let arrived = read_body(&mut request, limits).await.and_then(|body| correlation.check().map(|()| body));
    let mut response = match arrived {
        Ok(body) => {
            let mut request = request.map(|_| axum::body::Body::empty());
            request.extensions_mut().insert(Arrival { correlation_id: correlation.id, body });
            match routes.call(request).await {
                Ok(response) => response,
                Err(never) => match never {},
            }
        }
        Err(error) => error.into_response(),
    };
    let headers = response.headers_mut();
    headers.insert(HeaderName::from_static(X_CORRELATION_ID), correlation.header);
    // Nothing between us and the client may answer with an older state than the one that is true.
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// Waits for a read, but not for ever.
async fn in_time<T, E>(deadline: Duration, reading: impl Future<Output = Result<T, E>>) -> Result<T, ApiError>
where
    ApiError: From<E>,
{
    match tokio::time::timeout(deadline, reading).await {
        Ok(read) => Ok(read?),
        Err(_) => Err(ApiError::unavailable("the store did not answer in time; try again")),
    }
}
