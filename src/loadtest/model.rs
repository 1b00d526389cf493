//! What the client itself knows: the plan, and which of its operations were acknowledged. Nothing else.
//!
//! A wallet's balance is its opening plus its acknowledged credits minus its acknowledged debits, in whatever order
//! they took place.

use crate::loadtest::plan::{Kind, OPENING, Operation, Plan};
use crate::money::Currency;

/// The currency of every wallet of a run.
pub const CURRENCY: Currency = Currency::USD;
/// Minor units in a whole one.
const MINOR_UNITS: i64 = 100;
/// The most operations that a run may have.
pub const OPERATIONS_MAX: u64 = 10_000_000;

// Even if all of them went to one wallet its sums fit, so the additions below cannot overflow.
const _: () = assert!(
    OPERATIONS_MAX as i128 * *Kind::Credit.amounts().end() as i128 * MINOR_UNITS as i128 + (*OPENING.end() as i128)
        < i64::MAX as i128
);

/// What became of an operation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Outcome {
    /// It was not sent: the run was given up before.
    #[default]
    NotIssued,
    /// Acknowledged.
    Ok,
    /// Answered with a refusal: nothing changed.
    Rejected,
    /// Never answered, or with what is no answer: nobody knows whether it happened.
    Failed,
}

/// What one wallet must hold, in minor units.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Expected {
    /// The sum of what came in, the opening balance with it.
    pub credits: i64,
    /// The sum of what went out.
    pub debits: i64,
    /// How often money came in or went out.
    pub entries: i64,
    /// Whether an operation on it failed, so that it may rightly hold something else.
    pub in_doubt: bool,
}

impl Expected {
    /// The balance; below zero where more was let out than there was.
    pub fn balance(&self) -> i64 {
        self.credits - self.debits
    }

    /// The wallet's version: its creation is 0 and each entry is one more.
    pub fn version(&self) -> i64 {
        self.entries
    }

    fn credit(&mut self, units: u32) {
        self.credits += i64::from(units) * MINOR_UNITS;
        self.entries += 1;
    }

    fn debit(&mut self, units: u32) {
        self.debits += i64::from(units) * MINOR_UNITS;
        self.entries += 1;
    }
}

/// What every wallet must hold, by number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Model {
    wallets: Vec<Expected>,
    money: i128,
}

impl Model {
    /// The model after all wallets were opened and the operations had these outcomes, by number.
    pub fn new(plan: &Plan, outcomes: &[Outcome]) -> Self {
        let mut wallets = vec![Expected::default(); plan.wallets() as usize];
        for (number, wallet) in (0..).zip(&mut wallets) {
            wallet.credit(plan.opening(number));
        }
        // Kept beside the wallets, from outside money alone: a transfer makes and loses none.
        let mut money: i128 = wallets.iter().map(|wallet| i128::from(wallet.balance())).sum();
        for (number, outcome) in (0..).zip(outcomes) {
            let operation = plan.operation(number);
            match outcome {
                Outcome::Ok => money += take_effect(&mut wallets, &operation),
                Outcome::Failed => {
                    for wallet in [Some(operation.wallet), operation.receiver].into_iter().flatten() {
                        wallets[wallet as usize].in_doubt = true;
                    }
                }
                Outcome::Rejected | Outcome::NotIssued => {}
            }
        }
        Model { wallets, money }
    }

    /// What each wallet must hold, by number.
    pub fn wallets(&self) -> &[Expected] {
        &self.wallets
    }

    /// All the money that there must be, in minor units: opened and credited, less debited.
    pub fn money(&self) -> i128 {
        self.money
    }
}

/// Returns the minor units that came in from outside.
fn take_effect(wallets: &mut [Expected], operation: &Operation) -> i128 {
    let wallet = operation.wallet as usize;
    let minor = i128::from(operation.amount) * i128::from(MINOR_UNITS);
    match (operation.kind, operation.receiver) {
        (Kind::Credit, _) => {
            wallets[wallet].credit(operation.amount);
            minor
        }
        (Kind::Debit, _) => {
            wallets[wallet].debit(operation.amount);
            -minor
        }
        (Kind::Transfer, receiver) => {
            wallets[wallet].debit(operation.amount);
            if let Some(receiver) = receiver {
                wallets[receiver as usize].credit(operation.amount);
            }
            0
        }
    }
}

/// Money in words, below zero too: `-10.50 USD`.
pub fn money_text(minor: i128) -> String {
    let (sign, magnitude) = (if minor < 0 { "-" } else { "" }, minor.unsigned_abs());
    let scale = u128::from(MINOR_UNITS.unsigned_abs());
    format!("{sign}{}.{:02} {CURRENCY}", magnitude / scale, magnitude % scale)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::loadtest::plan::Distribution;

    const PLAN: fn() -> Plan = || Plan::new(1, 10, Distribution::Uniform);

    #[test]
    fn without_operations_each_wallet_holds_its_opening_balance() {
        let model = Model::new(&PLAN(), &[]);
        for (number, wallet) in (0..).zip(model.wallets()) {
            assert_eq!(wallet.balance(), i64::from(PLAN().opening(number)) * 100);
            assert_eq!(wallet.version(), 1);
        }
    }

    #[test]
    fn a_minor_unit_is_the_currencys() {
        assert_eq!(MINOR_UNITS, 10_i64.pow(CURRENCY.digits()));
    }

    #[test]
    fn money_is_written_with_its_sign_and_its_digits() {
        assert_eq!(money_text(1_050), "10.50 USD");
        assert_eq!(money_text(-5), "-0.05 USD");
    }

    #[test]
    fn only_what_was_acknowledged_counts() {
        let untouched = Model::new(&PLAN(), &[]);
        for outcome in [Outcome::Rejected, Outcome::NotIssued] {
            assert_eq!(Model::new(&PLAN(), &[outcome; 100]), untouched, "{outcome:?}");
        }
        assert_ne!(Model::new(&PLAN(), &[Outcome::Ok; 100]), untouched);
    }

    #[test]
    fn a_failed_operation_leaves_its_wallets_in_doubt_and_its_money_out() {
        let model = Model::new(&PLAN(), &[Outcome::Failed]);
        let operation = PLAN().operation(0);
        assert!(model.wallets()[operation.wallet as usize].in_doubt);
        assert_eq!(model.money(), Model::new(&PLAN(), &[]).money());
    }

    #[test]
    fn the_wallets_hold_all_the_money_there_is() {
        let model = Model::new(&PLAN(), &[Outcome::Ok; 1_000]);
        let held: i128 = model.wallets().iter().map(|wallet| i128::from(wallet.balance())).sum();
        assert_eq!(held, model.money());
        let entries: i64 = model.wallets().iter().map(|wallet| wallet.entries).sum();
        let transfers = (0..1_000).filter(|number| PLAN().operation(*number).kind == Kind::Transfer).count();
        assert_eq!(entries, 10 + 1_000 + transfers as i64);
    }
}
