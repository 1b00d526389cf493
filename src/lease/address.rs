//! Where a Redis is.

use std::sync::Arc;

use redis::io::tcp::TcpSettings;
use redis::{Client, ConnectionInfo, IntoConnectionInfo, ProtocolVersion};
use thiserror::Error;

/// Where a Redis is, and who asks there.
#[derive(Clone)]
pub struct RedisConfig {
    client: Client,
    shown: Arc<str>,
}

impl std::fmt::Debug for RedisConfig {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The client holds the password.
        write!(formatter, "RedisConfig({})", self.shown)
    }
}

/// Why an address is none.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum RedisConfigError {
    /// It cannot be read.
    #[error(
        "the address given by --redis or WALLEX_REDIS cannot be read ({0}); it should look like redis://user:password@host:6379/0"
    )]
    Address(String),
    /// It asks for TLS.
    #[error(
        "--redis or WALLEX_REDIS asks for TLS (rediss://), which wallex does not speak to Redis; name it by redis://, over a \
         connection that is safe without"
    )]
    Tls,
}

impl RedisConfig {
    /// Reads an address: `redis://user:password@host:6379/0`, or `redis+unix:///path?db=0&user=…&pass=…`.
    ///
    /// # Errors
    /// [`RedisConfigError`] where it is none, or one over TLS.
    pub fn new(address: &str) -> Result<Self, RedisConfigError> {
        if ["rediss://", "valkeys://"].iter().any(|scheme| address.starts_with(scheme)) {
            return Err(RedisConfigError::Tls);
        }
        let named = |error: redis::RedisError| {
            // The message may hold what was given, with its password.
            let said = error.to_string();
            RedisConfigError::Address(if said.contains("://") { "it is no URL".to_owned() } else { said })
        };
        let given: ConnectionInfo = address.into_connection_info().map_err(named)?;
        // Of the two protocols the newer one: on it a connection is told something while it asks for something.
        let settings = given.redis_settings().clone().set_protocol(ProtocolVersion::RESP3);
        let (place, database) = (given.addr().to_string(), settings.db());
        let shown = match given.addr() {
            redis::ConnectionAddr::Unix(_) => format!("redis+unix://{place}?db={database}"),
            _ => format!("redis://{place}/{database}"),
        };
        // Many small questions on one connection: none is to wait until the one before it is acknowledged.
        let info = given.set_redis_settings(settings).set_tcp_settings(TcpSettings::default().set_nodelay(true));
        let client = Client::open(info).map_err(named)?;
        Ok(RedisConfig { client, shown: shown.into() })
    }

    pub(super) fn client(&self) -> &Client {
        &self.client
    }

    /// The address without user and password, to show.
    pub fn shown(&self) -> &str {
        &self.shown
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_read_and_neither_user_nor_password_shown() {
        for (address, shown) in [
            ("redis://host", "redis://host:6379/0"),
            ("redis://someone:secret-word@host:7000/3", "redis://host:7000/3"),
            ("redis://:secret-word@[::1]:7000", "redis://::1:7000/0"),
            ("redis+unix:///run/redis.sock?db=2&user=someone&pass=secret-word", "redis+unix:///run/redis.sock?db=2"),
        ] {
            let config = RedisConfig::new(address).expect(address);
            assert_eq!(config.shown(), shown);
            assert_eq!(format!("{config:?}"), format!("RedisConfig({shown})"));
        }
    }

    #[test]
    fn what_is_no_address_is_refused_and_not_repeated() {
        for wrong in [
            "",
            "host:6379",
            "postgres://u:secret-word@h/d",
            "redis://u:secret-word@host:port",
            "redis://u:secret-word@host/x",
            "redis://u:secret-word@",
        ] {
            let error = RedisConfig::new(wrong).expect_err(wrong).to_string();
            assert!(!error.contains("secret-word") && error.contains("--redis"), "{wrong}: {error}");
        }
        let over_tls = RedisConfig::new("rediss://u:secret-word@host").expect_err("not supported");
        assert_eq!(over_tls, RedisConfigError::Tls);
    }
}
