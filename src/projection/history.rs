//! Random histories for tests, made by the domain itself.

use std::collections::BTreeMap;

use chrono::DateTime;
use proptest::prelude::{Strategy, prop_oneof};
use uuid::Uuid;

use crate::kafka::EventRecord;
use crate::money::{Amount, Currency};
use crate::wallet::{Ends, OwnerId, Wallet, WalletEvent, WalletId, credit, debit, open, transfer};

/// Something that is asked of one of a few wallets, in minor units. What the domain refuses makes no event.
#[derive(Clone, Debug)]
pub(super) enum Step {
    Open(usize, i64),
    Credit(usize, i64),
    Debit(usize, i64),
    Transfer(usize, usize, i64),
}

impl Step {
    pub(super) fn any() -> impl Strategy<Value = Step> {
        let (wallet, amount) = (0..5_usize, 1..500_i64);
        prop_oneof![
            (wallet.clone(), 0..1_000_i64).prop_map(|(wallet, amount)| Step::Open(wallet, amount)),
            (wallet.clone(), amount.clone()).prop_map(|(wallet, amount)| Step::Credit(wallet, amount)),
            (wallet.clone(), amount.clone()).prop_map(|(wallet, amount)| Step::Debit(wallet, amount)),
            (wallet.clone(), wallet, amount).prop_map(|(from, to, amount)| Step::Transfer(from, to, amount)),
        ]
    }
}

/// The events of these steps, as consumers get them.
pub(super) fn records_of(steps: &[Step]) -> Vec<EventRecord> {
    let ids: Vec<WalletId> =
        (0..5).map(|number| WalletId::new(format!("wallet-{number}")).expect("a wallet id")).collect();
    let owner = OwnerId::new("owner").expect("an owner id");
    let money = |minor: i64| Amount::from_minor(minor).expect("not negative");
    let text = |minor: i64| money(minor).to_text(Currency::USD);
    let mut wallets: BTreeMap<WalletId, Wallet> = BTreeMap::new();
    let mut records = Vec::new();
    for step in steps {
        let decided: Vec<(&WalletId, WalletEvent)> = match step {
            Step::Open(at, minor) => {
                let opened = open(wallets.get(&ids[*at]), &ids[*at], &owner, Currency::USD, money(*minor));
                opened.unwrap_or_default().into_iter().map(|event| (&ids[*at], event)).collect()
            }
            Step::Credit(at, minor) => {
                let event = credit(wallets.get(&ids[*at]), &ids[*at], &text(*minor), None);
                event.into_iter().map(|event| (&ids[*at], event)).collect()
            }
            Step::Debit(at, minor) => {
                let event = debit(wallets.get(&ids[*at]), &ids[*at], &text(*minor), None);
                event.into_iter().map(|event| (&ids[*at], event)).collect()
            }
            Step::Transfer(from, to, minor) => {
                let (from, to) = (&ids[*from], &ids[*to]);
                let ends = Ends { from_id: from, from: wallets.get(from), to_id: to, to: wallets.get(to) };
                match transfer(ends, Uuid::now_v7(), &text(*minor), None) {
                    Ok((out, into)) => vec![(from, out), (to, into)],
                    Err(_) => Vec::new(),
                }
            }
        };
        for (id, event) in decided {
            let at = DateTime::UNIX_EPOCH;
            match wallets.get_mut(id) {
                Some(wallet) => wallet.apply(&event, at).expect("an event that follows"),
                None => {
                    let wallet = Wallet::begin(id.clone(), &event, at).expect("a first event");
                    wallets.insert(id.clone(), wallet);
                }
            }
            records.push(EventRecord {
                wallet_id: id.clone(),
                position: records.len() as i64 + 1,
                revision: wallets[id].version,
                event_id: Uuid::now_v7(),
                recorded_at: at,
                metadata: b"{}".to_vec(),
                event,
            });
        }
    }
    records
}
