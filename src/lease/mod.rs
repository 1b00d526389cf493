//! Leases in Redis: which of several servers writes next to a wallet that all of them write to. The only room that names crate
//! `redis`. Reachable by [`Config::redis`](crate::runtime::Config::redis) and `wallex serve --redis`.
//!
//! An event store of single streams takes an append only where the stream still ends as its writer saw it. Servers that write to
//! the same wallet at once therefore collide: all but one have decided in vain, read again and decide again. With a lease they go one
//! after another. It is taken only on wallets where a server has met another one ([`Leases::is_shared`]); on all others Redis is not
//! asked at all. Of two servers one may win every time and never meet the other; it is told by the other's leases, which all
//! servers hear of.
//!
//! # It is for speed alone
//! Nothing that is promised rests on a lease: each append has its condition with it or without it. So whatever becomes of a lease
//! costs time and nothing else. It may run out while it is held, be flushed away, be held by a server that is halted, or by two at
//! once after Redis forgot; then servers collide, as they do without one.
//!
//! And that time is bounded. A turn waits no longer than [`WAIT_MAX`] for a lease and then goes on without it. Redis has
//! [`ANSWER_MAX`] to answer; where it does not, every turn goes on without it from that moment until it has been found well again,
//! which is looked after beside the commands and not before [`AWAY_MIN`] is over. Where it is away from the beginning no command
//! waits for it at all.
//!
//! # How
//! A lease is a key that only its first writer can set (`SET … NX PX`), to a value that no other lease has. Giving it back deletes it
//! only where that value is still in it, and says so on a channel ([`FREED`]), which wakes those that wait; they look by themselves
//! too, since a lease that runs out says nothing. Who has held one for [`HOLD_MAX`] while more commands waited gives it back and lets
//! others go first. This is the lock that Redis's own documentation describes for one server; what is said there against it is
//! that it is not safe, which it need not be here.
//!
//! Installations that share a Redis take a database each (`redis://host/1`), or they wait for each other where their wallets are
//! called the same.

mod address;
mod link;

use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};
use tokio::runtime::Handle;
use tokio::sync::{broadcast, mpsc};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::recently::Recently;
use crate::wallet::WalletId;

pub use address::{RedisConfig, RedisConfigError};
use link::Link;

/// What a lease's key is called before the wallet's id.
pub const KEY_PREFIX: &str = "wallex:lease:";
const TRIAL_PREFIX: &str = "wallex:lease-trial:";
/// The channel on which it is said which lease has been given back.
pub const FREED: &str = "wallex:lease-freed";

/// After how long a lease ends by itself: a server that was killed holds others up for no longer.
pub const EXPIRY: Duration = Duration::from_millis(500);
/// For how long a server keeps a lease from one append to the next.
pub const HOLD_MAX: Duration = Duration::from_millis(20);
/// For how long a turn waits for a lease.
pub const WAIT_MAX: Duration = Duration::from_millis(250);
/// How long Redis may take to answer.
pub const ANSWER_MAX: Duration = Duration::from_millis(100);
/// For how long Redis is not asked at the least after it has failed, and at the most if it goes on failing.
pub const AWAY_MIN: Duration = Duration::from_secs(1);
const AWAY_MAX: Duration = Duration::from_secs(10);

/// How often one that waits looks by itself whether a lease has run out: drawn from these, in milliseconds, so that not all of
/// them look at once.
const LOOK_AGAIN_MS: std::ops::Range<u64> = 10..20;
/// How long whoever has held a lease for long enough lets others go first. They are told within less.
const GIVE_WAY: Duration = Duration::from_millis(2);
/// How often it is looked whether Redis is still well.
const LOOK_AFTER: Duration = Duration::from_secs(1);
/// For how long a wallet that another server has written to counts as shared.
const SHARED_FOR: Duration = Duration::from_secs(1);
/// How many such wallets are known at once.
const SHARED_MAX: NonZeroUsize = NonZeroUsize::new(10_000).unwrap();
/// How many leases that were given back are remembered for those that wait. Who has missed some looks by itself.
const FREED_MAX: usize = 256;

/// The leases of this process. Clones share a connection. [`Leases::run`] keeps it; without that, none is ever had.
#[derive(Clone)]
pub struct Leases(Arc<Shared>);

struct Shared {
    config: RedisConfig,
    /// `None` while Redis is away.
    link: Mutex<Option<Link>>,
    /// Wallets whose lease has been given back.
    freed: broadcast::Sender<Arc<str>>,
    /// Wallets that others are at work on.
    shared: Recently<Arc<str>>,
    /// Unlike any other process's.
    process: String,
    taken: AtomicU64,
}

impl std::fmt::Debug for Leases {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "Leases({})", self.0.config.shown())
    }
}

impl Leases {
    /// Leases in this Redis.
    pub fn new(config: RedisConfig) -> Self {
        let shared = Shared {
            config,
            link: Mutex::default(),
            freed: broadcast::Sender::new(FREED_MAX),
            shared: Recently::new(SHARED_FOR, SHARED_MAX),
            process: Uuid::now_v7().to_string(),
            taken: AtomicU64::new(0),
        };
        Leases(Arc::new(shared))
    }

    /// Whether Redis answers, as far as is known.
    pub fn is_connected(&self) -> bool {
        self.0.link().is_some()
    }

    /// Whether another server is at work on this wallet too, as far as is known here.
    pub fn is_shared(&self, wallet: &WalletId) -> bool {
        self.0.shared.has_seen(wallet.as_str())
    }

    /// Another server has written to this wallet.
    pub fn met_another(&self, wallet: &WalletId) {
        self.0.shared.saw(wallet.as_str().into());
    }

    /// Keeps the connection until stopped. The log is told when Redis goes away, and when it is there.
    pub async fn run(self, stop: CancellationToken) {
        let (shared, shown) = (&self.0, self.0.config.shown());
        let mut waits = backoff();
        let mut is_told = false;
        while !stop.is_cancelled() {
            // The connection shall not keep alive what keeps it.
            let listener = Arc::downgrade(shared);
            let heard = move |message: &str| {
                if let Some(shared) = listener.upgrade() {
                    shared.heard(message);
                }
            };
            let reason = match Link::open(&shared.config, heard, &shared.trial()).await {
                Ok((link, failures)) => {
                    tracing::info!(redis = shown, "Redis answers; servers queue there for wallets that they share");
                    *shared.link() = Some(link.clone());
                    let ended = tokio::select! {
                        () = stop.cancelled() => break,
                        reason = self.until_failed(&link, failures) => reason,
                    };
                    *shared.link() = None;
                    (waits, is_told) = (backoff(), false);
                    ended
                }
                Err(reason) => reason,
            };
            if !std::mem::replace(&mut is_told, true) {
                tracing::warn!(redis = shown, reason, "Redis is away; servers go on without queueing, which is slower");
            }
            tokio::select! {
                () = stop.cancelled() => break,
                () = tokio::time::sleep(waits.next().unwrap_or(AWAY_MAX)) => {}
            }
        }
        *shared.link() = None;
    }

    /// Until somebody found it failed, or it is found so here; why.
    async fn until_failed(&self, link: &Link, mut failures: mpsc::Receiver<String>) -> String {
        loop {
            tokio::select! {
                reason = failures.recv() => return reason.unwrap_or_default(),
                () = tokio::time::sleep(LOOK_AFTER) => {
                    if let Err(reason) = link.try_out(&self.0.trial()).await {
                        return reason;
                    }
                }
            }
        }
    }

    /// Waits for the lease on a wallet: for `patience`, and an answer of Redis's ([`ANSWER_MAX`]) at most. `None` where it has not
    /// come by then, and at once while Redis is away. With `gives_way` others who wait for it go first.
    pub async fn take(&self, wallet: &WalletId, patience: Duration, gives_way: bool) -> Option<Lease> {
        let shared = &self.0;
        let until = Instant::now() + patience;
        let key = format!("{KEY_PREFIX}{wallet}");
        // From now on, so that none is missed between a look and the wait after it.
        let mut freed = shared.freed.subscribe();
        if gives_way {
            tokio::time::sleep(GIVE_WAY).await;
        }
        loop {
            let link = shared.link().clone()?;
            let token = format!("{}:{}", shared.process, shared.taken.fetch_add(1, Ordering::Relaxed));
            match link.take(&key, &token).await {
                Ok(true) => {
                    let shared = Arc::clone(shared);
                    return Some(Lease { shared, link, key, token, taken_at: Instant::now() });
                }
                Ok(false) => {}
                Err(reason) => {
                    shared.failed(&link, reason);
                    return None;
                }
            }
            if Instant::now() >= until {
                return None;
            }
            let look_again = Duration::from_millis(rand::random_range(LOOK_AGAIN_MS));
            wait_for(&mut freed, wallet, until.min(Instant::now() + look_again)).await;
        }
    }
}

impl Shared {
    fn link(&self) -> MutexGuard<'_, Option<Link>> {
        self.link.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A lease has been given back: whose it was, and of what.
    fn heard(&self, message: &str) {
        let Some((token, key)) = message.split_once(' ') else { return };
        let Some(wallet) = key.strip_prefix(KEY_PREFIX) else { return };
        let wallet: Arc<str> = wallet.into();
        if !token.starts_with(&self.process) {
            self.shared.saw(Arc::clone(&wallet));
        }
        // Perhaps nobody waits.
        let _ = self.freed.send(wallet);
    }

    /// Something that is no wallet's, to find out whether leases can be had.
    fn trial(&self) -> String {
        format!("{TRIAL_PREFIX}{}", self.process)
    }

    /// Whoever asks from now on is not kept waiting.
    fn failed(&self, link: &Link, reason: String) {
        self.link().take_if(|present| present.is(link));
        link.failed(reason);
    }
}

/// Waits until the lease is given back, or for a time.
async fn wait_for(freed: &mut broadcast::Receiver<Arc<str>>, wallet: &WalletId, until: Instant) {
    let given_back = async {
        // One that has missed some may have missed its own.
        while freed.recv().await.is_ok_and(|freed| *freed != *wallet.as_str()) {}
    };
    // Both ends are the same to the caller, who looks for himself.
    let _ = tokio::time::timeout_at(until, given_back).await;
}

fn backoff() -> impl Iterator<Item = Duration> {
    ExponentialBuilder::new()
        .with_min_delay(AWAY_MIN)
        .with_max_delay(AWAY_MAX)
        .with_jitter()
        .without_max_times()
        .build()
}

/// The right to go next, as far as it is one. Given back when it is dropped.
pub struct Lease {
    shared: Arc<Shared>,
    link: Link,
    key: String,
    token: String,
    taken_at: Instant,
}

impl Lease {
    /// Whether it has been held for long enough.
    pub fn is_over(&self) -> bool {
        self.taken_at.elapsed() >= HOLD_MAX
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        // Where nothing runs any more it ends by itself.
        let Ok(runtime) = Handle::try_current() else { return };
        let (shared, link) = (Arc::clone(&self.shared), self.link.clone());
        let (key, token) = (std::mem::take(&mut self.key), std::mem::take(&mut self.token));
        runtime.spawn(async move {
            if let Err(reason) = link.give_back(&key, &token).await {
                shared.failed(&link, reason);
            }
        });
    }
}
