//! What an operator can ask: JSON in, one request to control, its answer out.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, Router};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::Shared;
use crate::control::Ask;
use crate::decision::Request;
use crate::replica::ReplicaId;

/// Largest body of a request, in bytes.
const MAX_BODY: usize = 16 * 1024;

pub(super) fn routes() -> Router<Arc<Shared>> {
    Router::new()
        .route("/switch", post(switch))
        .route("/pin", post(pin))
        .route("/unpin", post(unpin))
        .route("/failback", post(failback))
        .route("/hold", post(hold))
        .route("/resume", post(resume))
}

/// The body of every answer that is not a document: `{"ok":true,"message":…}` or `{"ok":false,"error":…}`.
#[derive(Serialize)]
pub(super) struct Answer {
    ok: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

impl Answer {
    fn done(message: String) -> Answer {
        Answer {
            ok: true,
            message: Some(message),
            error: None,
        }
    }

    pub(super) fn refused(error: impl Into<String>) -> Answer {
        Answer {
            ok: false,
            message: None,
            error: Some(error.into()),
        }
    }

    pub(super) fn with(self, status: StatusCode) -> Response {
        (status, self).into_response()
    }
}

impl IntoResponse for Answer {
    fn into_response(self) -> Response {
        Json(self).into_response()
    }
}

/// Why a verb was not done.
#[derive(Debug, thiserror::Error)]
enum VerbError {
    #[error("the request's body is not what this verb takes: {0}")]
    Body(serde_json::Error),
    #[error("the request's body is longer than {MAX_BODY} bytes")]
    TooBig,
    #[error("the request's body broke off")]
    BrokeOff,
    #[error("the request's body did not come in time")]
    TooSlow,
    #[error("unknown replica `{name}`; known: {known}")]
    UnknownReplica { name: String, known: String },
    #[error("{0}")]
    Refused(String),
    #[error("no answer from control in time; what was asked may still happen: see /status")]
    NoAnswer,
    #[error("control takes no requests: it is ending")]
    Ending,
}

impl IntoResponse for VerbError {
    fn into_response(self) -> Response {
        let status = match self {
            VerbError::Body(_) | VerbError::BrokeOff => StatusCode::BAD_REQUEST,
            VerbError::TooBig => StatusCode::PAYLOAD_TOO_LARGE,
            VerbError::TooSlow => StatusCode::REQUEST_TIMEOUT,
            VerbError::UnknownReplica { .. } => StatusCode::NOT_FOUND,
            VerbError::Refused(_) => StatusCode::CONFLICT,
            VerbError::NoAnswer => StatusCode::GATEWAY_TIMEOUT,
            VerbError::Ending => StatusCode::SERVICE_UNAVAILABLE,
        };
        Answer::refused(self.to_string()).with(status)
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SwitchBody {
    to: String,
    reason: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PinBody {
    replica: String,
}

/// Of the verbs that take nothing; no body at all is as good.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Nothing {}

async fn switch(State(shared): State<Arc<Shared>>, body: Body) -> Result<Answer, VerbError> {
    let SwitchBody { to, reason } = shared.read(body).await?;
    let request = Request::Switch {
        to: shared.replica(to)?,
        reason: one_line(reason.as_deref().unwrap_or_default()),
    };
    shared.ask(request).await
}

async fn pin(State(shared): State<Arc<Shared>>, body: Body) -> Result<Answer, VerbError> {
    let PinBody { replica } = shared.read(body).await?;
    let replica = shared.replica(replica)?;
    shared.ask(Request::Pin { replica }).await
}

async fn unpin(State(shared): State<Arc<Shared>>, body: Body) -> Result<Answer, VerbError> {
    let Nothing {} = shared.read(body).await?;
    shared.ask(Request::Unpin).await
}

async fn failback(State(shared): State<Arc<Shared>>, body: Body) -> Result<Answer, VerbError> {
    let Nothing {} = shared.read(body).await?;
    shared.ask(Request::Failback).await
}

async fn hold(State(shared): State<Arc<Shared>>, body: Body) -> Result<Answer, VerbError> {
    let Nothing {} = shared.read(body).await?;
    shared.ask(Request::Hold).await
}

async fn resume(State(shared): State<Arc<Shared>>, body: Body) -> Result<Answer, VerbError> {
    let Nothing {} = shared.read(body).await?;
    shared.ask(Request::Resume).await
}

impl Shared {
    /// The body as JSON; no body is as good as an empty object, which then lacks what is needed, by name.
    async fn read<T: DeserializeOwned>(&self, body: Body) -> Result<T, VerbError> {
        let whole = timeout(self.limits.request_within, Limited::new(body, MAX_BODY).collect()).await;
        let bytes = match whole {
            Ok(Ok(whole)) => whole.to_bytes(),
            Ok(Err(error)) if error.is::<LengthLimitError>() => return Err(VerbError::TooBig),
            Ok(Err(_)) => return Err(VerbError::BrokeOff),
            Err(_) => return Err(VerbError::TooSlow),
        };
        let json = if bytes.trim_ascii().is_empty() {
            b"{}"
        } else {
            &bytes[..]
        };
        serde_json::from_slice(json).map_err(VerbError::Body)
    }

    fn replica(&self, name: String) -> Result<ReplicaId, VerbError> {
        let mut ids = (0..=u8::MAX).map(ReplicaId).zip(&self.replicas);
        match ids.find(|(_, known)| known.as_ref() == name) {
            Some((id, _)) => Ok(id),
            None => {
                let known: Vec<&str> = self.replicas.iter().map(AsRef::as_ref).collect();
                Err(VerbError::UnknownReplica {
                    name,
                    known: known.join(", "),
                })
            }
        }
    }

    /// Hands `request` to control and waits for its answer. When the HTTP client goes away, control goes on.
    async fn ask(&self, request: Request) -> Result<Answer, VerbError> {
        tracing::info!(?request, "an operator asks");
        let (answer, answered) = oneshot::channel();
        let exchange = async {
            let ask = Ask { request, answer };
            self.control
                .requests
                .send(ask)
                .await
                .map_err(|_| VerbError::Ending)?;
            answered.await.map_err(|_| VerbError::Ending)
        };
        match timeout(self.limits.answer_within, exchange).await {
            Ok(Ok(Ok(message))) => Ok(Answer::done(message)),
            Ok(Ok(Err(why))) => Err(VerbError::Refused(why)),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(VerbError::NoAnswer),
        }
    }
}

/// A reason goes into log lines and events: what would break a line becomes a space.
fn one_line(text: &str) -> String {
    let text: String = text
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    text.trim().to_owned()
}
