//! What has arrived: a request's correlation id, its idempotency key, and its body, all within their bounds.

use std::convert::Infallible;
use std::sync::Arc;

use axum::extract::{FromRequestParts, Path};
use axum::http::request::Parts;
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::{Body, Incoming};
use hyper::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, EXPECT, HeaderMap, HeaderValue};
use hyper::{Request, StatusCode};
use uuid::Uuid;

use crate::http::Limits;
use crate::http::error::{ApiError, code};

/// The header of the correlation id.
pub(super) const X_CORRELATION_ID: &str = "x-correlation-id";
/// The header of the idempotency key.
const IDEMPOTENCY_KEY: &str = "idempotency-key";

const CORRELATION_ID_BYTES_MAX: usize = 128;
const IDEMPOTENCY_KEY_BYTES_MAX: usize = 255;

/// What belongs to a request besides its parts; the routes find it in the request's extensions.
#[derive(Clone)]
pub(super) struct Arrival {
    pub(super) correlation_id: Arc<str>,
    pub(super) body: Bytes,
}

/// The correlation id that the answer carries: the client's if it sent a good one, else a new one.
pub(super) struct Correlation {
    pub(super) header: HeaderValue,
    pub(super) id: Arc<str>,
    /// Whether the client sent one that cannot be taken.
    pub(super) refused: bool,
}

impl Correlation {
    pub(super) fn of(headers: &HeaderMap) -> Self {
        let sent = headers.get(X_CORRELATION_ID);
        match sent.map(|header| (header, visible_ascii(header, CORRELATION_ID_BYTES_MAX))) {
            Some((header, Some(id))) => Correlation { header: header.clone(), id: id.into(), refused: false },
            refused => {
                let id = Uuid::now_v7().to_string();
                let header = HeaderValue::from_str(&id).expect("a uuid is visible ASCII");
                Correlation { header, id: id.into(), refused: refused.is_some() }
            }
        }
    }

    /// # Errors
    /// 400 where the client's was refused.
    pub(super) fn check(&self) -> Result<(), ApiError> {
        if self.refused {
            return Err(ApiError::validation(format!(
                "X-Correlation-Id must be 1 to {CORRELATION_ID_BYTES_MAX} visible ASCII characters"
            )));
        }
        Ok(())
    }
}

/// A header's text if it is 1 to `bytes_max` visible ASCII characters, without spaces.
fn visible_ascii(value: &HeaderValue, bytes_max: usize) -> Option<&str> {
    let bytes = value.as_bytes();
    let fits = (1..=bytes_max).contains(&bytes.len()) && bytes.iter().all(u8::is_ascii_graphic);
    if fits { value.to_str().ok() } else { None }
}

/// Reads the whole body. It is read before anything else is looked at, so that a client that is still sending gets its
/// answer and not a broken connection.
///
/// # Errors
/// 413 where it is too large, 408 where it is too slow, 400 where it breaks off.
pub(super) async fn read_body(request: &mut Request<Incoming>, limits: &Limits) -> Result<Bytes, ApiError> {
    if request.body().is_end_stream() {
        return Ok(Bytes::new());
    }
    let too_large = || {
        let message = format!("the body is larger than {} bytes", limits.body_bytes);
        ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, code::BODY_TOO_LARGE, message)
    };
    // A client that waits for "100 Continue" can be told at once, and one that announces too much to be thrown away as well.
    let announced = request.headers().get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    let waits = request.headers().contains_key(EXPECT);
    let readable = if waits { limits.body_bytes as u64 } else { limits.body_discard_bytes };
    if announced.is_some_and(|announced| announced > readable) {
        return Err(too_large().closing());
    }
    let body = request.body_mut();
    match tokio::time::timeout(limits.body_read, collect(body, limits)).await {
        Ok(Ok(Collected::Whole(bytes))) => Ok(bytes),
        Ok(Ok(Collected::Dropped)) => Err(too_large()),
        Ok(Ok(Collected::Endless)) => Err(too_large().closing()),
        Ok(Err(error)) => {
            tracing::debug!(%error, "a body broke off");
            Err(ApiError::validation("the body broke off before its end").closing())
        }
        Err(_) => {
            let message = format!("the body did not arrive within {} ms", limits.body_read.as_millis());
            Err(ApiError::new(StatusCode::REQUEST_TIMEOUT, code::REQUEST_TIMEOUT, message).closing())
        }
    }
}

enum Collected {
    Whole(Bytes),
    /// Too large, and read to its end.
    Dropped,
    /// Too large even to be read and dropped.
    Endless,
}

async fn collect(body: &mut Incoming, limits: &Limits) -> Result<Collected, hyper::Error> {
    // Nearly every body is one chunk, which is then the body; only more of them are put together.
    let (mut first, mut joined) = (Bytes::new(), BytesMut::new());
    let mut read: u64 = 0;
    while let Some(frame) = body.frame().await {
        let Ok(chunk) = frame?.into_data() else {
            continue;
        };
        read = read.saturating_add(chunk.len() as u64);
        if read > limits.body_discard_bytes.max(limits.body_bytes as u64) {
            return Ok(Collected::Endless);
        }
        if read > limits.body_bytes as u64 {
            (first, joined) = (Bytes::new(), BytesMut::new());
        } else if first.is_empty() {
            first = chunk;
        } else {
            if joined.is_empty() {
                joined.extend_from_slice(&first);
            }
            joined.extend_from_slice(&chunk);
        }
    }
    Ok(if read > limits.body_bytes as u64 {
        Collected::Dropped
    } else if joined.is_empty() {
        Collected::Whole(first)
    } else {
        Collected::Whole(joined.freeze())
    })
}

/// The one variable segment of a path, decoded once. One that is no UTF-8 is taken as empty: nothing that stands in a path
/// may be empty, so it is refused by the name of what it should be.
pub(super) struct PathText(pub(super) String);

impl<S: Send + Sync> FromRequestParts<S> for PathText {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Infallible> {
        let decoded = Path::<String>::from_request_parts(parts, state).await;
        Ok(PathText(decoded.map_or_else(|_| String::new(), |Path(text)| text)))
    }
}

/// A command as it arrived: a JSON body, and perhaps an idempotency key.
pub(super) struct Posted {
    pub(super) correlation_id: Arc<str>,
    pub(super) idempotency_key: Option<Arc<str>>,
    pub(super) body: Bytes,
}

impl<S: Sync> FromRequestParts<S> for Posted {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, ApiError> {
        let idempotency_key = idempotency_key(&parts.headers)?;
        require_json(&parts.headers)?;
        let arrival = parts
            .extensions
            .remove::<Arrival>()
            .ok_or_else(|| ApiError::internal(&"a request without its body came to a route"))?;
        Ok(Posted { correlation_id: arrival.correlation_id, idempotency_key, body: arrival.body })
    }
}

fn idempotency_key(headers: &HeaderMap) -> Result<Option<Arc<str>>, ApiError> {
    let mut sent = headers.get_all(IDEMPOTENCY_KEY).iter();
    let Some(first) = sent.next() else {
        return Ok(None);
    };
    match visible_ascii(first, IDEMPOTENCY_KEY_BYTES_MAX) {
        Some(key) if sent.next().is_none() => Ok(Some(key.into())),
        Some(_) => Err(ApiError::validation("Idempotency-Key must be given once")),
        None => Err(ApiError::validation(format!(
            "Idempotency-Key must be 1 to {IDEMPOTENCY_KEY_BYTES_MAX} visible ASCII characters"
        ))),
    }
}

fn require_json(headers: &HeaderMap) -> Result<(), ApiError> {
    let unsupported =
        |message: &str| Err(ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, code::UNSUPPORTED_MEDIA_TYPE, message));
    let Some(content_type) = headers.get(CONTENT_TYPE) else {
        return unsupported("Content-Type is missing; expected application/json");
    };
    if !is_json(content_type.to_str().unwrap_or_default()) {
        return unsupported("Content-Type must be application/json, in UTF-8");
    }
    match headers.get(CONTENT_ENCODING) {
        Some(encoding) if !encoding.as_bytes().eq_ignore_ascii_case(b"identity") => {
            unsupported("Content-Encoding is not supported; send the body uncompressed")
        }
        _ => Ok(()),
    }
}

fn is_json(content_type: &str) -> bool {
    let mut parts = content_type.split(';').map(str::trim);
    let essence = parts.next().unwrap_or_default();
    let in_utf_8 = |parameter: &str| match parameter.split_once('=') {
        Some((name, value)) if name.trim().eq_ignore_ascii_case("charset") => {
            value.trim().trim_matches('"').eq_ignore_ascii_case("utf-8")
        }
        _ => true,
    };
    essence.eq_ignore_ascii_case("application/json") && parts.all(in_utf_8)
}

#[cfg(test)]
mod tests {
    use super::is_json;

    #[test]
    fn json_in_utf_8_is_taken_by_any_spelling() {
        for right in [
            "application/json",
            "application/JSON",
            "application/json; charset=utf-8",
            "application/json;charset=\"UTF-8\"",
        ] {
            assert!(is_json(right), "{right}");
        }
        for wrong in ["", "text/plain", "application/jsonx", "application/json; charset=latin1", "text/json", "json"] {
            assert!(!is_json(wrong), "{wrong}");
        }
    }
}
