//! Every fault that the rig can bring about, on two and three replicas, divided and not: what Pulsegate says, how soon,
//! and what it does. The table in `docs/faults.md` is written by this test.
//!
//! To write it anew: `RENEW_FAULT_TABLE=1 cargo nextest run --test e2e every_fault`.

#[path = "faults/cases.rs"]
mod cases;
#[path = "faults/page.rs"]
mod page;

use std::sync::Arc;
use std::time::Duration;

use rig::Rig;
use serde_json::Value;
use tokio::sync::Semaphore;

use crate::support::{Sidecar, now};
use crate::witness::{events, says, switches, text, together, unix_ms, wait_well};
use cases::{Fault, MARGIN, NEXT, Place};

/// Cases at once: most of their time they wait.
const AT_ONCE: usize = 8;

/// How long a case goes on after it was seen: nothing may change any more.
const WATCH: Duration = Duration::from_millis(1200);

const POLL: Duration = Duration::from_millis(20);

/// What was seen of one case.
#[derive(Debug)]
struct Row {
    fault: Fault,
    place: Place,
    says: String,
    said: Duration,
    does: String,
    moved: Option<Duration>,
}

fn since(began: u64, at: u64) -> Duration {
    Duration::from_millis(at.saturating_sub(began))
}

/// What was done: in words, and when.
fn done(status: &Value, began: u64) -> (String, Option<Duration>) {
    let moves = switches(status).iter().map(|switch| {
        let (to, reason) = (text(&switch["to"]), text(&switch["reason"]));
        format!("goes to `{to}`: {reason}")
    });
    let first = switches(status).first().and_then(|switch| switch["at"].as_u64());
    match moves.collect::<Vec<_>>().join(", then ") {
        none if none.is_empty() => ("stays".to_owned(), None),
        moves => (moves, first.map(|at| since(began, at))),
    }
}

/// Says when it goes that another case may begin.
struct Calm(Arc<Semaphore>);

impl Drop for Calm {
    fn drop(&mut self) {
        self.0.add_permits(1);
    }
}

async fn case(fault: Fault, place: Place, calm: Option<Calm>) -> Result<Row, String> {
    let rig = Rig::start(place.rig()).await.expect("the rig starts");
    let sidecar = Sidecar::start(&rig, "fast", fault.toml()).await;
    wait_well(&sidecar, &vec![place.form.shards(); place.regions]).await;
    let promise = fault.promise(place);
    let goes = |reason: &str| format!("goes to `{NEXT}`: {reason}");
    let wished = promise
        .leaves
        .map_or("stays".to_owned(), |(reasons, _)| goes(reasons));
    let is_wished = |does: &str| match promise.leaves {
        None => does == wished,
        Some((reasons, _)) => reasons.split(" or ").any(|reason| does == goes(reason)),
    };
    fault.prepare(&sidecar).await;
    drop(calm);
    let began = fault.inflict(&rig, &sidecar).await;
    let (started, mut timeline, mut said) = (now(), Vec::new(), None);
    let mut over = promise
        .said_within
        .max(promise.leaves.map_or(Duration::ZERO, |(_, within)| within))
        + MARGIN;
    let row = loop {
        let status = sidecar.status().await;
        let (words, (does, moved)) = (says(&status), done(&status, began));
        let moment = since(began, unix_ms());
        let line = format!("{words}; {does}");
        if timeline.last().is_none_or(|(_, known, _)| *known != line) {
            timeline.push((moment, line, reasons(&status)));
        }
        let because = text(&status["replicas"][0]["reason"]).contains(promise.because);
        let as_wished = match promise.lasting {
            true => words == promise.says,
            false => words.starts_with(&promise.says),
        };
        if as_wished && because && is_wished(&does) && said.is_none() {
            said = Some(moment);
            over = started.elapsed() + WATCH;
        }
        let row = Row {
            fault,
            place,
            says: words,
            said: said.unwrap_or(moment),
            does,
            moved,
        };
        if started.elapsed() > over {
            break row;
        }
        tokio::time::sleep(POLL).await;
    };
    let mut wrong = Vec::new();
    match said {
        None => wrong.push("not said and done in time".to_owned()),
        Some(said) if said > promise.said_within + MARGIN => {
            wrong.push(format!("said after {said:?}, not {:?}", promise.said_within));
        }
        Some(_) => {}
    }
    if promise.lasting && row.says != promise.says {
        wrong.push(format!("does not go on to say {:?}", promise.says));
    }
    if !is_wished(&row.does) {
        wrong.push(format!("not: {wished}"));
    }
    if let (Some((_, within)), Some(moved)) = (promise.leaves, row.moved)
        && moved > within + MARGIN
    {
        wrong.push(format!("moved after {moved:?}, not {within:?}"));
    }
    if let Some(kind) = promise.told
        && !events(&sidecar).await.iter().any(|event| event["kind"] == kind)
    {
        wrong.push(format!("no event tells of {kind}"));
    }
    if wrong.is_empty() {
        return Ok(Row {
            says: promise.says,
            does: wished,
            ..row
        });
    }
    let seen = timeline
        .iter()
        .map(|(moment, line, reasons)| format!("\n  {moment:?}: {line}\n    {reasons}"));
    let seen: String = seen.collect();
    Err(format!("{} ({place}): {}{seen}", fault.words(), wrong.join("; ")))
}

fn reasons(status: &Value) -> String {
    let replicas = status["replicas"].as_array().expect("replicas");
    let reasons: Vec<&str> = replicas.iter().map(|replica| text(&replica["reason"])).collect();
    reasons.join(" | ")
}

#[tokio::test(flavor = "multi_thread")]
async fn every_fault_is_said_and_answered_as_promised() {
    let places = |fault: Fault| Place::ALL.into_iter().filter(move |place| fault.fits(*place));
    let calm = Arc::new(Semaphore::new(0));
    let need = u32::try_from(places(Fault::NetworkSlow).count()).expect("few");
    let cases = Fault::ALL.into_iter().flat_map(|fault| {
        let calm = &calm;
        places(fault).map(move |place| {
            let calm = Arc::clone(calm);
            let seen = async move {
                if fault == Fault::NetworkSlow {
                    return case(fault, place, Some(Calm(calm))).await;
                }
                // What is usual is learnt before everything else makes the machine busy.
                drop(calm.acquire_many(need).await.expect("open"));
                case(fault, place, None).await
            };
            (format!("{fault:?} ({place})"), seen)
        })
    });
    let (mut rows, mut wrong) = (Vec::new(), Vec::new());
    for seen in together(AT_ONCE, cases).await {
        match seen {
            Ok(row) => rows.push(row),
            Err(words) => wrong.push(words),
        }
    }
    rows.sort_by_key(|row| row.fault);
    for row in &rows {
        println!("{row:?}");
    }
    assert!(wrong.is_empty(), "{} cases:\n{}", wrong.len(), wrong.join("\n"));
    if std::env::var_os("RENEW_FAULT_TABLE").is_some() {
        page::renew(&rows);
    } else {
        page::compare(&rows);
    }
}
