//! The next batch, decided while the one before it is made durable: on the states which that one will leave. If it does not
//! become durable, what was foreseen on it is forgotten, and the commands are decided anew.
//!
//! It pays where many callers wait: the log and this process then work at the same time. With few callers it would only
//! spread over two commits what one can take, so below [`MANY`] they go on gathering.

use tokio::sync::{Notify, mpsc};

use crate::log::KeyRecord;
use crate::sequencer::Job;
use crate::sequencer::batch::{Deciding, Held, Verdict};
use crate::sequencer::memory::Memory;
use crate::wallet::WalletId;

/// With so many commands waiting, the next batch is decided ahead.
pub(super) const MANY: usize = 64;

/// A batch that was decided, with the callers who wait for it.
pub(super) struct Decided {
    pub(super) jobs: Vec<Job>,
    pub(super) verdicts: Vec<Verdict>,
    pub(super) deciding: Deciding,
}

impl Decided {
    /// Nothing yet.
    pub(super) fn nothing(deciding: Deciding) -> Self {
        Decided { jobs: Vec::new(), verdicts: Vec::new(), deciding }
    }

    /// Tells the callers, and gives back those whose answer is that of an earlier command.
    pub(super) fn tell(&mut self) -> Vec<(Job, KeyRecord)> {
        let mut replays = Vec::new();
        for (job, verdict) in self.jobs.drain(..).zip(self.verdicts.drain(..)) {
            match verdict {
                Verdict::Answer(answer) => {
                    // A caller that has gone away is told nothing.
                    let _ = job.reply.send(answer);
                }
                Verdict::Replay(record) => replays.push((job, record)),
            }
        }
        replays
    }

    /// Takes commands from the queue and decides them on top of `current`, which is on its way into the log, until it is
    /// dropped: that may be whenever it waits, and nothing is lost.
    ///
    /// Only what needs no question to the log is decided. The first command that does is left in `left_over`, and all later ones
    /// in the queue, so that they stay in order.
    pub(super) async fn foresee(
        &mut self,
        current: &Deciding,
        memory: &mut Memory,
        queue: &mut mpsc::Receiver<Job>,
        batch_max: usize,
        left_over: &mut Vec<Job>,
    ) {
        while self.jobs.len() < batch_max && left_over.is_empty() {
            // A queue that is closed has nothing more; what is there is still to become durable.
            let Some(job) = queue.recv().await else { break };
            if !job.claim.take() {
                continue;
            }
            match self.decide(&job, current, memory) {
                Some(verdict) => {
                    self.jobs.push(job);
                    self.verdicts.push(verdict);
                }
                None => left_over.push(job),
            }
        }
    }

    /// `None` where the log has to be asked: for a wallet that is not in memory, and for the key of a command that is refused,
    /// which may have been done before.
    fn decide(&mut self, job: &Job, current: &Deciding, memory: &mut Memory) -> Option<Verdict> {
        for id in job.request.command.wallet_ids() {
            if !self.deciding.wallets.contains_key(id) {
                let held = left_by(current, memory, id)?.clone();
                self.deciding.wallets.insert(id.clone(), held);
            }
        }
        let verdict = self.deciding.decide(&job.request, None);
        (!verdict.may_stand_for_an_earlier_one(job)).then_some(verdict)
    }
}

fn left_by<'held>(current: &'held Deciding, memory: &'held mut Memory, id: &WalletId) -> Option<&'held Held> {
    current.wallets.get(id).or_else(|| memory.held(id))
}

/// Waits until many commands wait in the queue.
pub(super) async fn until_many_wait(queue: &mpsc::Receiver<Job>, rung: &Notify) {
    while queue.len() < MANY {
        rung.notified().await;
    }
}
