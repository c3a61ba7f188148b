//! What can be read: probes, metrics, status, events.

use std::convert::Infallible;
use std::sync::Arc;

use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use futures_util::stream;
use serde::Deserialize;
use tokio::sync::OwnedSemaphorePermit;

use super::Shared;
use super::journal::{Cursor, KEPT};
use super::verbs::Answer;
use crate::control::status::{EventRecord, Status};
use crate::metrics;

/// For probes and scrapers, which may come by any name.
pub(super) fn open() -> Router<Arc<Shared>> {
    Router::new()
        .route("/", get(index))
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .route("/metrics", get(scrape))
}

/// Behind `guard`.
pub(super) fn guarded() -> Router<Arc<Shared>> {
    Router::new()
        .route("/status", get(status))
        .route("/events", get(events))
}

const INDEX: &str = "\
Pulsegate's admin server

GET  /livez      200 while the process works
GET  /readyz     200 when applications can be served; 503 with the reason otherwise
GET  /metrics    Prometheus text
GET  /status     JSON: what is active, and what is known of every replica and link
GET  /events     server-sent events: ?recent=N (the last ones first), ?follow=false (only those)
POST /switch     {\"to\": REPLICA, \"reason\": TEXT}: a planned move
POST /pin        {\"replica\": REPLICA}: go there and stay
POST /unpin      give the choice back
POST /failback   return to the preferred replica now
POST /hold       make commands wait
POST /resume     end a hold
";

async fn index() -> &'static str {
    INDEX
}

/// Answers at all: the control thread, which serves this too, is not stuck.
async fn livez() -> &'static str {
    "ok\n"
}

async fn readyz(State(shared): State<Arc<Shared>>) -> Response {
    let routed = shared.control.status.borrow().active.is_some();
    let refusal = shared.readiness.refusal().or((!routed).then_some("no route yet"));
    match refusal {
        None => "ok\n".into_response(),
        Some(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")).into_response(),
    }
}

async fn scrape(State(shared): State<Arc<Shared>>) -> Response {
    (
        [(header::CONTENT_TYPE, metrics::CONTENT_TYPE)],
        shared.metrics.render(),
    )
        .into_response()
}

async fn status(State(shared): State<Arc<Shared>>) -> Response {
    let newest: Arc<Status> = shared.control.status.borrow().clone();
    Json(&*newest).into_response()
}

/// The query of `/events`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct EventsQuery {
    /// Begin with this many of the events that were.
    recent: Option<usize>,
    /// Go on with those to come.
    #[serde(default = "yes")]
    follow: bool,
}

fn yes() -> bool {
    true
}

/// Between two events of one stream.
struct Following {
    shared: Arc<Shared>,
    cursor: Cursor,
    /// `None`: only what is there already.
    place: Option<OwnedSemaphorePermit>,
}

async fn events(
    State(shared): State<Arc<Shared>>,
    headers: HeaderMap,
    query: Result<Query<EventsQuery>, QueryRejection>,
) -> Response {
    let query = match query {
        Ok(Query(query)) => query,
        Err(error) => return Answer::refused(error.body_text()).with(StatusCode::BAD_REQUEST),
    };
    let place = match query.follow {
        false => None,
        true => match shared.streams.clone().try_acquire_owned() {
            Ok(place) => Some(place),
            Err(_) => {
                let answer = Answer::refused("too many event streams are open");
                return answer.with(StatusCode::SERVICE_UNAVAILABLE);
            }
        },
    };
    // Sent by readers that had a stream before (the HTML standard, 9.2.3).
    let last_id = headers
        .get("last-event-id")
        .and_then(|id| id.to_str().ok()?.parse().ok());
    let cursor = match (query.recent, last_id) {
        (Some(count), _) => shared.journal.recent(count),
        (None, Some(id)) => shared.journal.after(id),
        (None, None) => shared.journal.recent(if query.follow { 0 } else { KEPT }),
    };
    let keep_alive = KeepAlive::new().interval(shared.limits.keep_alive);
    let following = Following {
        shared,
        cursor,
        place,
    };
    Sse::new(stream::unfold(following, next))
        .keep_alive(keep_alive)
        .into_response()
}

async fn next(mut following: Following) -> Option<(Result<Event, Infallible>, Following)> {
    loop {
        if let Some(event) = following.shared.journal.take(&mut following.cursor) {
            return Some((Ok(sent(&event)), following));
        }
        following.place.as_ref()?;
        tokio::select! {
            () = following.cursor.wait() => {}
            () = following.shared.closed() => return None,
        }
    }
}

fn sent(event: &EventRecord) -> Event {
    // Plain data always serialises.
    let data = serde_json::to_string(event).unwrap_or_default();
    Event::default()
        .id(event.id.to_string())
        .event(&event.kind)
        .data(data)
}

pub(super) async fn no_such_path() -> Response {
    Answer::refused("no such path; GET / lists them").with(StatusCode::NOT_FOUND)
}

pub(super) async fn no_such_method() -> Response {
    Answer::refused("not with this method; GET / lists what there is").with(StatusCode::METHOD_NOT_ALLOWED)
}
