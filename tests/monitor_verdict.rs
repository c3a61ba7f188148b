//! Monitor, engine and control together on real servers that are idle: from a fault to the new route.
#![allow(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

use std::sync::Arc;
use std::time::Duration;

use pulsegate::control::{self, Handle, Setup, Wires};
use pulsegate::decision::{FailbackMode, Member, OnFenceTimeout, OnIsolated, Policy};
use pulsegate::dial::Dialer;
use pulsegate::metrics::Metrics;
use pulsegate::monitor::{Identity, Monitor, Settings, Target};
use pulsegate::replica::{Address, Endpoint, Replica, ReplicaId, Topology};
use pulsegate::route::{Feedback, Route};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

#[path = "support/redis_server.rs"]
mod redis_server;

use redis_server::Server;

const PATIENCE: Duration = Duration::from_secs(20);
const LOCAL: ReplicaId = ReplicaId(0);
const REMOTE: ReplicaId = ReplicaId(1);

/// A verdict on silence within about a second.
fn policy() -> Policy {
    Policy {
        heartbeat_interval: Duration::from_millis(200),
        heartbeat_timeout: Duration::from_secs(1),
        probe_interval: Duration::from_millis(300),
        connect_failures: 3,
        dwell: Duration::from_secs(10),
        fence: Duration::from_secs(1),
        on_fence_timeout: OnFenceTimeout::Abort,
        on_isolated: OnIsolated::Stay,
        failback: FailbackMode::Manual,
        grace: Duration::from_secs(60),
        lag_tolerance: Duration::from_millis(500),
        tilt_after: Duration::from_secs(2),
    }
}

struct Sidecar {
    handle: Handle,
    routes: watch::Receiver<Option<Route>>,
    _feedback: mpsc::UnboundedSender<Feedback>,
    _shutdown: watch::Sender<bool>,
}

impl Sidecar {
    fn start(servers: [&Server; 2]) -> Sidecar {
        let policy = policy();
        let replicas: Vec<Replica> = [LOCAL, REMOTE]
            .into_iter()
            .zip(["local", "remote"])
            .zip(servers)
            .map(|((id, name), server)| Replica {
                id,
                name: name.into(),
                weight: 100 - u32::from(id.0),
                topology: Topology::default(),
                endpoint: Arc::new(Endpoint {
                    address: Address::Tcp {
                        host: "127.0.0.1".to_owned(),
                        port: server.port,
                    },
                    tls: None,
                    credentials: None,
                }),
            })
            .collect();
        let targets: Vec<Target> = replicas
            .iter()
            .map(|replica| Target {
                id: replica.id,
                name: Arc::clone(&replica.name),
                dialer: Dialer::new(Arc::clone(&replica.endpoint)).unwrap(),
            })
            .collect();
        let members = replicas
            .iter()
            .map(|replica| Member {
                id: replica.id,
                name: Arc::clone(&replica.name),
                weight: replica.weight,
            })
            .collect();
        let (evidence, inputs) = mpsc::channel(1024);
        let settings = Settings {
            prefix: "pulsegate".to_owned(),
            identity: Identity::generate(),
            heartbeat_interval: policy.heartbeat_interval,
            probe_interval: policy.probe_interval,
            connect_timeout: Duration::from_secs(1),
            answer_timeout: policy.heartbeat_timeout,
        };
        let monitor = Monitor::spawn(&targets, settings, evidence);
        let (workers, feedback) = mpsc::unbounded_channel();
        let (published, routes) = watch::channel(None);
        let (stop, shutdown) = watch::channel(false);
        let policies = watch::channel(policy.clone()).1;
        let setup = Setup {
            policy,
            members,
            workers: 1,
            state_file: None,
        };
        let wires = Wires {
            inputs,
            feedback,
            policies,
            routes: published,
            publish_fence: Box::new(move |id, on| monitor.publish_fence(id, on)),
            metrics: Metrics::new(&replicas, 1).unwrap(),
            shutdown,
        };
        let (handle, _task) = control::spawn(setup, wires);
        Sidecar {
            handle,
            routes,
            _feedback: workers,
            _shutdown: stop,
        }
    }

    async fn route_to(&mut self, wanted: ReplicaId) -> Route {
        let found = self
            .routes
            .wait_for(|route| route.as_ref().is_some_and(|route| route.write == wanted));
        let route = tokio::time::timeout(PATIENCE, found).await;
        route.expect("the route comes").unwrap().clone().unwrap()
    }

    /// Until `local` is active and both are known to be well.
    async fn settled(&mut self) {
        let well = self.handle.status.wait_for(|status| {
            status.active.as_deref() == Some("local")
                && status
                    .replicas
                    .iter()
                    .all(|replica| replica.health == "healthy" && replica.shards[0].writable == Some(true))
        });
        tokio::time::timeout(PATIENCE, well)
            .await
            .expect("both are well")
            .unwrap();
    }

    fn health(&self, replica: ReplicaId) -> (String, String) {
        let status = self.handle.status.borrow();
        let replica = &status.replicas[replica.index()];
        (replica.health.clone(), replica.reason.clone())
    }
}

#[tokio::test]
async fn a_killed_active_is_left_within_300_ms() {
    let mut local = Server::start(&[]).await;
    let remote = Server::start(&[]).await;
    let mut sidecar = Sidecar::start([&local, &remote]);
    sidecar.settled().await;
    let killed = Instant::now();
    local.kill();
    let route = sidecar.route_to(REMOTE).await;
    let took = killed.elapsed();
    println!("SIGKILL while idle: new route after {took:?}");
    assert!(took < Duration::from_millis(300), "{took:?}");
    assert!(route.abandon_others);
    let (health, reason) = sidecar.health(LOCAL);
    assert_eq!(health, "down", "{reason}");

    local.restart(&[]).await;
    let back = Instant::now();
    let healthy = sidecar
        .handle
        .status
        .wait_for(|status| status.replicas[0].health == "healthy");
    tokio::time::timeout(PATIENCE, healthy)
        .await
        .expect("it recovers")
        .unwrap();
    println!("restart: healthy again after {:?}", back.elapsed());
}

#[tokio::test]
async fn a_hung_active_is_left_within_two_seconds() {
    let local = Server::start(&[]).await;
    let remote = Server::start(&[]).await;
    let mut sidecar = Sidecar::start([&local, &remote]);
    sidecar.settled().await;
    let stopped = Instant::now();
    local.signal("-STOP");
    sidecar.route_to(REMOTE).await;
    let took = stopped.elapsed();
    println!("SIGSTOP while idle: new route after {took:?}");
    assert!(took < Duration::from_secs(2), "{took:?}");
}

#[tokio::test]
async fn with_nobody_left_the_first_to_return_is_taken_at_once() {
    let mut local = Server::start(&[]).await;
    let mut remote = Server::start(&[]).await;
    let mut sidecar = Sidecar::start([&local, &remote]);
    sidecar.settled().await;
    local.kill();
    sidecar.route_to(REMOTE).await;
    remote.kill();
    let down = sidecar
        .handle
        .status
        .wait_for(|status| status.replicas.iter().all(|replica| replica.health == "down"));
    tokio::time::timeout(PATIENCE, down)
        .await
        .expect("both are down")
        .unwrap();
    let back = Instant::now();
    local.restart(&[]).await;
    sidecar.route_to(LOCAL).await;
    let took = back.elapsed();
    println!("both down, one back: new route after {took:?}, in spite of a dwell of 10 s");
    assert!(took < Duration::from_secs(1), "{took:?}");
}
