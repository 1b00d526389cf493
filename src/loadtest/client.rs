//! The wire: one connection pool, and requests that are sent again until they are answered.
//!
//! The client shares the machine with the service that it measures, so it does no more than it must: HTTP/1.1 on
//! kept connections, no proxy, no redirects, bodies written by hand and read only for the fields that are wanted.

use std::error::Error;
use std::time::{Duration, Instant};

use backon::{BackoffBuilder, ExponentialBuilder};
use bytes::{Bytes, BytesMut};
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER};
use reqwest::{Method, Request, Response, StatusCode, Url};
use serde::Deserialize;

use crate::loadtest::LoadTestError;

/// The longest answer that is read. A page of the read model has 1000 wallets of some 250 bytes.
const BODY_BYTES_MAX: usize = 4 << 20;
const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const BACKOFF_MIN: Duration = Duration::from_millis(20);
const BACKOFF_MAX: Duration = Duration::from_secs(1);
/// How much of a wrong answer is quoted.
const QUOTED_CHARS: usize = 200;

/// How long the client waits.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// For the answer to one request, before it is sent again.
    pub answer: Duration,
    /// For an operation to be answered, all its retries together.
    pub operation: Duration,
    /// For the projections to move, before the drain is given up.
    pub drain: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Patience { answer: Duration::from_secs(10), operation: Duration::from_secs(30), drain: Duration::from_secs(30) }
    }
}

/// A service to be measured.
#[derive(Clone, Debug)]
pub struct Client {
    http: reqwest::Client,
    base: Url,
    patience: Patience,
}

/// An answer of the service, whatever it says.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
    /// How often the request was sent again before this came.
    pub retries: u64,
}

/// A request that was never answered.
#[derive(Debug)]
pub struct Unanswered {
    pub reason: String,
    pub retries: u64,
}

/// The part of an error body that is wanted.
#[derive(Debug, Deserialize)]
struct Refusal {
    code: String,
}

impl Answer {
    /// The stable code of a refusal; `None` where this is no refusal as the contract has it.
    pub fn refusal(&self) -> Option<String> {
        if !self.status.is_client_error() {
            return None;
        }
        serde_json::from_slice::<Refusal>(&self.body).ok().map(|refusal| refusal.code)
    }

    /// The answer in one line, for a report of what went wrong.
    pub fn quoted(&self) -> String {
        let body: String = String::from_utf8_lossy(&self.body).chars().take(QUOTED_CHARS).collect();
        format!("answered {} {body:?}", self.status.as_u16())
    }

    /// Whether the service, or what stands before it, says that it could not look at the request now.
    fn asks_to_come_again(&self) -> bool {
        matches!(
            self.status,
            StatusCode::SERVICE_UNAVAILABLE
                | StatusCode::BAD_GATEWAY
                | StatusCode::GATEWAY_TIMEOUT
                | StatusCode::TOO_MANY_REQUESTS
        )
    }

    fn retry_after(&self) -> Option<Duration> {
        self.headers.get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok().map(Duration::from_secs)
    }
}

/// Reads the address of a service.
///
/// # Errors
/// [`LoadTestError::Address`] where it is none, or not plain HTTP.
pub fn parse_address(text: &str) -> Result<Url, LoadTestError> {
    let wrong = |reason: String| LoadTestError::Address { address: text.to_owned(), reason };
    let url = Url::parse(text).map_err(|error| wrong(error.to_string()))?;
    match url {
        url if url.scheme() != "http" => Err(wrong(format!("its scheme is {}, not http", url.scheme()))),
        url if url.query().is_some() || url.fragment().is_some() => {
            Err(wrong("it has a query or a fragment".to_owned()))
        }
        url if !url.username().is_empty() || url.password().is_some() => Err(wrong("it has a user name".to_owned())),
        url => Ok(url),
    }
}

impl Client {
    /// A client with up to `connections` kept connections.
    ///
    /// # Errors
    /// [`LoadTestError::Address`] where `address` is none.
    pub fn new(address: &str, connections: usize, patience: Patience) -> Result<Self, LoadTestError> {
        let base = parse_address(address)?;
        let http = reqwest::Client::builder()
            .http1_only()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            .tcp_nodelay(true)
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(patience.answer)
            .pool_max_idle_per_host(connections)
            .build()
            .map_err(|error| LoadTestError::Address { address: address.to_owned(), reason: chain(&error) })?;
        Ok(Client { http, base, patience })
    }

    /// How long this client waits.
    pub fn patience(&self) -> Patience {
        self.patience
    }

    /// Asks once whether anybody answers at all; 404 is an answer too.
    ///
    /// # Errors
    /// [`LoadTestError::Unreachable`] where nobody does.
    pub async fn knock(&self) -> Result<(), LoadTestError> {
        match self.http.execute(self.request(Method::GET, "/health/live")).await {
            Ok(_) => Ok(()),
            Err(error) => Err(LoadTestError::Unreachable { address: self.base.to_string(), reason: chain(&error) }),
        }
    }

    /// Reads.
    ///
    /// # Errors
    /// [`Unanswered`] where no answer came in time.
    pub async fn get(&self, path: &str) -> Result<Answer, Unanswered> {
        self.send_until_answered(|| self.request(Method::GET, path)).await
    }

    /// Sends a command. Its key makes it safe to send again.
    ///
    /// # Errors
    /// [`Unanswered`] where no answer came in time: the command may have happened.
    pub async fn post(&self, path: &str, key: &str, body: String) -> Result<Answer, Unanswered> {
        let key = HeaderValue::from_str(key)
            .map_err(|_| Unanswered { reason: format!("{key:?} cannot be a header"), retries: 0 })?;
        let body = Bytes::from(body);
        self.send_until_answered(|| {
            let mut request = self.request(Method::POST, path);
            let headers = request.headers_mut();
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
            headers.insert(IDEMPOTENCY_KEY, key.clone());
            *request.body_mut() = Some(body.clone().into());
            request
        })
        .await
    }

    /// Set part by part: the address is not parsed anew for each request.
    fn request(&self, method: Method, path_and_query: &str) -> Request {
        let (path, query) = match path_and_query.split_once('?') {
            Some((path, query)) => (path, Some(query)),
            None => (path_and_query, None),
        };
        let mut url = self.base.clone();
        match url.path() {
            "/" => url.set_path(path),
            prefix => url.set_path(&format!("{}{path}", prefix.trim_end_matches('/'))),
        }
        url.set_query(query);
        Request::new(method, url)
    }

    async fn send_until_answered(&self, request: impl Fn() -> Request) -> Result<Answer, Unanswered> {
        let started = Instant::now();
        let mut backoff = None;
        let mut retries = 0;
        loop {
            let (reason, asked_for) = match self.send(request()).await {
                Ok(answer) if answer.asks_to_come_again() => (answer.quoted(), answer.retry_after()),
                Ok(answer) => return Ok(Answer { retries, ..answer }),
                Err(reason) => (reason, None),
            };
            // Made only for those that need it: nearly no request does.
            let next = backoff.get_or_insert_with(backoff_delays).next().unwrap_or(BACKOFF_MAX);
            let pause = next.max(asked_for.unwrap_or_default());
            if started.elapsed() + pause >= self.patience.operation {
                return Err(Unanswered { reason, retries });
            }
            tokio::time::sleep(pause).await;
            retries += 1;
        }
    }

    async fn send(&self, request: Request) -> Result<Answer, String> {
        let mut response = self.http.execute(request).await.map_err(|error| chain(&error))?;
        let (status, headers) = (response.status(), std::mem::take(response.headers_mut()));
        let body = read_body(response).await?;
        Ok(Answer { status, headers, body, retries: 0 })
    }
}

async fn read_body(mut response: Response) -> Result<Bytes, String> {
    let Some(first) = response.chunk().await.map_err(|error| chain(&error))? else {
        return Ok(Bytes::new());
    };
    let Some(second) = response.chunk().await.map_err(|error| chain(&error))? else {
        return Ok(first);
    };
    let mut body = BytesMut::from(first);
    body.extend_from_slice(&second);
    while let Some(chunk) = response.chunk().await.map_err(|error| chain(&error))? {
        if body.len() + chunk.len() > BODY_BYTES_MAX {
            return Err(format!("answered with more than {BODY_BYTES_MAX} bytes"));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body.freeze())
}

fn backoff_delays() -> impl Iterator<Item = Duration> {
    ExponentialBuilder::new()
        .with_min_delay(BACKOFF_MIN)
        .with_max_delay(BACKOFF_MAX)
        .with_jitter()
        .without_max_times()
        .build()
}

/// An error in one line: reqwest says the cause only in its sources.
fn chain(error: &dyn Error) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_put_behind_the_address() {
        let url = |address: &str, path: &str| {
            let client = Client::new(address, 1, Patience::default()).expect("an address");
            client.request(Method::GET, path).url().to_string()
        };
        assert_eq!(url("http://localhost:3000", "/wallets/a"), "http://localhost:3000/wallets/a");
        assert_eq!(
            url("http://localhost:3000/", "/wallets?limit=2&cursor=b"),
            "http://localhost:3000/wallets?limit=2&cursor=b"
        );
        assert_eq!(url("http://localhost/behind/a/proxy/", "/wallets"), "http://localhost/behind/a/proxy/wallets");
    }
}
