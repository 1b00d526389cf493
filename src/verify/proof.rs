//! What a verification comes to.

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
