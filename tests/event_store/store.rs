//! The event store that a test runs on: the test server; or, where `WALLEX_TEST_KURRENTDB_URL` names one, a real server that others may
//! use too.
//!
//! There each test keeps to streams of its own, under a prefix that nobody else has (`--event-store-prefix`), and neither reads nor
//! writes any other. They stay behind, for a log takes nothing back; their names begin with `wallextest`. What only the test server can
//! do is left out there, and said in one line.

use std::io::Write;

use uuid::Uuid;
use wallex::kurrentdb::{KurrentConfig, KurrentLog, LogPlace, STREAM_PREFIX};
use wallex::log::EventLog;

use crate::kurrentdb_server::KurrentServer;

/// Names a server that is not the test's own.
pub const ELSEWHERE: &str = "WALLEX_TEST_KURRENTDB_URL";

/// What is done to the test server, and to no other.
const FAULTS: &str = "an append cut before it is written, an append cut after it, connections cut, the server killed and started \
                      again, slow answers";

/// How many events are looked at in one go.
const PAGE: usize = 1_000;

pub struct Store {
    /// `None`: it is somebody else's.
    pub ours: Option<KurrentServer>,
    arguments: [String; 4],
    log: KurrentLog,
    /// Where it ended when the test began.
    since: Option<LogPlace>,
}

impl Store {
    pub async fn start() -> Self {
        let elsewhere = std::env::var(ELSEWHERE).ok().filter(|address| !address.is_empty());
        let ours = elsewhere.is_none().then(KurrentServer::start);
        let own_address = ours.as_ref().map(KurrentServer::connection_string);
        let address = elsewhere.or(own_address).expect("one of the two");
        let prefix = match &ours {
            Some(_) => STREAM_PREFIX.to_owned(),
            None => format!("wallextest{}-", Uuid::now_v7().simple()),
        };
        let config = KurrentConfig::new(&address).and_then(|config| config.with_stream_prefix(&prefix));
        let log = KurrentLog::new(config.expect("a connection string"));
        if ours.is_none() {
            // Not by a macro of the tests' own: what passes is to be told this as well.
            let line =
                format!("on the server of {ELSEWHERE}, under {prefix}…; left out, for it is not ours: {FAULTS}\n");
            std::io::stderr().write_all(line.as_bytes()).expect("stderr");
        }
        let head = log.head().await.expect("an event store that answers").unsigned_abs();
        let since = (head > 0).then_some(LogPlace { commit: head, prepare: head });
        let arguments = ["--event-store", &address, "--event-store-prefix", &prefix].map(str::to_owned);
        Store { ours, arguments, log, since }
    }

    /// How `wallex` is told of it.
    pub fn arguments(&self) -> Vec<&str> {
        self.arguments.iter().map(String::as_str).collect()
    }

    /// How many events of the test's own wallets it holds.
    pub async fn wallet_events(&self) -> i64 {
        let (mut place, mut events) = (self.since, 0);
        loop {
            let page = self.log.scan(place, PAGE).await.expect("a page");
            let Some(looked_to) = page.looked_to else { return events };
            place = Some(looked_to.place);
            events += page.events.len() as i64;
        }
    }
}
