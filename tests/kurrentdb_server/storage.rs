//! What the server keeps, and how it answers an append: nothing here knows of a network.

use std::collections::{HashMap, HashSet};

use uuid::Uuid;

use super::protocol::{Expected, ProposedEvent};

/// An event as it is kept.
#[derive(Clone, Debug)]
pub struct Kept {
    pub stream: String,
    pub revision: u64,
    /// Where it lies in the log: commit and prepare position are the same, as on the servers that were looked at.
    pub position: u64,
    pub id: Uuid,
    pub event: ProposedEvent,
    /// When it was written, in ticks of 100 ns since 1970, as the protocol says it.
    pub created_ticks: u128,
}

/// How an append went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is in the log: the last event's revision and position.
    Success { revision: u64, position: u64 },
    /// It is not; the stream's last revision, `None` where there is no such stream.
    WrongVersion { current: Option<u64> },
}

#[derive(Default)]
pub struct Storage {
    log: Vec<Kept>,
    /// Places in `log` of a stream's events, by revision.
    streams: HashMap<String, Vec<usize>>,
    /// Ids that were written since the last start, by stream: all that an append with `Any` is compared with.
    remembered: HashMap<String, HashMap<Uuid, usize>>,
    next_position: u64,
}

impl Storage {
    /// Writes events, or finds that they are written already.
    pub fn append(&mut self, stream: &str, expected: Expected, events: &[(Uuid, ProposedEvent)]) -> Outcome {
        let length = self.streams.get(stream).map_or(0, Vec::len);
        let wrong = Outcome::WrongVersion { current: (length as u64).checked_sub(1) };
        let first = match expected {
            Expected::NoStream(()) => 0,
            Expected::Revision(revision) => revision as usize + 1,
            Expected::StreamExists(()) if length == 0 => return wrong,
            Expected::Any(()) | Expected::StreamExists(()) => {
                let ids: HashSet<Uuid> = events.iter().map(|(id, _)| *id).collect();
                if let Some(remembered) = self.remembered.get(stream)
                    && let Some(last) = events.last().and_then(|(id, _)| remembered.get(id))
                    && ids.iter().all(|id| remembered.contains_key(id))
                {
                    return self.success(*last);
                }
                length
            }
        };
        if first == length {
            for (id, event) in events {
                self.keep(stream, *id, event.clone());
            }
            return match self.streams.get(stream).and_then(|places| places.last()) {
                Some(last) => self.success(*last),
                None => wrong,
            };
        }
        // Not at the stream's end: a retry of what lies there already, or wrong.
        let known = self.streams.get(stream).map_or(&[][..], |places| places.get(first..).unwrap_or_default());
        let is_a_retry = !events.is_empty()
            && events.len() <= known.len()
            && events.iter().zip(known).all(|((id, _), place)| self.log[*place].id == *id);
        if is_a_retry { self.success(known[events.len() - 1]) } else { wrong }
    }

    fn success(&self, place: usize) -> Outcome {
        Outcome::Success { revision: self.log[place].revision, position: self.log[place].position }
    }

    fn keep(&mut self, stream: &str, id: Uuid, event: ProposedEvent) {
        let place = self.log.len();
        let places = self.streams.entry(stream.to_owned()).or_default();
        let revision = places.len() as u64;
        places.push(place);
        self.remembered.entry(stream.to_owned()).or_default().insert(id, place);
        // Positions are of bytes: they grow, with gaps.
        let bytes = 96 + stream.len() + event.data.len() + event.custom_metadata.len();
        let position = self.next_position.max(1_000);
        self.next_position = position + bytes as u64;
        let created_ticks = std::time::SystemTime::UNIX_EPOCH.elapsed().expect("a clock after 1970").as_nanos() / 100;
        self.log.push(Kept { stream: stream.to_owned(), revision, position, id, event, created_ticks });
    }

    /// As a restart does it: the log stays, what was only in memory is gone.
    pub fn restart(&mut self) {
        self.remembered.clear();
    }

    /// As when it held that many events. What comes next lies where the rest has lain.
    pub fn put_back(&mut self, events: usize) {
        if let Some(first_gone) = self.log.get(events) {
            self.next_position = first_gone.position;
        }
        self.log.truncate(events);
        self.order_anew();
    }

    /// Takes a stream's events away for good. What comes next lies where it would have lain.
    pub fn scavenge(&mut self, stream: &str) {
        self.log.retain(|kept| kept.stream != stream);
        self.order_anew();
    }

    fn order_anew(&mut self) {
        self.streams.clear();
        for (place, kept) in self.log.iter().enumerate() {
            self.streams.entry(kept.stream.clone()).or_default().push(place);
        }
        self.restart();
    }

    pub fn log(&self) -> &[Kept] {
        &self.log
    }

    /// A stream's events, oldest first; `None` where there is no such stream.
    pub fn stream(&self, stream: &str) -> Option<impl DoubleEndedIterator<Item = &Kept> + ExactSizeIterator> {
        Some(self.streams.get(stream)?.iter().map(|place| &self.log[*place]))
    }
}
