"""The processes of the demo: a rig of three regions and Pulsegate before it, on free ports; and their HTTP interfaces.

It owns the processes it starts and ends them, unless told to leave them.
"""

import ctypes
import json
import os
import pathlib
import signal
import subprocess
import tempfile
import threading
import time
import urllib.error
import urllib.request

PATIENCE = 30.0
"""Seconds that a start may take; everything here answers within one or two."""


class Failed(Exception):
    """The demo cannot go on: what and why, for the terminal."""


def http(method, url, timeout=PATIENCE):
    """The answer's JSON."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method=method), timeout=timeout) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        raise Failed(f"{method} {url}: {error.code} {error.read().decode(errors='replace')}") from error
    except OSError as error:
        raise Failed(f"{method} {url}: {error}") from error


def _end_with_parent():
    """The kernel's help for the case that the demo is killed: its children get SIGTERM (prctl PR_SET_PDEATHSIG)."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)


class World:
    """Three regions by the rig, and the real sidecar."""

    def __init__(self, programs, config, keep):
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="pulsegate-demo-"))
        self.keep = keep
        self._processes = {}
        try:
            self._start("rig", [programs / "rig", "run", "--regions", "3", "--json"])
            told = json.loads(self._wait_line("rig.out", lambda line: line))
            self.control = told["control"]
            self.regions = {region["name"]: region for region in told["regions"]}
            path = self._configuration(config)
            self._start("pulsegate", [programs / "pulsegate", "run", "--config", path])
            self.application = self._bound("applications")
            self.admin = "http://" + self._bound("operators")
        except BaseException:
            self.end()
            raise

    def _configuration(self, config):
        text = config
        for name, region in self.regions.items():
            text += f'\n[[replica]]\nname = "{name}"\nurl = "{region["url"]}"\n'
        path = self.folder / "pulsegate.toml"
        path.write_text(text)
        return path

    def _start(self, name, command):
        # Files, not pipes: with KEEP they outlive the demo. A session of their own: Ctrl-C is for the demo, which
        # then ends them in order.
        with open(self.folder / f"{name}.out", "w") as out, open(self.folder / f"{name}.log", "w") as log:
            try:
                self._processes[name] = subprocess.Popen(
                    [str(word) for word in command],
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=log,
                    start_new_session=True,
                    preexec_fn=None if self.keep else _end_with_parent,
                )
            except OSError as error:
                raise Failed(f"{command[0]}: {error.strerror}; `make build` makes it") from error

    def _wait_line(self, file, wanted):
        """The first whole line of the file that is wanted, once it is there."""
        name = file.split(".")[0]
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            for line in (self.folder / file).read_text().splitlines(keepends=True):
                if line.endswith("\n") and wanted(line):
                    return line
            if self._processes[name].poll() is not None:
                break
            time.sleep(0.01)
        log = (self.folder / f"{name}.log").read_text()
        raise Failed(f"{name} did not start:\n{log}")

    def _bound(self, who):
        line = self._wait_line("pulsegate.log", lambda line: f'"listening for {who}"' in line)
        return json.loads(line)["address"]

    def pids(self):
        return {name: process.pid for name, process in self._processes.items()}

    def status(self):
        return http("GET", f"{self.admin}/status")

    def wait(self, what, holds, patience=PATIENCE):
        """Waits until /status is as wished."""
        deadline = time.monotonic() + patience
        while True:
            status = self.status()
            if holds(status):
                return status
            if time.monotonic() > deadline:
                raise Failed(f"within {patience:.0f} s not {what}: {json.dumps(status, indent=1)}")
            time.sleep(0.01)

    def fault(self, path):
        """A verb of the rig; it is in force when this returns."""
        http("POST", f"{self.control}{path}")

    def converged(self):
        http("GET", f"{self.control}/converged?timeout_ms=10000")

    def follow(self, hear):
        """Calls `hear` with every event of Pulsegate, from the first, on a thread of its own."""

        def read():
            try:
                with urllib.request.urlopen(f"{self.admin}/events?recent=200", timeout=None) as stream:
                    for line in stream:
                        if line.startswith(b"data: "):
                            hear(json.loads(line[len(b"data: ") :]))
            except (OSError, ValueError):
                pass  # The sidecar has ended, or the demo has; both are told elsewhere.

        threading.Thread(target=read, daemon=True).start()

    def end(self):
        """Ends what was started, the sidecar first."""
        for process in reversed(self._processes.values()):
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                try:
                    process.wait(10)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
        for file in self.folder.iterdir():
            os.unlink(file)
        self.folder.rmdir()
