"""Applications that know nothing of failover: plain redis-py, one thread each, as any program would use it.

What they see is noted and judged elsewhere.
"""

import collections
import pathlib
import sys
import threading
import time

import redis

sys.path.append(str(pathlib.Path(__file__).parents[1] / "support"))
from watch import Watch, code  # noqa: E402 (the line above finds it)

Write = collections.namedtuple("Write", "client token began ended error")
"""One write, `error` being None when it was acknowledged, or the error's first word."""

Stale = collections.namedtuple("Stale", "client at seen acknowledged")
"""A read that was older than the same client's acknowledged write."""


class Application(threading.Thread):
    """Writes tokens of its own, each once (RPUSH), and reads the last one back, in turns."""

    def __init__(self, number, host, port, pause=0.004):
        super().__init__(daemon=True)
        self.number = number
        self.writes = []
        self.stale = []
        self.errors = []
        self.replies = []
        self._redis = redis.Redis(host, port, decode_responses=True)
        self._watch = Watch(self._redis.connection_pool)
        self._pause = pause
        self._over = threading.Event()

    @property
    def key(self):
        return f"tokens:{self.number}"

    @property
    def closed(self):
        return self._watch.closed

    def run(self):
        acknowledged = -1
        n = 0
        while not self._over.is_set():
            token = f"{self.number}:{n}"
            began = time.monotonic()
            error = self._ask(lambda: self._redis.rpush(self.key, token))[1]
            self.writes.append(Write(self.number, token, began, time.monotonic(), error))
            if error is None:
                acknowledged = n
            n += 1
            last, error = self._ask(lambda: self._redis.lindex(self.key, -1))
            seen = int(last.split(":")[1]) if last else -1
            if error is None and seen < acknowledged:
                self.stale.append(Stale(self.number, time.monotonic(), seen, acknowledged))
            self._over.wait(self._pause)

    def _ask(self, command):
        try:
            reply, error = command(), None
            self.replies.append(time.monotonic())
        except redis.RedisError as raised:
            reply, error = None, code(raised)
            self.errors.append((time.monotonic(), error))
        self._watch.look()
        return reply, error

    def stop(self):
        self._over.set()


class Publisher(Application):
    """Publishes numbered messages."""

    def run(self):
        n = 0
        while not self._over.is_set():
            began = time.monotonic()
            token = f"message:{n}"
            error = self._ask(lambda: self._redis.publish("news", token))[1]
            self.writes.append(Write(self.number, token, began, time.monotonic(), error))
            n += 1
            self._over.wait(self._pause)


class Subscriber(threading.Thread):
    """Listens; never subscribes a second time."""

    def __init__(self, host, port):
        super().__init__(daemon=True)
        self.heard = []
        self.errors = []
        self._over = threading.Event()
        self._redis = redis.Redis(host, port, decode_responses=True)
        self._ear = self._redis.pubsub(ignore_subscribe_messages=True)
        self._ear.subscribe("news")
        self._watch = Watch(self._redis.connection_pool)

    @property
    def closed(self):
        return self._watch.closed

    def run(self):
        while not self._over.is_set():
            try:
                message = self._ear.get_message(timeout=0.2)
                if message:
                    self.heard.append((time.monotonic(), message["data"]))
            except redis.RedisError as raised:
                self.errors.append((time.monotonic(), code(raised)))
            self._watch.look()

    def stop(self):
        self._over.set()
