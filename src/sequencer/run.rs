//! The sequencer's loop: gather, load, decide, append, answer.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::Arc;

use chrono::{DateTime, SubsecRound, Utc};
use tokio::sync::{Notify, mpsc};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use crate::log::{Atomicity, EventLog, KeyRecord, KeyScope, Position};
use crate::sequencer::batch::{Deciding, Verdict};
use crate::sequencer::durability::Appender;
use crate::sequencer::foresight::{Decided, until_many_wait};
use crate::sequencer::memory::Memory;
use crate::sequencer::setback::{Setback, backoff};
use crate::sequencer::snapshots::{SAVE_EVERY, Snapshots};
use crate::sequencer::timely::Timely;
use crate::sequencer::{CommandError, CommandService, Job, RETRY_AFTER, SequencerOptions, idempotency};

/// The one writer of this process. Run it with [`Sequencer::run`].
pub struct Sequencer<L> {
    log: Timely<L>,
    batch_max: usize,
    queue: mpsc::Receiver<Job>,
    /// Rung while many commands wait in the queue.
    many_wait: Arc<Notify>,
    /// The next batch, decided while the last one became durable.
    foreseen: Option<Decided>,
    /// Parts of a batch that the log refused as a whole; the next one is the last.
    parts: Vec<Vec<Job>>,
    /// Commands that were taken out of the queue and are still to be decided; they go before it.
    taken: Vec<Job>,
    /// A durable batch whose callers are told while the next one is under way.
    untold: Option<Decided>,
    on_append: Box<dyn Fn(Position) + Send + Sync>,
    memory: Memory,
    appender: Appender<Timely<L>>,
    snapshots: Snapshots<Timely<L>>,
    last_recorded_at: DateTime<Utc>,
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
        let (service, queue) = CommandService::new(&options);
        let log = Timely::new(log, options.append_timeout);
        let sequencer = Sequencer {
            batch_max: options.batch_max,
            queue,
            many_wait: Arc::clone(&service.many_wait),
            foreseen: None,
            parts: Vec::new(),
            taken: Vec::new(),
            untold: None,
            on_append: Box::new(on_append),
            memory: Memory::new(options.cached_wallets_max),
            appender: Appender::new(log.clone()),
            snapshots: Snapshots::new(log.clone()),
            last_recorded_at: DateTime::<Utc>::MIN_UTC,
            log,
        };
        (service, sequencer)
    }

    /// Runs until stopped, or until every [`CommandService`] is gone. On stop no new command is taken, and those that
    /// were are answered.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut stopping = false;
        let mut saves = tokio::time::interval(SAVE_EVERY);
        saves.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let next = tokio::select! {
                biased;
                _ = saves.tick(), if self.snapshots.are_waiting() => {
                    self.snapshots.save();
                    continue;
                }
                () = stop.cancelled(), if !stopping => {
                    self.queue.close();
                    stopping = true;
                    continue;
                }
                next = self.next_batch() => next,
            };
            let Some((jobs, foreseen)) = next else { break };
            self.process(jobs, foreseen, &stop).await;
            if self.foreseen.is_none() {
                // Callers that have just been answered often have the next command at hand: it shall be in the next batch.
                tokio::task::yield_now().await;
            }
        }
        self.snapshots.finish().await;
    }

    /// The next commands, and what was decided on them if it was; `None` once none will come any more. May be dropped while it
    /// waits.
    async fn next_batch(&mut self) -> Option<(Vec<Job>, Option<Decision>)> {
        if let Some(Decided { jobs, verdicts, deciding }) = self.foreseen.take() {
            return Some((jobs, Some((verdicts, deciding))));
        }
        if let Some(part) = self.parts.pop() {
            return Some((part, None));
        }
        let mut fresh = Vec::new();
        if self.taken.is_empty() && self.queue.recv_many(&mut fresh, self.batch_max).await == 0 {
            return None;
        }
        while self.taken.len() + fresh.len() < self.batch_max
            && let Ok(job) = self.queue.try_recv()
        {
            fresh.push(job);
        }
        self.taken.extend(fresh.into_iter().filter(|job| job.claim.take()));
        Some((std::mem::take(&mut self.taken), None))
    }

    /// Takes commands to their answers, however long the log is away. Once the process is stopping, and the log still away, the
    /// callers are told so. What the log refuses for good is halved until it is a single command: one that can never be done
    /// shall not take others with it.
    async fn process(&mut self, mut jobs: Vec<Job>, mut foreseen: Option<Decision>, stop: &CancellationToken) {
        let mut waits = backoff();
        while !jobs.is_empty() {
            match self.attempt(&mut jobs, foreseen.take(), stop).await {
                Ok(()) => break,
                Err(Setback::Unknown(reason)) => {
                    tracing::error!(reason, "the outcome of an append stays unknown");
                    self.memory.forget_everything();
                    let error = CommandError::Unavailable { maybe_done: true, retry_after: RETRY_AFTER };
                    answer_all(std::mem::take(&mut jobs), &error);
                }
                Err(Setback::Away(reason)) => {
                    self.appender.release_head().await;
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
                Err(Setback::Hopeless(error)) => {
                    self.appender.release_head().await;
                    self.memory.forget_everything();
                    if jobs.len() > 1 {
                        self.parts.push(jobs.split_off(jobs.len() / 2));
                        self.parts.push(jobs);
                        break;
                    }
                    tracing::error!(%error, "a command could not be appended");
                    answer_all(std::mem::take(&mut jobs), &error);
                }
            }
        }
    }

    /// One attempt: after `Ok` all of the jobs are answered, or will be while the next batch is under way.
    async fn attempt(
        &mut self,
        jobs: &mut Vec<Job>,
        mut foreseen: Option<Decision>,
        stop: &CancellationToken,
    ) -> Result<(), Setback> {
        let mut known_keys: HashMap<KeyScope, KeyRecord> = HashMap::new();
        let mut lost_for_no_reason = 0;
        let mut keys_looked_up = false;
        loop {
            let (verdicts, mut deciding) = match foreseen.take() {
                Some(decision) => decision,
                None => self.decide(jobs, &known_keys).await?,
            };
            let head = deciding.head();
            // An append finds out by itself whether a key is known, but a refusal writes nothing: what is refused now may be
            // what was done before, and then that is the answer.
            let mut decisions = jobs.iter().zip(&verdicts);
            if !keys_looked_up && decisions.any(|(job, verdict)| verdict.may_stand_for_an_earlier_one(job)) {
                keys_looked_up = true;
                known_keys = self.known_keys(jobs).await?;
                if !known_keys.is_empty() {
                    continue;
                }
            }
            deciding.name_new_streams();
            if self.make_durable(&deciding, stop).await? {
                self.answer(Decided { jobs: std::mem::take(jobs), verdicts, deciding }).await;
                return Ok(());
            }
            // Lost: somebody has appended, or a key is known. Find out which, and decide again.
            let keys_before = known_keys.len();
            keys_looked_up = false;
            known_keys = self.known_keys(jobs).await?;
            if self.log.head().await? != head {
                self.appender.lost_the_race();
            } else if known_keys.len() == keys_before {
                // Neither: then what is held in memory is not what the log has.
                self.memory.forget_everything();
                lost_for_no_reason += 1;
                if lost_for_no_reason > 1 {
                    return Err(Setback::corrupt(
                        "the log refuses an append though nobody else has written".to_owned(),
                    ));
                }
            }
        }
    }

    async fn decide(
        &mut self,
        jobs: &mut Vec<Job>,
        known_keys: &HashMap<KeyScope, KeyRecord>,
    ) -> Result<Decision, Setback> {
        let head = self.appender.settle_head(self.memory.head()).await?;
        self.memory.advance(&self.log, head).await?;
        let loaded = self.memory.load(&self.log, jobs).await?;
        let mut deciding = Deciding::new(head, next_time(&mut self.last_recorded_at), loaded);
        let verdicts = jobs
            .iter()
            .map(|job| {
                let known = idempotency::scope(&job.request).and_then(|scope| known_keys.get(&scope).cloned());
                deciding.decide(&job.request, known.as_ref())
            })
            .collect();
        Ok((verdicts, deciding))
    }

    /// Makes a batch durable; `false`: nothing was written. While it is under way the callers of the one before are told, and if
    /// many wait the next one is decided.
    async fn make_durable(&mut self, current: &Deciding, stop: &CancellationToken) -> Result<bool, Setback> {
        // Under contention the head is settled before each decision, and what was taken before goes first.
        let looks_ahead = !self.appender.is_contended() && self.parts.is_empty() && self.taken.is_empty();
        let durable = {
            let append = self.appender.make_durable(&current.batch, stop);
            let meanwhile = async {
                if let Some(untold) = self.untold.take() {
                    finish(untold, &mut self.memory, &mut self.snapshots);
                }
                if looks_ahead {
                    until_many_wait(&self.queue, &self.many_wait).await;
                    let at = next_time(&mut self.last_recorded_at);
                    let next = Deciding::new(current.head_after(), at, HashMap::new());
                    let next = self.foreseen.insert(Decided::nothing(next));
                    next.foresee(current, &mut self.memory, &mut self.queue, self.batch_max, &mut self.taken).await;
                }
                std::future::pending::<Infallible>().await
            };
            tokio::select! {
                biased;
                durable = append => durable,
                never = meanwhile => match never {},
            }
        };
        // The append may have ended at once.
        if let Some(untold) = self.untold.take() {
            finish(untold, &mut self.memory, &mut self.snapshots);
        }
        let foreseen = self.foreseen.take_if(|next| !matches!(durable, Ok(true)) || next.jobs.is_empty());
        if let Some(forgotten) = foreseen {
            self.taken.splice(..0, forgotten.jobs);
        }
        durable
    }

    /// Tells the callers, now that what they are told is durable, and takes the new states into memory. Where the next batch is
    /// ready to go, that goes first.
    async fn answer(&mut self, mut done: Decided) {
        if !done.deciding.batch.events.is_empty() {
            (self.on_append)(done.deciding.head_after());
        }
        if self.foreseen.is_some() && !done.verdicts.iter().any(|verdict| matches!(verdict, Verdict::Replay(_))) {
            self.untold = Some(done);
            return;
        }
        for (job, record) in done.tell() {
            let command = &job.request.command;
            let wallets = &done.deciding.wallets;
            let answer = match wallets.get(command.wallet_id()) {
                Some(held) => {
                    let counterparty = command.counterparty().and_then(|id| wallets.get(id)).map(|held| &held.wallet);
                    idempotency::replay(&self.log, &record, &held.wallet, counterparty).await
                }
                None => {
                    Err(CommandError::Corrupt(format!("a key of wallet {}, which is not there", command.wallet_id())))
                }
            };
            let _ = job.reply.send(answer);
        }
        finish(done, &mut self.memory, &mut self.snapshots);
    }

    async fn known_keys(&self, jobs: &[Job]) -> Result<HashMap<KeyScope, KeyRecord>, Setback> {
        let scopes: Vec<KeyScope> = jobs.iter().filter_map(|job| idempotency::scope(&job.request)).collect();
        if scopes.is_empty() {
            return Ok(HashMap::new());
        }
        let records = self.log.find_keys(&scopes).await?;
        Ok(records.into_iter().map(|record| (record.scope.clone(), record)).collect())
    }
}

/// What each of a batch's callers is to be told, and what has to be durable before.
type Decision = (Vec<Verdict>, Deciding);

/// Tells the callers of a durable batch, as far as they were not told, and takes its states into memory.
fn finish<L: EventLog>(mut done: Decided, memory: &mut Memory, snapshots: &mut Snapshots<L>) {
    done.tell();
    if !done.deciding.batch.events.is_empty() {
        let head = done.deciding.head_after();
        memory.keep(head, done.deciding.wallets, |held, before| snapshots.take(held, before));
    }
}

/// The time of the next batch, to the microsecond as the log keeps it, and never before the last one's.
fn next_time(last_recorded_at: &mut DateTime<Utc>) -> DateTime<Utc> {
    *last_recorded_at = Utc::now().trunc_subsecs(6).max(*last_recorded_at);
    *last_recorded_at
}

fn answer_all(jobs: Vec<Job>, error: &CommandError) {
    for job in jobs {
        // A caller that has gone away is told nothing.
        let _ = job.reply.send(Err(error.clone()));
    }
}
