//! No silent death: every long-running task is named and watched. When one ends that nobody asked to end, whoever holds
//! the [`Supervisor`] is told; and on the way out, tasks stop stage by stage, so that what feeds stops before what is fed.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::future::Future;
use std::time::Duration;

use thiserror::Error;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// When a task is stopped: the stages stop one after another, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// Takes requests from outside.
    Http,
    /// Writes the log, and keeps house there.
    Write,
    /// Publishes the log.
    Relay,
    /// Reads the topic.
    Projection,
}

/// A task has ended though nobody asked it to.
#[derive(Debug, Error)]
#[error("{task} has ended: {reason}")]
pub struct TaskEnded {
    /// Which one.
    pub task: String,
    /// Why.
    pub reason: String,
}

/// Watches the tasks of one process.
#[derive(Debug)]
pub struct Supervisor {
    stages: BTreeMap<Stage, (CancellationToken, TaskTracker)>,
    sender: mpsc::UnboundedSender<TaskEnded>,
    ended: mpsc::UnboundedReceiver<TaskEnded>,
}

impl Default for Supervisor {
    fn default() -> Self {
        // At most one message a task is ever sent.
        let (sender, ended) = mpsc::unbounded_channel();
        Supervisor { stages: BTreeMap::new(), sender, ended }
    }
}

impl Supervisor {
    /// Runs a task; it is given the token that tells it to stop.
    pub fn spawn<F, E>(&mut self, stage: Stage, task: impl Into<String>, start: impl FnOnce(CancellationToken) -> F)
    where
        F: Future<Output = Result<(), E>> + Send + 'static,
        E: Display + Send + 'static,
    {
        let task = task.into();
        let (stop, tracker) = self.stages.entry(stage).or_default();
        let running = tokio::spawn(start(stop.child_token()));
        let (stop, sender) = (stop.clone(), self.sender.clone());
        tracker.spawn(async move {
            let reason = match running.await {
                Ok(Ok(())) if stop.is_cancelled() => return,
                Ok(Ok(())) => "it came to its end by itself".to_owned(),
                Ok(Err(error)) => error.to_string(),
                Err(panic) => format!("it panicked: {panic}"),
            };
            tracing::error!(task, reason, "a task has ended");
            // Nobody listens once everything is being stopped.
            let _ = sender.send(TaskEnded { task, reason });
        });
    }

    /// Waits for the first task that ends though nobody asked it to; for ever if all go on.
    pub async fn first_ended(&mut self) -> TaskEnded {
        match self.ended.recv().await {
            Some(ended) => ended,
            // Cannot be: `self.sender` is alive.
            None => std::future::pending().await,
        }
    }

    /// Stops every stage in turn, giving each at most `patience`.
    pub async fn stop(self, patience: Duration) {
        for (stage, (stop, tracker)) in self.stages {
            stop.cancel();
            tracker.close();
            if tokio::time::timeout(patience, tracker.wait()).await.is_err() {
                tracing::warn!(?stage, ?patience, "a task did not stop in time and is left behind");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[tokio::test]
    async fn a_task_that_ends_by_itself_is_reported() {
        let mut supervisor = Supervisor::default();
        supervisor.spawn(Stage::Relay, "relay", |_| async { Err::<(), _>("the cable is cut") });
        let ended = supervisor.first_ended().await;
        assert_eq!(ended.to_string(), "relay has ended: the cable is cut");
    }

    #[tokio::test]
    async fn a_panic_is_reported_and_not_swallowed() {
        let mut supervisor = Supervisor::default();
        supervisor.spawn(Stage::Write, "sequencer", |_| async {
            assert!(std::hint::black_box(false), "on purpose");
            Ok::<(), String>(())
        });
        assert!(supervisor.first_ended().await.reason.contains("panicked"));
    }

    #[tokio::test]
    async fn stages_stop_in_order() {
        let order = Arc::new(Mutex::new(Vec::new()));
        let mut supervisor = Supervisor::default();
        for stage in [Stage::Projection, Stage::Http, Stage::Relay, Stage::Write] {
            let order = Arc::clone(&order);
            supervisor.spawn(stage, "task", move |stop| async move {
                stop.cancelled().await;
                order.lock().expect("no panic").push(stage);
                Ok::<(), String>(())
            });
        }
        supervisor.stop(Duration::from_secs(5)).await;
        assert_eq!(*order.lock().expect("no panic"), [Stage::Http, Stage::Write, Stage::Relay, Stage::Projection]);
    }
}
