//! What a rig is to be made of.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

/// Names of the first regions when the caller names none.
pub const DEFAULT_NAMES: [&str; 3] = ["local", "remote", "third"];

/// How regions are divided into shards.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Form {
    /// Not at all: one server each.
    #[default]
    Plain,
    /// Several servers behind one address that routes keys and channels.
    Front,
    /// A cluster of masters, for clients that follow `MOVED`.
    Cluster,
}

/// Most shards of a region.
const MOST_SHARDS: usize = 32;

/// What a [`Rig`](crate::Rig) is made of.
///
/// ```
/// # use rig::RigOptions;
/// let two = RigOptions::default();
/// let three = RigOptions::new(["eu", "us", "asia"]).password("secret").direct("eu").server_arg("--maxclients", "50");
/// let sharded = RigOptions::count(2).front([6, 4]);
/// # assert_eq!((two.regions.len(), three.regions.len(), sharded.shards.len()), (2, 3, 2));
/// ```
#[derive(Clone, Debug)]
pub struct RigOptions {
    /// One to three names of letters, digits, `-` and `_`.
    pub regions: Vec<String>,
    /// `requirepass` of every server.
    pub password: Option<String>,
    /// More arguments for every server.
    pub server_args: Vec<String>,
    /// Regions whose applications bypass the relay: for measurements. The relay's faults do not work there.
    pub direct: BTreeSet<String>,
    /// How all regions are divided.
    pub form: Form,
    /// Shards of each region, in the order of `regions`; a single number is for all of them.
    pub shards: Vec<usize>,
    /// Whether a front answers CLUSTER; an endpoint whose cluster API is switched off does not.
    pub cluster_api: bool,
    /// Whether a cluster's nodes announce their own addresses instead of their relays': addresses from which clients would
    /// bypass the relays.
    pub announce_servers: bool,
}

impl Default for RigOptions {
    /// Two regions, `local` and `remote`.
    fn default() -> Self {
        Self::new(DEFAULT_NAMES.into_iter().take(2))
    }
}

impl RigOptions {
    /// Regions with these names, and nothing special.
    pub fn new<Name: Into<String>>(regions: impl IntoIterator<Item = Name>) -> Self {
        Self {
            regions: regions.into_iter().map(Into::into).collect(),
            password: None,
            server_args: Vec::new(),
            direct: BTreeSet::new(),
            form: Form::Plain,
            shards: vec![1],
            cluster_api: true,
            announce_servers: false,
        }
    }

    /// As many regions, with the default names.
    #[must_use]
    pub fn count(regions: usize) -> Self {
        let names = DEFAULT_NAMES.iter().map(|&name| name.to_owned());
        Self::new(
            names
                .chain((DEFAULT_NAMES.len()..).map(|n| format!("region-{}", n + 1)))
                .take(regions),
        )
    }

    /// Sets the servers' password.
    #[must_use]
    pub fn password(mut self, password: impl Into<String>) -> Self {
        self.password = Some(password.into());
        self
    }

    /// Adds one argument with its value to the servers' command line.
    #[must_use]
    pub fn server_arg(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.server_args.extend([name.into(), value.into()]);
        self
    }

    /// Lets this region's applications bypass the relay.
    #[must_use]
    pub fn direct(mut self, region: impl Into<String>) -> Self {
        self.direct.insert(region.into());
        self
    }

    /// Divides the regions into so many shards each, behind one address: one number for all, or one for each.
    #[must_use]
    pub fn front(mut self, shards: impl IntoIterator<Item = usize>) -> Self {
        self.form = Form::Front;
        self.shards = shards.into_iter().collect();
        self
    }

    /// Makes each region a cluster of so many masters: one number for all, or one for each.
    #[must_use]
    pub fn cluster(mut self, shards: impl IntoIterator<Item = usize>) -> Self {
        self.form = Form::Cluster;
        self.shards = shards.into_iter().collect();
        self
    }

    /// Lets a cluster's nodes announce their own addresses instead of their relays'.
    #[must_use]
    pub fn announce_servers(mut self) -> Self {
        self.announce_servers = true;
        self
    }

    /// Lets fronts answer CLUSTER or not.
    #[must_use]
    pub fn cluster_api(mut self, answered: bool) -> Self {
        self.cluster_api = answered;
        self
    }

    /// How many shards the region has.
    pub(crate) fn shards_of(&self, region: &str) -> usize {
        let at = self.regions.iter().position(|name| name == region).unwrap_or(0);
        self.shards.get(at).or(self.shards.first()).copied().unwrap_or(1)
    }

    pub(crate) fn validate(&self) -> anyhow::Result<()> {
        let count = self.regions.len();
        anyhow::ensure!((1..=3).contains(&count), "a rig has 1 to 3 regions, not {count}");
        for (at, name) in self.regions.iter().enumerate() {
            let plain = |letter: char| letter.is_ascii_alphanumeric() || letter == '-' || letter == '_';
            anyhow::ensure!(
                !name.is_empty() && name.chars().all(plain),
                "region name {name:?}: letters, digits, - and _ only"
            );
            anyhow::ensure!(
                !self.regions[..at].contains(name),
                "region name {name:?} is given twice"
            );
        }
        let shards = self.shards.len();
        anyhow::ensure!(
            shards == 1 || shards == count,
            "{shards} numbers of shards for {count} regions: give one for all, or one for each"
        );
        let most = if self.form == Form::Plain { 1 } else { MOST_SHARDS };
        anyhow::ensure!(
            self.shards.iter().all(|shards| (1..=most).contains(shards)),
            "shards {:?}: a region of this form has 1 to {most}",
            self.shards
        );
        let stranger = self.direct.iter().find(|name| !self.regions.contains(name));
        anyhow::ensure!(
            stranger.is_none(),
            "direct: no region is called {:?}",
            stranger.map_or("", |name| name)
        );
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_built_is_refused_by_name() {
        let refusal = |options: RigOptions| options.validate().expect_err("must be refused").to_string();
        assert!(refusal(RigOptions::count(0)).contains("1 to 3"));
        assert!(refusal(RigOptions::count(4)).contains("not 4"));
        assert!(refusal(RigOptions::new(["a b"])).contains("\"a b\""));
        assert!(refusal(RigOptions::new(["a", "b", "a"])).contains("\"a\" is given twice"));
        assert!(refusal(RigOptions::default().direct("elsewhere")).contains("\"elsewhere\""));
        assert!(refusal(RigOptions::count(3).front([2, 3])).contains("2 numbers of shards for 3"));
        assert!(refusal(RigOptions::count(2).front([0])).contains("1 to 32"));
        let mut plain = RigOptions::count(2);
        plain.shards = vec![3];
        assert!(refusal(plain).contains("1 to 1"));
        let uneven = RigOptions::count(2).front([6, 4]);
        assert!(uneven.validate().is_ok());
        assert_eq!((uneven.shards_of("local"), uneven.shards_of("remote")), (6, 4));
        assert!(
            RigOptions::count(3)
                .password("p")
                .direct("third")
                .validate()
                .is_ok()
        );
    }
}
