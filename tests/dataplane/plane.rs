//! The data plane under test, with the test in control's place.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use pulsegate::config::{Bind, Hold, Listener, Upstream, UpstreamMode};
use pulsegate::dial::Dialer;
use pulsegate::metrics::{Class, Metrics, WorkerMetrics};
use pulsegate::proxy::{self, Proxy, Settings, Wires};
use pulsegate::replica::{Address, Endpoint, Layout, Replica, ReplicaId, Topology};
use pulsegate::route::{Epoch, Feedback, Progress, Route};
use rig::Rig;
use tokio::sync::{mpsc, watch};

use crate::support::{App, PATIENCE, now};

/// The first region.
pub(crate) const LOCAL: ReplicaId = ReplicaId(0);
/// The second.
pub(crate) const REMOTE: ReplicaId = ReplicaId(1);

/// A running data plane.
pub(crate) struct Plane {
    _proxy: Proxy,
    routes: watch::Sender<Option<Route>>,
    progress: watch::Sender<Option<Progress>>,
    pub(crate) layouts: watch::Sender<Arc<[Layout]>>,
    pub(crate) feedback: mpsc::UnboundedReceiver<Feedback>,
    metrics: Arc<Metrics>,
    workers: usize,
    /// Where applications connect.
    pub(crate) addr: SocketAddr,
}

impl Plane {
    /// Starts it in front of `rig`; commands go to the first region. Returns once its links to all regions stand.
    pub(crate) async fn start(rig: &Rig, workers: usize) -> Plane {
        let ports: Vec<u16> = rig.regions().iter().map(|region| region.addr().port()).collect();
        Plane::before(&ports, workers, Vec::new()).await
    }

    /// Starts it in front of endpoints on these ports, one for each replica, whose layouts are known.
    pub(crate) async fn before(ports: &[u16], workers: usize, layouts: Vec<Layout>) -> Plane {
        let replicas: Vec<Replica> = (0_u8..)
            .zip(ports)
            .map(|(id, port)| Replica {
                id: ReplicaId(id),
                name: format!("replica-{id}").into(),
                weight: 100,
                topology: Topology::default(),
                rest: None,
                endpoint: Arc::new(Endpoint {
                    address: Address::Tcp {
                        host: "127.0.0.1".to_owned(),
                        port: *port,
                    },
                    tls: None,
                    credentials: None,
                }),
            })
            .collect();
        let metrics = Metrics::new(&replicas, workers).unwrap();
        let settings = Settings {
            listener: Listener {
                bind: vec![Bind::Tcp("127.0.0.1:0".parse().unwrap())],
                max_clients: 10_000,
                workers,
                output_limit: 64 << 20,
            },
            upstream: Upstream {
                mode: UpstreamMode::Shared,
                shared_links: 2,
                connect_timeout: Duration::from_secs(1),
                response_timeout: PATIENCE,
            },
            hold: Hold {
                timeout: PATIENCE,
                max_commands: 10_000,
                max_bytes: 64 << 20,
            },
            replicas: replicas
                .iter()
                .map(|replica| {
                    let dialer = Dialer::new(Arc::clone(&replica.endpoint)).unwrap();
                    (replica.clone(), dialer)
                })
                .collect(),
            split_requests: true,
            workers,
        };
        let (routes, route) = watch::channel(Some(Route::all_to(LOCAL, Epoch(1))));
        let (progress, followed) = watch::channel(None);
        let (tell, feedback) = mpsc::unbounded_channel();
        let (layouts, laid_out) = watch::channel(Arc::from(layouts));
        let wires = Wires {
            route,
            progress: followed,
            layouts: laid_out,
            feedback: tell,
        };
        let proxy = proxy::start(settings, &wires, &metrics).unwrap();
        let plane = Plane {
            addr: proxy.addresses[0],
            _proxy: proxy,
            routes,
            progress,
            layouts,
            feedback,
            metrics,
            workers,
        };
        plane.wait_links(ports.len()).await;
        plane
    }

    async fn wait_links(&self, replicas: usize) {
        let deadline = now() + PATIENCE;
        for replica in (0..replicas).map(|id| ReplicaId(id as u8)) {
            let connects = |worker: &WorkerMetrics| {
                worker.upstream_connects[replica][pulsegate::metrics::ConnectResult::Ok].get()
            };
            while (0..self.workers).any(|worker| connects(&self.metrics.worker(worker)) < 2) {
                assert!(now() < deadline, "no links to {replica}");
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    }

    /// Publishes a route like the last one, but for what `change` does.
    pub(crate) fn publish(&self, change: impl FnOnce(&mut Route)) -> Epoch {
        self.routes.send_modify(|route| {
            let route = route.as_mut().unwrap();
            route.epoch.0 += 1;
            change(route);
        });
        self.routes.borrow().as_ref().unwrap().epoch
    }

    /// The same; every worker has it when this returns.
    pub(crate) async fn route(&mut self, change: impl FnOnce(&mut Route)) {
        let epoch = self.publish(|route| {
            change(route);
            route.holding = true;
        });
        self.drained(epoch).await;
        self.publish(|route| route.holding = false);
    }

    /// Waits until every worker says that nothing sent is unanswered under the route of `epoch`, which holds.
    pub(crate) async fn drained(&mut self, epoch: Epoch) {
        let mut workers = BTreeSet::new();
        let all = async {
            while workers.len() < self.workers {
                if let Feedback::Drained { worker, epoch: of } = self.feedback.recv().await.unwrap()
                    && of == epoch
                {
                    workers.insert(worker);
                }
            }
        };
        tokio::time::timeout(PATIENCE, all)
            .await
            .expect("all workers drain");
    }

    /// Says that REMOTE has followed LOCAL, as far as values that are written and awaited prove it; in the background.
    pub(crate) fn prove_progress(&self, rig: &Arc<Rig>) -> tokio::task::JoinHandle<()> {
        let (rig, progress) = (Arc::clone(rig), self.progress.clone());
        tokio::spawn(async move {
            for beat in 0_u64.. {
                let (at, beat) = (now(), beat.to_string());
                let [local, remote] = ["local", "remote"].map(|name| rig.region(name));
                local.command(&["SET", "beat", &beat]).await.unwrap();
                while remote.command(&["GET", "beat"]).await.unwrap()
                    != redis::Value::BulkString(beat.clone().into_bytes())
                {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                progress.send_replace(Some(Progress {
                    write: LOCAL,
                    followed: vec![None, Some(at)],
                }));
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
    }

    /// The sum of something over the workers.
    pub(crate) fn count(&self, of: impl Fn(&WorkerMetrics) -> u64) -> u64 {
        (0..self.workers)
            .map(|worker| of(&self.metrics.worker(worker)))
            .sum()
    }

    /// Reads sent to `replica`.
    pub(crate) fn reads_on(&self, replica: ReplicaId) -> u64 {
        self.count(|worker| worker.commands[Class::Read][replica].get())
    }

    /// An application.
    pub(crate) async fn app(&self) -> App {
        App::connect(self.addr).await
    }
}

/// A bulk string as it comes.
pub(crate) fn bulk(text: &str) -> String {
    format!("${}\r\n{text}\r\n", text.len())
}

/// Polls a condition, for as long as anything may take.
pub(crate) async fn wait_until(what: &str, condition: impl AsyncFn() -> bool) {
    let deadline = now() + PATIENCE;
    while !condition().await {
        assert!(now() < deadline, "{what}: not within {PATIENCE:?}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}
