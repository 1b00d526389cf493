//! The domain: what may be asked of wallets and what follows, in sentences and over random histories.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use proptest::prelude::*;
use uuid::Uuid;
use wallex::money::{Amount, Currency, MoneyError};
use wallex::wallet::{
    Command, EVENT_VERSION, Ends, OwnerId, Rejection, Wallet, WalletEvent, WalletId, credit, debit, open, transfer,
};

const AT: DateTime<Utc> = DateTime::UNIX_EPOCH;

fn id(name: &str) -> WalletId {
    WalletId::new(name).expect("a wallet id of the test")
}

fn currency(code: &str) -> Currency {
    Currency::from_code(code).expect("a currency of the test")
}

/// Wallets as their events left them.
#[derive(Clone, Debug, Default, PartialEq)]
struct Wallets {
    states: BTreeMap<WalletId, Wallet>,
    histories: BTreeMap<WalletId, Vec<WalletEvent>>,
}

impl Wallets {
    fn state(&self, id: &WalletId) -> Option<&Wallet> {
        self.states.get(id)
    }

    fn balance(&self, name: &str) -> String {
        let wallet = self.state(&id(name)).expect("a wallet of the test");
        wallet.balance.to_text(wallet.currency)
    }

    fn decide(&self, command: &Command) -> Result<Vec<(WalletId, WalletEvent)>, Rejection> {
        let of = |id: &WalletId, event| (id.clone(), event);
        match command {
            Command::Create { wallet_id, owner_id, currency, initial_balance } => {
                let events = open(self.state(wallet_id), wallet_id, owner_id, *currency, *initial_balance)?;
                Ok(events.into_iter().map(|event| of(wallet_id, event)).collect())
            }
            Command::Credit { wallet_id, amount, description } => {
                Ok(vec![of(wallet_id, credit(self.state(wallet_id), wallet_id, amount, description.as_ref())?)])
            }
            Command::Debit { wallet_id, amount, description } => {
                Ok(vec![of(wallet_id, debit(self.state(wallet_id), wallet_id, amount, description.as_ref())?)])
            }
            Command::Transfer { wallet_id, to_wallet_id, amount, description } => {
                let ends = Ends {
                    from_id: wallet_id,
                    from: self.state(wallet_id),
                    to_id: to_wallet_id,
                    to: self.state(to_wallet_id),
                };
                let (paid, received) = transfer(ends, Uuid::nil(), amount, description.as_ref())?;
                Ok(vec![of(wallet_id, paid), of(to_wallet_id, received)])
            }
        }
    }

    fn apply(&mut self, events: Vec<(WalletId, WalletEvent)>) {
        for (id, event) in events {
            match self.states.get_mut(&id) {
                Some(wallet) => wallet.apply(&event, AT).expect("a decided event fits"),
                None => {
                    let wallet = Wallet::begin(id.clone(), &event, AT).expect("a first event");
                    self.states.insert(id.clone(), wallet);
                }
            }
            self.histories.entry(id).or_default().push(event);
        }
    }
}

/// `given(commands).when(command)`: commands that went well, then the one that matters.
fn given(commands: &[Command]) -> Wallets {
    let mut wallets = Wallets::default();
    for command in commands {
        let events = wallets.decide(command).expect("what is given goes well");
        wallets.apply(events);
    }
    wallets
}

impl Wallets {
    fn when(mut self, command: Command) -> (Result<(), Rejection>, Wallets) {
        let before = self.clone();
        match self.decide(&command) {
            Ok(events) => {
                self.apply(events);
                (Ok(()), self)
            }
            Err(rejection) => {
                assert_eq!(self, before, "a rejection changes nothing");
                (Err(rejection), self)
            }
        }
    }

    fn rejects(self, command: Command) -> Rejection {
        self.when(command).0.expect_err("a rejection")
    }
}

fn wallet_of(name: &str, code: &str, balance: &str) -> Command {
    let currency = currency(code);
    let balance = Amount::parse(balance, currency).expect("an amount of the test");
    Command::create(id(name), OwnerId::new("owner").expect("an owner"), currency, balance)
}

fn wallet(name: &str, balance: &str) -> Command {
    wallet_of(name, "USD", balance)
}

#[test]
fn a_wallet_opened_empty_is_at_version_0() {
    let (_, wallets) = given(&[]).when(wallet("ann", "0"));
    let ann = wallets.state(&id("ann")).expect("ann");
    assert_eq!((ann.version, ann.balance), (0, Amount::ZERO));
}

#[test]
fn a_wallet_opened_with_money_is_credited_once_and_at_version_1() {
    let (_, wallets) = given(&[]).when(wallet("ann", "12.50"));
    assert_eq!(wallets.state(&id("ann")).expect("ann").version, 1);
    assert_eq!(wallets.balance("ann"), "12.50");
    assert_eq!(wallets.histories[&id("ann")].len(), 2);
}

#[test]
fn a_wallet_cannot_be_opened_twice() {
    let rejection = given(&[wallet("ann", "1")]).rejects(wallet("ann", "1"));
    assert_eq!(rejection, Rejection::WalletExists(id("ann")));
}

#[test]
fn a_credit_adds_and_a_debit_takes() {
    let (_, wallets) =
        given(&[wallet("ann", "10"), Command::credit(id("ann"), "0.05")]).when(Command::debit(id("ann"), "10.05"));
    assert_eq!(wallets.balance("ann"), "0.00");
}

#[test]
fn a_debit_of_more_than_there_is_is_insufficient_funds() {
    let rejection = given(&[wallet("ann", "10")]).rejects(Command::debit(id("ann"), "10.01"));
    assert_eq!(rejection.code(), "INSUFFICIENT_FUNDS");
    assert_eq!(rejection.to_string(), "wallet ann has 10.00 USD, less than the 10.01 USD asked for");
}

#[test]
fn a_transfer_moves_money_and_both_legs_name_each_other() {
    let (_, wallets) =
        given(&[wallet("ann", "10"), wallet("bob", "1")]).when(Command::transfer(id("ann"), id("bob"), "4"));
    assert_eq!((wallets.balance("ann"), wallets.balance("bob")), ("6.00".to_owned(), "5.00".to_owned()));
    let last = |name: &str| wallets.histories[&id(name)].last().expect("a leg").transfer().expect("a transfer").clone();
    assert_eq!((last("ann").counterparty, last("bob").counterparty), (id("bob"), id("ann")));
    assert_eq!(last("ann").id, last("bob").id);
}

#[test]
fn a_transfer_that_the_receiver_cannot_hold_leaves_the_payer_untouched() {
    let full = Amount::MAX.to_text(currency("USD"));
    let rejection =
        given(&[wallet("ann", "10"), wallet("bob", &full)]).rejects(Command::transfer(id("ann"), id("bob"), "0.01"));
    assert_eq!(rejection.code(), "INVALID_AMOUNT");
    assert!(matches!(rejection, Rejection::BalanceTooLarge { wallet_id, .. } if wallet_id == id("bob")));
}

#[test]
fn a_transfer_to_itself_across_currencies_or_to_nobody_is_refused() {
    let wallets = || given(&[wallet("ann", "10"), wallet_of("yen", "JPY", "10")]);
    assert_eq!(wallets().rejects(Command::transfer(id("ann"), id("ann"), "1")), Rejection::TransferToSelf);
    assert_eq!(wallets().rejects(Command::transfer(id("ann"), id("yen"), "1")).code(), "VALIDATION");
    assert_eq!(
        wallets().rejects(Command::transfer(id("ann"), id("nobody"), "1")),
        Rejection::WalletNotFound(id("nobody"))
    );
    assert_eq!(
        wallets().rejects(Command::transfer(id("nobody"), id("ann"), "1")),
        Rejection::WalletNotFound(id("nobody"))
    );
}

#[test]
fn an_amount_must_be_positive_and_within_the_wallets_currency() {
    let wallets = || given(&[wallet("ann", "10"), wallet_of("yen", "JPY", "10"), wallet_of("dinar", "BHD", "10")]);
    assert_eq!(wallets().rejects(Command::credit(id("ann"), "0")), Rejection::ZeroAmount);
    assert_eq!(wallets().rejects(Command::credit(id("ann"), "-1")), Rejection::InvalidAmount(MoneyError::Negative));
    assert_eq!(wallets().rejects(Command::credit(id("ann"), "abc")), Rejection::InvalidAmount(MoneyError::NotANumber));
    assert_eq!(wallets().rejects(Command::credit(id("yen"), "0.1")).code(), "INVALID_AMOUNT");
    assert_eq!(wallets().rejects(Command::debit(id("ann"), "0.001")).code(), "INVALID_AMOUNT");
    let (_, after) = wallets().when(Command::credit(id("dinar"), "0.001"));
    assert_eq!(after.balance("dinar"), "10.001");
}

#[test]
fn a_history_that_contradicts_itself_is_found_out() {
    let wallets = given(&[wallet("ann", "10"), Command::credit(id("ann"), "1")]);
    let history = &wallets.histories[&id("ann")];
    let fold = |events: &[&WalletEvent]| Wallet::fold(&id("ann"), events.iter().map(|event| (*event, AT)));
    assert!(fold(&[&history[0], &history[2]]).is_err(), "an event is missing");
    assert!(fold(&[&history[1]]).is_err(), "it does not begin with its creation");
    assert!(fold(&[&history[0], &history[0]]).is_err(), "it is created twice");
    assert_eq!(fold(&[]).expect("no history is no contradiction"), None);
}

/// A command on one of a few wallets; amounts now and then at the edges.
fn any_command() -> impl Strategy<Value = Command> {
    let name = prop::sample::select(vec!["ann", "bob", "cid", "dot"]);
    let amount = prop_oneof![
        8 => (1_i64..100_000).prop_map(|minor| Amount::from_minor(minor).expect("positive").to_text(Currency::USD)),
        1 => Just(Amount::MAX.to_text(Currency::USD)),
        1 => prop::sample::select(vec!["0", "-1", "0.001", "x"]).prop_map(str::to_owned),
    ];
    (0..4, name.clone(), name, amount).prop_map(|(kind, one, other, amount)| match kind {
        0 => {
            let opening = Amount::parse(&amount, Currency::USD).unwrap_or_default();
            Command::create(id(one), OwnerId::new("owner").expect("an owner"), Currency::USD, opening)
        }
        1 => Command::credit(id(one), amount),
        2 => Command::debit(id(one), amount),
        _ => Command::transfer(id(one), id(other), amount),
    })
}

proptest! {
    #[test]
    fn whatever_is_asked_money_is_conserved_and_states_are_their_histories(commands in prop::collection::vec(any_command(), 0..60)) {
        let mut wallets = Wallets::default();
        let (mut brought, mut taken) = (0_i128, 0_i128);
        for command in commands {
            let before = wallets.clone();
            match wallets.decide(&command) {
                Ok(events) => {
                    for (_, event) in events.iter().filter(|(_, event)| event.transfer().is_none()) {
                        let amount = i128::from(event.amount().unwrap_or_default().minor());
                        match event {
                            WalletEvent::WalletDebited { .. } => taken += amount,
                            _ => brought += amount,
                        }
                    }
                    wallets.apply(events);
                }
                Err(_) => prop_assert_eq!(&wallets, &before),
            }
            let held: i128 = wallets.states.values().map(|wallet| i128::from(wallet.balance.minor())).sum();
            prop_assert_eq!(held, brought - taken);
        }
        for (id, wallet) in &wallets.states {
            let history = &wallets.histories[id];
            prop_assert!(wallet.balance >= Amount::ZERO);
            prop_assert_eq!(wallet.version, history.len() as i64 - 1);
            let folded = Wallet::fold(id, history.iter().map(|event| (event, AT))).expect("a sound history");
            prop_assert_eq!(folded.as_ref(), Some(wallet));
            for event in history {
                let read = WalletEvent::from_payload(event.event_type(), EVENT_VERSION, &event.to_payload());
                prop_assert_eq!(&read.expect("our own payload"), event);
            }
        }
    }

    #[test]
    fn any_bytes_are_an_event_or_refused_without_a_panic(payload in prop::collection::vec(any::<u8>(), 0..200), kind in "Wallet(Created|Credited|Debited)|.{0,10}") {
        let _ = WalletEvent::from_payload(&kind, EVENT_VERSION, &payload);
    }
}
