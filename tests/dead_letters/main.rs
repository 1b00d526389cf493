//! Dead letters: parked on a real PostgreSQL by real runners, and put right by real `wallex` processes.

#[path = "../process/mod.rs"]
mod process;
#[path = "../support/mod.rs"]
mod support;
#[allow(dead_code, reason = "the projections' tests use more of it")]
#[path = "../projection/world.rs"]
mod world;

mod bound;
mod copies;
mod discard;
mod foreign;
mod listing;
mod operator;
mod replay;
mod wallets;
