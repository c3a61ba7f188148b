"""Each promise of the demo, broken by made-up observations, is found; and a good run is not blamed.

`.venv/bin/python -m unittest discover -s tests/demo` (the ordinary test run does it too).
"""

import dataclasses
import unittest

import verdict
from clients import Stale, Write

GRACE = 2
KILLED = (10.0, 10.01)
RESTARTED = 15.0
FAILBACK = (18.0, 18.1)
ENDED = 22.0


def switch(source, target, reason, fence):
    return {
        "from": source,
        "to": target,
        "reason": reason,
        "why": "made up",
        "detect_ms": 20.0,
        "switch_ms": 1.0,
        "fence_ms": fence,
    }


FAILOVER = switch("local", "remote", "refused", None)
RETURN = switch("remote", "local", "failback", 1.0)


def moments():
    """Two hundred a second from 5 to the end, but for 50 ms after the kill."""
    times = [5 + n / 200 for n in range(int((ENDED - 5) * 200))]
    return [at for at in times if not KILLED[0] < at < KILLED[0] + 0.05]


def good():
    """What a run looks like in which every promise holds, with an unknown outcome at the kill."""
    writes = [Write(0, f"0:{n}", at - 0.001, at, None) for n, at in enumerate(moments())]
    under_way = next(n for n, write in enumerate(writes) if write.began > KILLED[1])
    writes.insert(under_way, Write(0, "0:x", 9.999, KILLED[1], "OUTCOMEUNKNOWN"))
    tokens = [write.token for write in writes if write.error is None]
    published = [Write(4, f"message:{n}", at - 0.001, at, None) for n, at in enumerate(moments())]
    return verdict.Seen(
        grace=GRACE,
        killed=KILLED,
        restarted=RESTARTED,
        failback=FAILBACK,
        ended=ENDED,
        switches=[FAILOVER, RETURN],
        active="local",
        preferred="local",
        replies={"client 0": moments()},
        writes=writes,
        stale=[],
        errors=[(KILLED[1], "OUTCOMEUNKNOWN")],
        closed=0,
        found={"local": tokens, "remote": list(tokens), "third": list(tokens)},
        published=published,
        heard=[(write.ended, write.token) for write in published],
    )


class Verdicts(unittest.TestCase):
    def judged(self, **changes):
        return verdict.judge(dataclasses.replace(good(), **changes))

    def broken(self, sentence, **changes):
        """Exactly this promise is broken."""
        broken = self.judged(**changes).broken
        self.assertEqual(len(broken), 1, broken)
        self.assertIn(sentence, broken[0])

    def fact(self, judged, label):
        return next(text for name, text in judged.facts if name.strip() == label)

    def without(self, tokens):
        return {name: [t for t in found if t not in tokens] for name, found in good().found.items()}

    def test_a_good_run_is_not_blamed(self):
        judged = self.judged()
        self.assertEqual(judged.broken, [])
        self.assertEqual(self.fact(judged, "writes of unknown outcome"), "1, of which 0 were applied")
        self.assertEqual(self.fact(judged, "errors seen by clients"), "OUTCOMEUNKNOWN 1")
        self.assertRegex(self.fact(judged, "longest gap of a client"), "^5[05] ms")
        self.assertIn("none of", self.fact(judged, "acknowledged, then lost"))

    def test_a_closed_connection(self):
        self.broken("connections survive: 1", closed=1)

    def test_a_client_that_is_not_served_to_the_end(self):
        replies = {"client 0": moments(), "client 1": [m for m in moments() if m < FAILBACK[0]]}
        self.broken("served to the end: ['client 1']", replies=replies)

    def test_no_failover_or_too_many(self):
        self.broken("one failover", switches=[RETURN])
        self.broken("one failover", switches=[FAILOVER, FAILOVER, RETURN])

    def test_a_slow_failover(self):
        late = KILLED[0] + 0.35
        writes = [w for w in good().writes if w.error or not KILLED[0] <= w.began < late]
        kept = {w.token for w in writes}
        found = {name: [t for t in tokens if t in kept] for name, tokens in good().found.items()}
        self.broken("within 300 ms of SIGKILL", writes=writes, found=found)

    def test_no_traffic_at_all_after_the_kill(self):
        writes = [w for w in good().writes if w.began < KILLED[1]]
        kept = {w.token for w in writes}
        found = {name: [t for t in tokens if t in kept] for name, tokens in good().found.items()}
        self.broken("no write was answered", writes=writes, found=found)

    def test_no_failback_or_too_many(self):
        self.broken("one failback", switches=[FAILOVER])
        self.broken("one failback", switches=[FAILOVER, RETURN, RETURN])
        self.broken("it is on remote", active="remote")

    def test_a_failback_before_its_grace(self):
        self.broken("no failback before its grace of 4 s", grace=4)

    def test_a_failback_without_a_fence(self):
        self.broken("failback was not", switches=[FAILOVER, switch("remote", "local", "failback", None)])

    def test_an_error_at_the_failback(self):
        self.broken("costs no error", errors=[*good().errors, (FAILBACK[1], "OUTCOMEUNKNOWN")])

    def test_an_error_without_a_fault(self):
        self.broken("no error without a fault", errors=[(KILLED[0] - 1, "OUTCOMEUNKNOWN"), *good().errors])

    def test_an_error_that_is_not_documented(self):
        for code in ("UNAVAILABLE", "ConnectionError", "TimeoutError", "READONLY"):
            self.broken(f"['{code}']", errors=[*good().errors, (KILLED[1], code)])

    def test_more_unknown_outcomes_than_writes_under_way(self):
        again = Write(0, "0:y", KILLED[1], KILLED[1] + 0.01, "OUTCOMEUNKNOWN")
        self.broken("at most the write under way", writes=[*good().writes, again])

    def test_a_token_that_was_applied_twice(self):
        for replica in ("local", "remote", "third"):
            found = good().found
            found[replica] = [*found[replica], found[replica][7]]
            self.broken(f"on {replica} 1 were", found=found)

    def test_an_unknown_outcome_that_was_applied_once_is_fine_and_told(self):
        found = {name: [*tokens, "0:x"] for name, tokens in good().found.items()}
        judged = self.judged(found=found)
        self.assertEqual(judged.broken, [])
        self.assertEqual(self.fact(judged, "writes of unknown outcome"), "1, of which 1 were applied")

    def test_an_acknowledged_write_that_a_living_replica_lost(self):
        token = next(w.token for w in good().writes if w.began > KILLED[1] + 1)
        self.broken("a living replica acknowledged", found=self.without({token}))

    def test_what_had_not_left_the_killed_replica_is_told_and_not_blamed(self):
        last = [w.token for w in good().writes if w.error is None and w.began < KILLED[0]][-2:]
        judged = self.judged(found=self.without(set(last)))
        self.assertEqual(judged.broken, [])
        self.assertRegex(self.fact(judged, "acknowledged, then lost"), "^2 of .* 0 are not on all .*asynchronous")
        found = good().found
        found["third"] = [token for token in found["third"] if token not in last]
        judged = self.judged(found=found)
        self.assertEqual(judged.broken, [], "they had reached one of the others")
        self.assertRegex(self.fact(judged, "acknowledged, then lost"), "^0 of .* 2 are not on all")

    def test_an_acknowledged_write_that_stays_on_one_replica(self):
        found = good().found
        found["third"] = found["third"][:-1]
        self.broken("a living replica acknowledged", found=found)

    def test_reads_older_than_the_clients_own_writes(self):
        self.broken("a planned move is fenced: 1 reads", stale=[Stale(0, FAILBACK[1] + 0.1, 3, 4)])
        self.broken("no stale read without a fault", stale=[Stale(0, KILLED[0] - 1, 3, 4)])
        self.assertEqual(self.judged(stale=[Stale(0, KILLED[1] + 0.1, 3, 4)]).broken, [], "asynchronous replication")

    def test_a_subscription_that_stays_behind(self):
        heard = good().heard
        self.broken("after the failover", heard=[h for h in heard if not KILLED[1] < h[0] < FAILBACK[0]])
        self.broken("after the failback", heard=[h for h in heard if h[0] < FAILBACK[1]])

    def test_messages_are_counted(self):
        heard = good().heard
        judged = self.judged(heard=[*heard[:-1], heard[0]])
        self.assertEqual(judged.broken, [])
        self.assertIn("1 missed, 1 twice", self.fact(judged, "messages heard"))


if __name__ == "__main__":
    unittest.main()
