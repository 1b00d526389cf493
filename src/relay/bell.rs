//! The bell that wakes the relay: rung by the writer in the same process, or by the database for writers in others.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;

/// Wakes the relay. Clones are the same bell. However often it is rung before anybody listens, it wakes once.
#[derive(Clone, Debug, Default)]
pub struct Bell(Arc<Notify>);

impl Bell {
    /// A bell.
    pub fn new() -> Self {
        Self::default()
    }

    /// Rings it.
    pub fn ring(&self) {
        self.0.notify_one();
    }

    /// Waits until it is rung, at most for `patience`.
    pub async fn wait(&self, patience: Duration) {
        // Both ends are the same to the caller, who looks for himself.
        let _ = tokio::time::timeout(patience, self.0.notified()).await;
    }
}
