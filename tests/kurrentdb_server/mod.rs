//! A KurrentDB for tests, in memory or also on a disk, that speaks the published v1 protocol over a real socket and answers as a real server
//! was seen to answer: retries, wrong revisions, positions that grow with gaps. Everything that can go wrong with a server
//! has a switch.
//!
//! It runs on a thread and a runtime of its own: a client that spins shall not keep its server from answering.

#![allow(dead_code, reason = "each test file uses its own part of it")]

mod disk;
pub mod protocol;
mod service;
mod storage;

use std::collections::VecDeque;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::transport::server::Connected;

use disk::Disk;
pub use storage::Kept;
use storage::Storage;

/// What goes wrong with an append.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AppendFault {
    /// Every connection is cut before anything is written.
    CutBefore,
    /// Every connection is cut after it is written and before that is answered.
    CutAfter,
}

#[derive(Default)]
struct Switches {
    next_appends: VecDeque<AppendFault>,
    delay: Duration,
    leader: Option<SocketAddr>,
    /// What an authorization must say.
    demands: Option<&'static str>,
    delivers_twice: bool,
    begins_with_no_position: bool,
    ends_reads_early: bool,
}

/// What the server's calls work on.
pub struct Shared {
    address: SocketAddr,
    storage: Arc<Mutex<Storage>>,
    /// Where it keeps its events besides, if it does.
    disk: Option<Disk>,
    switches: Mutex<Switches>,
    /// Changes whenever the log has grown.
    grown: watch::Sender<()>,
    silent: watch::Sender<bool>,
    connections: Mutex<CancellationToken>,
    muted: Mutex<CancellationToken>,
    subscriptions: Mutex<CancellationToken>,
    conflicts: AtomicU64,
    counts: Counts,
}

/// What it was asked for.
#[derive(Default)]
struct Counts {
    reads: AtomicU64,
    events_read: AtomicU64,
    subscriptions: AtomicU64,
    append_calls: AtomicU64,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    fn storage(&self) -> MutexGuard<'_, Storage> {
        locked(&self.storage)
    }

    fn switches(&self) -> MutexGuard<'_, Switches> {
        locked(&self.switches)
    }

    fn demands(&self) -> Option<&'static str> {
        self.switches().demands
    }

    fn leader(&self) -> Option<SocketAddr> {
        self.switches().leader
    }

    fn delivers_twice(&self) -> bool {
        self.switches().delivers_twice
    }

    fn begins_with_no_position(&self) -> bool {
        self.switches().begins_with_no_position
    }

    fn ends_reads_early(&self) -> bool {
        self.switches().ends_reads_early
    }

    fn next_append_fault(&self) -> Option<AppendFault> {
        self.switches().next_appends.pop_front()
    }

    /// Takes as long as it is told to, and for ever while it is silent.
    async fn hesitate(&self) {
        let delay = self.switches().delay;
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        let mut silent = self.silent.subscribe();
        // The sender lives as long as this does.
        let _ = silent.wait_for(|silent| !silent).await;
    }

    fn cut_connections(&self) {
        std::mem::take(&mut *locked(&self.connections)).cancel();
    }

    fn subscriptions_end(&self) -> CancellationToken {
        locked(&self.subscriptions).clone()
    }
}

/// A server that runs. Dropped, it is killed.
pub struct KurrentServer {
    shared: Arc<Shared>,
    running: Option<(CancellationToken, std::thread::JoinHandle<()>)>,
}

impl KurrentServer {
    /// A new, empty server on a port that the system chooses.
    pub fn start() -> Self {
        Self::on(Arc::default(), None)
    }

    /// The same, and each append is in this new file before it is acknowledged. Nothing is ever read from there.
    pub fn start_on_disk(file: &Path) -> Self {
        Self::on(Arc::default(), Some(Disk::create(file)))
    }

    /// Another node with the same data.
    pub fn another_node(&self) -> Self {
        Self::on(Arc::clone(&self.shared.storage), None)
    }

    fn on(storage: Arc<Mutex<Storage>>, disk: Option<Disk>) -> Self {
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let shared = Arc::new(Shared {
            address: listener.local_addr().expect("an address"),
            storage,
            disk,
            switches: Mutex::default(),
            grown: watch::Sender::new(()),
            silent: watch::Sender::new(false),
            connections: Mutex::default(),
            muted: Mutex::default(),
            subscriptions: Mutex::default(),
            conflicts: AtomicU64::new(0),
            counts: Counts::default(),
        });
        let mut server = KurrentServer { shared, running: None };
        server.run(listener);
        server
    }

    fn run(&mut self, listener: std::net::TcpListener) {
        let (stop, shared) = (CancellationToken::new(), Arc::clone(&self.shared));
        let stopped = stop.clone();
        let serve = move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async {
                listener.set_nonblocking(true).expect("a socket");
                let listener = TcpListenerStream::new(TcpListener::from_std(listener).expect("a socket"));
                let wires = Arc::clone(&shared);
                let incoming = listener.map(move |accepted| accepted.and_then(|tcp| Wire::new(tcp, &wires)));
                let routes = tonic::transport::Server::builder()
                    .add_service(service::Streams(Arc::clone(&shared)))
                    .add_service(service::Gossip(Arc::clone(&shared)))
                    .add_service(service::ServerFeatures(Arc::clone(&shared)));
                tokio::select! {
                    // Dropped with everything that is under way, as a kill would.
                    () = stopped.cancelled() => {}
                    served = routes.serve_with_incoming(incoming) => served.expect("a server that serves"),
                }
            });
            // The connections are tasks: they end with the runtime.
        };
        let thread = std::thread::Builder::new().name("kurrentdb".to_owned()).spawn(serve).expect("a thread");
        self.running = Some((stop, thread));
    }

    /// How wallex is told where it is.
    pub fn connection_string(&self) -> String {
        format!("esdb://{}?tls=false", self.shared.address)
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.shared.address
    }

    /// Kills it: what is written is kept, everything else is gone.
    pub fn kill(&mut self) {
        if let Some((stop, thread)) = self.running.take() {
            stop.cancel();
            thread.join().expect("a server that served without a panic");
            self.shared.storage().restart();
        }
    }

    /// Starts it again where it was, with what it had.
    pub fn start_again(&mut self) {
        let listener = std::net::TcpListener::bind(self.shared.address).expect("the same port");
        self.run(listener);
    }

    /// Cuts every connection; new ones are taken.
    pub fn cut_connections(&self) {
        self.shared.cut_connections();
    }

    /// Whatever is connected now is never answered again, on connections that stay open, as if the other end were gone without a
    /// word. New ones are.
    pub fn mute_connections(&self) {
        std::mem::take(&mut *locked(&self.shared.muted)).cancel();
    }

    /// What one holds the other one holds from now on, and nobody who is connected is told.
    pub fn exchange_with(&self, other: &KurrentServer) {
        let mut held = Storage::default();
        // One lock at a time: two tests could hold them in either order.
        for server in [self, other, self] {
            std::mem::swap(&mut held, &mut *server.shared.storage());
        }
    }

    /// Puts it back to when it held that many events, as whoever restores a backup does.
    pub fn put_back(&self, events: usize) {
        self.shared.storage().put_back(events);
    }

    /// Takes a stream's events away for good, as a server does with a stream that is cut to a length or an age.
    pub fn scavenge(&self, stream: &str) {
        self.shared.storage().scavenge(stream);
    }

    /// How many reads it has answered.
    pub fn reads(&self) -> u64 {
        self.shared.counts.reads.load(Ordering::SeqCst)
    }

    /// How many events it has handed out to readers.
    pub fn events_read(&self) -> u64 {
        self.shared.counts.events_read.load(Ordering::SeqCst)
    }

    /// How many subscriptions it was asked for.
    pub fn subscriptions(&self) -> u64 {
        self.shared.counts.subscriptions.load(Ordering::SeqCst)
    }

    /// How many calls that take any number of appends were begun.
    pub fn append_calls(&self) -> u64 {
        self.shared.counts.append_calls.load(Ordering::SeqCst)
    }

    /// What goes wrong with the next append; several are for several appends.
    pub fn fail_next_append(&self, fault: AppendFault) {
        self.shared.switches().next_appends.push_back(fault);
    }

    /// How long each answer takes.
    pub fn answer_after(&self, delay: Duration) {
        self.shared.switches().delay = delay;
    }

    /// Whether nothing is answered at all, on connections that stay open.
    pub fn be_silent(&self, silent: bool) {
        self.shared.silent.send_replace(silent);
    }

    /// Whom it lets in alone: what their `authorization` says, which is HTTP's `Basic`.
    pub fn let_in_only(&self, authorization: &'static str) {
        self.shared.switches().demands = Some(authorization);
    }

    /// Who leads instead of this one; `None`: this one leads.
    pub fn follow(&self, leader: Option<SocketAddr>) {
        self.shared.switches().leader = leader;
    }

    /// Ends every subscription with status OK, as a gateway may do.
    pub fn end_subscriptions(&self) {
        std::mem::take(&mut *locked(&self.shared.subscriptions)).cancel();
    }

    /// Whether subscriptions get each event twice.
    pub fn deliver_twice(&self, twice: bool) {
        self.shared.switches().delivers_twice = twice;
    }

    /// Whether the first checkpoint of a filtered subscription is no position.
    pub fn begin_with_no_position(&self, begin: bool) {
        self.shared.switches().begins_with_no_position = begin;
    }

    /// Whether reads end half-way, with status OK.
    pub fn end_reads_early(&self, early: bool) {
        self.shared.switches().ends_reads_early = early;
    }

    /// Fills the log, without a client, with that many credits of a cent to that many wallets.
    pub fn fill(&self, events: usize, wallets: usize) {
        for number in 0..events {
            let (wallet, revision) = (number % wallets, number / wallets);
            let (kind, data) = match revision {
                0 => ("WalletCreated", r#"{"ownerId":"owner","currency":"USD"}"#.to_owned()),
                _ => {
                    let balance = format!("{}.{:02}", revision / 100, revision % 100);
                    ("WalletCredited", format!(r#"{{"amount":"0.01","balance":"{balance}","currency":"USD"}}"#))
                }
            };
            let metadata = r#"{"occurredAt":"2026-01-02T03:04:05.000006Z","eventVersion":1,"correlationId":"c","causationId":"d"}"#;
            self.keep(&format!("wallet-w{wallet}"), kind, &data, metadata);
        }
    }

    /// Puts an event at a stream's end, without a client, under an id of its own.
    pub fn keep(&self, stream: &str, kind: &str, data: &str, metadata: &str) {
        let event = protocol::ProposedEvent {
            id: None,
            metadata: [("type", kind), ("content-type", "application/json")]
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .into(),
            custom_metadata: metadata.as_bytes().to_vec(),
            data: data.as_bytes().to_vec(),
        };
        self.shared.storage().append(stream, protocol::Expected::Any(()), &[(uuid::Uuid::now_v7(), event)]);
    }

    /// How many appends were refused, because the stream did not end where they said.
    pub fn conflicts(&self) -> u64 {
        self.shared.conflicts.load(Ordering::Relaxed)
    }

    /// Everything that is in the log.
    pub fn log(&self) -> Vec<Kept> {
        self.shared.storage().log().to_vec()
    }
}

impl Drop for KurrentServer {
    fn drop(&mut self) {
        if let Some((stop, _)) = self.running.take() {
            stop.cancel();
        }
    }
}

/// A connection that can be cut.
struct Wire {
    tcp: TcpStream,
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
    muted: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl Wire {
    fn new(tcp: TcpStream, shared: &Shared) -> io::Result<Self> {
        // As the real server does; what a client leaves undone here still shows.
        tcp.set_nodelay(true)?;
        let end_of = |token: &Mutex<CancellationToken>| Box::pin(locked(token).clone().cancelled_owned());
        Ok(Wire { tcp, cut: end_of(&shared.connections), muted: end_of(&shared.muted) })
    }

    /// Ready with an error where it was cut, and pending where it was muted.
    fn poll_end(&mut self, context: &mut Context<'_>) -> Option<Poll<io::Error>> {
        if self.cut.as_mut().poll(context).is_ready() {
            return Some(Poll::Ready(io::ErrorKind::ConnectionReset.into()));
        }
        self.muted.as_mut().poll(context).is_ready().then_some(Poll::Pending)
    }
}

impl AsyncRead for Wire {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if let Some(end) = self.poll_end(context) {
            return end.map(Err);
        }
        Pin::new(&mut self.tcp).poll_read(context, into)
    }
}

impl AsyncWrite for Wire {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.muted.as_mut().poll(context).is_ready() {
            return Poll::Pending;
        }
        Pin::new(&mut self.tcp).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_shutdown(context)
    }
}

impl Connected for Wire {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}
