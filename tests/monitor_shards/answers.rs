//! Servers that answer CLUSTER in ways of their own: none at all, and answers that change.

use std::sync::{Arc, Mutex};

use pulsegate::resp::{RequestScanner, Scan};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::redis_server::Server;
use super::*;

/// In front of a server: what begins with CLUSTER is answered as the test says, everything else is the server's.
struct Teller {
    port: u16,
    answer: Arc<Mutex<Answer>>,
    task: tokio::task::JoinHandle<()>,
}

/// What CLUSTER SLOTS is answered with, and how often it was.
struct Answer {
    slots: String,
    given: usize,
}

impl Drop for Teller {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Teller {
    async fn start(server: &Server, slots: &str) -> Teller {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (slots, given) = (slots.to_owned(), 0);
        let answer = Arc::new(Mutex::new(Answer { slots, given }));
        let (told, behind) = (Arc::clone(&answer), server.port);
        let task = tokio::spawn(async move {
            loop {
                let (app, _) = listener.accept().await.unwrap();
                tokio::spawn(serve(app, behind, Arc::clone(&told)));
            }
        });
        Teller { port, answer, task }
    }

    fn say(&self, slots: &str) {
        slots.clone_into(&mut self.answer.lock().unwrap().slots);
    }

    /// Says so, and has it read.
    async fn tell(&self, slots: &str, sidecar: &Sidecar, replica: ReplicaId) {
        self.say(slots);
        let before = self.answer.lock().unwrap().given;
        let deadline = Instant::now() + PATIENCE;
        while self.answer.lock().unwrap().given == before {
            assert!(Instant::now() < deadline, "nobody asks");
            sidecar.monitor.reread(replica);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

/// A connection asks for the layout and nothing else, or never.
async fn serve(mut app: TcpStream, behind: u16, answer: Arc<Mutex<Answer>>) {
    let mut received = Vec::new();
    while received.len() < 20 {
        if app.read_buf(&mut received).await.unwrap_or(0) == 0 {
            return;
        }
        if !received.starts_with(&b"*2\r\n$7\r\nCLUSTER\r\n"[..received.len().min(17)]) {
            let Ok(mut server) = TcpStream::connect(("127.0.0.1", behind)).await else {
                return;
            };
            if server.write_all(&received).await.is_ok() {
                let _ = tokio::io::copy_bidirectional(&mut app, &mut server).await;
            }
            return;
        }
    }
    let mut scanner = RequestScanner::new();
    loop {
        while let Ok(Scan::Complete(request)) = scanner.scan(&received) {
            let slots = received[..request.len].windows(5).any(|word| word == b"SLOTS");
            received.drain(..request.len);
            let answer = match slots {
                true => {
                    let mut answer = answer.lock().unwrap();
                    answer.given += 1;
                    answer.slots.clone()
                }
                false => "-ERR Unknown subcommand or wrong number of arguments for 'SHARDS'\r\n".to_owned(),
            };
            if app.write_all(answer.as_bytes()).await.is_err() {
                return;
            }
        }
        if app.read_buf(&mut received).await.unwrap_or(0) == 0 {
            return;
        }
    }
}

/// The answer to CLUSTER SLOTS of so many equal shards, all at the address that was asked.
fn slots(shards: u16) -> String {
    let layout = Layout::even(shards);
    let mut answer = format!("*{shards}\r\n");
    for (id, shard) in layout.shards() {
        let range = shard.slots[0];
        answer += &format!(
            "*3\r\n:{}\r\n:{}\r\n*3\r\n$0\r\n\r\n:6379\r\n$2\r\nn{}\r\n",
            range.first, range.last, id.0
        );
    }
    answer
}

const REFUSED: &str = "-ERR This instance has cluster support disabled\r\n";

fn places(local: &Teller, remote: &Teller) -> Vec<Place> {
    vec![Place::new("local", local.port), Place::new("remote", remote.port)]
}

async fn shards(sidecar: &mut Sidecar, wanted: [usize; 2]) -> Arc<Status> {
    sidecar
        .until("the shards", |status| {
            let shards = status.replicas.iter().map(|replica| replica.shards.len());
            shards.eq(wanted)
        })
        .await
}

/// The names behind the tags, of the channels that somebody listens for.
async fn listened(server: &Server) -> BTreeSet<String> {
    let mut connection = server.connect().await;
    let mut pubsub = redis::cmd("PUBSUB");
    pubsub.arg("CHANNELS").arg("pulsegate:hb:*");
    channels(pubsub.query_async(&mut connection)).await
}

#[tokio::test]
async fn a_layout_that_changes_changes_the_channels_and_alarms_nobody() {
    // Two names of one server: what is published by one arrives at both.
    let server = Server::start(&[]).await;
    let (local, remote) = (
        Teller::start(&server, &slots(3)).await,
        Teller::start(&server, &slots(2)).await,
    );
    let mut sidecar = Sidecar::start(places(&local, &remote), policy());
    sidecar.settled().await;
    shards(&mut sidecar, [3, 2]).await;
    assert_eq!(listened(&server).await.len(), 2 * pairs(3, 2).len());
    sidecar.told(&[]);

    for (new, nodes) in [(6, 2), (1, 2), (4, 2)] {
        local.tell(&slots(new), &sidecar, ReplicaId(0)).await;
        shards(&mut sidecar, [usize::from(new), nodes]).await;
        // Whole windows later nothing is missed either.
        let settled = Instant::now() + policy().heartbeat_timeout * 2;
        while Instant::now() < settled {
            tokio::time::sleep(policy().heartbeat_interval).await;
            let told = sidecar.told(&["health", "link", "switch"]);
            let worse: Vec<_> = told.iter().filter(|words| !words.contains(" is up: ")).collect();
            assert!(worse.is_empty(), "{worse:?}");
        }
        let status = sidecar.settled().await;
        assert_eq!(down(&status), Down::new());
        assert_eq!(
            listened(&server).await.len(),
            2 * pairs(new, 2).len(),
            "old channels are left"
        );
    }
    let layouts = sidecar.monitor.layouts();
    assert_eq!(layouts.borrow()[0], Layout::even(4));
}

#[tokio::test]
async fn an_answer_that_does_not_add_up_changes_nothing() {
    let server = Server::start(&[]).await;
    let (local, remote) = (
        Teller::start(&server, &slots(3)).await,
        Teller::start(&server, REFUSED).await,
    );
    let log = Log::begin();
    let mut sidecar = Sidecar::start(places(&local, &remote), policy());
    shards(&mut sidecar, [3, 1]).await;
    sidecar.settled().await;
    let overlapping =
        "*2\r\n*3\r\n:0\r\n:9\r\n*2\r\n$1\r\na\r\n:1\r\n*3\r\n:5\r\n:16383\r\n*2\r\n$1\r\nb\r\n:1\r\n";
    for (answer, words) in [
        (
            overlapping,
            "CLUSTER SLOTS: slots 0-9 and 5-16383 overlap; the layout stays as it was",
        ),
        (
            "*0\r\n",
            "CLUSTER SLOTS: no shard owns a slot; the layout stays as it was",
        ),
        (
            "+OK\r\n",
            "CLUSTER SLOTS: the reply is no list but something else",
        ),
    ] {
        local.tell(answer, &sidecar, ReplicaId(0)).await;
        log.until(words).await;
    }
    local.tell(REFUSED, &sidecar, ReplicaId(0)).await;
    local.tell(&slots(4), &sidecar, ReplicaId(0)).await;
    shards(&mut sidecar, [4, 1]).await;
    let told = sidecar.told(&["layout"]);
    assert_eq!(told.len(), 2, "three, then four, and nothing between: {told:?}");
}

#[tokio::test]
async fn a_server_without_cluster_commands_is_one_shard_and_no_cluster() {
    let server = Server::start(&[]).await;
    let log = Log::begin();
    let mut local = Place::new("local", server.port);
    local.topology.kind = TopologyKind::Cluster;
    let mut sidecar = Sidecar::start(vec![local, Place::new("remote", server.port)], policy());
    let status = sidecar.settled().await;
    assert_eq!(status.replicas[0].shards.len(), 1);
    assert_eq!(status.replicas[0].shards[0].slots, "0-16383");
    log.until("topology = \"cluster\", but CLUSTER SHARDS was refused: ERR This instance has cluster support disabled")
        .await;
    let of_the_other = log
        .text()
        .lines()
        .any(|line| line.contains("layout") && line.contains("replica=remote"));
    assert!(!of_the_other, "nothing is wrong there: {}", log.text());
}

#[tokio::test]
async fn a_replica_that_is_silent_delays_the_heartbeats_of_no_other() {
    let server = Server::start(&[]).await;
    let hung = Server::start(&[]).await;
    hung.signal("-STOP");
    let began = Instant::now();
    let places = vec![Place::new("local", server.port), Place::new("remote", hung.port)];
    // Whoever waits for the other's answer waits so long.
    let patient = Policy {
        heartbeat_timeout: Duration::from_secs(10),
        ..policy()
    };
    let mut sidecar = Sidecar::start(places, patient);
    sidecar
        .until("the first echo", |status| {
            status.replicas[0]
                .links
                .iter()
                .any(|link| link.to == "local" && link.up)
        })
        .await;
    let took = began.elapsed();
    println!("first echo beside a hung replica: {took:?}");
    assert!(took < Duration::from_secs(3), "{took:?}");
    hung.signal("-CONT");
}

/// What this thread logs.
struct Log {
    text: Arc<Mutex<Vec<u8>>>,
    _guard: tracing::subscriber::DefaultGuard,
}

impl Log {
    fn begin() -> Log {
        let text = Arc::new(Mutex::new(Vec::new()));
        let writer = Arc::clone(&text);
        let subscriber = tracing_subscriber::fmt()
            .with_ansi(false)
            .with_writer(move || Writer(Arc::clone(&writer)))
            .finish();
        Log {
            text,
            _guard: tracing::subscriber::set_default(subscriber),
        }
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.text.lock().unwrap()).into_owned()
    }

    async fn until(&self, words: &str) {
        let deadline = Instant::now() + PATIENCE;
        while !self.text().contains(words) {
            assert!(
                Instant::now() < deadline,
                "never logged: {words}\n{}",
                self.text()
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

struct Writer(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Writer {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
