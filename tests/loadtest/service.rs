//! A wallet service in memory: as much of the HTTP contract as the load test uses, and one fault at a time.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use axum::body::Bytes;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::{Value, json};
use tokio::net::TcpListener;

/// Faults that strike once strike at this one of the requests that they concern.
const FAULTY_REQUEST: usize = 25;
/// Less than the client asks for, so that it has to follow the links.
const PAGE: usize = 7;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fault {
    None,
    /// A credit is acknowledged and forgotten.
    LosesACredit,
    /// A transfer's receiver gets nothing.
    LosesASecondLeg,
    /// One operation has effect, and the client hears 500.
    AnswersOnceWith500,
    /// From the faulty request on.
    AnswersAlwaysWith500,
    /// Each fourth request is asked to come again, once, and nothing was done.
    IsBusyNowAndThen,
    /// One request is asked to come again in a second.
    AsksForASecond,
    /// All, always.
    IsAlwaysBusy,
    /// One operation has effect, but its answer comes long after the client has given up waiting for it.
    AnswersTooLate,
    /// The same, and the key of the request that is sent again is not known.
    AnswersTooLateAndForgetsKeys,
    /// A debit is refused with a code that this workload cannot cause.
    RefusesWithoutReason,
    /// A refusal is not the contract's.
    RefusesInPlainText,
    /// One wallet is there already.
    KnowsAWalletBefore,
    /// `GET /wallets/{id}` of one wallet says another version.
    MiscountsAVersion,
    /// `GET /wallets/{id}` of one wallet has a float's residue.
    AnswersAFloat,
    /// The ledger of one wallet is a cent off.
    LosesACentInTheLedger,
    /// The ledger of one wallet lacks nothing but the count of its entries.
    MiscountsTheLedger,
    /// The read model has one wallet's opening balance only, though it says that it has caught up.
    HasAStaleReadModel,
    /// One wallet is not in the read model.
    LacksAWalletInTheReadModel,
    /// The read model's pages do not name the next one.
    LinksNoPages,
    /// The read model's pages name themselves.
    LinksPagesInACircle,
    /// One projection stands still.
    HasAStuckProjection,
    /// There is no route that tells the projections' positions.
    TellsNoProgress,
}

#[derive(Default)]
struct Wallet {
    /// When, and by how many minor units.
    entries: Vec<(Instant, i64)>,
}

impl Wallet {
    fn balance(&self) -> i64 {
        self.entries.iter().map(|(_, delta)| delta).sum()
    }
}

struct Bank {
    fault: Fault,
    /// How far the projections are behind.
    lag: Duration,
    wallets: BTreeMap<String, Wallet>,
    answers: HashMap<String, (StatusCode, Value)>,
    events: Vec<Instant>,
    struck: HashMap<Fault, usize>,
    /// Every command that was received, its second sends too: path, body and key.
    received: Vec<(String, Value, String)>,
}

type Shared = Arc<Mutex<Bank>>;

/// A service that runs for as long as this is held.
pub struct Service {
    pub url: String,
    bank: Shared,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Service {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Service {
    pub async fn start(fault: Fault, lag: Duration) -> Self {
        let mut bank = Bank {
            fault,
            lag,
            wallets: BTreeMap::new(),
            answers: HashMap::new(),
            events: Vec::new(),
            struck: HashMap::new(),
            received: Vec::new(),
        };
        // Other people's wallets, on both sides of the run's.
        for id in ["a", "loadtest", "loadtest-0", "loadtest-zzz", "z"] {
            bank.wallets.insert(id.to_owned(), Wallet { entries: vec![(Instant::now(), 777)] });
        }
        let bank = Arc::new(Mutex::new(bank));
        let router = Router::new()
            .route("/wallets", post(open).get(list))
            .route("/wallets/{id}", get(read))
            .route("/wallets/{id}/{kind}", post(operate))
            .route("/ledger/wallet/{id}/summary", get(summary))
            .route("/health/live", get(StatusCode::OK))
            .route("/health/progress", get(progress))
            .with_state(Arc::clone(&bank));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("the port"));
        let task = tokio::spawn(async move { axum::serve(listener, router).await.expect("serving") });
        Service { url, bank, task }
    }

    pub fn received(&self) -> Vec<(String, Value, String)> {
        lock(&self.bank).received.clone()
    }
}

fn lock(bank: &Shared) -> MutexGuard<'_, Bank> {
    bank.lock().expect("no handler panics")
}

impl Bank {
    /// True once, at the 25th time that this fault could strike.
    fn strikes(&mut self, fault: Fault) -> bool {
        self.count(fault) == Some(FAULTY_REQUEST)
    }

    fn count(&mut self, fault: Fault) -> Option<usize> {
        (self.fault == fault).then(|| {
            let count = self.struck.entry(fault).or_default();
            *count += 1;
            *count
        })
    }

    /// The faults of one wallet are those of the run's third.
    fn is_faulty(&self, fault: Fault, id: &str) -> bool {
        self.fault == fault && id.ends_with("-000002")
    }

    fn enter(&mut self, id: &str, delta: i64) {
        let now = Instant::now();
        self.events.push(now);
        self.wallets.entry(id.to_owned()).or_default().entries.push((now, delta));
    }

    fn state(&self, id: &str) -> Value {
        let wallet = &self.wallets[id];
        json!({
            "id": id, "ownerId": "owner", "currency": "USD", "balance": number(wallet.balance()),
            "status": "ACTIVE", "version": wallet.entries.len(),
        })
    }

    /// What the command does, without the key's part.
    fn carry_out(&mut self, path: &str, body: &Value) -> (StatusCode, Value) {
        let amount = |field: &str| body[field].as_i64().expect("whole units") * 100;
        if path == "/wallets" {
            let id = body["walletId"].as_str().expect("an id").to_owned();
            if self.wallets.contains_key(&id) || self.strikes(Fault::KnowsAWalletBefore) {
                return refusal(StatusCode::CONFLICT, "WALLET_EXISTS");
            }
            self.events.push(Instant::now());
            self.enter(&id, amount("initialBalance"));
            return (StatusCode::CREATED, self.state(&id));
        }
        let (id, kind) = path.trim_start_matches("/wallets/").split_once('/').expect("an id and a kind");
        if !self.wallets.contains_key(id) {
            return refusal(StatusCode::NOT_FOUND, "WALLET_NOT_FOUND");
        }
        let amount = amount("amount");
        if kind != "credit" && self.wallets[id].balance() < amount {
            return refusal(StatusCode::BAD_REQUEST, "INSUFFICIENT_FUNDS");
        }
        match kind {
            "credit" if self.strikes(Fault::LosesACredit) => {}
            "credit" => self.enter(id, amount),
            "debit" if self.strikes(Fault::RefusesWithoutReason) => {
                return refusal(StatusCode::BAD_REQUEST, "VALIDATION");
            }
            "debit" => self.enter(id, -amount),
            "transfer" => {
                self.enter(id, -amount);
                if !self.strikes(Fault::LosesASecondLeg) {
                    let receiver = body["toWalletId"].as_str().expect("a receiver").to_owned();
                    assert_ne!(receiver, id, "a transfer to oneself");
                    self.enter(&receiver, amount);
                }
            }
            other => panic!("no route {other}"),
        }
        (StatusCode::CREATED, self.state(id))
    }
}

/// Exact decimal text as a JSON number.
fn number(minor: i64) -> Value {
    serde_json::from_str(&format!("{}.{:02}", minor / 100, minor % 100)).expect("a number")
}

fn refusal(status: StatusCode, code: &str) -> (StatusCode, Value) {
    (status, json!({"statusCode": status.as_u16(), "error": "-", "message": code, "code": code}))
}

async fn open(state: State<Shared>, headers: HeaderMap, body: Bytes) -> Response {
    command(state.0, "/wallets".to_owned(), headers, body).await
}

async fn operate(state: State<Shared>, path: Path<(String, String)>, headers: HeaderMap, body: Bytes) -> Response {
    let (id, kind) = path.0;
    command(state.0, format!("/wallets/{id}/{kind}"), headers, body).await
}

async fn command(bank: Shared, path: String, headers: HeaderMap, body: Bytes) -> Response {
    assert_eq!(headers[header::CONTENT_TYPE], "application/json");
    let key = headers["idempotency-key"].to_str().expect("a key").to_owned();
    let body: Value = serde_json::from_slice(&body).expect("a JSON body");
    let late = {
        let mut bank = lock(&bank);
        bank.received.push((path.clone(), body.clone(), key.clone()));
        if let Some(answer) = refuse_to_look(&mut bank, &path) {
            return answer;
        }
        let late = path != "/wallets"
            && (bank.strikes(Fault::AnswersTooLate) || bank.strikes(Fault::AnswersTooLateAndForgetsKeys));
        if late {
            let answer = bank.carry_out(&path, &body);
            if bank.fault == Fault::AnswersTooLate {
                bank.answers.insert(key.clone(), answer);
            }
        }
        late
    };
    if late {
        tokio::time::sleep(Duration::from_secs(60)).await;
    }
    let mut bank = lock(&bank);
    if let Some((status, answer)) = bank.answers.get(&key) {
        return (*status, [("idempotency-replayed", "true")], Json(answer.clone())).into_response();
    }
    let (status, answer) = bank.carry_out(&path, &body);
    if status == StatusCode::CREATED {
        bank.answers.insert(key, (status, answer.clone()));
        if path != "/wallets" && bank.strikes(Fault::AnswersOnceWith500) {
            return (StatusCode::INTERNAL_SERVER_ERROR, "oh").into_response();
        }
    }
    (status, Json(answer)).into_response()
}

/// The faults that strike before anything is done.
fn refuse_to_look(bank: &mut Bank, path: &str) -> Option<Response> {
    let unavailable = StatusCode::SERVICE_UNAVAILABLE;
    if bank.fault == Fault::IsAlwaysBusy || bank.count(Fault::IsBusyNowAndThen).is_some_and(|count| count % 4 == 0) {
        return Some(unavailable.into_response());
    }
    if bank.strikes(Fault::AsksForASecond) {
        return Some((unavailable, [(header::RETRY_AFTER, "1")]).into_response());
    }
    let is_operation = path != "/wallets";
    if is_operation && bank.count(Fault::AnswersAlwaysWith500).is_some_and(|count| count >= FAULTY_REQUEST) {
        return Some((StatusCode::INTERNAL_SERVER_ERROR, "oh").into_response());
    }
    if is_operation && bank.strikes(Fault::RefusesInPlainText) {
        return Some((StatusCode::BAD_REQUEST, "no").into_response());
    }
    None
}

async fn read(bank: State<Shared>, Path(id): Path<String>) -> Response {
    let bank = lock(&bank);
    if !bank.wallets.contains_key(&id) {
        let (status, body) = refusal(StatusCode::NOT_FOUND, "WALLET_NOT_FOUND");
        return (status, Json(body)).into_response();
    }
    let mut state = bank.state(&id);
    if bank.is_faulty(Fault::MiscountsAVersion, &id) {
        state["version"] = json!(bank.wallets[&id].entries.len() + 1);
    }
    let mut body = state.to_string();
    if bank.is_faulty(Fault::AnswersAFloat, &id) {
        let exact = format!(r#""balance":{}"#, state["balance"]);
        body = body.replace(&exact, r#""balance":900.0000000000001"#);
    }
    ([(header::CONTENT_TYPE, "application/json")], body).into_response()
}

async fn summary(bank: State<Shared>, Path(id): Path<String>) -> Response {
    let bank = lock(&bank);
    let projected: Vec<i64> = projected(&bank, &id).collect();
    let credits: i64 = projected.iter().filter(|delta| **delta > 0).sum();
    let debits: i64 = -projected.iter().filter(|delta| **delta < 0).sum::<i64>();
    let lost = i64::from(bank.is_faulty(Fault::LosesACentInTheLedger, &id));
    let miscounted = usize::from(bank.is_faulty(Fault::MiscountsTheLedger, &id));
    Json(json!({
        "walletId": id, "totalCredits": number(credits - lost), "totalDebits": number(debits),
        "transactionCount": projected.len() + miscounted, "lastTransaction": null,
    }))
    .into_response()
}

fn projected(bank: &Bank, id: &str) -> impl Iterator<Item = i64> {
    let lag = bank.lag;
    bank.wallets[id].entries.iter().filter(move |(at, _)| at.elapsed() >= lag).map(|(_, delta)| *delta)
}

async fn list(bank: State<Shared>, Query(query): Query<HashMap<String, String>>) -> Response {
    let bank = lock(&bank);
    let cursor = query.get("cursor").cloned().unwrap_or_default();
    let limit = query["limit"].parse::<usize>().expect("a limit").min(PAGE);
    let ids: Vec<&String> = bank.wallets.keys().filter(|id| **id > cursor).collect();
    let rows: Vec<Value> = ids.iter().take(limit).filter_map(|id| row(&bank, id)).collect();
    let next = match ids.get(limit - 1) {
        Some(last) if ids.len() > limit => match bank.fault {
            Fault::LinksNoPages => None,
            Fault::LinksPagesInACircle => Some(cursor),
            _ => Some((*last).clone()),
        },
        _ => None,
    };
    let link = next.map(|id| format!(r#"</wallets?limit={limit}&cursor={id}>; rel="next""#));
    let headers: HeaderMap =
        link.into_iter().map(|link| (header::LINK, link.parse().expect("a header value"))).collect();
    (headers, Json(rows)).into_response()
}

fn row(bank: &Bank, id: &str) -> Option<Value> {
    if bank.is_faulty(Fault::LacksAWalletInTheReadModel, id) {
        return None;
    }
    let shown = if bank.is_faulty(Fault::HasAStaleReadModel, id) { 1 } else { usize::MAX };
    let projected: Vec<i64> = projected(bank, id).take(shown).collect();
    Some(json!({"id": id, "balance": number(projected.iter().sum()), "version": projected.len()}))
}

async fn progress(bank: State<Shared>) -> Response {
    let bank = lock(&bank);
    if bank.fault == Fault::TellsNoProgress {
        return StatusCode::NOT_FOUND.into_response();
    }
    let position = bank.events.iter().filter(|at| at.elapsed() >= bank.lag).count();
    let stuck = if bank.fault == Fault::HasAStuckProjection { 3 } else { position };
    Json(json!({
        "head": bank.events.len(), "published": bank.events.len(),
        "groups": [{"group": "ledger-projector", "position": position},
                   {"group": "read-model-projector", "position": stuck}],
    }))
    .into_response()
}
