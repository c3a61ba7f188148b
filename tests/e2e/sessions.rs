//! A switch in the middle of every kind of session: promises 1 to 4.
//!
//! Each kind is one function, and meets three switches: the replica is killed, hangs, or is left as planned.

use std::time::Duration;

use crate::support::{PATIENCE, now};
use crate::switches::{How, UNKNOWN, World, pipelines, sees, subscriptions};

/// What a transaction that lost its replica ends in.
const ABORTED: &str = "-EXECABORT Transaction discarded because its replica was lost before EXEC\r\n";
/// What a blocked command ends in.
const UNBLOCKED: &str =
    "-UNBLOCKED force unblock from blocking operation, instance state changed (master -> replica?)\r\n";
/// A test for each way to switch.
macro_rules! kinds {
    ($($kind:ident),+ $(,)?) => {$(
        mod $kind {
            use crate::switches::{How, World};

            #[tokio::test(flavor = "multi_thread")]
            async fn killed() {
                super::kind::$kind(&World::new(How::Killed, super::kind_toml(stringify!($kind))).await).await;
            }
            #[tokio::test(flavor = "multi_thread")]
            async fn hung() {
                super::kind::$kind(&World::new(How::Hung, super::kind_toml(stringify!($kind))).await).await;
            }
            #[tokio::test(flavor = "multi_thread")]
            async fn planned() {
                super::kind::$kind(&World::new(How::Planned, super::kind_toml(stringify!($kind))).await).await;
            }
        }
    )+};
}

/// What a kind needs in the configuration.
fn kind_toml(kind: &str) -> &'static str {
    if kind.starts_with("own_") {
        "[upstream]\nmode = \"dedicated\"\n"
    } else {
        ""
    }
}

kinds!(
    plain,
    pipelined,
    own_pipelined,
    multi_before_exec,
    multi_exec_sent,
    watch,
    blpop,
    subscribe,
    psubscribe,
    ssubscribe,
    monitor,
    tracking,
    tracking_redirected,
    reply_off,
    reply_skip,
    large_reply_unread,
    own_large_reply_unread,
    scripts,
    identity,
);

mod kind {
    use super::*;

    pub(super) async fn plain(world: &World) {
        let mut idle = world.app().await;
        let mut app = world.app().await;
        assert_eq!(app.ask(&["SET", "k", "1"]).await, "+OK\r\n");
        // One that has never said a word is not closed either.
        world.switch().await;
        assert_eq!(app.ask(&["SET", "k", "2"]).await, "+OK\r\n");
        assert_eq!(idle.ask(&["GET", "k"]).await, "$1\r\n2\r\n");
        assert_eq!(world.number("remote", &["GET", "k"]).await, 2);
    }

    pub(super) async fn pipelined(world: &World) {
        pipelines(world, 1000, 4).await;
    }

    pub(super) async fn own_pipelined(world: &World) {
        pipelines(world, 1000, 4).await;
    }

    pub(super) async fn multi_before_exec(world: &World) {
        let mut app = world.app().await;
        assert_eq!(app.ask(&["MULTI"]).await, "+OK\r\n");
        assert_eq!(app.ask(&["RPUSH", "half", "1"]).await, "+QUEUED\r\n");
        world.switch().await;
        assert_eq!(app.ask(&["RPUSH", "half", "2"]).await, "+QUEUED\r\n");
        assert_eq!(app.ask(&["EXEC"]).await, ABORTED);
        assert_eq!(app.ask(&["EXISTS", "half"]).await, ":0\r\n");
        // RESET ends one as well as EXEC does, and the next is a transaction as any.
        app.send(b"MULTI\r\nRPUSH half 3\r\nEXEC\r\n").await;
        for reply in ["+OK\r\n", "+QUEUED\r\n", "*1\r\n:1\r\n"] {
            assert_eq!(app.hear().await, reply);
        }
    }

    /// EXEC is on its way, together with all of its transaction, when the replica goes.
    pub(super) async fn multi_exec_sent(world: &World) {
        let mut app = world.app().await;
        assert_eq!(app.ask(&["SET", "n", "0"]).await, "+OK\r\n");
        if world.how == How::Planned {
            // What is sent finishes first.
            let slow = "local t = redis.call('TIME') local function ms() local n = redis.call('TIME') \
                        return (n[1] - t[1]) * 1000 + (n[2] - t[2]) / 1000 end while ms() < 300 do end \
                        return redis.call('INCR', 'n')";
            // With a connection at hand, and in one go: a move may begin between any two reads.
            app.send(b"WATCH n\r\nUNWATCH\r\n").await;
            for _ in 0..2 {
                assert_eq!(app.hear().await, "+OK\r\n");
            }
            let transaction = [
                &[&b"MULTI"[..]][..],
                &[b"EVAL", slow.as_bytes(), b"0"],
                &[b"EXEC"],
            ];
            app.send(&transaction.map(pulsegate::resp::encode_command).concat())
                .await;
            world.switch().await;
            for reply in ["+OK\r\n", "+QUEUED\r\n", "*1\r\n:1\r\n"] {
                assert_eq!(app.hear().await, reply);
            }
            world.until(&["GET", "n"], 1).await;
            return;
        }
        // With a connection at hand, or nothing would be sent before the replica goes.
        app.send(b"WATCH n\r\nUNWATCH\r\n").await;
        assert_eq!(
            (app.hear().await, app.hear().await),
            ("+OK\r\n".into(), "+OK\r\n".into())
        );
        world.rig.hang("local").await.unwrap();
        app.send(b"MULTI\r\nINCR n\r\nINCR n\r\nEXEC\r\nGET n\r\n").await;
        world.quiet(&mut app).await;
        world.switch().await;
        for reply in ["+OK\r\n", "+QUEUED\r\n", "+QUEUED\r\n", UNKNOWN, "$1\r\n0\r\n"] {
            assert_eq!(app.hear().await, reply, "nothing is sent twice");
        }
    }

    pub(super) async fn watch(world: &World) {
        let mut app = world.app().await;
        let mut three = world.app().await;
        assert!(three.ask(&["HELLO", "3"]).await.starts_with('%'));
        for app in [&mut app, &mut three] {
            assert_eq!(app.ask(&["WATCH", "w"]).await, "+OK\r\n");
        }
        world.switch().await;
        for (app, nil) in [(&mut app, "*-1\r\n"), (&mut three, "_\r\n")] {
            app.send(b"MULTI\r\nSET w 1\r\nEXEC\r\nEXISTS w\r\n").await;
            for reply in ["+OK\r\n", "+QUEUED\r\n", nil, ":0\r\n"] {
                assert_eq!(app.hear().await, reply);
            }
            // The next one is watched as any.
            app.send(b"WATCH w\r\nMULTI\r\nSET w2 1\r\nEXEC\r\n").await;
            for reply in ["+OK\r\n", "+OK\r\n", "+QUEUED\r\n", "*1\r\n+OK\r\n"] {
                assert_eq!(app.hear().await, reply);
            }
        }
    }

    pub(super) async fn blpop(world: &World) {
        let mut app = world.app().await;
        app.say(&["BLPOP", "list", "0"]).await;
        world.until_blocked("local").await;
        world.switch().await;
        assert_eq!(app.hear().await, UNBLOCKED);
        app.say(&["BLPOP", "list", "0"]).await;
        world.until_blocked("remote").await;
        world.on("remote", &["RPUSH", "list", "x"]).await;
        assert_eq!(app.hear().await, "*2\r\n$4\r\nlist\r\n$1\r\nx\r\n");
        assert_eq!(app.ask(&["PING"]).await, "+PONG\r\n");
    }

    pub(super) async fn subscribe(world: &World) {
        subscriptions(world, "SUBSCRIBE", "PUBLISH", ["NUMSUB", "d"]).await;
    }

    pub(super) async fn psubscribe(world: &World) {
        subscriptions(world, "PSUBSCRIBE", "PUBLISH", ["NUMPAT", ""]).await;
    }

    pub(super) async fn ssubscribe(world: &World) {
        subscriptions(world, "SSUBSCRIBE", "SPUBLISH", ["SHARDNUMSUB", "d"]).await;
    }

    pub(super) async fn monitor(world: &World) {
        let mut watcher = world.app().await;
        let mut app = world.app().await;
        assert_eq!(watcher.ask(&["MONITOR"]).await, "+OK\r\n");
        sees(&mut watcher, &mut app, "before").await;
        world.switch().await;
        sees(&mut watcher, &mut app, "after").await;
    }

    pub(super) async fn tracking(world: &World) {
        let mut app = world.app().await;
        assert!(app.ask(&["HELLO", "3"]).await.starts_with('%'));
        assert_eq!(app.ask(&["CLIENT", "TRACKING", "ON"]).await, "+OK\r\n");
        assert_eq!(app.ask(&["GET", "t"]).await, "_\r\n");
        let mut broad = world.app().await;
        assert!(broad.ask(&["HELLO", "3"]).await.starts_with('%'));
        for prefix in ["a:", "b:"] {
            let on = ["CLIENT", "TRACKING", "ON", "BCAST", "PREFIX", prefix];
            assert_eq!(broad.ask(&on).await, "+OK\r\n");
        }
        world.switch().await;
        for app in [&mut app, &mut broad] {
            assert_eq!(
                app.hear().await,
                ">2\r\n$10\r\ninvalidate\r\n_\r\n",
                "everything may have changed"
            );
        }
        assert_eq!(app.ask(&["GET", "t"]).await, "_\r\n");
        assert!(broad.ask(&["CLIENT", "TRACKINGINFO"]).await.contains("bcast"));
        for key in ["t", "a:1", "b:1", "c:1"] {
            world.on("remote", &["SET", key, "1"]).await;
        }
        assert_eq!(app.hear().await, ">2\r\n$10\r\ninvalidate\r\n*1\r\n$1\r\nt\r\n");
        for key in ["a:1", "b:1"] {
            assert_eq!(
                broad.hear().await,
                format!(">2\r\n$10\r\ninvalidate\r\n*1\r\n$3\r\n{key}\r\n")
            );
        }
        world.quiet(&mut app).await;
        world.quiet(&mut broad).await;
    }

    /// The replica's client id that ties the two connections dies with it. Both are closed, the listener after it has
    /// been told to forget all: a cache that is never again told anything must not live on.
    pub(super) async fn tracking_redirected(world: &World) {
        let mut hears = world.app().await;
        let id = hears.ask(&["CLIENT", "ID"]).await;
        let id = id.trim_start_matches(':').trim();
        assert!(
            hears
                .ask(&["SUBSCRIBE", "__redis__:invalidate"])
                .await
                .contains("subscribe")
        );
        let mut tracks = world.app().await;
        assert_eq!(
            tracks.ask(&["CLIENT", "TRACKING", "ON", "REDIRECT", id]).await,
            "+OK\r\n"
        );
        assert_eq!(tracks.ask(&["GET", "t"]).await, "$-1\r\n");
        let mut other = world.app().await;
        assert_eq!(other.ask(&["SET", "t", "1"]).await, "+OK\r\n");
        let told = "*3\r\n$7\r\nmessage\r\n$20\r\n__redis__:invalidate\r\n";
        assert_eq!(hears.hear().await, format!("{told}*1\r\n$1\r\nt\r\n"));
        world.switch().await;
        assert_eq!(hears.hear().await, format!("{told}*-1\r\n"));
        for app in [&mut hears, &mut tracks] {
            assert_eq!(app.try_hear(PATIENCE).await, Err("closed".into()));
        }
        assert!(
            other.ask(&["GET", "t"]).await.starts_with('$'),
            "nobody else is closed"
        );
        let lost = "pulsegate_clients_disconnected_total{reason=\"tracking_lost\"}";
        assert_eq!(world.sidecar.counter(lost).await, 2.0);
    }

    pub(super) async fn reply_off(world: &World) {
        let mut app = world.app().await;
        app.say(&["CLIENT", "REPLY", "OFF"]).await;
        app.say(&["SELECT", "5"]).await;
        for _ in 0..100 {
            app.say(&["INCR", "n"]).await;
        }
        world.until_in_db(5, "local", 100).await;
        world.switch().await;
        for _ in 0..100 {
            app.say(&["INCR", "n"]).await;
        }
        world.quiet(&mut app).await;
        assert_eq!(
            app.ask(&["CLIENT", "REPLY", "ON"]).await,
            "+OK\r\n",
            "the first reply of all"
        );
        let n = app.ask(&["GET", "n"]).await;
        let n: u32 = n.split("\r\n").nth(1).and_then(|n| n.parse().ok()).expect(&n);
        match world.how {
            How::Planned => assert_eq!(n, 200, "nothing is lost, nothing is sent twice"),
            _ => assert!((100..=200).contains(&n), "{n}"),
        }
        assert!(app.ask(&["CLIENT", "INFO"]).await.contains(" db=5 "));
        // Nobody else inherits database 5: they are given connections that others gave back.
        for _ in 0..5 {
            let mut other = world.app().await;
            other
                .send(b"WATCH x\r\nEXISTS n\r\nUNWATCH\r\nEXISTS n\r\n")
                .await;
            for reply in ["+OK\r\n", ":0\r\n", "+OK\r\n", ":0\r\n"] {
                assert_eq!(other.hear().await, reply);
            }
        }
    }

    pub(super) async fn reply_skip(world: &World) {
        let mut app = world.app().await;
        app.send(b"CLIENT REPLY SKIP\r\nSET s 1\r\nCLIENT REPLY SKIP\r\n")
            .await;
        world.quiet(&mut app).await;
        world.switch().await;
        // The SKIP went to the replica that is gone; what it silences stays silent on the next.
        app.send(b"SET s 2\r\nGET s\r\n").await;
        assert_eq!(app.hear().await, "$1\r\n2\r\n");
        world.quiet(&mut app).await;
    }

    /// A reply of which Pulsegate has everything is not torn by the loss of its replica, however late it is read.
    pub(super) async fn large_reply_unread(world: &World) {
        let mut app = world.app().await;
        let value = "v".repeat(30_000_000);
        assert_eq!(app.ask(&["SET", "big", &value]).await, "+OK\r\n");
        // Or the fence of a planned move would wait behind it.
        world.rig.wait_converged(PATIENCE).await.unwrap();
        let before = world
            .sidecar
            .counter("pulsegate_bytes_total{direction=\"upstream_in\"")
            .await;
        app.say(&["GET", "big"]).await;
        let began = now();
        while world
            .sidecar
            .counter("pulsegate_bytes_total{direction=\"upstream_in\"")
            .await
            - before
            < 30e6
        {
            assert!(began.elapsed() < PATIENCE, "the reply comes");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        world.switch().await;
        assert_eq!(app.hear().await.len(), 30_000_000 + "$30000000\r\n\r\n".len());
        assert_eq!(app.ask(&["PING"]).await, "+PONG\r\n");
    }

    /// A reply of which a part has been passed on and the rest is lost: nothing but a close is honest. In a planned move
    /// nothing is lost, and one application that does not read keeps nobody else from moving.
    pub(super) async fn own_large_reply_unread(world: &World) {
        let mut app = world.app().await;
        let value = "v".repeat(60_000_000);
        assert_eq!(app.ask(&["SET", "big", &value]).await, "+OK\r\n");
        // Or the fence of a planned move would wait behind it.
        world.rig.wait_converged(PATIENCE).await.unwrap();
        app.say(&["GET", "big"]).await;
        // The first bytes are there, and are not read.
        app.wait_readable().await;
        let mut other = world.app().await;
        world.switch().await;
        assert_eq!(other.ask(&["PING"]).await, "+PONG\r\n");
        if world.how == How::Planned {
            assert_eq!(app.hear().await.len(), 60_000_000 + "$60000000\r\n\r\n".len());
            assert_eq!(app.ask(&["PING"]).await, "+PONG\r\n");
        } else {
            assert!(app.try_hear(PATIENCE).await.unwrap_err().starts_with("closed"));
            let broken = "pulsegate_clients_disconnected_total{reason=\"reply_broken\"}";
            assert_eq!(world.sidecar.counter(broken).await, 1.0);
        }
    }

    pub(super) async fn scripts(world: &World) {
        let mut app = world.app().await;
        assert_eq!(app.ask(&["EVAL", "return 1", "0"]).await, ":1\r\n");
        let sha = "e0e1f9fabfc9d4800c877a703b823ac0578ff8db";
        let library = "#!lua name=mine\nredis.register_function('seven', function() return 7 end)";
        assert_eq!(app.ask(&["FUNCTION", "LOAD", library]).await, "$4\r\nmine\r\n");
        assert_eq!(app.ask(&["FCALL", "seven", "0"]).await, ":7\r\n");
        world.on("remote", &["SCRIPT", "FLUSH"]).await;
        world.on("remote", &["FUNCTION", "FLUSH"]).await;
        world.switch().await;
        // On a shared link, on one of its own, and where no replies are given.
        assert_eq!(app.ask(&["EVALSHA", sha, "0"]).await, ":1\r\n");
        assert_eq!(app.ask(&["FCALL", "seven", "0"]).await, ":7\r\n");
        world.on("remote", &["SCRIPT", "FLUSH"]).await;
        assert!(
            app.ask(&["EVALSHA", sha, "0"]).await.starts_with("-NOSCRIPT"),
            "flushed behind our back"
        );
        app.send(format!("CLIENT REPLY OFF\r\nEVALSHA {sha} 0\r\nCLIENT REPLY ON\r\n").as_bytes())
            .await;
        assert_eq!(app.hear().await, "+OK\r\n");
        assert_eq!(app.ask(&["EVALSHA", sha, "0"]).await, ":1\r\n");
        let mut watching = world.app().await;
        watching
            .send(format!("WATCH k\r\nEVALSHA {sha} 0\r\n").as_bytes())
            .await;
        assert_eq!(watching.hear().await, "+OK\r\n");
        assert_eq!(watching.hear().await, ":1\r\n");
    }

    pub(super) async fn identity(world: &World) {
        for region in ["local", "remote"] {
            world
                .on(
                    region,
                    &["ACL", "SETUSER", "ann", "on", ">secret", "~*", "&*", "+@all"],
                )
                .await;
        }
        let mut two = world.app().await;
        assert_eq!(two.ask(&["AUTH", "ann", "secret"]).await, "+OK\r\n");
        assert_eq!(two.ask(&["SELECT", "3"]).await, "+OK\r\n");
        assert_eq!(two.ask(&["CLIENT", "SETNAME", "two"]).await, "+OK\r\n");
        let mut three = world.app().await;
        let hello = ["HELLO", "3", "AUTH", "ann", "secret", "SETNAME", "three"];
        assert!(three.ask(&hello).await.starts_with('%'));
        let mut failed = world.app().await;
        assert!(
            failed
                .ask(&["AUTH", "ann", "wrong"])
                .await
                .starts_with("-WRONGPASS")
        );
        let info = three.ask(&["CLIENT", "SETINFO", "LIB-NAME", "a-lib"]).await;
        world.switch().await;
        for (app, name, db) in [(&mut two, "two", "3"), (&mut three, "three", "0")] {
            assert_eq!(app.ask(&["ACL", "WHOAMI"]).await, "$3\r\nann\r\n");
            let info = app.ask(&["CLIENT", "INFO"]).await;
            assert!(
                info.contains(&format!(" name={name} ")) && info.contains(&format!(" db={db} ")),
                "{info}"
            );
        }
        assert_eq!(three.ask(&["GET", "none"]).await, "_\r\n", "RESP3 still");
        // A server that knows SETINFO is told again; one that does not said so the first time.
        let now = three.ask(&["CLIENT", "INFO"]).await;
        assert_eq!(info == "+OK\r\n", now.contains("lib-name=a-lib"), "{info} {now}");
        assert_eq!(failed.ask(&["ACL", "WHOAMI"]).await, "$7\r\ndefault\r\n");
        // Given up at once, everywhere.
        assert_eq!(two.ask(&["RESET"]).await, "+RESET\r\n");
        assert_eq!(two.ask(&["ACL", "WHOAMI"]).await, "$7\r\ndefault\r\n");
        assert!(two.ask(&["CLIENT", "INFO"]).await.contains(" db=0 "));
    }
}
