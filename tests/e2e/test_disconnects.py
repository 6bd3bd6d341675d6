"""Clients that go away at every point, at random moments: nothing of them stays, and the books are right (`benchmarks/disconnects.py` in short)."""

import asyncio
import gc
import random
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from benchmarks.leaving import PLAIN_POINTS, POINTS, Leaver, leave
from gateway.simulator import Fault, FaultRule, Match, Scenario, Simulator

AT_ONCE = 20
SOON_S = 20
PRICES = {"sim-fast": (1_000, 2_000), "sim-large": (10_000, 20_000), "sim-small": (100, 200)}  # nano-USD a token
CONFIG = """
[budgets.everything]
scope = "all"
limit = "1000"
[budgets.users]
scope = "user"
limit = "100"
window = "24h"
"""
RULE = '[[rule]]\nid = "at-a-time"\neffect = "limit"\nlimit = { concurrent = 1000, by = ["key"] }\n'
PACE = Fault(delay_first_token_s=0.01, delay_between_tokens_s=0.001)
FAILING = Scenario(pacing=PACE, rules=(
    FaultRule(Fault(status=503), Match(nth=frozenset(range(5, 200, 17)))),
    FaultRule(Fault(no_usage=True), Match(nth=frozenset(range(3, 200, 11)))),
    FaultRule(Fault(cut_after_chunks=3), Match(nth=frozenset(range(7, 200, 23))))))


def leavers(dice: random.Random) -> list[Leaver]:
    """Eight calls for each point, and either way of leaving, plain and streamed."""
    made = []
    for number, (point, stream) in enumerate([(point, True) for point in POINTS * 8] + [(point, False) for point in PLAIN_POINTS * 8]):
        made.append(Leaver(number, dice.choice(("fast", "backed-up")), dice.randrange(5, 30), stream, point, dice.random() < 0.5,
                           dice.choice((0.0, 0.01, 0.1)) * dice.random(), dice.random()))
    dice.shuffle(made)
    return made


def sockets() -> int:
    count = 0
    for link in Path("/proc/self/fd").iterdir():
        with suppress(OSError):  # the folder's own descriptor is closed by now
            count += 1 if str(link.readlink()).startswith("socket:") else 0
    return count


async def spin_until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(SOON_S):
        while not holds():
            await asyncio.sleep(0)


async def all_leave(house: Any, made: list[Leaver]) -> dict[int, str]:
    """Make the calls, so many at a time; what each client saw, by its call's number."""
    address, left, seen = urlsplit(house.gateway.url), iter(made), {}

    async def client() -> None:
        for leaver in left:
            seen[leaver.number], _ns = await leave(leaver, str(address.hostname), int(address.port or 0), house.key)

    async with asyncio.TaskGroup() as group:
        for _ in range(AT_ONCE):
            group.create_task(client())
    return seen


def billed(*simulators: Simulator) -> tuple[Counter[str], set[str]]:
    """What providers bill for each call, in nano-USD, and the calls whose providers did not say all of it."""
    bills: Counter[str] = Counter()
    silent = set()
    for entry in (entry for simulator in simulators for entry in simulator.requests):
        call = str(entry.client_request_id).rpartition(".")[0]
        input_nusd, output_nusd = PRICES[entry.body["model"]]
        if entry.billed is not None:
            bills[call] += entry.billed.prompt_tokens * input_nusd + entry.billed.completion_tokens * output_nusd
            if entry.usage is None or entry.end != "completed":
                silent.add(call)
    return bills, silent


async def test_clients_that_leave_at_every_point_leave_nothing_behind_and_the_books_are_right(house):
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    made = leavers(random.Random(seed))
    for simulator in (house.one, house.two):
        simulator.play(FAILING)
    await house.open(config=CONFIG, policies=RULE)
    app = house.gateway.running
    tasks_before, sockets_before = asyncio.all_tasks(), sockets()

    seen = await all_leave(house, made)
    assert len(seen) == len(made) == 152

    total = await house.spent("everything/all")  # once nothing is under way; nothing is set aside, unresolved, or as doctor would not have it
    bills, silent = billed(house.one, house.two)
    booked = {call: (cost, bool(estimated), outcome) for call, cost, estimated, outcome in house.sql(
        "SELECT calls.id, cost_nusd, (SELECT max(estimated) FROM ledger WHERE ledger.seq = calls.seq), outcome FROM calls "
        "JOIN settlements USING (seq) JOIN (SELECT seq, outcome FROM outcomes) USING (seq)")}
    outcomes = Counter(outcome for _cost, _estimated, outcome in booked.values())
    print(outcomes, Counter(seen.values()))
    assert outcomes["cancelled"] > 5, "some left while their provider worked"
    assert outcomes["completed"] > 30
    assert {call: (nusd, booked[call]) for call, nusd in bills.items() if booked[call][0] < nusd} == {}, "billed at more than is booked"
    exact = {call for call in bills if not booked[call][1]}
    assert {call: (bills[call], booked[call]) for call in exact if booked[call][0] != bills[call]} == {}, "not what was told, and no estimate"
    assert {call for call in booked.keys() - exact - silent if booked[call][0] and booked[call][2] == "completed"} == set(), "told and not believed"
    assert sum(cost for cost, _estimated, _outcome in booked.values()) == total
    assert sum(balance.posted for name, balance in (await house.accounts()).items() if name.startswith("users/")) == total
    assert house.sql("SELECT whose, value FROM rates WHERE measure = 'concurrent' AND value != 0") == []

    broken = {int(entry.body["messages"][0]["content"].rpartition(" ")[2]) for simulator in (house.one, house.two)
              for entry in simulator.requests if entry.end == "cut" or entry.status != 200}
    stayed = [leaver.number for leaver in made if leaver.point == "never"]
    assert {seen[number] for number in stayed if number not in broken} == {"whole"}

    for simulator in (house.one, house.two):
        await simulator.refuse()  # the connections that are kept for later calls end with it
    await spin_until(lambda: app.proxy.in_flight == 0 and asyncio.all_tasks() <= tasks_before)
    gc.collect()
    await spin_until(lambda: sockets() <= sockets_before)
