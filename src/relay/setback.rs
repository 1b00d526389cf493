//! What ends a session, other than a stop.

use crate::kafka::TopicsError;
use crate::log::Position;
use crate::postgres::RelayState;

/// What ended a session.
#[derive(Debug)]
pub(super) struct Setback {
    pub(super) reason: String,
    /// How that is for an operator: waiting, if it may well pass by itself; blocked, if somebody has to do something.
    pub(super) state: RelayState,
    /// Whether it had got as far as publishing.
    pub(super) had_begun: bool,
    /// Whether the next session has to ask how large a record may be.
    pub(super) ask_limit: bool,
}

impl Setback {
    /// It stays so until somebody does something.
    pub(super) fn blocked(reason: impl Into<String>) -> Self {
        Setback { state: RelayState::Blocked, ..Setback::from(reason.into()) }
    }

    /// A record was refused as too large, by whoever assumed how large it may be.
    pub(super) fn too_large(position: Position) -> Self {
        let reason =
            format!("position {position} may be too large for the topic, which is asked now how much it takes");
        Setback { ask_limit: true, ..Setback::from(reason) }
    }
}

impl<E: std::fmt::Display> From<E> for Setback {
    fn from(error: E) -> Self {
        Setback { reason: error.to_string(), state: RelayState::Waiting, had_begun: false, ask_limit: false }
    }
}

/// Why the topic cannot be published to.
pub(super) fn about_the_topic(error: TopicsError) -> Setback {
    match error {
        TopicsError::Away { .. } => Setback::from(error),
        TopicsError::Client(_) | TopicsError::Refused { .. } | TopicsError::Partitions { .. } => {
            Setback::blocked(error.to_string())
        }
    }
}
