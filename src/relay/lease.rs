//! The active relay's right to publish: the lock that its session holds, and how sure it may be of that.
//!
//! PostgreSQL ends a session that says nothing for [`LEASE`]. So this relay is the active one for at least that long after it
//! *sent* a statement that was answered later. It publishes only while that was less than [`TRUST`] ago; otherwise it asks
//! first, and a process that was halted meanwhile learns that its session is gone. What it has handed to the client by then is
//! given up there before the lease can have ended: `TRUST + RECORD_TIMEOUT < LEASE`.

use std::time::{Duration, Instant};

use tokio::runtime::Handle;

use crate::postgres::{LEASE, RelaySession, RelayState, sqlx};
use crate::relay::setback::Setback;

/// How long an answered statement stands for the lease.
const TRUST: Duration = Duration::from_secs(8);
/// How often the relay says what it is doing.
const HEARTBEAT: Duration = Duration::from_secs(2);
/// How long a statement may take.
const ANSWER_MAX: Duration = Duration::from_secs(10);

const _: () = assert!(TRUST.as_secs() + crate::kafka::RECORD_TIMEOUT.as_secs() < LEASE.as_secs());

/// The lease, held.
pub(super) struct Lease<'a> {
    runtime: &'a Handle,
    session: RelaySession,
    /// When the last statement that was answered had been sent.
    confirmed_at: Instant,
    said_at: Instant,
    state: RelayState,
    reason: Option<String>,
}

impl<'a> Lease<'a> {
    /// Takes the lease and says what the relay is doing with it; `None` while another relay has it.
    pub(super) fn take(
        database: &crate::postgres::Database,
        runtime: &'a Handle,
        state: RelayState,
        reason: &str,
    ) -> Result<Option<Self>, Setback> {
        let sent_at = Instant::now();
        let session = runtime.block_on(within(RelaySession::begin(database, holder())))?;
        let Some(session) = session else { return Ok(None) };
        let reason = Some(reason.to_owned());
        let mut lease = Lease { runtime, session, confirmed_at: sent_at, said_at: sent_at, state, reason };
        lease.say_again()?;
        Ok(Some(lease))
    }

    /// Asks something of the database, on the session that holds the lock.
    pub(super) fn ask<T>(
        &mut self,
        question: impl AsyncFnOnce(&mut RelaySession) -> Result<T, sqlx::Error>,
    ) -> Result<T, Setback> {
        let sent_at = Instant::now();
        let answer = self.runtime.block_on(within(question(&mut self.session)))?;
        self.confirmed_at = sent_at;
        Ok(answer)
    }

    /// Fails if the lease may have ended.
    pub(super) fn assert_held(&mut self) -> Result<(), Setback> {
        if self.confirmed_at.elapsed() < TRUST { Ok(()) } else { self.say_again() }
    }

    /// Fails if the lease has ended. A server that was started again, or an operator, may end a session early: time alone does not
    /// tell that.
    pub(super) fn confirm(&mut self) -> Result<(), Setback> {
        self.ask(async |session| session.ping().await)
    }

    /// Whether it is time to say again what the relay is doing.
    pub(super) fn is_heartbeat_due(&self) -> bool {
        self.said_at.elapsed() >= HEARTBEAT
    }

    /// What was said last.
    pub(super) fn state(&self) -> RelayState {
        self.state
    }

    /// Says what the relay is doing. The log has it where it is news.
    pub(super) fn say(&mut self, state: RelayState, reason: Option<String>) -> Result<(), Setback> {
        if state != self.state {
            tracing::info!(state = state.name(), reason, "the relay");
        }
        (self.state, self.reason) = (state, reason);
        self.say_again()
    }

    fn say_again(&mut self) -> Result<(), Setback> {
        let (state, reason) = (self.state, self.reason.take());
        let said = self.ask(async |session| session.say(state, reason.as_deref()).await);
        self.reason = reason;
        self.said_at = Instant::now();
        said
    }

    /// Gives it up.
    pub(super) fn end(self) {
        // Where the database does not answer, the lease ends by itself.
        let _ = self.runtime.block_on(async { tokio::time::timeout(ANSWER_MAX, self.session.end()).await });
    }
}

/// The answer, unless it takes too long.
async fn within<T>(answer: impl Future<Output = Result<T, sqlx::Error>>) -> Result<T, Setback> {
    match tokio::time::timeout(ANSWER_MAX, answer).await {
        Ok(answer) => answer.map_err(|error| Setback::from(format!("the database: {error}"))),
        Err(_) => Err(Setback::from(format!("the database does not answer for {} s", ANSWER_MAX.as_secs()))),
    }
}

/// This process, for people.
fn holder() -> String {
    let host = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok());
    format!("process {} on {}", std::process::id(), host.as_deref().unwrap_or("this machine"))
}
