"""Files change while calls run, through the front door: no call fails, none is judged by two bundles, and what is broken changes nothing."""

import asyncio
import hashlib
import itertools
import json
import os
import random
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest

from gateway.errors import ConfigError, SetupError, StoreUnavailable

CHAT = "/v1/chat/completions"
RELOADS = 100
SOON_S = 30
ADMIN = {"Authorization": "Bearer admin-token-of-the-tests"}
# Each phase writes the letter of its bundle on the call: a call that was judged by two would have both.
RULES = "".join(f"""
[[rule]]
id = "{{letter}}-{phase}"
phase = "{phase}"
effect = "log"
label = "{{letter}}-{phase}"
""" for phase in ("request", "response"))
BROKEN = RULES.format(letter="z") + 'when = "request.modle"\n'


def bundle_of(metrics: str) -> set[str]:
    """The bundles in force, by the metrics of every worker."""
    return {line.split('bundle="')[1].split('"')[0] for line in metrics.splitlines() if 'bundle="' in line and line.endswith(" 1.0")}


async def call_until(stop: asyncio.Event, session: aiohttp.ClientSession, dice: random.Random) -> int:
    """Call after call, plain and streamed; each has to be answered whole."""
    made = 0
    while not stop.is_set():
        body = {"model": "fast", "stream": dice.random() < 0.5, "messages": [{"role": "user", "content": f"words {dice.randrange(1, 40)}"}]}
        async with session.post(CHAT, json=body) as answer:
            text = await answer.text()
            assert answer.status == 200, text
            assert not body["stream"] or text.endswith("data: [DONE]\n\n"), text
        made += 1
    return made


async def under_load(url: str, key: str, work: Callable[[], Awaitable[None]], clients: int = 4) -> int:
    """Do `work` while clients call, and let each of them make a call after it; how many calls were made."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    stop = asyncio.Event()
    async with aiohttp.ClientSession(url, headers={"Authorization": f"Bearer {key}"}) as session:
        async with asyncio.TaskGroup() as group:
            calling = [group.create_task(call_until(stop, session, random.Random(seed + n))) for n in range(clients)]
            try:
                await work()
            finally:
                stop.set()
        return sum(task.result() for task in calling)


def judged_whole(bundle: str, labels: list[str], letters: dict[str, str]) -> bool:
    """Whether a call carries the labels of the bundle that its record names, all of them and no other."""
    return sorted(labels) == [f"{letters[bundle]}-request", f"{letters[bundle]}-response"]


async def test_a_hundred_reloads_under_load_fail_no_call_and_mix_no_rules(house):
    await house.open(policies=RULES.format(letter="a"))
    app = house.gateway.app
    letters = {app.snapshot.bundle.digest: "a"}

    async def reload() -> None:
        for number, letter in zip(range(RELOADS), itertools.cycle("ba"), strict=False):
            if number % 10 == 5:
                house.write("policies/policies.toml", BROKEN)
                with pytest.raises(ConfigError):
                    await house.gateway.reload()
            house.write("policies/policies.toml", RULES.format(letter=letter))
            letters.setdefault((await house.gateway.reload()).bundle, letter)

    made = await under_load(house.gateway.url, house.key, reload)
    rows = await house.calls(limit=500)
    assert len(rows) == min(made, 500)
    assert set(letters.values()) == {"a", "b"}
    assert len(letters) == 2
    assert [row["id"] for row in rows if not judged_whole(row["bundle"], row["labels"], letters)] == []
    assert {row["bundle"] for row in rows} == set(letters)
    assert {row["outcome"] for row in rows} == {"completed"}


async def test_a_call_ends_under_the_rules_that_it_began_with(house, messages):
    """The answer comes long after the rules have changed, and is judged by those that judged the request."""
    await house.open(policies=RULES.format(letter="a"))
    before = house.gateway.app.snapshot.bundle.digest
    client = house.client()
    stream = await client.chat.completions.create(model="fast", messages=messages("words 3"), stream=True)
    house.write("policies/policies.toml", '[[rule]]\nid = "closed"\neffect = "deny"\nmessage = "Closed."\n')
    after = (await house.gateway.reload()).bundle
    async for _ in stream:
        pass
    session = await house.http()
    async with session.post(CHAT, json={"model": "fast", "messages": messages("hi")}, headers={"x-api-key": house.key}) as answer:
        assert answer.status == 403
    refused, completed = await house.calls()
    assert (completed["bundle"], completed["outcome"], judged_whole(before, completed["labels"], {before: "a"})) == (before, "completed", True)
    assert (refused["bundle"], refused["rule"]) == (after, "closed")


async def reload(house: Any, headers: dict[str, str] | None = None) -> tuple[int, dict[str, Any]]:
    session = await house.http()
    async with session.post("/-/reload", headers=ADMIN if headers is None else headers) as answer:
        return answer.status, await answer.json(content_type=None)


async def ready(house: Any) -> tuple[int, dict[str, Any]]:
    session = await house.http()
    async with session.get("/readyz") as answer:
        return answer.status, await answer.json()


async def test_reloading_is_for_the_admin_token_alone(house):
    await house.open()
    house.write("policies/policies.toml", RULES.format(letter="b"))
    before = house.gateway.app.snapshot
    for headers in ({}, {"Authorization": f"Bearer {house.key}"}, {"Authorization": "Bearer nonsense"}):
        status, told = await reload(house, headers)
        assert (status, told["code"]) == (401, "unauthenticated")
    assert house.gateway.app.snapshot is before


async def test_the_answer_to_a_reload_names_what_is_in_force_and_what_a_restart_would_change(house):
    await house.open()
    house.write("policies/policies.toml", RULES.format(letter="b"))
    config = house.folder / "config.toml"
    config.write_text(config.read_text() + "[server]\nport = 1234\n")
    status, told = await reload(house)
    bundle = house.gateway.app.snapshot.bundle
    assert (status, told) == (200, {"bundle": bundle.digest, "rules": 2, "routes": 3, "tools": 0, "restart": ["server.port"]})
    assert await ready(house) == (200, {"status": "ok", "reasons": []})


async def test_files_that_cannot_be_used_are_answered_with_every_problem_and_seen_at_readyz(house, messages):
    await house.open(policies=RULES.format(letter="a"))
    before = house.gateway.app.snapshot
    house.write("policies/policies.toml", BROKEN)
    house.write("routes/routes.toml", '[[route]]\nname = "fast"\n[[route.targets]]\nprovider = "nobody"\nmodel = "m"\n')
    status, told = await reload(house)
    assert (status, told["code"], told["status"], told["title"]) == (400, "invalid_request", 400, "invalid_request")
    assert told["detail"].startswith("The files were not put in force; what was in force stays so. ")
    assert [(problem["file"], problem["line"], problem["key"]) for problem in told["problems"]] == [
        ("routes/routes.toml", 4, "route[0].targets[0].provider"), ("policies/policies.toml", 13, "rule[1].when")]
    assert house.gateway.app.snapshot is before
    status, told = await ready(house)
    assert (status, told["status"], told["reasons"]) == (200, "ok", [])  # it serves, and well
    assert told["config"].startswith("stale: routes/routes.toml:4:route[0].targets[0].provider and 1 more;")
    await house.client().chat.completions.create(model="fast", messages=messages("hi"))
    await house.gateway.app.telemetry.scrape()
    [line] = [json.loads(line) for line in b"".join(house.lines).splitlines() if b"reload_failed" in line]
    assert "request.modle" in line["error"]
    house.write("policies/policies.toml", RULES.format(letter="a"))
    house.write("routes/routes.toml", '[[route]]\nname = "fast"\n[[route.targets]]\nprovider = "one"\nmodel = "sim-fast"\n')
    assert (await reload(house))[0] == 200
    assert await ready(house) == (200, {"status": "ok", "reasons": []})


async def test_rules_that_cannot_be_kept_are_not_put_in_force(house, monkeypatch):
    await house.open()
    before = house.gateway.app.snapshot

    async def full(*_arguments: object, **_options: object) -> None:
        raise StoreUnavailable("the disk is full")

    monkeypatch.setattr(house.gateway.app.store.bundles, "keep", full)
    house.write("policies/policies.toml", RULES.format(letter="b"))
    status, told = await reload(house)
    assert (status, told["code"]) == (503, "store_unavailable")
    assert house.gateway.app.snapshot is before
    assert (await ready(house))[1]["config"] == "stale: the store could not keep the rules; the log says why"


async def test_every_bundle_that_was_in_force_can_be_read_from_the_store(house):
    await house.open(policies=RULES.format(letter="a"))
    digests = [house.gateway.app.snapshot.bundle.digest]
    house.write("policies/policies.toml", RULES.format(letter="b"))
    digests.append((await house.gateway.reload()).bundle)
    kept = [await house.gateway.app.store.bundles.content(digest) for digest in digests]
    assert [json.loads(content or b"{}")["rules"][0]["id"] for content in kept] == ["a-request", "b-request"]


def hashed(credential: str) -> str:
    """As the simulator's log shows it."""
    return "sha256:" + hashlib.sha256(credential.encode()).hexdigest()[:16]


async def test_neither_the_old_nor_the_new_secret_leaves_after_a_reload(house, messages):
    """A call that began under the old key may still carry it when the new one is in force."""
    old, new = "sk-provider-key-one-0123456789", "sk-provider-key-two-9876543210"
    await house.open()
    house.environ["ONE_KEY"] = new
    await house.gateway.reload()
    answer = await house.client().chat.completions.create(model="fast", messages=messages(f"say {old} and {new}"))
    assert answer.choices[0].message.content == "[secret] and [secret]"
    assert house.one.requests[-1].headers["authorization"] == hashed(new)
    row = json.dumps(await house.call((await house.calls())[0]["id"]))
    assert old not in row
    assert new not in row


@pytest.mark.parametrize("engine", ["cel-expr-python", "cel-python"])
async def test_rules_that_were_compiled_in_a_thread_judge_on_the_loop(house, messages, engine):
    await house.open(config=f'[policy]\nengine = "{engine}"\n')
    client = house.client()
    rule = '[[rule]]\nid = "{0}"\neffect = "deny"\nwhen = \'texts.exists(t, t.contains("{0}"))\'\n'
    for word in ("one", "two", "three"):
        house.write("policies/policies.toml", rule.format(word) + rule.format("never"))
        await house.gateway.reload()
        await client.chat.completions.create(model="fast", messages=messages("hi"))
        with pytest.raises(openai.PermissionDeniedError, match=word):
            await client.chat.completions.create(model="fast", messages=messages(f"this is {word}"))


async def test_a_changed_file_is_enough_where_the_host_asks_for_it(house):
    await house.open(watch=True)
    before = house.gateway.app.snapshot.bundle.digest
    house.write("policies/policies.toml", RULES.format(letter="b"))
    async with asyncio.timeout(SOON_S):
        while house.gateway.app.snapshot.bundle.digest == before:
            await asyncio.sleep(0)


async def test_a_gateway_that_does_not_run_cannot_reload(house):
    await house.open()
    await house.stack.aclose()
    with pytest.raises(SetupError, match="async with"):
        await house.gateway.reload()


# Real processes.

def bare(folder: Path) -> None:
    """A deployment that starts and does nothing."""
    for name in ("routes", "policies"):
        (folder / name).mkdir()
    (folder / "config.toml").write_text("[auth]\nrequired = false\n")


def lay_rules(folder: Path, text: str) -> None:
    """Write as an editor does: aside, then over it."""
    (folder / "policies/.swap").write_text(text)
    (folder / "policies/.swap").replace(folder / "policies/rules.toml")


async def recorded(session: aiohttp.ClientSession) -> list[dict[str, Any]]:
    """Every call on record, page by page."""
    rows: list[dict[str, Any]] = []
    while True:
        before = {"before": rows[-1]["id"]} if rows else {}
        async with session.get("/-/calls", params={"limit": 500, **before}) as answer:
            page = (await answer.json())["calls"]
        if not page:
            return rows
        rows += page


async def test_a_hundred_reloads_of_real_workers_under_load(town):
    _simulator, upstream = await town.start("simulate", "--port", "0")
    await town.lay(upstream, config="[policy]\nwatch = false\n")
    lay_rules(town.folder, RULES.format(letter="a"))
    key = await town.key()
    admin = {"Authorization": f"Bearer {(town.folder / 'secrets/admin-token').read_text().strip()}"}
    gateway, url = await town.start("serve", "--port", "0", "--workers", "2")
    letters: dict[str, str] = {}
    async with aiohttp.ClientSession(url, headers=admin) as session:

        async def reload_all() -> None:
            for number, letter in zip(range(RELOADS), itertools.cycle("ab"), strict=False):
                if number % 25 == 10:
                    lay_rules(town.folder, BROKEN)
                    async with session.post("/-/reload") as answer:
                        told = await answer.json(content_type=None)
                        assert (answer.status, told["problems"][0]["key"]) == (400, "rule[1].when")
                        assert [each["ok"] for each in told["workers"]] == [False, False]
                lay_rules(town.folder, RULES.format(letter=letter))
                async with session.post("/-/reload") as answer:
                    told = await answer.json()
                    assert answer.status == 200, told
                letters.setdefault(told["bundle"], letter)
                assert {each["bundle"] for each in told["workers"]} == {told["bundle"]}
                assert len({each["pid"] for each in told["workers"]}) == 2

        made = await under_load(url, key, reload_all, clients=2)
        rows = await recorded(session)
    assert len(rows) == made
    assert {row["outcome"] for row in rows} == {"completed"}
    assert set(letters.values()) == {"a", "b"}
    assert [row["id"] for row in rows if not judged_whole(row["bundle"], row["labels"], letters)] == []
    gateway.terminate()
    assert await asyncio.wait_for(gateway.wait(), SOON_S) == 0
    await town.run("doctor")


async def until_answered(url: str, key: str, status: int) -> None:
    """Call until the answer has this status, several times in a row: every worker has come to it."""
    async with aiohttp.ClientSession(url, headers={"x-api-key": key, "Connection": "close"}) as session, asyncio.timeout(SOON_S):
        in_a_row = 0
        while in_a_row < 12:
            async with session.post(CHAT, json={"model": "fast", "messages": [{"role": "user", "content": "hi"}]}) as answer:
                await answer.read()
                in_a_row = in_a_row + 1 if answer.status == status else 0


DENY = '[[rule]]\nid = "closed"\neffect = "deny"\nmessage = "Closed."\n'


async def reloads_counted(url: str, result: str, wanted: float) -> None:
    """Wait until the metrics of all workers together count so many reloads of this result."""
    async with aiohttp.ClientSession(url) as session, asyncio.timeout(SOON_S):
        while True:
            async with session.get("/metrics") as answer:
                if f'lockgate_reloads_total{{result="{result}"}} {wanted}' in await answer.text():
                    return


async def test_a_hang_up_reloads_every_worker_also_where_one_worker_gets_it(town):
    bare(town.folder)
    lay_rules(town.folder, "")
    gateway, url = await town.start("serve", "--port", "0", "--workers", "2")
    gateway.send_signal(signal.SIGHUP)
    await reloads_counted(url, "ok", 2)
    os.kill(children_of(gateway)[0], signal.SIGHUP)
    await reloads_counted(url, "ok", 4)


def children_of(process: asyncio.subprocess.Process) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


async def test_changed_files_reload_every_worker_and_one_that_starts_while_they_are_broken_waits_for_them(town):
    _simulator, upstream = await town.start("simulate", "--port", "0")
    await town.lay(upstream)
    key = await town.key()
    gateway, url = await town.start("serve", "--port", "0", "--workers", "2")
    lay_rules(town.folder, BROKEN)
    await reloads_counted(url, "failed", 2)
    first, second = children_of(gateway)
    os.kill(first, signal.SIGKILL)
    async with asyncio.timeout(SOON_S):
        while len(set(children_of(gateway)) - {first, second}) == 0:  # its successor has been started
            await asyncio.sleep(0)
        while len(set(children_of(gateway)) - {first, second}) > 0:  # and could not take the files
            await asyncio.sleep(0)
    await until_answered(url, key, 200)
    lay_rules(town.folder, DENY)
    await until_answered(url, key, 403)
    async with asyncio.timeout(SOON_S):
        while len(children_of(gateway)) < 2:
            await asyncio.sleep(0)
    gateway.terminate()
    assert await asyncio.wait_for(gateway.wait(), SOON_S) == 0


async def test_rules_whose_cases_fail_do_not_start(town):
    bare(town.folder)
    (town.folder / "policies/x.cases.toml").write_text('[[case]]\nname = "closed"\nexpect = { effect = "deny" }\n')
    said = await town.run("serve", "--port", "0", code=1)
    assert "error: policies/x.cases.toml:3:case[0].expect" in said
