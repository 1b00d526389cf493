//! Events of the earlier system, brought into our terms for whoever reads a stream: each needs what the one before it has left,
//! and so, where a read begins in the midst of them, do those before.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lru::LruCache;

use crate::kurrentdb::KurrentLog;
use crate::kurrentdb::log::STREAM_PAGE;
use crate::log::{LogError, RecordedEvent, Revision, left_before, to_look_up, upcast};
use crate::wallet::{Before, WalletId};

/// Of how many streams is remembered how far they were folded.
const FOLDED_MAX: NonZeroUsize = NonZeroUsize::new(10_000).expect("not zero");

/// How far streams were folded lately, and what was left there. What is once in a stream stays, so this is never wrong.
#[derive(Clone)]
pub(super) struct Folded {
    it: Arc<Mutex<LruCache<WalletId, (Revision, Before)>>>,
}

impl Default for Folded {
    fn default() -> Self {
        Folded { it: Arc::new(Mutex::new(LruCache::new(FOLDED_MAX))) }
    }
}

impl Folded {
    fn held(&self) -> MutexGuard<'_, LruCache<WalletId, (Revision, Before)>> {
        self.it.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where to begin in order to come to a revision.
    fn nearest(&self, stream: &WalletId, revision: Revision) -> (Revision, Before) {
        let held = self.held().get(stream).copied();
        held.filter(|(next, _)| *next <= revision).unwrap_or((0, Before::Nothing))
    }

    fn note(&self, stream: &WalletId, next: Revision, before: Before) {
        self.held().put(stream.clone(), (next, before));
    }
}

impl KurrentLog {
    /// Brings a stretch of one stream into our terms that is read on from where it ends.
    pub(super) async fn stretch_in_our_terms(&self, events: &mut [RecordedEvent]) -> Result<(), LogError> {
        let goes_on = events.last().is_some_and(RecordedEvent::is_of_the_earlier_system);
        self.in_our_terms(events).await?;
        if let Some(last) = events.last().filter(|_| goes_on) {
            self.folded.note(&last.stream, last.revision + 1, left_before(last));
        }
        Ok(())
    }

    /// Brings events into our terms that follow one another within their streams.
    pub(super) async fn in_our_terms(&self, events: &mut [RecordedEvent]) -> Result<(), LogError> {
        if !events.iter().any(RecordedEvent::is_of_the_earlier_system) {
            return Ok(());
        }
        let mut before = HashMap::new();
        for (stream, revision) in to_look_up(events.iter()) {
            before.insert(stream.clone(), self.before(stream, revision).await?);
        }
        upcast(events.iter_mut(), before);
        Ok(())
    }

    /// What the events before a revision have left.
    async fn before(&self, stream: &WalletId, revision: Revision) -> Result<Before, LogError> {
        let (mut next, mut before) = self.folded.nearest(stream, revision);
        while let Ok(missing @ 1..) = usize::try_from(revision - next) {
            let mut page = self.stored(stream, next, missing.min(STREAM_PAGE)).await?;
            upcast(page.iter_mut(), HashMap::from([(stream.clone(), before)]));
            // A stream whose beginning was taken away says nothing of what it held.
            let is_whole = page.first().is_some_and(|first| first.revision == next);
            let Some(last) = page.last().filter(|_| is_whole) else { return Ok(Before::Unknown) };
            (next, before) = (last.revision + 1, left_before(last));
            self.folded.note(stream, next, before);
        }
        Ok(before)
    }
}
