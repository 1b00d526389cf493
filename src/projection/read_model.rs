//! The read model: one row a wallet, its state as of its version.

use std::collections::HashMap;

use crate::kafka::EventRecord;
use crate::postgres::{
    NewWalletRow, PgConnection, RebuiltTable, WalletRowChange, insert_wallet_rows, update_wallet_rows,
};
use crate::projection::{ApplyError, Projection};
use crate::wallet::{WalletEvent, WalletId, WalletStatus};

/// The read model's name and consumer group.
pub const READ_MODEL_PROJECTOR: &str = "read-model-projector";

/// What a rebuild has to know of its table.
pub(super) const READ_MODEL_TABLE: RebuiltTable = RebuiltTable {
    projection: READ_MODEL_PROJECTOR,
    name: "read_model_wallets",
    key: &["wallet_id"],
    wallet: "wallet_id",
    reads_itself: true,
};

/// Keeps `read_model_wallets`.
#[derive(Clone, Copy, Debug, Default)]
pub struct ReadModelProjection {}

impl ReadModelProjection {
    /// The read model.
    pub fn new() -> Self {
        Self::default()
    }
}

impl Projection for ReadModelProjection {
    fn name(&self) -> &str {
        READ_MODEL_PROJECTOR
    }

    async fn apply(&mut self, events: &[EventRecord], transaction: &mut PgConnection) -> Result<(), ApplyError> {
        for events in runs(events) {
            let (new, changed) = collapse(events)?;
            if !new.is_empty() {
                insert_wallet_rows(transaction, &new).await?;
            }
            if !changed.is_empty() && update_wallet_rows(transaction, &changed).await? != changed.len() as u64 {
                // One by one, the wallet that is meant is found.
                let wallet = &changed[0].wallet_id;
                return Err(ApplyError::Permanent(format!(
                    "the read model does not have the state that an event of wallet {wallet} or another of its batch follows"
                )));
            }
        }
        Ok(())
    }
}

/// Events, in order, cut where one does not follow its wallet's last: what lies between may have been discarded, which the rows
/// themselves are held against.
fn runs(events: &[EventRecord]) -> Vec<&[EventRecord]> {
    let mut runs = Vec::new();
    let (mut rest, mut begun) = (events, 0);
    let mut last: HashMap<&WalletId, i64> = HashMap::new();
    for (at, record) in events.iter().enumerate() {
        if last.get(&record.wallet_id).is_some_and(|last| last + 1 != record.revision) {
            let (run, next) = rest.split_at(at - begun);
            runs.push(run);
            (rest, begun) = (next, at);
            last.clear();
        }
        last.insert(&record.wallet_id, record.revision);
    }
    runs.push(rest);
    runs
}

/// Events, in order, collapsed to one row a wallet: only the last state of each counts, but every step to it is checked.
fn collapse(events: &[EventRecord]) -> Result<(Vec<NewWalletRow>, Vec<WalletRowChange>), ApplyError> {
    let mut new: HashMap<&WalletId, NewWalletRow> = HashMap::new();
    let mut changed: HashMap<&WalletId, WalletRowChange> = HashMap::new();
    for record in events {
        let balance = record.event.balance().minor();
        let last = new
            .get(&record.wallet_id)
            .map(|row| (row.version, row.balance))
            .or_else(|| changed.get(&record.wallet_id).map(|change| (change.version, change.balance)));
        let before = match &record.event {
            WalletEvent::WalletCreated { owner_id, currency } => {
                if last.is_some() || record.revision != 0 {
                    return Err(broken(record, "it is created after it has begun"));
                }
                let row = NewWalletRow {
                    wallet_id: record.wallet_id.to_string(),
                    owner_id: owner_id.to_string(),
                    currency: currency.code(),
                    balance: 0,
                    status: WalletStatus::Active.as_str(),
                    version: 0,
                    position: record.position,
                    created_at: record.recorded_at,
                    updated_at: record.recorded_at,
                };
                new.insert(&record.wallet_id, row);
                continue;
            }
            WalletEvent::WalletCredited { amount, .. } => balance - amount.minor(),
            WalletEvent::WalletDebited { amount, .. } => {
                balance.checked_add(amount.minor()).ok_or_else(|| broken(record, "its balance before is impossible"))?
            }
        };
        if last.is_some_and(|last| last != (record.revision - 1, before)) {
            return Err(broken(record, "it does not follow the event before it"));
        }
        if let Some(row) = new.get_mut(&record.wallet_id) {
            (row.balance, row.version) = (balance, record.revision);
            (row.position, row.updated_at) = (record.position, record.recorded_at);
            continue;
        }
        let change = changed.entry(&record.wallet_id).or_insert_with(|| WalletRowChange {
            wallet_id: record.wallet_id.to_string(),
            version_before: record.revision - 1,
            balance_before: before,
            balance,
            version: record.revision,
            position: record.position,
            updated_at: record.recorded_at,
        });
        (change.balance, change.version) = (balance, record.revision);
        (change.position, change.updated_at) = (record.position, record.recorded_at);
    }
    Ok((new.into_values().collect(), changed.into_values().collect()))
}

fn broken(record: &EventRecord, reason: &str) -> ApplyError {
    ApplyError::Permanent(format!("revision {} of wallet {}: {reason}", record.revision, record.wallet_id))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::projection::history::{Step, records_of};

    /// Version and balance by wallet, kept as the tables are.
    #[derive(Default, Debug, PartialEq)]
    struct Rows(BTreeMap<String, (i64, i64)>);

    impl Rows {
        fn apply(&mut self, events: &[EventRecord]) -> Result<(), ApplyError> {
            let (new, changed) = collapse(events)?;
            for row in new {
                if self.0.insert(row.wallet_id, (row.version, row.balance)).is_some() {
                    return Err(ApplyError::Permanent("it is there".to_owned()));
                }
            }
            for change in changed {
                match self.0.get_mut(&change.wallet_id) {
                    Some(row) if *row == (change.version_before, change.balance_before) => {
                        *row = (change.version, change.balance);
                    }
                    _ => return Err(ApplyError::Permanent("it does not follow".to_owned())),
                }
            }
            Ok(())
        }
    }

    proptest::proptest! {
        #[test]
        fn however_events_are_batched_the_rows_are_the_last_states(
            steps in proptest::collection::vec(Step::any(), 0..200), size in 1..50_usize
        ) {
            let records = records_of(&steps);
            let mut rows = Rows::default();
            for batch in records.chunks(size) {
                rows.apply(batch).expect("events in order");
            }
            let mut expected = Rows::default();
            for record in &records {
                let state = (record.revision, record.event.balance().minor());
                expected.0.insert(record.wallet_id.to_string(), state);
            }
            proptest::prop_assert_eq!(rows, expected);
        }

        #[test]
        fn events_are_cut_where_one_is_left_out_and_nowhere_else(
            steps in proptest::collection::vec(Step::any(), 0..200), every in 2..40_i64
        ) {
            let all = records_of(&steps);
            proptest::prop_assert_eq!(runs(&all).len(), 1);
            let left: Vec<EventRecord> = all.iter().filter(|record| record.position % every != 0).cloned().collect();
            let runs = runs(&left);
            proptest::prop_assert!(runs.concat() == left);
            for run in &runs {
                proptest::prop_assert!(collapse(run).is_ok());
            }
            // No cut is one too many: the event after it does not follow its wallet's last before it.
            for pair in runs.windows(2) {
                let next = &pair[1][0];
                let last = pair[0].iter().rfind(|record| record.wallet_id == next.wallet_id);
                proptest::prop_assert!(last.is_some_and(|last| last.revision + 1 != next.revision));
            }
        }

        #[test]
        fn an_event_that_is_missing_or_comes_twice_is_noticed_at_its_wallets_next(
            steps in proptest::collection::vec(Step::any(), 20..100), at in 0..100_usize, size in 1..50_usize, twice: bool
        ) {
            let mut records = records_of(&steps);
            let at = at % records.len().max(1);
            let Some(record) = records.get(at).cloned() else { return Ok(()) };
            let has_a_next = records.iter().skip(at + 1).any(|other| other.wallet_id == record.wallet_id);
            if twice {
                records.insert(at, record);
            } else if has_a_next {
                records.remove(at);
            } else {
                return Ok(());
            }
            let mut rows = Rows::default();
            let refused = records.chunks(size).any(|batch| rows.apply(batch).is_err());
            proptest::prop_assert!(refused);
        }
    }
}
