"""Scenarios 2, 3, 15 and 16: bursts, recoveries and outages, with many calls at once."""

import asyncio
import time
from collections import Counter
from random import Random
from typing import Any

import pytest

from gateway.simulator import Fault, FaultRule, Match, Scenario

TEXT = " ".join(f"word{n}" for n in range(10))
WORKERS = 8
EAGER = '[breaker]\nconsecutive = 2\nopen = "500ms"\nopen_cap = "1s"\n'
PROBES = "SELECT count(*) FROM paths WHERE breaker = 'half_open'"
HALF_OPENED = "SELECT coalesce(max(changes), 0) / 2 FROM breakers WHERE target = 'one/m'"  # closed, open, half-open, open, half-open, closed


def always(fault: Fault) -> Scenario:
    return Scenario(rules=(FaultRule(fault),))


async def load(wall, route: str, calls: int, *, until: asyncio.Event | None = None, max_retries: int = 0) -> list[Any]:
    """What clients see that call one after another, `WORKERS` at a time: so many calls, and then on until the event is set."""
    client, seen, left = wall.client(max_retries=max_retries), [], iter(range(calls))

    async def work() -> None:
        while next(left, None) is not None or (until is not None and not until.is_set()):
            seen.append(await wall.ask(route, f"say {TEXT}", client=client))

    await asyncio.gather(*(work() for _ in range(WORKERS)))
    wall.row.seconds = max(each.seconds for each in seen)
    return seen


def summed(seen: list[Any]) -> str:
    """What they saw, in the words of the table."""
    return ", ".join(f"{count} x {what}" for what, count in Counter(map(str, seen)).most_common())


async def test_a_burst_of_500s_is_seen_by_nobody(wall):
    """Both targets fail now and then, never both for long: each call ends with its answer, and each answer was given once."""
    wall.scene(2, "bursts of 500s on both, 40 calls")
    await wall.open(attempts=3, config="[breaker]\nenabled = false\n")
    for each, nth in ((wall.one, range(3, 9)), (wall.two, range(2, 4))):
        each.play(Scenario(rules=(FaultRule(Fault(status=500), Match(nth=frozenset(nth))),)))
    seen = await load(wall, "pair", 40)
    wall.row.saw = summed(seen)
    assert [(each.text, each.error) for each in seen] == [(TEXT, None)] * 40
    await wall.books(exact=True)
    entries = await wall.entries()
    assert sum(entry.status == 200 for each in entries.values() for entry in each) == 40


async def test_a_target_that_recovers_gets_its_calls_back(wall):
    """While it is down the next one answers and it is left alone; its first good answer brings it back."""
    wall.scene(3, "503, then recovery")
    await wall.open(config=EAGER)
    wall.one.play(always(Fault(status=503)))
    for _ in range(6):
        assert (await wall.ask("pair", f"say {TEXT}")).text == TEXT
    ((probes,),) = wall.sql(PROBES)
    assert len(wall.one.requests) == 2 + probes < 6
    wall.one.play(Scenario())
    async with asyncio.timeout(20):
        while not any(entry.status == 200 for entry in wall.one.requests):
            assert (await wall.ask("pair", f"say {TEXT}")).text == TEXT
    asked = len(wall.two.requests)
    seen = await wall.ask("pair", f"say {TEXT}")
    assert (seen.text, seen.error, len(wall.two.requests)) == (TEXT, None, asked)
    books = await wall.books(exact=True)
    assert [(each["target"], each["breaker"]) for each in books.calls[-2]["attempts"]] == [("one/m", "half_open")]
    assert [(each["target"], each["breaker"]) for each in books.calls[-1]["attempts"]] == [("one/m", "closed")]


async def test_an_outage_under_load_is_seen_by_nobody_and_the_dead_target_is_only_probed(wall):
    """One of two targets is dead for a while. At least 99.9 % of the calls succeed, with hardly more attempts than calls."""
    wall.scene(15, "dead for a while under load")
    await wall.open(config=EAGER)
    await load(wall, "pair", 40)
    over = asyncio.Event()
    wall.one.play(always(Fault(status=503)))
    asyncio.get_running_loop().call_later(2.5, over.set)
    seen = await load(wall, "pair", 80, until=over)
    dead = [entry for entry in wall.one.requests if entry.status == 503]
    wall.one.play(Scenario())
    async with asyncio.timeout(20):
        while wall.one.requests[-1].status == 503:
            seen += await load(wall, "pair", WORKERS)
    wall.row.saw, wall.row.seconds = summed(seen), max(each.seconds for each in seen)
    failed = [each for each in seen if each.error is not None or each.text != TEXT]
    assert len(failed) <= len(seen) / 1000
    await wall.books(exact=True)
    await wall.gateway.running.breakers.refresh()  # what it has not told the store yet
    ((probes,),), ((windows,),) = wall.sql(PROBES), wall.sql(HALF_OPENED)
    assert 1 <= probes <= windows  # one a half-open window, the last of them the one that found it well
    assert len(dead) <= probes + 2 + WORKERS  # and those that were on their way when it opened
    assert wall.row.attempts <= 1.2 * (len(seen) + 40)


DEATHS = {
    "503 and 503": (Fault(status=503), Fault(status=503), "upstream_failed"),
    "silence and silence": (Fault(hang=True), Fault(hang=True), "upstream_timeout"),
    "a reset and silence": (Fault(reset=True), Fault(hang=True), "upstream_failed"),
    "an empty answer and garbage": (Fault(empty=True), Fault(garbage="json"), "upstream_failed"),
}


@pytest.mark.parametrize("death", DEATHS)
async def test_where_all_targets_are_dead_there_is_one_clear_error_in_bounded_time(wall, death, slack_s):
    """Each is asked once, and the SDK is told that this is all: with its retries on it comes once."""
    wall.scene(16, f"all dead: {death}")
    await wall.open(deadlines={"headers": "300ms"})
    one, two, code = DEATHS[death]
    wall.one.play(always(one))
    wall.two.play(always(two))
    seen = await wall.ask("pair", f"say {TEXT}", client=wall.client(max_retries=2))
    assert (seen.status, seen.code, seen.text) == (504 if code == "upstream_timeout" else 502, code, "")
    assert "one/m" in str(seen.error)
    assert "two/m" in str(seen.error)
    assert seen.seconds < 0.6 + slack_s
    books = await wall.books(exact=one.status is not None)
    assert (len(wall.one.requests), len(wall.two.requests), len(books.calls)) == (1, 1, 1)


async def test_where_the_total_is_over_nobody_else_is_asked(wall, slack_s):
    """`total` bounds all attempts together, whatever each may take."""
    wall.scene(16, "all dead: silence past `total`")
    await wall.open(deadlines={"total": "400ms"}, attempts=5)
    for each in (wall.one, wall.two):
        each.play(always(Fault(hang=True)))
    seen = await wall.ask("pair", f"say {TEXT}", client=wall.client(max_retries=2))
    assert (seen.status, seen.code) == (504, "upstream_timeout")
    assert 0.4 <= seen.seconds < 0.4 + slack_s
    assert (await wall.books(exact=False)).attempts == [("one/m", "timeout:total")]
    assert wall.two.requests == []


async def test_where_all_targets_are_gone_there_is_one_clear_error_that_costs_nothing(wall, slack_s):
    wall.scene(16, "all dead: refused and refused")
    await wall.open()
    await wall.one.refuse()
    await wall.two.refuse()
    seen = await wall.ask("pair", f"say {TEXT}", client=wall.client(max_retries=2))
    assert (seen.status, seen.code) == (502, "upstream_failed")
    assert seen.seconds < slack_s
    books = await wall.books(exact=True)
    assert (books.attempts, books.booked_nusd) == ([("one/m", "connect"), ("two/m", "connect")], 0)


async def test_an_outage_of_all_targets_is_not_made_worse_by_trying_again(wall, slack_s):
    """Every client gets its one error; the attempts are little more than the calls, with the retries of SDKs on."""
    wall.scene(16, "all dead under load, 160 calls")
    await wall.open(attempts=3, extra="[route.retry.budget]\nshare = 0.2\nper_second = 1.0\n")
    for each in (wall.one, wall.two):
        each.play(always(Fault(status=503)))
    began = time.monotonic()
    seen = await load(wall, "pair", 160, max_retries=2)
    elapsed_s = time.monotonic() - began
    wall.row.saw = summed(seen)
    assert {(each.status, each.code) for each in seen} == {(502, "upstream_failed")}
    assert max(each.seconds for each in seen) < slack_s
    books = await wall.books(exact=True)
    assert books.booked_nusd == 0
    assert wall.sql("SELECT count(*) FROM calls") == [(160,)]
    burst = 10  # what the retry budget holds at the beginning
    assert len(wall.one.requests) + len(wall.two.requests) <= 160 * 1.2 + burst + elapsed_s


FAULTS = (
    Fault(status=429, retry_after_s=0.05), Fault(status=500), Fault(status=503), Fault(status=404), Fault(reset=True),
    Fault(hang=True), Fault(empty=True), Fault(garbage="json"), Fault(garbage="shape", garbage_after_chunks=4), Fault(garbage="html"),
    Fault(cut_after_chunks=3), Fault(end_after_chunks=6), Fault(stall_after_chunks=4), Fault(error_event_after_chunks=5),
    Fault(delay_first_token_s=60), Fault(length_off=10), Fault(length_off=-10), Fault(drop_done=True), Fault(no_usage=True),
    Fault(chunk_bytes=7), Fault(content_type="text/plain"),
)
CONTINUE = '[route.stream]\non_failure = "continue"\n'
CONTINUES = "continues = true\ncontinue_with = { continue_final_message = true }\n"


@pytest.mark.parametrize(("stream", "extra"), [(False, ""), (True, ""), (True, CONTINUE)], ids=["plain", "stream", "stream-continue"],
                         indirect=["stream"])
async def test_whatever_providers_do_a_client_gets_the_right_answer_or_an_error_and_the_books_are_right(wall, extra, stream):
    """Any mix of faults on both targets, many calls at once: never a wrong, doubled or shortened text that looks whole."""
    seed = 20 * stream + 5 * bool(extra)
    print(f"seed {seed}")
    wall.scene(16, f"any mix of faults, 80 calls{', gone on with' if extra else ''}")
    dice = Random(seed)
    await wall.open(deadlines={"headers": "400ms", "first_token": "400ms", "idle": "400ms", "total": "3s"}, attempts=2, extra=extra,
                    target=CONTINUES if extra else "")
    for each in (wall.one, wall.two):
        faults = [(n, dice.choice(FAULTS)) for n in range(1, 301) if dice.random() < 0.4]
        each.play(Scenario(rules=tuple(FaultRule(fault, Match(nth=frozenset((n,)))) for n, fault in faults)))
    seen = await load(wall, "pair", 80)
    wall.row.saw = summed([each.code or "whole" for each in seen])
    for each in seen:
        assert TEXT.startswith(each.text)
        assert each.text == TEXT if each.error is None else each.code is not None
        assert each.seconds < 20
    whole = sum(each.error is None for each in seen)
    assert whole >= 40
    await wall.books(exact=False)
    assert dict(wall.sql("SELECT outcome, count(*) FROM outcomes GROUP BY outcome"))["completed"] == whole
