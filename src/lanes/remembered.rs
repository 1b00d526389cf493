//! Which wallets stay in memory from one turn to the next.

use std::num::NonZeroUsize;

use lru::LruCache;

use crate::lanes::known::Known;
use crate::wallet::WalletId;

/// How many keys and transfers are held, of all wallets together: a hundred megabytes or so.
pub(super) const HELD_MAX: usize = 400_000;
/// How many of them one wallet may have; beyond it the wallet is read again, from where the copy has come to meanwhile.
const OF_ONE_MAX: usize = 20_000;

/// Wallets as they are known, the least recently used one forgotten first.
pub(super) struct Remembered {
    wallets: LruCache<WalletId, Known>,
    /// How many keys and transfers they have.
    held: usize,
    held_max: usize,
}

impl Remembered {
    pub(super) fn new(wallets_max: NonZeroUsize, held_max: usize) -> Self {
        Remembered { wallets: LruCache::new(wallets_max), held: 0, held_max }
    }

    /// Takes it out, to be worked on.
    pub(super) fn take(&mut self, id: &WalletId) -> Option<Known> {
        let known = self.wallets.pop(id)?;
        self.held -= known.size();
        Some(known)
    }

    /// One that was taken out or is new.
    pub(super) fn keep(&mut self, id: WalletId, known: Known) {
        if known.size() > OF_ONE_MAX {
            return;
        }
        self.held += known.size();
        let mut forgotten = self.wallets.push(id, known);
        while let Some((_, known)) = forgotten.take().or_else(|| self.too_much()) {
            self.held -= known.size();
        }
    }

    fn too_much(&mut self) -> Option<(WalletId, Known)> {
        if self.held > self.held_max { self.wallets.pop_lru() } else { None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(name: &str) -> WalletId {
        WalletId::new(name).expect("an id")
    }

    #[test]
    fn the_least_recently_used_go_where_there_are_too_many_wallets_or_keys() {
        let mut remembered = Remembered::new(NonZeroUsize::new(3).expect("three"), 10);
        let held = |remembered: &Remembered| {
            let held = ["a", "b", "c", "d"].map(id).map(|id| remembered.wallets.peek(&id).map(Known::size));
            assert_eq!(held.iter().flatten().sum::<usize>(), remembered.held);
            held
        };
        for (name, size) in [("a", 4), ("b", 0), ("c", 4)] {
            remembered.keep(id(name), Known::of_size(size));
        }
        assert_eq!(held(&remembered), [Some(4), Some(0), Some(4), None]);
        // What is worked on is held by whoever does it.
        let a = remembered.take(&id("a")).expect("a known wallet");
        assert_eq!((a.size(), held(&remembered)), (4, [None, Some(0), Some(4), None]));
        remembered.keep(id("a"), a);
        remembered.keep(id("d"), Known::of_size(2));
        assert_eq!(held(&remembered), [Some(4), None, Some(4), Some(2)], "one wallet too many");
        remembered.keep(id("d"), Known::of_size(3));
        assert_eq!(held(&remembered), [Some(4), None, None, Some(3)], "one key too many");
        remembered.keep(id("b"), Known::of_size(11));
        assert_eq!(held(&remembered), [None; 4], "more than all may have");
        remembered.keep(id("b"), Known::of_size(1));
        assert_eq!(held(&remembered), [None, Some(1), None, None]);
        let mut roomy = Remembered::new(NonZeroUsize::new(3).expect("three"), usize::MAX);
        roomy.keep(id("a"), Known::of_size(OF_ONE_MAX));
        roomy.keep(id("b"), Known::of_size(OF_ONE_MAX + 1));
        assert_eq!(held(&roomy), [Some(OF_ONE_MAX), None, None, None], "more than one may have");
    }
}
