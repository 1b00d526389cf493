//! wallex: an event-sourced wallet that proves where every cent went.
//!
//! This crate is what the program `wallex` is made of. A [`Wallex`] in a process of one's own takes commands, publishes
//! their events to Kafka and keeps the ledger and the read model; with nothing configured it runs a PostgreSQL (the machine's
//! own binaries, a private cluster, durable) and a Kafka broker (in memory) by itself.
//!
//! ```no_run
//! use std::time::Duration;
//! use wallex::{Amount, Command, Config, Currency, OwnerId, Wallex, WalletId};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let wallex = Wallex::open(Config::embedded("/var/tmp/my-wallets")).await?;
//! let (alice, bob) = (WalletId::new("alice")?, WalletId::new("bob")?);
//! let opening = Amount::parse("100", Currency::USD)?;
//! wallex.execute(Command::create(alice.clone(), OwnerId::new("owner-1")?, Currency::USD, opening)).await?;
//! wallex.execute(Command::create(bob.clone(), OwnerId::new("owner-2")?, Currency::USD, Amount::ZERO)).await?;
//!
//! let answer = wallex.execute(Command::transfer(alice, bob, "12.34")).await?; // durable once it is answered
//! wallex.projected(answer.position, Duration::from_secs(10)).await?; // and now in ledger and read model
//! assert!(wallex.verify().await?.ok);
//! wallex.close().await;
//! # Ok(())
//! # }
//! ```
//!
//! # What a caller does
//! - **Execute**: [`Wallex::execute`] a [`Command`], or [`Wallex::request`] a [`Request`] with an idempotency key. The
//!   [`Answer`] is the state that the command made, and durable; a [`CommandError`] says whether anything may have happened.
//! - **Read**: [`Wallex::wallet`] reads the log, so it is never older than an answer. Tables of projections follow it;
//!   [`Wallex::projected`] waits for them.
//! - **Consume**: implement [`Projection`] and hand it to [`Wallex::run_projection`]. It gets an [`EventRecord`] for each
//!   event: wallet, position, revision, time and metadata beside the event itself.
//! - **Run parts elsewhere**: [`Parts`] says which of write path, relay and projections this process runs;
//!   [`Wallex::attach`] runs some beside a `wallex serve`.
//!
//! # What each consumer can rely on
//! | consumer | gets each event | in order | deduplicates by |
//! | --- | --- | --- | --- |
//! | a [`Projection`], for the rows it writes with the connection it is given | once in effect | per wallet, by revision, without a gap | nothing: the runner has done it |
//! | a [`Projection`], for anything outside that transaction (a mail, a call) | at least once | per wallet | [`EventRecord::position`]; better, write a row and send from there |
//! | any Kafka client on [`kafka::EVENTS_TOPIC`] | at least once | per wallet, as positions grow within a partition | the header `position` |
//! | a reader of [`log::EventLog`] | as often as it asks | the whole log, by position, without a gap | the position it has come to |
//!
//! An event has one position for ever, so "already seen" is "position not above the last one of this partition".
//!
//! # The rooms
//! [`money`] and [`wallet`] decide and know no I/O; [`log`] is the one order of events, [`sequencer`] the way into it (with events in
//! an event store of its own: [`kurrentdb`] the log, [`lanes`] the way into it, [`lease`] what several servers may queue by there,
//! [`ingest`] from there to here); [`relay`]
//! and [`projection`] lead out of it; [`dlq`] puts right what went wrong there; [`lag`] and [`verify`] look at all of them;
//! [`runtime`] puts them together. `examples/` has an embedded wallet, a projection of one's own and notifications.

pub mod cli;
mod crash_point;
pub mod dlq;
pub mod embedded;
mod hex;
pub mod http;
pub mod ingest;
pub mod kafka;
pub mod kurrentdb;
pub mod lag;
pub mod lanes;
pub mod lease;
pub mod loadtest;
pub mod log;
pub mod money;
pub mod postgres;
pub mod projection;
mod recently;
pub mod relay;
pub mod runtime;
pub mod sequencer;
pub mod verify;
pub mod wallet;

pub use kafka::EventRecord;
pub use log::Position;
pub use money::{Amount, Currency};
pub use projection::{ApplyError, Projection};
pub use runtime::{Config, Parts, Wallex};
pub use sequencer::{Answer, CommandError, Request};
pub use wallet::{Command, Description, OwnerId, WalletEvent, WalletId};
