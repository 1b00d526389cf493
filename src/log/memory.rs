//! A log in memory, for tests: the same answers as the real one, gone with the process.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use chrono::{DateTime, Utc};

use crate::log::{
    Appended, Atomicity, Batch, EventLog, KeyRecord, KeyScope, LoadedStream, LogError, Position, RecordedEvent,
    Revision, Snapshot, StreamKey,
};
use crate::wallet::{EVENT_VERSION, WalletId};

/// A log in memory. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct MemoryLog {
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    events: Vec<RecordedEvent>,
    /// Positions of a stream's events, by revision.
    streams: HashMap<WalletId, Vec<Position>>,
    keys: HashMap<KeyScope, (KeyRecord, DateTime<Utc>)>,
    snapshots: HashMap<i64, Snapshot>,
}

impl State {
    fn event(&self, position: Position) -> RecordedEvent {
        self.events[position as usize - 1].clone()
    }

    fn stream(&self, stream: &WalletId) -> &[Position] {
        self.streams.get(stream).map_or(&[], Vec::as_slice)
    }
}

impl MemoryLog {
    /// An empty log.
    pub fn new() -> Self {
        Self::default()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing below panics half-way through a change, so a poisoned lock still guards a whole state.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl EventLog for MemoryLog {
    fn atomicity(&self) -> Atomicity {
        Atomicity::Log
    }

    async fn append(&self, batch: &Batch) -> Result<Appended, LogError> {
        let mut state = self.state();
        let head = state.events.len() as Position;
        if batch.expected_head.is_some_and(|expected| expected != head) {
            return Ok(Appended::Conflict);
        }
        let mut next: HashMap<&WalletId, Revision> = HashMap::new();
        for event in &batch.events {
            let expected = next.entry(&event.stream).or_insert_with(|| state.stream(&event.stream).len() as Revision);
            if event.revision != *expected {
                return Ok(Appended::Conflict);
            }
            *expected += 1;
        }
        let mut new_keys = HashSet::new();
        if batch.keys.iter().any(|key| state.keys.contains_key(&key.scope) || !new_keys.insert(&key.scope)) {
            return Ok(Appended::Conflict);
        }
        for (place, event) in batch.events.iter().enumerate() {
            let position = head + 1 + place as Position;
            state.streams.entry(event.stream.clone()).or_default().push(position);
            state.events.push(RecordedEvent {
                position,
                stream: event.stream.clone(),
                revision: event.revision,
                event_id: event.event_id,
                event_type: event.event_type.to_owned(),
                event_version: EVENT_VERSION,
                recorded_at: batch.recorded_at,
                payload: event.payload.clone(),
                metadata: event.metadata.to_vec(),
            });
        }
        for key in &batch.keys {
            state.keys.insert(key.scope.clone(), (key.clone(), batch.recorded_at));
        }
        Ok(Appended::At(head + batch.events.len() as Position))
    }

    async fn lock_head(&self) -> Result<Position, LogError> {
        // One process, one sequencer: there is nobody to keep waiting.
        self.head().await
    }

    async fn head(&self) -> Result<Position, LogError> {
        Ok(self.state().events.len() as Position)
    }

    async fn read(&self, after: Position, limit: usize) -> Result<Vec<RecordedEvent>, LogError> {
        Ok(self.state().events.iter().skip(after as usize).take(limit).cloned().collect())
    }

    async fn read_stream(
        &self,
        stream: &WalletId,
        from: Revision,
        limit: usize,
    ) -> Result<Vec<RecordedEvent>, LogError> {
        let state = self.state();
        Ok(state.stream(stream).iter().skip(from as usize).take(limit).map(|at| state.event(*at)).collect())
    }

    async fn read_stream_end(&self, stream: &WalletId, limit: usize) -> Result<Vec<RecordedEvent>, LogError> {
        let state = self.state();
        let positions = state.stream(stream);
        Ok(positions.iter().skip(positions.len().saturating_sub(limit)).map(|at| state.event(*at)).collect())
    }

    async fn load(&self, streams: &[WalletId], snapshot_format: i32) -> Result<Vec<LoadedStream>, LogError> {
        let state = self.state();
        let load = |stream: &WalletId| {
            let positions = state.stream(stream);
            let stream_key = StreamKey(*positions.first()?);
            let snapshot = state.snapshots.get(&stream_key.0).filter(|found| found.format == snapshot_format).cloned();
            let from = snapshot.as_ref().map_or(0, |found| found.revision as usize + 1);
            let tail = positions.iter().skip(from).map(|at| state.event(*at)).collect();
            Some(LoadedStream { stream: stream.clone(), stream_key, snapshot, tail })
        };
        Ok(streams.iter().filter_map(load).collect())
    }

    async fn find_keys(&self, keys: &[KeyScope]) -> Result<Vec<KeyRecord>, LogError> {
        let state = self.state();
        Ok(keys.iter().filter_map(|scope| state.keys.get(scope)).map(|(record, _)| record.clone()).collect())
    }

    async fn save_snapshots(&self, snapshots: &[Snapshot]) -> Result<(), LogError> {
        let mut state = self.state();
        for snapshot in snapshots {
            let kept = state.snapshots.entry(snapshot.stream_key.0).or_insert_with(|| snapshot.clone());
            if kept.revision < snapshot.revision {
                *kept = snapshot.clone();
            }
        }
        Ok(())
    }

    async fn forget_keys(&self, before: DateTime<Utc>, limit: usize) -> Result<u64, LogError> {
        let mut state = self.state();
        let old: Vec<KeyScope> = state
            .keys
            .iter()
            .filter(|(_, (_, kept_at))| *kept_at < before)
            .map(|(scope, _)| scope.clone())
            .take(limit)
            .collect();
        for scope in &old {
            state.keys.remove(scope);
        }
        Ok(old.len() as u64)
    }
}
