//! One connection: HTTP/1.1 over it, and the time that its client may take.
//!
//! hyper has one timer for headers only. Here what the connection is doing, and since when, is noted as it happens (an
//! atomic store), and a watch beside the connection looks at it now and then: no timer is set for a request.

use std::convert::Infallible;
use std::future::Future;
use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::response::Response;
use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::http::Limits;

/// hyper's own bound on what it buffers of one connection.
const BUFFER_BYTES: usize = 64 * 1_024;

/// How a connection ends from outside.
#[derive(Clone)]
pub(super) struct Ends {
    /// Answer what is under way, take nothing new.
    pub(super) stop: CancellationToken,
    /// Close now.
    pub(super) cut: CancellationToken,
}

/// Serves a connection until it is closed by either side, is too slow, or is told to end.
pub(super) async fn serve_connection<F, A>(stream: TcpStream, limits: &Limits, ends: Ends, answer: F)
where
    F: Fn(Request<Incoming>) -> A,
    A: Future<Output = Response>,
{
    let activity = Arc::new(Activity::new());
    let io = TokioIo::new(Watched { stream, activity: Arc::clone(&activity) });
    let service = service_fn(|request| {
        activity.enter(Phase::Busy);
        let answer = answer(request);
        let activity = &activity;
        async move {
            let response = answer.await;
            activity.enter(Phase::Writing);
            Ok::<_, Infallible>(response)
        }
    });
    let connection = http1::Builder::new()
        // A client may close its sending side after its request and still wait for the answer.
        .half_close(true)
        .header_read_timeout(None)
        .max_header_size(limits.header_bytes)
        .max_buf_size(BUFFER_BYTES)
        .serve_connection(io, service);
    let mut connection = pin!(connection);
    let mut too_slow = pin!(activity.too_slow(limits));
    let mut stopping = false;
    loop {
        tokio::select! {
            biased;
            ended = connection.as_mut() => {
                if let Err(error) = ended {
                    tracing::debug!(%error, "a connection ended badly");
                }
                return;
            }
            phase = too_slow.as_mut() => {
                tracing::debug!(?phase, "a connection was closed: its client took too long");
                return;
            }
            () = ends.cut.cancelled() => return,
            () = ends.stop.cancelled(), if !stopping => {
                stopping = true;
                connection.as_mut().graceful_shutdown();
            }
        }
    }
}

/// What a connection is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Waiting for a request's first byte.
    Idle,
    /// Reading headers.
    Headers,
    /// Reading a body or making an answer; both have their own deadlines.
    Busy,
    /// Writing an answer.
    Writing,
}

impl Phase {
    const ALL: [Phase; 4] = [Phase::Idle, Phase::Headers, Phase::Busy, Phase::Writing];
}

/// A phase and when it began, in one word: milliseconds since the connection was made, and two bits for the phase. Only
/// the connection's own task touches it.
struct Activity {
    made_at: Instant,
    word: AtomicU64,
}

impl Activity {
    fn new() -> Self {
        // A new connection counts as one that is sending headers: whoever connects has something to say.
        Activity { made_at: Instant::now(), word: AtomicU64::new(Phase::Headers as u64) }
    }

    fn enter(&self, phase: Phase) {
        let since = self.made_at.elapsed().as_millis() as u64;
        self.word.store(since << 2 | phase as u64, Ordering::Relaxed);
    }

    fn phase(&self) -> Phase {
        Phase::ALL[(self.word.load(Ordering::Relaxed) & 3) as usize]
    }

    fn since(&self) -> Duration {
        Duration::from_millis(self.word.load(Ordering::Relaxed) >> 2)
    }

    /// Ends when a phase has taken longer than it may, with that phase.
    async fn too_slow(&self, limits: &Limits) -> Phase {
        // Looking this often is enough: a phase that begins after a look is seen before it can be over its time.
        let pause = limits.header_read.min(limits.answer_write).min(limits.keep_alive);
        loop {
            let phase = self.phase();
            let limit = match phase {
                Phase::Idle => Some(limits.keep_alive),
                Phase::Headers => Some(limits.header_read),
                Phase::Busy => None,
                Phase::Writing => Some(limits.answer_write),
            };
            let now = self.made_at.elapsed();
            let left = limit.map_or(pause, |limit| (self.since() + limit).saturating_sub(now));
            if left.is_zero() {
                return phase;
            }
            tokio::time::sleep(left.min(pause)).await;
        }
    }
}

/// A stream that notes when a request begins to come in and when an answer has gone out.
struct Watched {
    stream: TcpStream,
    activity: Arc<Activity>,
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(context, buffer))?;
        if buffer.filled().len() > before && self.activity.phase() == Phase::Idle {
            self.activity.enter(Phase::Headers);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Watched {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        // hyper flushes when all that it has buffered is written: the answer is out.
        ready!(Pin::new(&mut self.stream).poll_flush(context))?;
        if self.activity.phase() == Phase::Writing {
            self.activity.enter(Phase::Idle);
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
