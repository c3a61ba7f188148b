//! TLS towards replicas: certificate files into a rustls configuration, and rustls' errors into words.

use std::error::Error;
use std::io;
use std::path::Path;
use std::sync::Arc;

use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use tokio_rustls::rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use tokio_rustls::rustls::{self, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

use super::{DialError, DialErrorKind, TlsSetup, classify};
use crate::replica::{Address, Tls};

/// Where systems keep their bundle of trusted authorities: Debian and Alpine, Red Hat, others.
const SYSTEM_STORES: [&str; 3] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/cert.pem",
];

impl TlsSetup {
    pub(super) fn new(address: &Address, tls: &Tls) -> Result<TlsSetup, DialError> {
        let failed = |cause: String| DialError::new(DialErrorKind::Tls, address, cause);
        let server_name = server_name(address, tls)?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(|error| failed(error.to_string()))?;
        let builder = if tls.insecure_skip_verify {
            builder
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(AcceptAny { provider }))
        } else {
            builder.with_root_certificates(authorities(tls.ca.as_deref())?)
        };
        let config = match (&tls.cert, &tls.key) {
            (Some(cert), Some(key)) => {
                let chain = certificates(cert)?;
                let key_der = PrivateKeyDer::from_pem_file(key).map_err(|error| file_error(key, &error))?;
                builder
                    .with_client_auth_cert(chain, key_der)
                    .map_err(|error| DialError::Files {
                        path: cert.clone(),
                        cause: format!(
                            "the certificate does not go with the key {}: {error}",
                            key.display()
                        ),
                    })?
            }
            (None, None) => builder.with_no_client_auth(),
            (Some(path), None) => return Err(incomplete(path, "a certificate without its key")),
            (None, Some(path)) => return Err(incomplete(path, "a key without its certificate")),
        };
        Ok(TlsSetup {
            connector: TlsConnector::from(Arc::new(config)),
            server_name,
        })
    }

    /// The same certificates and authorities towards `address`.
    pub(super) fn towards(&self, address: &Address, tls: &Tls) -> Result<TlsSetup, DialError> {
        Ok(TlsSetup {
            connector: self.connector.clone(),
            server_name: server_name(address, tls)?,
        })
    }
}

/// The name to ask for and to verify at `address`.
fn server_name(address: &Address, tls: &Tls) -> Result<ServerName<'static>, DialError> {
    let failed = |cause: String| DialError::new(DialErrorKind::Tls, address, cause);
    let host = match (address, &tls.server_name) {
        (Address::Unix(_), _) => {
            return Err(failed("TLS over a unix socket is not supported".to_owned()));
        }
        (_, Some(name)) => name,
        (Address::Tcp { host, .. }, None) => host,
    };
    ServerName::try_from(host.clone())
        .map_err(|_| failed(format!("`{host}` is neither a DNS name nor an IP address")))
}

fn incomplete(path: &Path, cause: &str) -> DialError {
    DialError::Files {
        path: path.to_owned(),
        cause: cause.to_owned(),
    }
}

fn file_error(path: &Path, error: &rustls::pki_types::pem::Error) -> DialError {
    use rustls::pki_types::pem;
    let cause = match error {
        pem::Error::Io(error) => error.to_string(),
        pem::Error::NoItemsFound => "no such PEM section in the file".to_owned(),
        other => other.to_string(),
    };
    incomplete(path, &cause)
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, DialError> {
    let found = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| file_error(path, &error))?;
    if found.is_empty() {
        return Err(incomplete(path, "no certificate in the file"));
    }
    Ok(found)
}

fn authorities(own: Option<&Path>) -> Result<RootCertStore, DialError> {
    let mut store = RootCertStore::empty();
    if let Some(path) = own {
        for certificate in certificates(path)? {
            store
                .add(certificate)
                .map_err(|error| incomplete(path, &error.to_string()))?;
        }
        return Ok(store);
    }
    let path = SYSTEM_STORES
        .iter()
        .map(Path::new)
        .find(|path| path.exists())
        .ok_or_else(|| {
            incomplete(
                Path::new(SYSTEM_STORES[0]),
                "the system has no certificate store here; name a `ca` file",
            )
        })?;
    // A system's bundle may hold certificates that rustls does not parse; the others still count.
    let (added, _) = store.add_parsable_certificates(certificates(path)?);
    if added == 0 {
        return Err(incomplete(path, "no usable certificate in the file"));
    }
    Ok(store)
}

/// What TLS says of a connection that failed after its handshake, if it was TLS that ended it. `error` may be an I/O
/// error, or a shared one inside another crate's.
pub fn tls_alert(error: &(dyn Error + 'static)) -> Option<String> {
    let io = error.downcast_ref::<io::Error>().or_else(|| {
        let shared = error.downcast_ref::<Arc<dyn Error + Send + Sync>>()?;
        shared.downcast_ref::<io::Error>()
    })?;
    let tls = io.get_ref()?.downcast_ref::<rustls::Error>()?;
    Some(tls.to_string())
}

/// The kind of a failed handshake, and its cause in words.
pub(super) fn describe(error: &io::Error) -> (DialErrorKind, String) {
    match error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<rustls::Error>())
    {
        Some(rustls::Error::InvalidMessage(detail)) => (
            DialErrorKind::Tls,
            format!("the peer does not speak TLS ({detail:?})"),
        ),
        Some(tls) => (DialErrorKind::Tls, tls.to_string()),
        None => (classify(error), format!("during the TLS handshake: {error}")),
    }
}

/// Accepts every certificate; the peer must still prove that it holds the certificate's key.
#[derive(Debug)]
struct AcceptAny {
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for AcceptAny {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(
            message,
            cert,
            dss,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(
            message,
            cert,
            dss,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}
