"""`/-/routes` and `/-/breakers`: where a call would go and why, which targets get none, and what an operator may set."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import openai
import pytest
from click.testing import CliRunner
from yarl import URL

from gateway.cli.breakers import breakers
from gateway.cli.explain import explain
from gateway.simulator import Fault, FaultRule, Scenario

ADMIN = {"Authorization": "Bearer admin-token-of-the-tests"}
SMALL, LARGE = "two/sim-small", "one/sim-large"
ROUTES = """
[[route]]
name = "backed-up"
aliases = ["team/best"]
[[route.targets]]
provider = "one"
model = "sim-large"
[[route.targets]]
provider = "two"
model = "sim-small"
[[route.rules]]
when = 'task == "chat" && session.id != "" || tags["tier"] == "free"'
targets = ["two/*"]
[route.retry]
attempts = 1
"""
KEY = f"lgk_abcdefghijkl_{'s' * 32}"


async def ask(house: Any, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
    session = await house.http()
    data = None if body is None else body if isinstance(body, bytes) else json.dumps(body)
    sent = ADMIN | {"Content-Type": "application/json"} | {name.replace("_", "-"): value for name, value in headers.items()}
    async with session.request(method, URL(path, encoded=True), data=data, headers=sent) as answer:
        return answer.status, await answer.json()


async def states(house: Any) -> dict[str, str]:
    status, told = await ask(house, "GET", "/-/breakers")
    assert status == 200, told
    return {row["target"]: row["state"] for row in told["breakers"]}


async def test_every_route_is_listed_with_its_targets_and_how_they_are(house: Any) -> None:
    """An alias is the same route, and stands beside its name."""
    await house.open(routes=ROUTES)
    assert (await ask(house, "POST", "/-/breakers", {"target": SMALL, "state": "open"}))[0] == 200
    status, told = await ask(house, "GET", "/-/routes")
    assert status == 200
    [route] = told["routes"]
    assert (route["route"], route["aliases"], route["strategy"]) == ("backed-up", ["team/best"], "priority")
    assert [(each["target"], each["breaker"], each["admits"]) for each in route["targets"]] == [
        (LARGE, "closed", True), (SMALL, "forced_open", False)]


@pytest.mark.parametrize(("query", "order", "why"), [
    ("", [LARGE, SMALL], "1st in order"),
    ("?tags=tier=free,x=y", [SMALL], "rule: "),
    ("?tags=tier%3Dfree&stream=true&size=2000&team=blue&operation=chat", [SMALL], "rule: "),
])
async def test_the_plan_of_a_call_that_nobody_made_is_told(house: Any, query: str, order: list[str], why: str) -> None:
    await house.open(routes=ROUTES)
    for name in ("backed-up", quote("team/best", safe="")):
        status, told = await ask(house, "GET", f"/-/routes/{name}/plan{query}")
        assert status == 200, told
        assert [each["target"] for each in told["order"]] == order
        assert told["order"][0]["why"].startswith(why)
    assert not house.one.requests
    assert await house.calls() == []


@pytest.mark.parametrize(("path", "status", "said"), [
    ("/-/routes/backed/plan", 404, "backed-up"),
    ("/-/routes/backed-up/plan?tag=a", 400, "tag"),
    ("/-/routes/backed-up/plan?task=a&task=b", 400, "`task` twice"),
    ("/-/routes/backed-up/plan?tags=nonsense", 400, "`tags` must be at most 20 pairs"),
    ("/-/routes/backed-up/plan?session=a+b", 400, "`session` must be 1 to 200 printable"),
    ("/-/routes/backed-up/plan?user=", 400, "`user` must be 1 to 200 printable"),
    ("/-/routes/backed-up/plan?task=%1b", 400, "`task` must be at most 200 characters that can be shown"),
    ("/-/routes/backed-up/plan?stream=yes", 400, "`stream` must be true or false"),
    ("/-/routes/backed-up/plan?size=-1", 400, "`size` must be a whole number"),
    ("/-/routes/backed-up/plan?size=9999999999999", 400, "`size` must be a whole number"),
    ("/-/routes/backed-up/plan?operation=tool", 404, "The route backed-up is not for tool"),
    ("/-/routes/backed-up/plan?key=key_8", 400, "`key` must be the id of a key"),
    ("/-/routes/backed-up/plan?key=a&team=b", 400, "`team` is that of the key"),
    ("/-/routes/backed-up/plan?operation=think", 400, "`operation` must be one of"),
    ("/-/routes/%zz/plan", 400, "not well-formed"),
    ("/-/routes?all", 400, "all"),
    ("/-/breakers?all", 400, "all"),
])
async def test_what_describes_no_call_is_refused_and_says_why(house: Any, path: str, status: int, said: str) -> None:
    await house.open(routes=ROUTES)
    got, told = await ask(house, "GET", path)
    assert (got, said in told["detail"]) == (status, True), told


STICKY = """
[[route]]
name = "kept"
strategy = "sticky"
[[route.targets]]
provider = "one"
model = "sim-large"
[[route.targets]]
provider = "two"
model = "sim-small"
"""


async def test_the_plan_of_a_session_is_that_of_its_key(house: Any, messages: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Over HTTP and on the command line: where the plan says that a session goes, there its calls go."""
    await house.open(routes=STICKY)
    key_id = house.key[4:16]
    for name, value in house.environ.items():
        monkeypatch.setenv(name, value)
    firsts = set()
    for number in range(8):
        session = f"s-{number}"
        raw = await house.client(default_headers={"X-Lockgate-Session": session}).chat.completions.with_raw_response.create(
            model="kept", messages=messages("hi"))
        status, told = await ask(house, "GET", f"/-/routes/kept/plan?session={session}&key={key_id}")
        assert (status, told["notes"]) == (200, [])
        assert told["order"][0]["target"] == raw.headers["x-lockgate-target"]
        firsts.add(told["order"][0]["target"])
    assert firsts == {LARGE, SMALL}
    options = ["--dry-run", "--route", "kept", "--session", session, "--config", str(house.folder / "config.toml"), "--json"]
    planned = await asyncio.to_thread(CliRunner().invoke, explain, [*options, "--key", key_id])
    assert [each["target"] for each in json.loads(planned.stdout)["order"]] == [each["target"] for each in told["order"]]
    _status, told = await ask(house, "GET", f"/-/routes/kept/plan?session={session}")
    assert ["a key's own" in note for note in told["notes"]] == [True]


async def test_a_target_that_is_opened_by_hand_gets_no_calls_until_it_acts_by_itself_again(house: Any, messages: Callable[[str], Any]) -> None:
    """And it is on record who did it, and why a call went elsewhere."""
    await house.open(routes=ROUTES)
    status, told = await ask(house, "POST", "/-/breakers", {"target": LARGE, "state": "open", "note": "maintenance"}, X_Lockgate_Author="ada")
    assert status == 200
    row = told["breaker"]
    assert (row["target"], row["state"], row["admits"], row["author"], row["note"]) == (LARGE, "forced_open", False, "admin (ada)", "maintenance")
    raw = await house.client().chat.completions.with_raw_response.create(model="backed-up", messages=messages("hi"))
    assert (len(house.one.requests), len(house.two.requests)) == (0, 1)
    call = await house.call(raw.headers["x-lockgate-call"])
    assert [each["target"] for each in call["plan"]["order"]] == [SMALL]
    assert [(each["target"], each["breaker"]) for each in call["plan"]["passed"]] == [(LARGE, "forced_open")]
    status, told = await ask(house, "POST", "/-/breakers", {"target": LARGE, "state": "auto"})
    assert (status, told["breaker"]["state"], told["breaker"]["author"]) == (200, "closed", "admin")
    await house.client().chat.completions.create(model="backed-up", messages=messages("hi"))
    assert len(house.one.requests) == 1
    house.assert_doctor_is_content()


async def test_with_every_target_opened_by_hand_the_client_is_told_and_nothing_is_sent(house: Any, messages: Callable[[str], Any]) -> None:
    """What an operator says is not tried as a last resort."""
    await house.open(routes=ROUTES)
    for target in (LARGE, SMALL):
        await ask(house, "POST", "/-/breakers", {"target": target, "state": "open"})
    with pytest.raises(openai.APIStatusError) as caught:
        await house.client().chat.completions.create(model="backed-up", messages=messages("hi"))
    assert caught.value.status_code in (502, 503)
    assert not house.one.requests
    assert not house.two.requests
    house.assert_doctor_is_content()


@pytest.mark.parametrize(("body", "status", "said"), [
    ({"target": "one/sim-larg", "state": "open"}, 400, "There is no target 'one/sim-larg'; there are: one/sim-large, two/sim-small."),
    ({"target": KEY, "state": "open"}, 400, "There is no target '[secret]'"),
    ({"target": LARGE, "state": "closed"}, 400, 'state: is none of the possible values (did you mean "close"?)'),
    ({"target": LARGE, "state": "ajar"}, 400, "state"),
    ({"target": LARGE}, 400, "state"),
    ({"target": "", "state": "open"}, 400, "target"),
    ({"target": LARGE, "state": "open", "until": 5}, 400, "until"),
    ({"target": LARGE, "state": "open", "note": "n" * 501}, 400, "note"),
    ({"target": LARGE, "state": "open", "note": KEY}, 400, "holds a virtual key"),
    ({"target": LARGE, "state": "open", "note": "\x1b"}, 400, "cannot be shown"),
    ([], 400, "must be a JSON object"),
    (b"{", 400, "JSON"),
    (b"[" * 100, 400, ""),
    (b'{"target": "' + b"x" * 70_000 + b'"}', 413, "65536"),
])
async def test_what_cannot_be_set_is_refused_and_changes_nothing(house: Any, body: Any, status: int, said: str) -> None:
    await house.open(routes=ROUTES)
    got, told = await ask(house, "POST", "/-/breakers", body)
    assert (got, said in told["detail"]) == (status, True), told
    assert KEY not in json.dumps(told)
    assert await states(house) == {LARGE: "closed", SMALL: "closed"}


async def test_nobody_sets_a_breaker_under_a_name_that_is_none(house: Any) -> None:
    await house.open(routes=ROUTES)
    status, told = await ask(house, "POST", "/-/breakers", {"target": LARGE, "state": "open"}, X_Lockgate_Author=KEY)
    assert (status, "X-Lockgate-Author" in told["detail"]) == (400, True)
    assert await states(house) == {LARGE: "closed", SMALL: "closed"}


async def test_a_breaker_set_on_the_command_line_counts_in_a_gateway_that_runs(house: Any) -> None:
    """Within a second, which is a few times what a refresh takes."""
    await house.open(routes=ROUTES)
    done = await asyncio.to_thread(CliRunner().invoke, breakers, ["open", LARGE, "--config", str(house.folder / "config.toml")])
    assert done.exit_code == 0, done.output
    async with asyncio.timeout(20):
        while (await states(house))[LARGE] != "forced_open":
            await asyncio.sleep(0.02)


async def test_explain_tells_how_a_call_found_its_way(house: Any, messages: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Over HTTP and on the command line, where a dry run then says what the next one would do."""
    await house.open(routes=ROUTES)
    house.one.play(Scenario(rules=(FaultRule(Fault(status=503, times=1)),)))
    raw = await house.client().chat.completions.with_raw_response.create(model="backed-up", messages=messages("hi"))
    call_id = raw.headers["x-lockgate-call"]
    _status, told = await ask(house, "GET", f"/-/calls/{call_id}/explain")
    assert [(each["target"], each["why"], each["said"], each["end"], each["cause"]) for each in told["attempts"]] == [
        (LARGE, None, "first", "failed", "status:503"), (SMALL, "fallback", "fallback", "succeeded", None)]
    assert told["attempts"][1]["retries_left"] is not None
    assert [each["target"] for each in told["plan"]["order"]] == [LARGE, SMALL]
    assert told["answer"]["said"] == "the client got the whole answer (200)"
    config = str(house.folder / "config.toml")
    shown = await asyncio.to_thread(CliRunner().invoke, explain, [call_id, "--config", config])
    assert shown.exit_code == 0, shown.output
    for line in ("plan: priority", f"attempt 1, first: {LARGE}, failed after", f"attempt 2, fallback: {SMALL}, succeeded after",
                 "the route's retry budget held", "the client got the whole answer (200)"):
        assert line in shown.stdout
    for name, value in house.environ.items():
        monkeypatch.setenv(name, value)
    await asyncio.to_thread(CliRunner().invoke, breakers, ["open", LARGE, "--config", config, "--note", "down"])
    dry = await asyncio.to_thread(CliRunner().invoke, explain, ["--dry-run", "--route", "team/best", "--json", "--config", config])
    assert dry.exit_code == 0, dry.output
    planned = json.loads(dry.stdout)
    assert ([each["target"] for each in planned["order"]], [each["target"] for each in planned["passed"]]) == ([SMALL], [LARGE])
    house.assert_doctor_is_content()


OWN_CALLS = """
[[route]]
name = "fast"
[[route.targets]]
provider = "one"
model = "sim-fast"
[[route.mirrors]]
provider = "two"
model = "sim-small"
[route.classifier]
provider = "two"
model = "sim-small"
tasks = ["code", "chat"]
default = "chat"
[[route.rules]]
when = 'task == "code"'
targets = ["one/*"]
"""


async def test_what_the_gateway_asks_for_itself_is_on_record_beside_the_call_that_it_is_for(house: Any, messages: Callable[[str], Any]) -> None:
    """As calls of their own, with their cost; the session counts one call, the metrics too."""
    await house.open(routes=OWN_CALLS)
    client = house.client(default_headers={"X-Lockgate-Session": "s-1"})
    raw = await client.chat.completions.with_raw_response.create(model="fast", messages=messages("hi"))
    call_id = raw.headers["x-lockgate-call"]
    async with asyncio.timeout(20):
        while {row["outcome"] for row in await house.calls(part_of=call_id)} != {"completed"} or len(await house.calls(part_of=call_id)) < 2:
            await asyncio.sleep(0.02)
    parts = await house.calls(part_of=call_id)
    assert [row["id"] for row in await house.calls(part_of="")] == [call_id]
    call = await house.call(call_id)
    assert (sorted(call["parts"]), call["part_of"]) == (sorted(row["id"] for row in parts), None)
    assert {label for row in parts for label in row["labels"]} == {"classifier", "mirror"}
    _status, told = await ask(house, "GET", f"/-/calls/{call_id}/explain")
    assert {(part["kind"], part["target"], part["outcome"]) for part in told["parts"]} == {
        ("classifier", SMALL, "completed"), ("mirror", SMALL, "completed")}
    assert (told["task"]["name"], told["task"]["classifier"]["target"]) == ("chat", SMALL)
    assert house.sql("SELECT calls FROM sessions") == [(1,)]
    session = await house.http()
    async with session.get("/metrics") as answer:
        shown = await answer.text()
    assert 'lockgate_calls_total{code="",outcome="completed",route="fast",team="blue"} 1.0' in shown
    for kind in ("classifier", "mirror"):
        assert f'lockgate_part_calls_total{{kind="{kind}",outcome="completed",route="fast"}} 1.0' in shown
    house.assert_doctor_is_content()


async def test_a_plan_is_made_without_a_database_too(house: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    await house.open(routes=ROUTES, config='[store]\npath = ":memory:"\n')
    for name, value in house.environ.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "body.json").write_text('{"model": "backed-up", "messages": [], "stream": true}')
    options = ["--dry-run", "--body", str(tmp_path / "body.json"), "--tag", "tier=free", "--config", str(house.folder / "config.toml")]
    shown = await asyncio.to_thread(CliRunner().invoke, explain, options)
    assert shown.exit_code == 0, shown.output
    lines = shown.stdout.splitlines()
    assert lines[0] == "route backed-up (also team/best) for chat"
    assert lines[1].startswith("plan: priority, by the rule task ==")
    assert lines[2].startswith(f"  1. {SMALL}: rule: ")
    assert lines[3].startswith(f"  not {LARGE}: not of rule: ")
