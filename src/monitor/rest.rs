//! The REST check: what the cluster of a replica (Redis Enterprise) says of its database.
//!
//! ```text
//!   number known? ── no ──► GET /v1/bdbs ── endpoint at the replica's address ──► number
//!        │ yes                                                                      │
//!        ▼                                                                          ▼
//!   GET /v1/bdbs/<uid>/availability?extend_check=lag …  ── 404, once ──► forget the number, look again
//! ```
//!
//! Each question has a connection of its own, so that the name is resolved anew and another node may answer. The words
//! of the cluster are passed on for people; only the status decides.

use std::sync::Arc;

use super::connect::Complaint;
use super::{Common, Target, every};
use crate::decision::{Input, RestOutcome};
use crate::dial::{DialError, Dialer};
use crate::replica::{Address, Database, Rest};

mod answer;
mod http;

pub use http::Patience;

use answer::Verdict;

/// Longest list of databases: some hundred of them, cut down to three fields.
const LIST_MAX: usize = 1024 * 1024;
/// Longest answer about one database.
const ANSWER_MAX: usize = 64 * 1024;

/// Asks a cluster's REST API about one replica's database.
#[derive(Clone, Debug)]
pub struct RestCheck {
    rest: Arc<Rest>,
    /// Where the replica itself is reached.
    replica: Address,
    dialer: Dialer,
    /// The database's number, once known.
    uid: Option<u64>,
}

impl RestCheck {
    /// A check as `rest` says of the database reached at `replica`. Reads the TLS files.
    ///
    /// # Errors
    /// Those of [`Dialer::new`].
    pub fn new(rest: Arc<Rest>, replica: Address) -> Result<RestCheck, DialError> {
        Ok(RestCheck {
            dialer: Dialer::new(Arc::clone(&rest.endpoint))?,
            uid: match rest.database {
                Database::Uid(uid) => Some(uid),
                Database::Auto => None,
            },
            rest,
            replica,
        })
    }

    /// The number of the database, once it is known.
    pub fn uid(&self) -> Option<u64> {
        self.uid
    }

    /// Asks once; each question of it has `patience`.
    pub async fn ask(&mut self, patience: Patience) -> RestOutcome {
        match self.answer(patience).await {
            Ok(outcome) => outcome,
            Err(why) => RestOutcome::Unknown(why),
        }
    }

    async fn answer(&mut self, patience: Patience) -> Result<RestOutcome, String> {
        let is_auto = self.rest.database == Database::Auto;
        loop {
            let is_remembered = is_auto && self.uid.is_some();
            let words = match self.availability(patience).await? {
                Verdict::Said(outcome) => return Ok(outcome),
                Verdict::NoSuchDatabase(words) => words,
            };
            if is_auto {
                self.uid = None;
            }
            // One that was found a moment ago would only be found again.
            if !is_remembered {
                return Err(format!("the cluster does not know the database: {words}"));
            }
        }
    }

    async fn availability(&mut self, patience: Patience) -> Result<Verdict, String> {
        let uid = match self.uid {
            Some(uid) => uid,
            None => {
                let path = "/v1/bdbs?fields=uid,name,endpoints";
                let list = http::get(&self.dialer, path, LIST_MAX, patience).await?;
                let uid = answer::found(&list, &self.replica)?;
                self.uid = Some(uid);
                uid
            }
        };
        let path = if self.rest.local {
            format!("/v1/local/bdbs/{uid}/endpoint/availability")
        } else {
            format!("/v1/bdbs/{uid}/availability")
        };
        let tolerance = self.rest.lag_tolerance.as_millis();
        let path = format!("{path}?extend_check=lag&availability_lag_tolerance_ms={tolerance}");
        let answer = http::get(&self.dialer, &path, ANSWER_MAX, patience).await?;
        Ok(answer::availability(&answer))
    }
}

/// Asks again and again.
pub(super) struct Asking {
    common: Arc<Common>,
    target: Arc<Target>,
    check: RestCheck,
    complaint: Complaint,
}

impl Asking {
    pub(super) fn new(common: Arc<Common>, target: Arc<Target>, check: RestCheck) -> Asking {
        Asking {
            complaint: Complaint::new("the REST check", &target.name),
            common,
            target,
            check,
        }
    }

    pub(super) async fn run(mut self) {
        let mut due = every(self.check.rest.interval);
        loop {
            due.tick().await;
            let pace = self.common.pace();
            let before = self.check.uid;
            let patience = Patience {
                connect: pace.connect_timeout,
                answer: pace.answer_timeout,
            };
            let outcome = self.check.ask(patience).await;
            if let Some(uid) = self.check.uid.filter(|_| before != self.check.uid) {
                tracing::info!(replica = %self.target.name, uid, "its cluster has it as database {uid}");
            }
            match &outcome {
                RestOutcome::Unknown(why) => self.complaint.failed(why),
                RestOutcome::Available | RestOutcome::Unavailable(_) => self.complaint.works(),
            }
            let replica = self.target.id;
            self.common.report(Input::Rest { replica, outcome }).await;
        }
    }
}
