//! A connection on which leases are taken and given back.

use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, FromRedisValue, PushInfo, PushKind, RedisError, from_redis_value_ref};
use tokio::sync::mpsc;

use crate::lease::{ANSWER_MAX, EXPIRY, FREED, RedisConfig};

/// How long it may take until a Redis has taken a connection and said its first word.
const CONTACT_MAX: Duration = Duration::from_secs(1);

/// Deletes a key where it holds this value, and tells those that wait.
const GIVE_BACK: &str = "\
if redis.call('GET', KEYS[1]) == ARGV[1] then
    redis.call('DEL', KEYS[1])
    redis.call('PUBLISH', ARGV[2], ARGV[1] .. ' ' .. KEYS[1])
    return 1
end
return 0";

/// The connection; clones are the same one.
#[derive(Clone)]
pub(super) struct Link {
    connection: MultiplexedConnection,
    /// Why it is no good any more. The first reason is the one that counts.
    failures: mpsc::Sender<String>,
}

impl Link {
    /// Connects, and tries out whether leases can be had. Of each that is given back `heard` is told, as its token and its key with a
    /// space between them. The other end of the pair tells when the connection has failed.
    pub(super) async fn open(
        config: &RedisConfig,
        heard: impl Fn(&str) + Send + Sync + 'static,
        trial: &str,
    ) -> Result<(Link, mpsc::Receiver<String>), String> {
        let (failures, failed) = mpsc::channel(1);
        let on_failure = failures.clone();
        let told = move |push: PushInfo| {
            match push.kind {
                PushKind::Message => {
                    if let Some(Ok(message)) = push.data.get(1).map(from_redis_value_ref::<String>) {
                        heard(&message);
                    }
                }
                // Somebody may have found out before.
                PushKind::Disconnection => {
                    let _ = on_failure.try_send("the connection has ended".to_owned());
                }
                _ => {}
            }
            Ok::<(), redis::aio::SendError>(())
        };
        let options = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONTACT_MAX))
            .set_response_timeout(Some(ANSWER_MAX))
            .set_push_sender(told);
        let opening = config.client().get_multiplexed_async_connection_with_config(&options);
        let mut connection = opening.await.map_err(reason)?;
        connection.subscribe(FREED).await.map_err(reason)?;
        let link = Link { connection, failures };
        link.try_out(trial).await?;
        Ok((link, failed))
    }

    /// Takes something that nobody else takes, and gives it back.
    pub(super) async fn try_out(&self, trial: &str) -> Result<(), String> {
        self.take(trial, trial).await?;
        self.give_back(trial, trial).await
    }

    /// Whether the lease is ours now.
    pub(super) async fn take(&self, key: &str, token: &str) -> Result<bool, String> {
        let expiry = EXPIRY.as_millis() as u64;
        let mut set = redis::cmd("SET");
        set.arg(key).arg(token).arg("NX").arg("PX").arg(expiry);
        // Nothing is answered where the key is there already.
        self.ask::<Option<String>>(&set).await.map(|answer| answer.is_some())
    }

    /// Gives it back if it is still ours.
    pub(super) async fn give_back(&self, key: &str, token: &str) -> Result<(), String> {
        let mut give_back = redis::cmd("EVAL");
        give_back.arg(GIVE_BACK).arg(1).arg(key).arg(token).arg(FREED);
        self.ask::<i64>(&give_back).await.map(|_| ())
    }

    async fn ask<T: FromRedisValue>(&self, question: &redis::Cmd) -> Result<T, String> {
        question.query_async(&mut self.connection.clone()).await.map_err(reason)
    }

    /// Whether both are the same connection.
    pub(super) fn is(&self, other: &Link) -> bool {
        self.failures.same_channel(&other.failures)
    }

    /// Reports why it is no good.
    pub(super) fn failed(&self, reason: String) {
        // Somebody has said so before.
        let _ = self.failures.try_send(reason);
    }
}

fn reason(error: RedisError) -> String {
    match error.is_timeout() {
        true => format!("no answer in time: {error}"),
        false => error.to_string(),
    }
}
