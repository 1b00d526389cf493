//! Reading a long stretch of the log: the next page is read while the last one is worked off.

use tokio_util::task::AbortOnDropHandle;

use crate::log::{EventLog, LogError, Position, RecordedEvent};

/// Pages of a log, one after the other. While the log has more, there is always one page on its way.
pub(crate) struct ReadAhead<L> {
    log: L,
    page: usize,
    /// The page after a position, on its way.
    next: Option<(Position, AbortOnDropHandle<Page>)>,
}

type Page = Result<Vec<RecordedEvent>, LogError>;

impl<L: EventLog> ReadAhead<L> {
    /// Pages of at most so many events.
    pub(crate) fn new(log: L, page: usize) -> Self {
        ReadAhead { log, page, next: None }
    }

    /// The events after a position, in order. Fewer than a page: there were no more when it was read, which may be a while ago,
    /// but no longer ago than the last call. Call it on a runtime.
    ///
    /// # Errors
    /// [`LogError`], as the log says it.
    pub(crate) async fn after(&mut self, position: Position) -> Page {
        let page = match self.next.take() {
            Some((after, reading)) if after == position => {
                reading.await.map_err(|ended| LogError::Away(format!("a page was not read: {ended}")))??
            }
            _ => self.log.read(position, self.page).await?,
        };
        if page.len() == self.page
            && let Some(last) = page.last().map(|event| event.position)
        {
            let (log, limit) = (self.log.clone(), self.page);
            let reading = tokio::spawn(async move { log.read(last, limit).await });
            self.next = Some((last, AbortOnDropHandle::new(reading)));
        }
        Ok(page)
    }
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;
    use uuid::Uuid;

    use super::*;
    use crate::log::{Batch, MemoryLog, NewEvent};
    use crate::wallet::WalletId;

    async fn append(log: &MemoryLog, revisions: std::ops::Range<i64>) {
        let events = revisions.map(|revision| NewEvent {
            stream: WalletId::new("wallet-1").expect("an id"),
            stream_key: None,
            revision,
            event_id: Uuid::now_v7(),
            event_type: "WalletCredited",
            payload: b"{}".to_vec(),
            metadata: b"{}".as_slice().into(),
        });
        let batch = Batch { recorded_at: DateTime::UNIX_EPOCH, events: events.collect(), ..Batch::default() };
        log.append(&batch).await.expect("an append");
    }

    fn positions(page: &[RecordedEvent]) -> Vec<Position> {
        page.iter().map(|event| event.position).collect()
    }

    #[tokio::test]
    async fn every_event_comes_once_and_in_order_also_those_appended_meanwhile() {
        let log = MemoryLog::default();
        append(&log, 0..7).await;
        let mut pages = ReadAhead::new(log.clone(), 3);
        assert_eq!(positions(&pages.after(0).await.expect("a page")), [1, 2, 3]);
        assert_eq!(positions(&pages.after(3).await.expect("a page")), [4, 5, 6]);
        tokio::task::yield_now().await;
        append(&log, 7..8).await;
        // The page on its way may have been read before the last event was there; that one comes with the next.
        let third = positions(&pages.after(6).await.expect("a page"));
        let rest = positions(&pages.after(*third.last().expect("an event")).await.expect("a page"));
        assert_eq!([third, rest].concat(), [7, 8]);
        // Somewhere else than where the last page ended.
        assert_eq!(positions(&pages.after(1).await.expect("a page")), [2, 3, 4]);
        assert_eq!(positions(&pages.after(5).await.expect("a page")), [6, 7, 8]);
        assert!(pages.after(8).await.expect("a page").is_empty());
    }
}
