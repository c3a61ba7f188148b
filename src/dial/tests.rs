use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, UnixListener};
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig, crypto, version};

use super::*;
use crate::replica::{Credentials, Secret, Tls};

/// Long enough for a busy machine; what passes, passes at once.
const PATIENCE: Duration = Duration::from_secs(10);

/// A certificate authority with a certificate signed by it, as files.
struct Authority {
    ca: PathBuf,
    cert: PathBuf,
    key: PathBuf,
}

impl Authority {
    /// The certificate is good for `names`.
    fn new(dir: &TempDir, label: &str, names: &[&str]) -> Authority {
        let ca_key = KeyPair::generate().unwrap();
        let mut ca_params = CertificateParams::new(Vec::new()).unwrap();
        ca_params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = ca_params.self_signed(&ca_key).unwrap();
        let issuer = Issuer::new(ca_params, ca_key);
        let key = KeyPair::generate().unwrap();
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        let cert = CertificateParams::new(names)
            .unwrap()
            .signed_by(&key, &issuer)
            .unwrap();
        let write = |name: &str, text: String| {
            let path = dir.path().join(format!("{label}-{name}.pem"));
            std::fs::write(&path, text).unwrap();
            path
        };
        Authority {
            ca: write("ca", ca.pem()),
            cert: write("cert", cert.pem()),
            key: write("key", key.serialize_pem()),
        }
    }

    /// A server that echoes one byte to each connection. Ends with the returned task.
    async fn serve(&self, clients: Option<&Authority>, tls12: bool) -> (u16, JoinHandle<()>) {
        let provider = Arc::new(crypto::ring::default_provider());
        let versions = if tls12 {
            &[&version::TLS12][..]
        } else {
            &[&version::TLS13][..]
        };
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(versions)
            .unwrap();
        let builder = match clients {
            None => builder.with_no_client_auth(),
            Some(clients) => {
                let mut roots = RootCertStore::empty();
                roots
                    .add(CertificateDer::from_pem_file(&clients.ca).unwrap())
                    .unwrap();
                let verifier =
                    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
                        .build()
                        .unwrap();
                builder.with_client_cert_verifier(verifier)
            }
        };
        let config = builder
            .with_single_cert(
                vec![CertificateDer::from_pem_file(&self.cert).unwrap()],
                PrivateKeyDer::from_pem_file(&self.key).unwrap(),
            )
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let task = tokio::spawn(async move {
            loop {
                let (tcp, _) = listener.accept().await.unwrap();
                if let Ok(mut tls) = acceptor.accept(tcp).await
                    && let Ok(byte) = tls.read_u8().await
                {
                    let _ = tls.write_u8(byte).await;
                    let _ = tls.flush().await;
                }
            }
        });
        (port, task)
    }
}

fn tcp(host: &str, port: u16, tls: Option<Tls>) -> Result<Dialer, DialError> {
    Dialer::new(Arc::new(Endpoint {
        address: Address::Tcp {
            host: host.to_owned(),
            port,
        },
        tls,
        credentials: None,
    }))
}

fn trusting(authority: &Authority) -> Tls {
    Tls {
        ca: Some(authority.ca.clone()),
        ..Tls::default()
    }
}

async fn echo(stream: &mut Stream) -> io::Result<u8> {
    stream.write_u8(42).await?;
    stream.flush().await?;
    tokio::time::timeout(PATIENCE, stream.read_u8()).await?
}

/// A port where nobody listens, kept from others by a socket that is bound to it but does not listen.
fn dead_port() -> (u16, TcpSocket) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    (socket.local_addr().unwrap().port(), socket)
}

#[tokio::test]
async fn own_authority_is_trusted() {
    let dir = TempDir::new().unwrap();
    let authority = Authority::new(&dir, "a", &["localhost", "127.0.0.1"]);
    for tls12 in [false, true] {
        let (port, server) = authority.serve(None, tls12).await;
        for host in ["127.0.0.1", "localhost"] {
            let dialer = tcp(host, port, Some(trusting(&authority))).unwrap();
            let mut stream = dialer.connect(PATIENCE).await.unwrap();
            assert!(matches!(stream, Stream::Tls(_)));
            assert!(stream.is_write_vectored());
            assert_eq!(echo(&mut stream).await.unwrap(), 42);
        }
        server.abort();
    }
}

#[tokio::test]
async fn another_authority_is_not() {
    let dir = TempDir::new().unwrap();
    let authority = Authority::new(&dir, "a", &["127.0.0.1"]);
    let other = Authority::new(&dir, "b", &["127.0.0.1"]);
    let (port, server) = authority.serve(None, false).await;
    for tls in [trusting(&other), Tls::default()] {
        let error = tcp("127.0.0.1", port, Some(tls))
            .unwrap()
            .connect(PATIENCE)
            .await
            .unwrap_err();
        assert_eq!(error.kind(), DialErrorKind::Tls);
        let text = error.to_string();
        assert!(text.contains(&format!("127.0.0.1:{port}")), "{text}");
        assert!(text.contains("invalid peer certificate"), "{text}");
    }
    server.abort();
}

#[tokio::test]
async fn the_name_is_verified_and_can_be_another() {
    let dir = TempDir::new().unwrap();
    let authority = Authority::new(&dir, "a", &["db.example"]);
    let (port, server) = authority.serve(None, false).await;

    let by_address = tcp("127.0.0.1", port, Some(trusting(&authority))).unwrap();
    let error = by_address.connect(PATIENCE).await.unwrap_err();
    assert_eq!(error.kind(), DialErrorKind::Tls);
    assert!(error.to_string().contains("not valid for name"), "{error}");

    let tls = Tls {
        server_name: Some("db.example".to_owned()),
        ..trusting(&authority)
    };
    let mut stream = tcp("127.0.0.1", port, Some(tls))
        .unwrap()
        .connect(PATIENCE)
        .await
        .unwrap();
    assert_eq!(echo(&mut stream).await.unwrap(), 42);
    server.abort();
}

#[tokio::test]
async fn verification_can_be_skipped() {
    let dir = TempDir::new().unwrap();
    let authority = Authority::new(&dir, "a", &["elsewhere.example"]);
    for tls12 in [false, true] {
        let (port, server) = authority.serve(None, tls12).await;
        let tls = Tls {
            insecure_skip_verify: true,
            ..Tls::default()
        };
        let mut stream = tcp("127.0.0.1", port, Some(tls))
            .unwrap()
            .connect(PATIENCE)
            .await
            .unwrap();
        assert_eq!(echo(&mut stream).await.unwrap(), 42);
        server.abort();
    }
}

#[tokio::test]
async fn a_client_certificate_is_presented() {
    let dir = TempDir::new().unwrap();
    let authority = Authority::new(&dir, "a", &["127.0.0.1"]);
    let clients = Authority::new(&dir, "c", &["pulsegate"]);
    let (port, server) = authority.serve(Some(&clients), false).await;

    let with = Tls {
        cert: Some(clients.cert.clone()),
        key: Some(clients.key.clone()),
        ..trusting(&authority)
    };
    let mut stream = tcp("127.0.0.1", port, Some(with))
        .unwrap()
        .connect(PATIENCE)
        .await
        .unwrap();
    assert_eq!(echo(&mut stream).await.unwrap(), 42);

    // TLS 1.3: the client's side of the handshake is over before the server has looked at the certificate.
    let mut stream = tcp("127.0.0.1", port, Some(trusting(&authority)))
        .unwrap()
        .connect(PATIENCE)
        .await
        .unwrap();
    let error = echo(&mut stream).await.unwrap_err();
    assert!(error.to_string().contains("CertificateRequired"), "{error}");
    server.abort();

    // TLS 1.2: the handshake itself fails.
    let (port, server) = authority.serve(Some(&clients), true).await;
    let error = tcp("127.0.0.1", port, Some(trusting(&authority)))
        .unwrap()
        .connect(PATIENCE)
        .await
        .unwrap_err();
    assert_eq!(error.kind(), DialErrorKind::Tls, "{error}");
    server.abort();
}

#[tokio::test]
async fn files_are_checked_before_the_first_connect() {
    let dir = TempDir::new().unwrap();
    let a = Authority::new(&dir, "a", &["127.0.0.1"]);
    let b = Authority::new(&dir, "b", &["127.0.0.1"]);
    let missing = dir.path().join("missing.pem");
    let cases = [
        (
            Tls {
                ca: Some(missing.clone()),
                ..Tls::default()
            },
            &missing,
            "No such file",
        ),
        (
            Tls {
                ca: Some(a.key.clone()),
                ..Tls::default()
            },
            &a.key,
            "no certificate",
        ),
        (
            Tls {
                cert: Some(a.cert.clone()),
                key: Some(b.key),
                ..trusting(&a)
            },
            &a.cert,
            "does not go with the key",
        ),
        (
            Tls {
                cert: Some(a.cert.clone()),
                key: Some(a.cert.clone()),
                ..trusting(&a)
            },
            &a.cert,
            "no such PEM section",
        ),
        (
            Tls {
                cert: Some(a.cert.clone()),
                ..trusting(&a)
            },
            &a.cert,
            "without its key",
        ),
    ];
    for (tls, path, cause) in cases {
        let error = tcp("127.0.0.1", 1, Some(tls)).unwrap_err();
        assert_eq!(error.kind(), DialErrorKind::Files);
        let text = error.to_string();
        assert!(text.contains(cause), "{text}");
        assert!(text.contains(&*path.to_string_lossy()), "{text}");
    }
}

#[tokio::test]
async fn a_peer_without_tls_is_named_as_such() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let server = tokio::spawn(async move {
        let (mut tcp, _) = listener.accept().await.unwrap();
        let _ = tcp.write_all(b"-ERR Protocol error\r\n").await;
        let mut rest = Vec::new();
        let _ = tcp.read_to_end(&mut rest).await;
    });
    let tls = Tls {
        insecure_skip_verify: true,
        ..Tls::default()
    };
    let error = tcp("127.0.0.1", port, Some(tls))
        .unwrap()
        .connect(PATIENCE)
        .await
        .unwrap_err();
    assert_eq!(error.kind(), DialErrorKind::Tls);
    assert!(error.to_string().contains("does not speak TLS"), "{error}");
    server.abort();
}

#[tokio::test]
async fn a_silent_tls_peer_times_out() {
    // Never accepted by anyone but the kernel: what a stopped server looks like.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let tls = Tls {
        insecure_skip_verify: true,
        ..Tls::default()
    };
    let began = Instant::now();
    let error = tcp("127.0.0.1", port, Some(tls))
        .unwrap()
        .connect(Duration::from_millis(100))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), DialErrorKind::Timeout);
    assert!(error.to_string().contains("TLS handshake"), "{error}");
    assert!(began.elapsed() >= Duration::from_millis(100));
    assert!(began.elapsed() < PATIENCE);
}

#[tokio::test]
async fn plain_tcp_has_its_options_set() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let stream = tcp("localhost", port, None)
        .unwrap()
        .connect(PATIENCE)
        .await
        .unwrap();
    let Stream::Tcp(stream) = stream else {
        panic!("not plain TCP: {stream:?}");
    };
    assert!(stream.nodelay().unwrap());
    let options = SockRef::from(&stream);
    assert!(options.keepalive().unwrap());
    #[cfg(target_os = "linux")]
    {
        assert_eq!(options.tcp_keepalive_time().unwrap(), KEEPALIVE_IDLE);
        assert_eq!(options.tcp_keepalive_interval().unwrap(), KEEPALIVE_INTERVAL);
        assert_eq!(options.tcp_keepalive_retries().unwrap(), KEEPALIVE_PROBES);
        assert_eq!(options.tcp_user_timeout().unwrap(), Some(UNACKNOWLEDGED));
    }
}

#[tokio::test]
async fn nobody_there_is_refused() {
    let (port, _reserved) = dead_port();
    let dir = TempDir::new().unwrap();
    let unix = |path: PathBuf| {
        Dialer::new(Arc::new(Endpoint {
            address: Address::Unix(path),
            tls: None,
            credentials: None,
        }))
        .unwrap()
    };
    // A socket file whose listener is gone.
    let stale = dir.path().join("stale.sock");
    drop(UnixListener::bind(&stale).unwrap());
    let dialers = [
        tcp("127.0.0.1", port, None).unwrap(),
        tcp("localhost", port, None).unwrap(),
        tcp("no-such-host.invalid", port, None).unwrap(),
        unix(dir.path().join("missing.sock")),
        unix(stale),
    ];
    for dialer in dialers {
        let error = dialer.connect(PATIENCE).await.unwrap_err();
        assert_eq!(error.kind(), DialErrorKind::Refused, "{error}");
        let address = dialer.endpoint().address.to_string();
        assert!(error.to_string().contains(&address), "{error}");
    }
}

#[tokio::test]
async fn a_unix_socket_is_reached() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("redis.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let endpoint = |tls| {
        Arc::new(Endpoint {
            address: Address::Unix(path.clone()),
            tls,
            credentials: None,
        })
    };
    let server = tokio::spawn(async move {
        let (mut peer, _) = listener.accept().await.unwrap();
        let byte = peer.read_u8().await.unwrap();
        peer.write_u8(byte).await.unwrap();
    });
    let mut stream = Dialer::new(endpoint(None))
        .unwrap()
        .connect(PATIENCE)
        .await
        .unwrap();
    assert!(matches!(stream, Stream::Unix(_)));
    assert_eq!(echo(&mut stream).await.unwrap(), 42);
    server.await.unwrap();

    let error = Dialer::new(endpoint(Some(Tls::default()))).unwrap_err();
    assert_eq!(error.kind(), DialErrorKind::Tls, "{error}");
}

#[tokio::test]
async fn later_addresses_are_tried_and_the_worst_failure_is_told() {
    let (dead, _reserved) = dead_port();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let live = listener.local_addr().unwrap();
    let dead: SocketAddr = ([127, 0, 0, 1], dead).into();
    let deadline = Instant::now() + PATIENCE;

    let plain = tcp("127.0.0.1", 1, None).unwrap();
    assert!(plain.connect_any(&[dead, live], deadline, PATIENCE).await.is_ok());
    let error = plain
        .connect_any(&[dead, dead], deadline, PATIENCE)
        .await
        .unwrap_err();
    assert_eq!(error.kind(), DialErrorKind::Refused);

    // The first address takes its share of the time only, and the second is tried after it.
    let tls = Tls {
        insecure_skip_verify: true,
        ..Tls::default()
    };
    let silent = tcp("127.0.0.1", 1, Some(tls)).unwrap();
    let began = Instant::now();
    let error = silent
        .connect_any(
            &[live, dead],
            began + Duration::from_secs(1),
            Duration::from_secs(1),
        )
        .await
        .unwrap_err();
    assert!(error.to_string().contains("its share of 1s"), "{error}");
    assert_eq!(error.kind(), DialErrorKind::Timeout, "{error}");
    assert!(began.elapsed() >= Duration::from_millis(500));
    assert!(began.elapsed() < Duration::from_secs(1));
}

#[test]
fn an_address_needs_no_resolver_thread() {
    // A runtime without blocking threads to spare would never resolve a name; an IP address needs none.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(1)
        .build()
        .unwrap();
    let (release, wait) = std::sync::mpsc::channel::<()>();
    let (busy, is_busy) = std::sync::mpsc::channel::<()>();
    runtime.spawn_blocking(move || {
        busy.send(()).unwrap();
        let _ = wait.recv();
    });
    is_busy.recv().unwrap();
    runtime.block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let literal = tcp("127.0.0.1", port, None).unwrap().connect(PATIENCE).await;
        assert!(literal.is_ok());
        let name = tcp("localhost", port, None)
            .unwrap()
            .connect(Duration::from_millis(100))
            .await;
        assert_eq!(name.unwrap_err().kind(), DialErrorKind::Timeout);
    });
    drop(release);
}

#[test]
fn nothing_secret_is_shown() {
    let dialer = Dialer::new(Arc::new(Endpoint {
        address: Address::Tcp {
            host: "127.0.0.1".to_owned(),
            port: 1,
        },
        tls: None,
        credentials: Some(Credentials {
            username: None,
            password: Secret::new("hunter2"),
        }),
    }))
    .unwrap();
    let shown = format!("{dialer:?}");
    assert!(!shown.contains("hunter2"), "{shown}");
}
