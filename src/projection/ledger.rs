//! The ledger: double entry. Each event that moves money is one entry of two postings that sum to zero.

use crate::kafka::EventRecord;
use crate::money::Currency;
use crate::postgres::{LedgerEntry, PgConnection, RebuiltTable, insert_ledger_entries};
use crate::projection::{ApplyError, Projection};
use crate::wallet::{WalletEvent, WalletId};

/// The ledger's name and consumer group.
pub const LEDGER_PROJECTOR: &str = "ledger-projector";

/// What a rebuild has to know of its table.
pub(super) const LEDGER_TABLE: RebuiltTable = RebuiltTable {
    projection: LEDGER_PROJECTOR,
    name: "ledger_postings",
    key: &["position", "leg"],
    wallet: "account",
    reads_itself: false,
};

/// Keeps `ledger_postings`.
#[derive(Clone, Copy, Debug, Default)]
pub struct LedgerProjection {}

impl LedgerProjection {
    /// The ledger.
    pub fn new() -> Self {
        Self::default()
    }
}

impl Projection for LedgerProjection {
    fn name(&self) -> &str {
        LEDGER_PROJECTOR
    }

    async fn apply(&mut self, events: &[EventRecord], transaction: &mut PgConnection) -> Result<(), ApplyError> {
        let entries: Vec<LedgerEntry> = events.iter().filter_map(entry).collect();
        if entries.is_empty() {
            return Ok(());
        }
        Ok(insert_ledger_entries(transaction, &entries).await?)
    }
}

/// The account of a wallet.
pub fn wallet_account(wallet_id: &WalletId) -> String {
    format!("wallet/{wallet_id}")
}

/// The account that stands for the world outside of all wallets.
pub fn external_account(currency: Currency) -> String {
    format!("external/{currency}")
}

/// The account that money passes through between the two legs of a transfer.
pub fn clearing_account(currency: Currency) -> String {
    format!("clearing/{currency}")
}

/// The entry that an event makes; none if it moves no money.
pub fn entry(record: &EventRecord) -> Option<LedgerEntry> {
    let event = &record.event;
    let amount = event.amount()?.minor();
    let (amount, transaction_type) = match (event, event.transfer()) {
        (WalletEvent::WalletDebited { .. }, None) => (-amount, "DEBIT"),
        (WalletEvent::WalletDebited { .. }, Some(_)) => (-amount, "TRANSFER_OUT"),
        (_, None) => (amount, "CREDIT"),
        (_, Some(_)) => (amount, "TRANSFER_IN"),
    };
    let currency = event.currency();
    Some(LedgerEntry {
        position: record.position,
        account: wallet_account(&record.wallet_id),
        counter_account: match event.transfer() {
            None => external_account(currency),
            Some(_) => clearing_account(currency),
        },
        currency: currency.code(),
        amount,
        balance_after: event.balance().minor(),
        event_id: record.event_id,
        transaction_type,
        description: event.description().map(ToString::to_string),
        reference_id: event.transfer().map_or(record.event_id, |transfer| transfer.id),
        related_wallet_id: event.transfer().map(|transfer| transfer.counterparty.to_string()),
        metadata: record.metadata.clone(),
        created_at: record.recorded_at,
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::projection::history::{Step, records_of};

    #[test]
    fn a_transfer_passes_through_clearing_and_names_its_other_end() {
        let steps = [Step::Open(0, 1_000), Step::Open(1, 0), Step::Transfer(0, 1, 300)];
        let entries: Vec<LedgerEntry> = records_of(&steps).iter().filter_map(entry).collect();
        let [_, out, into] = &entries[..] else { panic!("three movements: {entries:?}") };
        assert_eq!((out.transaction_type, into.transaction_type), ("TRANSFER_OUT", "TRANSFER_IN"));
        assert_eq!((out.amount, into.amount), (-300, 300));
        assert_eq!((out.balance_after, into.balance_after), (700, 300));
        assert_eq!(out.counter_account, "clearing/USD");
        assert_eq!(out.reference_id, into.reference_id);
        assert_ne!(out.reference_id, out.event_id);
        assert_eq!((out.account.as_str(), out.related_wallet_id.as_deref()), ("wallet/wallet-0", Some("wallet-1")));
        assert_eq!((into.account.as_str(), into.related_wallet_id.as_deref()), ("wallet/wallet-1", Some("wallet-0")));
    }

    #[test]
    fn money_from_outside_has_the_outside_as_its_other_account() {
        let steps = [Step::Open(0, 0), Step::Credit(0, 500), Step::Debit(0, 200)];
        let entries: Vec<LedgerEntry> = records_of(&steps).iter().filter_map(entry).collect();
        let [credit, debit] = &entries[..] else { panic!("two movements: {entries:?}") };
        assert_eq!((credit.transaction_type, credit.amount), ("CREDIT", 500));
        assert_eq!((debit.transaction_type, debit.amount), ("DEBIT", -200));
        assert_eq!((credit.counter_account.as_str(), debit.counter_account.as_str()), ("external/USD", "external/USD"));
        assert_eq!(credit.reference_id, credit.event_id);
        assert_eq!(credit.related_wallet_id, None);
    }

    proptest::proptest! {
        #[test]
        fn every_account_adds_up(steps in proptest::collection::vec(Step::any(), 0..200)) {
            let records = records_of(&steps);
            let mut accounts: BTreeMap<String, i64> = BTreeMap::new();
            for entry in records.iter().filter_map(entry) {
                let balance = accounts.entry(entry.account).or_default();
                *balance += entry.amount;
                proptest::prop_assert_eq!(*balance, entry.balance_after);
                *accounts.entry(entry.counter_account).or_default() -= entry.amount;
            }
            proptest::prop_assert_eq!(accounts.values().sum::<i64>(), 0);
            proptest::prop_assert_eq!(accounts.get("clearing/USD").copied().unwrap_or(0), 0);
            for record in &records {
                let last = records.iter().rfind(|other| other.wallet_id == record.wallet_id).expect("itself at least");
                let account = accounts.get(&wallet_account(&record.wallet_id)).copied().unwrap_or(0);
                proptest::prop_assert_eq!(account, last.event.balance().minor());
            }
        }
    }
}
