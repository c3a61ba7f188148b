//! The `redis` crate: says what it gets, as the other programs do.

use std::fmt::Write as _;
use std::time::Duration;

use redis::cluster::{ClusterClient, ClusterClientBuilder};
use redis::{Commands, ConnectionLike, FromRedisValue, ProtocolVersion, PushInfo, RedisResult, Value};

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// A channel that is heard only through the pattern, at the node that has `news`.
const SAME_SLOT_AS_NEWS: &str = "ne{news}";

/// Takes a line of the transcript.
type Say<'a> = &'a mut dyn FnMut(&str, &dyn std::fmt::Debug);

/// The crate's plain client. `words` say what is not to be had: `no-scan`, `no-receivers`.
pub(crate) fn plain(port: u16, protocol: &str, words: &[&str]) -> RedisResult<String> {
    let client = redis::Client::open(format!("redis://127.0.0.1:{port}/?protocol={protocol}"))?;
    let mut said = String::new();
    let mut say = |label: &str, what: &dyn std::fmt::Debug| {
        let _ = writeln!(said, "{label}: {what:?}");
    };
    let mut c = client.get_connection()?;
    c.set_read_timeout(Some(PATIENCE))?;
    commands(&mut c, &mut say)?;
    let mut pipe = redis::pipe();
    for n in 0..100 {
        pipe.rpush("piped", n).ignore();
    }
    say("pipeline", &pipe.llen("piped").query::<Value>(&mut c)?);
    let transaction = redis::pipe()
        .atomic()
        .incr("count", 1)
        .get("count")
        .query::<Value>(&mut c)?;
    say("transaction", &transaction);
    let mut other = client.get_connection()?;
    let mut rounds = 0;
    let watched: Value = redis::transaction(&mut c, &["guarded"], |c, pipe| {
        rounds += 1;
        if rounds == 1 {
            other.set::<_, _, ()>("guarded", "theirs")?;
        }
        let before: Option<String> = c.get("guarded")?;
        pipe.set("guarded", format!("{before:?}, mine"))
            .get("guarded")
            .query(c)
    })?;
    say("watch", &(rounds, watched));
    if !words.contains(&"no-scan") {
        let mut names: Vec<String> = c.scan_match::<_, String>("*i*")?.collect::<RedisResult<_>>()?;
        names.sort();
        say("scan", &names);
    }
    {
        let mut ear = c.as_pubsub();
        ear.subscribe(&["news", "more"])?;
        ear.psubscribe("ne*")?;
        // The crate does not wait until the last of several is confirmed.
        let patience = Duration::from_millis(50);
        ear.set_read_timeout(Some(patience))?;
        let mut tries = PATIENCE.div_duration_f32(patience) as u32;
        loop {
            other.publish::<_, _, ()>(SAME_SLOT_AS_NEWS, "is it heard?")?;
            match ear.get_message() {
                Ok(_) => break,
                Err(error) if error.is_timeout() && tries > 0 => tries -= 1,
                Err(error) => return Err(error),
            }
        }
        ear.set_read_timeout(Some(PATIENCE))?;
        let receivers: Value = other.publish("news", "text")?;
        if !words.contains(&"no-receivers") {
            say("publish", &receivers);
        }
        for _ in 0..2 {
            let message = loop {
                let message = ear.get_message()?;
                if message.get_channel_name() != SAME_SLOT_AS_NEWS {
                    break message;
                }
            };
            let pattern: Option<String> = message.get_pattern()?;
            say(
                "heard",
                &(
                    pattern,
                    message.get_channel_name(),
                    message.get_payload::<String>()?,
                ),
            );
        }
        ear.unsubscribe("news")?;
    }
    say("after the subscription", &c.get::<_, Value>("text")?);
    aio(&client, &mut say, words)?;
    say("end", &"reached");
    Ok(said)
}

/// What every kind of connection does.
fn commands(c: &mut impl ConnectionLike, say: Say<'_>) -> RedisResult<()> {
    say("set", &c.set::<_, _, Value>("text", "value")?);
    say("get", &c.get::<_, Value>("text")?);
    say("missing", &c.get::<_, Value>("missing")?);
    say("list", &c.rpush::<_, _, Value>("list", &[1, 2, 3])?);
    say(
        "hash",
        &c.hset_multiple::<_, _, _, Value>("hash", &[("f", "v"), ("g", "w")])?,
    );
    say("hash", &c.hgetall::<_, Value>("hash")?);
    say("zset", &c.zadd::<_, _, _, Value>("scores", "a", 1.5)?);
    say("score", &c.zscore::<_, _, Value>("scores", "a")?);
    say(
        "wrong type",
        &c.lpush::<_, _, Value>("text", "x").map_err(|e| e.to_string()),
    );
    say(
        "unknown",
        &redis::cmd("NOSUCH").query::<Value>(c).map_err(|e| e.to_string()),
    );
    say(
        "eval",
        &redis::cmd("EVAL")
            .arg("return {1, 'two', {3}}")
            .arg(0)
            .query::<Value>(c)?,
    );
    say("blpop", &c.blpop::<_, Value>("list", 1.0)?);
    say("blpop in vain", &c.blpop::<_, Value>("nothing", 0.05)?);
    Ok(())
}

/// The crate's client for clusters, which finds its nodes by asking.
pub(crate) fn clustered(port: u16, protocol: &str) -> RedisResult<String> {
    let mut said = String::new();
    let mut say = |label: &str, what: &dyn std::fmt::Debug| {
        let _ = writeln!(said, "{label}: {what:?}");
    };
    let resp3 = protocol == "resp3";
    let builder = || {
        ClusterClientBuilder::new(vec![format!("redis://127.0.0.1:{port}")])
            .response_timeout(PATIENCE)
            .use_protocol(if resp3 {
                ProtocolVersion::RESP3
            } else {
                ProtocolVersion::RESP2
            })
    };
    let mut c = builder().build()?.get_connection()?;
    commands(&mut c, &mut say)?;
    let mut pipe = redis::cluster::cluster_pipe();
    for n in 0..100 {
        pipe.set(format!("key:{n}"), n).ignore();
    }
    for n in 0..100 {
        pipe.get(format!("key:{n}"));
    }
    say(
        "keys of many slots in one pipeline",
        &pipe.query::<Vec<u32>>(&mut c)?,
    );
    let (pushes, pushed) = tokio::sync::mpsc::unbounded_channel::<PushInfo>();
    let client = if resp3 {
        builder().push_sender(pushes).build()?
    } else {
        builder().build()?
    };
    aio_clustered(&client, resp3.then_some(pushed), &mut say)?;
    say("end", &"reached");
    Ok(said)
}

/// Many tasks at once, and with RESP3 messages of every kind.
fn aio_clustered(
    client: &ClusterClient,
    pushed: Option<tokio::sync::mpsc::UnboundedReceiver<PushInfo>>,
    say: Say<'_>,
) -> RedisResult<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let mut c = client.get_async_connection().await?;
        let mut tasks = tokio::task::JoinSet::new();
        for n in 0..200 {
            let mut c = c.clone();
            tasks.spawn(async move {
                let key = format!("together:{}", n % 20);
                redis::cmd("INCR").arg(key).query_async::<i64>(&mut c).await
            });
        }
        let mut sum = 0;
        while let Some(n) = tasks.join_next().await {
            sum += n.unwrap()?;
        }
        say("at once", &sum);
        let mut pipe = redis::pipe();
        for n in 0..100 {
            pipe.rpush("piped", n).ignore();
        }
        say(
            "pipeline",
            &pipe.llen("piped").query_async::<Value>(&mut c).await?,
        );
        let mut transaction = redis::pipe();
        transaction.atomic().incr("count", 1).get("count");
        say("transaction", &transaction.query_async::<Value>(&mut c).await?);
        let Some(mut pushed) = pushed else { return Ok(()) };
        c.subscribe("shared").await?;
        c.psubscribe("sha?ed").await?;
        // Where three shards divide the slots evenly, one is of each.
        for channel in ["c", "foo", "hello"] {
            c.ssubscribe(channel).await?;
        }
        let publish = redis::cmd("PUBLISH").arg("shared").arg("x").to_owned();
        let spublish = |channel| redis::cmd("SPUBLISH").arg(channel).arg("y").to_owned();
        for command in [publish, spublish("c"), spublish("foo"), spublish("hello")] {
            Value::from_redis_value(command.query_async(&mut c).await?)?;
        }
        // Five confirmations, and five messages.
        let mut all = Vec::new();
        for _ in 0..10 {
            let push = tokio::time::timeout(PATIENCE, pushed.recv()).await;
            let push = push.expect("in time").expect("the connection lives");
            all.push(format!("{:?} {:?}", push.kind, push.data));
        }
        all.sort();
        say("pushes", &all);
        say(
            "beside it",
            &redis::cmd("GET").arg("text").query_async::<Value>(&mut c).await?,
        );
        Ok(())
    })
}

/// One connection that many tasks share, with pushes in RESP3.
fn aio(client: &redis::Client, say: Say<'_>, words: &[&str]) -> RedisResult<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let (pushes, mut pushed) = tokio::sync::mpsc::unbounded_channel::<PushInfo>();
        let config = redis::AsyncConnectionConfig::new()
            .set_connection_timeout(Some(PATIENCE))
            .set_response_timeout(Some(PATIENCE));
        let resp3 = client.get_connection_info().redis_settings().protocol() == redis::ProtocolVersion::RESP3;
        let config = if resp3 {
            config.set_push_sender(pushes)
        } else {
            config
        };
        let mut c = client
            .get_multiplexed_async_connection_with_config(&config)
            .await?;
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..200 {
            let mut c = c.clone();
            tasks.spawn(async move {
                redis::cmd("INCR")
                    .arg("together")
                    .query_async::<i64>(&mut c)
                    .await
            });
        }
        let mut most = 0;
        while let Some(n) = tasks.join_next().await {
            most = most.max(n.unwrap()?);
        }
        say("at once", &most);
        if resp3 {
            c.subscribe("shared").await?;
            let receivers: Value = redis::cmd("PUBLISH")
                .arg("shared")
                .arg("x")
                .query_async(&mut c)
                .await?;
            if !words.contains(&"no-receivers") {
                say("publish", &receivers);
            }
            for _ in 0..2 {
                let push = tokio::time::timeout(PATIENCE, pushed.recv()).await;
                let push = push.expect("in time").expect("the connection lives");
                say("push", &(push.kind, push.data));
            }
            say(
                "beside it",
                &redis::cmd("GET").arg("text").query_async::<Value>(&mut c).await?,
            );
        }
        Ok(())
    })
}
