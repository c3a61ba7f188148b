//! Monitor, engine and control together, as the sidecar composes them, with nobody to route for.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part of it")]
#![allow(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

use std::sync::Arc;
use std::time::Duration;

use pulsegate::control::Ask;
use pulsegate::control::status::{EventRecord, Status};
use pulsegate::control::{self, Handle, Setup, Wires};
use pulsegate::decision::{
    FailbackMode, Member, OnFenceTimeout, OnIsolated, OnShardDown, OnSlow, Policy, ReadsTo, Request,
};
use pulsegate::dial::Dialer;
use pulsegate::metrics::Metrics;
use pulsegate::monitor::{Identity, Monitor, Settings, Target};
use pulsegate::replica::{Address, Endpoint, Replica, ReplicaId, Topology};
use pulsegate::route::{Feedback, Route};
use tokio::sync::{broadcast, mpsc, oneshot, watch};

/// How long anything may take that has no bound of its own.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A verdict on silence within about a second.
pub fn policy() -> Policy {
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
        shard_grace: Duration::from_secs(2),
        on_shard_down: OnShardDown::Switch,
        on_slow: OnSlow::Stay,
        reads: ReadsTo::Active,
        read_your_writes: true,
        read_steps: vec![10, 50, 100],
        soak: Duration::from_secs(3),
        latency_margin: Duration::from_millis(100),
        tilt_after: Duration::from_secs(2),
    }
}

/// Where a replica is, on this machine, and what is configured of its shards.
pub struct Place {
    pub name: &'static str,
    pub port: u16,
    pub topology: Topology,
}

impl Place {
    pub fn new(name: &'static str, port: u16) -> Place {
        Place {
            name,
            port,
            topology: Topology::default(),
        }
    }
}

pub struct Sidecar {
    pub handle: Handle,
    pub routes: watch::Receiver<Option<Route>>,
    pub monitor: Arc<Monitor>,
    pub metrics: Arc<Metrics>,
    pub events: broadcast::Receiver<Arc<EventRecord>>,
    feedback: mpsc::UnboundedSender<Feedback>,
    _shutdown: watch::Sender<bool>,
}

impl Sidecar {
    /// `places` in order of preference.
    pub fn start(places: Vec<Place>, policy: Policy) -> Sidecar {
        let (mut replicas, mut targets) = (Vec::new(), Vec::new());
        for (id, place) in (0_u8..).zip(places) {
            let endpoint = Arc::new(Endpoint {
                address: Address::Tcp {
                    host: "127.0.0.1".to_owned(),
                    port: place.port,
                },
                tls: None,
                credentials: None,
            });
            targets.push(Target {
                id: ReplicaId(id),
                name: place.name.into(),
                dialer: Dialer::new(Arc::clone(&endpoint)).unwrap(),
                rest: None,
                topology: place.topology.clone(),
            });
            replicas.push(Replica {
                id: ReplicaId(id),
                name: place.name.into(),
                weight: 100 - u32::from(id),
                topology: place.topology,
                endpoint,
                rest: None,
            });
        }
        let members = replicas
            .iter()
            .map(|replica| Member {
                id: replica.id,
                name: Arc::clone(&replica.name),
                weight: replica.weight,
                rest: None,
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
        let monitor = Arc::new(Monitor::spawn(&targets, settings, evidence));
        let (workers, feedback) = mpsc::unbounded_channel();
        let (published, routes) = watch::channel(None);
        let (stop, shutdown) = watch::channel(false);
        let policies = watch::channel(policy.clone()).1;
        let metrics = Metrics::new(&replicas, 1).unwrap();
        let setup = Setup {
            policy,
            members,
            workers: 1,
            state_file: None,
        };
        let fencing = Arc::clone(&monitor);
        let wires = Wires {
            inputs,
            feedback,
            layouts: monitor.layouts(),
            policies,
            routes: published,
            progress: watch::channel(None).0,
            publish_fence: Box::new(move |id, on| fencing.publish_fence(id, on)),
            reread: Box::new(|_| {}),
            metrics: Arc::clone(&metrics),
            shutdown,
        };
        let (handle, _task) = control::spawn(setup, wires);
        Sidecar {
            events: handle.events.subscribe(),
            handle,
            routes,
            monitor,
            metrics,
            feedback: workers,
            _shutdown: stop,
        }
    }

    /// Until the status is as wanted.
    pub async fn until(&mut self, what: &str, wanted: impl Fn(&Status) -> bool) -> Arc<Status> {
        let mut statuses = self.handle.status.clone();
        let found = statuses.wait_for(|status| wanted(status));
        match tokio::time::timeout(PATIENCE, found).await {
            Ok(status) => Arc::clone(&status.unwrap()),
            Err(_) => panic!(
                "never came: {what}; the newest is {:#?}",
                self.handle.status.borrow()
            ),
        }
    }

    pub async fn route_to(&mut self, wanted: ReplicaId) -> Route {
        let found = self
            .routes
            .wait_for(|route| route.as_ref().is_some_and(|route| route.write == wanted));
        let route = tokio::time::timeout(PATIENCE, found).await;
        route.expect("the route comes").unwrap().clone().unwrap()
    }

    /// Until all are known to be well, on every shard.
    pub async fn settled(&mut self) -> Arc<Status> {
        self.until("all are well", |status| {
            status.replicas.iter().all(|replica| {
                replica.health == "healthy"
                    && replica.fitness == "in_sync"
                    && replica
                        .shards
                        .iter()
                        .all(|shard| shard.echo && shard.writable == Some(true))
            })
        })
        .await
    }

    /// Asks for a planned move. Nobody has commands under way here, so the drain is reported at once.
    pub async fn switch(&mut self, to: ReplicaId) -> Result<String, String> {
        let (answer, answered) = oneshot::channel();
        let reason = "a test".to_owned();
        let request = Request::Switch { to, reason };
        self.handle.requests.send(Ask { request, answer }).await.unwrap();
        let holding = self
            .routes
            .wait_for(|route| route.as_ref().is_some_and(|route| route.holding));
        let epoch = tokio::time::timeout(PATIENCE, holding)
            .await
            .expect("the hold comes")
            .unwrap()
            .as_ref()
            .map(|route| route.epoch)
            .unwrap();
        self.feedback
            .send(Feedback::Drained { worker: 0, epoch })
            .unwrap();
        tokio::time::timeout(PATIENCE, answered)
            .await
            .expect("the answer comes")
            .unwrap()
    }

    /// Events of these kinds so far, in words.
    pub fn told(&mut self, kinds: &[&str]) -> Vec<String> {
        let mut told = Vec::new();
        while let Ok(event) = self.events.try_recv() {
            if kinds.contains(&&*event.kind) {
                told.push(event.message.clone());
            }
        }
        told
    }

    pub fn health(&self, replica: ReplicaId) -> (String, String) {
        let status = self.handle.status.borrow();
        let replica = &status.replicas[replica.index()];
        (replica.health.clone(), replica.reason.clone())
    }
}
