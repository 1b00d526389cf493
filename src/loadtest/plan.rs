//! What a run does, drawn from its seed: the same seed and sizes mean the same operations, on every machine and in
//! every later version.
//!
//! # Format (fixed; the tests hold it against golden values)
//! The key of ChaCha8 is the seed, little-endian, then 24 zero bytes. Opening balances come from stream 0 and
//! operations from stream 1; wallet or operation *n* owns the 64-byte block *n* of its stream, read as 64-bit numbers
//! from the start. A number below a bound is `(draw × bound) >> 64`, so that no library's sampling is part of the
//! format (the bias is below 2⁻⁴⁰). As each operation owns its block, any of them is known without those before
//! it: there is no list to keep, and a longer run begins as a shorter one does.
//!
//! | draw | opening | operation |
//! |---|---|---|
//! | 0 | balance 100–5000 | kind: credit, debit, transfer |
//! | 1 | | the wallet, of all |
//! | 2 | | a transfer's other wallet, of all but that one |
//! | 3 | | amount: credit 10–500, debit 10–200, transfer 10–300 |
//! | 4 | | hot only: below [`HOT_PERCENT`] of 100, wallet 0 takes the place of the one drawn |
//! | 5 | | hot only: which side of a transfer that wallet is on |

use std::ops::RangeInclusive;

use clap::ValueEnum;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

/// Whole units that a wallet is opened with.
pub const OPENING: RangeInclusive<u32> = 100..=5_000;
/// Of 100 operations in a hot run, how many touch wallet 0. The others are drawn as in a uniform run.
pub const HOT_PERCENT: u32 = 80;

const OPENINGS_STREAM: u64 = 0;
const OPERATIONS_STREAM: u64 = 1;
/// 32-bit words in a block of ChaCha.
const BLOCK_WORDS: u128 = 16;

/// Which wallets are drawn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Distribution {
    /// Each as often as any other.
    #[default]
    Uniform,
    /// One wallet takes part in 80 of 100 operations, half of its transfers coming in and half going out.
    Hot,
}

/// What an operation does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Money from outside.
    Credit,
    /// Money to outside.
    Debit,
    /// Money from one wallet to another.
    Transfer,
}

impl Kind {
    /// All kinds, in the order in which they are drawn and reported.
    pub const ALL: [Kind; 3] = [Kind::Credit, Kind::Debit, Kind::Transfer];

    /// Its name in routes and reports.
    pub const fn name(self) -> &'static str {
        match self {
            Kind::Credit => "credit",
            Kind::Debit => "debit",
            Kind::Transfer => "transfer",
        }
    }

    /// Whole units that it moves.
    pub const fn amounts(self) -> RangeInclusive<u32> {
        match self {
            Kind::Credit => 10..=500,
            Kind::Debit => 10..=200,
            Kind::Transfer => 10..=300,
        }
    }
}

/// One operation of a plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Operation {
    /// What it does.
    pub kind: Kind,
    /// The number of the wallet that it is addressed to, from 0; a transfer's sender.
    pub wallet: u32,
    /// The number of a transfer's receiver.
    pub receiver: Option<u32>,
    /// Whole units.
    pub amount: u32,
}

/// What a run does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    seed: u64,
    wallets: u32,
    distribution: Distribution,
}

impl Plan {
    /// The plan of a seed. A transfer needs two wallets, so fewer are taken as two.
    pub fn new(seed: u64, wallets: u32, distribution: Distribution) -> Self {
        Plan { seed, wallets: wallets.max(2), distribution }
    }

    /// How many wallets there are.
    pub fn wallets(&self) -> u32 {
        self.wallets
    }

    /// What a wallet is opened with, in whole units.
    pub fn opening(&self, wallet: u32) -> u32 {
        self.draws(OPENINGS_STREAM, u64::from(wallet)).within(OPENING)
    }

    /// Operation `number`, counted from 0.
    pub fn operation(&self, number: u64) -> Operation {
        let mut draws = self.draws(OPERATIONS_STREAM, number);
        let kind = match draws.below(3) {
            0 => Kind::Credit,
            1 => Kind::Debit,
            _ => Kind::Transfer,
        };
        let mut wallet = draws.below(self.wallets);
        let drawn_other = draws.below(self.wallets - 1);
        let amount = draws.within(kind.amounts());
        let hot = self.distribution == Distribution::Hot && draws.below(100) < HOT_PERCENT;
        if hot {
            wallet = 0;
        }
        // Of all wallets but `wallet`: those from it on move up by one.
        let other = if drawn_other < wallet { drawn_other } else { drawn_other + 1 };
        match kind {
            Kind::Transfer if hot && draws.below(2) == 1 => {
                Operation { kind, wallet: other, receiver: Some(wallet), amount }
            }
            Kind::Transfer => Operation { kind, wallet, receiver: Some(other), amount },
            Kind::Credit | Kind::Debit => Operation { kind, wallet, receiver: None, amount },
        }
    }

    fn draws(&self, stream: u64, block: u64) -> Draws {
        let mut key = [0; 32];
        key[..8].copy_from_slice(&self.seed.to_le_bytes());
        let mut generator = ChaCha8Rng::from_seed(key);
        generator.set_stream(stream);
        generator.set_word_pos(u128::from(block) * BLOCK_WORDS);
        Draws(generator)
    }
}

struct Draws(ChaCha8Rng);

impl Draws {
    fn below(&mut self, bound: u32) -> u32 {
        // Less than `bound`, so it fits.
        ((u128::from(self.0.next_u64()) * u128::from(bound)) >> 64) as u32
    }

    fn within(&mut self, range: RangeInclusive<u32>) -> u32 {
        range.start() + self.below(range.end() - range.start() + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNIFORM: Plan = Plan { seed: 1, wallets: 1_000, distribution: Distribution::Uniform };
    const HOT: Plan = Plan { distribution: Distribution::Hot, ..UNIFORM };

    fn operations(plan: Plan, count: u64) -> Vec<Operation> {
        (0..count).map(|number| plan.operation(number)).collect()
    }

    fn credit(wallet: u32, amount: u32) -> Operation {
        Operation { kind: Kind::Credit, wallet, receiver: None, amount }
    }

    fn debit(wallet: u32, amount: u32) -> Operation {
        Operation { kind: Kind::Debit, wallet, receiver: None, amount }
    }

    fn transfer(wallet: u32, receiver: u32, amount: u32) -> Operation {
        Operation { kind: Kind::Transfer, wallet, receiver: Some(receiver), amount }
    }

    // The golden values come from another implementation of the format above, in Python. They never change: a seed
    // noted in a report must mean the same run for ever.

    #[test]
    fn a_seed_opens_the_same_balances_for_ever() {
        let openings = |seed| {
            let plan = Plan { seed, ..UNIFORM };
            [0, 1, 2, 3, 4, 5, 999_999].map(|wallet| plan.opening(wallet))
        };
        assert_eq!(openings(0), [4_201, 1_665, 3_124, 3_310, 1_819, 3_433, 3_051]);
        assert_eq!(openings(1), [1_969, 2_082, 4_864, 414, 2_495, 3_555, 4_562]);
        assert_eq!(openings(u64::MAX), [3_551, 3_004, 2_862, 437, 3_333, 2_984, 3_143]);
    }

    #[test]
    fn a_seed_means_the_same_uniform_operations_for_ever() {
        let expected = [
            credit(817, 170),
            transfer(990, 155, 89),
            debit(349, 185),
            credit(880, 296),
            credit(381, 57),
            credit(306, 250),
            debit(268, 164),
            transfer(194, 61, 187),
        ];
        assert_eq!(operations(UNIFORM, 8), expected);
        assert_eq!(UNIFORM.operation(19_999), credit(538, 225));
        assert_eq!(UNIFORM.operation(9_999_999), debit(472, 17));
    }

    #[test]
    fn a_seed_means_the_same_hot_operations_for_ever() {
        let expected = [
            credit(0, 170),
            transfer(0, 156, 89),
            debit(349, 185),
            credit(880, 296),
            credit(381, 57),
            credit(0, 250),
            debit(0, 164),
            transfer(0, 62, 187),
        ];
        assert_eq!(operations(HOT, 8), expected);
        assert_eq!(HOT.operation(19_999), credit(0, 225));
    }

    #[test]
    fn two_wallets_and_the_last_seed_are_a_plan_like_any_other() {
        let plan = Plan::new(u64::MAX, 2, Distribution::Uniform);
        let expected = [
            credit(0, 341),
            debit(1, 142),
            transfer(0, 1, 71),
            debit(1, 65),
            credit(1, 72),
            credit(1, 350),
            transfer(1, 0, 107),
            credit(0, 356),
        ];
        assert_eq!(operations(plan, 8), expected);
    }

    #[test]
    fn amounts_kinds_and_wallets_are_drawn_from_their_whole_ranges_and_no_further() {
        let plan = Plan::new(7, 10, Distribution::Uniform);
        let drawn = operations(plan, 60_000);
        for kind in Kind::ALL {
            let of_kind: Vec<_> = drawn.iter().filter(|operation| operation.kind == kind).collect();
            assert!((19_500..20_500).contains(&of_kind.len()), "a third each: {} {kind:?}", of_kind.len());
            let amounts = of_kind.iter().map(|operation| operation.amount);
            let found = amounts.clone().min().zip(amounts.max());
            assert_eq!(found, Some((*kind.amounts().start(), *kind.amounts().end())), "{kind:?}");
            for wallet in 0..10 {
                let count = of_kind.iter().filter(|operation| operation.wallet == wallet).count();
                assert!((1_800..2_200).contains(&count), "a tenth each: {count} {kind:?} of wallet {wallet}");
            }
        }
        let openings: Vec<_> = (0..100_000).map(|wallet| plan.opening(wallet)).collect();
        assert_eq!(openings.iter().min().zip(openings.iter().max()), Some((OPENING.start(), OPENING.end())));
    }

    #[test]
    fn nobody_transfers_to_himself() {
        for distribution in [Distribution::Uniform, Distribution::Hot] {
            for operation in operations(Plan::new(3, 3, distribution), 10_000) {
                assert_ne!(Some(operation.wallet), operation.receiver);
                assert!(operation.receiver.is_none_or(|receiver| receiver < 3));
                assert_eq!(operation.receiver.is_some(), operation.kind == Kind::Transfer);
            }
        }
    }

    #[test]
    fn a_hot_run_touches_wallet_0_in_80_of_100_operations_and_drains_it_no_more_than_it_fills_it() {
        let drawn = operations(HOT, 60_000);
        let touches = |operation: &&Operation| operation.wallet == 0 || operation.receiver == Some(0);
        let hot = drawn.iter().filter(touches).count();
        assert!((47_400..48_700).contains(&hot), "{hot}");
        let (out, into) = (
            drawn.iter().filter(|operation| operation.receiver.is_some() && operation.wallet == 0).count(),
            drawn.iter().filter(|operation| operation.receiver == Some(0)).count(),
        );
        assert!((7_700..8_400).contains(&out) && (7_700..8_400).contains(&into), "{out} out, {into} in");
    }
}
