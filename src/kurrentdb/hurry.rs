//! No waiting for delayed acknowledgements: the client writes a call in two small pieces on a connection with Nagle's algorithm on,
//! so the second one waits some 45 ms in a lone caller's hands until the peer acknowledges the first. That is true of reads as
//! well as of appends by a call of their own. The client has no setting for it and does not give out its connections, so they
//! are looked for among this process's descriptors.

use std::fs;
use std::mem::ManuallyDrop;
use std::net::TcpStream;
use std::os::fd::{FromRawFd, RawFd};

/// This process's descriptors, on every system that wallex is built for.
const DESCRIPTORS: &str = "/dev/fd";

/// Turns Nagle's algorithm off on this process's connections to one of these ports. It changes nothing but when bytes are sent,
/// so where it cannot be done everything goes on, slower.
pub(super) fn send_at_once(ports: &[u16]) {
    let Ok(entries) = fs::read_dir(DESCRIPTORS) else { return };
    let descriptors = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<RawFd>().ok());
    for descriptor in descriptors {
        #[expect(unsafe_code, reason = "the client's socket is to be had in no other way")]
        // SAFETY: it is never closed here, nothing is read or written, and nothing is kept. Should it be closed meanwhile, or be
        // another file by now, the calls fail or find another peer; at worst a connection of ours sends at once.
        let socket = ManuallyDrop::new(unsafe { TcpStream::from_raw_fd(descriptor) });
        if socket.peer_addr().is_ok_and(|peer| ports.contains(&peer.port())) {
            // Slower, then.
            let _ = socket.set_nodelay(true);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, TcpListener};

    use super::*;

    #[test]
    fn connections_to_the_port_send_at_once_and_others_are_left_alone() {
        let listeners = [(); 2].map(|()| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port"));
        let [hurried, other] = listeners
            .each_ref()
            .map(|listener| TcpStream::connect(listener.local_addr().expect("an address")).expect("a connection"));
        send_at_once(&[hurried.peer_addr().expect("a peer").port()]);
        assert!(hurried.nodelay().expect("an option") && !other.nodelay().expect("an option"));
    }
}
