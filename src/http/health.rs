//! How it is going: whether this process can take work, and what is behind.
//!
//! Each route answers within [`Limits::health_deadline`](crate::http::Limits::health_deadline), also where what it asks about
//! does not; those that ask the broker take up to [`BROKER_TIMEOUT`] more, because only silence tells that it is away.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::response::Response;
use serde::Serialize;

use crate::http::answer::ok;
use crate::http::error::ApiError;
use crate::http::{Shared, in_time};
use crate::lag::{self, BROKER_TIMEOUT, IngestLag, LagReport, State as LagState};
use crate::log::EventLog;
use crate::postgres::RelayState;
use crate::sequencer::{CommandError, Request};
use crate::wallet::{Command, WalletId};

/// How old the report may be that readiness repeats. An older one is made anew meanwhile.
const RECENT: Duration = Duration::from_secs(5);

#[derive(Serialize)]
struct StatusBody {
    status: &'static str,
}

fn healthy() -> Response {
    ok(&StatusBody { status: "ok" })
}

/// The process runs and answers.
pub(super) async fn live() -> Response {
    healthy()
}

#[derive(Serialize)]
struct ReadyBody {
    status: &'static str,
    /// What `/health/kafka` says: `healthy`, `unhealthy`, or `unknown` as long as nobody has asked.
    kafka: &'static str,
    /// `connected` or `away`; absent where servers do not queue in a Redis.
    #[serde(skip_serializing_if = "Option::is_none")]
    redis: Option<&'static str>,
}

/// Commands are decided and made durable, and the database is read. That is all that a command needs: a broker that is away
/// is told in the body, as of a few seconds ago, and does not make this process unready; nor does a Redis that is away.
pub(super) async fn ready<L: EventLog>(State(shared): State<Arc<Shared<L>>>) -> Result<Response, ApiError> {
    let deadline = shared.limits.health_deadline;
    let (write_path, read_model) = tokio::join!(
        in_time(deadline, check_write_path(&shared)),
        in_time(deadline, shared.api.database.check_read_model()),
    );
    write_path.and(read_model)?;
    // Not asked now: the silence of a broker takes longer than a probe of readiness waits.
    let kafka = shared.lag.recent(RECENT).map_or("unknown", |report| kafka_status(&report));
    let redis = shared.api.leases.as_ref().map(|leases| if leases.is_connected() { "connected" } else { "away" });
    Ok(ok(&ReadyBody { status: "ok", kafka, redis }))
}

/// Sends a command down the whole write path that can only be refused: no wallet takes a debit of nothing.
async fn check_write_path<L: EventLog>(shared: &Shared<L>) -> Result<(), ApiError> {
    let wallet_id = WalletId::new("readiness")?;
    match shared.api.commands.execute(Request::new(Command::debit(wallet_id, "0"))).await {
        Ok(_) => Err(ApiError::internal(&"a debit of nothing was carried out")),
        Err(CommandError::Rejected(_)) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// The ledger's rows can be read.
pub(super) async fn ledger<L: EventLog>(State(shared): State<Arc<Shared<L>>>) -> Result<Response, ApiError> {
    in_time(shared.limits.health_deadline, shared.api.database.check_ledger()).await?;
    Ok(healthy())
}

/// The list of wallets can be read.
pub(super) async fn users<L: EventLog>(State(shared): State<Arc<Shared<L>>>) -> Result<Response, ApiError> {
    in_time(shared.limits.health_deadline, shared.api.database.check_read_model()).await?;
    Ok(healthy())
}

/// Events reach Kafka.
pub(super) async fn integration<L: EventLog>(State(shared): State<Arc<Shared<L>>>) -> Result<Response, ApiError> {
    let report = report(&shared).await?;
    if report.total.needs_help {
        Err(ApiError::unavailable("events do not reach Kafka or a group of wallex's; GET /health/kafka says more"))
    } else {
        Ok(healthy())
    }
}

#[derive(Serialize)]
struct KafkaBody<'a> {
    status: &'static str,
    /// The most urgent of the states.
    state: LagState,
    producer: Producer,
    kafka: Kafka,
    /// Absent where the events are in the database.
    #[serde(skip_serializing_if = "Option::is_none")]
    ingest: Option<&'a IngestLag>,
    outbox: Outbox<'a>,
    lag: Vec<Group<'a>>,
}

#[derive(Serialize)]
struct Producer {
    connected: bool,
}

#[derive(Serialize)]
struct Kafka {
    status: &'static str,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Outbox<'a> {
    state: LagState,
    /// What the relay is doing, and why it is not publishing, where it is not.
    relay: RelayState,
    reason: Option<&'a str>,
    depth: i64,
    oldest_age_ms: Option<i64>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Group<'a> {
    group: &'a str,
    state: LagState,
    members: Option<usize>,
    parked: i64,
    lag: Option<i64>,
    behind_ms: Option<i64>,
}

/// Whether events reach Kafka, in short. 200 also where they do not: `status` is the answer.
pub(super) async fn kafka<L: EventLog>(State(shared): State<Arc<Shared<L>>>) -> Result<Response, ApiError> {
    let report = report(&shared).await?;
    let connected = report.broker.connected;
    Ok(ok(&KafkaBody {
        status: kafka_status(&report),
        state: report.total.state,
        producer: Producer { connected },
        kafka: Kafka { status: if connected { "connected" } else { "disconnected" } },
        ingest: report.ingest.as_ref(),
        outbox: Outbox {
            state: report.outbox.state,
            relay: report.outbox.relay.state,
            reason: report.outbox.relay.reason.as_deref(),
            depth: report.outbox.depth,
            oldest_age_ms: report.outbox.oldest_age_ms,
        },
        lag: report
            .groups
            .iter()
            .map(|group| Group {
                group: &group.group,
                state: group.state,
                members: group.members,
                parked: group.parked,
                lag: group.lag,
                behind_ms: group.behind_ms,
            })
            .collect(),
    }))
}

/// The same, in full.
pub(super) async fn kafka_stats<L: EventLog>(State(shared): State<Arc<Shared<L>>>) -> Result<Response, ApiError> {
    Ok(ok(&report(&shared).await?))
}

/// How far the relay and the projections have come, and the copy of an event store before them. Cheap: it asks the database, and
/// the store only where it ends.
pub(super) async fn progress<L: EventLog>(State(shared): State<Arc<Shared<L>>>) -> Result<Response, ApiError> {
    Ok(ok(&in_time(shared.limits.health_deadline, shared.lag.progress()).await?))
}

async fn report<L: EventLog>(shared: &Shared<L>) -> Result<LagReport, ApiError> {
    // First whether the database answers at all: that must be known sooner than the broker's silence.
    in_time(shared.limits.health_deadline, lag::progress(&shared.api.database)).await?;
    in_time(shared.limits.health_deadline + BROKER_TIMEOUT, shared.lag.report()).await
}

/// The one judgement that every route repeats.
fn kafka_status(report: &LagReport) -> &'static str {
    if report.total.needs_help { "unhealthy" } else { "healthy" }
}
