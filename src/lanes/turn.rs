//! Servers that write to the same wallet go one after another, where they have been given a Redis to queue in.

use std::time::{Duration, Instant};

use crate::lease::{Lease, Leases, WAIT_MAX};
use crate::wallet::WalletId;

/// One turn of a lane, as other servers are concerned.
pub(super) struct Turn {
    leases: Option<Leases>,
    lease: Option<Lease>,
    /// For how long this turn may still wait for a lease, all its attempts together.
    patience: Duration,
}

impl Turn {
    /// A turn; `lease` is what the one before it has left.
    pub(super) fn new(leases: Option<Leases>, lease: Option<Lease>) -> Self {
        Turn { leases, lease, patience: WAIT_MAX }
    }

    /// Waits for the lease, where others write to the wallet too. Whether it has just come: then others may have written until now,
    /// and what is known is better brought up to date before anything is decided.
    pub(super) async fn comes(&mut self, id: &WalletId) -> bool {
        let gives_way = self.lease.take_if(|lease| lease.is_over()).is_some();
        let Some(leases) = &self.leases else { return false };
        if self.lease.is_some() || self.patience.is_zero() || !leases.is_shared(id) {
            return false;
        }
        let begun = Instant::now();
        self.lease = leases.take(id, self.patience, gives_way).await;
        self.patience = self.patience.saturating_sub(begun.elapsed());
        self.lease.is_some()
    }

    /// Another server has written to the wallet.
    pub(super) fn met_another(&self, id: &WalletId) {
        if let Some(leases) = &self.leases {
            leases.met_another(id);
        }
    }

    /// What is left for the next turn, if that comes at once.
    pub(super) fn end(self) -> Option<Lease> {
        self.lease
    }
}
