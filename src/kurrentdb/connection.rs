//! One client and one long append call, made anew when they are no good any more.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use eventstore::{
    BatchAppendClient, BatchAppendOptions, Client, ClientSettings, Error, ReadAllOptions, StreamPosition,
};
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::kurrentdb::hurry;
use crate::log::LogError;

/// How long a server may take to say its first word.
const CONTACT_TIMEOUT: Duration = Duration::from_secs(5);
/// The pause after a first contact that failed, doubled each time up to the second number.
const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(1);
/// After so many failures without a success between them a client is given up. The client finds its way back by itself after
/// most, and each one that is given up leaves an idle task behind.
const FAILURES_MAX: u32 = 2;

/// How often a client is sent on from one node to another before that counts as nobody leading.
const LEADER_HOPS_MAX: u32 = 3;

/// What goes wrong, in the words of whoever has to go on.
pub(super) enum Trouble {
    /// Somebody else has written: nothing was.
    Conflict,
    /// The long append call has ended, perhaps for another append's sake. Whether this one was done is unknown.
    CallEnded,
    /// Another node leads. Nothing was done.
    Moved(String),
    /// There is no such stream.
    NoStream,
    /// The server does not let this user do that. Who may what can be changed there at any time, and the connection is as good as any.
    Denied,
    /// The server will not do that, however often it is asked.
    Refused(String),
    /// Nothing was heard, on a connection that is open. Whether it did what was asked is unknown.
    Silent(String),
    /// The server is away. Whether it did what was asked is unknown.
    Away(String),
}

impl Trouble {
    pub(super) fn of(error: &Error) -> Self {
        match error {
            Error::WrongExpectedVersion { .. } | Error::ResourceAlreadyExists => Trouble::Conflict,
            Error::Grpc { code: tonic_code, .. } if is_code(tonic_code, ALREADY_EXISTS) => Trouble::Conflict,
            Error::Grpc { code, message } if REFUSALS.iter().any(|refusal| is_code(code, *refusal)) => {
                Trouble::Refused(message.clone())
            }
            Error::ServerError(message) if message.contains(CALL_ENDED) => Trouble::CallEnded,
            Error::ServerError(message) if message.starts_with(SILENCE) => Trouble::Silent(message.clone()),
            Error::NotLeaderException(_) => Trouble::Moved(error.to_string()),
            Error::ResourceNotFound => Trouble::NoStream,
            Error::AccessDenied => Trouble::Denied,
            Error::ResourceDeleted | Error::UnsupportedFeature => Trouble::Refused(error.to_string()),
            _ => Trouble::Away(error.to_string()),
        }
    }
}

/// What the client says of an append whose call was closed under it.
const CALL_ENDED: &str = "Batch-append stream has been closed";

/// What is said of [`Trouble::Denied`].
pub(super) const DENIED: &str = "it denies access to the user of the connection string";

/// How an error begins that a call of ours makes of silence.
pub(super) const SILENCE: &str = "no answer within";

/// gRPC's numbers of the codes that are looked at here; the client does not give out the type that names them.
const ALREADY_EXISTS: i32 = 6;
/// Invalid argument, permission denied, failed precondition, out of range, unimplemented, unauthenticated.
const REFUSALS: [i32; 6] = [3, 7, 9, 11, 12, 16];

fn is_code<C: Copy + Into<i32>>(code: &C, number: i32) -> bool {
    Into::<i32>::into(*code) == number
}

/// A client and its append call, with the number by which their failures are reported: what has failed is given up once, however
/// many report it.
#[derive(Clone)]
pub(super) struct Numbered<T> {
    pub(super) number: u64,
    pub(super) it: T,
}

pub(super) struct Connection {
    settings: ClientSettings,
    state: Mutex<State>,
    /// Failures of the present client since its last success.
    failures: AtomicU32,
    ports: Vec<u16>,
    /// Whether the client may have made a connection since they were last told to send at once.
    may_be_new: AtomicBool,
}

#[derive(Default)]
struct State {
    client: Option<Numbered<Client>>,
    appends: Option<Numbered<Arc<BatchAppendClient>>>,
    made: u64,
    /// Of first contacts.
    failures: u32,
    not_before: Option<Instant>,
}

impl State {
    /// Whether this number is the present client's or call's.
    fn is(&self, number: u64) -> bool {
        self.client.as_ref().is_some_and(|client| client.number == number)
            || self.appends.as_ref().is_some_and(|appends| appends.number == number)
    }
}

impl Connection {
    pub(super) fn new(settings: ClientSettings) -> Self {
        let ports = settings.hosts().iter().filter_map(|host| u16::try_from(host.port).ok()).collect();
        let (failures, may_be_new) = (AtomicU32::new(0), AtomicBool::new(true));
        Connection { settings, state: Mutex::default(), failures, ports, may_be_new }
    }

    /// A client that has spoken to the server.
    pub(super) async fn client(&self) -> Result<Numbered<Client>, LogError> {
        let mut state = self.state.lock().await;
        self.client_of(&mut state).await
    }

    async fn client_of(&self, state: &mut State) -> Result<Numbered<Client>, LogError> {
        if let Some(client) = &state.client {
            return Ok(client.clone());
        }
        if let Some(not_before) = state.not_before {
            tokio::time::sleep_until(not_before).await;
        }
        match contact(&self.settings).await {
            Ok(it) => {
                (state.failures, state.not_before) = (0, None);
                state.made += 1;
                self.succeeded();
                let client = Numbered { number: state.made, it };
                state.client = Some(client.clone());
                Ok(client)
            }
            Err(reason) => {
                let pause = PAUSE_MIN.saturating_mul(1 << state.failures.min(16)).min(PAUSE_MAX);
                state.failures += 1;
                state.not_before = Some(Instant::now() + pause);
                Err(LogError::Away(reason))
            }
        }
    }

    /// The append call that all share.
    pub(super) async fn appends(&self) -> Result<Numbered<Arc<BatchAppendClient>>, LogError> {
        let mut state = self.state.lock().await;
        if let Some(appends) = &state.appends {
            return Ok(appends.clone());
        }
        let client = self.client_of(&mut state).await?;
        let options = BatchAppendOptions::default().requires_leader(true);
        let opened = tokio::time::timeout(CONTACT_TIMEOUT, client.it.batch_append(&options)).await;
        match opened {
            Ok(Ok(it)) => {
                state.made += 1;
                let appends = Numbered { number: state.made, it: Arc::new(it) };
                state.appends = Some(appends.clone());
                Ok(appends)
            }
            Ok(Err(error)) => {
                self.give_up(&mut state);
                Err(LogError::Away(error.to_string()))
            }
            Err(_) => {
                self.give_up(&mut state);
                Err(LogError::Away(format!("{SILENCE} {CONTACT_TIMEOUT:?}")))
            }
        }
    }

    /// The append call of this number is over; the client is as good as before.
    pub(super) async fn call_ended(&self, number: u64) {
        let mut state = self.state.lock().await;
        state.appends.take_if(|appends| appends.number == number);
    }

    /// The client or call of this number has failed.
    pub(super) async fn failed(&self, number: u64) {
        let mut state = self.state.lock().await;
        if !state.is(number) {
            return;
        }
        state.appends = None;
        self.may_be_new.store(true, Ordering::Relaxed);
        if self.failures.fetch_add(1, Ordering::Relaxed) + 1 >= FAILURES_MAX {
            self.give_up(&mut state);
        }
    }

    /// Nothing is heard on the connection of the client or call of this number. The other end may be gone without a word, so waiting
    /// for it again would be silence again.
    pub(super) async fn fell_silent(&self, number: u64) {
        let mut state = self.state.lock().await;
        if state.is(number) {
            self.give_up(&mut state);
        }
    }

    /// The node that the client or call of this number goes to does not lead any more.
    pub(super) async fn moved(&self, number: u64) {
        let mut state = self.state.lock().await;
        if state.is(number) {
            (state.client, state.appends) = (None, None);
            self.may_be_new.store(true, Ordering::Relaxed);
        }
    }

    pub(super) fn succeeded(&self) {
        self.failures.store(0, Ordering::Relaxed);
        if self.may_be_new.swap(false, Ordering::Relaxed) {
            hurry::send_at_once(&self.ports);
        }
    }

    fn give_up(&self, state: &mut State) {
        (state.client, state.appends) = (None, None);
        self.may_be_new.store(true, Ordering::Relaxed);
        state.not_before = Some(Instant::now() + PAUSE_MIN);
    }
}

/// A client that has spoken to the leader. The client follows a leader that has moved when a read tells it to, but not when the
/// long append call does.
async fn contact(settings: &ClientSettings) -> Result<Client, String> {
    let client = Client::new(settings.clone()).map_err(|error| error.to_string())?;
    match tokio::time::timeout(CONTACT_TIMEOUT, find_leader(&client)).await {
        Ok(Ok(())) => Ok(client),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("no first word within {CONTACT_TIMEOUT:?}")),
    }
}

/// How the log's last event is read, whoever's it is.
pub(super) fn last_of_all() -> ReadAllOptions {
    let options = ReadAllOptions::default().backwards().position(StreamPosition::End).max_count(1);
    options.requires_leader(true)
}

async fn find_leader(client: &Client) -> eventstore::Result<()> {
    let options = last_of_all();
    let mut hops = 0;
    loop {
        let first = match client.read_all(&options).await {
            Ok(mut read) => read.next().await.map(|_| ()),
            Err(error) => Err(error),
        };
        match first {
            Err(Error::NotLeaderException(_)) if hops < LEADER_HOPS_MAX => hops += 1,
            // The right to read everything is not what is asked for here.
            Err(Error::AccessDenied) => return Ok(()),
            other => return other,
        }
    }
}
