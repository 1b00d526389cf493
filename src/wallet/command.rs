//! What a caller may ask for. Everything in a command is already checked, except what only the wallet's
//! own state can tell: whether it exists, its currency, its funds.

use crate::money::{Amount, Currency};
use crate::wallet::{Description, OwnerId, WalletId};

/// A request to change one wallet, or to move money between two.
///
/// Amounts of credit, debit and transfer are decimal text until the wallet's currency is known, because
/// only the currency says how many decimals are right; see [`Amount::parse`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Make a new wallet.
    Create {
        /// Its name.
        wallet_id: WalletId,
        /// Whose it is.
        owner_id: OwnerId,
        /// What it holds.
        currency: Currency,
        /// What it opens with, in minor units of `currency`; zero opens it empty.
        initial_balance: Amount,
    },
    /// Bring money in from outside.
    Credit {
        /// Who receives.
        wallet_id: WalletId,
        /// How much, as decimal text in major units of the wallet's currency.
        amount: String,
        /// What for.
        description: Option<Description>,
    },
    /// Pay money out.
    Debit {
        /// Who pays.
        wallet_id: WalletId,
        /// How much, as decimal text in major units of the wallet's currency.
        amount: String,
        /// What for.
        description: Option<Description>,
    },
    /// Move money from one wallet to another of the same currency: both legs or neither.
    Transfer {
        /// Who pays.
        wallet_id: WalletId,
        /// Who receives.
        to_wallet_id: WalletId,
        /// How much, as decimal text in major units of the wallets' currency.
        amount: String,
        /// What for.
        description: Option<Description>,
    },
}

impl Command {
    /// Every [`Command::kind`].
    pub const KINDS: [&'static str; 4] = ["create", "credit", "debit", "transfer"];

    /// The kind of this name, as one of [`Command::KINDS`].
    pub(crate) fn kind_of(name: &str) -> Option<&'static str> {
        Self::KINDS.into_iter().find(|kind| *kind == name)
    }

    /// Makes a new wallet that opens with `initial_balance`.
    pub fn create(wallet_id: WalletId, owner_id: OwnerId, currency: Currency, initial_balance: Amount) -> Self {
        Command::Create { wallet_id, owner_id, currency, initial_balance }
    }

    /// Brings `amount` (decimal text, major units) in from outside.
    pub fn credit(wallet_id: WalletId, amount: impl Into<String>) -> Self {
        Command::Credit { wallet_id, amount: amount.into(), description: None }
    }

    /// Pays `amount` (decimal text, major units) out.
    pub fn debit(wallet_id: WalletId, amount: impl Into<String>) -> Self {
        Command::Debit { wallet_id, amount: amount.into(), description: None }
    }

    /// Moves `amount` (decimal text, major units) from `wallet_id` to `to_wallet_id`.
    pub fn transfer(wallet_id: WalletId, to_wallet_id: WalletId, amount: impl Into<String>) -> Self {
        Command::Transfer { wallet_id, to_wallet_id, amount: amount.into(), description: None }
    }

    /// The wallet that the command is addressed to; of a transfer, the one that pays.
    pub fn wallet_id(&self) -> &WalletId {
        match self {
            Command::Create { wallet_id, .. }
            | Command::Credit { wallet_id, .. }
            | Command::Debit { wallet_id, .. }
            | Command::Transfer { wallet_id, .. } => wallet_id,
        }
    }

    /// The second wallet that the command touches: a transfer's receiver.
    pub fn counterparty(&self) -> Option<&WalletId> {
        match self {
            Command::Transfer { to_wallet_id, .. } => Some(to_wallet_id),
            _ => None,
        }
    }

    /// All wallets that the command touches, the one that it is addressed to first.
    pub fn wallet_ids(&self) -> impl Iterator<Item = &WalletId> {
        std::iter::once(self.wallet_id()).chain(self.counterparty())
    }

    /// The kind of command in one lower-case word, as the routes and the idempotency keys name it.
    pub fn kind(&self) -> &'static str {
        match self {
            Command::Create { .. } => "create",
            Command::Credit { .. } => "credit",
            Command::Debit { .. } => "debit",
            Command::Transfer { .. } => "transfer",
        }
    }
}
