//! TLS with the certificates that the system trusts.

use std::io;
use std::path::Path;
use std::sync::Arc;

use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use super::super::error::GetError;

/// Loads the certificates to trust: those of the system, and those in a file.
///
/// # Errors
///
/// The file has no certificate, or there is none at all.
pub(super) fn connector(cacert: Option<&Path>) -> Result<TlsConnector, GetError> {
    let mut roots = RootCertStore::empty();
    let system = rustls_native_certs::load_native_certs();
    roots.add_parsable_certificates(system.certs);
    if let Some(path) = cacert {
        let unusable = |why: &dyn std::fmt::Display| {
            GetError::Certificates(format!("{}: {why}", path.display()))
        };
        let file = CertificateDer::pem_file_iter(path).map_err(|error| unusable(&error))?;
        let mut count = 0;
        for certificate in file {
            let certificate = certificate.map_err(|error| unusable(&error))?;
            roots.add(certificate).map_err(|error| unusable(&error))?;
            count += 1;
        }
        if count == 0 {
            return Err(unusable(&"it holds no certificate"));
        }
    }
    if roots.is_empty() {
        let why = system.errors.first().map_or_else(
            || "the system has none".to_owned(),
            |error| error.to_string(),
        );
        return Err(GetError::Certificates(why));
    }
    let mut config = ClientConfig::builder()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsConnector::from(Arc::new(config)))
}

/// Makes the handshake, and verifies that the certificate is for `host`.
pub(super) async fn handshake(
    connector: &TlsConnector,
    host: &str,
    socket: TcpStream,
) -> Result<TlsStream<TcpStream>, GetError> {
    let failed = |source| GetError::Tls {
        host: host.to_owned(),
        source,
    };
    let name = ServerName::try_from(host.to_owned())
        .map_err(|error| failed(io::Error::new(io::ErrorKind::InvalidInput, error)))?;
    connector.connect(name, socket).await.map_err(failed)
}
