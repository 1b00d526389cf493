//! The HTTP contract over real sockets: the server runs in the test's own process.

mod bad_input;
mod bad_paths;
mod commands;
mod health;
mod idempotency;
mod ledger;
mod limits;
#[path = "../support/mod.rs"]
mod postgres;
mod shutdown;
mod support;
mod wallets;
