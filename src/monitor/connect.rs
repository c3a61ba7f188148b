//! From a dialled stream to a Redis connection, and from its errors to evidence.

use std::collections::VecDeque;
use std::error::Error;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Cmd, ErrorKind, ProtocolVersion, RedisConnectionInfo, RedisError};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::Pace;
use crate::decision::ProbeFailure;
use crate::dial::{self, DialError, Dialer, Stream};

/// What `/status` says that such a peer answered with.
const NO_REDIS: &str = "something that is no Redis reply";

/// How a cluster's node begins the error that says which node has a slot now.
const MOVED: &str = "MOVED";
/// The same while the slot is on its way there.
const ASK: &str = "ASK";

/// A failure as evidence, and in words for the log.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Failure {
    pub(super) evidence: ProbeFailure,
    pub(super) words: String,
    /// The replica answered with an error, and the connection can be used further.
    pub(super) usable: bool,
}

impl Failure {
    fn new(evidence: ProbeFailure, words: String) -> Failure {
        Failure {
            evidence,
            words,
            usable: false,
        }
    }

    pub(super) fn timeout(what: &str, after: Duration) -> Failure {
        Failure::new(
            ProbeFailure::Timeout,
            format!("no answer to {what} within {after:?}"),
        )
    }

    /// Whatever listens there, it is no Redis.
    pub(super) fn no_redis(words: String) -> Failure {
        Failure::new(ProbeFailure::Rejected(NO_REDIS.to_owned()), words)
    }

    pub(super) fn closed() -> Failure {
        Failure::new(ProbeFailure::Broken, "the connection was closed".to_owned())
    }

    /// The server ended a subscription by itself: the shard is another node's now.
    pub(super) fn moved_away() -> Failure {
        let words = "the server ended the subscription to a channel".to_owned();
        Failure::new(ProbeFailure::Rejected(MOVED.to_owned()), words)
    }

    /// Whether a cluster's node says that a slot is, or will be, another's: that is about the layout, and no evidence of
    /// what the shard can do.
    pub(super) fn is_redirection(&self) -> bool {
        matches!(&self.evidence, ProbeFailure::Rejected(code) if code == MOVED || code == ASK)
    }

    /// Whether something answered there, though not as it should: to ask again at once would change nothing.
    pub(super) fn is_answer(&self) -> bool {
        matches!(self.evidence, ProbeFailure::Rejected(_))
    }
}

impl From<&DialError> for Failure {
    fn from(error: &DialError) -> Failure {
        let evidence = match error {
            DialError::Refused { .. } => ProbeFailure::Refused,
            DialError::Timeout { .. } => ProbeFailure::Timeout,
            DialError::Tls { cause, .. } | DialError::Files { cause, .. } => tls_error(cause),
            DialError::Local { .. } | DialError::Other { .. } => ProbeFailure::Broken,
        };
        Failure::new(evidence, error.to_string())
    }
}

impl From<&RedisError> for Failure {
    fn from(error: &RedisError) -> Failure {
        let rejected = |word: &str| ProbeFailure::Rejected(word.to_owned());
        match (error.kind(), error.code()) {
            // With TLS 1.3 a server that rejects our certificate says so after the handshake.
            (ErrorKind::Io, _) => match error.source().and_then(dial::tls_alert) {
                Some(alert) => Failure::new(tls_error(&alert), error.to_string()),
                None => Failure::new(ProbeFailure::Broken, error.to_string()),
            },
            (_, Some(code)) => Failure {
                evidence: rejected(code),
                words: match error.detail() {
                    Some(detail) => format!("{code} {detail}"),
                    None => code.to_owned(),
                },
                usable: true,
            },
            (ErrorKind::AuthenticationFailed, None) => Failure::new(rejected("AUTH"), error.to_string()),
            (_, None) => Failure::no_redis(error.to_string()),
        }
    }
}

/// Shown in `/status` as what the replica answered with: nobody reads the log first.
fn tls_error(cause: &str) -> ProbeFailure {
    ProbeFailure::Rejected(format!("a TLS error ({cause})"))
}

/// A connection for commands, with the task that drives it.
pub(super) struct Connection {
    pub(super) commands: MultiplexedConnection,
    /// Resolves when the connection is lost, also while it is idle.
    pub(super) lost: Driver,
}

/// Runs a connection; ends it when dropped.
pub(super) struct Driver(JoinHandle<()>);

impl Future for Driver {
    type Output = Failure;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Failure> {
        Pin::new(&mut self.0).poll(cx).map(|_| Failure::closed())
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Within `timeout`, or a failure that names `what`.
pub(super) async fn within<T>(
    timeout: Duration,
    what: &str,
    answer: impl Future<Output = Result<T, RedisError>>,
) -> Result<T, Failure> {
    match tokio::time::timeout(timeout, answer).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(Failure::from(&error)),
        Err(_) => Err(Failure::timeout(what, timeout)),
    }
}

/// Dials.
pub(super) async fn stream(dialer: &Dialer, pace: Pace) -> Result<Stream, Failure> {
    dialer
        .connect(pace.connect_timeout)
        .await
        .map_err(|error| Failure::from(&error))
}

/// The command that says who we are, when the endpoint has credentials.
pub(super) fn auth(dialer: &Dialer) -> Option<Cmd> {
    let credentials = dialer.endpoint().credentials.as_ref()?;
    let mut auth = redis::cmd("AUTH");
    if let Some(username) = &credentials.username {
        auth.arg(username);
    }
    auth.arg(credentials.password.expose());
    Some(auth)
}

/// Dials, and authenticates when the endpoint has credentials.
pub(super) async fn commands(dialer: &Dialer, pace: Pace) -> Result<Connection, Failure> {
    let stream = stream(dialer, pace).await?;
    // No set-up through the library: it waits for an answer without a limit and hides the server's own words.
    let config = AsyncConnectionConfig::new().set_response_timeout(None);
    let info = RedisConnectionInfo::default()
        .set_protocol(ProtocolVersion::RESP2)
        .set_skip_set_lib_name();
    let opened = MultiplexedConnection::new_with_config(&info, stream, config);
    let (mut commands, driver) = within(pace.answer_timeout, "the connection's set-up", opened).await?;
    let lost = Driver(tokio::spawn(driver));
    if let Some(auth) = auth(dialer) {
        within(pace.answer_timeout, "AUTH", auth.exec_async(&mut commands)).await?;
    }
    Ok(Connection { commands, lost })
}

/// How long a failure that comes, goes and comes again in the same words is not logged again.
const REPEAT_AFTER: Duration = Duration::from_secs(10);

/// One fault may show itself in a few ways in turn: closed, broken pipe, timed out.
const WORDINGS: usize = 4;

/// Logs a failure once, not at every attempt, and the end of it.
#[derive(Debug)]
pub(super) struct Complaint {
    about: &'static str,
    replica: Arc<str>,
    /// The newest failures that were logged, each in words of its own, and when.
    said: VecDeque<(String, Instant)>,
    failing: bool,
    /// The present failure was logged, so its end is to be logged too.
    announced: bool,
}

impl Complaint {
    pub(super) fn new(about: &'static str, replica: &Arc<str>) -> Complaint {
        Complaint {
            about,
            replica: Arc::clone(replica),
            said: VecDeque::new(),
            failing: false,
            announced: false,
        }
    }

    pub(super) fn failed(&mut self, words: &str) {
        if self.is_news(words, Instant::now()) {
            tracing::warn!(replica = %self.replica, "{} fails: {words}", self.about);
        } else {
            tracing::debug!(replica = %self.replica, "{} fails: {words}", self.about);
        }
    }

    fn is_news(&mut self, words: &str, now: Instant) -> bool {
        let known = self
            .said
            .iter()
            .any(|(said, at)| said == words && (self.failing || now - *at < REPEAT_AFTER));
        self.failing = true;
        if !known {
            self.said.retain(|(said, _)| said != words);
            if self.said.len() == WORDINGS {
                self.said.pop_front();
            }
            self.said.push_back((words.to_owned(), now));
            self.announced = true;
        }
        !known
    }

    pub(super) fn works(&mut self) {
        self.failing = false;
        if std::mem::take(&mut self.announced) {
            tracing::info!(replica = %self.replica, "{} works again", self.about);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_failure_is_news_once() {
        let mut complaint = Complaint::new("PING", &"local".into());
        let start = Instant::now();
        let hour = Duration::from_secs(3600);
        assert!(complaint.is_news("refused", start));
        assert!(
            !complaint.is_news("refused", start + hour),
            "the same all the time"
        );
        assert!(complaint.is_news("timed out", start + hour));
        assert!(!complaint.is_news("refused", start + hour), "the two in turn");
        complaint.works();
        assert!(!complaint.announced);
        let soon = start + hour + Duration::from_secs(9);
        assert!(!complaint.is_news("timed out", soon), "flapping");
        assert!(!complaint.announced, "its end is no news either");
        complaint.works();
        assert!(complaint.is_news("timed out", soon + REPEAT_AFTER));
    }

    #[test]
    fn errors_become_evidence() {
        let word = |error: RedisError| Failure::from(&error).evidence;
        let io = |kind| RedisError::from(std::io::Error::from(kind));
        assert_eq!(
            word(io(std::io::ErrorKind::ConnectionReset)),
            ProbeFailure::Broken
        );
        let parse = RedisError::from((ErrorKind::Parse, "not RESP"));
        assert_eq!(word(parse), ProbeFailure::Rejected(NO_REDIS.to_owned()));
        let auth = RedisError::from((ErrorKind::AuthenticationFailed, "wrong"));
        assert_eq!(word(auth), ProbeFailure::Rejected("AUTH".to_owned()));
        let server = redis::make_extension_error("NOREPLICAS".to_owned(), Some("Not enough".to_owned()));
        let failure = Failure::from(&server);
        assert_eq!(failure.evidence, ProbeFailure::Rejected("NOREPLICAS".to_owned()));
        assert_eq!(failure.words, "NOREPLICAS Not enough");
        assert!(failure.usable && !Failure::closed().usable);
        assert!(!failure.is_redirection());
        for reply in ["-MOVED 3999 127.0.0.1:6381\r\n", "-ASK 3999 127.0.0.1:6381\r\n"] {
            let error = redis::parse_redis_value(reply.as_bytes()).and_then(redis::Value::extract_error);
            let failure = Failure::from(&error.unwrap_err());
            assert!(failure.is_redirection() && failure.usable, "{failure:?}");
        }
    }
}
