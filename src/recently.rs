//! What was seen a moment ago: a bounded set whose members leave by themselves.

use std::borrow::Borrow;
use std::hash::Hash;
use std::num::NonZeroUsize;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use lru::LruCache;

/// Names, each for a time after it was last seen. Where there are too many, those that nobody asked for or saw for longest go first.
pub(crate) struct Recently<T: Hash + Eq> {
    for_how_long: Duration,
    until: Mutex<LruCache<T, Instant>>,
}

impl<T: Hash + Eq> Recently<T> {
    pub(crate) fn new(for_how_long: Duration, max: NonZeroUsize) -> Self {
        Recently { for_how_long, until: Mutex::new(LruCache::new(max)) }
    }

    pub(crate) fn saw(&self, it: T) {
        self.until().put(it, Instant::now() + self.for_how_long);
    }

    pub(crate) fn has_seen<Q: Hash + Eq + ?Sized>(&self, it: &Q) -> bool
    where
        T: Borrow<Q>,
    {
        self.until().get(it).is_some_and(|until| Instant::now() < *until)
    }

    fn until(&self) -> MutexGuard<'_, LruCache<T, Instant>> {
        self.until.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_leaves_after_its_time_and_the_oldest_where_there_are_too_many() {
        let two = NonZeroUsize::new(2).expect("two");
        let (gone, seen) = (Recently::new(Duration::ZERO, two), Recently::new(Duration::from_secs(3_600), two));
        gone.saw("a");
        assert!(!gone.has_seen("a") && !seen.has_seen("a"));
        for member in ["a", "b", "a", "c"] {
            seen.saw(member);
        }
        assert!(seen.has_seen("a") && !seen.has_seen("b") && seen.has_seen("c"));
    }
}
