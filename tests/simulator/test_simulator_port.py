"""A port that refuses connections: by hand, by time line, over HTTP; what is open then is reset, and the number stays the same."""

import asyncio
import json
import re
import socket
from typing import Any

import aiohttp
import pytest
import uvloop

from gateway.simulator import Fault, FaultRule, Scenario, Simulator, Timeline, TimelineStep

DEAD = TimelineStep(refuse=True)


def answers(sim: Simulator) -> bool:
    """Whether the kernel takes a connection to the port, asked by a socket of its own."""
    host, port = sim.root.removeprefix("http://").split(":")
    with socket.socket() as client:
        return client.connect_ex((host, int(port))) == 0


async def post(bare: aiohttp.ClientSession, sim: Simulator, body: object, fault: str = "") -> int:
    async with bare.post(f"{sim.url}/chat/completions", json=body, headers={"x-sim-fault": fault} if fault else {}) as answer:
        await answer.read()
        return answer.status


async def test_it_refuses_and_accepts_by_hand_on_the_same_port(bare, sim, ask):
    assert await post(bare, sim, ask()) == 200
    url = sim.url
    for _ in range(3):
        await sim.refuse()
        await sim.refuse()
        assert not answers(sim)
        with pytest.raises(aiohttp.ClientConnectorError):
            await post(bare, sim, ask())
        await sim.accept()
        await sim.accept()
        assert await post(bare, sim, ask()) == 200
    assert sim.url == url
    assert [entry.end for entry in await sim.finished(4)] == ["completed"] * 4


async def test_what_is_open_is_reset_and_the_log_says_who_did_it(bare, sim, ask):
    """An idle connection too: a client that goes on with it has to notice."""
    assert await post(bare, sim, ask()) == 200
    waiting = [asyncio.create_task(post(bare, sim, ask(stream=True), fault)) for fault in ("hang", "stall_after_chunks=1")]
    async with asyncio.timeout(10):
        while [entry.fault != {} for entry in sim.requests] != [False, True, True]:
            await asyncio.sleep(0)
    assert (sim.connections, sim.open_connections) == (2, 2)
    await sim.refuse()
    for task in waiting:
        with pytest.raises(aiohttp.ClientError):
            await task
    assert [entry.end for entry in await sim.finished(3)] == ["completed", "cut", "cut"]
    assert (sim.connections, sim.open_connections) == (2, 0)


async def test_who_connects_right_after_it_accepts_again_is_served(bare, sim, ask):
    """`play` opens the port at once, though the server takes it over a moment later."""
    sim.play(Scenario(timeline=Timeline((DEAD,))))
    assert not answers(sim)
    sim.play(Scenario())
    assert answers(sim)
    assert await post(bare, sim, ask()) == 200


async def test_who_changes_its_mind_faster_than_the_server_starts_gets_what_was_said_last(bare, sim, ask):
    for _ in range(5):
        sim.play(Scenario(timeline=Timeline((DEAD,))))
        sim.play(Scenario())
        sim.play(Scenario(timeline=Timeline((DEAD,))))
    async with asyncio.timeout(10):
        while answers(sim):
            await asyncio.sleep(0)
    with pytest.raises(aiohttp.ClientConnectorError):
        await post(bare, sim, ask())
    await sim.accept()
    assert await post(bare, sim, ask()) == 200


async def test_a_time_line_closes_and_opens_the_port(bare, ask, moved_clock):
    broken = TimelineStep(Fault(status=503), for_s=20.0)
    scenario = Scenario(timeline=Timeline((broken, TimelineStep(refuse=True, for_s=10.0), TimelineStep(for_s=5.0)), repeat=True))
    async with Simulator(scenario, clock=moved_clock) as sim:
        for _ in range(2):
            await moved_clock.asleep(1)
            assert await post(bare, sim, ask()) == 503
            await moved_clock.move(20)
            assert not answers(sim)
            await moved_clock.move(9)
            assert not answers(sim)
            await moved_clock.move(1)
            assert await post(bare, sim, ask()) == 200
            await moved_clock.move(5)
    assert not [task for task in asyncio.all_tasks() if "gateway/simulator" in repr(task)]


@pytest.mark.parametrize("how", ["play", "reset", "hand"])
async def test_what_is_told_meanwhile_ends_the_time_line(bare, ask, moved_clock, how):
    async with Simulator(clock=moved_clock) as sim:
        sim.play(Scenario(timeline=Timeline((TimelineStep(refuse=True, for_s=10.0), TimelineStep(for_s=10.0), DEAD))))
        assert not answers(sim)
        if how == "hand":
            await sim.accept()
        elif how == "play":
            sim.play(Scenario())
        else:
            sim.reset()
        await moved_clock.move(100)
        assert await post(bare, sim, ask()) == 200


async def test_a_scenario_of_the_start_counts_from_when_the_port_is_open(bare, ask, moved_clock):
    sim = Simulator(Scenario(timeline=Timeline((TimelineStep(Fault(status=500), for_s=10.0),))), clock=moved_clock)
    await moved_clock.move(100)
    async with sim:
        assert await post(bare, sim, ask()) == 500
        await moved_clock.move(10)
        assert await post(bare, sim, ask()) == 200


async def test_a_simulator_may_begin_dead_and_end_dead():
    sim = Simulator(Scenario(timeline=Timeline((DEAD,))))
    async with sim:
        assert re.fullmatch(r"http://127\.0\.0\.1:[1-9]\d*/v1", sim.url)
        assert not answers(sim)
    assert not answers(sim)
    await sim.refuse()  # nothing listens any more, so there is nothing to close


async def test_whoever_sends_a_dead_scenario_over_http_gets_an_answer(bare, ask, moved_clock):
    """And so does whoever waits for the log meanwhile; what comes next on these connections is refused as everything is."""
    async with Simulator(clock=moved_clock) as sim:
        waiting = asyncio.create_task(bare.get(f"{sim.root}/sim/log/wait?count=1&timeout=0.5"))
        async with asyncio.timeout(10):
            while not sim._log._waiters:
                await asyncio.sleep(0)
        scenario = {"timeline": [{"for": "5s", "refuse": True}, {"for": "1s", "status": 503}], "repeat": True}
        async with bare.put(f"{sim.root}/sim/scenario", data=json.dumps(scenario)) as answer:
            assert answer.status == 200
        async with await waiting as answer:
            assert (await answer.json())["reached"] is False
        with pytest.raises(aiohttp.ClientConnectorError):
            await post(bare, sim, ask())
        await moved_clock.move(5)
        assert await post(bare, sim, ask()) == 503
        async with bare.get(f"{sim.root}/sim/log") as answer:
            log: dict[str, Any] = await answer.json()
        assert (log["connections"], log["open_connections"], log["received"]) == (3, 1, 1)  # the last two requests came on one connection


async def test_a_port_of_both_families_closes_and_opens_in_both(bare, ask):
    try:
        sim = await Simulator(host="::1").__aenter__()
    except OSError:
        pytest.skip("no IPv6 here")
    try:
        await sim.refuse()
        with pytest.raises(aiohttp.ClientConnectorError):
            await post(bare, sim, ask())
        await sim.accept()
        assert await post(bare, sim, ask()) == 200
    finally:
        await sim.__aexit__(None, None, None)


def test_it_does_so_on_the_loop_of_the_command_too(ask):
    async def through() -> list[int]:
        async with aiohttp.ClientSession() as bare, Simulator(Scenario((FaultRule(Fault(times=1)),))) as sim:
            statuses = []
            for _ in range(3):
                statuses.append(await post(bare, sim, ask()))
                await sim.refuse()
                assert not answers(sim)
                await sim.accept()
            return statuses
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(through()) == [200] * 3
