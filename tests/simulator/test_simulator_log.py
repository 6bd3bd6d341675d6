"""The log: what it keeps, what it never shows, and waiting for it without sleeping."""

import asyncio
import hashlib
import json
from typing import Any

import aiohttp
import pytest

from gateway.clock import SystemClock
from gateway.errors import SetupError
from gateway.simulator import RequestLog, Simulator, fingerprint
from gateway.simulator.scenario import FaultRule, Scenario, scenario_from


async def test_an_entry_tells_the_whole_story_and_no_key(bare, ask, hand_clock):
    raw = json.dumps(ask("say a b")).encode()
    async with Simulator(clock=hand_clock) as sim:
        headers = {"authorization": "Bearer sk-secret-key", "x-client-request-id": "call_1.1", "Cookie": "a=sk-secret-key",
                   "content-type": "application/json"}
        async with bare.post(f"{sim.url}/chat/completions?api-version=1", data=raw, headers=headers) as answer:
            body = await answer.read()
            assert answer.headers["x-request-id"] == "req_sim000000000000000000000001"
        [entry] = await sim.finished(1)
    shown = entry.to_json()
    assert shown["headers"].pop("host")
    assert shown["headers"]["authorization"] == shown["api_key"] == fingerprint("sk-secret-key")
    assert "sk-secret" not in json.dumps(shown)
    assert (shown["seq"], shown["method"], shown["path"], shown["query"]) == (
        1, "POST", "/v1/chat/completions", "api-version=1")
    assert shown["client_request_id"] == "call_1.1"
    assert (shown["body"], shown["body_sha256"], shown["body_bytes"]) == (
        json.loads(raw), hashlib.sha256(raw).hexdigest(), len(raw))
    assert (shown["status"], shown["fault"], shown["end"], shown["bytes"]) == (200, {}, "completed", len(body))
    assert shown["usage"] == json.loads(body)["usage"]
    assert [shown[f"{what}_ns"] - shown["received_ns"] for what in ("first_byte", "last_byte", "finished")] == [1_000_000, 2_000_000, 3_000_000]
    assert shown["client_gone_ns"] is None
    assert json.loads(body)["created"] == 1_700_000_000


async def test_requests_stand_in_order_of_arrival_and_the_file_in_order_of_finishing(bare, ask, tmp_path, hand_clock):
    path = tmp_path / "requests.jsonl"
    with RequestLog(hand_clock, path=path) as log:
        async with Simulator(log=log, clock=hand_clock) as sim:
            hand_clock.released.clear()
            slow = asyncio.create_task(post(bare, sim, ask(), "delay_headers=1"))
            async with asyncio.timeout(10):
                while not sim.requests:
                    await asyncio.sleep(0)
            await post(bare, sim, ask())
            assert [entry.end for entry in sim.requests] == ["open", "completed"]
            assert [json.loads(line)["seq"] for line in path.read_text().splitlines()] == [2]
            hand_clock.released.set()
            await slow
            await sim.finished(2)
            assert [json.loads(line)["seq"] for line in path.read_text().splitlines()] == [2, 1]


async def post(bare: aiohttp.ClientSession, sim: Simulator, body: object,
               fault: str | None = None) -> tuple[int, bytes]:
    async with bare.post(f"{sim.url}/chat/completions", json=body, headers={"x-sim-fault": fault} if fault else {}) as answer:
        return answer.status, await answer.read()


async def test_a_body_that_is_not_json_is_logged_by_its_hash(bare, sim):
    async with bare.post(f"{sim.url}/chat/completions", data=b"\xff{") as answer:
        assert answer.status == 400
    [entry] = await sim.finished(1)
    assert (entry.body, entry.raw) == (None, b"\xff{")


async def test_the_ring_keeps_the_newest_and_counts_all(bare, ask):
    async with Simulator(log=RequestLog(SystemClock(), keep=2)) as sim:
        for _ in range(4):
            await post(bare, sim, ask())
        assert [entry.number for entry in await sim.finished(4)] == [3, 4]


async def test_nothing_is_kept_where_nothing_is_wanted(bare, ask):
    async with Simulator(log=RequestLog(SystemClock(), keep=0)) as sim:
        await post(bare, sim, ask())
        assert await sim.finished(1) == []


def test_bodies_count_too(monkeypatch):
    """Or 100,000 bodies of 10 MiB would."""
    monkeypatch.setattr("gateway.simulator.log._MOST_BODY_BYTES", 100)
    log = RequestLog(SystemClock())
    for size in (40, 40, 40, 500):
        log.body(log.open(), b"x" * size)
    assert [entry.number for entry in log.entries()] == [4]
    log.body(log.open(), b"")
    assert [entry.number for entry in log.entries()] == [5]


def test_a_request_that_lost_its_place_does_not_count_its_body():
    log = RequestLog(SystemClock(), keep=1)
    slow, _quick = log.open(), log.open()
    log.body(slow, b"x" * 1000)
    assert (log._body_bytes, slow.raw) == (0, b"x" * 1000)
    before = log.open()
    log.clear()
    log.body(before, b"x")
    log.close(before)
    assert (log._body_bytes, log.finished, log.received) == (0, 0, 0)


async def test_waiting_ends_with_the_count_or_with_the_time(sim, bare, ask):
    with pytest.raises(TimeoutError, match="0 of 1 requests"):
        await sim.finished(1, timeout_s=0)
    waiting = asyncio.create_task(sim.finished(2))
    await post(bare, sim, ask())
    assert not waiting.done()
    await post(bare, sim, ask())
    assert len(await waiting) == 2
    assert sim._log._waiters == []


async def test_the_log_is_read_and_waited_for_over_http(sim, bare, ask):
    async def get(path: str) -> tuple[int, dict[str, Any]]:
        async with bare.get(sim.root + path) as answer:
            return answer.status, await answer.json()
    waiting = asyncio.create_task(get("/sim/log/wait?count=3&timeout=10"))
    for _ in range(3):
        await post(bare, sim, ask())
    assert await waiting == (200, {"reached": True, "received": 3, "finished": 3})
    _status, log = await get("/sim/log?since=1&limit=1")
    assert [entry["seq"] for entry in log["requests"]] == [2]
    assert (log["received"], log["finished"]) == (3, 3)
    assert log["connections"] >= log["open_connections"] >= 1
    assert await get("/sim/log/wait?count=4&timeout=0") == (200, {"reached": False, "received": 3, "finished": 3})
    for path in ("/sim/log?since=x", "/sim/log?limit=-1", "/sim/log/wait?count=nan", "/sim/log/wait?timeout=inf"):
        assert (await get(path))[0] == 400


async def test_a_scenario_is_changed_while_it_runs_and_reset_returns_to_the_first(bare, ask):
    first = scenario_from({"fault": [{"status": 500, "times": 1}]}, "test")
    async with Simulator(first) as sim:
        async def put(body: bytes) -> tuple[int, dict[str, Any]]:
            async with bare.put(sim.root + "/sim/scenario", data=body) as answer:
                return answer.status, await answer.json()
        statuses = [(await post(bare, sim, ask()))[0] for _ in range(2)]
        assert await put(b'{"fault": [{"status": 429}], "models": ["a"]}') == (200, {"rules": 1, "models": ["a"]})
        statuses.append((await post(bare, sim, ask()))[0])
        for bad in (b"{", b"[]", b'{"fault": [{"statis": 1}]}'):
            status, answer = await put(bad)
            assert status == 400
            assert answer["error"]
        statuses.append((await post(bare, sim, ask()))[0])
        sim.play(Scenario((FaultRule(scenario_from({"fault": [{"status": 503}]}, "x").rules[0].fault),)))
        statuses.append((await post(bare, sim, ask()))[0])
        async with bare.post(sim.root + "/sim/reset") as answer:
            assert answer.status == 200
        assert sim.requests == []
        statuses += [(await post(bare, sim, ask()))[0] for _ in range(2)]
        assert statuses == [500, 200, 429, 429, 503, 500, 200]
        assert [entry.number for entry in await sim.finished(2)] == [1, 2]


async def test_a_wait_over_http_ends_with_the_simulator(bare):
    async with Simulator() as sim:
        waiting = asyncio.create_task(bare.get(sim.root + "/sim/log/wait?count=1&timeout=300"))
        async with asyncio.timeout(10):
            while not sim._log._waiters:
                await asyncio.sleep(0)
    with pytest.raises(aiohttp.ClientError):
        await waiting


def test_a_log_file_that_cannot_be_written_is_a_setup_error(tmp_path):
    with pytest.raises(SetupError, match=r"cannot write the log .*Is a directory"):
        RequestLog(SystemClock(), path=tmp_path)


async def test_connections_are_counted_and_forgotten_with_the_rest(bare, sim, ask):
    for stream in (False, True, False):
        await post(bare, sim, ask(stream=stream))
    assert (sim.connections, sim.open_connections) == (1, 1)
    async with aiohttp.ClientSession() as another:
        await post(another, sim, ask())
        assert (sim.connections, sim.open_connections) == (2, 2)
    async with asyncio.timeout(10):
        while sim.open_connections > 1:
            await asyncio.sleep(0)
    sim.reset()
    assert (sim.connections, sim.open_connections) == (0, 1)
    assert Simulator().open_connections == 0


async def test_it_tells_when_the_client_left_and_when_the_last_byte_did(bare, ask, moved_clock):
    async with Simulator(clock=moved_clock) as sim:
        asking = asyncio.create_task(bare.post(f"{sim.url}/chat/completions", json=ask("say a b", stream=True), headers={
            "x-sim-fault": "delay_headers=1;delay_first_token=2;stall_after_chunks=1"}))
        await moved_clock.asleep(1)
        await moved_clock.move(1)
        async with await asking as answer:
            await moved_clock.asleep(1)
            await moved_clock.move(2)
            await answer.content.readuntil(b"\n\n")
            await moved_clock.move(4)
            answer.close()
            [entry] = await sim.finished(1)
    came = entry.received_ns
    moments: tuple[Any, ...] = (entry.first_byte_ns, entry.last_byte_ns, entry.client_gone_ns, entry.finished_ns)
    assert [at - came for at in moments] == [
        1_000_000_000, 3_000_000_000, 7_000_000_000, 7_000_000_000]


async def test_two_simulators_live_side_by_side(bare, ask):
    async with Simulator() as one, Simulator() as two:
        assert one.url != two.url
        assert (await post(bare, one, ask()))[0] == 200
        assert (len(await one.finished(1)), two.requests) == (1, [])
        assert repr(one) == f"<Simulator {one.url} received=1 finished=1>"
        with pytest.raises(SetupError, match="is in use"):
            await Simulator(port=int(one.root.rsplit(":", 1)[1])).__aenter__()
    with pytest.raises(SetupError, match=r"cannot listen on 192\.0\.2\.1:1"):
        await Simulator(host="192.0.2.1", port=1).__aenter__()
