//! Records that are larger than the topic takes. Such an event is withheld, and all later ones of its wallet behind it, so that
//! consumers never see a wallet with an event left out; all other wallets go on. Projections read from the log what is withheld,
//! because the records after it say that they follow it.
//!
//! Once the topic takes more, what was withheld is published, in order, before anything else, with the header `late`.

use std::time::{Duration, Instant};

use crate::kafka::{OutgoingRecord, STALL_MAX, SendError};
use crate::log::{EventLog, Position, RecordedEvent};
use crate::postgres::Withheld;
use crate::relay::pause_for;
use crate::relay::session::{BATCH_BYTES, Session};
use crate::relay::setback::Setback;

/// How many events of a wallet are read at once.
const PAGE: usize = 1_000;
/// How long to wait until asking again what has become of records.
const LOOK: Duration = Duration::from_millis(1);

/// How far a wallet got.
#[derive(Default)]
struct Late {
    /// The last of its events that is in the topic now.
    published_to: Option<Position>,
    /// The one that is still too large, with its bytes.
    too_large: Option<(Position, usize)>,
}

impl<L: EventLog> Session<'_, '_, L> {
    /// Withholds a wallet from this event on.
    pub(super) fn withhold(&mut self, event: &RecordedEvent, partition: i32, bytes: usize) -> Result<(), Setback> {
        let reason = self.too_large(bytes);
        tracing::error!(
            wallet = event.stream.as_str(),
            position = event.position,
            reason,
            "an event is too large for the topic; it and the wallet's later ones are withheld"
        );
        let withheld = Withheld {
            wallet_id: event.stream.to_string(),
            position: event.position,
            partition,
            record_bytes: bytes as i64,
        };
        self.lease.ask(async |session| session.withhold(&withheld, &reason).await)?;
        self.withheld.insert(withheld.wallet_id);
        Ok(())
    }

    fn too_large(&self, bytes: usize) -> String {
        format!(
            "the record takes {bytes} bytes, the topic takes {}: raise its max.message.bytes, and what is withheld is published",
            self.record_bytes_max
        )
    }

    /// Publishes what was withheld and fits by now. The rest stays withheld.
    pub(super) fn publish_late(&mut self, withheld: Vec<Withheld>) -> Result<(), Setback> {
        for entry in withheld {
            let late = if entry.record_bytes as usize <= self.record_bytes_max {
                self.publish_late_of(&entry)?
            } else {
                Late { published_to: None, too_large: Some((entry.position, entry.record_bytes as usize)) }
            };
            let rest = late.too_large.map(|(position, bytes)| {
                (Withheld { position, record_bytes: bytes as i64, ..entry.clone() }, self.too_large(bytes))
            });
            if let Some(to) = late.published_to {
                tracing::info!(wallet = entry.wallet_id, from = entry.position, to, "published what was withheld");
                self.lease.ask(async |session| session.published_late(&entry.wallet_id, to, rest.as_ref()).await)?;
            }
            if rest.is_some() {
                self.withheld.insert(entry.wallet_id);
            }
        }
        Ok(())
    }

    fn publish_late_of(&mut self, entry: &Withheld) -> Result<Late, Setback> {
        let mut late = Late::default();
        let first = self.runtime.block_on(self.relay.log.read(entry.position - 1, 1))?;
        let Some(first) = first.into_iter().find(|event| event.stream.as_str() == entry.wallet_id) else {
            return Err(Setback::blocked(format!(
                "the log has no event of wallet {} at position {}, from which on it is withheld",
                entry.wallet_id, entry.position
            )));
        };
        let mut revision = first.revision;
        loop {
            let reading = self.relay.log.read_stream(&first.stream, revision, PAGE);
            let mut page = self.runtime.block_on(reading)?;
            page.retain(|event| event.position <= self.acknowledged.through());
            let Some(last) = page.last() else { return Ok(late) };
            revision = last.revision + 1;
            self.publish_page_late(&page, entry.partition, &mut late)?;
            if late.too_large.is_some() {
                return Ok(late);
            }
        }
    }

    /// Publishes events of one wallet up to the first that is too large, and waits until the broker has them.
    fn publish_page_late(&mut self, page: &[RecordedEvent], partition: i32, late: &mut Late) -> Result<(), Setback> {
        let mut outstanding = 0;
        let mut moved_at = Instant::now();
        let mut events = page.iter().peekable();
        while outstanding > 0 || (events.peek().is_some() && late.too_large.is_none()) {
            while let Some(event) = events.peek().filter(|_| late.too_large.is_none()) {
                // A session that ended half-way has left it there.
                if !self.present[partition as usize].beyond.contains(&event.position) {
                    let record = OutgoingRecord::late(event);
                    self.lease.assert_held()?;
                    match self.hand_over(event, partition, &record) {
                        Ok(()) => outstanding += 1,
                        Err(SendError::Full) => break,
                        Err(SendError::TooLarge) => {
                            late.too_large = Some((event.position, record.bytes() + BATCH_BYTES));
                            break;
                        }
                        Err(SendError::Failed(reason)) => return Err(Setback::from(reason)),
                    }
                }
                late.published_to = Some(event.position);
                events.next();
            }
            let acknowledged = self.acknowledgements()?.len();
            outstanding -= acknowledged;
            if acknowledged > 0 {
                moved_at = Instant::now();
            } else if moved_at.elapsed() > STALL_MAX {
                return Err(Setback::from(format!(
                    "what was withheld is not acknowledged for {} s: {}",
                    STALL_MAX.as_secs(),
                    self.publisher.trouble()
                )));
            } else if self.stop.is_cancelled() {
                return Err(Setback::from("stopped while it published what was withheld"));
            } else {
                pause_for(LOOK, self.runtime, self.stop);
            }
        }
        Ok(())
    }
}
