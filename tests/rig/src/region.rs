//! One region: its shards, and the way in for applications.
//!
//! It owns both, and knows which shard owns which slot. It knows nothing of other regions; links are the rig's.

mod cluster;

use std::net::SocketAddr;
use std::sync::{Arc, PoisonError, RwLock};

use redis::{RedisResult, Value};
use serde::Serialize;

use crate::commands::{Commands, Route};
use crate::front::{Front, Plan, State};
use crate::options::{Form, RigOptions};
use crate::relay::{NetworkFaults, Relay};
use crate::shard::process::ReservedPort;
use crate::shard::{Shard, ShardStatus, url_of};
use crate::slots::{Owners, SlotRange};

/// A region's state at one moment.
#[derive(Clone, Debug, Serialize)]
pub struct RegionStatus {
    /// Its name.
    pub name: String,
    /// Where applications connect; the first shard's on a cluster.
    pub addr: SocketAddr,
    /// The same past the relay: the server, the front, or the first shard's server.
    pub direct_addr: SocketAddr,
    /// `addr` as a URL, with the password.
    pub url: String,
    /// The first server's process, while it runs.
    pub pid: Option<u32>,
    /// The first server's `master_repl_offset`; none when it does not answer.
    pub offset: Option<u64>,
    /// What the relay of `addr` does.
    pub network: NetworkFaults,
    /// How the region is divided.
    pub form: Form,
    /// Its shards; one in a plain region.
    pub shards: Vec<ShardStatus>,
}

/// One region of a [`Rig`](crate::Rig).
#[derive(Debug)]
pub struct Region {
    name: String,
    password: Option<String>,
    bypass: bool,
    form: Form,
    // Before the shards: it ends first, so that nobody sees it without them.
    gate: Option<Gate>,
    shards: Vec<Shard>,
    owners: Arc<RwLock<Owners>>,
    commands: Arc<Commands>,
}

/// The way in of a region with one endpoint for all shards.
#[derive(Debug)]
struct Gate {
    addr: SocketAddr,
    /// Stands once the servers have said where keys are in commands.
    front: Result<Front, ReservedPort>,
    relay: Relay,
}

impl Region {
    pub(crate) fn new(options: &RigOptions, name: &str) -> anyhow::Result<Self> {
        let bypass = options.direct.contains(name);
        let count = options.shards_of(name);
        let shard_name = |shard| match options.form {
            Form::Plain => name.to_owned(),
            Form::Front | Form::Cluster => format!("{name}/{shard}"),
        };
        let shard = |shard| Shard::new(&shard_name(shard), options, bypass);
        let gate = match options.form {
            Form::Plain | Form::Cluster => None,
            Form::Front => Some(Gate::reserve()?),
        };
        Ok(Self {
            name: name.to_owned(),
            password: options.password.clone(),
            bypass,
            form: options.form,
            gate,
            shards: (0..count).map(shard).collect::<anyhow::Result<_>>()?,
            owners: Arc::new(RwLock::new(Owners::even(count))),
            commands: Arc::default(),
        })
    }

    /// Makes known where keys are in commands. Without it nothing is routed.
    pub(crate) fn learn(&mut self, commands: &Arc<Commands>, cluster_api: bool) {
        self.commands = Arc::clone(commands);
        let announced = self.addr();
        let owners = self.owners();
        let Some(gate) = self.gate.take() else { return };
        let shards = self.shards.iter().map(Shard::addr).zip(owners.ranges().copied());
        let plan = Plan {
            shards: shards.collect(),
            commands: Arc::clone(commands),
            announced,
            cluster_api,
            guarded: self.password.is_some(),
        };
        let front = gate.front.or_else(|port| Ok(Front::start(port, plan)));
        self.gate = Some(Gate { front, ..gate });
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How it is divided.
    #[must_use]
    pub fn form(&self) -> Form {
        self.form
    }

    /// Where applications and monitors connect: the relay, or what is behind it where the relay is bypassed. Of a cluster
    /// it is the first shard's.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        match &self.gate {
            Some(gate) if self.bypass => gate.addr,
            Some(gate) => gate.relay.addr(),
            None => self.shards[0].addr(),
        }
    }

    /// The same past the relay, for counting and asserting: the server, the front, or the first shard's server.
    #[must_use]
    pub fn direct_addr(&self) -> SocketAddr {
        match &self.gate {
            Some(gate) => gate.addr,
            None => self.shards[0].direct_addr(),
        }
    }

    /// [`addr`](Self::addr) as `redis://[:password@]host:port`.
    #[must_use]
    pub fn url(&self) -> String {
        url_of(self.addr(), self.password.as_deref())
    }

    /// [`direct_addr`](Self::direct_addr) as a URL.
    #[must_use]
    pub fn direct_url(&self) -> String {
        url_of(self.direct_addr(), self.password.as_deref())
    }

    /// The first server's process id, while it runs.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.shards[0].pid()
    }

    /// Its shards; a plain region has one.
    #[must_use]
    pub fn shards(&self) -> &[Shard] {
        &self.shards
    }

    /// The shard of that number, counted from 0.
    ///
    /// # Panics
    /// When there is none: for tests.
    #[must_use]
    pub fn shard(&self, shard: usize) -> &Shard {
        &self.shards[shard]
    }

    /// The number of the shard that owns this key's or channel's slot.
    #[must_use]
    pub fn shard_of(&self, key: &str) -> usize {
        self.owner(crate::slots::slot(key.as_bytes()))
    }

    /// The slots of a shard.
    #[must_use]
    pub fn slots(&self, shard: usize) -> Vec<SlotRange> {
        self.owners().slots(shard)
    }

    /// Runs one command on the server that owns its keys, over a new connection; waits two seconds for the answer. Without
    /// keys it is the first shard's.
    ///
    /// # Errors
    /// As the server or the network gives them.
    pub async fn command(&self, words: &[&str]) -> RedisResult<Value> {
        let shard = match self.commands.route(words) {
            Route::Slot(slot) => self.owner(slot),
            Route::Anywhere | Route::Crossing => 0,
        };
        self.shards[shard].command(words).await
    }

    /// A connection to the first server; replies may take two seconds.
    ///
    /// # Errors
    /// When it cannot be made.
    pub async fn connection(&self) -> RedisResult<redis::aio::MultiplexedConnection> {
        self.shards[0].connection().await
    }

    pub(crate) fn owners(&self) -> Owners {
        let owners = self.owners.read().unwrap_or_else(PoisonError::into_inner);
        owners.clone()
    }

    pub(crate) fn owner(&self, slot: u16) -> usize {
        let owners = self.owners.read().unwrap_or_else(PoisonError::into_inner);
        owners.of(slot)
    }

    /// Gives back the former ones.
    pub(crate) fn replace_owners(&self, owners: Owners) -> Owners {
        let mut place = self.owners.write().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut *place, owners)
    }

    /// Who owns which slot, now and later.
    pub(crate) fn owners_shared(&self) -> &Arc<RwLock<Owners>> {
        &self.owners
    }

    /// Those of its relays that applications pass on their way to one shard, or to the region as a whole.
    pub(crate) fn relays(&self, shard: Option<usize>) -> anyhow::Result<Vec<&Relay>> {
        match (shard, &self.gate) {
            (None, Some(_)) if self.bypass => {
                anyhow::bail!("{}: its applications bypass the relay", self.name)
            }
            (None, Some(gate)) => Ok(vec![&gate.relay]),
            (None, None) => self.shards.iter().map(Shard::network).collect(),
            (Some(shard), _) => Ok(vec![self.shards[shard].network()?]),
        }
    }

    /// Opens every shard's port, and the way in.
    pub(crate) async fn open(&self) -> anyhow::Result<()> {
        for shard in &self.shards {
            shard.open().await?;
        }
        self.look().await;
        Ok(())
    }

    /// Lets the way in be what the shards are as a whole: there, hung, or gone.
    pub(crate) async fn look(&self) {
        let Some(Gate {
            front: Ok(front),
            relay,
            ..
        }) = &self.gate
        else {
            return;
        };
        let alive = || self.shards.iter().filter(|shard| shard.pid().is_some());
        let state = if alive().next().is_none() {
            State::Down
        } else if alive().all(Shard::is_frozen) {
            State::Hung
        } else {
            State::Up
        };
        front.be(state).await;
        relay.server_is(state != State::Down).await;
    }

    pub(crate) async fn status(&self) -> RegionStatus {
        let mut shards = Vec::new();
        for (number, shard) in self.shards.iter().enumerate() {
            shards.push(shard.status(self.slots(number)).await);
        }
        let first = &shards[0];
        RegionStatus {
            name: self.name.clone(),
            addr: self.addr(),
            direct_addr: self.direct_addr(),
            url: self.url(),
            pid: first.pid,
            offset: first.offset,
            network: self
                .gate
                .as_ref()
                .map_or(first.network, |gate| gate.relay.faults()),
            form: self.form,
            shards,
        }
    }
}

impl Gate {
    fn reserve() -> anyhow::Result<Self> {
        let port = ReservedPort::take()?;
        let addr = port.addr();
        Ok(Self {
            addr,
            front: Err(port),
            relay: Relay::start(addr)?,
        })
    }
}
