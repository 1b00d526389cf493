//! The embedded default: everything `wallex serve` needs when nothing is configured.
//!
//! A wallet wants a database and a broker. With neither `WALLEX_DATABASE_URL` nor `WALLEX_KAFKA_BROKERS` set, `serve`
//! brings its own, below one *data directory*:
//!
//! - [`DataDir`] owns that directory: where it is, that only one `serve` uses it at a time, and how other commands find
//!   the one that does.
//! - [`ManagedPostgres`] runs the machine's own PostgreSQL binaries on a private cluster in it, with `fsync` on,
//!   reachable through a Unix socket only, and gone when we are.
//! - [`EmbeddedBroker`] is librdkafka's mock cluster: the real Kafka protocol on a loopback port, but **volatile**.
//!   What that means for whoever publishes and consumes is written down in the [`broker`] module.
//!
//! ```no_run
//! use wallex::embedded::{DataDir, EmbeddedBroker, ManagedPostgres};
//!
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! let data_dir = DataDir::acquire(&DataDir::resolve(None)?)?;
//! let postgres = ManagedPostgres::start(data_dir.path()).await?;
//! let broker = EmbeddedBroker::start(&[("wallet-events", 10), ("wallet-events-dlq", 5)])?;
//! println!("{} {}", postgres.url(), broker.bootstrap_servers());
//! postgres.stop().await;
//! # Ok(())
//! # }
//! ```

pub mod broker;
mod data_dir;
mod postgres;

pub use broker::{BrokerError, EmbeddedBroker};
pub use data_dir::{DataDir, DataDirError, ServeInfo};
pub use postgres::{ManagedPostgres, PostgresError, PostgresSearch, ServerState};
