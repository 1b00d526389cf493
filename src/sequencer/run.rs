//! The sequencer's loop: gather, load, decide, append, answer.

use std::collections::HashMap;

use chrono::{DateTime, SubsecRound, Utc};
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use crate::log::{Atomicity, EventLog, KeyRecord, KeyScope, Position};
use crate::sequencer::batch::{Deciding, Verdict};
use crate::sequencer::durability::Appender;
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
        let mut jobs = Vec::with_capacity(self.batch_max);
        let mut stopping = false;
        let mut saves = tokio::time::interval(SAVE_EVERY);
        saves.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let taken = tokio::select! {
                taken = self.queue.recv_many(&mut jobs, self.batch_max) => taken,
                _ = saves.tick(), if self.snapshots.are_waiting() => {
                    self.snapshots.save();
                    continue;
                }
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
            // Callers that have just been answered often have the next command at hand: it shall be in the next batch.
            tokio::task::yield_now().await;
        }
        self.snapshots.finish().await;
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
                        let second = jobs.split_off(jobs.len() / 2);
                        return vec![second, jobs];
                    }
                    tracing::error!(%error, "a command could not be appended");
                    answer_all(std::mem::take(&mut jobs), &error);
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
            let head = self.appender.settle_head(self.memory.head()).await?;
            self.memory.advance(&self.log, head).await?;
            let loaded = self.memory.load(&self.log, jobs).await?;
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
            if self.appender.make_durable(&deciding.batch, stop).await? {
                return self.answer(std::mem::take(jobs), verdicts, deciding).await;
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

    /// Tells the callers, now that what they are told is durable, and takes the new states into memory.
    async fn answer(&mut self, jobs: Vec<Job>, verdicts: Vec<Verdict>, mut deciding: Deciding) -> Result<(), Setback> {
        let appended = deciding.batch.events.len() as Position;
        let head = deciding.batch.expected_head.unwrap_or_default() + appended;
        if appended > 0 {
            deciding.name_new_streams();
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
                    idempotency::replay(&self.log, &record, &held.wallet, counterparty).await
                }
                None => {
                    Err(CommandError::Corrupt(format!("a key of wallet {}, which is not there", command.wallet_id())))
                }
            };
            let _ = job.reply.send(answer);
        }
        if appended > 0 {
            let snapshots = &mut self.snapshots;
            self.memory.keep(head, deciding.wallets, |held, before| snapshots.take(held, before));
        }
        Ok(())
    }

    async fn known_keys(&self, jobs: &[Job]) -> Result<HashMap<KeyScope, KeyRecord>, Setback> {
        let scopes: Vec<KeyScope> = jobs.iter().filter_map(|job| idempotency::scope(&job.request)).collect();
        if scopes.is_empty() {
            return Ok(HashMap::new());
        }
        let records = self.log.find_keys(&scopes).await?;
        Ok(records.into_iter().map(|record| (record.scope.clone(), record)).collect())
    }

    /// The time of the next batch, to the microsecond as the log keeps it, and never before the last one's.
    fn next_time(&mut self) -> DateTime<Utc> {
        self.last_recorded_at = Utc::now().trunc_subsecs(6).max(self.last_recorded_at);
        self.last_recorded_at
    }
}

fn answer_all(jobs: Vec<Job>, error: &CommandError) {
    for job in jobs {
        // A caller that has gone away is told nothing.
        let _ = job.reply.send(Err(error.clone()));
    }
}
