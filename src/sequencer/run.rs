//! The sequencer's loop: gather, load, decide, append, answer.

use std::collections::HashMap;
use std::future::Future;
use std::num::NonZeroUsize;
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};
use chrono::{DateTime, SubsecRound, Utc};
use lru::LruCache;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::log::{Appended, Atomicity, Batch, EventLog, KeyRecord, KeyScope, LogError, Position, Snapshot};
use crate::sequencer::batch::{Deciding, Held, Verdict};
use crate::sequencer::snapshot::{self, SNAPSHOT_FORMAT, restore};
use crate::sequencer::{CommandError, CommandService, Job, RETRY_AFTER, SequencerOptions, idempotency};
use crate::wallet::WalletId;

/// A snapshot is taken each time a wallet's version passes a multiple of this, so that a cold load reads little more than
/// this many events.
const SNAPSHOT_EVERY: i64 = 100;
/// Snapshots that wait to be saved; when saving cannot keep up, further ones are let go (they are only a cache).
const SNAPSHOTS_WAITING_MAX: usize = 10_000;
/// Of a tail longer than this it is cheaper to forget every wallet than to read it.
const CATCH_UP_EVENTS_MAX: i64 = 20_000;
/// How many events of the tail are read at once.
const CATCH_UP_PAGE: usize = 2_000;
/// For how many batches after a lost swap the head is locked before deciding.
const CONTENDED_BATCHES: u32 = 16;

/// The one writer of this process. Run it with [`Sequencer::run`].
pub struct Sequencer<L> {
    log: L,
    options: SequencerOptions,
    queue: mpsc::Receiver<Job>,
    on_append: Box<dyn Fn(Position) + Send + Sync>,
    wallets: LruCache<WalletId, Held>,
    /// The head as of which `wallets` is true; `None` before the first batch and after it was found too old to catch up.
    head: Option<Position>,
    last_recorded_at: DateTime<Utc>,
    contended_batches: u32,
    /// Whether other writers wait for this one's next append.
    holds_head: bool,
    snapshots: Vec<Snapshot>,
    saving: Option<tokio::task::JoinHandle<()>>,
}

/// Why an attempt at a batch did not end with durable answers.
enum Setback {
    /// The log is away; the reason. Nothing is under way: try the batch again from the start.
    Away(String),
    /// An append's outcome is unknown and will not be found out: the process is stopping, or the log refuses to tell; why.
    Unknown(String),
    /// No retry can help; the reason.
    Hopeless(String),
}

impl From<LogError> for Setback {
    fn from(error: LogError) -> Self {
        match error {
            LogError::Away(reason) => Setback::Away(reason),
            other => Setback::Hopeless(other.to_string()),
        }
    }
}

impl<L: EventLog> Sequencer<L> {
    /// A sequencer and the service that feeds it. `on_append` is called with the new head after each durable append, on the
    /// sequencer's task: it must be quick.
    ///
    /// # Panics
    /// If the log cannot append to several streams at once ([`Atomicity::Stream`]): a transfer needs that here.
    pub fn new(
        log: L,
        options: SequencerOptions,
        on_append: impl Fn(Position) + Send + Sync + 'static,
    ) -> (CommandService, Self) {
        assert_eq!(
            log.atomicity(),
            Atomicity::Log,
            "the sequencer needs a log that appends to several streams at once"
        );
        let (sender, queue) = mpsc::channel(options.queue_max.max(1));
        let service = CommandService { queue: sender, command_deadline: options.command_deadline };
        let cached_wallets_max = NonZeroUsize::new(options.cached_wallets_max).unwrap_or(NonZeroUsize::MIN);
        let sequencer = Sequencer {
            log,
            options,
            queue,
            on_append: Box::new(on_append),
            wallets: LruCache::new(cached_wallets_max),
            head: None,
            last_recorded_at: DateTime::<Utc>::MIN_UTC,
            contended_batches: 0,
            holds_head: false,
            snapshots: Vec::new(),
            saving: None,
        };
        (service, sequencer)
    }

    /// Runs until stopped, or until every [`CommandService`] is gone. On stop no new command is taken, and those that
    /// were are answered.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut jobs = Vec::with_capacity(self.options.batch_max);
        let mut stopping = false;
        loop {
            let taken = tokio::select! {
                taken = self.queue.recv_many(&mut jobs, self.options.batch_max) => taken,
                () = stop.cancelled(), if !stopping => {
                    self.queue.close();
                    stopping = true;
                    continue;
                }
            };
            if taken == 0 {
                break;
            }
            jobs.retain(|job: &Job| job.claim.take());
            self.process(std::mem::take(&mut jobs), &stop).await;
            self.save_snapshots();
            // Callers that have just been answered often have the next command at hand: it shall be in the next batch.
            tokio::task::yield_now().await;
        }
        if let Some(saving) = self.saving.take() {
            // Its own errors are logged there.
            let _ = saving.await;
        }
    }

    /// Takes a batch to its answers. What the log refuses for good is halved until it is a single command: one that can
    /// never be done shall not take others with it.
    async fn process(&mut self, jobs: Vec<Job>, stop: &CancellationToken) {
        let mut groups = vec![jobs];
        while let Some(group) = groups.pop() {
            groups.extend(self.process_together(group, stop).await);
        }
    }

    /// Takes commands to their answers, however long the log is away, or gives them back in two halves, the second one first.
    /// Once the process is stopping, and the log still away, the callers are told so.
    async fn process_together(&mut self, mut jobs: Vec<Job>, stop: &CancellationToken) -> Vec<Vec<Job>> {
        let mut waits = backoff();
        while !jobs.is_empty() {
            match self.attempt(&mut jobs, stop).await {
                Ok(()) => waits = backoff(),
                Err(Setback::Unknown(reason)) => {
                    tracing::error!(reason, "the outcome of an append stays unknown");
                    self.forget_everything();
                    let error = CommandError::Unavailable { maybe_done: true, retry_after: RETRY_AFTER };
                    answer_all(std::mem::take(&mut jobs), &error);
                }
                Err(Setback::Away(reason)) => {
                    self.release_head().await;
                    if stop.is_cancelled() {
                        let error = CommandError::Unavailable { maybe_done: false, retry_after: RETRY_AFTER };
                        answer_all(std::mem::take(&mut jobs), &error);
                        break;
                    }
                    tracing::warn!(reason, "the event log is away; commands wait");
                    tokio::time::sleep(waits.next().unwrap_or(RETRY_AFTER)).await;
                    // Nothing of these is under way: whoever has given up by now is not served.
                    jobs.retain(|job| !job.reply.is_closed());
                }
                Err(Setback::Hopeless(reason)) => {
                    self.release_head().await;
                    self.forget_everything();
                    if jobs.len() > 1 {
                        let second = jobs.split_off(jobs.len() / 2);
                        return vec![second, jobs];
                    }
                    tracing::error!(reason, "a command could not be appended");
                    answer_all(std::mem::take(&mut jobs), &CommandError::Corrupt(reason));
                }
            }
        }
        Vec::new()
    }

    /// One attempt: jobs are taken out as they are answered. Those left in it after `Ok` are to be decided again.
    async fn attempt(&mut self, jobs: &mut Vec<Job>, stop: &CancellationToken) -> Result<(), Setback> {
        let mut known_keys: HashMap<KeyScope, KeyRecord> = HashMap::new();
        let mut lost_for_no_reason = 0;
        let mut keys_looked_up = false;
        loop {
            let head = self.settle_head().await?;
            let loaded = self.load(jobs).await?;
            let mut deciding = Deciding::new(head, self.next_time(), loaded);
            let verdicts: Vec<Verdict> = jobs
                .iter()
                .map(|job| {
                    let known = idempotency::scope(&job.request).and_then(|scope| known_keys.get(&scope).cloned());
                    deciding.decide(&job.request, known.as_ref())
                })
                .collect();
            // An append finds out by itself whether a key is known, but a refusal writes nothing: what is refused now may be
            // what was done before, and then that is the answer.
            let refused_with_a_key = jobs.iter().zip(&verdicts).any(|(job, verdict)| {
                job.request.idempotency_key.is_some()
                    && matches!(verdict, Verdict::Answer(Err(CommandError::Rejected(_))))
            });
            if refused_with_a_key && !keys_looked_up {
                keys_looked_up = true;
                known_keys = self.known_keys(jobs).await?;
                if !known_keys.is_empty() {
                    continue;
                }
            }
            if self.make_durable(&deciding, stop).await? {
                return self.answer(std::mem::take(jobs), verdicts, deciding).await;
            }
            // Lost: somebody has appended, or a key is known. Find out which, and decide again.
            let keys_before = known_keys.len();
            keys_looked_up = false;
            known_keys = self.known_keys(jobs).await?;
            if self.timely(self.log.head()).await? != head {
                self.contended_batches = CONTENDED_BATCHES;
            } else if known_keys.len() == keys_before {
                // Neither: then what is held in memory is not what the log has.
                self.forget_everything();
                lost_for_no_reason += 1;
                if lost_for_no_reason > 1 {
                    return Err(Setback::Hopeless(
                        "the log refuses an append though nobody else has written".to_owned(),
                    ));
                }
            }
        }
    }

    /// A call's answer, or that the log is away where there is none in time: a call that hangs must not hold up everything.
    async fn timely<T>(&self, call: impl Future<Output = Result<T, LogError>>) -> Result<T, LogError> {
        timely(self.options.append_timeout, call).await
    }

    /// Lets other writers go on, where a batch has failed between the lock and the append.
    async fn release_head(&mut self) {
        if std::mem::take(&mut self.holds_head)
            && let Err(error) = self.timely(self.log.append(&Batch::default())).await
        {
            // The lock is gone with the connection all the same.
            tracing::debug!(%error, "the head's lock was not released in the usual way");
        }
    }

    /// The head that the wallets in memory are true to. Under contention it is locked first: then nobody else can append
    /// before we have.
    async fn settle_head(&mut self) -> Result<Position, Setback> {
        let actual = match self.head {
            Some(head) if self.contended_batches == 0 => return Ok(head),
            None if self.contended_batches == 0 => self.timely(self.log.head()).await?,
            _ => {
                let position = self.timely(self.log.lock_head()).await?;
                self.holds_head = true;
                position
            }
        };
        match self.head {
            Some(head) if head == actual => self.contended_batches = self.contended_batches.saturating_sub(1),
            Some(head) if head < actual && actual - head <= CATCH_UP_EVENTS_MAX => {
                self.contended_batches = CONTENDED_BATCHES;
                self.catch_up(head, actual).await?;
            }
            // Too far behind to catch up, or before what is held: a log that was restored from the past.
            _ => self.wallets.clear(),
        }
        self.head = Some(actual);
        Ok(actual)
    }

    /// Applies what others have appended to the wallets in memory.
    async fn catch_up(&mut self, mut from: Position, to: Position) -> Result<(), Setback> {
        while from < to {
            let page = self.timely(self.log.read(from, CATCH_UP_PAGE)).await?;
            let Some(last) = page.last() else {
                return Err(Setback::Hopeless(format!("the log ends at {from}, though its head is {to}")));
            };
            from = last.position;
            for recorded in &page {
                let Some(held) = self.wallets.peek_mut(&recorded.stream) else { continue };
                // A wallet that was loaded lately may hold the event already.
                if recorded.revision <= held.wallet.version {
                    continue;
                }
                if let Err(reason) = snapshot::apply_next(&mut held.wallet, recorded) {
                    // Only this wallet is wrong: whoever asks for it is told so when it is loaded.
                    tracing::error!(%reason, wallet = %recorded.stream, "an event does not fit its wallet");
                    self.wallets.pop(&recorded.stream);
                }
            }
        }
        Ok(())
    }

    /// The wallets that the jobs touch: those in memory, and the others loaded all at once. A job whose wallet cannot be
    /// read is answered here and now, so that one bad history does not keep the others from working.
    async fn load(&mut self, jobs: &mut Vec<Job>) -> Result<HashMap<WalletId, Held>, Setback> {
        let mut found = HashMap::new();
        let mut cold: Vec<WalletId> = Vec::new();
        for job in jobs.iter() {
            let command = &job.request.command;
            for id in std::iter::once(command.wallet_id()).chain(command.counterparty()) {
                if found.contains_key(id) {
                    continue;
                }
                match self.wallets.get(id) {
                    Some(held) => {
                        found.insert(id.clone(), held.clone());
                    }
                    None => cold.push(id.clone()),
                }
            }
        }
        if cold.is_empty() {
            return Ok(found);
        }
        cold.sort_unstable();
        cold.dedup();
        let mut unreadable: HashMap<WalletId, String> = HashMap::new();
        for loaded in self.timely(self.log.load(&cold, SNAPSHOT_FORMAT)).await? {
            match restore(&loaded) {
                Ok(wallet) => {
                    let held = Held { wallet, stream_key: Some(loaded.stream_key) };
                    self.wallets.put(loaded.stream.clone(), held.clone());
                    found.insert(loaded.stream, held);
                }
                Err(error) => {
                    unreadable.insert(loaded.stream, error.to_string());
                }
            }
        }
        if !unreadable.is_empty() {
            let reason = |job: &Job| {
                let command = &job.request.command;
                std::iter::once(command.wallet_id()).chain(command.counterparty()).find_map(|id| unreadable.get(id))
            };
            for job in jobs.extract_if(.., |job| reason(job).is_some()) {
                let error = CommandError::Corrupt(reason(&job).cloned().unwrap_or_default());
                // The caller may have gone.
                let _ = job.reply.send(Err(error));
            }
        }
        Ok(found)
    }

    /// Appends the batch, sending it again for as long as its outcome is unknown. `false`: nothing was written, the
    /// decisions were made on a state that no longer holds.
    async fn make_durable(&mut self, deciding: &Deciding, stop: &CancellationToken) -> Result<bool, Setback> {
        let batch = &deciding.batch;
        let Some(expected) = batch.expected_head else {
            return Err(Setback::Hopeless("a batch without an expected head".to_owned()));
        };
        if batch.events.is_empty() && !self.holds_head {
            // Rejections and replays only: they are true if the head has not moved.
            return Ok(self.timely(self.log.head()).await? == expected);
        }
        let mut waits = backoff();
        let mut outcome_unknown = false;
        loop {
            let attempt = self.timely(self.log.append(batch)).await;
            // Whatever became of it: an answer ends the lock, and so does the loss of the connection.
            self.holds_head = false;
            let found_out = match attempt {
                Ok(Appended::At(_)) => Ok(true),
                Ok(Appended::Conflict) if outcome_unknown => self.is_in_the_log(deciding, expected).await,
                Ok(Appended::Conflict) => Ok(false),
                Err(error) => Err(error),
            };
            let reason = match found_out {
                Ok(ours) => return Ok(ours),
                Err(LogError::Away(reason)) => reason,
                // This attempt has failed for good, but an earlier one may have succeeded.
                Err(other) if outcome_unknown => return Err(Setback::Unknown(other.to_string())),
                Err(other) => return Err(other.into()),
            };
            outcome_unknown = !batch.events.is_empty();
            tracing::warn!(reason, events = batch.events.len(), "an append's outcome is unknown; sending it again");
            if stop.is_cancelled() {
                return Err(if outcome_unknown { Setback::Unknown(reason) } else { Setback::Away(reason) });
            }
            tokio::time::sleep(waits.next().unwrap_or(RETRY_AFTER)).await;
        }
    }

    /// Whether an earlier attempt at this batch was the one that moved the head: its event ids tell.
    async fn is_in_the_log(&self, deciding: &Deciding, expected: Position) -> Result<bool, LogError> {
        let next = self.timely(self.log.read(expected, 1)).await?;
        let ours = deciding.batch.events.first().map(|event| event.event_id);
        Ok(next.first().map(|event| event.event_id) == ours)
    }

    /// Tells the callers, now that what they are told is durable, and takes the new states into memory.
    async fn answer(&mut self, jobs: Vec<Job>, verdicts: Vec<Verdict>, mut deciding: Deciding) -> Result<(), Setback> {
        let appended = deciding.batch.events.len() as Position;
        if appended > 0 {
            deciding.name_new_streams();
            let head = deciding.batch.expected_head.unwrap_or_default() + appended;
            self.head = Some(head);
            (self.on_append)(head);
        }
        let mut replays = Vec::new();
        for (job, verdict) in jobs.into_iter().zip(verdicts) {
            match verdict {
                Verdict::Answer(answer) => {
                    // A caller that has gone away is told nothing.
                    let _ = job.reply.send(answer);
                }
                Verdict::Replay(record) => replays.push((job, record)),
            }
        }
        for (job, record) in replays {
            let command = &job.request.command;
            let counterparty = command.counterparty().and_then(|id| deciding.wallets.get(id));
            let answer = match deciding.wallets.get(command.wallet_id()) {
                Some(held) => {
                    let counterparty = counterparty.map(|held| &held.wallet);
                    let replay = idempotency::replay(&self.log, &record, &held.wallet, counterparty);
                    let too_late = CommandError::Unavailable { maybe_done: true, retry_after: RETRY_AFTER };
                    tokio::time::timeout(self.options.append_timeout, replay).await.unwrap_or(Err(too_late))
                }
                None => {
                    Err(CommandError::Corrupt(format!("a key of wallet {}, which is not there", command.wallet_id())))
                }
            };
            let _ = job.reply.send(answer);
        }
        if appended > 0 {
            self.keep(deciding);
        }
        Ok(())
    }

    fn keep(&mut self, deciding: Deciding) {
        for (id, held) in deciding.wallets {
            let before = self.wallets.peek(&id).map_or(-1, |before| before.wallet.version);
            if held.wallet.version == before {
                continue;
            }
            if let Some(stream_key) = held.stream_key
                && held.wallet.version / SNAPSHOT_EVERY > before.max(0) / SNAPSHOT_EVERY
                && self.snapshots.len() < SNAPSHOTS_WAITING_MAX
            {
                self.snapshots.push(Snapshot {
                    stream_key,
                    revision: held.wallet.version,
                    format: SNAPSHOT_FORMAT,
                    state: snapshot::encode(&held.wallet),
                });
            }
            self.wallets.put(id, held);
        }
    }

    /// Saves the snapshots that wait, beside the write path and one save at a time.
    fn save_snapshots(&mut self) {
        if self.snapshots.is_empty() || self.saving.as_ref().is_some_and(|saving| !saving.is_finished()) {
            return;
        }
        // One row a stream in a statement: the newest is the one that counts.
        let newest: HashMap<i64, Snapshot> =
            std::mem::take(&mut self.snapshots).into_iter().map(|taken| (taken.stream_key.0, taken)).collect();
        let (log, limit) = (self.log.clone(), self.options.append_timeout);
        let mut newest: Vec<Snapshot> = newest.into_values().collect();
        // In one order in every process: rows taken in different orders could be a deadlock.
        newest.sort_unstable_by_key(|taken| taken.stream_key.0);
        self.saving = Some(tokio::spawn(async move {
            if let Err(error) = timely(limit, log.save_snapshots(&newest)).await {
                tracing::warn!(%error, count = newest.len(), "snapshots were not saved; they are only a cache");
            }
        }));
    }

    async fn known_keys(&self, jobs: &[Job]) -> Result<HashMap<KeyScope, KeyRecord>, Setback> {
        let scopes: Vec<KeyScope> = jobs.iter().filter_map(|job| idempotency::scope(&job.request)).collect();
        if scopes.is_empty() {
            return Ok(HashMap::new());
        }
        let records = self.timely(self.log.find_keys(&scopes)).await?;
        Ok(records.into_iter().map(|record| (record.scope.clone(), record)).collect())
    }

    fn forget_everything(&mut self) {
        self.wallets.clear();
        self.head = None;
    }

    /// The time of the next batch, to the microsecond as the log keeps it, and never before the last one's.
    fn next_time(&mut self) -> DateTime<Utc> {
        self.last_recorded_at = Utc::now().trunc_subsecs(6).max(self.last_recorded_at);
        self.last_recorded_at
    }
}

async fn timely<T>(limit: Duration, call: impl Future<Output = Result<T, LogError>>) -> Result<T, LogError> {
    match tokio::time::timeout(limit, call).await {
        Ok(answer) => answer,
        Err(_) => Err(LogError::Away(format!("no answer within {limit:?}"))),
    }
}

fn answer_all(jobs: Vec<Job>, error: &CommandError) {
    for job in jobs {
        // A caller that has gone away is told nothing.
        let _ = job.reply.send(Err(error.clone()));
    }
}

fn backoff() -> impl Iterator<Item = Duration> {
    ExponentialBuilder::new()
        .with_min_delay(Duration::from_millis(20))
        .with_max_delay(Duration::from_secs(1))
        .with_jitter()
        .without_max_times()
        .build()
}
