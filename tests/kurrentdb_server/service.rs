//! The server's calls, by their published names.

#![expect(clippy::result_large_err, reason = "the error is the protocol's status, and the library's to shape")]

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};

use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::body::BoxBody;
use tonic::codec::ProstCodec;
use tonic::codegen::http;
use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::server::{Grpc, NamedService};
use tonic::{Code, Request, Response, Status, Streaming};
use uuid::Uuid;

use super::protocol::{
    AllOptions, AppendContent, AppendOptions, AppendRequest, AppendResponse, AppendResult, AppendSuccess,
    BatchAppendRequest, BatchAppendResponse, BatchResult, ClusterInfo, Confirmation, CurrentRevision, EndPoint,
    Expected, Filter, FilterBy, FromPosition, FromRevision, LogPosition, Member, ProposedEvent, ReadContent, ReadCount,
    ReadEvent, ReadFrom, ReadOptions, ReadRequest, ReadResponse, Recorded, StatusMessage, StreamIdentifier,
    StreamNotFound, StreamOptions, SupportedMethod, SupportedMethods, UuidMessage, WrongCurrent, WrongExpected,
    WrongVersion,
};
use super::storage::{Kept, Outcome};
use super::{AppendFault, Shared};

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// How many messages wait for a subscriber.
const SUBSCRIPTION_BUFFER: usize = 64;

/// A call's body as the service that tonic asks for.
struct Call<F>(F);

impl<F, Asked, Answering, Answered> tonic::codegen::Service<Asked> for Call<F>
where
    F: FnMut(Asked) -> Answering,
    Answering: Future<Output = Result<Response<Answered>, Status>>,
{
    type Response = Response<Answered>;
    type Error = Status;
    type Future = Answering;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, asked: Asked) -> Answering {
        (self.0)(asked)
    }
}

/// A service of the protocol under its name.
macro_rules! named {
    ($service:ident, $name:literal) => {
        #[derive(Clone)]
        pub struct $service(pub Arc<Shared>);

        impl NamedService for $service {
            const NAME: &'static str = $name;
        }

        impl tonic::codegen::Service<http::Request<BoxBody>> for $service {
            type Response = http::Response<BoxBody>;
            type Error = Infallible;
            type Future = Pin<Box<dyn Future<Output = Result<http::Response<BoxBody>, Infallible>> + Send>>;

            fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
                Poll::Ready(Ok(()))
            }

            fn call(&mut self, request: http::Request<BoxBody>) -> Self::Future {
                let shared = Arc::clone(&self.0);
                Box::pin(async move { Ok(Self::answer(shared, request).await) })
            }
        }
    };
}

named!(Streams, "event_store.client.streams.Streams");
named!(Gossip, "event_store.client.gossip.Gossip");
named!(ServerFeatures, "event_store.client.server_features.ServerFeatures");

fn method(request: &http::Request<BoxBody>) -> &str {
    request.uri().path().rsplit('/').next().unwrap_or_default()
}

fn unknown() -> http::Response<BoxBody> {
    Status::unimplemented("no such method").into_http()
}

impl ServerFeatures {
    async fn answer(shared: Arc<Shared>, request: http::Request<BoxBody>) -> http::Response<BoxBody> {
        if method(&request) != "GetSupportedMethods" {
            return unknown();
        }
        let call = Call(move |_: Request<()>| {
            let shared = Arc::clone(&shared);
            async move {
                shared.hesitate().await;
                let supported = |method: &str| SupportedMethod {
                    method: method.to_owned(),
                    service: "event_store.client.streams.streams".to_owned(),
                };
                let methods = ["append", "batchappend", "read"].map(supported).to_vec();
                Ok(Response::new(SupportedMethods { methods, server_version: "24.6.0".to_owned() }))
            }
        });
        Grpc::new(ProstCodec::default()).unary(call, request).await
    }
}

impl Gossip {
    async fn answer(shared: Arc<Shared>, request: http::Request<BoxBody>) -> http::Response<BoxBody> {
        if method(&request) != "Read" {
            return unknown();
        }
        let call = Call(move |_: Request<()>| {
            let shared = Arc::clone(&shared);
            async move {
                shared.hesitate().await;
                let leader = shared.leader();
                let member = |address: std::net::SocketAddr, state| Member {
                    state,
                    is_alive: true,
                    endpoint: Some(EndPoint { address: address.ip().to_string(), port: u32::from(address.port()) }),
                };
                let members = match leader {
                    None => vec![member(shared.address, 8)],
                    Some(leader) => vec![member(shared.address, 6), member(leader, 8)],
                };
                Ok(Response::new(ClusterInfo { members }))
            }
        });
        Grpc::new(ProstCodec::default()).unary(call, request).await
    }
}

impl Streams {
    async fn answer(shared: Arc<Shared>, request: http::Request<BoxBody>) -> http::Response<BoxBody> {
        match method(&request) {
            "Append" => {
                let call = Call(move |asked| append(Arc::clone(&shared), asked));
                Grpc::new(ProstCodec::default()).client_streaming(call, request).await
            }
            "BatchAppend" => {
                let call = Call(move |asked| batch_append(Arc::clone(&shared), asked));
                Grpc::new(ProstCodec::default()).streaming(call, request).await
            }
            "Read" => {
                let call = Call(move |asked| read(Arc::clone(&shared), asked));
                Grpc::new(ProstCodec::default()).server_streaming(call, request).await
            }
            _ => unknown(),
        }
    }
}

/// Turns away who may not come in. A follower does it with whoever asks for the leader, and says where that is.
fn let_in(shared: &Shared, asked: &MetadataMap) -> Result<(), Status> {
    let authorization = asked.get("authorization").and_then(|value| value.to_str().ok());
    if shared.demands().is_some_and(|demanded| authorization != Some(demanded)) {
        return Err(Status::unauthenticated("who are you?"));
    }
    match shared.leader() {
        Some(leader) if asked.get("requires-leader").is_some_and(|value| value == "true") => {
            let mut status = Status::not_found("Leader info available");
            let metadata = status.metadata_mut();
            metadata.insert("exception", MetadataValue::from_static("not-leader"));
            let text = |text: String| MetadataValue::try_from(text).expect("plain text");
            metadata.insert("leader-endpoint-host", text(leader.ip().to_string()));
            metadata.insert("leader-endpoint-port", text(leader.port().to_string()));
            Err(status)
        }
        _ => Ok(()),
    }
}

fn name_of(stream: Option<&StreamIdentifier>) -> Result<String, Status> {
    let name = stream.ok_or_else(|| Status::invalid_argument("a stream is missing"))?.name.clone();
    String::from_utf8(name).map_err(|_| Status::invalid_argument("a stream's name that is no text"))
}

fn with_ids(events: Vec<ProposedEvent>) -> Result<Vec<(Uuid, ProposedEvent)>, Status> {
    let with_id = |event: ProposedEvent| {
        let id = event.id.as_ref().and_then(UuidMessage::read);
        Ok((id.ok_or_else(|| Status::invalid_argument("an event without an id"))?, event))
    };
    events.into_iter().map(with_id).collect()
}

/// Writes, with whatever fault is asked for. `None`: the connection has been cut, there is nobody to answer.
async fn write(
    shared: &Shared,
    options: &AppendOptions,
    events: Vec<ProposedEvent>,
) -> Result<Option<(String, Expected, Outcome)>, Status> {
    let stream = name_of(options.stream.as_ref())?;
    let expected = options.expected.ok_or_else(|| Status::invalid_argument("an expected revision is missing"))?;
    let events = with_ids(events)?;
    shared.hesitate().await;
    let fault = shared.next_append_fault();
    if fault == Some(AppendFault::CutBefore) {
        shared.cut_connections();
        return Ok(None);
    }
    let outcome = shared.storage().append(&stream, expected, &events);
    if matches!(outcome, Outcome::WrongVersion { .. }) {
        shared.conflicts.fetch_add(1, Ordering::Relaxed);
    } else if let Some(disk) = &shared.disk {
        disk.keep(events.iter().flat_map(|(id, event)| on_disk(&stream, *id, event)).collect()).await;
    }
    shared.grown.send_modify(|_| {});
    if fault == Some(AppendFault::CutAfter) {
        shared.cut_connections();
        return Ok(None);
    }
    Ok(Some((stream, expected, outcome)))
}

/// An event as it lies on the disk, for its size more than for its form.
fn on_disk(stream: &str, id: Uuid, event: &ProposedEvent) -> Vec<u8> {
    [stream.as_bytes(), id.as_bytes(), &event.custom_metadata, &event.data].concat()
}

fn success(revision: u64, position: u64) -> AppendSuccess {
    AppendSuccess {
        revision: Some(CurrentRevision::Revision(revision)),
        position: Some(LogPosition { commit: position, prepare: position }),
    }
}

async fn append(
    shared: Arc<Shared>,
    asked: Request<Streaming<AppendRequest>>,
) -> Result<Response<AppendResponse>, Status> {
    let_in(&shared, asked.metadata())?;
    let mut messages = asked.into_inner();
    let Some(AppendRequest { content: Some(AppendContent::Options(options)) }) = messages.message().await? else {
        return Err(Status::invalid_argument("the options come first"));
    };
    let mut events = Vec::new();
    while let Some(message) = messages.message().await? {
        match message.content {
            Some(AppendContent::Event(event)) => events.push(event),
            _ => return Err(Status::invalid_argument("events follow the options")),
        }
    }
    let Some((_, expected, outcome)) = write(&shared, &options, events).await? else {
        return std::future::pending().await;
    };
    let result = match outcome {
        Outcome::Success { revision, position } => AppendResult::Success(success(revision, position)),
        Outcome::WrongVersion { current } => AppendResult::WrongVersion(WrongVersion {
            current: Some(current.map_or(WrongCurrent::NoStream(()), WrongCurrent::Revision)),
            expected: Some(match expected {
                Expected::Revision(revision) => WrongExpected::Revision(revision),
                Expected::NoStream(()) => WrongExpected::NoStream(()),
                Expected::Any(()) => WrongExpected::Any(()),
                Expected::StreamExists(()) => WrongExpected::StreamExists(()),
            }),
        }),
    };
    Ok(Response::new(AppendResponse { result: Some(result) }))
}

async fn batch_append(
    shared: Arc<Shared>,
    asked: Request<Streaming<BatchAppendRequest>>,
) -> Result<Response<Answers<BatchAppendResponse>>, Status> {
    let_in(&shared, asked.metadata())?;
    shared.counts.append_calls.fetch_add(1, Ordering::SeqCst);
    let mut batches = asked.into_inner();
    let (sender, receiver) = mpsc::channel(SUBSCRIPTION_BUFFER);
    tokio::spawn(async move {
        // Until the client has no more, or is gone.
        while let Ok(Some(batch)) = batches.message().await {
            // Where there is no answer, this connection has been cut.
            let Some(answer) = answer_batch(&shared, batch).await.transpose() else { return };
            let is_over = answer.is_err();
            if sender.send(answer).await.is_err() || is_over {
                return;
            }
        }
    });
    Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
}

async fn answer_batch(shared: &Shared, batch: BatchAppendRequest) -> Result<Option<BatchAppendResponse>, Status> {
    let options = batch.options.ok_or_else(|| Status::invalid_argument("options are missing"))?;
    let Some((stream, _, outcome)) = write(shared, &options, batch.events).await? else {
        return Ok(None);
    };
    let result = match outcome {
        Outcome::Success { revision, position } => BatchResult::Success(success(revision, position)),
        Outcome::WrongVersion { .. } => BatchResult::Error(StatusMessage {
            code: Code::AlreadyExists as i32,
            message: "WrongExpectedVersion".to_owned(),
        }),
    };
    let stream = Some(StreamIdentifier { name: stream.into_bytes() });
    Ok(Some(BatchAppendResponse { correlation_id: batch.correlation_id, stream, result: Some(result) }))
}

fn read_event(kept: &Kept) -> ReadResponse {
    let mut metadata = kept.event.metadata.clone();
    metadata.insert("created".to_owned(), kept.created_ticks.to_string());
    let event = Recorded {
        id: Some(UuidMessage::text(kept.id)),
        stream: Some(StreamIdentifier { name: kept.stream.clone().into_bytes() }),
        revision: kept.revision,
        prepare_position: kept.position,
        commit_position: kept.position,
        metadata,
        custom_metadata: kept.event.custom_metadata.clone(),
        data: kept.event.data.clone(),
    };
    let event = ReadEvent { event: Some(event), commit_position: Some(kept.position) };
    ReadResponse { content: Some(ReadContent::Event(event)) }
}

async fn read(shared: Arc<Shared>, asked: Request<ReadRequest>) -> Result<Response<Answers<ReadResponse>>, Status> {
    let_in(&shared, asked.metadata())?;
    let options = asked.into_inner().options.ok_or_else(|| Status::invalid_argument("options are missing"))?;
    shared.hesitate().await;
    shared.counts.reads.fetch_add(1, Ordering::SeqCst);
    let count = match options.count {
        Some(ReadCount::Count(count)) => usize::try_from(count).unwrap_or(usize::MAX),
        Some(ReadCount::Subscription(())) => {
            let ReadOptions { from: Some(ReadFrom::All(from)), filter, .. } = options else {
                return Err(Status::unimplemented("subscriptions to one stream"));
            };
            shared.counts.subscriptions.fetch_add(1, Ordering::SeqCst);
            return Ok(Response::new(subscribe(shared, from, filter)));
        }
        None => return Err(Status::invalid_argument("a count is missing")),
    };
    let backwards = options.direction == 1;
    let mut answers = match options.from {
        Some(ReadFrom::Stream(from)) => read_stream(&shared, &from, backwards, count)?,
        Some(ReadFrom::All(from)) => {
            read_all(&shared, from, backwards, count, |kept| passes(options.filter.as_ref(), kept))
        }
        None => return Err(Status::invalid_argument("nothing to read from")),
    };
    if shared.ends_reads_early() {
        answers.truncate(answers.len() / 2);
    }
    let is_event = |answer: &&ReadResponse| matches!(answer.content, Some(ReadContent::Event(_)));
    let events = answers.iter().filter(is_event).count() as u64;
    shared.counts.events_read.fetch_add(events, Ordering::SeqCst);
    Ok(Response::new(Box::pin(tokio_stream::iter(answers.into_iter().map(Ok)))))
}

fn read_stream(
    shared: &Shared,
    from: &StreamOptions,
    backwards: bool,
    count: usize,
) -> Result<Vec<ReadResponse>, Status> {
    let name = name_of(from.stream.as_ref())?;
    let storage = shared.storage();
    let Some(events) = storage.stream(&name) else {
        let not_found = StreamNotFound { stream: from.stream.clone() };
        return Ok(vec![ReadResponse { content: Some(ReadContent::StreamNotFound(not_found)) }]);
    };
    Ok(match (from.from, backwards) {
        (Some(FromRevision::Revision(revision)), false) => {
            events.skip(usize::try_from(revision).unwrap_or(usize::MAX)).take(count).map(read_event).collect()
        }
        (Some(FromRevision::Revision(revision)), true) => {
            events.rev().skip_while(|kept| kept.revision > revision).take(count).map(read_event).collect()
        }
        (Some(FromRevision::End(())), false) => Vec::new(),
        (_, false) => events.take(count).map(read_event).collect(),
        (_, true) => events.rev().take(count).map(read_event).collect(),
    })
}

/// `$all` forwards begins with the event at the position itself; backwards, with the one before it.
fn read_all(
    shared: &Shared,
    from: AllOptions,
    backwards: bool,
    count: usize,
    passes: impl Fn(&Kept) -> bool,
) -> Vec<ReadResponse> {
    let storage = shared.storage();
    let log = storage.log();
    let place = match from.from {
        Some(FromPosition::Position(from)) => log.partition_point(|kept| kept.position < from.commit),
        Some(FromPosition::End(())) => log.len(),
        Some(FromPosition::Start(())) | None => 0,
    };
    if backwards {
        log[..place].iter().rev().filter(|kept| passes(kept)).take(count).map(read_event).collect()
    } else {
        log[place..].iter().filter(|kept| passes(kept)).take(count).map(read_event).collect()
    }
}

/// Prefixes only: it is what wallex asks for.
fn passes(filter: Option<&Filter>, kept: &Kept) -> bool {
    let (name, expression) = match filter.and_then(|filter| filter.by.as_ref()) {
        None => return true,
        Some(FilterBy::StreamName(expression)) => (kept.stream.as_str(), expression),
        Some(FilterBy::EventType(expression)) => {
            (kept.event.metadata.get("type").map_or("", String::as_str), expression)
        }
    };
    expression.prefixes.iter().any(|prefix| name.starts_with(prefix))
}

/// A subscription to `$all`: what lies after the position, then that it has caught up, then whatever comes.
fn subscribe(shared: Arc<Shared>, from: AllOptions, filter: Option<Filter>) -> Answers<ReadResponse> {
    let (sender, receiver) = mpsc::channel(SUBSCRIPTION_BUFFER);
    let mut grown = shared.grown.subscribe();
    let ends = shared.subscriptions_end();
    tokio::spawn(async move {
        let content = |content| ReadResponse { content: Some(content) };
        let mut next = {
            let storage = shared.storage();
            match from.from {
                Some(FromPosition::Position(from)) => {
                    storage.log().partition_point(|kept| kept.position <= from.commit)
                }
                Some(FromPosition::End(())) => storage.log().len(),
                Some(FromPosition::Start(())) | None => 0,
            }
        };
        let mut first =
            vec![content(ReadContent::Confirmation(Confirmation { subscription_id: Uuid::now_v7().to_string() }))];
        if filter.is_some() && shared.begins_with_no_position() {
            let none = LogPosition { commit: u64::MAX, prepare: u64::MAX };
            first.push(content(ReadContent::Checkpoint(none)));
        }
        let mut caught_up = false;
        loop {
            let (mut found, looked_at) = {
                let storage = shared.storage();
                let new = &storage.log()[next..];
                let found: Vec<ReadResponse> =
                    new.iter().filter(|kept| passes(filter.as_ref(), kept)).map(read_event).collect();
                (found, new.last().map(|kept| (kept.position, storage.log().len())))
            };
            if shared.delivers_twice() {
                found = found.into_iter().flat_map(|answer| [answer.clone(), answer]).collect();
            }
            if let Some((position, length)) = looked_at {
                next = length;
                if filter.is_some() {
                    found.push(content(ReadContent::Checkpoint(LogPosition { commit: position, prepare: position })));
                }
            }
            if !caught_up {
                caught_up = true;
                found.push(content(ReadContent::CaughtUp(())));
            }
            for answer in first.drain(..).chain(found) {
                if sender.send(Ok(answer)).await.is_err() {
                    return;
                }
            }
            tokio::select! {
                changed = grown.changed() => if changed.is_err() { return },
                // Dropping the sender ends the stream with status OK.
                () = ends.cancelled() => return,
                () = sender.closed() => return,
            }
            shared.hesitate().await;
        }
    });
    Box::pin(ReceiverStream::new(receiver))
}
