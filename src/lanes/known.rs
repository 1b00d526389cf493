//! What is known of one wallet's stream: its state, and which keys and transfers belong to its events, as far as they were met or
//! asked for.

use std::collections::HashMap;
use std::time::Instant;

use uuid::Uuid;

use crate::lanes::decide::Place;
use crate::lanes::metadata::CommandMetadata;
use crate::lanes::work::Leg;
use crate::log::{
    KeyRecord, KeyScope, LoadedStream, Position, RecordedEvent, Revision, ViewError, apply_next, restore,
};
use crate::sequencer::{CommandError, Setback};
use crate::wallet::{Command, EventError, Wallet, WalletEvent, WalletId};

/// Up to how many of a wallet's keys are learnt from the copy at once. Where it has more, it is asked for each that comes.
pub(super) const COPIED_KEYS_MAX: usize = 200;

/// A wallet's stream as of a revision. What is not held here of what came before the newest events, the copy knows.
#[derive(Clone, Debug, Default)]
pub(super) struct Known {
    /// The state; `None` where there is no such wallet.
    pub(super) wallet: Option<Wallet>,
    keys: HashMap<KeyScope, KnownKey>,
    /// Whether `keys` has those of the part that only the copy has been asked for, too.
    has_copied_keys: bool,
    /// Transfers whose receiving leg is in this stream.
    received: HashMap<Uuid, Place>,
    /// When the copy had been asked. What begins later is nowhere but among the newest events.
    copied_by: Option<Instant>,
}

/// A key that was used on the wallet.
#[derive(Clone, Copy, Debug)]
pub(super) struct KnownKey {
    pub(super) fingerprint: [u8; 32],
    /// The last event of the command.
    pub(super) last_event: Place,
}

impl KnownKey {
    fn of_copy(record: &KeyRecord) -> Self {
        let last_event = Place::Copied(record.position + i64::from(record.event_count) - 1);
        KnownKey { fingerprint: record.fingerprint, last_event }
    }
}

impl Known {
    /// As the copy has it. `keys` are the wallet's, asked for after the stream; if there are more than [`COPIED_KEYS_MAX`], they
    /// need not be all.
    pub(super) fn of_copy(copied: Option<&LoadedStream>, keys: &[KeyRecord]) -> Result<Self, ViewError> {
        Ok(Known {
            wallet: copied.map(restore).transpose()?,
            has_copied_keys: keys.len() <= COPIED_KEYS_MAX,
            keys: keys.iter().map(|record| (record.scope.clone(), KnownKey::of_copy(record))).collect(),
            copied_by: Some(Instant::now()),
            ..Known::default()
        })
    }

    /// Takes in what the copy answered when it was asked for a few keys and receiving legs.
    pub(super) fn learn(&mut self, keys: &[KeyRecord], received: &[(Uuid, Position)]) {
        self.keys.extend(keys.iter().map(|record| (record.scope.clone(), KnownKey::of_copy(record))));
        self.received.extend(received.iter().map(|(transfer, position)| (*transfer, Place::Copied(*position))));
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
            self.received.insert(transfer.id, Place::Revision(recorded.revision));
        }
        if let Some(key) = CommandMetadata::read(&recorded.metadata).and_then(|metadata| metadata.idempotency)
            && let (Some(kind), Some(fingerprint)) = (Command::kind_of(&key.kind), key.fingerprint())
        {
            let wallet_id = recorded.stream.clone();
            let scope = KeyScope { wallet_id, command_kind: kind, key: key.key.as_str().into() };
            let last_event = Place::Revision(recorded.revision + i64::from(key.event_count) - 1);
            self.keys.insert(scope, KnownKey { fingerprint, last_event });
        }
        Ok(())
    }

    pub(super) fn key(&self, scope: &KeyScope) -> Option<KnownKey> {
        self.keys.get(scope).copied()
    }

    /// Whether the copy may have a key that is not known here.
    pub(super) fn may_miss_key(&self, scope: &KeyScope) -> bool {
        !self.has_copied_keys && !self.keys.contains_key(scope)
    }

    pub(super) fn received(&self, transfer_id: Uuid) -> Option<Place> {
        self.received.get(&transfer_id).copied()
    }

    /// Whether the copy may have a receiving leg that is not known here. It cannot where it was asked before there was such a
    /// transfer.
    pub(super) fn may_miss_leg(&self, leg: &Leg) -> bool {
        let copy_is_older = || self.copied_by.zip(leg.decided_after).is_some_and(|(copied, decided)| copied < decided);
        !self.received.contains_key(&leg.transfer_id) && !copy_is_older()
    }

    /// How many keys and transfers it holds.
    pub(super) fn size(&self) -> usize {
        self.keys.len() + self.received.len()
    }

    #[cfg(test)]
    pub(super) fn of_size(size: usize) -> Self {
        let received = (0..size).map(|number| (Uuid::from_u128(number as u128), Place::Revision(0)));
        Known { received: received.collect(), ..Known::default() }
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::money::Amount;

    #[test]
    fn the_copy_is_asked_for_a_leg_unless_it_was_asked_before_there_was_the_transfer() {
        let known = Known::of_copy(None, &[]).expect("a wallet of which nothing is copied");
        let asked = known.copied_by.expect("a time");
        let id = |name| WalletId::new(name).expect("an id");
        let leg = |decided_after| Leg {
            transfer_id: Uuid::now_v7(),
            from: id("a"),
            to: id("b"),
            amount: Amount::ZERO,
            description: None,
            metadata: Arc::from(&b"{}"[..]),
            decided_after,
            caller: None,
        };
        let moment = Duration::from_nanos(1);
        assert!(!known.may_miss_leg(&leg(Some(asked + moment))));
        assert!(known.may_miss_leg(&leg(Some(asked))) && known.may_miss_leg(&leg(Some(asked - moment))));
        // Decided by another server, or who knows when.
        assert!(known.may_miss_leg(&leg(None)));
        assert!(Known::default().may_miss_leg(&leg(Some(asked + moment))));
    }
}
