// ioredis, unmodified: says what it gets, for `clients.rs` to compare.   ioredis.mjs PORT 2|3 [cluster] [no-…]
import { Cluster, Redis } from "ioredis";
import { say, attempt, until, clustered, has } from "./transcript.mjs";

const [port, protocol] = process.argv.slice(2, 4).map(Number);
const open = (more = {}) => {
  const { enableAutoPipelining, retryStrategy, ...redisOptions } = { protocol, ...more };
  const client = clustered
    ? new Cluster([{ host: "127.0.0.1", port }], {
        ...{ enableAutoPipelining, redisOptions, shardedSubscribers: true },
        ...(retryStrategy === null && { clusterRetryStrategy: null }),
      })
    : new Redis({ host: "127.0.0.1", port, protocol, ...more });
  client.on("error", () => {});
  return client;
};

const client = open();

say("set", await client.set("text", "value", "EX", 3600));
say("get", await client.get("text"));
say("missing", await client.get("missing"));
say("list", [await client.rpush("list", 1, 2, 3), await client.lrange("list", 0, -1)]);
say("hash", [await client.hset("hash", { f: "v", g: "w" }), await client.hgetall("hash")]);
say("zset", [await client.zadd("scores", 1.5, "a", 2, "b"), await client.zrange("scores", 0, -1, "WITHSCORES")]);
say("buffer", (await client.getBuffer("text")).toString("hex"));
say("large", (await client.set("large", Buffer.alloc(2_000_000)), (await client.getBuffer("large")).length));
await attempt("wrong type", client.lpush("text", "x"));
await attempt("unknown", client.call("NOSUCH", "x"));
await attempt("arity", client.call("GETRANGE", "text"));

const pipeline = client.pipeline();
for (let n = 0; n < 200; n++) pipeline.incr("piped");
pipeline.lpush("text", "wrong").get("piped");
say("pipeline", (await pipeline.exec()).map(([error, result]) => error?.message ?? result));
say("multi", await client.multi().incr("count").get("count").exec());
if (!clustered) say("inline multi", [await client.multi({ pipeline: false }), await client.incr("count"), await client.exec()]);
say("error in multi", (await client.multi().set("k", "v").lpush("k", "x").exec()).map(([e, r]) => e?.message ?? r));
await attempt("aborted", client.multi().lpush("k").exec());

const auto = open({ enableAutoPipelining: true });
say("auto-pipelined", await Promise.all(Array.from({ length: 100 }, (_, n) => auto.set(`auto:${n}`, n))));

await client.watch("guarded");
say("undisturbed", await client.multi().set("guarded", "mine").exec());
await client.watch("guarded");
await auto.set("guarded", "theirs");
say("disturbed", await client.multi().set("guarded", "mine").exec());

client.defineCommand("bump", { numberOfKeys: 1, lua: "return {redis.call('INCRBY', KEYS[1], ARGV[1]), ARGV[1]}" });
say("script", [await client.bump("n", 2), await client.bump("n", 3)]);
await client.script("FLUSH");
say("script after a flush", await client.bump("n", 4));
say("script in a pipeline", await client.pipeline().bump("n", 1).get("n").exec());
await attempt("unknown script", client.evalsha("f".repeat(40), 0));

if (has("scan") && !clustered) {
  const names = [];
  for await (const keys of client.scanStream({ match: "auto:*", count: 7 })) names.push(...keys);
  say("scan", [new Set(names).size, names.sort()[0]]);
}

const ear = open();
const heard = [];
ear.on("message", (channel, message) => heard.push(["message", channel, message]));
ear.on("pmessage", (pattern, channel, message) => heard.push(["pattern", pattern, channel, message]));
ear.on("smessage", (channel, message) => heard.push(["sharded", channel, message]));
say("subscribe", [await ear.subscribe("news", "more"), await ear.psubscribe("ne*"), await ear.ssubscribe("sharded")]);
// Where three shards divide the slots evenly, one is of each.
for (const channel of ["c", "foo", "hello"]) await ear.ssubscribe(channel);
await attempt("commands beside a subscription", ear.get("text"));
const receivers = await client.publish("news", "text");
say("publish", [has("receivers") ? receivers : typeof receivers, await client.spublish("sharded", "text")]);
for (const channel of ["c", "foo", "hello"]) await client.spublish(channel, "text");
await until("messages", () => heard.length === 6);
say("heard", heard.sort());
say("unsubscribe", [await ear.unsubscribe("news", "more"), await ear.punsubscribe("ne*"), await ear.sunsubscribe("sharded")]);
for (const channel of ["c", "foo", "hello"]) await ear.sunsubscribe(channel);
say("commands after it", await ear.get("text"));

say("blpop at once", await ear.blpop("list", 1));
say("blpop in vain", await ear.blpop("nothing", 0.05));
const waiting = ear.blpop("later", 5);
await client.rpush("later", "came");
say("blpop later", await waiting);

if (has("monitor") && !clustered) {
  const monitor = await client.monitor();
  const lines = [];
  monitor.on("monitor", (time, args) => lines.push(args.join(" ")));
  await client.set("monitored", "1");
  await until("monitor", () => lines.some((line) => line.toLowerCase() === "set monitored 1"));
  monitor.disconnect();
}

if (has("databases")) {
  const named = open({ connectionName: "named", db: 3 });
  say("name", [await named.client("GETNAME"), await named.set("elsewhere", "1"), await client.get("elsewhere")]);
  say("select", [await named.select(0), await named.get("text")]);
  named.disconnect();
}

if (has("users")) {
  await client.call("ACL", "SETUSER", "cem", "on", ">pw", "~cem:*", "+@all");
  const cem = open({ username: "cem", password: "pw" });
  say("cem", await cem.set("cem:key", "1"));
  await attempt("cem, elsewhere", cem.set("key", "1"));
  const wrong = open({ username: "cem", password: "no", retryStrategy: null, maxRetriesPerRequest: 0 });
  await attempt("wrong password", wrong.get("cem:key"));
  for (const one of [cem, wrong]) one.disconnect();
}

say("quit", await auto.quit());
for (const one of [ear, client]) one.disconnect();
say("end", "reached");
