"""What providers bill against what is booked: of single calls, and of many at once while gateways are killed (the benchmark in short)."""

import asyncio
import json
import random
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import openai
import pytest

from gateway.simulator import Fault, FaultRule, Scenario

SCRIPT = Path(__file__).parents[2] / "benchmarks/overshoot.py"


async def overshoot(*options: str) -> tuple[int, dict[str, Any]]:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(SCRIPT), "--json", "--seed", str(seed), *options, cwd=SCRIPT.parents[1],
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE)
    out, err = await asyncio.wait_for(process.communicate(), 110)
    assert out, err.decode()
    return process.returncode or 0, json.loads(out)


async def test_what_providers_bill_never_passes_a_limit_though_gateways_are_killed_and_all_of_it_is_used():
    code, report = await overshoot("--calls", "300", "--processes", "2", "--kills", "1")
    assert (code, report["broken"]) == (0, [])
    assert report["kills"] == 1
    assert (report["unresolved"], report["doctor"]) == (0, "clean")
    everything = next(account for account in report["accounts"] if account["name"] == "everything/all")
    assert everything["refused"]
    assert 0.97 <= everything["used"] <= 1


async def test_what_is_compared_only_after_the_fact_is_overspent():
    """The load of the proof is one that would overspend: else the proof would show nothing."""
    code, report = await overshoot("--calls", "300", "--processes", "2", "--kills", "0", "--after-the-fact")
    (everything,) = report["accounts"]
    assert code == 0
    assert float(everything["spent"]) > 1.1 * float(everything["limit"])


WAYS: dict[str, dict[str, Any]] = {
    "whole": {}, "without usage": {"no_usage": True}, "without an end": {"drop_done": True}, "lost": {"reset": True}, "empty": {"empty": True},
    "an HTML page": {"garbage": "html"}, "cut": {"cut_after_chunks": 5}, "half": {"end_after_chunks": 5}, "ending in an error": {"error_event_after_chunks": 5},
}
UNREADABLE: dict[str, dict[str, Any]] = {f"garbage: {kind}": {"garbage": kind} for kind in ("json", "bytes", "shape")}


@pytest.mark.parametrize(("way", "stream"), [*((way, stream) for way in WAYS for stream in (False, True)), *((way, False) for way in UNREADABLE)])
async def test_no_answer_is_billed_at_more_than_is_booked_however_it_comes(house, messages, way, stream):
    """Of an answer that nobody can read, its provider has made all tokens."""
    await house.open(config='[budgets.b]\nscope = "all"\nlimit = "1"\n')
    house.one.play(Scenario((FaultRule(Fault(**(WAYS | UNREADABLE)[way])),)))
    with suppress(openai.APIError):
        answer = await house.client().chat.completions.create(model="fast", messages=messages("words 90"), max_tokens=120, stream=stream)
        if stream:
            async for _chunk in answer:
                pass
    booked = await house.spent("b/all")
    billed = [entry.billed for entry in house.one.requests]
    assert billed
    assert sum(each.prompt_tokens * 1_000 + each.completion_tokens * 2_000 for each in billed) <= booked <= 1_000_000_000
