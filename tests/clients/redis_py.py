"""redis-py, unmodified, in the ways that applications use it: says what it gets, for `clients.rs` to compare.

    redis_py.py PORT sync|async 2|3 [cluster] [no-databases] [no-users] [no-scan] [no-caching]
        [no-receivers] [no-crossing]

`cluster` takes the library's client for clusters; what a deployment does not have is left out:
    databases other than 0, users made with ACL, SCAN of all, client-side caching, a count of all who receive a message, requests
    with keys of several slots.
"""

import asyncio
import inspect
import sys
import time

import redis
import redis.asyncio
import redis.asyncio.retry
import redis.retry
from redis.backoff import NoBackoff
from redis.cache import CacheConfig

PATIENCE = 10.0
WORDS = sys.argv[4:]


def has(what):
    """Whether the deployment has it."""
    return f"no-{what}" not in WORDS


class Facade:
    """One way to write a program for both clients: what either gives is awaited if it has to be."""

    def __init__(self, target):
        self._target = target

    def __getattr__(self, name):
        attribute = getattr(self._target, name)
        if not callable(attribute):
            return attribute

        async def call(*args, **kwargs):
            result = attribute(*args, **kwargs)
            # A pipeline gives itself, which is no result to wait for: waiting for it empties that of asyncio's cluster client.
            waits = inspect.isawaitable(result) and result is not self._target
            return await result if waits else result

        return call


def say(label, result):
    if isinstance(result, set):
        result = sorted(result)
    print(f"{label}: {result!r}", flush=True)


async def attempt(label, awaitable):
    try:
        say(label, await awaitable)
    except (redis.RedisError, redis.exceptions.RedisClusterException) as error:
        # What the client for clusters refuses by itself, it explains at length.
        say(label, f"{type(error).__name__} {error}".splitlines()[0])


async def until(label, condition):
    """Waits for what comes by itself."""
    deadline = time.monotonic() + PATIENCE
    while not await condition():
        if time.monotonic() > deadline:
            raise SystemExit(f"{label}: not within {PATIENCE} s")
        await asyncio.sleep(0.005)
    say(label, "came")


async def commands(r):
    say("set", await r.set("text", "value", px=3_600_000))
    say("get", await r.get("text"))
    say("binary", await r.set("binary", bytes(range(256)) * 64))
    say("binary", len(await r.get("binary")))
    say("large", await r.set("large", b"x" * 3_000_000))
    say("large", len(await r.get("large")))
    say("missing", await r.get("missing"))
    b, missing = ("b", "missing") if has("crossing") else ("{a}b", "{a}missing")
    await attempt("mset", r.mset({"a": 1, b: 2}))
    await attempt("mget", r.mget("a", b, missing))
    say("incr", await r.incrby("a", 41))
    say("float", await r.incrbyfloat(b, 0.25))
    say("hash", await r.hset("hash", mapping={"f": "v", "g": "w"}))
    say("hash", await r.hgetall("hash"))
    say("list", await r.rpush("list", *range(5)))
    say("list", await r.lrange("list", 0, -1))
    say("set", await r.sadd("members", *range(5)))
    say("set", await r.smembers("members"))
    say("zset", await r.zadd("scores", {"one": 1, "two": 2.5, "inf": float("inf")}))
    say("zset", await r.zrange("scores", 0, -1, withscores=True))
    say("zset", await r.zscore("scores", "two"))
    say("stream", await r.xadd("stream", {"f": "v"}, id="1-1"))
    say("stream", await r.xgroup_create("stream", "group", id="0"))
    say("stream", await r.xreadgroup("group", "me", {"stream": ">"}))
    say("stream", await r.xack("stream", "group", "1-1"))
    say("geo", await r.geoadd("geo", (13.361389, 38.115556, "Palermo", 15.087269, 37.502669, "Catania")))
    say("geo", await r.geodist("geo", "Palermo", "Catania", unit="km"))
    say("bits", await r.setbit("bits", 7, 1))
    say("bits", await r.bitcount("bits"))
    say("hll", await r.pfadd("hll", "a", "b"))
    say("hll", await r.pfcount("hll"))
    say("type", await r.type("hash"))
    say("ttl", 3_590 < await r.ttl("text") <= 3_600)
    say("config", await r.config_get("maxmemory-samples"))
    say("ping", await r.ping())
    await attempt("echo", r.echo("hello"))
    await attempt("wrong type", r.lpush("text", 1))
    await attempt("unknown", r.execute_command("NOSUCH", "x"))
    await attempt("arity", r.execute_command("GET"))
    for n in range(100):
        await r.set(f"scan:{n}", n)


async def iterators(r, target):
    names = []
    iterator = target.scan_iter(match="scan:*", count=7)
    if hasattr(iterator, "__aiter__"):
        async for name in iterator:
            names.append(name)
    else:
        names.extend(iterator)
    say("scan", sorted(set(names))[:3] + [len(set(names))])


async def pipelines(target):
    plain = Facade(target.pipeline(transaction=False))
    for n in range(200):
        await plain.rpush("piped", n)
    say("pipeline", await plain.execute())
    mixed = Facade(target.pipeline(transaction=False))
    await mixed.set("k", "v")
    await mixed.lpush("k", "wrong")
    await mixed.blpop("piped", timeout=1)
    await mixed.get("k")
    result = await mixed.execute(raise_on_error=False)
    say("errors in a pipeline", [str(one) for one in result])
    transaction = Facade(target.pipeline(transaction=True))
    await transaction.incr("count")
    await transaction.incr("count")
    await transaction.get("count")
    say("transaction", await transaction.execute())
    failing = Facade(target.pipeline(transaction=True))
    await failing.set("k", "v")
    await failing.lpush("k", 1)
    result = await failing.execute(raise_on_error=False)
    say("an error in a transaction", [str(one) for one in result])
    aborted = Facade(target.pipeline(transaction=True))
    await aborted.set("k", "v")
    await aborted.execute_command("LPUSH", "k")
    await attempt("aborted", aborted.execute())


async def watches(r, target):
    pipeline = target.pipeline(transaction=True)
    guarded = Facade(pipeline)
    await guarded.watch("guarded")
    say("watched", await guarded.get("guarded"))
    pipeline.multi()
    await guarded.set("guarded", "mine")
    say("undisturbed", await guarded.execute())
    await guarded.watch("guarded")
    await r.set("guarded", "theirs")
    pipeline.multi()
    await guarded.set("guarded", "mine")
    await attempt("disturbed", guarded.execute())
    await guarded.reset()
    say("kept", await r.get("guarded"))


async def scripts(r, target):
    script = target.register_script("return {KEYS[1], ARGV[1], redis.call('incr', KEYS[1])}")

    async def run():
        result = script(keys=["scripted"], args=["x"])
        return await result if inspect.isawaitable(result) else result

    say("script", await run())
    say("script again", await run())
    say("flush", await r.script_flush())
    say("script after a flush", await run())

    async def in_pipeline():
        pipeline = target.pipeline(transaction=True)
        result = script(keys=["scripted"], args=["y"], client=pipeline)
        if inspect.isawaitable(result):
            await result
        return await Facade(pipeline).execute()

    await attempt("script in a pipeline", in_pipeline())
    await attempt("unknown script", r.evalsha("f" * 40, 1, "scripted"))
    code = "#!lua name=lib\nredis.register_function('f', function(k, a) return a[1] end)"
    say("function", await r.function_load(code, replace=True))
    await attempt("function", r.fcall("f", 0, "x"))
    say("function", await r.fcall("f", 1, "scripted", "x"))


async def locks(target):
    lock, other = Facade(target.lock("lock", timeout=30)), Facade(target.lock("lock", timeout=30, blocking=False))
    say("lock", await lock.acquire())
    say("taken", await other.acquire())
    say("extend", await lock.extend(5))
    say("owned", await lock.owned())
    say("release", await lock.release())
    say("free", await other.acquire())
    await other.release()
    await attempt("release twice", lock.release())


async def blocking(r):
    say("blpop at once", await r.blpop("list", timeout=1))
    say("blpop in vain", await r.blpop("nothing", timeout=0.05))
    say("blmove", await r.blmove("list", "other:{list}", timeout=1))
    say("bzpopmin", await r.bzpopmin("scores", timeout=1))
    say("xread in vain", await r.xread({"stream": "$"}, block=20))
    say("after that", await r.get("text"))


# Where three shards divide the slots evenly, each has one.
SHARDED = ["c", "foo", "hello"]


async def subscriptions(r, target):
    pubsub = target.pubsub()
    ear = Facade(pubsub)

    def received(count):
        return count if has("receivers") else type(count)

    of_clusters = hasattr(pubsub, "get_sharded_message")

    async def heard(count):
        messages = []
        deadline = time.monotonic() + PATIENCE
        while len(messages) < count and time.monotonic() < deadline:
            message = await ear.get_message(timeout=0.1)
            if not message and of_clusters:
                message = await ear.get_sharded_message(timeout=0.1)
            if message:
                messages.append((message["type"], message["pattern"], message["channel"], message["data"]))
        return messages

    await ear.subscribe("news", "more")
    await ear.psubscribe("ne*")
    for channel in SHARDED:
        await ear.ssubscribe(channel)
    say("subscribed", sorted(await heard(3 + len(SHARDED)), key=str))
    say("publish", received(await r.publish("news", "text")))
    say("publish", received(await r.publish("more", b"\r\n\0")))
    say("messages", await heard(3))
    say("publish", [await r.spublish(channel, "text") for channel in SHARDED])
    say("sharded messages", sorted(await heard(len(SHARDED)), key=str))
    await ear.sunsubscribe(SHARDED[0])
    say("unsubscribed", await heard(1))
    say("publish", [await r.spublish(channel, "more") for channel in SHARDED])
    say("sharded messages", sorted(await heard(len(SHARDED) - 1), key=str))
    say("numsub", await r.pubsub_numsub("news", "none"))
    say("ping", await ear.ping("hello"))
    say("pong", await heard(1))
    await ear.unsubscribe("news")
    await ear.punsubscribe()
    say("unsubscribed", await heard(2))
    say("publish", await r.publish("news", "unheard"))
    close = getattr(pubsub, "aclose", None) or pubsub.close
    result = close()
    if inspect.isawaitable(result):
        await result


async def databases(make, port):
    named = make("127.0.0.1", port, client_name="named", db=3)
    r = Facade(named)
    say("name", await r.client_getname())
    say("db", await r.set("elsewhere", 1))
    info = await r.client_info()
    say("info", [info["name"], info["db"], info["lib-name"] if "lib-name" in info else None])
    await close(named)
    here = make("127.0.0.1", port)
    say("not here", await Facade(here).get("elsewhere"))
    await close(here)


async def users(make, port, library):
    here = make("127.0.0.1", port)
    say("acl", await Facade(here).acl_setuser("ann", enabled=True, passwords=["+pw"], keys=["ann:*"], categories=["+@all"]))
    await close(here)
    ann = make("127.0.0.1", port, username="ann", password="pw")
    await attempt("ann", Facade(ann).set("ann:key", 1))
    await attempt("ann, elsewhere", Facade(ann).set("key", 1))
    say("whoami", await Facade(ann).acl_whoami())
    await close(ann)

    async def intrude():
        wrong = make("127.0.0.1", port, username="ann", password="no", retry=library.retry.Retry(NoBackoff(), 0))
        try:
            return await Facade(wrong).get("ann:key")
        finally:
            await close(wrong)

    await attempt("wrong password", intrude())


async def close(client):
    result = (getattr(client, "aclose", None) or client.close)()
    if inspect.isawaitable(result):
        await result


async def caching(port):
    """Client-side caching, which redis-py has for its synchronous RESP3 client."""
    cached = redis.Redis("127.0.0.1", port, protocol=3, cache_config=CacheConfig())
    try:
        cached.ping()
    except redis.RedisError as error:
        # It asks for Redis 7.4, by its version alone; node-redis does not.
        say("no caching", str(error))
        return
    writer = redis.Redis("127.0.0.1", port)
    writer.set("cached", "old")
    say("cached", [cached.get("cached"), cached.get("cached"), cached.get_cache().size])
    writer.set("cached", "new")

    async def fresh():
        return cached.get("cached") == b"new"

    await until("invalidation", fresh)
    cached.close()
    writer.close()


async def main():
    port, kind, protocol = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    library = redis.asyncio if kind == "async" else redis
    client = library.RedisCluster if "cluster" in WORDS else library.Redis

    def make(host, port, **options):
        return client(host=host, port=port, protocol=protocol, **options)

    target = make("127.0.0.1", port)
    r = Facade(target)
    await commands(r)
    if has("scan"):
        await iterators(r, target)
    await pipelines(target)
    await watches(r, target)
    await scripts(r, target)
    await locks(target)
    await blocking(r)
    await subscriptions(r, target)
    if has("databases"):
        await databases(make, port)
    if has("users"):
        await users(make, port, library)
    if kind == "sync" and protocol == 3 and has("caching"):
        await caching(port)
    if kind == "async":
        results = await asyncio.gather(*(target.incr("together") for _ in range(50)))
        say("at once", sorted(results)[-1])
    await close(target)
    say("end", "reached")


asyncio.run(main())
