//! SIGINT and SIGTERM, as a command that runs on waits for them.

use tokio::signal::unix::{SignalKind, signal};

/// Exit codes of a program that a signal ended: 128 and the signal's number.
pub(super) const EXIT_INTERRUPTED: u8 = 130;
pub(super) const EXIT_TERMINATED: u8 = 143;

/// Waits for SIGINT or SIGTERM; answers with the exit code that it calls for.
///
/// # Errors
/// Where the signals cannot be listened for.
pub(super) async fn stop_signal() -> std::io::Result<u8> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    Ok(tokio::select! {
        _ = interrupt.recv() => EXIT_INTERRUPTED,
        _ = terminate.recv() => EXIT_TERMINATED,
    })
}
