//! Sessions that each write a number of their own and read it back: whether any reads older than it wrote.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::task::JoinSet;

use crate::support::{App, PATIENCE, now};

/// What all sessions saw.
#[derive(Default, Debug)]
pub(crate) struct Checked {
    pub(crate) writes: u64,
    pub(crate) reads: u64,
    /// Reads of less than the session's own last acknowledged write.
    pub(crate) older: u64,
    /// One of them, in words.
    pub(crate) example: Option<String>,
    /// Error replies, and connections that were closed.
    pub(crate) errors: Vec<String>,
    /// The longest that a command took.
    pub(crate) longest: Duration,
}

/// After its write a session reads at once, and after each of these pauses; then it writes again.
const PAUSES: [Duration; 3] = [
    Duration::from_millis(100),
    Duration::from_millis(300),
    Duration::from_millis(600),
];

/// Sessions at work until told to stop.
pub(crate) struct Checker {
    stop: Arc<AtomicBool>,
    sessions: JoinSet<Checked>,
}

impl Checker {
    /// Connects so many, and starts them one after the other over one round.
    pub(crate) async fn start(addr: SocketAddr, count: usize) -> Checker {
        let stop = Arc::new(AtomicBool::new(false));
        let mut sessions = JoinSet::new();
        let round: Duration = PAUSES.iter().sum();
        for number in 0..count {
            let app = App::connect(addr).await;
            let begin = round * u32::try_from(number).expect("few") / u32::try_from(count).expect("few");
            sessions.spawn(session(app, number, begin, Arc::clone(&stop)));
        }
        Checker { stop, sessions }
    }

    /// Stops and sums up.
    pub(crate) async fn stop(self) -> Checked {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = Checked::default();
        for seen in self.sessions.join_all().await {
            all.writes += seen.writes;
            all.reads += seen.reads;
            all.older += seen.older;
            all.example = all.example.or(seen.example);
            all.errors.extend(seen.errors);
            all.longest = all.longest.max(seen.longest);
        }
        all
    }
}

async fn session(mut app: App, number: usize, begin: Duration, stop: Arc<AtomicBool>) -> Checked {
    let mut seen = Checked::default();
    let key = format!("own:{number}");
    tokio::time::sleep(begin).await;
    for value in 1_u64.. {
        if stop.load(Ordering::Relaxed) || !seen.errors.is_empty() {
            break;
        }
        let text = value.to_string();
        match asked(&mut app, &["SET", &key, &text], &mut seen).await.as_deref() {
            Some("+OK\r\n") => seen.writes += 1,
            other => seen.errors.extend(other.map(str::to_owned)),
        }
        for pause in std::iter::once(Duration::ZERO).chain(PAUSES) {
            tokio::time::sleep(pause).await;
            let Some(reply) = asked(&mut app, &["GET", &key], &mut seen).await else {
                break;
            };
            seen.reads += 1;
            // A bulk string, or nil.
            let read = reply
                .split("\r\n")
                .nth(1)
                .and_then(|read| read.parse::<u64>().ok());
            if reply.starts_with('-') {
                seen.errors.push(reply);
            } else if read.unwrap_or(0) < value {
                seen.older += 1;
                seen.example = Some(format!(
                    "session {number} wrote {value} and read {reply:?} {pause:?} later"
                ));
            }
        }
    }
    seen
}

async fn asked(app: &mut App, words: &[&str], seen: &mut Checked) -> Option<String> {
    let began = now();
    app.say(words).await;
    let reply = app.try_hear(PATIENCE).await;
    seen.longest = seen.longest.max(began.elapsed());
    reply.map_err(|error| seen.errors.push(error)).ok()
}
