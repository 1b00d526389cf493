//! What a connection string says is done: TLS with an authority of one's own, user and password, several nodes.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use wallex::kurrentdb::{KurrentConfig, KurrentLog};
use wallex::log::{EventLog, LogError};

use crate::certificates;
use crate::kurrentdb_server::KurrentServer;
use crate::store::{batch, id, settle};
use crate::world::patiently;

/// TLS in front of a server, for the host `localhost`; the port.
async fn behind_tls(server: SocketAddr, folder: &Path) -> u16 {
    let chain = CertificateDer::pem_file_iter(folder.join("server.pem")).expect("a file").collect::<Result<_, _>>();
    let key = PrivateKeyDer::from_pem_file(folder.join("server.key")).expect("a key");
    let provider = Arc::new(tokio_rustls::rustls::crypto::aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().expect("versions");
    let config = config.with_no_client_auth().with_single_cert(chain.expect("certificates"), key);
    let mut config = config.expect("a certificate");
    config.alpn_protocols = vec![b"h2".to_vec()];
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind(("localhost", 0)).await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    tokio::spawn(async move {
        loop {
            let (tcp, _) = listener.accept().await.expect("a connection");
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                // Whoever does not trust the certificate ends here.
                let Ok(mut outside) = acceptor.accept(tcp).await else { return };
                let mut inside = TcpStream::connect(server).await.expect("the server");
                let _ = copy_bidirectional(&mut outside, &mut inside).await;
            });
        }
    });
    port
}

fn log(connection_string: &str) -> KurrentLog {
    KurrentLog::new(KurrentConfig::new(connection_string).expect("a connection string"))
}

#[tokio::test]
async fn a_server_behind_tls_is_reached_if_its_certificate_is_trusted() {
    let server = KurrentServer::start();
    let folder = tempfile::tempdir().expect("a folder");
    for authority in ["ours", "other"] {
        certificates::authority(folder.path(), authority);
    }
    certificates::signed(folder.path(), "server", "ours", "localhost");
    let port = behind_tls(server.address(), folder.path()).await;
    let authority = |name| format!("&tlsCAFile={}/{name}.pem", folder.path().display());

    settle(&log(&format!("esdb://localhost:{port}?tls=true{}", authority("ours"))), &batch("a", 0..1)).await;
    settle(&log(&format!("esdb://localhost:{port}?tlsVerifyCert=false")), &batch("a", 1..2)).await;
    assert_eq!(server.log().len(), 2);

    for untrusted in [
        format!("esdb://localhost:{port}?tls=true{}", authority("other")),
        // Of another host.
        format!("esdb://127.0.0.1:{port}?tls=true{}", authority("ours")),
        // It speaks TLS and is not asked for it.
        format!("esdb://localhost:{port}?tls=false"),
    ] {
        let refused = log(&untrusted).append(&batch("a", 2..3)).await;
        assert!(matches!(refused, Err(LogError::Away(_))), "{untrusted}: {refused:?}");
    }
    assert_eq!(server.log().len(), 2);
}

#[test]
fn a_certificate_of_one_s_own_needs_its_own_key() {
    let folder = tempfile::tempdir().expect("a folder");
    for authority in ["ours", "other"] {
        certificates::authority(folder.path(), authority);
    }
    let own = |certificate: &str, key: &str| {
        let [certificate, key] = [certificate, key].map(|name| folder.path().join(name).display().to_string());
        KurrentConfig::new(&format!("esdb://h:2113?userCertFile={certificate}&userKeyFile={key}"))
    };
    own("ours.pem", "ours.key").expect("a pair");
    for (certificate, key, at_fault) in [
        ("ours.pem", "other.key", "userKeyFile names"),
        ("ours.pem", "ours.pem", "userKeyFile names"),
        ("ours.key", "ours.key", "userCertFile names"),
        ("ours.pem", "none.key", "userKeyFile names"),
    ] {
        let error = own(certificate, key).expect_err("not a pair").to_string();
        assert!(error.starts_with(at_fault), "{error}");
    }
}

#[tokio::test]
async fn whoever_has_user_and_password_is_let_in() {
    let server = KurrentServer::start();
    server.let_in_only("Basic YWRtaW46c2VjcmV0LXdvcmQ="); // admin:secret-word
    let address = server.address();
    settle(&log(&format!("esdb://admin:secret-word@{address}?tls=false")), &batch("a", 0..1)).await;
    for wrong in ["admin:another-word@", ""] {
        let log = log(&format!("esdb://{wrong}{address}?tls=false"));
        let (appended, read) = (log.append(&batch("a", 1..2)).await, log.read_stream(&id("a"), 0, 1).await);
        for refused in [appended.map(|_| ()), read.map(|_| ())] {
            let Err(LogError::Away(reason)) = refused else { panic!("{refused:?}") };
            assert!(reason.contains("denies access") && !reason.contains("-word"), "{reason}");
        }
    }
    assert_eq!(server.log().len(), 1);
}

/// The nodes say of each other who leads.
#[tokio::test]
async fn of_several_nodes_the_one_that_leads_is_found_and_followed() {
    let mut first = KurrentServer::start();
    let second = first.another_node();
    let nobody = "127.0.0.1:1";
    first.follow(Some(second.address()));
    let log = log(&format!("esdb://{nobody},{},{}?tls=false&gossipTimeout=1000", first.address(), second.address()));
    settle(&log, &batch("a", 0..1)).await;
    // The leader goes down with its node, and the other one is elected.
    first.follow(None);
    second.follow(Some(first.address()));
    second.cut_connections();
    settle(&log, &batch("a", 1..2)).await;
    first.follow(Some(second.address()));
    second.follow(None);
    first.kill();
    settle(&log, &batch("a", 2..3)).await;
    let read = patiently(async || log.read_stream(&id("a"), 0, 10).await).await;
    assert_eq!((read.len(), second.log().len()), (3, 3));
}
