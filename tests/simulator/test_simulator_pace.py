"""Long streams at a pace: exact on the whole, shared in their waits, and ended whenever somebody ends them."""

import asyncio
from typing import Any

import pytest

from gateway.simulator import Fault, Scenario, Simulator
from gateway.simulator.answer import Frame
from gateway.simulator.pace import Pacer
from gateway.simulator.script import Steady


class Kept:
    """A wire that keeps when each frame came; `slow` ones make the pacer wait for `read`."""

    def __init__(self, clock, *, slow=()):
        self.clock, self.slow, self.came = clock, slow, []
        self.read = asyncio.Event()
        self.read.set()

    def put(self, frame):
        if frame.data == b"gone":
            raise ConnectionResetError("the client has gone")
        self.came.append((frame.data, round(self.clock.s, 3)))
        return frame.data not in self.slow

    async def drained(self):
        await self.read.wait()


def frames(*names):
    return iter([Frame(name, 1) for name in names])


async def run(clock, seconds, step=0.005):
    for _ in range(round(seconds / step)):
        await clock.move(step)


async def test_each_frame_comes_after_its_wait_and_none_waits_after_the_last(moved_clock):
    wire, pacer = Kept(moved_clock), Pacer(moved_clock)
    sending = asyncio.create_task(pacer.send(wire, Steady(frames(b"a", b"b", b"c"), 0.05)))
    await moved_clock.asleep(1)
    await run(moved_clock, 0.15)
    await asyncio.wait_for(sending, 10)
    assert wire.came == [(b"a", 0.05), (b"b", 0.1), (b"c", 0.15)]
    assert moved_clock.sleeping == []


async def test_the_pace_is_exact_on_the_whole_though_a_frame_may_be_late(moved_clock):
    """Or 33 ms would become 35 and a stream of an hour would last three minutes longer."""
    wire, pacer = Kept(moved_clock), Pacer(moved_clock)
    sending = asyncio.create_task(pacer.send(wire, Steady(frames(*[b"x"] * 30), 0.033)))
    await moved_clock.asleep(1)
    await run(moved_clock, 1.0)
    await asyncio.wait_for(sending, 10)
    late = [at - 0.033 * number for number, (_data, at) in enumerate(wire.came, 1)]
    assert len(late) == 30
    assert min(late) > -1e-6
    assert max(late) < 0.0051


async def test_many_streams_wait_together(moved_clock):
    wire, pacer = Kept(moved_clock), Pacer(moved_clock)
    sending = [asyncio.create_task(pacer.send(wire, Steady(frames(b"x", b"y"), 0.05))) for _ in range(100)]
    await moved_clock.asleep(1)
    for _ in range(10):
        await asyncio.sleep(0)
    assert len(moved_clock.sleeping) == 1
    await run(moved_clock, 0.1)
    await asyncio.wait_for(asyncio.gather(*sending), 10)
    assert len(wire.came) == 200


async def test_nothing_to_send_takes_no_time(moved_clock):
    await asyncio.wait_for(Pacer(moved_clock).send(Kept(moved_clock), Steady(frames(), 60.0)), 10)


async def test_a_slow_client_holds_up_its_own_stream_and_no_other(moved_clock):
    """And is not given all at once what it was too slow for."""
    slow, quick, pacer = Kept(moved_clock, slow=(b"a",)), Kept(moved_clock), Pacer(moved_clock)
    slow.read.clear()
    sending = [asyncio.create_task(pacer.send(wire, Steady(frames(b"a", b"b", b"c"), 0.05))) for wire in (slow, quick)]
    await moved_clock.asleep(1)
    await run(moved_clock, 1.0)
    assert [data for data, _at in quick.came] == [b"a", b"b", b"c"]
    assert slow.came == [(b"a", 0.05)]
    slow.read.set()
    await run(moved_clock, 0.2)
    await asyncio.wait_for(asyncio.gather(*sending), 10)
    assert slow.came[1][1] >= 1.0
    assert slow.came[2][1] - slow.came[1][1] > 0.04


async def test_a_client_that_is_gone_ends_its_own_stream_and_no_other(moved_clock):
    pacer, wire = Pacer(moved_clock), Kept(moved_clock)
    gone = asyncio.create_task(pacer.send(Kept(moved_clock), Steady(frames(b"a", b"gone", b"c"), 0.05)))
    left = asyncio.create_task(pacer.send(Kept(moved_clock), Steady(frames(b"a", b"b"), 0.05)))
    stays = asyncio.create_task(pacer.send(wire, Steady(frames(b"a", b"b", b"c"), 0.05)))
    await moved_clock.asleep(1)
    left.cancel()
    await run(moved_clock, 0.2)
    with pytest.raises(ConnectionResetError):
        await gone
    await asyncio.wait_for(stays, 10)
    assert len(wire.came) == 3


@pytest.mark.parametrize("who", ["client", "simulator"])
async def test_a_paced_stream_ends_with_its_client_or_with_the_simulator(bare, ask, who):
    async with Simulator(Scenario(pacing=Fault(delay_between_tokens_s=0.02))) as sim:
        async with bare.post(f"{sim.url}/chat/completions", json=ask("words 100000", stream=True)) as answer:
            for _ in range(4):
                await answer.content.readuntil(b"\n\n")
            if who == "client":
                answer.close()
                await sim.finished(1)
            else:
                await sim.__aexit__(None, None, None)
        [entry] = sim.requests
        assert entry.end == {"client": "client_gone", "simulator": "cut"}[who]
        assert entry.billed is not None
        assert entry.billed.completion_tokens == entry.chunks - 1 < 100
        moments: list[Any] = [entry.received_ns, entry.first_byte_ns, entry.last_byte_ns, entry.finished_ns]
        assert moments == sorted(moments)
        assert entry.client_gone_ns == (entry.finished_ns if who == "client" else None)
    assert not [task for task in asyncio.all_tasks() if "gateway/simulator" in repr(task)]
