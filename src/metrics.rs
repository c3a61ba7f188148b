//! What Pulsegate counts, and how a scrape reads it.
//!
//! Owns one registry, one struct for each component that counts, and the closed sets of label values. Never takes a
//! key, an address or an error text as a label. Everything known at start is in the first scrape, at zero, so that
//! rates and alerts never miss a first increment.
//!
//! ```text
//! worker 0 ── WorkerMetrics ──┐
//! worker 1 ── WorkerMetrics ──┼─ scrape::Workers ──┐
//!                                                  ├── Registry ── render() ── GET /metrics
//! control ─── ControlMetrics ──────────────────────┤
//!                                process::Process ─┘
//! ```

use std::sync::Arc;

use prometheus::{IntGauge, Opts, Registry, TextEncoder};

use crate::replica::Replica;

mod control;
mod family;
mod label;
mod process;
mod scrape;
mod worker;

pub use control::ControlMetrics;
pub use label::{
    By, Class, ConnectResult, DisconnectReason, ErrorCode, HoldEnd, Label, LinkKind, PerReplica,
    RejectReason, SessionKind,
};
pub use worker::{Counter, Gauge, Histogram, WorkerMetrics};

/// What every name of ours begins with.
const NAMESPACE: &str = "pulsegate";

/// The content type of [`Metrics::render`]'s text.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// All metrics of one Pulsegate.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    workers: Vec<Arc<WorkerMetrics>>,
    /// What the control plane counts.
    pub control: ControlMetrics,
}

impl Metrics {
    /// Everything at zero, for these replicas and this many data-plane workers.
    ///
    /// # Errors
    /// Only for a mistake in this module: a name used twice or an invalid label.
    pub fn new(replicas: &[Replica], workers: usize) -> Result<Arc<Metrics>, prometheus::Error> {
        let registry = Registry::new();
        let names: Vec<Arc<str>> = replicas.iter().map(|replica| replica.name.clone()).collect();
        let workers: Vec<_> = (0..workers)
            .map(|_| Arc::new(WorkerMetrics::new(names.len())))
            .collect();
        registry.register(Box::new(build_info()?))?;
        registry.register(Box::new(process::Process::new()?))?;
        registry.register(Box::new(scrape::Workers::new(names, workers.clone())?))?;
        Ok(Arc::new(Metrics {
            control: ControlMetrics::new(replicas, &registry)?,
            registry,
            workers,
        }))
    }

    /// The metrics that data-plane worker `index` alone writes. Panics beyond the number of workers.
    pub fn worker(&self, index: usize) -> Arc<WorkerMetrics> {
        self.workers[index].clone()
    }

    /// All of it in Prometheus' text format, see [`CONTENT_TYPE`].
    pub fn render(&self) -> String {
        let mut text = String::new();
        if let Err(error) = TextEncoder::new().encode_utf8(&self.registry.gather(), &mut text) {
            // Only an empty family or name fails here, neither of which `new` can make.
            tracing::error!(%error, "metrics not rendered");
        }
        text
    }
}

/// A constant 1 whose labels say what runs.
fn build_info() -> Result<IntGauge, prometheus::Error> {
    let info = IntGauge::with_opts(
        Opts::new(
            "build_info",
            "1; the labels say which Pulsegate runs, built for which system.",
        )
        .namespace(NAMESPACE)
        .const_label("version", env!("CARGO_PKG_VERSION"))
        .const_label("os", std::env::consts::OS)
        .const_label("arch", std::env::consts::ARCH),
    )?;
    info.set(1);
    Ok(info)
}

#[cfg(test)]
mod tests;
