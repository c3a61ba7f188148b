"""What was seen, against what is promised. Pure: no clock, no network; `python -m unittest` tests it by itself.

Times are seconds of one monotonic clock, durations in results are milliseconds.
"""

import collections
import dataclasses

MOVED_WITHIN_MS = 300.0
"""Profile `fast`: from SIGKILL to traffic on another replica."""

DOCUMENTED = {"OUTCOMEUNKNOWN"}
"""Errors that an application may see when a replica is killed while others live."""


@dataclasses.dataclass
class Seen:
    """Everything that the demo noted."""

    grace: float
    """Seconds: `failback.grace`."""
    killed: tuple
    """When SIGKILL was asked for, and when it was in force."""
    restarted: float
    """When the replica's restart was asked for."""
    failback: tuple
    """Just before the failback began at the latest, and just after it was seen."""
    ended: float
    """When the clients stopped."""
    switches: list
    """`last_switches` of /status after the start's."""
    active: str
    """The active replica at the end."""
    preferred: str
    """The replica that was killed and came back."""
    replies: dict
    """Moments of successful replies, by client."""
    writes: list
    """`Write`s of tokens, of all clients."""
    stale: list
    """`Stale` reads."""
    errors: list
    """(moment, code) of all clients, the subscriber too."""
    closed: int
    """Connections that the clients had to open again."""
    found: dict
    """Tokens on each replica once all links have caught up: {replica: [token, ...]}."""
    published: list
    """`Write`s of messages."""
    heard: list
    """(moment, message) of the subscriber."""


@dataclasses.dataclass
class Verdict:
    """What the summary shows."""

    facts: list = dataclasses.field(default_factory=list)
    """(label, text)"""
    broken: list = dataclasses.field(default_factory=list)
    """One sentence for each broken promise."""

    def promise(self, kept, sentence):
        if not kept:
            self.broken.append(sentence)


def longest_gap(replies, start, end):
    """Milliseconds: the longest time between two successive replies of one client, of gaps that touch [start, end]."""
    longest = 0.0
    for moments in replies.values():
        for before, after in zip(moments, moments[1:]):
            if before <= end and after >= start:
                longest = max(longest, after - before)
    return longest * 1000


def counted(errors):
    counts = collections.Counter(code for _, code in errors)
    return ", ".join(f"{code} {n}" for code, n in sorted(counts.items())) or "none"


def judge(seen):
    verdict = Verdict()
    _connections(seen, verdict)
    _failover(seen, verdict)
    _failback(seen, verdict)
    _writes(seen, verdict)
    _messages(seen, verdict)
    return verdict


def _connections(seen, verdict):
    total = sum(len(moments) for moments in seen.replies.values())
    verdict.facts.append(("replies", f"{total} to {len(seen.replies)} clients"))
    verdict.facts.append(("connections closed", str(seen.closed)))
    verdict.promise(seen.closed == 0, f"the application's connections survive: {seen.closed} had to be opened again")
    silent = [name for name, moments in seen.replies.items() if not any(m > seen.failback[1] for m in moments)]
    verdict.promise(not silent, f"every client is served to the end: {silent} were not, after the failback")


def _failover(seen, verdict):
    asked, in_force = seen.killed
    away = [s for s in seen.switches if s["from"] == seen.preferred]
    verdict.promise(len(away) == 1, f"one failover for one kill: there were {len(away)}")
    if away:
        switch = away[0]
        verdict.facts.append(("failover", f"{switch['from']} to {switch['to']} ({switch['reason']}: {switch['why']})"))
        verdict.facts.append(("  detection", f"{switch['detect_ms']:.0f} ms since the last good sign"))
        verdict.facts.append(("  switch", f"{switch['switch_ms']:.1f} ms"))
    # Begun after the kill was in force, answered: by another replica.
    first = [w.ended for w in seen.writes if w.error is None and w.began >= in_force]
    if first:
        moved = (min(first) - asked) * 1000
        verdict.facts.append(("  first write elsewhere", f"{moved:.0f} ms after SIGKILL"))
        verdict.promise(
            moved < MOVED_WITHIN_MS,
            f"traffic on another replica within {MOVED_WITHIN_MS:.0f} ms of SIGKILL: it took {moved:.0f} ms",
        )
    else:
        verdict.promise(False, "traffic moves to another replica: no write was answered after the kill")
    steady = longest_gap(seen.replies, 0, asked - 0.5)
    gap = longest_gap(seen.replies, asked, in_force + 0.5)
    verdict.facts.append(("  longest gap of a client", f"{gap:.0f} ms (before the kill: {steady:.0f} ms)"))


def _failback(seen, verdict):
    back = [s for s in seen.switches if s["to"] == seen.preferred]
    verdict.promise(len(back) == 1, f"one failback for one recovery: there were {len(back)}")
    verdict.promise(seen.active == seen.preferred, f"traffic returns to {seen.preferred}: it is on {seen.active}")
    if back:
        switch = back[0]
        fence = switch["fence_ms"]
        waited = seen.failback[1] - seen.restarted
        verdict.facts.append(("failback", f"{switch['from']} to {switch['to']}, {waited:.1f} s after the restart"))
        crossed = f"{fence:.1f} ms for the fence" if fence is not None else "not fenced"
        verdict.facts.append(("  switch", f"{switch['switch_ms']:.1f} ms, of it {crossed}"))
        verdict.promise(fence is not None, "a planned move is fenced: the failback was not")
        verdict.promise(
            waited >= seen.grace, f"no failback before its grace of {seen.grace:.0f} s: it came after {waited:.1f} s"
        )
    gap = longest_gap(seen.replies, *seen.failback)
    verdict.facts.append(("  longest gap of a client", f"{gap:.0f} ms"))
    # A client notes an error when it has come: a little after the cause.
    quiet = [code for at, code in seen.errors if at >= seen.failback[0]]
    verdict.promise(not quiet, f"a planned move costs no error: the failback cost {quiet}")


def _writes(seen, verdict):
    verdict.facts.append(("errors seen by clients", counted(seen.errors)))
    strange = sorted({code for _, code in seen.errors} - DOCUMENTED)
    verdict.promise(not strange, f"only documented errors: there were also {strange}")
    early = [code for at, code in seen.errors if at < seen.killed[0]]
    verdict.promise(not early, f"no error without a fault: there were {early} before the kill")

    on_any = set().union(*map(set, seen.found.values()))
    unknown = [w for w in seen.writes if w.error is not None]
    applied = sum(w.token in on_any for w in unknown)
    verdict.facts.append(("writes of unknown outcome", f"{len(unknown)}, of which {applied} were applied"))
    clients = len({w.client for w in seen.writes})
    verdict.promise(
        len(unknown) <= clients, f"at most the write under way fails: {len(unknown)} failed for {clients} clients"
    )

    doubled = 0
    for replica, tokens in seen.found.items():
        twice = [token for token, n in collections.Counter(tokens).items() if n > 1]
        doubled += len(twice)
        verdict.promise(not twice, f"nothing is applied twice: on {replica} {len(twice)} were, {twice[:3]} among them")
    total = sum(map(len, seen.found.values()))
    verdict.facts.append(("applied twice", f"{doubled or 'none'} of {total} tokens counted on {len(seen.found)} replicas"))

    acknowledged = [w for w in seen.writes if w.error is None]
    # Until the kill they went to the replica that died; its last ones may not have left it, or may have reached one of
    # the others only. All later ones went to replicas that lived.
    on_all = set.intersection(*map(set, seen.found.values()))
    missing = [w for w in acknowledged if w.token not in on_all]
    excused = [w for w in missing if w.began <= seen.killed[1]]
    lost = [w for w in missing if w.began > seen.killed[1]]
    verdict.facts.append(("acknowledged, then lost", _lost(acknowledged, excused, on_any, seen)))
    verdict.promise(
        not lost,
        f"what a living replica acknowledged is kept everywhere: {len(lost)} are not, {[w.token for w in lost[:3]]} …",
    )

    after = [s for s in seen.stale if s.at >= seen.failback[0]]
    verdict.facts.append(("reads older than own writes", f"{len(seen.stale)} ({len(after)} of them since the failback)"))
    verdict.promise(not after, f"a planned move is fenced: {len(after)} reads since were older than their own writes")
    early = [s for s in seen.stale if s.at < seen.killed[0]]
    verdict.promise(not early, f"no stale read without a fault: there were {len(early)} before the kill")


def _lost(acknowledged, excused, on_any, seen):
    if not excused:
        return f"none of {len(acknowledged)}"
    gone = sum(w.token not in on_any for w in excused)
    last = (seen.killed[1] - min(w.ended for w in excused)) * 1000
    return (
        f"{gone} of {len(acknowledged)}, and {len(excused) - gone} are not on all replicas; all by the killed one in its "
        f"last {max(last, 0):.0f} ms: replication is asynchronous"
    )


def _messages(seen, verdict):
    # Redis itself delivers messages at most once, and two replicas may each deliver one that crosses a move: counted,
    # and not judged. What is promised is that the subscription moves along.
    heard = [message for _, message in seen.heard]
    sent = {w.token for w in seen.published if w.error is None}
    twice = len(heard) - len(set(heard))
    missed = len(sent - set(heard))
    verdict.facts.append(
        ("messages heard", f"{len(set(heard))} of {len(sent)} published, {missed} missed, {twice} twice")
    )
    for name, start, end in [
        ("before the kill", 0, seen.killed[0]),
        ("after the failover", seen.killed[1], seen.failback[0]),
        ("after the failback", seen.failback[1], seen.ended),
    ]:
        # Some time for the first one, and not only what was on its way.
        middle = (max(start, seen.killed[0] - 1) + end) / 2
        verdict.promise(
            any(middle <= at < end for at, _ in seen.heard), f"subscriptions move along: nothing was heard {name}"
        )
