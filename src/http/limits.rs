//! Every bound of the HTTP side, with its default.

use std::time::Duration;

/// What one client may take: bytes, connections and time. Every field has a default that suits most.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Connections at once; further ones wait in the operating system's queue. 1024.
    pub connections: usize,
    /// Bytes of a request's line and headers; more is answered with 431. 16 KiB.
    pub header_bytes: usize,
    /// Time from a request's first byte to the end of its headers, and for a new connection to send anything at all; then
    /// the connection is closed. 10 s.
    pub header_read: Duration,
    /// Bytes of a request's body; more is answered with 413. 64 KiB.
    pub body_bytes: usize,
    /// Bytes of a body too large that are still read, and dropped, so that the client gets to see its 413: many read an
    /// answer only when they have sent everything. 16 MiB.
    pub body_discard_bytes: u64,
    /// Time for a request's body; then it is answered with 408 and the connection is closed. 10 s.
    pub body_read: Duration,
    /// Time for a client to take an answer; then the connection is closed. 30 s.
    pub answer_write: Duration,
    /// Time that a connection may lie idle between two requests; then it is closed. 60 s.
    pub keep_alive: Duration,
    /// Time for a read from the log or the database; then it is answered with 503. A command's time is
    /// [`SequencerOptions::command_deadline`](crate::sequencer::SequencerOptions::command_deadline). 5 s.
    pub read_deadline: Duration,
    /// Time for what a health route asks; then the answer is no. 1.5 s.
    pub health_deadline: Duration,
    /// Time for requests under way when the server is told to stop; then they are cut. It must be longer than a command's
    /// deadline, so that every accepted command gets its answer. 10 s.
    pub drain: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            connections: 1_024,
            header_bytes: 16 * 1_024,
            header_read: Duration::from_secs(10),
            body_bytes: 64 * 1_024,
            body_discard_bytes: 16 * 1_024 * 1_024,
            body_read: Duration::from_secs(10),
            answer_write: Duration::from_secs(30),
            keep_alive: Duration::from_secs(60),
            read_deadline: Duration::from_secs(5),
            health_deadline: Duration::from_millis(1_500),
            drain: Duration::from_secs(10),
        }
    }
}
