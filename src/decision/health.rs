//! Health: what the evidence says of one replica.
//!
//! ```text
//!              every kind fresh                 something against it
//!   unknown ───────────────────▶ healthy ◀────────────────────────────▶ suspect
//!      │                            ▲      good for one heartbeat          │
//!      │ past a window              │                                      │
//!      ▼                            │ good for three heartbeats            │ past a window,
//!     down ────────────────────▶ recovering                                │ or refused
//!      ▲    positive evidence       │                                      │
//!      └────────────────────────────┴──────────────────────────────────────┘
//! ```
//!
//! Past a window means, in this order: refused (hard: a few in a row), failing (PING answered with errors), silent (no
//! PING or write answered and nothing alive on the data plane), echo lost. Soft evidence makes suspect; only together with
//! silence of half a window does it make down.

use std::fmt;
use std::time::{Duration, Instant};

use super::event::{Health, PassiveEvidence, SwitchReason};
use super::evidence::{Evidence, Ping};
use super::links::Links;
use super::moment::Moment;
use super::windows::{REJECTIONS_IN_A_ROW, SOFT_TOGETHER, Windows};
use crate::replica::{ReplicaId, ShardId};

/// Why a replica is down.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Cause {
    Refused,
    Silent,
    Failing,
    /// It still answers: only its pub/sub is gone.
    EchoLost,
}

impl Cause {
    pub(super) fn reason(self) -> SwitchReason {
        match self {
            Cause::Refused => SwitchReason::Refused,
            Cause::Silent => SwitchReason::Silent,
            Cause::Failing => SwitchReason::Failing,
            Cause::EchoLost => SwitchReason::EchoLost,
        }
    }
}

/// What the judgement rests on; the words are made only when somebody reads them.
#[derive(Clone, PartialEq, Debug)]
pub(super) enum Finding {
    NothingYet,
    Good,
    Refused {
        times: u32,
        limit: u32,
    },
    Silent {
        quiet: Duration,
        limit: Duration,
        soft: usize,
    },
    Failing {
        times: u32,
        word: String,
        lasting: Duration,
    },
    EchoLost {
        shard: ShardId,
        sent: u32,
        lasting: Duration,
        limit: Duration,
    },
    PingLate {
        quiet: Duration,
        failures: u32,
    },
    EchoMissing {
        shard: ShardId,
        sent: u32,
        lasting: Duration,
    },
    EchoUnknown {
        shard: ShardId,
        lasting: Duration,
        publishing: bool,
    },
    Soft {
        pieces: usize,
        window: Duration,
    },
    Refusals {
        pieces: usize,
        writes: bool,
        window: Duration,
    },
    Slow {
        now: Duration,
        usual: Duration,
    },
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Finding::NothingYet => write!(f, "nothing known yet"),
            Finding::Good => write!(f, "PING answered and own heartbeats heard"),
            Finding::Refused { times, limit } => {
                write!(f, "{times} refused connects in a row (limit {limit})")
            }
            Finding::Silent { quiet, limit, soft } => {
                write!(f, "no answer for {} (limit {})", Secs(*quiet), Secs(*limit))?;
                if *soft > 0 {
                    write!(f, ", {soft} broken or timed-out connections meanwhile")?;
                }
                Ok(())
            }
            Finding::Failing { times, word, lasting } => {
                write!(
                    f,
                    "{times} PINGs in a row answered with {word}, for {}",
                    Secs(*lasting)
                )
            }
            Finding::EchoLost {
                shard,
                sent,
                lasting,
                limit,
            } => write!(
                f,
                "shard {shard}: {sent} own heartbeats accepted but not heard for {} (limit {})",
                Secs(*lasting),
                Secs(*limit)
            ),
            Finding::PingLate { quiet, failures } => write!(
                f,
                "last answer to a probe {} ago, {failures} failed PINGs in a row",
                Secs(*quiet)
            ),
            Finding::EchoMissing { shard, sent, lasting } => write!(
                f,
                "shard {shard}: {sent} own heartbeats not heard yet, for {}",
                Secs(*lasting)
            ),
            Finding::EchoUnknown {
                shard,
                lasting,
                publishing,
            } => write!(
                f,
                "shard {shard}: no own heartbeat heard for {}{}",
                Secs(*lasting),
                if *publishing {
                    ""
                } else {
                    ", none was accepted either"
                }
            ),
            Finding::Soft { pieces, window } => write!(
                f,
                "{pieces} connections broken, timed out or rejected within {}",
                Secs(*window)
            ),
            Finding::Refusals {
                pieces,
                writes,
                window,
            } => write!(
                f,
                "applications were answered that it {}, {pieces} times within {}",
                if *writes {
                    "takes no writes"
                } else {
                    "cannot serve"
                },
                Secs(*window)
            ),
            Finding::Slow { now, usual } => {
                write!(f, "answers after {} where {} is usual", Secs(*now), Secs(*usual))
            }
        }
    }
}

/// A duration in words: `1.02 s`, `340 ms`.
pub(super) struct Secs(pub(super) Duration);

impl fmt::Display for Secs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 >= Duration::from_secs(1) {
            write!(f, "{:.2} s", self.0.as_secs_f64())
        } else {
            write!(f, "{} ms", self.0.as_millis())
        }
    }
}

/// How bad it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Level {
    /// Fresh positive evidence of every kind.
    Good,
    /// Nothing against it, but some kind of evidence has not come yet.
    Waiting,
    /// Something against it, within its window.
    Against,
    /// Past its window.
    Past(Cause),
}

/// One reading of the evidence.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Judgement {
    pub(super) level: Level,
    pub(super) finding: Finding,
}

impl Judgement {
    fn new(level: Level, finding: Finding) -> Judgement {
        Judgement { level, finding }
    }
}

/// Reads the evidence about `id`.
pub(super) fn judge(
    id: ReplicaId,
    evidence: &Evidence,
    links: &Links,
    connect_failures: u32,
    windows: &Windows,
    now: Moment,
) -> Judgement {
    // 1. Hard evidence first: it needs no window.
    let refused = evidence.pings.iter().map(|ping| ping.refused).max().unwrap_or(0);
    if evidence
        .pings
        .iter()
        .any(|ping| is_refused(ping, connect_failures))
    {
        let finding = Finding::Refused {
            times: refused,
            limit: connect_failures,
        };
        return Judgement::new(Level::Past(Cause::Refused), finding);
    }
    // 2. Error answers: not silence, but not health either.
    let rejecting = evidence.pings.iter().find(|ping| is_failing(ping, windows, now));
    if let Some(ping) = rejecting {
        let lasting = ping
            .rejected_since
            .map_or(Duration::ZERO, |since| now.since(since));
        let finding = Finding::Failing {
            times: ping.rejected,
            word: ping.word.clone(),
            lasting,
        };
        return Judgement::new(Level::Past(Cause::Failing), finding);
    }
    // 3. Silence, measured from the last positive evidence and not from failures, which are reported late.
    if let Some(finding) = silence(id, evidence, links, windows, now) {
        return Judgement::new(Level::Past(Cause::Silent), finding);
    }
    // 4. The own echo.
    for (cell, beats) in evidence.beats.iter().enumerate() {
        if let Some(shard) = links.shard(id, cell)
            && beats.lost
        {
            let lasting = beats
                .unheard_since
                .map_or(Duration::ZERO, |since| now.since(since));
            let finding = Finding::EchoLost {
                shard,
                sent: beats.unheard,
                lasting,
                limit: links.echo_window(id, cell, windows),
            };
            return Judgement::new(Level::Past(Cause::EchoLost), finding);
        }
    }
    within_windows(id, evidence, links, refused, windows, now)
}

/// Nothing is past its window: is anything against the replica, or still awaited?
fn within_windows(
    id: ReplicaId,
    evidence: &Evidence,
    links: &Links,
    refused: u32,
    windows: &Windows,
    now: Moment,
) -> Judgement {
    let Some(live) = evidence.live() else {
        return Judgement::new(Level::Waiting, Finding::NothingYet);
    };
    let failures = evidence.pings.iter().map(|ping| ping.failures).max().unwrap_or(0);
    let rejected = evidence.pings.iter().any(|ping| ping.rejected > 0);
    // A PING or a write: on a WAN a packet of one of them is lost now and then.
    let quiet = now.since(evidence.answered.unwrap_or(live));
    if refused > 0 || rejected || failures >= 2 || quiet >= windows.suspect {
        return Judgement::new(Level::Against, Finding::PingLate { quiet, failures });
    }
    let unanswered = evidence.soft_unanswered(windows.silence, now);
    let repeated = evidence.soft_repeated(windows.silence, now);
    if unanswered >= 2 || repeated >= SOFT_TOGETHER {
        let finding = Finding::Soft {
            pieces: unanswered.max(repeated),
            window: windows.silence,
        };
        return Judgement::new(Level::Against, finding);
    }
    for (kind, writes) in [
        (PassiveEvidence::Unready, false),
        (PassiveEvidence::Unwritable, true),
    ] {
        let pieces = evidence.refusals(kind, windows.silence, now);
        if pieces >= SOFT_TOGETHER {
            let finding = Finding::Refusals {
                pieces,
                writes,
                window: windows.silence,
            };
            return Judgement::new(Level::Against, finding);
        }
    }
    if evidence.slow {
        let finding = Finding::Slow {
            now: evidence.round_trips.now().unwrap_or_default(),
            usual: evidence.round_trips.usual().unwrap_or_default(),
        };
        return Judgement::new(Level::Against, finding);
    }
    let mut waiting = None;
    for ((path, echo), beats) in links.between(id, id).map(|at| (at, &evidence.beats[at.0.cell])) {
        let shard = path.shard;
        if beats.unheard >= 2 {
            let lasting = beats
                .unheard_since
                .map_or(Duration::ZERO, |since| now.since(since));
            let patience = windows.echo_suspect.max(echo.window(windows) / 2);
            if lasting >= patience {
                let finding = Finding::EchoMissing {
                    shard,
                    sent: beats.unheard,
                    lasting,
                };
                return Judgement::new(Level::Against, finding);
            }
        }
        if echo.up == Some(true) {
            continue;
        }
        let publishing = beats.sent.is_some_and(|sent| now.since(sent) < windows.link);
        let finding = Finding::EchoUnknown {
            shard,
            lasting: echo.quiet(now),
            publishing,
        };
        match echo.up {
            Some(_) => return Judgement::new(Level::Against, finding),
            None => waiting = Some(finding),
        }
    }
    if evidence.pings[0].ok.is_none() {
        waiting = Some(Finding::NothingYet);
    }
    match waiting {
        Some(finding) => Judgement::new(Level::Waiting, finding),
        None => Judgement::new(Level::Good, Finding::Good),
    }
}

/// Whether nobody listens there.
pub(super) fn is_refused(ping: &Ping, connect_failures: u32) -> bool {
    ping.refused >= connect_failures.max(1)
}

/// Whether it answers with errors.
pub(super) fn is_failing(ping: &Ping, windows: &Windows, now: Moment) -> bool {
    let lasting = ping
        .rejected_since
        .map_or(Duration::ZERO, |since| now.since(since));
    ping.rejected >= REJECTIONS_IN_A_ROW || (ping.rejected > 0 && lasting >= windows.silence)
}

/// The limit that holds for this replica's silence now: longer while its own echo still arrives, shorter once several
/// connections broke or timed out in it.
fn silence_limit(
    id: ReplicaId,
    evidence: &Evidence,
    links: &Links,
    windows: &Windows,
    now: Moment,
) -> Duration {
    let echo = links
        .between(id, id)
        .any(|(_, link)| link.fresh.is_some_and(|at| now.since(at) < windows.silence / 2));
    if echo {
        windows.silence_with_echo
    } else if evidence.soft_unanswered(windows.silence, now) >= SOFT_TOGETHER {
        windows.suspect
    } else {
        windows.silence
    }
}

fn silence(
    id: ReplicaId,
    evidence: &Evidence,
    links: &Links,
    windows: &Windows,
    now: Moment,
) -> Option<Finding> {
    let quiet = now.since(evidence.live().unwrap_or(evidence.born));
    // No limit is shorter than this.
    if quiet >= windows.suspect {
        let limit = silence_limit(id, evidence, links, windows, now);
        if quiet >= limit {
            let soft = evidence.soft_unanswered(windows.silence, now);
            return Some(Finding::Silent { quiet, limit, soft });
        }
    }
    // A shard that is probed by itself is silent by itself: the data plane's liveness may come from another shard.
    let shard = evidence
        .pings
        .iter()
        .skip(1)
        .filter(|ping| ping.probed)
        .find_map(|ping| {
            let quiet = now.since(ping.ok.unwrap_or(evidence.laid_out));
            (quiet >= windows.silence_with_echo).then_some(quiet)
        });
    shard.map(|quiet| Finding::Silent {
        quiet,
        limit: windows.silence_with_echo,
        soft: evidence.soft_unanswered(windows.silence, now),
    })
}

/// When the replica would be past its silence window, if nothing more came.
pub(super) fn silent_at(evidence: &Evidence, windows: &Windows) -> Instant {
    evidence.live().unwrap_or(evidence.born).plus(windows.silence)
}

/// The health of one replica, with its hysteresis.
#[derive(Clone, Debug)]
pub(super) struct Standing {
    pub(super) health: Health,
    pub(super) since: Moment,
    /// Set exactly while down.
    pub(super) cause: Option<Cause>,
    pub(super) finding: Finding,
    good_since: Option<Moment>,
    /// While down: when it was last found not to answer.
    dumb: Option<Moment>,
}

impl Standing {
    pub(super) fn new(now: Moment) -> Standing {
        Standing {
            health: Health::Unknown,
            since: now,
            cause: None,
            finding: Finding::NothingYet,
            good_since: None,
            dumb: None,
        }
    }

    /// Takes one judgement; returns the health before, when it changed. Down ends with an answered PING or write only:
    /// error answers on the data plane show life, not that it is over.
    pub(super) fn update(
        &mut self,
        judgement: Judgement,
        evidence: &Evidence,
        windows: &Windows,
        now: Moment,
    ) -> Option<Health> {
        let before = self.health;
        let known = evidence.live().is_some();
        let Judgement { level, finding } = judgement;
        match level {
            Level::Past(cause) if cause != Cause::EchoLost => self.dumb = Some(now),
            // An echo that is lost as well does not make it answer.
            _ if before == Health::Down && self.dumb > evidence.answered => return None,
            Level::Past(_) => {}
            _ => self.dumb = None,
        }
        self.finding = finding;
        self.cause = match level {
            Level::Past(cause) => Some(cause),
            _ => None,
        };
        if level == Level::Good {
            self.good_since.get_or_insert(now);
        } else {
            self.good_since = None;
        }
        let good_for = |window| self.good_since.is_some_and(|since| now.since(since) >= window);
        self.health = match (before, level) {
            (_, Level::Past(_)) => Health::Down,
            (Health::Unknown, Level::Good) => Health::Healthy,
            (Health::Unknown, Level::Against) if known => Health::Suspect,
            (Health::Healthy, Level::Against) => Health::Suspect,
            (Health::Suspect, Level::Good) if good_for(windows.clear) => Health::Healthy,
            (Health::Recovering, Level::Good) if good_for(windows.recover) => Health::Healthy,
            (Health::Down, _) => Health::Recovering,
            (same, _) => same,
        };
        if self.health == before {
            return None;
        }
        self.since = now;
        Some(before)
    }

    /// Whether an application would get answers: it is known, and not refused, silent or failing.
    pub(super) fn answers(&self) -> bool {
        match self.health {
            Health::Unknown => false,
            Health::Down => self.cause == Some(Cause::EchoLost),
            Health::Healthy | Health::Suspect | Health::Recovering => true,
        }
    }
}
