//! Waits until the projections hold everything that was written.

use std::time::{Duration, Instant};

use serde::Deserialize;

use crate::loadtest::Phase;
use crate::loadtest::drive::Run;

const POLL: Duration = Duration::from_millis(5);

/// How far the projections had to come, and how far they came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Drain {
    /// From the last operation's answer to the moment when every projection held its events; `None` if that was given up.
    pub duration: Option<Duration>,
    /// What had to be reached, in words.
    pub expected: String,
    /// What was, in words.
    pub actual: String,
}

impl Drain {
    /// Where there was nothing to wait for.
    pub fn not_begun() -> Self {
        let (expected, actual) = ("every event projected".to_owned(), "no operation was sent".to_owned());
        Drain { duration: None, expected, actual }
    }
}

/// The part of `GET /health/progress` that is wanted.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Positions {
    head: i64,
    published: i64,
    groups: Vec<GroupPosition>,
    /// Where the events are in an event store, of which the head above is the copy's.
    event_store: Option<StorePositions>,
}

/// In the event store's own terms.
#[derive(Clone, Copy, Debug, Deserialize)]
struct StorePositions {
    head: Option<i64>,
    copied: Option<i64>,
}

/// What has to be reached, as far as it is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Goal {
    /// The event store has not said yet where it ends.
    Unknown,
    /// The copy has to come to this place of the event store: what was answered lies before it.
    Copy(i64),
    /// Every projection has to come to this position of the log.
    Head(i64),
}

impl Goal {
    /// The goal, now that this is known.
    fn given(self, positions: &Positions) -> Goal {
        let Some(StorePositions { head, copied }) = positions.event_store else {
            return match self {
                Goal::Head(_) => self,
                _ => Goal::Head(positions.head),
            };
        };
        let goal = match (self, head) {
            (Goal::Unknown, Some(head)) => Goal::Copy(head),
            _ => self,
        };
        match goal {
            Goal::Copy(place) if copied.unwrap_or(0) >= place => Goal::Head(positions.head),
            _ => goal,
        }
    }

    fn in_words(self) -> String {
        match self {
            Goal::Unknown => "an event store that says where it ends".to_owned(),
            Goal::Copy(place) => {
                format!("the copy at {place} of the event store, and then every projection at its end")
            }
            Goal::Head(head) => format!("every projection at {head}"),
        }
    }
}

#[derive(Debug, Deserialize)]
struct GroupPosition {
    group: String,
    position: i64,
}

impl Positions {
    /// What all groups hold.
    fn slowest(&self) -> i64 {
        self.groups.iter().map(|group| group.position).min().unwrap_or(0)
    }

    fn sum(&self) -> i128 {
        let groups: i128 = self.groups.iter().map(|group| i128::from(group.position)).sum();
        let copied = self.event_store.and_then(|store| store.copied).unwrap_or(0);
        groups + i128::from(self.published) + i128::from(copied)
    }

    fn in_words(&self) -> String {
        let groups: Vec<_> = self.groups.iter().map(|group| format!("{} at {}", group.group, group.position)).collect();
        let store = self.event_store.map_or(String::new(), |StorePositions { head, copied }| {
            let text = |position: Option<i64>| position.map_or("an unknown place".to_owned(), |it| it.to_string());
            format!("event store at {}, copied to {}; ", text(head), text(copied))
        });
        format!("{store}published {}, {}", self.published, groups.join(", "))
    }
}

/// Polls until every group has come to the head of now, of the event store's copy where there is one, or until nothing has moved for
/// the client's patience.
pub async fn wait(run: &Run) -> Drain {
    let started = Instant::now();
    let mut goal = Goal::Unknown;
    let (mut moved_at, mut moved_to) = (started, None);
    loop {
        let positions = match positions(run).await {
            Ok(positions) => positions,
            Err(reason) => {
                let expected = "the positions of the projections".to_owned();
                return Drain { duration: None, expected, actual: format!("GET /health/progress: {reason}") };
            }
        };
        goal = goal.given(&positions);
        let expected = goal.in_words();
        let (head, is_last) = match goal {
            Goal::Head(head) => (head, true),
            // The end is not known yet; the copy's is the best guess for a bar.
            Goal::Unknown | Goal::Copy(_) => (positions.head, false),
        };
        run.report_progress(Phase::Drain, as_count(positions.slowest().min(head)), as_count(head));
        if is_last && !positions.groups.is_empty() && positions.slowest() >= head {
            return Drain { duration: Some(started.elapsed()), actual: expected.clone(), expected };
        }
        if moved_to != Some(positions.sum()) {
            (moved_at, moved_to) = (Instant::now(), Some(positions.sum()));
        }
        if moved_at.elapsed() >= run.client.patience().drain {
            let waited = moved_at.elapsed().as_secs();
            return Drain { duration: None, expected, actual: format!("{}, for {waited} s", positions.in_words()) };
        }
        tokio::time::sleep(POLL).await;
    }
}

async fn positions(run: &Run) -> Result<Positions, String> {
    let answer = run.client.get("/health/progress").await.map_err(|unanswered| unanswered.reason)?;
    if !answer.status.is_success() {
        return Err(answer.quoted());
    }
    serde_json::from_slice(&answer.body).map_err(|error| format!("{error} in what was {}", answer.quoted()))
}

fn as_count(position: i64) -> u64 {
    u64::try_from(position).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn positions(text: &str) -> Positions {
        serde_json::from_str(text).expect("positions")
    }

    #[test]
    fn without_an_event_store_the_first_head_is_the_goal() {
        let first = positions(r#"{"head": 7, "published": 0, "groups": []}"#);
        assert_eq!(Goal::Unknown.given(&first), Goal::Head(7));
        let later = positions(r#"{"head": 9, "published": 0, "groups": []}"#);
        assert_eq!(Goal::Head(7).given(&later), Goal::Head(7));
    }

    #[test]
    fn with_one_the_copys_head_counts_once_the_copy_has_what_the_store_had_first() {
        let at = |head: &str, store: &str, copied: &str| {
            let store = format!(r#"{{"head": {store}, "copied": {copied}}}"#);
            positions(&format!(r#"{{"head": {head}, "published": 0, "groups": [], "eventStore": {store}}}"#))
        };
        assert_eq!(Goal::Unknown.given(&at("3", "null", "40")), Goal::Unknown, "nobody says what was answered");
        assert_eq!(Goal::Unknown.given(&at("3", "100", "40")), Goal::Copy(100));
        assert_eq!(Goal::Copy(100).given(&at("3", "120", "99")), Goal::Copy(100));
        assert_eq!(Goal::Copy(100).given(&at("8", "null", "100")), Goal::Head(8));
        assert_eq!(Goal::Unknown.given(&at("0", "0", "null")), Goal::Head(0), "a store that has nothing");
        assert_eq!(Goal::Head(8).given(&at("9", "150", "150")), Goal::Head(8));
    }
}
