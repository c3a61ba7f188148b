"""The demo: three regions, Pulsegate, and clients that know nothing of failover, while the local replica dies and returns.

`make demo` runs it; `--help` tells the rest. It ends with 0 when every promise held, with 1 when one broke or the demo
could not run.
"""

import argparse
import os
import pathlib
import shutil
import signal
import sys
import threading
import time

import redis
import verdict
from clients import Application, Publisher, Subscriber
from world import Failed, World

CONFIG = """\
[listener]
bind = ["127.0.0.1:0"]

[admin]
bind = "127.0.0.1:0"

[detection]
profile = "fast"

[failover]
dwell = "2s"

[failback]
mode = "immediate"
grace = "{grace}s"

[log]
format = "json"
"""

CLIENTS = 4

TOLD = {"switch", "health", "failback", "move", "tilt", "pin"}
"""Kinds of events for the timeline; those of single links and routes are in /events."""


class Timeline:
    """What happens, line by line, with the clients' counters between; on a terminal those are redrawn in place."""

    def __init__(self):
        self._lock = threading.Lock()
        self._live = sys.stdout.isatty()
        self._began = time.monotonic()
        self._drawn = False

    def _style(self, code, text):
        return f"\x1b[{code}m{text}\x1b[0m" if self._live and "NO_COLOR" not in os.environ else text

    def _line(self, who, text, style):
        with self._lock:
            if self._drawn:
                print("\r\x1b[K", end="")
                self._drawn = False
            stamp = f"{time.monotonic() - self._began:7.2f} s"
            print(f"{stamp}  {self._style(style, f'{who:<10}')} {text}", flush=True)

    def phase(self, text):
        self._line("demo", self._style("1", text), "1;36")

    def event(self, event):
        if event["kind"] in TOLD:
            self._line("pulsegate", event["message"], "33" if event["kind"] != "switch" else "1;33")

    def counters(self, text):
        if not self._live:
            self._line("clients", text, "32")
            return
        with self._lock:
            stamp = f"{time.monotonic() - self._began:7.2f} s"
            # A line that wraps could not be redrawn.
            text = text[: max(shutil.get_terminal_size().columns - 23, 0)]
            print(f"\r\x1b[K{stamp}  {self._style('32', 'clients   ')} {text}", end="", flush=True)
            self._drawn = True

    @property
    def interval(self):
        return 0.25 if self._live else 1.0


class Crowd:
    """All clients, and what they have seen together."""

    def __init__(self, host, port):
        self.subscriber = Subscriber(host, port)
        self.applications = [Application(n, host, port) for n in range(CLIENTS)]
        self.publisher = Publisher(CLIENTS, host, port, pause=0.02)
        self.everyone = [self.subscriber, *self.applications, self.publisher]
        for client in self.everyone:
            client.start()
        self._before = (time.monotonic(), 0)

    @property
    def closed(self):
        return sum(client.closed for client in self.everyone)

    @property
    def errors(self):
        return sorted(error for client in self.everyone for error in client.errors)

    def counters(self):
        """One line."""
        now = time.monotonic()
        replies = sum(len(client.replies) for client in [*self.applications, self.publisher])
        since, before = self._before
        self._before = (now, replies)
        rate = (replies - before) / max(now - since, 0.001)
        waits = [now - client.replies[-1] for client in self.applications if client.replies]
        wait = max(waits, default=0) * 1000
        # A few milliseconds are their own pauses.
        waiting = f", waiting {wait:.0f} ms" if wait > 30 else ""
        errors = verdict.counted(self.errors)
        return (
            f"{rate:5.0f} replies/s, errors {errors}, closed {self.closed}, "
            f"messages heard {len(self.subscriber.heard)}{waiting}"
        )

    def stop(self):
        for client in self.everyone:
            client.stop()
        for client in self.everyone:
            client.join(10)
        stuck = sum(client.is_alive() for client in self.everyone)
        if stuck:
            raise Failed(f"{stuck} clients have no answer yet, ten seconds after the end")


def found(world):
    """Tokens by replica, asked of the servers themselves."""
    tokens = {}
    for name, region in world.regions.items():
        host, port = region["direct_addr"].rsplit(":", 1)
        server = redis.Redis(host, int(port), decode_responses=True)
        tokens[name] = [token for n in range(CLIENTS) for token in server.lrange(f"tokens:{n}", 0, -1)]
        server.close()
    return tokens


def play(world, timeline, times):
    """The whole story; what was seen."""
    names = list(world.regions)
    preferred = names[0]
    world.wait(
        "in sync everywhere",
        lambda s: s["active"] == preferred and all(r["fitness"] == "in_sync" for r in s["replicas"]),
    )
    starts = len(world.status()["last_switches"])
    host, port = world.application.rsplit(":", 1)
    crowd = Crowd(host, int(port))
    over = threading.Event()

    def report():
        while not over.wait(timeline.interval):
            timeline.counters(crowd.counters())

    reporter = threading.Thread(target=report, daemon=True)
    reporter.start()
    timeline.phase(f"steady: {CLIENTS} clients read and write, one publishes, one listens, all at {world.application}")
    time.sleep(times.steady)

    timeline.phase(f"SIGKILL of the replica {preferred}")
    asked = time.monotonic()
    world.fault(f"/regions/{preferred}/kill")
    killed = (asked, time.monotonic())
    world.wait("failed over", lambda s: s["active"] != preferred, patience=10)
    time.sleep(times.away)

    timeline.phase(f"the replica {preferred} starts again, empty, and is made anew from the others")
    restarted = time.monotonic()
    world.fault(f"/regions/{preferred}/restart")
    before = time.monotonic()
    deadline = before + times.grace + 20
    while world.status()["active"] != preferred:
        if time.monotonic() > deadline:
            break
        before = time.monotonic()
        time.sleep(0.02)
    # The move began while the last look but one still saw the old replica, held traffic included.
    failback = (before - 0.05, time.monotonic())
    time.sleep(times.home)
    ended = time.monotonic()
    over.set()
    reporter.join()
    timeline.phase("the clients stop")
    crowd.stop()
    world.converged()
    status = world.status()
    return verdict.Seen(
        grace=times.grace,
        killed=killed,
        restarted=restarted,
        failback=failback,
        ended=ended,
        switches=status["last_switches"][starts:],
        active=status["active"],
        preferred=preferred,
        replies={f"client {client.number}": client.replies for client in crowd.applications},
        writes=[write for client in crowd.applications for write in client.writes],
        stale=[stale for client in crowd.applications for stale in client.stale],
        errors=crowd.errors,
        closed=crowd.closed,
        found=found(world),
        published=crowd.publisher.writes,
        heard=crowd.subscriber.heard,
    )


def summarize(judged):
    print("\nSummary")
    for label, text in judged.facts:
        print(f"  {label:<28} {text}")
    if judged.broken:
        print(f"\n{len(judged.broken)} promise{'s' if len(judged.broken) > 1 else ''} BROKEN")
        for sentence in judged.broken:
            print(f"  - {sentence}")
    else:
        print("\nEvery promise held.")
    sys.stdout.flush()


def farewell(world):
    """Where everything is that was left running."""
    pids = world.pids()
    print("\nLeft running (KEEP):")
    print(f"  applications   redis://{world.application}")
    print(f"  pulsegate      {world.admin}/status   (pid {pids['pulsegate']})")
    print(f"  rig            {world.control}/status   (pid {pids['rig']})")
    for name, region in world.regions.items():
        print(f"  {name:<14} {region['url']}   (server {region['direct_addr']})")
    first = next(iter(world.regions))
    print(f"\n  kill and restart:  curl -X POST {world.control}/regions/{first}/kill   (…/restart)")
    print(f"  logs, configuration: {world.folder}")
    print(f"  stop:  kill {pids['pulsegate']} {pids['rig']} && rm -r {world.folder}", flush=True)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--programs",
        type=pathlib.Path,
        default=pathlib.Path("target/debug"),
        metavar="FOLDER",
        help="where pulsegate and rig are [default: %(default)s]",
    )
    parser.add_argument("--short", action="store_true", help="a third of the time, for tests")
    parser.add_argument("--keep", action="store_true", help="leave all running at the end, and print the addresses")
    options = parser.parse_args()
    seconds = (2, 1.5, 2, 2) if options.short else (6, 5, 6, 5)
    options.steady, options.away, options.grace, options.home = seconds
    return options


def main():
    times = arguments()
    for sign in (signal.SIGINT, signal.SIGTERM):
        signal.signal(sign, interrupt)
    timeline = Timeline()
    timeline.phase("starting three regions and pulsegate")
    world, left = World(times.programs, CONFIG.format(grace=times.grace), times.keep), False
    try:
        world.follow(timeline.event)
        judged = verdict.judge(play(world, timeline, times))
        summarize(judged)
        if times.keep:
            farewell(world)
            left = True
    finally:
        if not left:
            world.end()
    return 1 if judged.broken else 0


def interrupt(sign, _frame):
    # Once: ending takes a moment, and must not be interrupted.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KeyboardInterrupt(sign)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Failed as failed:
        print(f"\ndemo: {failed}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt as interrupted:
        print("\ndemo: interrupted, everything it started has ended", file=sys.stderr)
        sys.exit(128 + interrupted.args[0])
