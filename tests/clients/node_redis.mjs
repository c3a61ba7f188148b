// node-redis, unmodified: says what it gets, for `clients.rs` to compare.   node_redis.mjs PORT 2|3 [no-…]
import { createClient, createClientPool, defineScript } from "redis";
import { say, attempt, until, has } from "./transcript.mjs";

const [port, RESP] = process.argv.slice(2, 4).map(Number);
const options = { socket: { host: "127.0.0.1", port }, RESP };
const scripts = {
  bump: defineScript({
    SCRIPT: "return {redis.call('INCRBY', KEYS[1], ARGV[1]), ARGV[1]}",
    NUMBER_OF_KEYS: 1,
    parseCommand(parser, key, by) {
      parser.pushKey(key);
      parser.push(String(by));
    },
    transformReply: (reply) => reply,
  }),
};
const open = async (more = {}) => {
  const client = createClient({ ...options, ...more });
  client.on("error", (error) => say("error", error.message));
  return client.connect();
};

const client = await open({ scripts });

say("set", await client.set("text", "value", { EX: 3600 }));
say("get", await client.get("text"));
say("missing", await client.get("missing"));
say("auto-pipelined", await Promise.all(Array.from({ length: 300 }, (_, n) => client.rPush("list", String(n)))));
say("list", await client.lRange("list", 0, 3));
say("hash", [await client.hSet("hash", { f: "v", g: "w" }), { ...(await client.hGetAll("hash")) }]);
say("zset", [await client.zAdd("scores", [{ score: 1.5, value: "a" }, { score: 2, value: "b" }]), await client.zRangeWithScores("scores", 0, -1)]);
say("members", [await client.sAdd("members", ["1", "2", "3"]), await client.sMembers("members")]);
say("stream", [await client.xAdd("stream", "1-1", { f: "v" }), await client.xRange("stream", "-", "+")]);
say("large", (await client.set("large", "x".repeat(2_000_000)), (await client.get("large")).length));
await attempt("wrong type", client.lPush("text", "x"));
await attempt("unknown", client.sendCommand(["NOSUCH", "x"]));
await attempt("arity", client.sendCommand(["GET"]));

say("multi", await client.multi().incr("count").incr("count").get("count").exec());
say("pipeline", await client.multi().set("k", "v").get("k").execAsPipeline());
await attempt("error in multi", client.multi().set("k", "v").lPush("k", "x").exec().catch((e) => e.replies.map(String)));
await attempt("aborted", client.multi().addCommand(["NOSUCH"]).exec());

await client.watch("guarded");
say("undisturbed", await client.multi().set("guarded", "mine").exec());
await client.watch("guarded");
const other = await open();
await other.set("guarded", "theirs");
await attempt("disturbed", client.multi().set("guarded", "mine").exec());

say("script", [await client.bump("n", 2), await client.bump("n", 3)]);
await client.scriptFlush();
say("script after a flush", await client.bump("n", 4));
await attempt("unknown script", client.evalSha("f".repeat(40)));

if (has("scan")) {
  const names = [];
  for (let n = 0; n < 50; n++) await client.set(`scan:${n}`, "x");
  for await (const keys of client.scanIterator({ MATCH: "scan:*", COUNT: 7 })) names.push(...keys);
  say("scan", [new Set(names).size, names.sort()[0]]);
}

const ear = await open();
const heard = [];
await ear.subscribe("news", (message, channel) => heard.push(["message", channel, message]));
await ear.pSubscribe("ne*", (message, channel) => heard.push(["pattern", channel, message]));
// Where three shards divide the slots evenly, one of the last three is of each.
const SHARDED = ["sharded", "c", "foo", "hello"];
for (const one of SHARDED) await ear.sSubscribe(one, (message, channel) => heard.push(["sharded", channel, message]));
const receivers = await client.publish("news", "text");
say("publish", [has("receivers") ? receivers : typeof receivers, await client.sPublish("sharded", "text")]);
for (const channel of SHARDED.slice(1)) await client.sPublish(channel, "text");
await until("messages", () => heard.length === 6);
say("heard", heard.sort());
await ear.unsubscribe("news");
await ear.pUnsubscribe();
say("publish", await client.publish("news", "unheard"));
if (RESP === 3) say("commands beside a subscription", await ear.get("text"));
ear.destroy();

say("blpop at once", await other.blPop("list", 1));
say("blpop in vain", await other.blPop("nothing", 0.05));
const waiting = other.blPop("later", 5);
await client.rPush("later", "came");
say("blpop later", await waiting);

const pool = createClientPool(options, { maximum: 5 });
await pool.connect();
say("pool", (await Promise.all(Array.from({ length: 50 }, () => pool.incr("pooled")))).sort((a, b) => a - b).at(-1));
await pool.close();

if (has("databases")) {
  const named = await open({ name: "named", database: 3 });
  say("name", [await named.clientGetName(), await named.set("elsewhere", "1"), await client.get("elsewhere")]);
  await named.select(0);
  say("select", await named.get("text"));
  named.destroy();
}

if (has("users")) {
  await client.sendCommand("ACL SETUSER bea on >pw ~bea:* +@all".split(" "));
  const bea = await open({ username: "bea", password: "pw" });
  say("bea", await bea.set("bea:key", "1"));
  await attempt("bea, elsewhere", bea.set("key", "1"));
  bea.destroy();
  const wrong = createClient({ ...options, username: "bea", password: "no", socket: { ...options.socket, reconnectStrategy: false } });
  wrong.on("error", () => {});
  await attempt("wrong password", wrong.connect());
}

if (RESP === 3 && has("caching")) {
  const cached = await open({ clientSideCache: { ttl: 0, maxEntries: 0 } });
  await client.set("cached", "old");
  say("cached", [await cached.get("cached"), await cached.get("cached")]);
  await client.set("cached", "new");
  await until("invalidation", async () => (await cached.get("cached")) === "new");
  cached.destroy();
}
other.destroy();
await client.close();
say("end", "reached");
