//! What a lane is given to do: a caller's command, or the receiving leg of a transfer that has been decided.

use std::sync::Arc;
use std::time::Instant;

use uuid::Uuid;

use crate::log::Position;
use crate::money::Amount;
use crate::sequencer::{Answer, CommandError, Job, RETRY_AFTER};
use crate::wallet::{Description, Rejection, Transfer, Wallet, WalletId};

/// One piece of work on one wallet.
pub(super) enum Work {
    Command(CommandWork),
    Leg(Leg),
}

/// A caller's command. Its ids are made once: however often it is decided again, it stays the same command.
pub(super) struct CommandWork {
    pub(super) job: Job,
    pub(super) causation_id: Arc<str>,
    pub(super) transfer_id: Uuid,
    pub(super) taken_at: Instant,
}

impl CommandWork {
    pub(super) fn new(job: Job) -> Self {
        let taken_at = Instant::now();
        CommandWork { job, causation_id: Uuid::now_v7().to_string().into(), transfer_id: Uuid::now_v7(), taken_at }
    }
}

/// The receiving leg of a transfer whose paying leg is durable.
pub(super) struct Leg {
    pub(super) transfer_id: Uuid,
    pub(super) from: WalletId,
    pub(super) to: WalletId,
    pub(super) amount: Amount,
    pub(super) description: Option<Description>,
    /// The paying leg's, without its key.
    pub(super) metadata: Arc<[u8]>,
    /// A moment before which nobody can have heard of the transfer, where it was decided here.
    pub(super) decided_after: Option<Instant>,
    /// Who waits for it; nobody where an earlier server left it.
    pub(super) caller: Option<Caller>,
}

/// A caller whose answer waits for a leg.
pub(super) struct Caller {
    pub(super) job: Job,
    pub(super) outcome: Outcome,
}

/// What a caller is told once the leg is there.
pub(super) enum Outcome {
    /// The transfer is whole.
    Transferred { transfer_id: Uuid, from_wallet: Wallet, position: Position, replayed: bool },
    /// The receiver could not take it, and the money is back.
    Returned(Rejection),
}

impl Leg {
    /// What the receiver's event says.
    pub(super) fn transfer(&self) -> Transfer {
        Transfer { id: self.transfer_id, counterparty: self.from.clone() }
    }

    /// The text that the leg's event id is made from: the transfer's, and nobody's who happens to append it.
    pub(super) fn command_text(&self) -> String {
        format!("{}/credit", self.transfer_id)
    }

    /// Whether it brings back what a receiver could not take. Such a one is not sent back again: it waits until there is room.
    pub(super) fn is_a_return(&self) -> bool {
        self.transfer_id.get_version_num() == RETURN_VERSION
    }
}

/// Ids of returns are made from the transfer's id, those of transfers from the time.
const RETURN_VERSION: usize = 8;

impl Caller {
    /// The leg is there: this is the receiver as the leg left it.
    pub(super) fn answer(self, receiver: Wallet, position: Position) {
        let answer = match self.outcome {
            Outcome::Transferred { transfer_id, from_wallet, position: debited, replayed } => Ok(Answer {
                wallet: from_wallet,
                transfer: Some((transfer_id, receiver)),
                position: debited.max(position),
                replayed,
            }),
            Outcome::Returned(rejection) => Err(CommandError::Rejected(rejection)),
        };
        reply(self.job, answer);
    }

    /// The leg is not there yet: it will be, but this caller is not kept waiting for it.
    pub(super) fn put_off(self) {
        reply(self.job, Err(CommandError::Unavailable { maybe_done: true, retry_after: RETRY_AFTER }));
    }
}

pub(super) fn reply(job: Job, answer: Result<Answer, CommandError>) {
    // A caller that has gone away is told nothing.
    let _ = job.reply.send(answer);
}

impl Work {
    /// Tells whoever waits that this could not be done for now. Of a command nothing has been done; a leg is taken up again.
    pub(super) fn fail(self, error: CommandError) {
        match self {
            Work::Command(command) => reply(command.job, Err(error)),
            Work::Leg(leg) => {
                if let Some(caller) = leg.caller {
                    caller.put_off();
                }
            }
        }
    }
}
