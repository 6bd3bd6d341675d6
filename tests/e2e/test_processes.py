"""Real processes, really killed: what was dispatched is on record, what is wrong at start is said, what runs is let end."""

import asyncio
import json
import os
import random
import signal
import socket
import sys
from pathlib import Path

import aiohttp
import pytest

from gateway.store.database import open_readonly
from gateway.store.library import sqlite3

CHAT = "/v1/chat/completions"


async def talk(url: str, key: str, dice: random.Random, answered: list[str]) -> None:
    """Call after call, plain and streamed, until the gateway is gone; ids of whole answers go to `answered`."""
    async with aiohttp.ClientSession(url, headers={"Authorization": f"Bearer {key}"}) as session:
        while True:
            body = {"model": dice.choice(["fast", "backed-up"]), "stream": dice.random() < 0.5,
                    "messages": [{"role": "user", "content": f"words {dice.randrange(1, 20)}"}]}
            try:
                async with session.post(CHAT, json=body) as answer:
                    text = await answer.text()
                    assert answer.status == 200, text
                    assert not body["stream"] or text.endswith("data: [DONE]\n\n")
                    answered.append(answer.headers["X-Lockgate-Call"])
            except aiohttp.ClientError:
                return


async def test_after_kill_9_at_any_moment_every_dispatched_call_has_its_intent_and_the_doctor_is_content(town):
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    dice = random.Random(seed)
    _simulator, upstream = await town.start("simulate", "--port", "0")
    await town.lay(upstream)
    key = await town.key()
    answered: list[str] = []
    for _round in range(4):
        gateway, url = await town.start("serve", "--port", "0")
        clients = [asyncio.create_task(talk(url, key, random.Random(dice.random()), answered)) for _ in range(8)]
        wanted = len(answered) + dice.randrange(1, 40)
        async with asyncio.timeout(60):
            while len(answered) < wanted:
                await asyncio.sleep(0)
        gateway.send_signal(signal.SIGKILL)
        await gateway.wait()
        await asyncio.wait_for(asyncio.gather(*clients), 60)
        await town.run("doctor")
    async with aiohttp.ClientSession() as session, session.get(upstream.removesuffix("/v1") + "/sim/log") as said:
        received = [entry["client_request_id"] for entry in (await said.json())["requests"]]
    connection = open_readonly(town.folder / "lockgate.db")
    intents = {f"{call}.1" for (call,) in connection.execute("SELECT id FROM calls WHERE provider != ''")}
    intents |= {f"{call}.{n}" for call, n in connection.execute("SELECT id, n FROM dispatches JOIN calls USING (seq)")}
    completed = {call for (call,) in connection.execute("SELECT id FROM outcomes JOIN calls USING (seq) WHERE outcome = 'completed'")}
    connection.close()
    assert set(received) <= intents, "the provider received what no intent is on record for"
    assert len(received) == len(set(received)), "an attempt was sent twice"
    assert set(answered) <= completed, "an answer was given whose outcome was lost"
    connection = open_readonly(town.folder / "lockgate.db")
    succeeded = {f"{call}.{n}" for call, n in connection.execute("SELECT id, n FROM attempts JOIN calls USING (seq) WHERE \"end\" = 'succeeded'")}
    connection.close()
    assert succeeded <= set(received), "an attempt is on record as a success that the provider never saw"


def lives(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def children_of(process: asyncio.subprocess.Process) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


@pytest.mark.parametrize("workers", [1, 2])
async def test_sigterm_lets_calls_in_flight_end_and_takes_no_new_ones(town, workers):
    _simulator, upstream = await town.start("simulate", "--port", "0")
    await town.lay(upstream, routes='[[route]]\nname = "slow"\n[[route.targets]]\nprovider = "one"\nmodel = "m!delay_between_tokens=20ms"\n')
    key = await town.key()
    gateway, url = await town.start("serve", "--port", "0", "--workers", str(workers))
    async with aiohttp.ClientSession(url, headers={"Authorization": f"Bearer {key}"}) as session:
        body = {"model": "slow", "stream": True, "messages": [{"role": "user", "content": "words 40"}]}
        async with session.post(CHAT, json=body) as answer:
            await answer.content.readline()
            gateway.terminate()
            rest = await answer.text()
    assert rest.endswith("data: [DONE]\n\n")
    assert await asyncio.wait_for(gateway.wait(), 60) == 0
    (row,) = json.loads(await town.run("calls", "tail", "--json"))
    assert row["outcome"] == "completed"
    await town.run("doctor")


async def test_several_workers_share_the_port_the_file_and_the_counts_and_a_dead_one_is_replaced(town):
    _simulator, upstream = await town.start("simulate", "--port", "0")
    await town.lay(upstream)
    gateway, url = await town.start("serve", "--port", "0", "--workers", "3")
    key = await town.key()  # made while they run: each of them sees it within a second
    async with aiohttp.ClientSession(url, headers={"Authorization": f"Bearer {key}"}, connector=aiohttp.TCPConnector(force_close=True)) as session:
        good = 0
        async with asyncio.timeout(30):
            while good < 30:
                async with session.post(CHAT, json={"model": "fast", "messages": [{"role": "user", "content": "say x"}]}) as answer:
                    assert answer.status in (200, 401)
                    good = good + 1 if answer.status == 200 else 0
        children = children_of(gateway)
        assert len(children) == 3
        os.kill(children[0], signal.SIGKILL)
        for _ in range(30):  # the socket outlives a worker: what waits in its queue goes to the others
            try:
                async with session.post(CHAT, json={"model": "fast", "messages": [{"role": "user", "content": "say x"}]}) as answer:
                    good += answer.status == 200
            except aiohttp.ClientError:  # this one was with the worker that died
                continue
        async with asyncio.timeout(30):
            while len(now := children_of(gateway)) < 3 or children[0] in now:
                await asyncio.sleep(0)
        async with session.get("/metrics") as answer:
            counted = [float(line.rsplit(" ", 1)[1]) for line in (await answer.text()).splitlines()
                       if line.startswith("lockgate_calls_total{") and 'outcome="completed"' in line]
    assert sum(counted) >= 50
    rows = json.loads(await town.run("calls", "tail", "-n", "500", "--outcome", "completed", "--json"))
    assert len(rows) >= good
    gateway.terminate()
    assert await asyncio.wait_for(gateway.wait(), 60) == 0
    await town.run("doctor")


async def test_a_port_in_use_is_said_with_what_to_do(town):
    await town.lay("http://127.0.0.1:1/v1")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        said = await town.run("serve", "--port", str(taken.getsockname()[1]), code=1)
    assert "--port" in said
    assert "Traceback" not in said


@pytest.mark.parametrize("path", ["a directory", "read-only", "newer", "not a database"])
async def test_a_database_that_cannot_be_used_is_said_with_what_to_do(town, path):
    await town.lay("http://127.0.0.1:1/v1")
    database = town.folder / "lockgate.db"
    if path == "a directory":
        database.mkdir()
    elif path == "not a database":
        database.write_bytes(b"hello" * 1000)
    else:
        await town.key()
        if path == "newer":
            connection = sqlite3.connect(database)
            connection.execute("PRAGMA user_version = 999")
            connection.close()
        elif os.geteuid() == 0:
            pytest.skip("root may write a read-only file; the store's own tests cover it by other means")
        else:
            database.chmod(0o400)
    said = await town.run("serve", "--port", "0", code=1)
    assert "lockgate.db" in said
    assert "Traceback" not in said


async def test_an_unset_reference_is_said_by_file_line_and_key(town):
    await town.lay("http://127.0.0.1:1/v1", config='[providers.three]\nadapter = "openai"\nbase_url = "https://api.example.com/v1"\napi_key = "env:LOCKGATE_NO_SUCH"\n')
    said = await town.run("serve", "--port", "0", code=1)
    assert "config.toml:" in said
    assert "api_key" in said
    assert "LOCKGATE_NO_SUCH" in said


async def test_a_typo_in_the_configuration_is_said_with_the_nearest_name(town):
    await town.lay("http://127.0.0.1:1/v1", config="[server]\nprot = 1\n")
    said = await town.run("serve", code=1)
    assert "config.toml:" in said
    assert "port" in said


async def test_doors_open_to_the_world_without_authentication_are_not_opened(town):
    await town.lay("http://127.0.0.1:1/v1", config="[auth]\nrequired = false\n")
    said = await town.run("serve", "--host", "0.0.0.0", "--port", "0", code=1)  # noqa: S104 - this is what must not work
    assert "auth.required" in said


async def test_workers_that_cannot_start_end_the_command_with_the_reason(town):
    await town.lay("http://127.0.0.1:1/v1")
    (town.folder / "lockgate.db").mkdir()
    said = await town.run("serve", "--port", "0", "--workers", "2", code=1)
    assert "lockgate.db" in said
    assert "Traceback" not in said


async def test_several_workers_need_a_file_to_share(town):
    await town.lay("http://127.0.0.1:1/v1", config='[store]\npath = ":memory:"\n')
    assert "store.path" in await town.run("serve", "--port", "0", "--workers", "2", code=1)


async def test_help_starts_without_loading_what_it_does_not_need():
    """A command line is judged by how fast it answers; what is not imported costs nothing on any machine."""
    code = "import sys, gateway.cli; sys.argv = ['lockgate', '--help']\ntry: gateway.cli.main()\nfinally: print(*sys.modules)"
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stdout=asyncio.subprocess.PIPE)
    out, _ = await asyncio.wait_for(process.communicate(), 60)
    assert b"serve" in out
    assert not {"aiohttp", "pydantic", "rich", "sqlite_utils", "genai_prices", "celpy", "prometheus_client", "asyncio"} & set(out.decode().split())


@pytest.mark.parametrize("command", ["serve", "init", "demo", "simulate", "check", "keys", "calls", "doctor"])
async def test_every_command_explains_itself(town, command):
    said = await town.run(command, "--help")
    assert said.startswith("Usage:")
    assert len(said) > 150


async def test_the_demo_shows_what_it_promises(town):
    said = await town.run("demo")
    for shown in ("allowed", "streamed", "denied", "rule=no-payroll-data", "(shortened)", "The budget students/students has too little left",
                  "survived", "attempts=2", "cost-usd=", "waiting    bank.pay", "Grace approves", "approved", "paid       once", "All of it happened."):
        assert shown in said, said


async def test_workers_whose_supervisor_is_killed_leave_the_port(town):
    await town.lay("http://127.0.0.1:1/v1")
    gateway, url = await town.start("serve", "--port", "0", "--workers", "2")
    children = children_of(gateway)
    gateway.send_signal(signal.SIGKILL)
    await gateway.wait()
    async with asyncio.timeout(30):
        while any(lives(child) for child in children):
            await asyncio.sleep(0.01)
    with socket.socket() as free:
        assert free.connect_ex(("127.0.0.1", int(url.rsplit(":", 1)[1]))) != 0


@pytest.mark.parametrize("workers", [1, 2])
async def test_a_hang_up_does_not_end_the_gateway(town, workers):
    _simulator, upstream = await town.start("simulate", "--port", "0")
    await town.lay(upstream)
    key = await town.key()
    gateway, url = await town.start("serve", "--port", "0", "--workers", str(workers))
    gateway.send_signal(signal.SIGHUP)
    async with aiohttp.ClientSession(url, headers={"x-api-key": key}) as session:
        for _ in range(3):
            async with session.post(CHAT, json={"model": "fast", "messages": [{"role": "user", "content": "say x"}]}) as answer:
                assert answer.status == 200
        async with asyncio.timeout(30):
            counted = ""
            while f'lockgate_reloads_total{{result="ok"}} {float(workers)}' not in counted:  # it reloads, in every worker
                async with session.get("/metrics") as metrics:
                    counted = await metrics.text()
    assert gateway.returncode is None


async def test_a_worker_killed_under_load_loses_no_record(town):
    _simulator, upstream = await town.start("simulate", "--port", "0")
    await town.lay(upstream)
    key = await town.key()
    gateway, url = await town.start("serve", "--port", "0", "--workers", "2")
    answered: list[str] = []
    clients = [asyncio.create_task(talk(url, key, random.Random(n), answered)) for n in range(6)]
    async with asyncio.timeout(60):
        while len(answered) < 20:
            await asyncio.sleep(0)
        os.kill(children_of(gateway)[0], signal.SIGKILL)
        wanted = len(answered) + 20
        while len(answered) < wanted and not all(client.done() for client in clients):
            await asyncio.sleep(0)
    for client in clients:
        client.cancel()
    await asyncio.gather(*clients, return_exceptions=True)
    gateway.terminate()
    assert await asyncio.wait_for(gateway.wait(), 60) == 0
    await town.run("doctor")
    rows = json.loads(await town.run("calls", "tail", "-n", "500", "--outcome", "completed", "--json"))
    assert set(answered) <= {row["id"] for row in rows}
