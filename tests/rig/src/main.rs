//! The rig's command line: a whole rig with an HTTP control, or a single syncer between two given servers.

use std::io::Write as _;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Args, Parser, Subcommand};
use rig::{Endpoint, Form, Rig, RigOptions, Syncer, control};
use tokio::signal::unix::{SignalKind, signal};

/// Stands in for Active-Active Redis: real servers that replicate to each other, and faults on demand.
#[derive(Debug, Parser)]
#[command(name = "rig", after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

const EXAMPLES: &str = "\
Examples:
  Two regions, `local` and `remote`; prints where they are and how to control them:
      rig run

  Three regions with names of your own, the control API on a fixed port, addresses as one line of JSON:
      rig run --regions 3 --names eu,us,asia --control 127.0.0.1:7070 --json

  Six servers behind one address here, four there:
      rig run --form front --shards 6,4

  Then, from another terminal:
      curl -s 127.0.0.1:7070/status
      curl -X POST '127.0.0.1:7070/regions/eu/kill'
      curl -X POST '127.0.0.1:7070/regions/eu/restart'
      curl -X POST '127.0.0.1:7070/regions/us/delay?to_server_ms=50&to_client_ms=50'
      curl -X POST '127.0.0.1:7070/links/eu/us/cut'
      curl -X POST '127.0.0.1:7070/heal'

  Replicate between two servers you have, both ways:
      rig syncer --from redis://a:6379 --to redis://b:6379 &
      rig syncer --from redis://b:6379 --to redis://a:6379

The servers are `redis-server` from the PATH (version 7 or newer), or what REDIS_SERVER names, valkey-server for one.";

#[derive(Debug, Subcommand)]
enum Verb {
    /// Starts a rig and serves its faults over HTTP until SIGINT or SIGTERM.
    Run(Run),
    /// Runs one syncer, from one server to another, until SIGINT or SIGTERM.
    Syncer(OneSyncer),
}

#[derive(Debug, Args)]
#[command(after_help = "\
The control API (POST unless said otherwise):
  GET /status    GET /converged?timeout_ms=5000    /heal
  /regions/NAME/kill | restart?keep=true | hang | unhang | loading?ms=2000 | stale?kind=min-replicas (or outbound)
    | unstale | out-of-memory | free-memory | pause-writes?ms=2000 | unpause | cut | stall
    | delay?to_server_ms=50&to_client_ms=50 | dribble?bytes=1&interval_ms=10 | half-open?dead=to-client (or to-server)
    | heal-network | heal | move-slots?slots=0-99&to_shard=1
  /links/FROM/TO/cut | heal | delay?ms=200 | flap?period_ms=1000
Where regions have shards, &shard=1 names one of a region, &from_shard=1 and &to_shard=0 those of a link.")]
struct Run {
    /// How many regions, 1 to 3 [default: 2, or as many as there are names]
    #[arg(long)]
    regions: Option<usize>,
    /// Their names [default: local,remote,third]
    #[arg(long, value_delimiter = ',')]
    names: Vec<String>,
    /// Where the control API listens; port 0 takes a free one.
    #[arg(long, default_value = "127.0.0.1:0")]
    control: std::net::SocketAddr,
    /// Password of the servers.
    #[arg(long, env = "RIG_PASSWORD", hide_env_values = true)]
    password: Option<String>,
    /// Regions whose applications bypass the relay, for measurements.
    #[arg(long, value_delimiter = ',', value_name = "NAMES")]
    direct: Vec<String>,
    /// How the regions are divided: plain (one server each), front (servers behind one address) or cluster.
    #[arg(long, value_parser = form, default_value = "plain")]
    form: Form,
    /// Servers of each region: one number for all, or one for each.
    #[arg(long, value_delimiter = ',', default_value = "1", value_name = "COUNTS")]
    shards: Vec<usize>,
    /// Let fronts refuse CLUSTER, as an endpoint does whose cluster API is switched off.
    #[arg(long)]
    no_cluster_api: bool,
    /// Let a cluster's nodes announce their own addresses instead of their relays'.
    #[arg(long)]
    announce_servers: bool,
    /// Print one line of JSON (the control's address, and what GET /status answers) instead of text.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct OneSyncer {
    /// Read from this server: redis://[user:password@]host:port
    #[arg(long, env = "RIG_FROM", hide_env_values = true, value_name = "URL")]
    from: String,
    /// Apply to this server.
    #[arg(long, env = "RIG_TO", hide_env_values = true, value_name = "URL")]
    to: String,
    /// The source's name in the destination's books; the same for all syncers [default: its host:port]
    #[arg(long, value_name = "NAME")]
    from_name: Option<String>,
    /// The destination's name [default: its host:port]
    #[arg(long, value_name = "NAME")]
    to_name: Option<String>,
}

fn form(name: &str) -> Result<Form, serde_json::Error> {
    serde_json::from_value(name.into())
}

fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .init();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    runtime.block_on(async {
        match cli.verb {
            Verb::Run(run) => run_rig(run).await,
            Verb::Syncer(one) => run_syncer(one).await,
        }
    })
}

async fn run_rig(run: Run) -> anyhow::Result<()> {
    // Before any server starts: a signal during the start must not leave one behind.
    let end = end_signal()?;
    let count = run
        .regions
        .unwrap_or(if run.names.is_empty() { 2 } else { run.names.len() });
    anyhow::ensure!(
        run.names.is_empty() || run.names.len() == count,
        "--regions {count} and --names do not agree: {} names",
        run.names.len()
    );
    let mut options = if run.names.is_empty() {
        RigOptions::count(count)
    } else {
        RigOptions::new(run.names)
    };
    options.password = run.password;
    (options.form, options.shards) = (run.form, run.shards);
    options.announce_servers = run.announce_servers;
    options.cluster_api = !run.no_cluster_api;
    options.direct = run.direct.into_iter().collect();
    let listener = tokio::net::TcpListener::bind(run.control)
        .await
        .with_context(|| format!("{}", run.control))?;
    let at = listener.local_addr()?;
    tokio::pin!(end);
    let rig = tokio::select! {
        started = Rig::start(options) => Arc::new(started?),
        () = &mut end => return Ok(()),
    };
    announce(&rig, at, run.json).await?;
    let server = axum::serve(listener, control::router(Arc::clone(&rig)));
    tokio::select! {
        served = async { server.await } => served?,
        () = end => tracing::info!("ending"),
    }
    Ok(())
}

/// Standard output: for scripts that wait for the addresses.
async fn announce(rig: &Rig, control: std::net::SocketAddr, json: bool) -> anyhow::Result<()> {
    let status = rig.status().await;
    let mut out = std::io::stdout().lock();
    if json {
        let line = serde_json::json!({ "control": format!("http://{control}"), "regions": status.regions, "links": status.links });
        writeln!(out, "{line}")?;
    } else {
        for region in &status.regions {
            let servers = region.shards.iter().map(|shard| {
                let pid = shard.pid.unwrap_or_default();
                format!("server {}, pid {pid}", shard.direct_addr)
            });
            let servers = servers.collect::<Vec<_>>().join("; ");
            writeln!(out, "{:<10} {}  ({servers})", region.name, region.url)?;
        }
        writeln!(out, "{:<10} http://{control}/status", "control")?;
    }
    out.flush()?;
    Ok(())
}

async fn run_syncer(one: OneSyncer) -> anyhow::Result<()> {
    let end = end_signal()?;
    tokio::pin!(end);
    let (from, to) = (Endpoint::from_url(&one.from)?, Endpoint::from_url(&one.to)?);
    let from_name = one.from_name.unwrap_or_else(|| from.address());
    let to_name = one.to_name.unwrap_or_else(|| to.address());
    anyhow::ensure!(from_name != to_name, "both sides are called {from_name}");
    let syncer = Syncer::between(&from_name, from, &to_name, to);
    let mut looks = tokio::time::interval(Duration::from_secs(1));
    let mut last = None;
    loop {
        tokio::select! {
            () = &mut end => return Ok(()),
            _ = looks.tick() => {
                let now = syncer.status();
                let look = (now.state, now.full_resyncs, now.partial_resyncs, now.failed, now.last_error.clone());
                if last.as_ref() != Some(&look) {
                    tracing::info!(
                        from = now.from, to = now.to, state = ?now.state, offset = now.offset, applied = now.applied,
                        failed = now.failed, full_resyncs = now.full_resyncs, partial_resyncs = now.partial_resyncs,
                        last_error = now.last_error.as_deref().unwrap_or("none"), "syncer"
                    );
                    last = Some(look);
                }
            }
        }
    }
}

fn end_signal() -> anyhow::Result<impl Future<Output = ()>> {
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    })
}
