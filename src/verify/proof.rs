//! What a verification comes to.

use std::fmt::Display;

use serde::{Deserialize, Serialize};

use crate::log::Position;

/// What was compared, and whether it agrees.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Proof {
    /// Everything was compared as of this position of the log.
    pub position: Position,
    /// Whether every check is.
    pub ok: bool,
    /// What was looked at, in the order of an event's way.
    pub checks: Vec<Check>,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Check {
    /// What was looked at.
    pub name: String,
    /// Whether it is as it should be.
    pub ok: bool,
    /// What should be.
    pub expected: String,
    /// What is; of several differences the first: which wallet, at which position, what is there instead.
    pub actual: String,
}

/// A check in the making: it keeps the first difference, and counts the others.
#[derive(Debug)]
pub(super) struct Finding {
    name: &'static str,
    first: Option<(String, String)>,
    more: u64,
}

impl Finding {
    /// Nothing found yet.
    pub fn new(name: &'static str) -> Self {
        Finding { name, first: None, more: 0 }
    }

    /// Notes a difference: where, what should be there, and what is.
    pub fn differs(&mut self, place: impl Display, expected: impl Display, found: impl Display) {
        if self.first.is_some() {
            self.more += 1;
        } else {
            self.first = Some((expected.to_string(), format!("{place}: {found}")));
        }
    }

    /// Counts further differences that are known by their number alone.
    pub fn add_uncounted(&mut self, more: i64) {
        self.more += u64::try_from(more).unwrap_or(0);
    }

    /// The check, with what to say where nothing differs.
    pub fn check(self, expected: impl Display, actual: impl Display) -> Check {
        let Finding { name, first, more } = self;
        match first {
            None => {
                Check { name: name.to_owned(), ok: true, expected: expected.to_string(), actual: actual.to_string() }
            }
            Some((expected, actual)) => {
                let others = match more {
                    0 => String::new(),
                    1 => " (and one more difference)".to_owned(),
                    more => format!(" (and {more} more differences)"),
                };
                Check { name: name.to_owned(), ok: false, expected, actual: format!("{actual}{others}") }
            }
        }
    }
}

/// Where a difference is: the wallet and the position.
pub(super) fn at(wallet: impl Display, position: Position) -> String {
    format!("wallet {wallet}, position {position}")
}
