//! Events in KurrentDB, or EventStoreDB as it was called: streams `wallet-<walletId>` over its first gRPC protocol. The only room
//! that names crate `eventstore`. Reachable by
//! [`Config::event_store`](crate::runtime::Config::event_store) and `wallex serve --event-store`.
//!
//! [`KurrentLog`] is an event log of [`Atomicity::Stream`](crate::log::Atomicity::Stream): one append writes one stream, on
//! the condition that the stream ends where the writer saw it end. What a server and its client were seen to do decides how:
//!
//! - **Only `NoStream` and an exact revision.** With `Any` a server that has restarted writes a retry again.
//! - **The same bytes again settle an unknown outcome**: the server finds the events at their places and answers as it did the
//!   first time. It compares the places only. An event's id must therefore never be used at another revision; [`event_id`]
//!   makes it from the command *and* the revision.
//! - **Appends go through one long call** (`batch_append`): many at once are much faster so than by calls of their own. And Nagle's
//!   algorithm is turned off on the client's connections (`hurry`), or each call, reads as well, would wait some 45 ms in a
//!   lone caller's hands.
//! - **One refused append ends that long call**, with every append in it: the client closes the call on the first error. The
//!   others learn that it was closed and send the same bytes again through a new one. So a stream at which that happened is
//!   appended to by calls of their own for a quarter of a second: nobody else is held up by it, and who has lost there has his
//!   next turn as soon as who has won.
//! - **A client whose first contact failed is dead for ever**, so a client counts as one only after it has spoken to the server,
//!   and a new one is made, with growing pauses, whenever it has not or one has failed twice in a row.
//! - **A connection that is silent is given up** after five seconds, client and all: its other end may be gone without a word.
//! - **Every call asks for the leader.** A follower may be behind; what it reads could be older than an answer already given.
//!   A client that is told by its append call that another node leads does not go there; one that is told by a read does. So each
//!   new client begins with a read.
//!
//! # Events of the earlier system
//! They lie in the same streams. Whoever reads a stream gets them in our terms ([`upcast`](crate::wallet::upcast)), and where a
//! read begins in the midst of them the ones before are read too (`earlier`). [`KurrentLog::scan`] hands them out as they are
//! stored, under [`EARLIER_SYSTEM_VERSION`](crate::wallet::EARLIER_SYSTEM_VERSION): the copy, for which it is, has what lies before.
//!
//! # No subscriptions
//! The log as a whole is read page by page ([`KurrentLog::scan`]), woken by whoever has appended. The client's subscriptions are not
//! used: one that the server or a gateway ends with status OK spins a core for ever, and nothing short of ending the process
//! stops it; a call that is dropped half-way silently subscribes again; and checkpoints may be no positions. A page has none
//! of that: it ends, it can be given up, and the next one begins at the last event that was seen. It costs that streams of
//! others are read too, and passed over here.

mod certificates;
mod connection;
mod earlier;
mod event;
mod hurry;
mod log;
mod scan;

use std::sync::Arc;

use eventstore::ClientSettings;
use thiserror::Error;

use crate::wallet::WalletId;

pub use event::event_id;
pub use log::KurrentLog;
pub(crate) use scan::Looked;
pub use scan::{LogPlace, Mark, Scanned};

/// What a wallet's stream is called before its id, where nothing else is said.
pub const STREAM_PREFIX: &str = "wallet-";
/// The longest beginning of a stream's name, in bytes.
const STREAM_PREFIX_BYTES_MAX: usize = 64;

/// Where a KurrentDB is, and what its streams are called.
#[derive(Clone)]
pub struct KurrentConfig {
    settings: ClientSettings,
    connection_string: Arc<str>,
    masked: Arc<str>,
    stream_prefix: Arc<str>,
}

impl std::fmt::Debug for KurrentConfig {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The settings hold the password.
        write!(formatter, "KurrentConfig({})", self.masked)
    }
}

/// Why a connection string is none.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum KurrentConfigError {
    /// It cannot be read.
    #[error(
        "the event store's address cannot be read ({0}); it should look like esdb://user:password@host:2113?tls=true"
    )]
    ConnectionString(String),
    /// No beginning of a stream's name.
    #[error(
        "the prefix of the wallets' streams must be 1 to 64 characters of A-Z a-z 0-9 . _ : - and begin with a letter or a digit, such \
         as wallet- or staging-wallet-"
    )]
    StreamPrefix,
    /// A certificate or key that it names cannot be used.
    #[error("{option} names {path}, which cannot be used: {reason}")]
    File {
        /// The option.
        option: &'static str,
        /// What it names.
        path: String,
        /// Why it cannot be used.
        reason: String,
    },
    /// The authorities that this system trusts cannot be read. The client reads them unless `tlsCAFile` names others.
    #[error(
        "the certificates that this system trusts cannot be read ({0}); mend that, or name a file of them with tlsCAFile"
    )]
    SystemCertificates(String),
}

impl KurrentConfig {
    /// Reads a connection string; every option of the client's is passed on to it.
    ///
    /// # Errors
    /// [`KurrentConfigError`] where it is none, or certificates that it names, or those of the system, cannot be used.
    pub fn new(connection_string: &str) -> Result<Self, KurrentConfigError> {
        let settings: ClientSettings =
            connection_string.parse().map_err(|error: eventstore::ClientSettingsParseError| {
                // The message may hold the whole string, with its password.
                let what = error.error().map_or_else(|| error.message().to_owned(), ToString::to_string);
                let shown = if what.contains("://") { "it is no URL".to_owned() } else { what };
                KurrentConfigError::ConnectionString(shown)
            })?;
        certificates::check(&settings)?;
        let masked = crate::postgres::masked(connection_string).into();
        let connection_string = connection_string.into();
        Ok(KurrentConfig { settings, connection_string, masked, stream_prefix: STREAM_PREFIX.into() })
    }

    /// The same, with another beginning of the streams' names than [`STREAM_PREFIX`]. It keeps apart what shares a server: of two
    /// wallexes there, neither prefix may begin with the other. To 64 bytes of `A-Z a-z 0-9 . _ : -`, the first a letter or a digit.
    ///
    /// # Errors
    /// [`KurrentConfigError::StreamPrefix`] where it is none.
    pub fn with_stream_prefix(self, prefix: &str) -> Result<Self, KurrentConfigError> {
        // As strict as a wallet's id is: never the name of a system's stream, which begins with $.
        let is_one = prefix.len() <= STREAM_PREFIX_BYTES_MAX && WalletId::new(prefix).is_ok();
        if !is_one {
            return Err(KurrentConfigError::StreamPrefix);
        }
        Ok(KurrentConfig { stream_prefix: prefix.into(), ..self })
    }

    /// What the wallets' streams are called before the wallet's id.
    pub fn stream_prefix(&self) -> &str {
        &self.stream_prefix
    }

    /// What it was read from. May hold a password: never print it unmasked.
    pub(crate) fn connection_string(&self) -> &str {
        &self.connection_string
    }

    /// The connection string with its password masked, to show.
    pub fn masked(&self) -> &str {
        &self.masked
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_string_is_read_and_its_password_never_shown() {
        let config = KurrentConfig::new("esdb://admin:changeit@node1:2113,node2:2113?tls=true&keepAliveInterval=15000");
        let config = config.expect("a connection string");
        let shown = format!("{config:?} {}", config.masked());
        assert!(!shown.contains("changeit") && shown.contains("node1:2113,node2:2113"), "{shown}");
        for wrong in [
            "postgres://u:changeit@h/d",
            "esdb://u:changeit@host:port?tls=false",
            "esdb://u:changeit@h?tls=perhaps",
            "",
        ] {
            let error = KurrentConfig::new(wrong).expect_err(wrong).to_string();
            assert!(!error.contains("changeit") && error.contains("esdb://user"), "{error}");
        }
    }

    #[test]
    fn a_prefix_of_streams_is_a_plain_word_within_bounds() {
        let config = || KurrentConfig::new("esdb://host?tls=false").expect("a connection string");
        assert_eq!(config().stream_prefix(), "wallet-");
        let prefixed = config().with_stream_prefix("staging-wallet-").expect("a prefix");
        assert_eq!(prefixed.stream_prefix(), "staging-wallet-");
        for wrong in ["", "$wallet-", "-", "wallet id-", "wället-", &"w".repeat(65)] {
            let error = config().with_stream_prefix(wrong).expect_err(wrong);
            assert_eq!(error, KurrentConfigError::StreamPrefix);
        }
    }

    #[test]
    fn a_missing_certificate_is_named() {
        let error = KurrentConfig::new("esdb://host?tlsCAFile=/nowhere/ca.pem").expect_err("no such file");
        assert!(error.to_string().starts_with("tlsCAFile names /nowhere/ca.pem"), "{error}");
    }
}
