//! The faults, how each is brought about, and what is promised of it.

use std::fmt;
use std::time::Duration;

use rig::{Data, Direction, Rig, RigOptions};

use crate::support::{PATIENCE, Sidecar, now};
use crate::witness::unix_ms;

/// Every fault is of the active replica, or of a link from it.
const ACTIVE: &str = "local";
/// Where the traffic goes when it has to go.
pub(super) const NEXT: &str = "remote";
/// The shard that the faults of one shard are of.
const SHARD: usize = 1;

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// How the replicas are divided.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Form {
    Plain,
    /// Three shards behind one address.
    Front,
}

impl Form {
    pub(super) fn shards(self) -> usize {
        match self {
            Form::Plain => 1,
            Form::Front => 3,
        }
    }
}

/// Where a fault is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Place {
    pub(super) regions: usize,
    pub(super) form: Form,
}

impl Place {
    pub(super) const ALL: [Place; 4] = [
        Place::new(2, Form::Plain),
        Place::new(3, Form::Plain),
        Place::new(2, Form::Front),
        Place::new(3, Form::Front),
    ];

    const fn new(regions: usize, form: Form) -> Place {
        Place { regions, form }
    }

    pub(super) fn rig(self) -> RigOptions {
        let options = RigOptions::count(self.regions);
        match self.form {
            Form::Plain => options,
            Form::Front => options.front([self.form.shards()]),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.regions)?;
        match self.form {
            Form::Plain => Ok(()),
            Form::Front => write!(f, " of {} shards", self.form.shards()),
        }
    }
}

/// What happens to the active replica, in the order of the table.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Fault {
    LinkCut,
    LinkSlow,
    LinkFlapping,
    Isolated,
    IsolatedLeave,
    Dead,
    Hung,
    NetworkCut,
    NetworkSilent,
    NetworkDeafens,
    NetworkSilences,
    NetworkSlow,
    NetworkDribbles,
    Loading,
    StaleMinReplicas,
    StaleOutbound,
    OutOfMemory,
    WritesStalled,
    ConnectionsReset,
    AllDead,
    OwnStall,
    ShardDead,
    ShardStale,
    ShardLinkCut,
}

/// What is to be said and done.
pub(super) struct Promise {
    /// As `witness::says` says it.
    pub(super) says: String,
    pub(super) said_within: Duration,
    /// A part of the reason that is given for the active replica's state.
    pub(super) because: &'static str,
    /// Whether it is still said for as long as the fault lasts; otherwise more may be said besides.
    pub(super) lasting: bool,
    /// The switch's reason, several with ` or ` between them, and how soon; none: the traffic stays.
    pub(super) leaves: Option<(&'static str, Duration)>,
    /// A kind of event that tells of it.
    pub(super) told: Option<&'static str>,
}

impl Promise {
    fn stays(says: impl Into<String>, said_within: Duration) -> Promise {
        Promise {
            says: says.into(),
            said_within,
            because: "",
            lasting: true,
            leaves: None,
            told: None,
        }
    }

    fn leaves(says: impl Into<String>, reason: &'static str, within: Duration) -> Promise {
        Promise {
            leaves: Some((reason, within)),
            ..Promise::stays(says, within)
        }
    }

    /// More time for the words than for the switch.
    fn said_within(self, said_within: Duration) -> Promise {
        Promise { said_within, ..self }
    }

    /// Something else may be said afterwards.
    fn passing(self) -> Promise {
        Promise {
            lasting: false,
            ..self
        }
    }
}

/// The heartbeat time-out of the profile, and one interval.
const HEARTBEAT: Duration = ms(1100);
/// Two refused connects, 200 ms apart.
const REFUSED: Duration = ms(500);
/// Two refused writes, 200 ms apart.
const UNWRITABLE: Duration = ms(500);
/// Three errors to PING, 200 ms apart.
const FAILING: Duration = ms(700);
/// How long a replica of which one shard fails may mend itself.
const SHARD_GRACE: Duration = ms(2000);
/// Two write probes in a row without an answer: the first is given up after the heartbeat time-out.
const STALLED: Duration = ms(1500);
/// The test's own share: starting and polling, several cases at once.
pub(super) const MARGIN: Duration = ms(300);

impl Fault {
    /// The slow network first: it takes longest.
    pub(super) const ALL: [Fault; 24] = [
        Fault::NetworkSlow,
        Fault::LinkCut,
        Fault::LinkSlow,
        Fault::LinkFlapping,
        Fault::Isolated,
        Fault::IsolatedLeave,
        Fault::Dead,
        Fault::Hung,
        Fault::NetworkCut,
        Fault::NetworkSilent,
        Fault::NetworkDeafens,
        Fault::NetworkSilences,
        Fault::NetworkDribbles,
        Fault::Loading,
        Fault::StaleMinReplicas,
        Fault::StaleOutbound,
        Fault::OutOfMemory,
        Fault::WritesStalled,
        Fault::ConnectionsReset,
        Fault::AllDead,
        Fault::OwnStall,
        Fault::ShardDead,
        Fault::ShardStale,
        Fault::ShardLinkCut,
    ];

    /// Whether it can be had there.
    pub(super) fn fits(self, place: Place) -> bool {
        match self {
            Fault::IsolatedLeave => place.regions > 2,
            Fault::ShardDead | Fault::ShardStale | Fault::ShardLinkCut => place.form != Form::Plain,
            _ => true,
        }
    }

    pub(super) fn words(self) -> &'static str {
        match self {
            Fault::LinkCut => "link to `remote` cut",
            Fault::LinkSlow => "link to `remote` 700 ms late",
            Fault::LinkFlapping => "link to `remote` flapping, 1.6 s cut and 1.6 s whole",
            Fault::Isolated => "all its links cut, both ways",
            Fault::IsolatedLeave => "the same with `on_isolated = \"leave\"`",
            Fault::Dead => "killed",
            Fault::Hung => "hung (SIGSTOP)",
            Fault::NetworkCut => "its network resets and refuses",
            Fault::NetworkSilent => "its network is silent",
            Fault::NetworkDeafens => "its network is half open: nothing arrives there",
            Fault::NetworkSilences => "its network is half open: nothing comes back",
            Fault::NetworkSlow => "its network is slow, 140 ms each way",
            Fault::NetworkDribbles => "its network dribbles, 1 byte in 10 ms each way",
            Fault::Loading => "loading",
            Fault::StaleMinReplicas => "refuses writes (`min-replicas-to-write`)",
            Fault::StaleOutbound => "refuses writes and sends nothing (`REPLICAOF`)",
            Fault::OutOfMemory => "out of memory",
            Fault::WritesStalled => "writes stall (`CLIENT PAUSE WRITE`)",
            Fault::ConnectionsReset => "every connection reset, once",
            Fault::AllDead => "all killed, then `remote` is back",
            Fault::OwnStall => "none, but Pulsegate itself stood still for 2 s",
            Fault::ShardDead => "one shard killed",
            Fault::ShardStale => "one shard refuses writes (`min-replicas-to-write`)",
            Fault::ShardLinkCut => "one shard's link to `remote` cut",
        }
    }

    /// More configuration.
    pub(super) fn toml(self) -> &'static str {
        match self {
            Fault::IsolatedLeave => "[failback]\nmode = \"manual\"\n[failover]\non_isolated = \"leave\"\n",
            _ => "[failback]\nmode = \"manual\"\n",
        }
    }

    /// Waits for what it needs to be noticed.
    pub(super) async fn prepare(self, sidecar: &Sidecar) {
        const ANSWERED: &str = "pulsegate_probe_duration_seconds_count{probe=\"ping\",replica=\"local\"}";
        // What is slow is slow beside what is usual.
        let deadline = now() + PATIENCE;
        while self == Fault::NetworkSlow && sidecar.counter(ANSWERED).await < 20.0 {
            assert!(now() < deadline, "PING is not answered often enough");
            tokio::time::sleep(ms(50)).await;
        }
    }

    /// Brings it about; when it began, in milliseconds since 1970.
    pub(super) async fn inflict(self, rig: &Rig, sidecar: &Sidecar) -> u64 {
        let began = unix_ms();
        match self {
            Fault::LinkCut => rig.cut_link(ACTIVE, NEXT).await,
            Fault::LinkSlow => rig.delay_link(ACTIVE, NEXT, ms(700)),
            Fault::LinkFlapping => rig.flap_link(ACTIVE, NEXT, ms(3200)),
            Fault::Isolated | Fault::IsolatedLeave => {
                for other in rig.regions().iter().map(|region| region.name()) {
                    if other != ACTIVE {
                        rig.cut_link(ACTIVE, other).await.unwrap();
                        rig.cut_link(other, ACTIVE).await.unwrap();
                    }
                }
                Ok(())
            }
            Fault::Dead => rig.kill(ACTIVE).await,
            Fault::Hung => rig.hang(ACTIVE).await,
            Fault::NetworkCut => rig.cut(ACTIVE).await,
            Fault::NetworkSilent => rig.stall(ACTIVE).await,
            Fault::NetworkDeafens => rig.half_open(ACTIVE, Direction::ToServer).await,
            Fault::NetworkSilences => rig.half_open(ACTIVE, Direction::ToClient).await,
            Fault::NetworkSlow => rig.delay(ACTIVE, ms(140), ms(140)).await,
            Fault::NetworkDribbles => rig.dribble(ACTIVE, 1, ms(10)).await,
            // The restart's own refusals are another fault: the network is silent until it loads. Whoever stands before
            // several shards stays there.
            Fault::Loading if rig.region(ACTIVE).shards().len() == 1 => {
                rig.stall(ACTIVE).await.unwrap();
                rig.loading(ACTIVE, ms(5000)).await.unwrap();
                let began = unix_ms();
                rig.heal_network(ACTIVE).await.unwrap();
                return began;
            }
            Fault::Loading => rig.loading(ACTIVE, ms(5000)).await,
            Fault::StaleMinReplicas => rig.stale_min_replicas(ACTIVE).await,
            Fault::StaleOutbound => rig.stale_outbound(ACTIVE).await,
            Fault::OutOfMemory => rig.out_of_memory(ACTIVE).await,
            Fault::WritesStalled => rig.pause_writes(ACTIVE, ms(60_000)).await,
            Fault::ConnectionsReset => {
                rig.cut(ACTIVE).await.unwrap();
                rig.heal_network(ACTIVE).await
            }
            Fault::AllDead => return all_dead(rig, sidecar).await,
            Fault::OwnStall => {
                sidecar.signal("STOP");
                tokio::time::sleep(ms(2000)).await;
                sidecar.signal("CONT");
                return unix_ms();
            }
            Fault::ShardDead => rig.kill((ACTIVE, SHARD)).await,
            Fault::ShardStale => rig.stale_min_replicas((ACTIVE, SHARD)).await,
            Fault::ShardLinkCut => rig.cut_link((ACTIVE, SHARD), NEXT).await,
        }
        .unwrap();
        began
    }

    /// What is promised of it.
    pub(super) fn promise(self, place: Place) -> Promise {
        let down = |reason, within| Promise::leaves("local down", reason, within);
        let both_lag = |link: &str| format!("local lagging; remote lagging; local → remote broken{link}");
        match self {
            Fault::LinkCut => Promise::stays(both_lag(""), HEARTBEAT),
            Fault::ShardLinkCut => Promise::stays(both_lag(" (shard 1)"), HEARTBEAT),
            Fault::LinkSlow => Promise::stays("local lagging; remote lagging", HEARTBEAT),
            Fault::LinkFlapping => Promise::stays(both_lag(""), HEARTBEAT).passing(),
            Fault::Isolated => Promise::stays(isolated(place), HEARTBEAT),
            Fault::IsolatedLeave => Promise::leaves(isolated(place), "isolated", HEARTBEAT),
            Fault::Dead | Fault::NetworkCut => down("refused", REFUSED),
            // Whichever is missed first: the answer to a PING, or to two writes.
            Fault::Hung | Fault::NetworkSilent | Fault::NetworkDeafens | Fault::NetworkSilences => {
                down("silent or unwritable", HEARTBEAT)
            }
            Fault::NetworkSlow => Promise {
                because: "is usual",
                ..Promise::stays("local suspect", ms(10_000))
            },
            // A PING may get through in time or not.
            Fault::NetworkDribbles => Promise::leaves(
                "local suspect, stale; writes of local refused",
                "unwritable",
                STALLED,
            )
            .passing(),
            Fault::WritesStalled => Promise::leaves(
                "local suspect, stale; writes of local refused",
                "unwritable",
                STALLED,
            ),
            // One connection to whoever stands before the shards: answers wait for those of the hung one.
            Fault::ShardDead => Promise::leaves(
                one_shard(" (shard 1)", place),
                "unwritable",
                SHARD_GRACE + UNWRITABLE,
            ),
            Fault::ShardStale => Promise::leaves(
                "local stale; writes of local refused (shard 1)",
                "unwritable",
                SHARD_GRACE + UNWRITABLE,
            ),
            // Both are refused; writes are tried more often.
            Fault::Loading if place.form == Form::Plain => {
                Promise::leaves("local down", "unwritable", UNWRITABLE).said_within(FAILING)
            }
            // Whoever stands before the shards answers PING.
            Fault::Loading => Promise::leaves("local stale", "unwritable", ms(1500)).passing(),
            Fault::StaleMinReplicas | Fault::OutOfMemory => {
                Promise::leaves("local stale; writes of local refused", "unwritable", UNWRITABLE)
            }
            Fault::StaleOutbound => {
                let says = match place.regions {
                    2 => "local stale; remote lagging; local → remote broken; writes of local refused",
                    _ => "local stale; outbound of local broken; writes of local refused",
                };
                Promise::leaves(says, "unwritable", UNWRITABLE).said_within(HEARTBEAT)
            }
            Fault::ConnectionsReset => Promise::stays("all well", ms(500)),
            Fault::AllDead => {
                let says = match place.regions {
                    2 => "local down",
                    _ => "local down; third down",
                };
                Promise::leaves(says, "last_survivor", ms(500)).said_within(ms(1000))
            }
            Fault::OwnStall => Promise {
                told: Some("tilt"),
                ..Promise::stays("all well", ms(500))
            },
        }
    }
}

/// What is said of a replica one shard of which does not work. With two replicas nobody can tell whose fault it is that
/// the shard's links are silent.
fn one_shard(refusing: &str, place: Place) -> String {
    let peer = if place.regions == 2 {
        "; remote lagging"
    } else {
        ""
    };
    format!("local suspect, stale{peer}; writes of local refused{refusing}")
}

fn isolated(place: Place) -> &'static str {
    match place.regions {
        2 => "local isolated; remote isolated; local → remote broken; remote → local broken",
        _ => "local isolated; local cut off",
    }
}

/// All die, `remote` comes back; when it did.
async fn all_dead(rig: &Rig, sidecar: &Sidecar) -> u64 {
    let others = || rig.regions().iter().map(|region| region.name());
    for other in others().filter(|name| *name != ACTIVE) {
        rig.kill(other).await.unwrap();
    }
    let down = |index: usize| move |status: &serde_json::Value| status["replicas"][index]["health"] == "down";
    for index in 1..rig.regions().len() {
        sidecar.wait("the others down", down(index)).await;
    }
    rig.kill(ACTIVE).await.unwrap();
    sidecar.wait("all down", down(0)).await;
    let began = unix_ms();
    rig.restart(NEXT, Data::Fresh).await.unwrap();
    began
}
