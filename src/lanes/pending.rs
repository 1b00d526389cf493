//! Takes up transfers that somebody has left half-way: a server that ended between the legs, or could not append the second one.

use std::sync::Arc;
use std::time::Duration;

use crate::lanes::Shared;
use crate::lanes::decide::leg_of;
use crate::lanes::metadata::CommandMetadata;
use crate::lanes::work::Work;
use crate::log::EventLog;

/// How often they are looked for.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// For how long the copy must have known of one: until then the server that took it is at work on it.
const LEFT_AFTER: Duration = Duration::from_secs(3);
/// How many are taken up at once.
const TAKEN_MAX: i64 = 200;

/// Runs until it is dropped.
pub(super) async fn take_up<L: EventLog>(shared: Arc<Shared<L>>) {
    while !shared.stop.is_cancelled() {
        match shared.database.transfers_in_transit(LEFT_AFTER, TAKEN_MAX).await {
            Ok(debits) => {
                for recorded in debits {
                    let metadata = CommandMetadata::read(&recorded.metadata)
                        .map(|metadata| CommandMetadata { idempotency: None, ..metadata }.to_bytes());
                    let leg = recorded.decode().ok().zip(metadata);
                    let leg = leg.and_then(|(event, metadata)| leg_of(&recorded.stream, &event, metadata));
                    let Some(leg) = leg else {
                        tracing::error!(
                            position = recorded.position,
                            "a transfer in transit whose paying leg cannot be read"
                        );
                        continue;
                    };
                    // Where it is there already, its lane finds that out.
                    if shared.follow_up.send((leg.to.clone(), Work::Leg(leg))).is_err() {
                        return;
                    }
                }
            }
            Err(error) => tracing::debug!(%error, "transfers in transit could not be looked for; trying again"),
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}
