//! The write path for a store that appends to one stream at a time. Callers talk to the same [`CommandService`] as with the
//! [sequencer](crate::sequencer), and behind it every wallet has a lane of its own: different wallets are appended to in parallel,
//! and what queues up for one wallet is decided together and shares an append.
//!
//! What makes this safe, without a transaction that could hold more than one append:
//!
//! - **A decision is made on a state, and appended on the condition that the stream still ends there.** Where somebody else has
//!   appended, nothing is written; the lane reads what is new and decides again. No caller sees a conflict. A refusal writes
//!   nothing, so before it is given the stream's end is looked at.
//! - **An append of unknown outcome is sent again**, the same events under the same ids; where it is then refused, the ids that
//!   stand at its place tell whose it was.
//!
//! # Idempotency keys
//! A key counts per wallet and kind of command. So it is a matter of that wallet's own stream, and travels in the metadata of the
//! command's first event: key and effect are one append. Whether a key was used is answered from three parts that leave no gap:
//! the copy in PostgreSQL knows the stream up to some revision (that is read first, and the copy only ever grows); the events
//! after it are read from the store itself; and the append's condition says that nothing came after those. Whoever used the
//! key in between makes the append fail, and is met when the stream is read again. A wallet's keys are learnt from the copy with the
//! wallet, where they are not too many, and then no command asks the copy for anything.
//!
//! # Transfers
//! The paying leg decides: it names transfer, receiver and amount, and once it is durable the transfer will be completed. The
//! receiving leg is given to the receiver's lane and the caller is answered after it. Whether it is there already is answered as
//! for keys: copy, events after it, condition. So it does not matter who appends it or how often it is tried. The copy holds
//! the transfers whose receiving leg it has not met; each server takes up those that it has seen for some seconds.
//!
//! A receiver that cannot hold the amount takes it and sends it back in one append of its own stream: as much as is there goes
//! out first, so that nothing overflows, then the transfer comes in, then the rest goes out. What goes out is a transfer like any
//! other, back to the payer, under an id made from the first one's. A receiver is asked once only, by its own stream, so the two
//! outcomes exclude each other. A return that finds no room in turn is not sent back again but waits until there is.
//!
//! # Several servers on one wallet
//! Each append that loses has been decided in vain, and is read and decided again. A server that meets another one on a wallet takes,
//! where it is given a Redis, a [lease](crate::lease) before it decides, for as long as it goes on meeting others there: then they
//! go one after another instead. It holds it for the commands that wait, and brings what it knows up to date first. None of what is
//! said above rests on that.
//!
//! # What the position of an answer is
//! The store's own, of the append's last event. The copy has positions of its own.

mod answers;
mod copied;
mod decide;
mod known;
mod lane;
mod metadata;
mod pending;
mod receivers;
mod remembered;
mod turn;
mod work;

use std::collections::{HashMap, HashSet, VecDeque};
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex};

use lru::LruCache;
use thiserror::Error;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::lease::{Lease, Leases};
use crate::log::{Atomicity, EventLog, PostgresLog};
use crate::postgres::Database;
use crate::sequencer::{CommandService, Job, SequencerOptions, Timely};
use crate::wallet::{Wallet, WalletId};

pub use copied::CopiedLog;
use lane::Ended;
pub(crate) use metadata::CommandMetadata;
pub use pending::{PendingTransfer, pending_transfers};
use remembered::{HELD_MAX, Remembered};
use turn::Turn;
use work::{CommandWork, Work};

/// How many wallets have an append under way at once.
const LANES_MAX: usize = 256;
/// How many commands share an append at most: the server takes a megabyte, and a command is some kilobytes at the very most.
const BATCH_MAX: usize = 100;

/// Why the lanes ended by themselves.
#[derive(Debug, Error)]
pub enum LanesError {
    /// One of them failed in a way that nobody foresaw.
    #[error("a lane panicked: {0}")]
    Panicked(String),
}

/// The write path of this process. Run it with [`Lanes::run`].
pub struct Lanes<L> {
    shared: Arc<Shared<L>>,
    leases: Option<Leases>,
    queue: mpsc::Receiver<Job>,
    follow_ups: mpsc::UnboundedReceiver<(WalletId, Work)>,
    /// What waits for each wallet.
    waiting: HashMap<WalletId, VecDeque<Work>>,
    waiting_count: usize,
    /// Wallets whose turn it is, and those as well that run.
    ready: VecDeque<WalletId>,
    active: HashSet<WalletId>,
    running: JoinSet<Ended>,
    known: Remembered,
    /// Of wallets that run again at once.
    kept: HashMap<WalletId, Lease>,
}

/// What every lane works with.
struct Shared<L> {
    log: Timely<L>,
    copy: Timely<PostgresLog>,
    database: Database,
    options: SequencerOptions,
    on_append: Box<dyn Fn() + Send + Sync>,
    /// To other lanes. There is no more of it than commands in work, times the legs that one can have.
    follow_up: mpsc::UnboundedSender<(WalletId, Work)>,
    /// Receivers as they began.
    beginnings: Mutex<LruCache<WalletId, Wallet>>,
    stop: CancellationToken,
}

impl<L: EventLog> Lanes<L> {
    /// Lanes on a store of single streams, whose copy is in this database, and the service that feeds them. `on_append` is
    /// called after each append and must be quick.
    ///
    /// # Panics
    /// If the log appends to several streams at once ([`Atomicity::Log`]): there a transfer is one append, and these would make
    /// two of it.
    pub fn new(
        log: L,
        database: Database,
        options: SequencerOptions,
        on_append: impl Fn() + Send + Sync + 'static,
    ) -> (CommandService, Self) {
        assert_eq!(log.atomicity(), Atomicity::Stream, "the lanes are for a log that appends to one stream at a time");
        let (service, queue) = CommandService::new(&options);
        let (follow_up, follow_ups) = mpsc::unbounded_channel();
        let cached_max = NonZeroUsize::new(options.cached_wallets_max).unwrap_or(NonZeroUsize::MIN);
        let shared = Shared {
            log: Timely::new(log, options.append_timeout),
            copy: Timely::new(PostgresLog::new(database.clone()), options.append_timeout),
            database,
            options,
            on_append: Box::new(on_append),
            follow_up,
            beginnings: Mutex::new(LruCache::new(cached_max)),
            stop: CancellationToken::new(),
        };
        let lanes = Lanes {
            shared: Arc::new(shared),
            leases: None,
            queue,
            follow_ups,
            waiting: HashMap::new(),
            waiting_count: 0,
            ready: VecDeque::new(),
            active: HashSet::new(),
            running: JoinSet::new(),
            known: Remembered::new(cached_max, HELD_MAX),
            kept: HashMap::new(),
        };
        (service, lanes)
    }

    /// The same, queueing with other servers for the wallets that they share.
    #[must_use]
    pub fn with_leases(self, leases: Option<Leases>) -> Self {
        Lanes { leases, ..self }
    }

    /// Runs until stopped, or until every [`CommandService`] is gone. On stop no new command is taken, and those that were are
    /// answered.
    ///
    /// # Errors
    /// [`LanesError`] where a lane panicked: what it held is unknown, and whoever is left is told by the end of this.
    pub async fn run(mut self, stop: CancellationToken) -> Result<(), LanesError> {
        let pending = pending::take_up(Arc::clone(&self.shared));
        let _taking_up = AbortOnDropHandle::new(tokio::spawn(pending));
        let (mut queue_is_open, mut stopping) = (true, false);
        loop {
            while self.running.len() < LANES_MAX
                && let Some(id) = self.ready.pop_front()
            {
                self.start(id);
            }
            if !queue_is_open && self.running.is_empty() && self.follow_ups.is_empty() {
                return Ok(());
            }
            let has_room = self.waiting_count < self.shared.options.queue_max;
            tokio::select! {
                Some(finished) = self.running.join_next() => match finished {
                    Ok(ended) => self.finished(ended),
                    Err(panic) => return Err(LanesError::Panicked(panic.to_string())),
                },
                Some((id, work)) = self.follow_ups.recv() => self.enqueue(id, work),
                job = self.queue.recv(), if queue_is_open && has_room => match job {
                    Some(job) => {
                        let id = job.request.command.wallet_id().clone();
                        self.enqueue(id, Work::Command(CommandWork::new(job)));
                    }
                    None => queue_is_open = false,
                },
                () = stop.cancelled(), if !stopping => {
                    self.queue.close();
                    self.shared.stop.cancel();
                    stopping = true;
                }
            }
        }
    }

    fn enqueue(&mut self, id: WalletId, work: Work) {
        self.waiting_count += 1;
        self.waiting.entry(id.clone()).or_default().push_back(work);
        if self.active.insert(id.clone()) {
            self.ready.push_back(id);
        }
    }

    fn start(&mut self, id: WalletId) {
        let mut works = Vec::new();
        if let Some(waiting) = self.waiting.get_mut(&id) {
            let taken = waiting.len().min(BATCH_MAX.min(self.shared.options.batch_max.max(1)));
            works.extend(waiting.drain(..taken));
            self.waiting_count -= taken;
            if waiting.is_empty() {
                self.waiting.remove(&id);
            }
        }
        // Whoever has given up by now is not served.
        works.retain(|work| match work {
            Work::Command(command) => command.job.claim.take(),
            Work::Leg(_) => true,
        });
        let known = self.known.take(&id);
        let turn = Turn::new(self.leases.clone(), self.kept.remove(&id));
        self.running.spawn(lane::run(Arc::clone(&self.shared), id, known, turn, works));
    }

    fn finished(&mut self, Ended { id, known, lease }: Ended) {
        if let Some(known) = known {
            self.known.keep(id.clone(), known);
        }
        if self.waiting.contains_key(&id) {
            self.kept.extend(lease.map(|lease| (id.clone(), lease)));
            self.ready.push_back(id);
        } else {
            // Given back, if there is one.
            drop(lease);
            self.active.remove(&id);
        }
    }
}
