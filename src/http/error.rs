//! Answers of no, all in one shape: `{statusCode, error, message, code}`.
//!
//! `code` is stable; the message is for people and may change. Nothing internal leaves in it: what an operator has to
//! know goes to the log.

use std::convert::Infallible;
use std::time::Duration;

use axum::response::{IntoResponse, Response};
use hyper::StatusCode;
use hyper::header::{CONNECTION, HeaderValue, RETRY_AFTER};
use serde::Serialize;

use crate::http::answer::json;
use crate::lag::LagError;
use crate::log::{LogError, ViewError};
use crate::money::MoneyError;
use crate::postgres::queries::QueryError;
use crate::sequencer::CommandError;
use crate::wallet::{EventError, IdentifierError, Rejection};

/// The longest message, in characters: what a client sent is quoted in some of them.
const MESSAGE_CHARACTERS_MAX: usize = 400;

/// The codes that are not a [`Rejection`]'s.
pub(super) mod code {
    /// 400: a field, a header or a parameter is not as it should be.
    pub(crate) const VALIDATION: &str = "VALIDATION";
    /// 400: an amount is not one.
    pub(crate) const INVALID_AMOUNT: &str = "INVALID_AMOUNT";
    /// 404: no such route.
    pub(crate) const NOT_FOUND: &str = "NOT_FOUND";
    /// 405: the route has other methods; `Allow` names them.
    pub(crate) const METHOD_NOT_ALLOWED: &str = "METHOD_NOT_ALLOWED";
    /// 408: the body did not come in time.
    pub(crate) const REQUEST_TIMEOUT: &str = "REQUEST_TIMEOUT";
    /// 413: the body is too large.
    pub(crate) const BODY_TOO_LARGE: &str = "BODY_TOO_LARGE";
    /// 415: the body is not said to be plain JSON.
    pub(crate) const UNSUPPORTED_MEDIA_TYPE: &str = "UNSUPPORTED_MEDIA_TYPE";
    /// 422: the key was used with another request.
    pub(crate) const IDEMPOTENCY_KEY_REUSED: &str = "IDEMPOTENCY_KEY_REUSED";
    /// 500: something is wrong on our side, and a retry will not help.
    pub(crate) const INTERNAL: &str = "INTERNAL";
    /// 500: the wallet's history cannot be read, and a retry will not help.
    pub(crate) const WALLET_UNREADABLE: &str = "WALLET_UNREADABLE";
    /// 503: too many commands are waiting; nothing was done.
    pub(crate) const BUSY: &str = "BUSY";
    /// 503: the store did not answer in time.
    pub(crate) const UNAVAILABLE: &str = "UNAVAILABLE";
}

/// An answer of no.
#[derive(Debug)]
pub(super) struct ApiError {
    status: StatusCode,
    code: &'static str,
    message: String,
    retry_after: Option<Duration>,
    close: bool,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Body<'a> {
    status_code: u16,
    error: &'a str,
    message: &'a str,
    code: &'a str,
}

impl ApiError {
    /// An answer of this status and code.
    pub(super) fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        ApiError { status, code, message: message.into(), retry_after: None, close: false }
    }

    /// 400 VALIDATION.
    pub(super) fn validation(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, code::VALIDATION, message)
    }

    /// 400 INVALID_AMOUNT.
    pub(super) fn invalid_amount(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, code::INVALID_AMOUNT, message)
    }

    /// 503 UNAVAILABLE for a read, with `Retry-After`.
    pub(super) fn unavailable(message: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, code::UNAVAILABLE, message).after(Duration::from_secs(1))
    }

    /// 500 WALLET_UNREADABLE. It is about what the wallet's own history says, so its owner may be told.
    fn unreadable(message: &str) -> Self {
        tracing::error!(message, "a request was answered with 500");
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, code::WALLET_UNREADABLE, message)
    }

    /// 500 INTERNAL. The cause goes to the log alone.
    pub(super) fn internal(cause: &dyn std::fmt::Display) -> Self {
        tracing::error!(%cause, "a request was answered with 500");
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            code::INTERNAL,
            "something is wrong on the server's side; its log says what",
        )
    }

    /// The same, and the connection is closed after it.
    pub(super) fn closing(mut self) -> Self {
        self.close = true;
        self
    }

    fn after(mut self, wait: Duration) -> Self {
        self.retry_after = Some(wait);
        self
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let message: String = match self.message.char_indices().nth(MESSAGE_CHARACTERS_MAX) {
            Some((end, _)) => format!("{}…", &self.message[..end]),
            None => self.message,
        };
        let body = Body {
            status_code: self.status.as_u16(),
            error: self.status.canonical_reason().unwrap_or("Error"),
            message: &message,
            code: self.code,
        };
        let mut response = json(self.status, &body);
        if let Some(wait) = self.retry_after {
            // Whole seconds, rounded up: 0 would mean "now".
            let seconds = wait.as_millis().div_ceil(1_000).max(1) as u64;
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.close {
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}

impl From<Infallible> for ApiError {
    fn from(never: Infallible) -> Self {
        match never {}
    }
}

impl From<Rejection> for ApiError {
    fn from(rejection: Rejection) -> Self {
        let status = match &rejection {
            Rejection::WalletNotFound(_) => StatusCode::NOT_FOUND,
            Rejection::WalletExists(_) => StatusCode::CONFLICT,
            Rejection::InvalidAmount(_)
            | Rejection::ZeroAmount
            | Rejection::BalanceTooLarge { .. }
            | Rejection::InsufficientFunds { .. }
            | Rejection::TransferToSelf
            | Rejection::CurrencyMismatch { .. } => StatusCode::BAD_REQUEST,
        };
        Self::new(status, rejection.code(), rejection.to_string())
    }
}

impl From<CommandError> for ApiError {
    fn from(error: CommandError) -> Self {
        let service_unavailable =
            |code, message: &str, wait| Self::new(StatusCode::SERVICE_UNAVAILABLE, code, message).after(wait);
        match error {
            CommandError::Rejected(rejection) => rejection.into(),
            CommandError::KeyReused => Self::new(
                StatusCode::UNPROCESSABLE_ENTITY,
                code::IDEMPOTENCY_KEY_REUSED,
                "this Idempotency-Key was used before with another body; nothing was done",
            ),
            CommandError::Busy { retry_after } => service_unavailable(
                code::BUSY,
                "too many commands are waiting; nothing was done, try again",
                retry_after,
            ),
            CommandError::Unavailable { maybe_done: false, retry_after } => service_unavailable(
                code::UNAVAILABLE,
                "the event log did not answer in time; nothing was done, try again",
                retry_after,
            ),
            CommandError::Unavailable { maybe_done: true, retry_after } => service_unavailable(
                code::UNAVAILABLE,
                "the event log did not answer in time and the command may have been carried out; sent again with the \
                 same Idempotency-Key it is carried out once",
                retry_after,
            ),
            CommandError::Corrupt(_) => Self::internal(&error),
            CommandError::Unreadable { .. } => Self::unreadable(&format!("{error}; nothing was done")),
        }
    }
}

impl From<IdentifierError> for ApiError {
    fn from(error: IdentifierError) -> Self {
        Self::validation(error.to_string())
    }
}

impl From<MoneyError> for ApiError {
    fn from(error: MoneyError) -> Self {
        match error {
            MoneyError::UnknownCurrency(_) => Self::validation(error.to_string()),
            _ => Self::invalid_amount(error.to_string()),
        }
    }
}

impl From<LogError> for ApiError {
    fn from(error: LogError) -> Self {
        match error {
            LogError::Away(cause) => {
                tracing::debug!(%cause, "a read found the event log away");
                Self::unavailable("the event log cannot be reached; try again")
            }
            LogError::Unsupported(_) | LogError::Corrupt(_) | LogError::Refused(_) => Self::internal(&error),
        }
    }
}

impl From<ViewError> for ApiError {
    fn from(error: ViewError) -> Self {
        match error {
            ViewError::Log(error) => error.into(),
            ViewError::Event(EventError::Earlier(_)) => {
                Self::unreadable(&format!("the wallet's history cannot be read: {error}"))
            }
            ViewError::Event(_) | ViewError::Corrupt(_) => Self::internal(&error),
        }
    }
}

impl From<QueryError> for ApiError {
    fn from(error: QueryError) -> Self {
        match error {
            QueryError::Away(cause) => {
                tracing::debug!(%cause, "a read found the database away or too slow");
                Self::unavailable("the database did not answer in time; try again")
            }
            QueryError::Wrong(_) => Self::internal(&error),
        }
    }
}

impl From<LagError> for ApiError {
    fn from(error: LagError) -> Self {
        match error {
            LagError::Away(cause) => {
                tracing::debug!(%cause, "a health route found the database away");
                Self::unavailable("the database did not answer in time; try again")
            }
            LagError::Refused(_) => Self::internal(&error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answered(error: impl Into<ApiError>) -> (u16, &'static str, Option<Duration>) {
        let error = error.into();
        (error.status.as_u16(), error.code, error.retry_after)
    }

    #[test]
    fn a_command_that_cannot_be_taken_says_when_to_come_back_and_whether_it_may_have_happened() {
        let wait = Duration::from_millis(1_200);
        assert_eq!(answered(CommandError::Busy { retry_after: wait }), (503, "BUSY", Some(wait)));
        for maybe_done in [false, true] {
            let error = ApiError::from(CommandError::Unavailable { maybe_done, retry_after: wait });
            assert_eq!((error.status.as_u16(), error.code), (503, "UNAVAILABLE"));
            assert_eq!(error.message.contains("nothing was done"), !maybe_done, "{}", error.message);
            assert_eq!(error.message.contains("Idempotency-Key"), maybe_done, "{}", error.message);
            assert_eq!(error.into_response().headers()[RETRY_AFTER], "2");
        }
        let at_once = ApiError::from(CommandError::Busy { retry_after: Duration::ZERO }).into_response();
        assert_eq!(at_once.headers()[RETRY_AFTER], "1");
    }

    #[test]
    fn nothing_internal_leaves() {
        let secret = "relation \"events\" does not exist at /var/lib/wallex";
        for error in [
            ApiError::from(CommandError::Corrupt(secret.to_owned())),
            ApiError::from(LogError::Corrupt(secret.to_owned())),
            ApiError::from(LogError::Refused(secret.to_owned())),
            ApiError::from(LogError::Away(secret.to_owned())),
            ApiError::from(QueryError::Away(secret.to_owned())),
            ApiError::from(QueryError::Wrong(secret.to_owned())),
        ] {
            assert!(!error.message.contains("events"), "{}", error.message);
            assert!(!error.message.contains("/var"), "{}", error.message);
        }
    }

    #[test]
    fn a_wallet_that_cannot_be_read_is_named_with_the_reason() {
        let wallet_id = crate::wallet::WalletId::new("wallet-7").expect("an id");
        let reason = "its WalletDebited of 10.005 is not exact".to_owned();
        let error = ApiError::from(CommandError::Unreadable { wallet_id, reason });
        assert_eq!((error.status.as_u16(), error.code), (500, "WALLET_UNREADABLE"));
        for word in ["wallet-7", "10.005", "nothing was done"] {
            assert!(error.message.contains(word), "{}", error.message);
        }
        let read = crate::wallet::WalletEvent::from_payload("WalletDebited", 0, br#"{"amount":10.005}"#);
        let error = ApiError::from(ViewError::Event(read.expect_err("not exact")));
        assert_eq!((error.status.as_u16(), error.code), (500, "WALLET_UNREADABLE"));
        assert!(error.message.contains("10.005"), "{}", error.message);
    }

    #[test]
    fn a_key_that_was_used_before_is_422() {
        assert_eq!(answered(CommandError::KeyReused), (422, "IDEMPOTENCY_KEY_REUSED", None));
    }
}
