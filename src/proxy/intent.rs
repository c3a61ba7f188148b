//! What a session wants of its connection, remembered so that it can be said again on another replica.
//!
//! Every change waits for the replica's own yes: a [`Change`] travels with its command and is applied when the reply
//! comes, so what is replayed later is what was accepted before. Pure.

use std::collections::BTreeSet;

use bytes::Bytes;

use super::command::{Must, ReplyMode, ScriptUse};
use crate::replica::Secret;
use crate::resp;

/// Where a RESP2 connection hears of keys that another one tracks.
const CHANNEL: &[u8] = b"__redis__:invalidate";

/// The remembered wishes of one session.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Intent {
    /// What the reply to any command depends on.
    pub identity: Identity,
    /// What most sessions never need.
    rare: Option<Box<Rare>>,
}

/// What a connection must have in common with a session so that the session's stateless commands may go over it.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub(crate) struct Identity {
    /// RESP3 (after HELLO 3).
    pub resp3: bool,
    /// SELECTed database.
    pub db: u32,
    /// The application's own login, when it authenticated.
    pub login: Option<Login>,
}

/// Identity given by AUTH or HELLO.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Login {
    /// ACL user; `None` after the one-argument AUTH.
    pub user: Option<Bytes>,
    /// Password.
    pub password: Password,
}

/// A password as the application sent it; never shown.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) struct Password(pub Bytes);

impl std::fmt::Debug for Password {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("(secret)")
    }
}

#[derive(Clone, PartialEq, Eq, Debug, Default)]
struct Rare {
    name: Option<Bytes>,
    /// CLIENT SETINFO attributes and values, newest of each.
    info: Vec<(Bytes, Bytes)>,
    /// The whole CLIENT TRACKING ON commands, which add up: prefixes are given one command after the other.
    tracking: Vec<Bytes>,
    /// Whole commands that switch a mode of the connection on (READONLY, CLIENT NO-EVICT ON, …), by name.
    modes: Vec<(&'static str, Bytes)>,
    monitor: bool,
    subscriptions: [BTreeSet<Bytes>; 3],
}

/// The three kinds of subscription.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Subscription {
    /// SUBSCRIBE
    Channel = 0,
    /// PSUBSCRIBE
    Pattern = 1,
    /// SSUBSCRIBE
    Shard = 2,
}

/// What a command changes once the replica has said yes.
#[derive(Clone, Debug)]
pub(crate) enum Change {
    /// HELLO
    Hello {
        /// 2 or 3; `None` without the argument.
        resp3: Option<bool>,
        /// `AUTH user password`
        login: Option<Login>,
        /// `SETNAME name`
        name: Option<Bytes>,
    },
    /// AUTH
    Auth(Login),
    /// SELECT
    Select(u32),
    /// CLIENT SETNAME
    Name(Bytes),
    /// CLIENT SETINFO
    Info(Bytes, Bytes),
    /// CLIENT TRACKING: the whole command when ON, `None` when OFF.
    Tracking(Option<Bytes>),
    /// A mode switched on (`Some`, the whole command) or off.
    Mode(&'static str, Option<Bytes>),
    /// MONITOR
    Monitor,
    /// RESET
    Reset,
    /// CLIENT REPLY, which Pulsegate keeps to itself: the replica always answers, so that what it says is known.
    Reply(ReplyMode),
    /// A script or function was brought or taken away, by this whole command: of interest to the worker.
    Script(ScriptUse, Bytes),
    /// (P|S)SUBSCRIBE and its opposite; applied confirmation by confirmation.
    Subscribe,
}

impl Intent {
    /// Applies what the replica has agreed to.
    pub(crate) fn apply(&mut self, change: Change) {
        match change {
            Change::Hello { resp3, login, name } => {
                self.identity.resp3 = resp3.unwrap_or(self.identity.resp3);
                if login.is_some() {
                    self.identity.login = login;
                }
                if let Some(name) = name {
                    self.rare().name = (!name.is_empty()).then_some(name);
                }
            }
            Change::Auth(login) => self.identity.login = Some(login),
            Change::Select(db) => self.identity.db = db,
            Change::Name(name) => self.rare().name = (!name.is_empty()).then_some(name),
            Change::Info(attribute, value) => {
                let info = &mut self.rare().info;
                info.retain(|(a, _)| !a.eq_ignore_ascii_case(&attribute));
                info.push((attribute, value));
            }
            Change::Tracking(None) => self.rare().tracking.clear(),
            Change::Tracking(Some(command)) => {
                let tracking = &mut self.rare().tracking;
                if !tracking.contains(&command) {
                    tracking.push(command);
                }
            }
            Change::Mode(name, command) => {
                let modes = &mut self.rare().modes;
                modes.retain(|(n, _)| *n != name);
                modes.extend(command.map(|c| (name, c)));
            }
            Change::Monitor => self.rare().monitor = true,
            Change::Reset => *self = Intent::default(),
            Change::Reply(_) | Change::Script(..) | Change::Subscribe => {}
        }
    }

    fn rare(&mut self) -> &mut Rare {
        self.rare.get_or_insert_with(Box::default)
    }

    /// A confirmation of (un)subscription to `channel` came.
    pub(crate) fn subscription(&mut self, kind: Subscription, channel: &[u8], on: bool) {
        let set = &mut self.rare().subscriptions[kind as usize];
        if on {
            set.insert(Bytes::copy_from_slice(channel));
        } else {
            set.remove(channel);
        }
    }

    /// Channels of `kind` that are subscribed to.
    pub(crate) fn subscribed(&self, kind: Subscription) -> usize {
        self.rare
            .as_ref()
            .map_or(0, |rare| rare.subscriptions[kind as usize].len())
    }

    /// Whether this very channel is subscribed to.
    pub(crate) fn is_subscribed_to(&self, kind: Subscription, channel: &[u8]) -> bool {
        let rare = self.rare.as_ref();
        rare.is_some_and(|rare| rare.subscriptions[kind as usize].contains(channel))
    }

    /// The sharded channels that are subscribed to.
    pub(crate) fn sharded_channels(&self) -> impl Iterator<Item = &Bytes> {
        let rare = self.rare.iter();
        rare.flat_map(|rare| &rare.subscriptions[Subscription::Shard as usize])
    }

    /// The same, but for sharded channels.
    pub(crate) fn without_shards(&self) -> Intent {
        let mut intent = self.clone();
        if let Some(rare) = &mut intent.rare {
            rare.subscriptions[Subscription::Shard as usize].clear();
        }
        intent
    }

    /// What a connection to one node of several is told, beside the session's own. `everything`: of all keys, too.
    pub(crate) fn of_ear(&self, everything: bool) -> Intent {
        let rare = self.rare.as_ref().map(|rare| {
            let mut heard = Rare {
                name: rare.name.clone(),
                info: rare.info.clone(),
                ..Rare::default()
            };
            if everything {
                (heard.tracking, heard.monitor) = (rare.tracking.clone(), rare.monitor);
            }
            heard
        });
        Intent {
            identity: self.identity.clone(),
            rare: rare.map(Box::new),
        }
    }

    /// Any subscription at all.
    pub(crate) fn is_subscribed(&self) -> bool {
        self.rare
            .as_ref()
            .is_some_and(|rare| rare.subscriptions.iter().any(|s| !s.is_empty()))
    }

    /// MONITOR is on.
    pub(crate) fn monitors(&self) -> bool {
        self.rare.as_ref().is_some_and(|rare| rare.monitor)
    }

    /// CLIENT TRACKING is on.
    pub(crate) fn tracks(&self) -> bool {
        self.rare.as_ref().is_some_and(|rare| !rare.tracking.is_empty())
    }

    /// The replica may send to this session without being asked, so it needs a link even while it is idle.
    pub(crate) fn listens(&self) -> bool {
        self.is_subscribed() || self.monitors() || self.tracks()
    }

    /// The same, where sharded channels are heard apart.
    pub(crate) fn listens_but_to_shards(&self) -> bool {
        let others = |rare: &Rare| {
            let [channels, patterns, _] = &rare.subscriptions;
            !channels.is_empty() || !patterns.is_empty()
        };
        self.rare.as_deref().is_some_and(others) || self.monitors() || self.tracks()
    }

    /// It is to be told of the keys of all shards.
    pub(crate) fn listens_everywhere(&self) -> bool {
        self.monitors() || self.tracks()
    }

    /// Takes part in tracking with REDIRECT, as the one that tracks or as the one that hears: the client id that ties the
    /// two is the replica's own, so neither can be moved, and a cache that is no longer told anything must not live on.
    pub(crate) fn is_redirected(&self) -> bool {
        self.rare.as_ref().is_some_and(|rare| {
            rare.tracking
                .iter()
                .any(|frame| resp::args(frame).any(|word| word.eq_ignore_ascii_case(b"REDIRECT")))
        }) || !self.identity.resp3 && self.hears_invalidations()
    }

    fn hears_invalidations(&self) -> bool {
        self.rare
            .as_ref()
            .is_some_and(|rare| rare.subscriptions[Subscription::Channel as usize].contains(CHANNEL))
    }

    /// What an application with a cache of its own is told when its connection to the replica is lost: that anything in
    /// the cache may have changed meanwhile.
    pub(crate) fn invalidation(&self) -> &'static [u8] {
        match self.identity.resp3 {
            true if self.tracks() => b">2\r\n$10\r\ninvalidate\r\n_\r\n",
            false if self.hears_invalidations() => {
                b"*3\r\n$7\r\nmessage\r\n$20\r\n__redis__:invalidate\r\n*-1\r\n"
            }
            _ => b"",
        }
    }

    /// The session's commands need a link of its own: something is set on the connection that others must not have.
    pub(crate) fn is_peculiar(&self) -> bool {
        self.listens() || self.rare.as_ref().is_some_and(|rare| !rare.modes.is_empty())
    }

    /// Something is set that RESET takes away or not, depending on the server's version (CLIENT NO-EVICT, SETINFO).
    pub(crate) fn may_outlive_reset(&self) -> bool {
        self.rare
            .as_ref()
            .is_some_and(|rare| !rare.modes.is_empty() || !rare.info.is_empty())
    }

    /// The commands that bring a connection from the state `from` to this one; `None` when that cannot be.
    pub(crate) fn steps_from(&self, from: &Intent) -> Option<Vec<Step>> {
        if from.is_peculiar() || self.is_peculiar() || from.identity.login != self.identity.login {
            return None;
        }
        let mut steps = Vec::new();
        if from.identity.resp3 != self.identity.resp3 {
            let version: &[u8] = if self.identity.resp3 { b"3" } else { b"2" };
            steps.push(Step::grant(&[b"HELLO", version]));
        }
        if from.identity.db != self.identity.db {
            steps.push(Step::grant(&[b"SELECT", self.identity.db.to_string().as_bytes()]));
        }
        let (none, was, is) = (Rare::default(), from.rare.as_deref(), self.rare.as_deref());
        let (was, is) = (was.unwrap_or(&none), is.unwrap_or(&none));
        if was.name != is.name {
            let name = is.name.as_deref().unwrap_or_default();
            steps.push(Step::grant(&[b"CLIENT", b"SETNAME", name]));
        }
        for (attribute, _) in &was.info {
            if !is.info.iter().any(|(a, _)| a.eq_ignore_ascii_case(attribute)) {
                steps.push(Step::grant(&[b"CLIENT", b"SETINFO", attribute, b""]));
            }
        }
        for (attribute, value) in &is.info {
            if !was
                .info
                .iter()
                .any(|(a, v)| a.eq_ignore_ascii_case(attribute) && v == value)
            {
                steps.push(Step::grant(&[b"CLIENT", b"SETINFO", attribute, value]));
            }
        }
        Some(steps)
    }

    /// The commands that bring a new connection to this state. `own` is the identity that Pulsegate is configured with.
    pub(crate) fn handshake(&self, own: Option<&crate::replica::Credentials>) -> Vec<Step> {
        let mut steps = self.identity.handshake(own);
        let Some(rare) = &self.rare else { return steps };
        if let Some(name) = &rare.name {
            steps.push(Step::may(&[b"CLIENT", b"SETNAME", name]));
        }
        for (attribute, value) in &rare.info {
            steps.push(Step::may(&[b"CLIENT", b"SETINFO", attribute, value]));
        }
        // A REDIRECT's client id is another connection's by now, if it is any.
        if !self.is_redirected() {
            steps.extend(rare.tracking.iter().cloned().map(Step::known));
        }
        for (_, mode) in &rare.modes {
            steps.push(Step {
                frame: mode.clone(),
                replies: 1,
                must: Must::Answer,
            });
        }
        let [channels, patterns, shards] = &rare.subscriptions;
        for (name, set) in [(&b"SUBSCRIBE"[..], channels), (b"PSUBSCRIBE", patterns)] {
            if !set.is_empty() {
                let mut words: Vec<&[u8]> = vec![name];
                words.extend(set.iter().map(|c| &c[..]));
                steps.push(Step {
                    frame: encode(&words),
                    replies: set.len() as u32,
                    must: Must::Grant,
                });
            }
        }
        // One channel a command: channels of different slots may not share one.
        for channel in shards {
            steps.push(Step::grant(&[b"SSUBSCRIBE", channel]));
        }
        if rare.monitor {
            steps.push(Step::grant(&[b"MONITOR"]));
        }
        steps
    }
}

impl Identity {
    /// The commands that bring a new connection to this identity. The last one proves that the replica serves.
    pub(crate) fn handshake(&self, own: Option<&crate::replica::Credentials>) -> Vec<Step> {
        let mut steps = Vec::new();
        let configured = own.map(|c| Login {
            user: c.username.as_ref().map(|u| Bytes::copy_from_slice(u.as_bytes())),
            password: Password(Bytes::copy_from_slice(Secret::expose(&c.password).as_bytes())),
        });
        if let Some(login) = self.login.as_ref().or(configured.as_ref()) {
            let mut words: Vec<&[u8]> = vec![b"AUTH"];
            words.extend(login.user.as_deref());
            words.push(&login.password.0);
            let must = if self.login.is_some() {
                Must::Grant
            } else {
                Must::Succeed
            };
            steps.push(Step {
                must,
                ..Step::grant(&words)
            });
        }
        if self.resp3 {
            steps.push(Step::grant(&[b"HELLO", b"3"]));
        }
        if self.db != 0 {
            steps.push(Step::grant(&[b"SELECT", self.db.to_string().as_bytes()]));
        }
        steps.push(Step::ping());
        steps
    }
}

/// One command of a handshake.
#[derive(Clone, Debug)]
pub(crate) struct Step {
    /// The command.
    pub frame: Bytes,
    /// Replies that it brings.
    pub replies: u32,
    /// What they have to be.
    pub must: Must,
}

impl Step {
    /// Begins a transaction.
    pub(crate) fn multi() -> Step {
        Step::grant(&[b"MULTI"])
    }

    fn grant(words: &[&[u8]]) -> Step {
        Step {
            frame: encode(words),
            replies: 1,
            must: Must::Grant,
        }
    }

    /// Whether the replica serves at all: one that is loading, or full, says so here and not to an application.
    pub(crate) fn ping() -> Step {
        Step {
            frame: encode(&[b"PING"]),
            replies: 1,
            must: Must::Serve,
        }
    }

    /// A whole command that may fail.
    pub(crate) fn known(frame: Bytes) -> Step {
        Step {
            frame,
            replies: 1,
            must: Must::Answer,
        }
    }

    /// A command that may fail.
    pub(crate) fn may(words: &[&[u8]]) -> Step {
        Step {
            frame: encode(words),
            replies: 1,
            must: Must::Answer,
        }
    }
}

fn encode(words: &[&[u8]]) -> Bytes {
    resp::encode_command(words).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(intent: &Intent) -> Vec<String> {
        let text = |step: &Step| {
            resp::args(&step.frame)
                .map(String::from_utf8_lossy)
                .collect::<Vec<_>>()
                .join(" ")
        };
        intent.handshake(None).iter().map(text).collect()
    }

    fn track(intent: &mut Intent, words: &[&[u8]]) {
        let mut all: Vec<&[u8]> = vec![b"CLIENT", b"TRACKING", b"ON"];
        all.extend(words);
        intent.apply(Change::Tracking(Some(encode(&all))));
    }

    #[test]
    fn tracking_adds_up_and_ends_at_once() {
        let mut intent = Intent::default();
        intent.identity.resp3 = true;
        for prefix in [&b"a"[..], b"b", b"a"] {
            track(&mut intent, &[b"BCAST", b"PREFIX", prefix]);
        }
        let on = |prefix| format!("CLIENT TRACKING ON BCAST PREFIX {prefix}");
        assert_eq!(said(&intent), ["HELLO 3", "PING", &on("a"), &on("b")]);
        assert!(intent.listens() && !intent.is_redirected());
        intent.apply(Change::Tracking(None));
        assert!(!intent.listens());
    }

    /// A replica's client id means another connection on the next replica, or none.
    #[test]
    fn a_redirect_is_never_said_again() {
        let mut tracks = Intent::default();
        track(&mut tracks, &[b"redirect", b"7"]);
        assert!(tracks.is_redirected());
        assert_eq!(said(&tracks), ["PING"]);
        let mut hears = Intent::default();
        hears.subscription(Subscription::Channel, CHANNEL, true);
        assert!(hears.is_redirected());
        assert!(!hears.invalidation().is_empty());
    }

    #[test]
    fn sharded_channels_are_said_one_by_one() {
        let mut intent = Intent::default();
        for (kind, channel) in [
            (Subscription::Shard, &b"s1"[..]),
            (Subscription::Shard, b"s2"),
            (Subscription::Channel, b"c1"),
            (Subscription::Channel, b"c2"),
        ] {
            intent.subscription(kind, channel, true);
        }
        assert_eq!(
            said(&intent),
            ["PING", "SUBSCRIBE c1 c2", "SSUBSCRIBE s1", "SSUBSCRIBE s2"]
        );
    }
}
