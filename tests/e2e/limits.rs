//! Limits and hygiene: applications that do not read, slow replies, dead peers, the end of the process, replicas that let
//! nobody in.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::support::{App, PATIENCE, Sidecar, now, two_regions};

fn disconnected(reason: &str) -> String {
    format!("pulsegate_clients_disconnected_total{{reason=\"{reason}\"}}")
}

async fn until(sidecar: &Sidecar, counter: &str, wished: f64) {
    let began = now();
    while sidecar.counter(counter).await != wished {
        let is = sidecar.counter(counter).await;
        assert!(began.elapsed() < PATIENCE, "{counter} is {is}, not {wished}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_read_is_disconnected() {
    let rig = two_regions().await;
    let toml = "[listener]\nbind = [\"127.0.0.1:0\"]\noutput_limit = \"2MiB\"\n";
    let sidecar = Sidecar::start(&rig, "balanced", toml).await;
    let mut app = App::connect(sidecar.addr).await;
    assert_eq!(app.ask(&["SET", "big", &"v".repeat(1_000_000)]).await, "+OK\r\n");
    let mut deaf = App::connect(sidecar.addr).await;
    deaf.send(&b"GET big\r\n".repeat(100)).await;
    until(&sidecar, &disconnected("output_limit"), 1.0).await;
    assert!(sidecar.log_contains("disconnected: the application does not read"));
    // One that hears what it has not asked for.
    let mut deaf = App::connect(sidecar.addr).await;
    assert!(deaf.ask(&["SUBSCRIBE", "news"]).await.contains("subscribe"));
    let news = "n".repeat(100_000);
    let began = now();
    while sidecar.counter(&disconnected("output_limit")).await < 2.0 {
        app.ask(&["PUBLISH", "news", &news]).await;
        assert!(began.elapsed() < PATIENCE, "the subscriber is not disconnected");
    }
    // What came before the limit is no reason to read on for ever.
    assert_eq!(app.ask(&["PING"]).await, "+PONG\r\n");
}

/// One long reply is one reply, however slowly it is read.
#[tokio::test(flavor = "multi_thread")]
async fn a_reply_beyond_the_limit_is_no_crime() {
    let rig = two_regions().await;
    let toml = "[listener]\nbind = [\"127.0.0.1:0\"]\noutput_limit = \"2MiB\"\n";
    let sidecar = Sidecar::start(&rig, "balanced", toml).await;
    let mut app = App::connect(sidecar.addr).await;
    let value = "v".repeat(40_000_000);
    assert_eq!(app.ask(&["SET", "big", &value]).await, "+OK\r\n");
    app.send(b"GET big\r\nPING\r\n").await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(app.hear().await.len(), value.len() + "$40000000\r\n\r\n".len());
    assert_eq!(app.hear().await, "+PONG\r\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn waiting_for_a_deaf_application_costs_no_cpu() {
    let rig = two_regions().await;
    let sidecar = Sidecar::start(&rig, "balanced", "").await;
    let mut app = App::connect(sidecar.addr).await;
    assert_eq!(app.ask(&["SET", "big", &"v".repeat(20_000_000)]).await, "+OK\r\n");
    app.say(&["GET", "big"]).await;
    app.wait_readable().await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    let before = sidecar.cpu();
    tokio::time::sleep(Duration::from_secs(2)).await;
    let used = sidecar.cpu() - before;
    println!("CPU in 2 s with a deaf application: {used:?}");
    assert!(used < Duration::from_millis(400), "{used:?} of 2 s");
}

#[tokio::test(flavor = "multi_thread")]
async fn only_a_silent_link_is_condemned() {
    let rig = two_regions().await;
    let text = format!(
        "[detection]\nprofile = \"patient\"\nresponse_timeout = \"700ms\"\n\
         [[replica]]\nname = \"local\"\nurl = \"{}\"\n[[replica]]\nname = \"remote\"\nurl = \"{}\"\n",
        rig.region("local").url(),
        rig.region("remote").url()
    );
    let sidecar = Sidecar::configured(&text, "", None).await;
    let mut app = App::connect(sidecar.addr).await;
    let mut other = App::connect(sidecar.addr).await;
    let value = "v".repeat(100_000);
    assert_eq!(app.ask(&["SET", "long", &value]).await, "+OK\r\n");
    assert_eq!(other.ask(&["SET", "k", "1"]).await, "+OK\r\n");
    // About 2 s for the long reply, behind which another session's write waits all the time.
    rig.dribble("local", 5_000, Duration::from_millis(100))
        .await
        .unwrap();
    let began = now();
    app.say(&["GET", "long"]).await;
    other.say(&["INCR", "k"]).await;
    assert_eq!(app.hear().await.len(), value.len() + "$100000\r\n\r\n".len());
    assert_eq!(other.hear().await, ":2\r\n", "it waited {:?}", began.elapsed());
    assert!(
        began.elapsed() > Duration::from_millis(1400),
        "slower than the time-out: {:?}",
        began.elapsed()
    );
    assert_eq!(
        sidecar.counter("pulsegate_commands_unknown_outcome_total").await,
        0.0
    );
    rig.heal_network("local").await.unwrap();
    // Not a byte arrives.
    rig.hang("local").await.unwrap();
    let began = now();
    assert!(other.ask(&["INCR", "k"]).await.starts_with("-OUTCOMEUNKNOWN"));
    let took = began.elapsed();
    assert!(
        (650..1400).contains(&took.as_millis()),
        "condemned after {took:?}"
    );
    rig.unhang("local").await.unwrap();
    // A blocked command may be silent as long as it likes.
    app.say(&["BLPOP", "none", "0"]).await;
    assert_eq!(
        app.try_hear(Duration::from_millis(1500)).await,
        Err("silence".into())
    );
}

/// What the kernel is told about every connection: by the process's own sockets, looked at from outside.
#[tokio::test(flavor = "multi_thread")]
async fn the_kernel_watches_both_sides() {
    const LOOK: &str = r"
import ctypes, os, socket, sys
pid = int(sys.argv[1])
libc = ctypes.CDLL(None, use_errno=True)
pidfd = os.pidfd_open(pid)
for fd in sorted(int(f) for f in os.listdir(f'/proc/{pid}/fd')):
    if not os.readlink(f'/proc/{pid}/fd/{fd}').startswith('socket:'):
        continue
    own = libc.syscall(438, pidfd, fd, 0)
    assert own >= 0, os.strerror(ctypes.get_errno())
    s = socket.socket(fileno=own)
    if s.family != socket.AF_INET:
        continue
    try:
        peer = s.getpeername()[1]
    except OSError:
        continue
    tcp = lambda option: s.getsockopt(socket.IPPROTO_TCP, option)
    print(s.getsockname()[1], peer, s.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE), tcp(socket.TCP_KEEPIDLE),
          tcp(socket.TCP_KEEPINTVL), tcp(socket.TCP_KEEPCNT), tcp(socket.TCP_USER_TIMEOUT), tcp(socket.TCP_NODELAY))
";
    let rig = two_regions().await;
    let sidecar = Sidecar::start(&rig, "balanced", "").await;
    let mut app = App::connect(sidecar.addr).await;
    app.say(&["BLPOP", "none", "0"]).await;
    assert!(app.try_hear(Duration::from_millis(300)).await.is_err());
    let out = crate::python::run("-c")
        .arg(LOOK)
        .arg(sidecar.pid().to_string())
        .output()
        .unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let (mut applications, mut replicas) = (0, 0);
    let upstream: Vec<u16> = rig.regions().iter().map(|r| r.addr().port()).collect();
    for line in String::from_utf8(out.stdout).unwrap().lines() {
        let numbers: Vec<u64> = line.split(' ').map(|n| n.parse().unwrap()).collect();
        if numbers[0] == u64::from(sidecar.addr.port()) {
            applications += 1;
            assert_eq!(
                numbers[2..],
                [1, 60, 15, 4, 120_000, 1],
                "an application's connection"
            );
        } else if upstream.contains(&(numbers[1] as u16)) {
            replicas += 1;
            assert_eq!(
                numbers[2..],
                [1, 15, 5, 3, 30_000, 1],
                "a connection to a replica"
            );
        }
    }
    println!("{applications} connections of applications, {replicas} to replicas");
    assert!(applications == 1 && replicas >= 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_lets_what_is_sent_finish() {
    let rig = two_regions().await;
    let mut sidecar = Sidecar::start(&rig, "patient", "").await;
    assert_eq!(sidecar.code("/readyz").await, Some(200));
    let mut idle = App::connect(sidecar.addr).await;
    assert_eq!(idle.ask(&["PING"]).await, "+PONG\r\n");
    let mut blocked = App::connect(sidecar.addr).await;
    blocked.say(&["BLPOP", "none", "0"]).await;
    assert!(blocked.try_hear(Duration::from_millis(200)).await.is_err());
    let mut app = App::connect(sidecar.addr).await;
    app.send(&busy(800)).await;
    app.send(b"GET done\r\n").await;
    tokio::time::sleep(Duration::from_millis(150)).await;
    sidecar.terminate();
    let began = now();
    for app in [&mut idle, &mut blocked] {
        assert!(app.try_hear(PATIENCE).await.unwrap_err().starts_with("closed"));
    }
    assert!(
        began.elapsed() < Duration::from_millis(400),
        "nothing to finish: {:?}",
        began.elapsed()
    );
    assert_eq!(sidecar.code("/readyz").await, Some(503), "not ready any more");
    assert!(
        tokio::net::TcpStream::connect(sidecar.addr).await.is_err(),
        "nobody new is let in"
    );
    assert_eq!(app.hear().await, "+OK\r\n", "what was sent is answered");
    assert_eq!(app.hear().await, "$1\r\n1\r\n");
    assert_eq!(app.try_hear(PATIENCE).await, Err("closed".into()));
    let (code, _) = sidecar.ended().await;
    let took = began.elapsed();
    println!("drained and ended within {took:?}");
    assert_eq!(code, Some(0));
    assert!(took < Duration::from_secs(3), "{took:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_is_immediate() {
    let rig = two_regions().await;
    let mut sidecar = Sidecar::start(&rig, "patient", "").await;
    let mut app = App::connect(sidecar.addr).await;
    app.send(&busy(3000)).await;
    tokio::time::sleep(Duration::from_millis(150)).await;
    sidecar.terminate();
    assert_eq!(
        app.try_hear(Duration::from_millis(300)).await,
        Err("silence".into()),
        "it waits"
    );
    sidecar.terminate();
    let (code, took) = sidecar.ended().await;
    println!("ended {took:?} after the second signal");
    assert_eq!(code, Some(0));
    assert!(took < Duration::from_millis(1000), "{took:?}");
    assert!(app.try_hear(PATIENCE).await.unwrap_err().starts_with("closed"));
}

/// A command that keeps the replica busy for so many milliseconds.
fn busy(ms: u32) -> Vec<u8> {
    let script = format!(
        "local t = redis.call('TIME') local function ms() local n = redis.call('TIME') \
         return (n[1] - t[1]) * 1000 + (n[2] - t[2]) / 1000 end while ms() < {ms} do end \
         return redis.call('SET', 'done', 1)"
    );
    pulsegate::resp::encode_command(&[b"EVAL", script.as_bytes(), b"0"])
}

/// 200 sessions want connections of their own to a replica that closes what it accepts: connects come one at a time, with
/// growing pauses.
#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_hangs_up_is_not_stormed() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let accepted = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&accepted);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            count.fetch_add(1, Ordering::Relaxed);
            drop(stream);
        }
    });
    let replica = format!("[[replica]]\nname = \"only\"\nurl = \"redis://127.0.0.1:{port}\"\n");
    let sidecar = Sidecar::with_replicas(&replica, "balanced", "[hold]\ntimeout = \"1m\"\n").await;
    let mut apps = Vec::new();
    for _ in 0..200 {
        let mut app = App::connect(sidecar.addr).await;
        app.say(&["BLPOP", "list", "0"]).await;
        apps.push(app);
    }
    let connects = async || sidecar.counter("pulsegate_upstream_connects_total").await;
    let (all, own) = (accepted.load(Ordering::Relaxed), connects().await);
    tokio::time::sleep(Duration::from_secs(3)).await;
    let all = accepted.load(Ordering::Relaxed) - all;
    let own = connects().await - own;
    println!("in 3 s, with 200 sessions waiting: {own} connects of the data plane, {all} with the monitor's");
    assert!(own <= 20.0, "{own} connects in 3 s");
    assert!(own >= 3.0, "it goes on trying: {own}");
    assert!(all <= 80, "{all} connects in 3 s");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_refuses_is_not_stormed() {
    let port = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap().port()
    };
    let replica = format!("[[replica]]\nname = \"only\"\nurl = \"redis://127.0.0.1:{port}\"\n");
    let sidecar = Sidecar::with_replicas(&replica, "balanced", "[hold]\ntimeout = \"1m\"\n").await;
    let mut apps = Vec::new();
    for n in 0..200 {
        let mut app = App::connect(sidecar.addr).await;
        app.say(if n % 2 == 0 {
            &["BLPOP", "list", "0"]
        } else {
            &["GET", "k"]
        })
        .await;
        apps.push(app);
    }
    let refused = "pulsegate_upstream_connects_total{replica=\"only\",result=\"refused\"}";
    let before = sidecar.counter(refused).await;
    let used = sidecar.cpu();
    tokio::time::sleep(Duration::from_secs(3)).await;
    let refused = sidecar.counter(refused).await - before;
    let used = sidecar.cpu() - used;
    println!("in 3 s, with 200 sessions waiting: {refused} connects refused, {used:?} of CPU");
    assert!((3.0..=20.0).contains(&refused), "{refused} connects in 3 s");
}
