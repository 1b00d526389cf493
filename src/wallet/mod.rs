//! The domain: what a wallet is, what may be asked of it, and what follows.
//!
//! Pure on purpose: [`decide`](Wallet) functions take a state and a command and return events or a refusal;
//! [`Wallet::apply`] folds an event into a state; [`upcast`] brings what the system before wallex wrote into our terms. No clock, no
//! randomness, no I/O: times and ids are handed in.

mod aggregate;
mod command;
mod earlier;
mod event;
mod identifier;

pub use aggregate::{Ends, Rejection, Wallet, WalletStatus, credit, debit, open, receive, send_back, transfer};
pub use command::Command;
pub use earlier::{Before, EARLIER_SYSTEM_CURRENCY, EARLIER_SYSTEM_VERSION, EarlierError, upcast};
pub use event::{Corrupt, EVENT_VERSION, EventError, Transfer, WalletEvent};
pub use identifier::{Description, IdentifierError, OwnerId, WalletId};
