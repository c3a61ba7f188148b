//! Pulsegate keeps applications on Active-Active Redis alive: they connect to it as if it were their Redis, it forwards
//! to the active replica, and moves the traffic when that replica fails and when it is back.
//!
//! This is the map; `ARCHITECTURE.md` says why it is drawn this way, and `tests/imports.rs` enforces who may import what.
//!
//! | module | what it owns |
//! |---|---|
//! | [`app`] | the composition root: builds every part, hands each what it needs, reloads, drains |
//! | [`cli`] | the command line, and the admin server's client |
//! | [`config`] | file, environment and flags → one validated `Config`, or every problem at once |
//! | [`replica`] | the nouns that all parts share: which replica, which shard, where it is reached |
//! | [`route`] | the route: the one value that control and data plane share |
//! | [`dial`] | the one way to open a connection to a replica: name, TCP or unix socket, TLS |
//! | [`resp`] | where a request or reply ends, what a command is, which keys it has (pure) |
//! | [`proxy`] | **data plane**: listener, worker, session, pipeline, link, recovery |
//! | [`monitor`] | **evidence**: heartbeats, PING and write probes, what a replica's cluster says over REST |
//! | [`decision`] | **verdict**: the engine, a state machine without sockets or clock (pure) |
//! | [`control`] | the engine's shell: feeds it, reads the clock for it, publishes routes |
//! | [`admin`] | HTTP: health, metrics, status, events, the operator's verbs |
//! | [`metrics`] | one registry, one struct for each part, labels as enums |
//!
//! # A command's way
//!
//! `proxy::listener` accepts a connection and gives it to a session of one worker. The session reads bytes;
//! [`resp::RequestScanner`] finds where each request ends without copying or reading a byte twice; the command table of
//! [`resp`] says what it is (read, write, state, blocking, …), and an unknown one counts as a write. The route says which
//! replica. The unchanged bytes join the outgoing batch of the session's link to that replica, and a slot joins the
//! session's pipeline, which keeps the order of replies. The link's replies fill the slots, and the session writes what is
//! ready at the head. One pass forward, one pass back, all on one thread.
//!
//! When the route changes, or a link breaks, `proxy::recover` says of each command what becomes of it: not sent, so it
//! is sent on the next link; sent and a read, so it is sent again; sent and a write, so its outcome is unknown and the
//! application is told so. Commands without a replica wait in the hold, which is bounded in time, count and bytes.
//!
//! # A heartbeat's way
//!
//! [`monitor`] publishes a numbered message on replica A and listens for it on A, B, C …: hearing it on A shows that A
//! works, hearing it on B shows that replication from A to B does. It reads from each replica how it is sharded, and does
//! this for every pair of shards that have slots in common. What it sees, and what its PINGs and write probes
//! show, becomes a [`decision::Input`] in one channel; what the data plane's links notice in passing joins it.
//! [`control`] stamps `now` once and feeds the engine, whose outputs it carries out: a route goes through one `watch`
//! channel to the workers, which move their sessions; events, each with its reason and evidence, go to the log, the
//! metrics and the admin server. A route with a stale epoch is ignored.

pub mod admin;
pub mod app;
pub mod cli;
pub mod config;
pub mod control;
pub mod decision;
pub mod dial;
pub mod metrics;
pub mod monitor;
pub mod proxy;
pub mod replica;
pub mod resp;
pub mod route;
