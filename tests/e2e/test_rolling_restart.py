"""Workers replaced one after another while callers call: real processes, the official client, and not one call lost."""

import asyncio
import itertools
import json
import os
import random
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import httpx2
import openai
import pytest

ROUNDS = 20 if os.environ.get("LOCKGATE_LONG") else 3
SOON_S = 60
CHAT = "/v1/chat/completions"
ROUTES = "".join(f"""
[[route]]
name = "{name}"
[[route.targets]]
provider = "one"
model = "{model}"
""" for name, model in (("fast", "sim-fast"), ("slow", "m!delay_between_tokens=20ms")))
SERVER = '[server]\ngrace = "1s"\n'


@dataclass
class Gate:
    """A supervisor that runs, and what it has said so far."""

    process: asyncio.subprocess.Process
    url: str
    key: str
    said: list[str] = field(default_factory=list)

    async def listen(self) -> None:
        """Until it has ended: its pipes are read to their ends."""
        assert self.process.stderr is not None
        assert self.process.stdout is not None
        async for line in self.process.stderr:
            self.said.append(line.decode())
        await self.process.stdout.read()
        await self.process.wait()

    def count(self, words: str) -> int:
        return sum(words in line for line in self.said)

    async def until(self, words: str, times: int = 1) -> None:
        """It has said this so often. Where it does not in time, the failure shows what it has said instead."""
        try:
            async with asyncio.timeout(SOON_S):
                while self.count(words) < times:
                    await asyncio.sleep(0.01)
        except TimeoutError:
            raise AssertionError(f"{words!r} was not said {times} times within {SOON_S} s, but:\n{''.join(self.said)}") from None

    def workers(self) -> set[int]:
        return {int(pid) for pid in Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()}

    async def starting(self, known: set[int]) -> int:
        """The one worker beside those that are known, the moment it is there: it takes a good while until it is ready."""
        async with asyncio.timeout(SOON_S):
            while not (new := self.workers() - known):
                await asyncio.sleep(0)
        (pid,) = new
        return pid

    async def restart(self) -> None:
        """A whole round."""
        rounds = self.count("restart: done")
        self.process.send_signal(signal.SIGUSR2)
        await self.until("restart: done", rounds + 1)

    async def post(self, path: str, headers: dict[str, str], body: Any = None) -> tuple[int, dict[str, Any]]:
        """One request on a connection of its own."""
        async with aiohttp.ClientSession(self.url, headers=headers) as session, session.post(path, json=body) as answer:
            return answer.status, await answer.json(content_type=None)

    async def say(self, text: str) -> int:
        status, _ = await self.post(CHAT, {"x-api-key": self.key}, {"model": "fast", "messages": [{"role": "user", "content": text}]})
        return status

    async def terminate(self) -> int:
        self.process.terminate()
        return await asyncio.wait_for(self.process.wait(), SOON_S)


Open = Callable[..., Awaitable[Gate]]


@pytest.fixture
async def gate(town: Any) -> AsyncIterator[Open]:
    """Starts a gateway in front of a simulator, two workers unless said otherwise."""
    listening: list[asyncio.Task[None]] = []

    async def start(workers: int = 2, config: str = SERVER) -> Gate:
        _simulator, upstream = await town.start("simulate", "--port", "0")
        await town.lay(upstream, routes=ROUTES, config=config)
        key = await town.key()
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "gateway.cli", "serve", "--port", "0", "--workers", str(workers), cwd=town.folder,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE)
        town.running.append(process)
        assert process.stdout is not None
        line = (await asyncio.wait_for(process.stdout.readline(), SOON_S)).decode()
        made = Gate(process, line.rsplit(" ready on ", 1)[1].strip(), key)
        listening.append(asyncio.create_task(made.listen()))
        return made

    yield start
    for process in town.running:
        if process.returncode is None:
            process.kill()
    await asyncio.wait_for(asyncio.gather(*listening), SOON_S)


@dataclass
class Load:
    """Callers that call without a pause, and what became of it."""

    stop: asyncio.Event = field(default_factory=asyncio.Event)
    made: int = 0
    streamed: int = 0
    failed: list[str] = field(default_factory=list)

    async def call(self, client: openai.AsyncOpenAI, dice: random.Random) -> None:
        while not self.stop.is_set():
            words = dice.randrange(1, 30)
            asked: dict[str, Any] = {"model": dice.choice(["fast", "fast", "slow"]), "messages": [{"role": "user", "content": f"words {words}"}]}
            try:
                if dice.random() < 0.5:
                    ended = None
                    async for chunk in await client.chat.completions.create(stream=True, **asked):
                        ended = chunk.choices[0].finish_reason if chunk.choices else ended
                    assert ended == "stop", ended
                    self.streamed += 1
                else:
                    answer = await client.chat.completions.create(**asked)
                    assert answer.choices[0].finish_reason == "stop"
            except (openai.APIError, httpx2.HTTPError, AssertionError) as error:  # a stream that is cut raises what the client is made of
                self.failed.append(f"{type(error).__name__}: {error}; {error.__cause__!r}")
            self.made += 1


@asynccontextmanager
async def under_load(gate: Gate, callers: int = 6) -> AsyncIterator[Load]:
    """The official client, with its connections kept alive and without its retries."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    load = Load()
    async with openai.AsyncOpenAI(base_url=f"{gate.url}/v1", api_key=gate.key, max_retries=0) as client, asyncio.TaskGroup() as group:
        for n in range(callers):
            group.create_task(load.call(client, random.Random(seed + n)))
        try:
            yield load
        finally:
            load.stop.set()


async def more(load: Load, calls: int) -> None:
    wanted = load.made + calls
    async with asyncio.timeout(SOON_S):
        while load.made < wanted:
            await asyncio.sleep(0.01)


def born(pid: int) -> int:
    """When a process was started, in ticks of the machine's clock. Its number says nothing: numbers begin again from below."""
    return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[19])


def lives(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


async def gone(pids: set[int]) -> None:
    async with asyncio.timeout(SOON_S):
        while any(map(lives, pids)):
            await asyncio.sleep(0.01)


@pytest.mark.timeout(60 * ROUNDS)
async def test_rolling_restarts_under_load_fail_no_call(gate, town):
    running = await gate()
    async with under_load(running) as load:
        await more(load, 10)
        for _ in range(ROUNDS):
            before = running.workers()
            await running.restart()
            after = running.workers()
            assert len(after) == 2
            assert before.isdisjoint(after)
            await more(load, 10)
    print(f"{load.made} calls, {load.streamed} of them streamed, over {ROUNDS} restarts")
    assert load.failed == []
    assert load.streamed
    assert await running.terminate() == 0
    await town.run("doctor")
    rows = json.loads(await town.run("calls", "tail", "-n", "500", "--json"))
    assert {row["outcome"] for row in rows} == {"completed"}


async def test_a_stream_that_is_open_when_its_worker_is_told_to_stop_ends_whole(gate):
    running = await gate()
    (old, *others) = sorted(running.workers())
    async with openai.AsyncOpenAI(base_url=f"{running.url}/v1", api_key=running.key, max_retries=0) as client:
        asked: dict[str, Any] = {"model": "slow", "messages": [{"role": "user", "content": "words 150"}]}
        streams = [await client.chat.completions.create(stream=True, **asked) for _ in range(8)]  # some with either worker
        restart = asyncio.create_task(running.restart())

        async def whole(stream: Any) -> Any:
            return [chunk.choices[0].finish_reason async for chunk in stream if chunk.choices][-1]

        assert await asyncio.wait_for(asyncio.gather(*map(whole, streams)), SOON_S) == ["stop"] * 8
        await restart
    assert running.workers().isdisjoint({old, *others})


async def test_a_restart_puts_in_force_what_no_reload_can(gate, town):
    running = await gate(config=SERVER + 'max_body = "1KiB"\n')
    assert await running.say("x" * 2000) == 413
    config = town.folder / "config.toml"
    config.write_text(config.read_text().replace("1KiB", "1MiB"))
    await running.restart()
    assert await running.say("x" * 2000) == 200


@pytest.mark.parametrize(("wrong", "told"), [
    ("[server]\nnonsense = 1\n", "restart: not begun"),
    ('[providers.three]\nadapter = "openai"\nbase_url = "https://api.example.com/v1"\napi_key = "env:LOCKGATE_NO_SUCH"\n', "given up at worker 1 of 2"),
    ('[store]\npath = ":memory:"\n', "given up at worker 1 of 2"),
])
async def test_a_worker_that_cannot_start_ends_the_round_and_those_that_run_stay(gate, town, wrong, told):
    running = await gate(config="")
    before = running.workers()
    config = town.folder / "config.toml"
    good = config.read_text()
    config.write_text(good + wrong)
    running.process.send_signal(signal.SIGUSR2)
    await running.until(told)
    assert running.workers() == before
    assert await running.say("say x") == 200
    config.write_text(good)
    await running.restart()
    assert running.workers().isdisjoint(before)


async def test_restarts_that_are_asked_for_during_a_restart_are_one_more(gate):
    running = await gate()
    running.process.send_signal(signal.SIGUSR2)
    await running.until("restart: replacing")
    for _ in range(3):
        running.process.send_signal(signal.SIGUSR2)
        await asyncio.sleep(0.01)
    await running.until("restart: done", 2)
    assert await running.terminate() == 0
    assert running.count("restart: replacing") == 2


@pytest.mark.parametrize("late", [False, True], ids=["while the new one starts", "while the old one ends"])
async def test_a_stop_during_a_restart_stops_everything(gate, town, late):
    running = await gate(config='[server]\ngrace = "20s"\n')
    before = running.workers()
    async with aiohttp.ClientSession(running.url) as session:
        for _ in range(2 if late else 1):
            async with session.get("/healthz") as answer:
                await answer.read()
        running.process.send_signal(signal.SIGUSR2)
        await running.until('"draining"' if late else "restart: replacing")
        during = running.workers()
        running.process.terminate()
        if not late:
            await session.close()
            assert await asyncio.wait_for(running.process.wait(), SOON_S) == 0
    assert await asyncio.wait_for(running.process.wait(), SOON_S) == 0
    await gone(before | during)
    assert running.count("restart: done") == 0
    await town.run("doctor")


@pytest.mark.parametrize("victim", ["an old one", "a new one"])
async def test_a_worker_killed_during_a_restart_is_replaced_and_loses_no_record(gate, town, victim):
    running = await gate()
    before = running.workers()
    async with under_load(running) as load:
        await more(load, 10)
        running.process.send_signal(signal.SIGUSR2)
        await running.until("restart: replacing")
        if victim == "a new one":
            await running.until('"draining"')  # the first is ready; the next is being started where the old one had no connection left
            os.kill(min(running.workers() - before, key=born), signal.SIGKILL)
        else:
            os.kill(max(before), signal.SIGKILL)
        await running.until("restart: done")
        async with asyncio.timeout(SOON_S):
            while len(running.workers()) != 2 or running.workers() & before:
                await asyncio.sleep(0.01)
        await more(load, 10)
        failed = len(load.failed)
        await more(load, 20)
    assert len(load.failed) == failed, "calls failed that nobody had killed"
    assert failed <= 6, "each caller had one call with the worker that was killed"
    assert all(told.startswith(("APIConnectionError", "RemoteProtocolError", "ReadError")) for told in load.failed), load.failed
    assert await running.terminate() == 0
    await town.run("doctor")


@pytest.mark.parametrize("number", [1, 2])
async def test_a_worker_killed_while_it_starts_ends_the_round_and_the_next_round_is_whole(gate, number):
    running = await gate()
    before = running.workers()
    running.process.send_signal(signal.SIGUSR2)
    known = set(before)
    for _ in range(number):
        known.add(pid := await running.starting(known))
    os.kill(pid, signal.SIGKILL)
    await running.until(f"given up at worker {number} of 2, those not yet replaced stay: A worker was ended by SIGKILL while it started")
    assert running.count("restart: done") == 0
    assert len(running.workers()) == 2
    assert len(running.workers() & before) == 3 - number
    assert await running.say("say x") == 200
    first = running.workers()
    await running.restart()
    assert len(running.workers()) == 2
    assert running.workers().isdisjoint(first)
    assert await running.say("say x") == 200


async def test_a_successor_killed_while_it_starts_is_told_of_and_has_a_successor(gate):
    running = await gate()
    before = running.workers()
    os.kill(min(before), signal.SIGKILL)
    await running.until("a new one starts in")
    running.process.send_signal(signal.SIGHUP)  # files that are found good end the pause
    os.kill(await running.starting(before), signal.SIGKILL)
    await running.until("no new worker: A worker was ended by SIGKILL while it started")
    await running.until("a new one starts in", 2)
    running.process.send_signal(signal.SIGHUP)
    await running.starting(before)
    await running.restart()
    assert len(running.workers()) == 2
    assert running.workers().isdisjoint(before)


async def test_a_reload_during_a_restart_does_not_fail_for_the_worker_that_ends(gate, town):
    running = await gate()
    admin = {"Authorization": f"Bearer {(town.folder / 'secrets/admin-token').read_text().strip()}"}
    async with openai.AsyncOpenAI(base_url=f"{running.url}/v1", api_key=running.key, max_retries=0) as client:
        asked: dict[str, Any] = {"model": "slow", "messages": [{"role": "user", "content": "words 100"}]}
        streams = [await client.chat.completions.create(stream=True, **asked) for _ in range(8)]
        running.process.send_signal(signal.SIGUSR2)
        await running.until('"draining"')
        for _ in range(3):
            status, told = await running.post("/-/reload", admin)
            assert status == 200, told
        for stream in streams:
            assert [chunk async for chunk in stream]
    await running.until("restart: done")


@pytest.mark.parametrize("workers", [1, 2])
async def test_the_signal_is_refused_with_a_word_where_it_is_sent_to_the_wrong_process(gate, workers):
    running = await gate(workers=workers)
    pids = running.workers() if workers > 1 else {running.process.pid}
    for pid, n in zip(pids, itertools.count(1), strict=False):
        os.kill(pid, signal.SIGUSR2)
        await running.until("restart_refused", n)
    assert await running.say("say x") == 200
    assert workers == 1 or running.workers() == pids
