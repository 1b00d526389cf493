//! The wallet aggregate: decide, then apply.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use uuid::Uuid;

use crate::money::{Amount, Currency, MoneyError};
use crate::wallet::{Corrupt, Description, OwnerId, Transfer, WalletEvent, WalletId};

/// A wallet's state: the fold of its events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wallet {
    /// Its name.
    pub id: WalletId,
    /// Whose it is.
    pub owner_id: OwnerId,
    /// What it holds.
    pub currency: Currency,
    /// How much, in minor units.
    pub balance: Amount,
    /// Whether it may be used.
    pub status: WalletStatus,
    /// The zero-based revision of the last event applied.
    pub version: i64,
    /// When it was created.
    pub created_at: DateTime<Utc>,
    /// When its last event happened.
    pub updated_at: DateTime<Utc>,
}

/// Whether a wallet may be used. There is one state today; the contract shows it, so clients know the field.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum WalletStatus {
    /// In use.
    #[default]
    Active,
}

impl WalletStatus {
    /// As the contract writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            WalletStatus::Active => "ACTIVE",
        }
    }
}

/// An answer of no: the command broke a rule, and nothing was changed. Not a failure of ours.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Rejection {
    /// The amount is not one that the wallet can take.
    #[error("{0}")]
    InvalidAmount(MoneyError),
    /// Zero.
    #[error("amount must be greater than zero")]
    ZeroAmount,
    /// The receiver's balance would pass [`Amount::MAX`].
    #[error("amount would bring wallet {wallet_id} over the {max} {currency} that a wallet can hold")]
    BalanceTooLarge {
        /// The wallet that would receive.
        wallet_id: WalletId,
        /// The most that fits, in major units.
        max: String,
        /// The wallet's currency.
        currency: Currency,
    },
    /// The payer has less than that.
    #[error("wallet {wallet_id} has {balance} {currency}, less than the {amount} {currency} asked for")]
    InsufficientFunds {
        /// The wallet that would pay.
        wallet_id: WalletId,
        /// What it has, in major units.
        balance: String,
        /// What was asked for, in major units.
        amount: String,
        /// The wallet's currency.
        currency: Currency,
    },
    /// No wallet of that name.
    #[error("wallet {0} does not exist; create it first, or check its id")]
    WalletNotFound(WalletId),
    /// A wallet of that name is there already.
    #[error("wallet {0} exists already")]
    WalletExists(WalletId),
    /// A transfer from a wallet to itself.
    #[error("toWalletId must be another wallet than the one that pays")]
    TransferToSelf,
    /// A transfer between currencies.
    #[error("wallet {to_wallet_id} holds {to}, not {from}: a transfer stays within one currency")]
    CurrencyMismatch {
        /// The wallet that would receive.
        to_wallet_id: WalletId,
        /// The payer's currency.
        from: Currency,
        /// The receiver's currency.
        to: Currency,
    },
}

impl Rejection {
    /// The stable code of the HTTP contract.
    pub fn code(&self) -> &'static str {
        match self {
            Rejection::InvalidAmount(_) | Rejection::ZeroAmount | Rejection::BalanceTooLarge { .. } => "INVALID_AMOUNT",
            Rejection::InsufficientFunds { .. } => "INSUFFICIENT_FUNDS",
            Rejection::WalletNotFound(_) => "WALLET_NOT_FOUND",
            Rejection::WalletExists(_) => "WALLET_EXISTS",
            Rejection::TransferToSelf | Rejection::CurrencyMismatch { .. } => "VALIDATION",
        }
    }
}

impl Wallet {
    /// The state that a first event makes.
    ///
    /// # Errors
    /// [`Corrupt`] where the first event is not [`WalletEvent::WalletCreated`].
    pub fn begin(id: WalletId, event: &WalletEvent, at: DateTime<Utc>) -> Result<Self, Corrupt> {
        match event {
            WalletEvent::WalletCreated { owner_id, currency } => Ok(Wallet {
                id,
                owner_id: owner_id.clone(),
                currency: *currency,
                balance: Amount::ZERO,
                status: WalletStatus::Active,
                version: 0,
                created_at: at,
                updated_at: at,
            }),
            other => Err(Corrupt {
                wallet_id: id,
                revision: 0,
                reason: format!("it begins with {} instead of WalletCreated", other.event_type()),
            }),
        }
    }

    /// Folds the next event in. The balance is computed from the amount and compared with the one that the
    /// event carries: the two must agree.
    ///
    /// # Errors
    /// [`Corrupt`] where the event cannot follow this state; the state is unchanged.
    pub fn apply(&mut self, event: &WalletEvent, at: DateTime<Utc>) -> Result<(), Corrupt> {
        let corrupt = |reason: String| Corrupt { wallet_id: self.id.clone(), revision: self.version + 1, reason };
        let computed = match event {
            WalletEvent::WalletCreated { .. } => return Err(corrupt("it is created a second time".to_owned())),
            WalletEvent::WalletCredited { amount, .. } => self.balance.checked_add(*amount),
            WalletEvent::WalletDebited { amount, .. } => self.balance.checked_sub(*amount),
        };
        if event.currency() != self.currency {
            return Err(corrupt(format!("an event in {} on a wallet of {}", event.currency(), self.currency)));
        }
        match computed {
            Some(balance) if balance == event.balance() => {
                self.balance = balance;
                self.version += 1;
                self.updated_at = at;
                Ok(())
            }
            computed => Err(corrupt(format!(
                "the event says a balance of {}, its amount makes it {}",
                event.balance().to_text(self.currency),
                computed.map_or("impossible".to_owned(), |balance| balance.to_text(self.currency)),
            ))),
        }
    }

    /// Folds a whole history, oldest first; `None` if there is none.
    ///
    /// # Errors
    /// [`Corrupt`] at the first event that cannot follow the ones before it.
    pub fn fold<'a>(
        id: &WalletId,
        history: impl IntoIterator<Item = (&'a WalletEvent, DateTime<Utc>)>,
    ) -> Result<Option<Self>, Corrupt> {
        let mut history = history.into_iter();
        let Some((first, at)) = history.next() else {
            return Ok(None);
        };
        let mut wallet = Wallet::begin(id.clone(), first, at)?;
        for (event, at) in history {
            wallet.apply(event, at)?;
        }
        Ok(Some(wallet))
    }

    fn credited(
        &self,
        amount: Amount,
        description: Option<Description>,
        transfer: Option<Transfer>,
    ) -> Result<WalletEvent, Rejection> {
        let balance = self.balance.checked_add(amount).ok_or_else(|| Rejection::BalanceTooLarge {
            wallet_id: self.id.clone(),
            max: Amount::MAX.to_text(self.currency),
            currency: self.currency,
        })?;
        Ok(WalletEvent::WalletCredited { amount, balance, currency: self.currency, description, transfer })
    }

    fn debited(
        &self,
        amount: Amount,
        description: Option<Description>,
        transfer: Option<Transfer>,
    ) -> Result<WalletEvent, Rejection> {
        let balance = self.balance.checked_sub(amount).ok_or_else(|| Rejection::InsufficientFunds {
            wallet_id: self.id.clone(),
            balance: self.balance.to_text(self.currency),
            amount: amount.to_text(self.currency),
            currency: self.currency,
        })?;
        Ok(WalletEvent::WalletDebited { amount, balance, currency: self.currency, description, transfer })
    }

    fn positive_amount(&self, text: &str) -> Result<Amount, Rejection> {
        let amount = Amount::parse(text, self.currency).map_err(Rejection::InvalidAmount)?;
        if amount.is_zero() { Err(Rejection::ZeroAmount) } else { Ok(amount) }
    }
}

/// Decides the creation of a wallet: one event if it opens empty, else a second one that credits the opening balance.
///
/// # Errors
/// [`Rejection::WalletExists`] where `existing` is a wallet.
pub fn open(
    existing: Option<&Wallet>,
    wallet_id: &WalletId,
    owner_id: &OwnerId,
    currency: Currency,
    initial_balance: Amount,
) -> Result<Vec<WalletEvent>, Rejection> {
    if existing.is_some() {
        return Err(Rejection::WalletExists(wallet_id.clone()));
    }
    let mut events = vec![WalletEvent::WalletCreated { owner_id: owner_id.clone(), currency }];
    if !initial_balance.is_zero() {
        events.push(WalletEvent::WalletCredited {
            amount: initial_balance,
            balance: initial_balance,
            currency,
            description: Description::new("Initial balance").ok(),
            transfer: None,
        });
    }
    Ok(events)
}

/// Decides a credit of `amount` (decimal text, major units).
///
/// # Errors
/// [`Rejection`] where the wallet is not there or the amount is not one that it can take.
pub fn credit(
    wallet: Option<&Wallet>,
    wallet_id: &WalletId,
    amount: &str,
    description: Option<&Description>,
) -> Result<WalletEvent, Rejection> {
    let wallet = wallet.ok_or_else(|| Rejection::WalletNotFound(wallet_id.clone()))?;
    wallet.credited(wallet.positive_amount(amount)?, description.cloned(), None)
}

/// Decides a debit of `amount` (decimal text, major units).
///
/// # Errors
/// [`Rejection`] where the wallet is not there, the amount is wrong, or the funds are not there.
pub fn debit(
    wallet: Option<&Wallet>,
    wallet_id: &WalletId,
    amount: &str,
    description: Option<&Description>,
) -> Result<WalletEvent, Rejection> {
    let wallet = wallet.ok_or_else(|| Rejection::WalletNotFound(wallet_id.clone()))?;
    wallet.debited(wallet.positive_amount(amount)?, description.cloned(), None)
}

/// A transfer's two ends, by name and by state.
#[derive(Clone, Copy)]
pub struct Ends<'a> {
    /// The payer's name.
    pub from_id: &'a WalletId,
    /// The payer, if there is one.
    pub from: Option<&'a Wallet>,
    /// The receiver's name.
    pub to_id: &'a WalletId,
    /// The receiver, if there is one.
    pub to: Option<&'a Wallet>,
}

/// Decides a transfer of `amount` (decimal text, major units): the payer's debit and the receiver's credit, or neither.
///
/// # Errors
/// [`Rejection`] where either wallet is not there, they are the same or differ in currency, the amount is wrong, the
/// payer's funds are not there, or the receiver cannot hold it.
pub fn transfer(
    ends: Ends<'_>,
    transfer_id: Uuid,
    amount: &str,
    description: Option<&Description>,
) -> Result<(WalletEvent, WalletEvent), Rejection> {
    if ends.from_id == ends.to_id {
        return Err(Rejection::TransferToSelf);
    }
    let from = ends.from.ok_or_else(|| Rejection::WalletNotFound(ends.from_id.clone()))?;
    let to = ends.to.ok_or_else(|| Rejection::WalletNotFound(ends.to_id.clone()))?;
    let amount = from.positive_amount(amount)?;
    if from.currency != to.currency {
        return Err(Rejection::CurrencyMismatch { to_wallet_id: to.id.clone(), from: from.currency, to: to.currency });
    }
    let leg = |counterparty: &WalletId| Some(Transfer { id: transfer_id, counterparty: counterparty.clone() });
    let debit = from.debited(amount, description.cloned(), leg(&to.id))?;
    let credit = to.credited(amount, description.cloned(), leg(&from.id))?;
    Ok((debit, credit))
}

/// Decides the receiving leg of a transfer whose paying leg stands: it takes the amount, whatever it may have been decided on.
///
/// # Errors
/// [`Rejection::BalanceTooLarge`] where the wallet cannot hold it.
pub fn receive(
    wallet: &Wallet,
    amount: Amount,
    description: Option<&Description>,
    transfer: Transfer,
) -> Result<WalletEvent, Rejection> {
    wallet.credited(amount, description.cloned(), Some(transfer))
}

/// Decides the paying leg by which a receiver sends back what it could not hold of transfer `returned`.
///
/// # Errors
/// [`Rejection::InsufficientFunds`] where it has less.
pub fn send_back(
    wallet: &Wallet,
    amount: Amount,
    returned: Uuid,
    transfer: Transfer,
) -> Result<WalletEvent, Rejection> {
    wallet.debited(amount, Description::new(format!("Return of transfer {returned}")).ok(), Some(transfer))
}
