//! The topic beside the log: within a partition both have the same order, so this is a merge.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

use crate::kafka::{HEADER_FOLLOWS, OutgoingRecord, TopicReader, TopicRecord, partition_of};
use crate::log::{Position, RecordedEvent};
use crate::verify::proof::{Finding, at};
use crate::verify::withheld::{Withheld, WithheldSpan};
use crate::verify::{Check, Strangers};

/// Bytes of a value that are shown around the first difference.
const EXCERPT: usize = 60;

/// How long to wait at most for records that the topic does not have yet, and how often to look.
const PATIENCE_MAX: Duration = Duration::from_secs(5);
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// A topic being compared with the log.
pub(super) struct TopicScan {
    reader: TopicReader,
    through: Position,
    /// How long to wait in all for records that are not there yet, and until when that is.
    patience: Duration,
    patient_until: Option<Instant>,
    finding: Finding,
    /// Why the broker could not be read any more.
    broken: Option<String>,
    /// Foreign records that an operator has seen and discarded.
    discarded: Strangers,
    /// Events that are not in their places, because they were too large.
    withheld: Withheld,
    /// Records that were as they should be.
    records: u64,
    /// Events older than what the topic keeps.
    before_reach: u64,
    /// Position of the oldest event that was found in the topic.
    reaches_to: Option<Position>,
    /// Offset and position of the last record of each partition.
    last: BTreeMap<i32, (i64, Position)>,
    /// The log's last event of each partition among those compared.
    before: BTreeMap<i32, Position>,
}

impl TopicScan {
    /// Compares up to a position, up to which everything has been published.
    pub fn new(
        reader: TopicReader,
        through: Position,
        wait_max: Duration,
        discarded: Strangers,
        withheld: Vec<WithheldSpan>,
    ) -> Self {
        TopicScan {
            reader,
            through,
            patience: wait_max.min(PATIENCE_MAX),
            patient_until: None,
            finding: Finding::new("topic"),
            broken: None,
            discarded,
            withheld: Withheld::new(withheld),
            records: 0,
            before_reach: 0,
            reaches_to: None,
            last: BTreeMap::new(),
            before: BTreeMap::new(),
        }
    }

    /// Compares the next events of the log. Blocks on the broker.
    pub fn compare(&mut self, events: &[RecordedEvent]) {
        let (partitions, through) = (self.reader.partition_count(), self.through);
        for event in events.iter().take_while(|event| event.position <= through) {
            if self.broken.is_some() {
                return;
            }
            let partition = partition_of(event.stream.as_str().as_bytes(), partitions);
            if !self.withheld.was(event)
                && let Err(reason) = self.find(event, partition)
            {
                self.broken = Some(reason);
            }
            self.before.insert(partition, event.position);
        }
    }

    /// Goes on in the partition to where the event must be.
    fn find(&mut self, event: &RecordedEvent, partition: i32) -> Result<(), String> {
        loop {
            self.pass_over_discarded(partition)?;
            self.take_late(partition)?;
            let Some(record) = self.reader.peek(partition)? else {
                if self.reached_offset(partition).is_some() && self.comes_late(partition)? {
                    continue;
                }
                self.missing(event, partition, None);
                return Ok(());
            };
            let offset = record.offset;
            match record.position() {
                Some(position) if position == event.position => {
                    let before = self.before.get(&partition).copied().unwrap_or(0);
                    let difference = difference(record, &expected(record, event, before));
                    self.reader.take(partition);
                    self.last.insert(partition, (offset, position));
                    self.reaches_to.get_or_insert(position);
                    self.count(event, partition, offset, difference);
                    return Ok(());
                }
                Some(position) if position > event.position => {
                    self.missing(event, partition, Some(offset));
                    return Ok(());
                }
                position => {
                    self.surplus(partition, offset, position);
                }
            }
        }
    }

    fn count(&mut self, event: &RecordedEvent, partition: i32, offset: i64, difference: Option<(String, String)>) {
        match difference {
            None => self.records += 1,
            Some((expected, found)) => {
                let place = at(&event.stream, event.position);
                let found = format!("{found} at offset {offset} of partition {partition}");
                self.finding.differs(place, expected, found);
            }
        }
    }

    /// Compares records that stand behind their places, as what was withheld does.
    fn take_late(&mut self, partition: i32) -> Result<(), String> {
        while let Some(record) = self.reader.peek(partition)? {
            let offset = record.offset;
            if let Some(event) = self.withheld.take(record) {
                let difference = difference(record, &OutgoingRecord::late(&event));
                self.reader.take(partition);
                self.count(&event, partition, offset, difference);
            } else if record.position().is_some_and(|position| position > self.through) && self.withheld.may_be(record)
            {
                self.reader.take(partition);
            } else {
                break;
            }
        }
        Ok(())
    }

    /// Passes over foreign records that an operator has discarded: the topic keeps them for as long as it keeps any. In a topic that
    /// was made anew other records lie at their offsets.
    fn pass_over_discarded(&mut self, partition: i32) -> Result<(), String> {
        while !self.discarded.is_empty()
            && let Some(record) = self.reader.peek(partition)?
            && self.discarded.get(&(partition, record.offset)).is_some_and(|digests| {
                let digest = Sha256::digest(record.value.as_deref().unwrap_or_default());
                digests.iter().any(|known| known[..] == digest[..])
            })
        {
            self.reader.take(partition);
        }
        Ok(())
    }

    /// Waits for more records at a partition's end. Where a topic is made anew, the projections read from the log what it lacks
    /// for the moment, and so may be through before the relay has published it again.
    fn comes_late(&mut self, partition: i32) -> Result<bool, String> {
        let until = *self.patient_until.get_or_insert_with(|| Instant::now() + self.patience);
        loop {
            if self.reader.extend(partition)? {
                return Ok(true);
            }
            if Instant::now() >= until {
                return Ok(false);
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }

    /// The offset of the last record read of a partition; `None` where nothing was read, or nothing that is kept still.
    fn reached_offset(&self, partition: i32) -> Option<i64> {
        let (offset, _) = self.last.get(&partition)?;
        (offset + 1 >= self.reader.low(partition)).then_some(*offset)
    }

    /// The event is not where it must be. That is a difference, unless the topic does not reach back to it, or does not any more.
    fn missing(&mut self, event: &RecordedEvent, partition: i32, next_offset: Option<i64>) {
        let Some(last_offset) = self.reached_offset(partition) else {
            self.before_reach += 1;
            return;
        };
        let found = match next_offset {
            Some(next) => format!("none in partition {partition} between offsets {last_offset} and {next}"),
            None => format!("none in partition {partition} up to its end"),
        };
        self.finding.differs(at(&event.stream, event.position), "a record", found);
    }

    /// A record that no event calls for.
    fn surplus(&mut self, partition: i32, offset: i64, position: Option<Position>) {
        let key = self.reader.take(partition).and_then(|record| record.key);
        let key = key.map_or("(no key)".to_owned(), |key| excerpt(&key, 0));
        let last = self.last.get(&partition).copied();
        let (expected, found) = match (position, last) {
            (None, _) => ("records of the relay alone", "a record without a position"),
            (Some(position), Some((_, last))) if position <= last => ("each record once, in order", "again, or late,"),
            (Some(_), _) => ("a record for each event and no other", "a record of no event of this partition"),
        };
        if let Some(position) = position {
            self.last.insert(partition, (offset, last.map_or(position, |(_, last)| last.max(position))));
        }
        let place = match position {
            Some(position) => at(key, position),
            None => format!("key {key}"),
        };
        self.finding.differs(place, expected, format!("{found} at offset {offset} of partition {partition}"));
    }

    /// Reads on to the topic's end: what is still there must be newer than what was compared.
    pub fn finish(&mut self) {
        for partition in 0..self.reader.partition_count() {
            if self.broken.is_some() {
                return;
            }
            if let Err(reason) = self.read_to_end(partition) {
                self.broken = Some(reason);
            }
        }
    }

    fn read_to_end(&mut self, partition: i32) -> Result<(), String> {
        loop {
            self.pass_over_discarded(partition)?;
            self.take_late(partition)?;
            let Some(record) = self.reader.peek(partition)? else { return Ok(()) };
            let offset = record.offset;
            let last = self.last.get(&partition).map_or(0, |(_, last)| *last);
            match record.position() {
                Some(position) if position > last.max(self.through) => {
                    self.reader.take(partition);
                    self.last.insert(partition, (offset, position));
                }
                position => self.surplus(partition, offset, position),
            }
        }
    }

    /// What it comes to.
    pub fn check(self) -> Check {
        let mut finding = self.finding;
        if let Some(reason) = self.broken {
            finding.differs("broker", "a topic that can be read", reason);
        }
        // Where retention has been at work, it may have taken those too.
        let is_whole = (0..self.reader.partition_count()).all(|partition| self.reader.low(partition) == 0);
        if let Some(event) = self.withheld.missing().filter(|_| is_whole) {
            let expected = "a record behind its place, because it was withheld and published later";
            finding.differs(at(&event.stream, event.position), expected, "none");
        }
        let events =
            format!("each event up to position {} that the topic reaches back to, once and in order", self.through);
        let reach = match (self.reaches_to, self.before_reach) {
            (_, 0) => String::new(),
            (None, older) => format!("; it keeps none of the {older} events"),
            (Some(_), older) => format!("; {older} events are older than it reaches"),
        };
        let withheld = match self.withheld.events {
            0 => String::new(),
            events => format!("; {events} events are withheld, see `wallex lag`"),
        };
        finding.check(events, format!("{} records{reach}{withheld}", self.records))
    }
}

/// The record that the relay makes of the event. `before` is the event before it in its partition: what the record found says
/// that it follows may lie closer, as that of a relay that began in between, but not further back.
fn expected(found: &TopicRecord, event: &RecordedEvent, before: Position) -> OutgoingRecord {
    let follows = found.number(HEADER_FOLLOWS).filter(|follows| (before..event.position).contains(follows));
    OutgoingRecord::of(event, follows.unwrap_or(before))
}

/// How a record is not the one that it should be.
fn difference(record: &TopicRecord, expected: &OutgoingRecord) -> Option<(String, String)> {
    if record.key.as_deref() != Some(expected.key.as_bytes()) {
        let found = record.key.as_deref().map_or("none".to_owned(), |key| excerpt(key, 0));
        return Some((format!("key {}", expected.key), format!("key {found}")));
    }
    let value = record.value.as_deref().unwrap_or_default();
    if value != expected.value {
        let same = value.iter().zip(&expected.value).take_while(|(left, right)| left == right).count();
        let from = same.saturating_sub(EXCERPT / 2);
        return Some((format!("value {}", excerpt(&expected.value, from)), format!("value {}", excerpt(value, from))));
    }
    let same = record.headers.len() == expected.headers.len()
        && record.headers.iter().zip(&expected.headers).all(|((name, value), (expected_name, expected_value))| {
            name == expected_name && value.as_deref() == Some(expected_value.as_bytes())
        });
    if !same {
        let expected = expected.headers.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>();
        let found = record
            .headers
            .iter()
            .map(|(name, value)| format!("{name}={}", String::from_utf8_lossy(value.as_deref().unwrap_or_default())))
            .collect::<Vec<_>>();
        return Some((format!("headers {}", expected.join(" ")), format!("headers {}", found.join(" "))));
    }
    None
}

/// Some bytes as text, from a place on, cut to what a line takes.
fn excerpt(bytes: &[u8], from: usize) -> String {
    let part = &bytes[from.min(bytes.len())..];
    let (part, rest) = part.split_at(EXCERPT.min(part.len()));
    let text = String::from_utf8_lossy(part).replace(char::is_control, " ");
    format!("{}{text}{}", if from > 0 { "…" } else { "" }, if rest.is_empty() { "" } else { "…" })
}
