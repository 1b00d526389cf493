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
struct Positions {
    head: i64,
    published: i64,
    groups: Vec<GroupPosition>,
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
        groups + i128::from(self.published)
    }

    fn in_words(&self) -> String {
        let groups: Vec<_> = self.groups.iter().map(|group| format!("{} at {}", group.group, group.position)).collect();
        format!("published {}, {}", self.published, groups.join(", "))
    }
}

/// Polls until every group has come to the head of now, or until nothing has moved for the client's patience.
pub async fn wait(run: &Run) -> Drain {
    let started = Instant::now();
    let mut goal = None;
    let (mut moved_at, mut moved_to) = (started, None);
    loop {
        let positions = match positions(run).await {
            Ok(positions) => positions,
            Err(reason) => {
                let expected = "the positions of the projections".to_owned();
                return Drain { duration: None, expected, actual: format!("GET /health/progress: {reason}") };
            }
        };
        let head = *goal.get_or_insert(positions.head);
        let expected = format!("every projection at {head}");
        run.report_progress(Phase::Drain, as_count(positions.slowest().min(head)), as_count(head));
        if !positions.groups.is_empty() && positions.slowest() >= head {
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
