//! The log that operators read: lines on stderr, without colours where no person looks.

use std::io::{self, IsTerminal};

use tracing_subscriber::EnvFilter;

/// Starts logging with a filter such as `info` or `wallex=debug`. A filter that cannot be read is said so and `info` taken.
pub(super) fn start(filter: &str) {
    let (filter, unreadable) = match EnvFilter::try_new(filter) {
        Ok(filter) => (filter, None),
        Err(error) => (EnvFilter::new("info"), Some(error)),
    };
    let colours = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).with_ansi(colours);
    // Only a second start could fail, and there is none in a program.
    let _ = subscriber.with_target(false).try_init();
    if let Some(error) = unreadable {
        tracing::warn!(%error, "the log filter cannot be read; logging at level info");
    }
}
