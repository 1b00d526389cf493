//! A server to test against, and a client that holds every answer against what all answers have in common.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use chrono::{DateTime, Utc};
use reqwest::header::{CONTENT_TYPE, HeaderMap};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use wallex::http::{Api, Limits, serve};
use wallex::kafka::KafkaConfig;
use wallex::log::{
    Appended, Atomicity, Batch, EventLog, KeyRecord, KeyScope, LoadedStream, LogError, MemoryLog, Position,
    RecordedEvent, Revision, Snapshot,
};
use wallex::postgres::Database;
use wallex::sequencer::{Sequencer, SequencerOptions};
use wallex::wallet::WalletId;

use crate::postgres::TestServer;

/// How long a test waits for what must happen before it fails.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A database of the test's own, migrated, as a URL. It goes with the server.
pub async fn fresh_database_url() -> String {
    let database = TestServer::shared().await.database().await;
    let url = database.url.clone();
    std::mem::forget(database);
    url
}

/// A database of the test's own, migrated.
pub async fn fresh_database() -> Database {
    Database::connect(&fresh_database_url().await, 4).await.expect("the new database answers")
}

/// A server under test. It ends with the test's runtime.
pub struct Server {
    pub address: SocketAddr,
    pub database: Database,
    pub client: Client,
    pub stop: CancellationToken,
    pub serving: JoinHandle<io::Result<()>>,
}

impl Server {
    /// With all defaults, on a log in memory.
    pub async fn start() -> Self {
        Self::with_limits(Limits::default()).await
    }

    pub async fn with_limits(limits: Limits) -> Self {
        Self::on(MemoryLog::new(), limits, SequencerOptions::default(), fresh_database().await).await
    }

    pub async fn on<L: EventLog>(log: L, limits: Limits, options: SequencerOptions, database: Database) -> Self {
        Self::with_broker(log, limits, options, database, None).await
    }

    pub async fn with_broker<L: EventLog>(
        log: L,
        limits: Limits,
        options: SequencerOptions,
        database: Database,
        kafka: Option<KafkaConfig>,
    ) -> Self {
        let (commands, sequencer) = Sequencer::new(log.clone(), options, |_| {});
        tokio::spawn(sequencer.run(CancellationToken::new()));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("the port");
        let api = Api { commands, log, database: database.clone(), kafka, event_store: None, leases: None };
        let stop = CancellationToken::new();
        let serving = tokio::spawn(serve(listener, api, limits, stop.clone()));
        Server { address, database, client: Client::of(address), stop, serving }
    }

    /// Opens a wallet in USD.
    pub async fn open(&self, id: &str, initial_balance: &str) {
        let body = format!(r#"{{"walletId":"{id}","ownerId":"owner","initialBalance":"{initial_balance}"}}"#);
        assert_eq!(self.client.post("/wallets", &body).await.status, 201);
    }

    /// A wallet's balance and version, as the answer has them.
    pub async fn state_of(&self, id: &str) -> (String, i64) {
        let answer = self.client.get(&format!("/wallets/{id}")).await;
        assert_eq!(answer.status, 200, "{}", answer.text);
        (answer.json["balance"].to_string(), answer.json["version"].as_i64().expect("a version"))
    }

    /// Sends bytes as they are on a connection of their own, and reads until the server closes it.
    pub async fn raw(&self, request: impl AsRef<[u8]>) -> String {
        let mut stream = self.connect().await;
        stream.write_all(request.as_ref()).await.expect("the request is sent");
        read_to_close(&mut stream).await
    }

    pub async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.expect("the server takes a connection")
    }
}

/// Everything that comes until the server closes the connection; a reset is a close.
pub async fn read_to_close(stream: &mut TcpStream) -> String {
    let mut received = Vec::new();
    let _ = timeout(PATIENCE, stream.read_to_end(&mut received)).await.expect("the server closes the connection");
    String::from_utf8_lossy(&received).into_owned()
}

/// A request in full, its connection to be closed after it.
pub fn raw_request(method: &str, target: &str, body: &str) -> String {
    format!(
        "{method} {target} HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n{body}",
        body.len()
    )
}

#[derive(Clone)]
pub struct Client {
    base: String,
    http: reqwest::Client,
}

pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub text: String,
    pub json: Value,
}

impl Client {
    fn of(address: SocketAddr) -> Self {
        let http = reqwest::Client::builder().timeout(PATIENCE).no_proxy().build().expect("a client");
        Client { base: format!("http://{address}"), http }
    }

    pub async fn get(&self, path: &str) -> Answer {
        Self::answer(self.http.get(format!("{}{path}", self.base))).await
    }

    pub async fn post(&self, path: &str, body: &str) -> Answer {
        self.post_with(path, &[], body.to_owned()).await
    }

    /// A JSON body with further headers; one named like a header of ours replaces it.
    pub async fn post_with(&self, path: &str, headers: &[(&str, &str)], body: impl Into<reqwest::Body>) -> Answer {
        let mut all = HeaderMap::new();
        all.insert(CONTENT_TYPE, "application/json".parse().expect("a header value"));
        for (name, value) in headers {
            let name: reqwest::header::HeaderName = name.parse().expect("a header name");
            all.insert(name, value.parse().expect("a header value"));
        }
        Self::answer(self.http.post(format!("{}{path}", self.base)).headers(all).body(body)).await
    }

    pub async fn send(&self, method: &str, path: &str) -> Answer {
        let method = method.parse().expect("a method");
        Self::answer(self.http.request(method, format!("{}{path}", self.base))).await
    }

    async fn answer(request: reqwest::RequestBuilder) -> Answer {
        let response = request.send().await.expect("an answer");
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let text = response.text().await.expect("a body in UTF-8");
        assert!(headers.contains_key("x-correlation-id"), "{status} without X-Correlation-Id: {text}");
        assert_eq!(headers[CONTENT_TYPE], "application/json", "{status}: {text}");
        let json: Value = if text.is_empty() { Value::Null } else { serde_json::from_str(&text).expect("JSON") };
        Answer { status, headers, text, json }
    }
}

impl Answer {
    /// Holds an error against the contract's shape, and returns its message.
    #[track_caller]
    pub fn is_error(&self, status: u16, code: &str) -> &str {
        let given = (self.status, self.json["code"].as_str().unwrap_or("none"));
        assert_eq!(given, (status, code), "{}", self.text);
        let fields: Vec<&String> = self.json.as_object().expect("an object").keys().collect();
        assert_eq!(fields, ["code", "error", "message", "statusCode"], "{}", self.text);
        assert_eq!(self.json["statusCode"], status);
        let phrase = match status {
            400 => "Bad Request",
            404 => "Not Found",
            405 => "Method Not Allowed",
            408 => "Request Timeout",
            409 => "Conflict",
            413 => "Payload Too Large",
            415 => "Unsupported Media Type",
            422 => "Unprocessable Entity",
            500 => "Internal Server Error",
            503 => "Service Unavailable",
            other => panic!("no error has the status {other}"),
        };
        assert_eq!(self.json["error"], phrase);
        if status == 503 {
            let seconds = self.headers["retry-after"].to_str().expect("text").parse::<u64>().expect("seconds");
            assert!(seconds >= 1);
        }
        self.json["message"].as_str().expect("a message")
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().expect("a header in ASCII"))
    }
}

/// A log in memory whose appends wait at a gate, for what happens while a command is under way.
#[derive(Clone)]
pub struct GatedLog {
    inner: MemoryLog,
    gate: Arc<Semaphore>,
    waiting: Arc<AtomicUsize>,
    arrived: Arc<tokio::sync::Notify>,
    fault: Arc<Mutex<Option<String>>>,
}

impl GatedLog {
    pub fn closed() -> Self {
        GatedLog {
            inner: MemoryLog::new(),
            gate: Arc::new(Semaphore::new(0)),
            waiting: Arc::default(),
            arrived: Arc::default(),
            fault: Arc::default(),
        }
    }

    pub fn open() -> Self {
        let log = Self::closed();
        log.let_through();
        log
    }

    /// Opens the gate for good.
    pub fn let_through(&self) {
        self.gate.add_permits(1_000);
    }

    /// From now on every call is answered with this fault.
    pub fn break_with(&self, fault: &str) {
        *self.fault.lock().expect("not poisoned") = Some(fault.to_owned());
    }

    /// Waits until an append stands at the gate.
    pub async fn an_append_waits(&self) {
        while self.waiting.load(Ordering::SeqCst) == 0 {
            timeout(PATIENCE, self.arrived.notified()).await.expect("an append arrives at the gate");
        }
    }

    fn check(&self) -> Result<(), LogError> {
        match self.fault.lock().expect("not poisoned").clone() {
            Some(fault) => Err(LogError::Corrupt(fault)),
            None => Ok(()),
        }
    }
}

impl EventLog for GatedLog {
    fn atomicity(&self) -> Atomicity {
        self.inner.atomicity()
    }

    async fn append(&self, batch: &Batch) -> Result<Appended, LogError> {
        self.check()?;
        self.waiting.fetch_add(1, Ordering::SeqCst);
        self.arrived.notify_one();
        let permit = self.gate.acquire().await.expect("the gate is never taken down");
        self.waiting.fetch_sub(1, Ordering::SeqCst);
        drop(permit);
        self.inner.append(batch).await
    }

    async fn head(&self) -> Result<Position, LogError> {
        self.check()?;
        self.inner.head().await
    }

    async fn lock_head(&self) -> Result<Position, LogError> {
        self.check()?;
        self.inner.lock_head().await
    }

    async fn read(&self, after: Position, limit: usize) -> Result<Vec<RecordedEvent>, LogError> {
        self.check()?;
        self.inner.read(after, limit).await
    }

    async fn read_stream(
        &self,
        stream: &WalletId,
        from: Revision,
        limit: usize,
    ) -> Result<Vec<RecordedEvent>, LogError> {
        self.check()?;
        self.inner.read_stream(stream, from, limit).await
    }

    async fn read_stream_end(&self, stream: &WalletId, limit: usize) -> Result<Vec<RecordedEvent>, LogError> {
        self.check()?;
        self.inner.read_stream_end(stream, limit).await
    }

    async fn load(&self, streams: &[WalletId], snapshot_format: i32) -> Result<Vec<LoadedStream>, LogError> {
        self.check()?;
        self.inner.load(streams, snapshot_format).await
    }

    async fn find_keys(&self, keys: &[KeyScope]) -> Result<Vec<KeyRecord>, LogError> {
        self.check()?;
        self.inner.find_keys(keys).await
    }

    async fn save_snapshots(&self, snapshots: &[Snapshot]) -> Result<(), LogError> {
        self.inner.save_snapshots(snapshots).await
    }

    async fn forget_keys(&self, before: DateTime<Utc>, limit: usize) -> Result<u64, LogError> {
        self.inner.forget_keys(before, limit).await
    }
}
