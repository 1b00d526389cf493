//! Named places in the code at which a test can have its process killed, just as `kill -9` would there.
//!
//! `WALLEX_CRASH_AT=NAME` or `NAME:N` kills the process that passes the place for the first or the Nth time. Development
//! builds alone look at it; in a release build nothing is left of this.

use std::str::FromStr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const VARIABLE: &str = "WALLEX_CRASH_AT";

/// A place where it hurts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CrashPoint {
    /// The relay is about to hand a record to the producer.
    BeforeSend,
    /// It has, and does not know yet whether the broker has the record.
    AfterSend,
    /// The broker has acknowledged records, and the relay's checkpoint does not say so yet.
    BeforeCheckpoint,
    /// A projection's rows and checkpoints are written and not committed.
    InTransaction,
    /// A member of a group has been given partitions and does not read them yet.
    Assigned,
    /// A member of a group is told to let go of partitions and still has them.
    Revoked,
    /// Events of a replay are applied and let go, and that is not committed.
    InReplay,
    /// The paying leg of a transfer is durable in the event store, and the receiving one is not sent yet.
    BetweenLegs,
}

impl CrashPoint {
    const ALL: [CrashPoint; 8] = [
        CrashPoint::BeforeSend,
        CrashPoint::AfterSend,
        CrashPoint::BeforeCheckpoint,
        CrashPoint::InTransaction,
        CrashPoint::Assigned,
        CrashPoint::Revoked,
        CrashPoint::InReplay,
        CrashPoint::BetweenLegs,
    ];

    fn name(self) -> &'static str {
        match self {
            CrashPoint::BeforeSend => "before-send",
            CrashPoint::AfterSend => "after-send",
            CrashPoint::BeforeCheckpoint => "before-checkpoint",
            CrashPoint::InTransaction => "in-transaction",
            CrashPoint::Assigned => "assigned",
            CrashPoint::Revoked => "revoked",
            CrashPoint::InReplay => "in-replay",
            CrashPoint::BetweenLegs => "between-legs",
        }
    }

    /// The process is here. It goes on, unless a test wants it to end here.
    pub(crate) fn pass(self) {
        static ARMED: OnceLock<Option<Armed>> = OnceLock::new();
        if cfg!(debug_assertions)
            && let Some(armed) = ARMED.get_or_init(Armed::from_environment)
            && armed.is_due(self)
        {
            end();
        }
    }
}

/// What a test asks for.
#[derive(Debug)]
struct Armed {
    point: CrashPoint,
    /// How often it may still be passed, the last time included.
    passes: AtomicU64,
}

impl Armed {
    fn from_environment() -> Option<Armed> {
        let text = std::env::var(VARIABLE).ok()?;
        match text.parse() {
            Ok(armed) => Some(armed),
            Err(reason) => {
                // A misspelt place would never be reached, and its test would show nothing.
                tracing::error!(reason, "{VARIABLE}={text} names no place to crash at");
                std::process::abort()
            }
        }
    }

    fn is_due(&self, point: CrashPoint) -> bool {
        point == self.point && self.passes.fetch_sub(1, Ordering::Relaxed) == 1
    }
}

impl FromStr for Armed {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, passes) = text.split_once(':').unwrap_or((text, "1"));
        let point = CrashPoint::ALL.into_iter().find(|point| point.name() == name);
        let passes: u64 = passes.parse().map_err(|_| format!("{passes:?} is no number of passes"))?;
        match point {
            Some(point) if passes > 0 => Ok(Armed { point, passes: AtomicU64::new(passes) }),
            Some(_) => Err("it is passed once at least".to_owned()),
            None => Err(format!("one of {}", CrashPoint::ALL.map(CrashPoint::name).join(", "))),
        }
    }
}

fn end() -> ! {
    // The signal cannot be refused; whatever this call answers, nothing may run after it.
    let _ = kill(Pid::this(), Signal::SIGKILL);
    loop {
        std::thread::park();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_named_with_the_pass_that_counts() {
        let armed: Armed = "after-send:3".parse().expect("a place");
        assert!(!armed.is_due(CrashPoint::BeforeSend));
        let due: Vec<bool> = (0..5).map(|_| armed.is_due(CrashPoint::AfterSend)).collect();
        assert_eq!(due, [false, false, true, false, false]);
        let first: Armed = "revoked".parse().expect("a place");
        assert!(first.is_due(CrashPoint::Revoked));
    }

    #[test]
    fn a_place_that_does_not_exist_is_not_taken_for_one() {
        assert!("somewhere".parse::<Armed>().expect_err("no place").contains("before-send"));
        for text in ["assigned:0", "assigned:many", "assigned:"] {
            assert!(text.parse::<Armed>().is_err(), "{text}");
        }
    }
}
