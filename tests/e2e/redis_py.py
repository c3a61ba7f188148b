"""Applications on redis-py, unmodified, for `redis_py.rs`: every way of use that a failover could spoil, in RESP2 and RESP3.

It says `{"ready": true}` once all have begun. Then it obeys lines on its standard input, each answered by one line of JSON:

- `moved NAME`: traffic is elsewhere now. Publishes and pushes until every listener and every blocked client has got
  something published or pushed after that moment; says who did not, and which writes were acknowledged since.
- `stop`: ends all clients and says what they saw.

`--self-check` shows, against a server itself, that a closed connection would be noticed.
"""

import argparse
import collections
import json
import pathlib
import sys
import threading
import time

import redis

sys.path.append(str(pathlib.Path(__file__).parents[1] / "support"))
from watch import Watch, code  # noqa: E402 (the line above finds it)

PATIENCE = 10.0
"""Seconds until who has not got anything is given up."""


class Client(threading.Thread):
    """One client in a loop. Subclasses do one step; errors are noted, and the loop goes on as a sturdy program would."""

    pause = 0.003

    def __init__(self, port, protocol):
        super().__init__(daemon=True)
        self.called = f"{type(self).__name__.lower()}:{protocol}"
        self.redis = redis.Redis("127.0.0.1", port, protocol=protocol, decode_responses=True)
        self.watch = Watch(self.redis.connection_pool)
        self.errors = collections.Counter()
        self.acknowledged = []
        self.steps = 0
        self._over = threading.Event()

    @property
    def key(self):
        return f"tokens:{self.called}"

    def token(self):
        """Never the same twice."""
        self._tokens = getattr(self, "_tokens", -1) + 1
        return f"{self.called}:{self._tokens}"

    def run(self):
        while not self._over.is_set():
            try:
                self.step()
                self.steps += 1
            except redis.RedisError as error:
                self.note(error)
            self.watch.look()
            self._over.wait(self.pause)

    def note(self, error):
        self.errors[code(error)] += 1

    def stop(self):
        self._over.set()


class Plain(Client):
    """One command after the other."""

    def step(self):
        token = self.token()
        self.redis.rpush(self.key, token)
        self.acknowledged.append(token)
        self.redis.lindex(self.key, -1)


class Pipelined(Client):
    """Twenty commands at once, without a transaction."""

    def step(self):
        tokens = [self.token() for _ in range(20)]
        pipeline = self.redis.pipeline(transaction=False)
        for token in tokens:
            pipeline.rpush(self.key, token)
        for token, reply in zip(tokens, pipeline.execute(raise_on_error=False)):
            if isinstance(reply, Exception):
                self.note(reply)
            else:
                self.acknowledged.append(token)


class Transaction(Client):
    """WATCH, read, MULTI, two writes, EXEC: both or neither."""

    def step(self):
        token = self.token()
        with self.redis.pipeline() as pipeline:
            pipeline.watch(f"count:{self.called}")
            pipeline.get(f"count:{self.called}")
            pipeline.multi()
            pipeline.rpush(self.key, token)
            pipeline.incr(f"count:{self.called}")
            pipeline.execute()
        self.acknowledged.append(token)


class Receiver(Client):
    """What `moved` waits for."""

    def __init__(self, port, protocol):
        super().__init__(port, protocol)
        self.received = []


class Listener(Receiver):
    """A channel and a pattern; subscribes once."""

    pause = 0

    def __init__(self, port, protocol):
        super().__init__(port, protocol)
        self._ear = self.redis.pubsub(ignore_subscribe_messages=True)
        self._ear.subscribe("news")
        self._ear.psubscribe("ne*")

    def step(self):
        message = self._ear.get_message(timeout=0.1)
        if message:
            self.received.append(f"{message['type']} {message['data']}")

    def got(self, text):
        return {f"message {text}", f"pmessage {text}"} <= set(self.received)

    def feed(self, giver, text):
        giver.publish("news", text)


class Blocked(Receiver):
    """BLPOP on a list that is empty but for what `moved` pushes."""

    pause = 0

    def step(self):
        popped = self.redis.blpop(self.key, timeout=2)
        if popped:
            self.received.append(popped[1])

    def got(self, text):
        return text in self.received

    def feed(self, giver, text):
        giver.rpush(self.key, text)


def moved(clients, port, name):
    receivers = [client for client in clients if isinstance(client, Receiver)]
    since = {client: len(client.acknowledged) for client in clients}
    # A client of its own, which has nothing to do with the others' connections.
    giver = redis.Redis("127.0.0.1", port)
    deadline = time.monotonic() + PATIENCE
    begun = time.monotonic()
    waiting = receivers
    while waiting and time.monotonic() < deadline:
        for client in waiting:
            client.feed(giver, name)
        time.sleep(0.05)
        waiting = [client for client in waiting if not client.got(name)]
    took = time.monotonic() - begun
    # The others have some time as well.
    deadline = time.monotonic() + PATIENCE
    writers = [client for client in clients if not isinstance(client, Receiver)]
    while time.monotonic() < deadline and any(len(w.acknowledged) < since[w] + 20 for w in writers):
        time.sleep(0.01)
    giver.close()
    return {
        "deaf": [client.called for client in waiting],
        "received_after_ms": round(took * 1000),
        "acknowledged": {w.called: w.acknowledged[since[w] + 1 :] for w in writers},
    }


def stopped(clients):
    for client in clients:
        client.stop()
    for client in clients:
        client.join(PATIENCE)
    return {
        "stuck": [client.called for client in clients if client.is_alive()],
        "closed": {client.called: client.watch.closed for client in clients},
        "errors": {client.called: client.errors for client in clients},
        "steps": {client.called: client.steps for client in clients},
    }


def self_check(port):
    victim, killer = redis.Redis("127.0.0.1", port), redis.Redis("127.0.0.1", port)
    watch = Watch(victim.connection_pool)
    for _ in range(3):
        victim.ping()
        watch.look()
    before = watch.closed
    killer.client_kill_filter(_id=victim.client_id())
    victim.ping()
    watch.look()
    return {"before": before, "after": watch.closed}


def say(result):
    print(json.dumps(result), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--self-check", action="store_true")
    options = parser.parse_args()
    if options.self_check:
        say(self_check(options.port))
        return
    kinds = [Plain, Pipelined, Transaction, Listener, Blocked]
    clients = [kind(options.port, protocol) for protocol in (2, 3) for kind in kinds]
    for client in clients:
        client.start()
    writers = [client for client in clients if not isinstance(client, Receiver)]
    while any(len(client.acknowledged) < 20 for client in writers):
        time.sleep(0.01)
    say({"ready": True})
    for line in sys.stdin:
        match line.split():
            case ["moved", name]:
                say(moved(clients, options.port, name))
            case ["stop"]:
                say(stopped(clients))
                return


if __name__ == "__main__":
    main()
