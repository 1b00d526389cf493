//! What is known of one wallet's stream: its state, and which keys and transfers its newest events belong to.

use std::collections::HashMap;

use uuid::Uuid;

use crate::lanes::metadata::CommandMetadata;
use crate::log::{KeyScope, LoadedStream, RecordedEvent, Revision, ViewError, apply_next, restore};
use crate::sequencer::{CommandError, Setback};
use crate::wallet::{EventError, Wallet, WalletEvent, WalletId};

/// How many keys and transfers of a wallet's newest events are held; beyond it the wallet is read again, from where the copy
/// has come to meanwhile.
const RECENT_MAX: usize = 20_000;

/// A wallet's stream as of a revision. What came before the part that is held here, the copy knows.
#[derive(Clone, Debug, Default)]
pub(super) struct Known {
    /// The state; `None` where there is no such wallet.
    pub(super) wallet: Option<Wallet>,
    keys: HashMap<KeyScope, RecentKey>,
    /// Transfers whose receiving leg is in this stream, with its revision.
    received: HashMap<Uuid, Revision>,
}

/// A key among the newest events.
#[derive(Clone, Copy, Debug)]
pub(super) struct RecentKey {
    pub(super) fingerprint: [u8; 32],
    /// The last event of the command.
    pub(super) last_revision: Revision,
}

impl Known {
    /// As the copy has it.
    pub(super) fn of_copy(copied: Option<&LoadedStream>) -> Result<Self, ViewError> {
        Ok(Known { wallet: copied.map(restore).transpose()?, ..Known::default() })
    }

    /// The revision of the stream's last event; -1 where there is no stream.
    pub(super) fn revision(&self) -> Revision {
        self.wallet.as_ref().map_or(-1, |wallet| wallet.version)
    }

    /// Takes in the event after [`Known::revision`].
    pub(super) fn take_in(&mut self, recorded: &RecordedEvent) -> Result<(), ViewError> {
        let event = recorded.decode()?;
        match &mut self.wallet {
            Some(wallet) => apply_next(wallet, recorded)?,
            None => self.wallet = Some(Wallet::begin(recorded.stream.clone(), &event, recorded.recorded_at)?),
        }
        if let (WalletEvent::WalletCredited { .. }, Some(transfer)) = (&event, event.transfer()) {
            self.received.insert(transfer.id, recorded.revision);
        }
        if let Some(key) = CommandMetadata::read(&recorded.metadata).and_then(|metadata| metadata.idempotency)
            && let (Some(kind), Some(fingerprint)) = (command_kind(&key.kind), key.fingerprint())
        {
            let wallet_id = recorded.stream.clone();
            let scope = KeyScope { wallet_id, command_kind: kind, key: key.key.as_str().into() };
            let last_revision = recorded.revision + i64::from(key.event_count) - 1;
            self.keys.insert(scope, RecentKey { fingerprint, last_revision });
        }
        Ok(())
    }

    pub(super) fn key(&self, scope: &KeyScope) -> Option<RecentKey> {
        self.keys.get(scope).copied()
    }

    pub(super) fn received(&self, transfer_id: Uuid) -> Option<Revision> {
        self.received.get(&transfer_id).copied()
    }

    pub(super) fn is_too_much(&self) -> bool {
        self.keys.len() + self.received.len() > RECENT_MAX
    }
}

/// What is told about a wallet whose history cannot be read, at a revision where that is known.
pub(super) fn unusable(id: &WalletId, revision: Option<Revision>, error: ViewError) -> Setback {
    let reason = revision.map_or_else(|| error.to_string(), |revision| format!("revision {revision}: {error}"));
    Setback::Hopeless(match error {
        ViewError::Event(EventError::Earlier(_)) => CommandError::Unreadable { wallet_id: id.clone(), reason },
        _ => CommandError::Corrupt(format!("wallet {id}: {reason}")),
    })
}

/// The kind as commands call it: a text that lives as long as the program.
pub(crate) fn command_kind(text: &str) -> Option<&'static str> {
    crate::wallet::Command::KINDS.into_iter().find(|kind| *kind == text)
}
