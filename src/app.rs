//! Composition root: builds every part, hands each what it needs, waits for a signal, drains.
//!
//! The control plane (monitor, control, admin) runs on the calling thread, the data plane on threads of its own, so that
//! load never delays a heartbeat.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, watch};

use crate::cli::logging::Level;
use crate::config::{Config, Listener, Loaded, Sources};
use crate::decision::Member;
use crate::dial::{DialError, Dialer};
use crate::metrics::Metrics;
use crate::proxy::{self, Proxy, Stop};
use crate::replica::{Replica, Rest};
use crate::{admin, control, monitor};

mod descriptors;
mod reload;

/// How long sessions may take to finish what they have sent, after the first signal.
const DRAIN: Duration = Duration::from_secs(10);

/// Evidence that waits while control is busy; the monitor waits beyond it.
const INPUTS: usize = 1024;

/// Why the sidecar could not start, or had to stop.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The applications' address could not be listened on.
    #[error("listener.bind: {0}")]
    Listener(#[from] proxy::StartError),
    /// The admin address could not be listened on.
    #[error("admin.bind: cannot listen on {address}: {source}")]
    Admin {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// A replica's TLS files are of no use.
    #[error("replica {replica:?}: {source}")]
    Replica {
        /// Its name.
        replica: String,
        /// What is wrong.
        source: DialError,
    },
    /// Anything else of the system that is needed and was refused.
    #[error("{what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// A thread of the data plane has ended: a defect, of which the log has more.
    #[error("a worker thread of the data plane has ended")]
    Worker,
    /// Two metrics of one name: a defect.
    #[error("metrics: {0}")]
    Metrics(#[from] prometheus::Error),
}

/// Runs the sidecar until a signal ends it and it has drained. On SIGHUP, or when the file changes, `sources` are loaded
/// anew; `level` changes the running log's.
///
/// # Errors
/// When it could not start.
pub fn run(loaded: Loaded, sources: Sources, level: Level) -> Result<(), Error> {
    let system = |what| move |source| Error::System { what, source };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        // Looking at the configuration's file every second would otherwise keep alive every thread that ever resolved a name.
        .thread_keep_alive(Duration::from_millis(100))
        .build()
        .map_err(system("cannot start the control plane's runtime"))?;
    runtime.block_on(serve(loaded, sources, level))
}

async fn serve(loaded: Loaded, sources: Sources, level: Level) -> Result<(), Error> {
    let system = |what| move |source| Error::System { what, source };
    let Loaded { config, text, .. } = loaded;
    let hangup = signal(SignalKind::hangup()).map_err(system("cannot wait for SIGHUP"))?;
    let mut terminate = signal(SignalKind::terminate()).map_err(system("cannot wait for SIGTERM"))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(system("cannot wait for SIGINT"))?;

    let workers = config.listener.workers;
    let metrics = Metrics::new(&config.replicas, workers)?;
    let replicas = config
        .replicas
        .iter()
        .map(|replica| match Dialer::new(Arc::clone(&replica.endpoint)) {
            Ok(dialer) => Ok((replica.clone(), dialer)),
            Err(source) => Err(Error::Replica {
                replica: replica.name.to_string(),
                source,
            }),
        })
        .collect::<Result<Vec<_>, Error>>()?;
    let targets = targets(&replicas)?;
    let admin_listener = TcpListener::bind(config.admin.bind)
        .await
        .map_err(|source| Error::Admin {
            address: config.admin.bind,
            source,
        })?;

    let (inputs, evidence) = mpsc::channel(INPUTS);
    let pace = pace(&config);
    let monitor = Arc::new(monitor::Monitor::spawn(
        &targets,
        monitor::Settings {
            prefix: config.detection.channel_prefix.clone(),
            identity: monitor::Identity::generate(),
            heartbeat_interval: pace.heartbeat_interval,
            probe_interval: pace.probe_interval,
            connect_timeout: pace.connect_timeout,
            answer_timeout: pace.answer_timeout,
        },
        inputs,
    ));
    let (routes, route) = watch::channel(None);
    let (progress, followed) = watch::channel(None);
    let (feedback, from_workers) = mpsc::unbounded_channel();
    let settings = proxy::Settings {
        listener: Listener {
            max_clients: descriptors::room_for(config.listener.max_clients, config.upstream.mode),
            ..config.listener.clone()
        },
        upstream: config.upstream.clone(),
        hold: config.hold.clone(),
        replicas: replicas.clone(),
        split_requests: config.cluster.split,
        workers,
    };
    let wires = proxy::Wires {
        route,
        progress: followed,
        layouts: monitor.layouts(),
        feedback,
    };
    let proxy = proxy::start(settings, &wires, &metrics)?;
    drop(wires);

    let (policies, new_policies) = watch::channel(config.policy.clone());
    let (fencing, reading) = (Arc::clone(&monitor), Arc::clone(&monitor));
    let (shutdown, stopped) = watch::channel(false);
    let (control, governing) = control::spawn(
        control::Setup {
            policy: config.policy.clone(),
            members: config
                .replicas
                .iter()
                .map(|r| Member {
                    id: r.id,
                    name: Arc::clone(&r.name),
                    weight: r.weight,
                    rest: r.rest.as_ref().map(|rest| rest.interval),
                })
                .collect(),
            workers,
            state_file: config.admin.state_file.clone(),
        },
        control::Wires {
            inputs: evidence,
            feedback: from_workers,
            layouts: monitor.layouts(),
            policies: new_policies,
            routes,
            progress,
            publish_fence: Box::new(move |id, on| fencing.publish_fence(id, on)),
            reread: Box::new(move |replica| reading.reread(replica)),
            metrics: Arc::clone(&metrics),
            shutdown: stopped.clone(),
        },
    );

    let readiness = admin::Readiness::default();
    let server = admin::Server {
        listener: admin_listener,
        control,
        metrics: Arc::clone(&metrics),
        readiness: readiness.clone(),
        token: config.admin.token.clone(),
        replicas: config.replicas.iter().map(|r| Arc::clone(&r.name)).collect(),
        limits: admin::Limits::default(),
    };
    let mut server_stopped = stopped.clone();
    let admin_address = server
        .listener
        .local_addr()
        .map_err(system("cannot tell the admin server's address"))?;
    let serving = tokio::spawn(server.serve(async move {
        let _ = server_stopped.wait_for(|stop| *stop).await;
    }));
    readiness.listener_bound();
    for bind in &proxy.addresses {
        tracing::info!(address = %bind, "listening for applications");
    }
    for path in proxy.sockets() {
        tracing::info!(address = %format_args!("unix:{}", path.display()), "listening for applications");
    }
    tracing::info!(address = %admin_address, "listening for operators");

    let reloading = reload::Reload {
        sources,
        config,
        level,
        monitor,
        policies,
        metrics,
    };
    let reloading = tokio::spawn(reloading.run(text, hangup, stopped));

    tokio::select! {
        () = either(&mut terminate, &mut interrupt) => {}
        // Whoever supervises the process starts it anew; going on would leave its applications hanging.
        () = proxy.lost_a_worker() => return Err(Error::Worker),
    }
    tracing::info!("ending: sessions finish what they have sent; a second signal ends them at once");
    readiness.draining();
    drain(&proxy, &mut terminate, &mut interrupt).await;
    shutdown.send_replace(true);
    let _ = tokio::join!(serving, governing, reloading);
    Ok(())
}

/// What the monitor is to watch.
fn targets(replicas: &[(Replica, Dialer)]) -> Result<Vec<monitor::Target>, Error> {
    let target = |(replica, dialer): &(Replica, Dialer)| {
        let address = &replica.endpoint.address;
        let check = |rest: &Arc<Rest>| monitor::RestCheck::new(Arc::clone(rest), address.clone());
        let rest = replica.rest.as_ref().map(check).transpose();
        Ok(monitor::Target {
            id: replica.id,
            name: Arc::clone(&replica.name),
            dialer: dialer.clone(),
            topology: replica.topology.clone(),
            rest: rest.map_err(|source| Error::Replica {
                replica: replica.name.to_string(),
                source,
            })?,
        })
    };
    replicas.iter().map(target).collect()
}

/// The monitor's pace under `config`.
fn pace(config: &Config) -> monitor::Pace {
    monitor::Pace {
        heartbeat_interval: config.policy.heartbeat_interval,
        probe_interval: config.policy.probe_interval,
        connect_timeout: config.upstream.connect_timeout,
        answer_timeout: config
            .upstream
            .connect_timeout
            .min(config.policy.heartbeat_timeout),
    }
}

async fn either(terminate: &mut Signal, interrupt: &mut Signal) {
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}

/// Lets the sessions end by themselves, for a while.
async fn drain(proxy: &Proxy, terminate: &mut Signal, interrupt: &mut Signal) {
    proxy.stop(Stop::Drain);
    let patience = tokio::time::sleep(DRAIN);
    tokio::pin!(patience);
    while !proxy.ended() {
        tokio::select! {
            () = tokio::time::sleep(Duration::from_millis(10)) => {}
            () = &mut patience => break,
            () = either(terminate, interrupt) => break,
        }
    }
    proxy.stop(Stop::Now);
}
