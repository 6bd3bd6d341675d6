"""Processes that approve and claim are killed at random, again and again: nothing that was said is lost, and nothing was claimed twice.

About thirty kills; `LOCKGATE_LONG=1` makes it a thousand. `LOCKGATE_SEED=N` chooses the seed, which is printed.
"""

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gateway.store.invariants import Finding
from gateway.store.sqlite import SqliteStore

LONG = os.environ.get("LOCKGATE_LONG") == "1"
SEED = int(os.environ.get("LOCKGATE_SEED", "20261123"))
KILLS = 1000 if LONG else 30
PROCESS = Path(__file__).with_name("approving_process.py")
LATER_NS = 1_790_000_000_000_000_000 + 10**18


async def test_processes_that_are_killed_at_random_leave_sound_approvals_none_of_them_claimed_twice(
    path: Path, sql: Callable[..., Any], diagnose: Callable[..., list[Finding]],
) -> None:
    print(f"LOCKGATE_SEED={SEED}")
    done = await asyncio.to_thread(
        subprocess.run, [sys.executable, str(PROCESS), str(path), str(SEED), str(KILLS)], capture_output=True, text=True,
        timeout=3000 if LONG else 300, check=False)
    assert done.returncode == 0, done.stderr
    said = [line.split() for line in done.stdout.splitlines()]
    assert sum(words == ["killed"] for words in said) == KILLS
    last = SqliteStore(path, "last")
    await last.start(now_ns=LATER_NS)  # nobody else lives: what they left is closed
    await last.close()

    broken = [finding for finding in diagnose(now_ns=LATER_NS) if not finding.invariant.note]
    assert broken == []
    claims = {(ticket, fence): call for ticket, fence, call in sql(
        "SELECT ticket, fence, call_id FROM approval_events WHERE event = 'claim'")}
    acknowledged = [(words[1], int(words[2]), words[3]) for words in said if words[0] == "claimed"]
    assert len(acknowledged) > KILLS / 3
    assert len({(ticket, fence) for ticket, fence, _call in acknowledged}) == len(acknowledged)  # none was said to be two calls'
    assert [each for each in acknowledged if claims.get(each[:2]) != each[2]] == []
    votes = set(sql("SELECT ticket, person FROM approval_votes"))
    assert {(words[1], words[2]) for words in said if words[0] == "voted"} <= votes
    ends = set(sql("SELECT ticket, fence, event FROM approval_events WHERE event IN ('succeed', 'fail', 'lose', 'return')"))
    assert {(words[1], int(words[2]), words[3]) for words in said if words[0] == "ended"} <= ends
    assert sql("SELECT count(*) FROM approvals WHERE state = 'executing'") == [(0,)]
    died = sql("SELECT count(*) FROM approval_events WHERE reason LIKE 'The gateway process%'")
    assert died[0][0] > 0  # some of the kills fell between a claim and its end
