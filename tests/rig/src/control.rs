//! A rig over HTTP: its state and every fault. Made for loopback; it asks nobody who they are.
//!
//! | request | does |
//! |---|---|
//! | `GET /status` | regions with addresses and pids, links with offsets, lag and counters |
//! | `GET /converged?timeout_ms=5000` | 200 once every link has caught up, 504 and what is behind otherwise |
//! | `POST /heal` | ends every fault |
//! | `POST /regions/{name}/{verb}` | `kill` `restart?keep=true` `hang` `unhang` `loading?ms=` `stale?kind=min-replicas\|outbound` `unstale` `out-of-memory` `free-memory` `pause-writes?ms=` `unpause` `cut` `stall` `delay?to_server_ms=&to_client_ms=` `dribble?bytes=&interval_ms=` `half-open?dead=to-server\|to-client` `heal-network` `heal` `move-slots?slots=0-99&to_shard=1` |
//! | `POST /links/{from}/{to}/{verb}` | `cut` `heal` `delay?ms=` `flap?period_ms=` |
//!
//! Where regions have shards, `shard=1` names one of a region, `from_shard=1` and `to_shard=0` those of a link; without it all
//! are meant.
//!
//! Every POST answers 200 and `{"done": …}` once the fault is in force; otherwise 4xx or 5xx and `{"error": …}`.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::json;

use crate::relay::Direction;
use crate::rig::{At, Data, Rig, RigStatus};

const REQUESTS: &str =
    "GET /status, GET /converged, POST /heal, POST /regions/NAME/VERB, POST /links/FROM/TO/VERB";

/// Why a request was not done.
#[derive(Debug)]
enum Refusal {
    /// No such region, link or verb.
    Unknown(anyhow::Error),
    /// The query lacks something.
    Query(&'static str),
    /// The query says something that is not understood.
    Garbled(QueryRejection),
    /// The rig could not do it.
    Failed(anyhow::Error),
    /// A GET where a POST belongs, or the other way round.
    Method,
    /// It did not come true in time.
    Late(anyhow::Error),
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let (code, error) = match self {
            Self::Unknown(error) => (StatusCode::NOT_FOUND, format!("{error:#}")),
            Self::Query(lacking) => (StatusCode::BAD_REQUEST, format!("the query needs {lacking}")),
            Self::Garbled(error) => (StatusCode::BAD_REQUEST, error.body_text()),
            Self::Failed(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error:#}")),
            Self::Method => (StatusCode::METHOD_NOT_ALLOWED, format!("there are: {REQUESTS}")),
            Self::Late(error) => (StatusCode::GATEWAY_TIMEOUT, format!("{error:#}")),
        };
        (code, Json(json!({ "error": error }))).into_response()
    }
}

impl From<anyhow::Error> for Refusal {
    fn from(error: anyhow::Error) -> Self {
        Self::Failed(error)
    }
}

impl From<QueryRejection> for Refusal {
    fn from(error: QueryRejection) -> Self {
        Self::Garbled(error)
    }
}

/// A query as it came, understood or not.
type Asked = Result<Query<Details>, QueryRejection>;

/// All that a query may say; which of it is needed depends on the verb.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Details {
    keep: Option<bool>,
    ms: Option<u64>,
    kind: Option<Staleness>,
    to_server_ms: Option<u64>,
    to_client_ms: Option<u64>,
    bytes: Option<usize>,
    interval_ms: Option<u64>,
    dead: Option<Direction>,
    period_ms: Option<u64>,
    timeout_ms: Option<u64>,
    shard: Option<usize>,
    from_shard: Option<usize>,
    to_shard: Option<usize>,
    slots: Option<String>,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Staleness {
    MinReplicas,
    Outbound,
}

fn millis(value: Option<u64>, name: &'static str) -> Result<Duration, Refusal> {
    value.map(Duration::from_millis).ok_or(Refusal::Query(name))
}

/// The routes over one rig.
pub fn router(rig: Arc<Rig>) -> Router {
    Router::new()
        .route("/status", get(status))
        .route("/converged", get(converged))
        .route("/heal", post(heal_all))
        .route("/regions/{name}/{verb}", post(region))
        .route("/links/{from}/{to}/{verb}", post(link))
        .fallback(async || Refusal::Unknown(anyhow::anyhow!("there are: {REQUESTS}")))
        .method_not_allowed_fallback(async || Refusal::Method)
        .with_state(rig)
}

async fn status(State(rig): State<Arc<Rig>>) -> Json<RigStatus> {
    Json(rig.status().await)
}

async fn converged(State(rig): State<Arc<Rig>>, asked: Asked) -> Result<Response, Refusal> {
    let Query(details) = asked?;
    let patience = Duration::from_millis(details.timeout_ms.unwrap_or(5_000));
    rig.wait_converged(patience).await.map_err(Refusal::Late)?;
    Ok(done("converged"))
}

async fn heal_all(State(rig): State<Arc<Rig>>) -> Result<Response, Refusal> {
    rig.heal_all().await?;
    Ok(done("heal"))
}

async fn region(
    State(rig): State<Arc<Rig>>,
    Path((name, verb)): Path<(String, String)>,
    asked: Asked,
) -> Result<Response, Refusal> {
    let Query(details) = asked?;
    let at = At {
        region: &name,
        shard: details.shard,
    };
    rig.find_at(at).map_err(Refusal::Unknown)?;
    match verb.as_str() {
        "kill" => rig.kill(at).await,
        "restart" => {
            let data = if details.keep.unwrap_or(false) {
                Data::Keep
            } else {
                Data::Fresh
            };
            rig.restart(at, data).await
        }
        "hang" => rig.hang(at).await,
        "unhang" => rig.unhang(at).await,
        "loading" => rig.loading(at, millis(details.ms, "ms")?).await,
        "stale" => match details.kind.unwrap_or(Staleness::MinReplicas) {
            Staleness::MinReplicas => rig.stale_min_replicas(at).await,
            Staleness::Outbound => rig.stale_outbound(at).await,
        },
        "unstale" => rig.unstale(at).await,
        "out-of-memory" => rig.out_of_memory(at).await,
        "free-memory" => rig.free_memory(at).await,
        "pause-writes" => rig.pause_writes(at, millis(details.ms, "ms")?).await,
        "unpause" => rig.unpause(at).await,
        "cut" => rig.cut(at).await,
        "stall" => rig.stall(at).await,
        "delay" => {
            if details.to_server_ms.is_none() && details.to_client_ms.is_none() {
                return Err(Refusal::Query("to_server_ms or to_client_ms"));
            }
            let way = |value: Option<u64>| Duration::from_millis(value.unwrap_or(0));
            rig.delay(at, way(details.to_server_ms), way(details.to_client_ms))
                .await
        }
        "dribble" => {
            let bytes = details
                .bytes
                .filter(|&bytes| bytes > 0)
                .ok_or(Refusal::Query("bytes (1 or more)"))?;
            rig.dribble(at, bytes, millis(details.interval_ms, "interval_ms")?)
                .await
        }
        "half-open" => {
            let dead = details
                .dead
                .ok_or(Refusal::Query("dead=to-server or dead=to-client"))?;
            rig.half_open(at, dead).await
        }
        "heal-network" => rig.heal_network(at).await,
        "heal" => rig.heal(at).await,
        "move-slots" => {
            let slots = details.slots.as_deref().and_then(|slots| slots.parse().ok());
            let slots = slots.ok_or(Refusal::Query("slots, such as 0-99"))?;
            let to_shard = details.to_shard.ok_or(Refusal::Query("to_shard"))?;
            rig.move_slots(&name, slots, to_shard).await
        }
        _ => return Err(Refusal::Unknown(anyhow::anyhow!("a region has no verb {verb:?}"))),
    }?;
    Ok(done(&verb))
}

async fn link(
    State(rig): State<Arc<Rig>>,
    Path((from, to, verb)): Path<(String, String, String)>,
    asked: Asked,
) -> Result<Response, Refusal> {
    let Query(details) = asked?;
    let (from, to) = (
        At {
            region: &from,
            shard: details.from_shard,
        },
        At {
            region: &to,
            shard: details.to_shard,
        },
    );
    rig.links(from, to).map_err(Refusal::Unknown)?;
    match verb.as_str() {
        "cut" => rig.cut_link(from, to).await,
        "heal" => rig.heal_link(from, to),
        "delay" => rig.delay_link(from, to, millis(details.ms, "ms")?),
        "flap" => {
            let period = millis(details.period_ms.filter(|&ms| ms >= 2), "period_ms (2 or more)")?;
            rig.flap_link(from, to, period)
        }
        _ => return Err(Refusal::Unknown(anyhow::anyhow!("a link has no verb {verb:?}"))),
    }?;
    Ok(done(&verb))
}

fn done(what: &str) -> Response {
    Json(json!({ "done": what })).into_response()
}
