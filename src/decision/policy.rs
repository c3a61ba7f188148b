//! The engine's numbers, validated by `config`.

use std::time::Duration;

/// All that governs the engine. Times are wall durations on the caller's monotonic clock.
#[derive(Clone, PartialEq, Debug)]
pub struct Policy {
    /// `detection.heartbeat_interval`: how often the monitor publishes on each replica.
    pub heartbeat_interval: Duration,
    /// `detection.heartbeat_timeout`: a replica or link without a fresh heartbeat for this long is past its window.
    pub heartbeat_timeout: Duration,
    /// `detection.probe_interval`: how often each probe is tried.
    pub probe_interval: Duration,
    /// `detection.connect_failures`: refused connects in a row, without any success between, that make a replica down at once.
    pub connect_failures: u32,
    /// `detection.shard_grace`: how long a replica of which some shards fail is given to mend itself.
    pub shard_grace: Duration,
    /// `failover.on_shard_down`.
    pub on_shard_down: OnShardDown,
    /// `failover.dwell`: least time between automatic switches (never applied to the last survivor).
    pub dwell: Duration,
    /// `failover.fence`: longest wait for the drain and then for the fence in a planned move; zero: no fence.
    pub fence: Duration,
    /// `failover.on_fence_timeout`.
    pub on_fence_timeout: OnFenceTimeout,
    /// `failover.on_isolated`.
    pub on_isolated: OnIsolated,
    /// `failover.on_slow`.
    pub on_slow: OnSlow,
    /// `upstream.reads`.
    pub reads: ReadsTo,
    /// `failback.read_your_writes`: sessions read their own writes, wherever they read.
    pub read_your_writes: bool,
    /// `failback.mode`.
    pub failback: FailbackMode,
    /// `failback.grace`: how long the preferred replica must be proved without a break.
    pub grace: Duration,
    /// `failback.read_steps`: percent of sessions that read from the preferred replica, step by step; rises to 100.
    pub read_steps: Vec<u8>,
    /// `failback.soak`: how long reads go first, all steps together.
    pub soak: Duration,
    /// `failback.latency_margin`: reads return to the active when the preferred replica answers later than it by more.
    pub latency_margin: Duration,
    /// `failback.lag_tolerance`: replication lag beyond which a replica is not in sync.
    pub lag_tolerance: Duration,
    /// Longest gap between two calls into the engine that is not taken as a stall of the sidecar itself.
    pub tilt_after: Duration,
}

/// What to do when the fence is not heard in time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OnFenceTimeout {
    /// Call the move off.
    Abort,
    /// Go on without it.
    Proceed,
}

/// What to do when the active replica can replicate with no one while others can.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OnIsolated {
    /// Report only.
    Stay,
    /// Switch to the best fit replica.
    Leave,
}

/// What to do when some shards of the active replica fail for longer than the grace.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OnShardDown {
    /// Leave it as a whole.
    Switch,
    /// Stay: the other shards go on.
    Stay,
}

/// What to do when the active replica answers, but far slower than it uses to, and another one does not.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OnSlow {
    /// Report only.
    Stay,
    /// Switch to the best fit replica.
    Leave,
}

/// Where reads go outside a failback.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ReadsTo {
    /// Where the writes go.
    Active,
    /// To the nearest replica that is in sync.
    Nearest,
}

/// How traffic returns to the preferred replica.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FailbackMode {
    /// After the grace reads first, in steps; at the end of the soak the writes, by one fenced move.
    Staged,
    /// Reads and writes together, by one fenced move, after the grace.
    Immediate,
    /// Only when an operator says so.
    Manual,
}

/// `detection.profile`: how soon a silent replica is called down.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Profile {
    /// About one second.
    Fast,
    /// About three seconds.
    Balanced,
    /// About fifteen seconds.
    Patient,
}
