//! The certificates of a connection string. The client panics over those that it cannot use, in a task where nobody sees it and
//! at every attempt anew, so they are tried before it gets them.

use std::sync::Arc;

use eventstore::ClientSettings;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};

use crate::kurrentdb::KurrentConfigError;

/// Reads what the client will read: authorities also where nothing is encrypted.
pub(super) fn check(settings: &ClientSettings) -> Result<(), KurrentConfigError> {
    match settings.tls_ca_file() {
        Some(path) => authorities(path).map_err(|reason| unusable("tlsCAFile", path, reason))?,
        None => {
            let errors = rustls_native_certs::load_native_certs().errors;
            let words = |error: &rustls_native_certs::Error| error.to_string();
            if let Some(reason) = errors.first().map(words) {
                return Err(KurrentConfigError::SystemCertificates(reason));
            }
        }
    }
    let Some((certificate_path, key_path)) = settings.user_certificate() else { return Ok(()) };
    let chain = certificates(certificate_path).map_err(|reason| unusable("userCertFile", certificate_path, reason))?;
    let own_key = |reason: String| unusable("userKeyFile", key_path, reason);
    let key = PrivateKeyDer::from_pem_file(key_path).map_err(|error| own_key(error.to_string()))?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let client = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let client = client.map(|client| client.with_root_certificates(RootCertStore::empty()));
    let own = client.and_then(|client| client.with_client_auth_cert(chain, key));
    own.map(|_| ()).map_err(|error| own_key(error.to_string()))
}

fn unusable(option: &'static str, path: &str, reason: String) -> KurrentConfigError {
    KurrentConfigError::File { option, path: path.to_owned(), reason }
}

fn authorities(path: &str) -> Result<(), String> {
    let mut roots = RootCertStore::empty();
    certificates(path)?
        .into_iter()
        .try_for_each(|certificate| roots.add(certificate))
        .map_err(|error| error.to_string())
}

/// One at least.
fn certificates(path: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_file_iter(path).and_then(Iterator::collect);
    let found = found.map_err(|error| error.to_string())?;
    if found.is_empty() { Err("it holds no certificate in PEM".to_owned()) } else { Ok(found) }
}
