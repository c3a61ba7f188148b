//! The verbs that ask a running sidecar for something, and the health check.

use std::time::Duration;

use hyper::{Method, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::client::{AdminClient, MOVE, QUICK};
use super::{AdminArgs, AskArgs, Exit, Failure, print, status};
use crate::control::status::Status;

/// Time between two looks at `/status` with `--wait`.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// What is asked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Verb {
    Switch { to: String, reason: String },
    Pin { replica: String },
    Unpin,
    Failback,
    Hold,
    Resume,
}

impl Verb {
    fn path(&self) -> &'static str {
        match self {
            Verb::Switch { .. } => "/switch",
            Verb::Pin { .. } => "/pin",
            Verb::Unpin => "/unpin",
            Verb::Failback => "/failback",
            Verb::Hold => "/hold",
            Verb::Resume => "/resume",
        }
    }

    fn body(&self) -> Value {
        match self {
            Verb::Switch { to, reason } => json!({ "to": to, "reason": reason }),
            Verb::Pin { replica } => json!({ "replica": replica }),
            Verb::Unpin | Verb::Failback | Verb::Hold | Verb::Resume => json!({}),
        }
    }

    /// Whether `now` shows that it is done; `before` is the status from before it was asked.
    fn is_done(&self, before: &Status, now: &Status) -> bool {
        match self {
            Verb::Switch { to, .. } => now.active.as_ref() == Some(to) && !now.holding,
            Verb::Pin { replica } => {
                now.pinned.as_ref() == Some(replica) && now.active.as_ref() == Some(replica) && !now.holding
            }
            Verb::Unpin => now.pinned.is_none(),
            // Which replica is preferred is not in the status: the answer said that the move ended, so it is enough
            // to see it, or to see that there was none to make.
            Verb::Failback => !now.holding && (now.epoch > before.epoch || now.active == before.active),
            Verb::Hold => now.holding,
            Verb::Resume => !now.holding,
        }
    }
}

/// What the admin server answers to a verb.
#[derive(Deserialize, Debug)]
struct Answer {
    ok: bool,
    #[serde(default)]
    message: String,
    #[serde(default)]
    error: String,
}

/// Asks, and prints the answer.
pub(super) async fn ask(args: &AskArgs, verb: &Verb) -> Result<(), Failure> {
    let client = AdminClient::new(&args.admin)?;
    let before = match args.wait {
        true => Some(status::fetch(&client).await?),
        false => None,
    };
    let (code, body) = client
        .ask(Method::POST, verb.path(), Some(&verb.body()), MOVE)
        .await?;
    let answer: Option<Answer> = serde_json::from_slice(&body).ok();
    match answer {
        Some(answer) if answer.ok && code.is_success() => print(&answer.message)?,
        // It may still happen; with --wait the status tells.
        Some(_) if code == StatusCode::GATEWAY_TIMEOUT && before.is_some() => {}
        Some(answer) => {
            let why = if answer.error.is_empty() {
                answer.message
            } else {
                answer.error
            };
            return Err(Failure::new(exit_for(code), why));
        }
        None if code == StatusCode::UNAUTHORIZED => {
            let message = "the admin server wants a token: use --token-file";
            return Err(Failure::new(Exit::NoPermission, message));
        }
        None => return Err(client.unavailable(&format!("it answered {code}, not as Pulsegate does"))),
    }
    match before {
        Some(before) => wait(&client, verb, &before).await,
        None => Ok(()),
    }
}

fn exit_for(code: StatusCode) -> Exit {
    match code {
        StatusCode::BAD_REQUEST => Exit::Usage,
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Exit::NoPermission,
        StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT => Exit::Unavailable,
        _ => Exit::Refused,
    }
}

async fn wait(client: &AdminClient, verb: &Verb, before: &Status) -> Result<(), Failure> {
    let deadline = Instant::now() + MOVE;
    loop {
        let now = status::fetch(client).await?;
        if verb.is_done(before, &now) {
            return Ok(());
        }
        if Instant::now() >= deadline {
            let active = now.active.as_deref().unwrap_or("none");
            let message = format!(
                "accepted, but not seen in /status within {} s: active {active}, holding {}",
                MOVE.as_secs(),
                now.holding
            );
            return Err(Failure::new(Exit::Refused, message));
        }
        sleep(LOOK_EVERY).await;
    }
}

/// Exit 0 if the sidecar is ready, 1 if it is not or cannot be asked (a health check knows no third way).
pub(super) async fn healthcheck(args: &AdminArgs) -> Result<(), Failure> {
    let not_ready = |message: String| Failure::new(Exit::Refused, message);
    let client = AdminClient::new(args)?;
    let answer = client.ask(Method::GET, "/readyz", None, QUICK).await;
    let (code, body) = answer.map_err(|failure| not_ready(failure.message))?;
    let text = String::from_utf8_lossy(&body);
    if code == StatusCode::OK {
        print("ready")?;
        return Ok(());
    }
    Err(not_ready(format!("not ready: {code}: {}", text.trim())))
}
