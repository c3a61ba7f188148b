//! `check --connect`: proves that every replica can be used as it is configured.
//!
//! Opens two connections to each (and asks its cluster's REST API, where that is configured), as links and the monitor will, and needs every answer that they will need. Writes one
//! key that expires by itself and publishes one message on a channel of its own, so that a running sidecar is not
//! disturbed.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::join_all;
use redis::aio::{MultiplexedConnection, PubSub};
use redis::{AsyncConnectionConfig, Cmd, ErrorKind, RedisConnectionInfo, RedisError};
use tokio::time::{Instant, timeout};

use super::{Exit, Failure, check, print};
use crate::config::Config;
use crate::decision::RestOutcome;
use crate::dial::{Dialer, Stream};
use crate::monitor::{Patience, RestCheck};
use crate::replica::{Endpoint, Replica, Rest};

/// Life of the key that the write leaves behind, in milliseconds.
const KEY_LIFE: u64 = 1000;

/// Tries every replica at once and prints a line for each, in the order of the configuration.
///
/// # Errors
/// When at least one cannot be used.
pub(super) async fn prove_all(config: &Config) -> Result<(), Failure> {
    let proofs = config.replicas.iter().map(|replica| prove(config, replica));
    let mut failed = Vec::new();
    for (replica, proof) in config.replicas.iter().zip(join_all(proofs).await) {
        match proof {
            Ok(done) => print(&format!("connected  {}: {done}", replica.name))?,
            Err(why) => failed.push(format!(
                "replica {} at {}: {why}",
                replica.name,
                check::endpoint(replica)
            )),
        }
    }
    match failed.is_empty() {
        true => Ok(()),
        false => {
            let message = format!(
                "{} of {} replicas cannot be used\n{}",
                failed.len(),
                config.replicas.len(),
                failed.join("\n")
            );
            Err(Failure::new(Exit::Unavailable, message))
        }
    }
}

/// Everything that one replica must do, in order; the error says which step failed, and why.
async fn prove(config: &Config, replica: &Replica) -> Result<String, String> {
    let limit = config.upstream.response_timeout;
    let start = Instant::now();
    let dialer = Dialer::new(replica.endpoint.clone()).map_err(|error| error.to_string())?;
    let stream = dial(&dialer, config).await?;
    let connected = start.elapsed();
    let mut connection = open(stream, limit).await?;
    let mut steps = vec![format!("connected in {}", shown(connected))];
    if authenticate(&mut connection, &replica.endpoint).await? {
        steps.push("AUTH".to_owned());
    }

    let start = Instant::now();
    let pong = ask(&mut connection, redis::cmd("PING"), "PING").await?;
    let is_pong = matches!(&pong, redis::Value::SimpleString(text) if text == "PONG");
    if !is_pong {
        return Err("PING is not answered with PONG: is this a Redis?".to_owned());
    }
    steps.push(format!("PING {}", shown(start.elapsed())));

    let prefix = &config.detection.channel_prefix;
    let instance = format!("check-{}", std::process::id());
    let mut set = redis::cmd("SET");
    set.arg(format!("{prefix}:probe:{instance}"))
        .arg("1")
        .arg("PX")
        .arg(KEY_LIFE);
    ask(&mut connection, set, "a write").await?;
    steps.push("write".to_owned());

    let channel = format!("{prefix}:{instance}:{}", replica.name);
    hear(&dialer, config, &mut connection, &channel).await?;
    steps.push("publish and subscribe".to_owned());
    if let Some(rest) = &replica.rest {
        steps.push(ask_cluster(config, replica, rest).await?);
    }
    Ok(steps.join(", "))
}

/// Whether the cluster's REST API answers the monitor's question; what it says of the database is no failure.
async fn ask_cluster(config: &Config, replica: &Replica, rest: &Arc<Rest>) -> Result<String, String> {
    let failed = |why: String| format!("REST at {rest} failed: {why}");
    let mut check = RestCheck::new(Arc::clone(rest), replica.endpoint.address.clone())
        .map_err(|error| failed(error.to_string()))?;
    let patience = Patience {
        connect: config.upstream.connect_timeout,
        answer: config.upstream.response_timeout,
    };
    let outcome = check.ask(patience).await;
    let database = check.uid().map_or(String::new(), |uid| format!(" {uid}"));
    match outcome {
        RestOutcome::Available => Ok(format!("REST: database{database} is available")),
        RestOutcome::Unavailable(why) => Ok(format!("REST: database{database} is unavailable ({why})")),
        RestOutcome::Unknown(why) => Err(failed(why)),
    }
}

async fn dial(dialer: &Dialer, config: &Config) -> Result<Stream, String> {
    dialer
        .connect(config.upstream.connect_timeout)
        .await
        .map_err(|error| error.to_string())
}

/// A connection that sends nothing by itself, so that every error belongs to a step.
async fn open(stream: Stream, limit: Duration) -> Result<MultiplexedConnection, String> {
    let config = AsyncConnectionConfig::new().set_response_timeout(Some(limit));
    let (connection, driver) = MultiplexedConnection::new_with_config(&silent(), stream, config)
        .await
        .map_err(|error| words(&error))?;
    // Ends when the connection is dropped.
    tokio::spawn(driver);
    Ok(connection)
}

fn silent() -> RedisConnectionInfo {
    RedisConnectionInfo::default().set_skip_set_lib_name()
}

/// Whether there was anything to present.
async fn authenticate(
    connection: &mut MultiplexedConnection,
    endpoint: &Arc<Endpoint>,
) -> Result<bool, String> {
    let Some(credentials) = &endpoint.credentials else {
        return Ok(false);
    };
    let mut auth = redis::cmd("AUTH");
    if let Some(username) = &credentials.username {
        auth.arg(username);
    }
    auth.arg(credentials.password.expose());
    ask(connection, auth, "AUTH").await?;
    Ok(true)
}

async fn ask(
    connection: &mut MultiplexedConnection,
    command: Cmd,
    step: &str,
) -> Result<redis::Value, String> {
    connection
        .send_packed_command(&command)
        .await
        .and_then(redis::Value::extract_error)
        .map_err(|error| format!("{step} failed: {}", words(&error)))
}

/// Subscribes on a second connection, publishes on the first, and waits for the message.
async fn hear(
    dialer: &Dialer,
    config: &Config,
    publisher: &mut MultiplexedConnection,
    channel: &str,
) -> Result<(), String> {
    let limit = config.upstream.response_timeout;
    let late = || {
        format!(
            "SUBSCRIBE failed: no message within {}",
            humantime::format_duration(limit)
        )
    };
    let mut info = silent();
    if let Some(credentials) = &dialer.endpoint().credentials {
        info = info.set_password(credentials.password.expose());
        if let Some(username) = &credentials.username {
            info = info.set_username(username);
        }
    }
    let stream = dial(dialer, config).await?;
    let subscribe = async {
        let mut subscriber = PubSub::new(&info, stream).await?;
        subscriber.subscribe(channel).await?;
        Ok::<_, RedisError>(subscriber)
    };
    let mut subscriber = timeout(limit, subscribe)
        .await
        .map_err(|_| late())?
        .map_err(|error| format!("SUBSCRIBE failed: {}", words(&error)))?;
    let mut publish = redis::cmd("PUBLISH");
    publish.arg(channel).arg("1");
    ask(publisher, publish, "PUBLISH").await?;
    match timeout(limit, subscriber.on_message().next()).await {
        Ok(Some(_)) => Ok(()),
        Ok(None) => Err("SUBSCRIBE failed: the connection was closed".to_owned()),
        Err(_) => Err(late()),
    }
}

/// An error in the replica's own words where it has any.
fn words(error: &RedisError) -> String {
    match (error.code(), error.detail()) {
        (Some(code), Some(detail)) => format!("{code} {detail}"),
        _ if error.is_timeout() => "no answer in time".to_owned(),
        _ if error.kind() == ErrorKind::Parse => {
            "the answer is not the Redis protocol: is this a Redis?".to_owned()
        }
        // Some have several lines.
        _ => error.to_string().split_whitespace().collect::<Vec<_>>().join(" "),
    }
}

/// A duration for people: milliseconds with one decimal.
fn shown(duration: Duration) -> String {
    format!("{:.1} ms", duration.as_secs_f64() * 1000.0)
}
