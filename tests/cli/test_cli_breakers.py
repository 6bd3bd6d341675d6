"""`lockgate breakers` from a terminal, beside a store that is open: what is told, what is set, what is refused."""

import asyncio
import getpass
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from gateway.cli.breakers import breakers
from gateway.clock import SystemClock
from gateway.core.breaker import Event, State, Step
from gateway.store.sqlite import SqliteStore

CONFIG = """
[store]
path = "data.db"
[providers.one]
adapter = "openai"
base_url = "http://127.0.0.1:9/v1"
"""
ROUTES = """
[[route]]
name = "fast"
[[route.targets]]
provider = "one"
model = "meta/small"
[[route.mirrors]]
provider = "one"
model = "twin"
[route.classifier]
provider = "one"
model = "judge"
tasks = ["code", "chat"]
default = "chat"
[[tool]]
name = "bank.pay"
method = "POST"
url = "http://127.0.0.1:9/pay"
"""
TARGET = "one/meta/small"
ALL = ["one/judge", TARGET, "one/twin", "tool:bank.pay/POST"]
KEY = f"lgk_abcdefghijkl_{'s' * 32}"


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(getpass, "getuser", lambda: "grace")
    for folder in ("policies", "routes", "adapters"):
        (tmp_path / folder).mkdir()
    (tmp_path / "routes/routes.toml").write_text(ROUTES)
    file = tmp_path / "config.toml"
    file.write_text(CONFIG)
    return file


@pytest.fixture
async def store(config: Path) -> AsyncIterator[SqliteStore]:
    opened = SqliteStore(config.with_name("data.db"), "one")
    await opened.start(now_ns=SystemClock().now_ns())
    yield opened
    await opened.close()


async def run(config: Path, *arguments: str) -> Result:
    return await asyncio.to_thread(CliRunner().invoke, breakers, [*arguments, "--config", str(config)])


async def listed(config: Path) -> dict[str, dict[str, Any]]:
    result = await run(config, "list", "--json")
    assert result.exit_code == 0, result.output
    return {row["target"]: row for row in json.loads(result.stdout)}


async def test_every_target_that_a_call_may_go_to_is_listed(config: Path) -> None:
    """Also one that nothing ever happened to, and before a gateway has run."""
    rows = await listed(config)
    assert list(rows) == ALL
    nothing = ("since", "since_s", "until", "until_s", "rests_until", "rests_s", "cause", "author", "note")
    assert rows[TARGET] == {"target": TARGET, "state": "closed", "trips": 0, "probes": 0, **dict.fromkeys(nothing)}


async def test_what_a_gateway_has_seen_is_listed(config: Path, store: SqliteStore) -> None:
    now_ns = 1_790_000_000_000_000_000
    await store.breakers.apply(TARGET, Step(Event.TRIPPED, now_ns, cause="5 failures in a row"))
    await store.breakers.apply("one/gone", Step(Event.TRIPPED, now_ns, cause="of a route that was"))
    rows = await listed(config)
    assert list(rows) == ALL
    told = rows[TARGET]
    assert (told["state"], told["trips"], told["cause"], told["since"]) == ("open", 1, "5 failures in a row", "2026-09-21T14:13:20Z")
    table = (await run(config, "list")).stdout.splitlines()
    assert table[0].split() == ["target", "state", "since", "until", "rests_until", "trips", "cause", "author", "note"]
    assert "5 failures in a row" in table[2]
    assert ("probe due" in table[2]) is (told["until_s"] == 0)


async def test_an_open_one_that_no_call_has_come_to_is_told_to_be_due(config: Path, store: SqliteStore) -> None:
    """A time that is over says nothing, neither of a probe nor of a rest."""
    await store.breakers.apply(TARGET, Step(Event.COOLED, 1, cool_s=5.0))
    await store.breakers.apply(TARGET, Step(Event.TRIPPED, 1, cause="slow"))
    told = (await listed(config))[TARGET]
    assert (told["until_s"], told["rests_until"], told["rests_s"]) == (0.0, None, None)
    assert "probe due" in (await run(config, "list")).stdout


@pytest.mark.parametrize(("verb", "state", "said"), [
    ("open", "forced_open", "open by hand and gets no calls"),
    ("close", "forced_closed", "closed by hand and gets calls whatever happens"),
    ("auto", "closed", "closed and acts by itself"),
])
async def test_a_breaker_is_set_with_who_and_why(config: Path, store: SqliteStore, verb: str, state: str, said: str) -> None:
    await store.breakers.apply(TARGET, Step(Event.FORCED_CLOSED if verb == "open" else Event.FORCED_OPEN, 1, author="before"))
    result = await run(config, verb, TARGET, "--note", "the vendor says so")
    assert (result.exit_code, result.stdout) == (0, f"{TARGET} is {said}. Every gateway knows within a second.\n")
    generation, (kept,) = await store.breakers.all()
    assert (kept.state.value, kept.author, kept.note, generation) == (state, "grace", "the vendor says so", 2)
    told = (await listed(config))[TARGET]
    assert (told["state"], told["author"], told["note"]) == (state, "grace", "the vendor says so")


async def test_setting_it_once_more_says_that_nothing_has_changed_but_who_and_why(config: Path, store: SqliteStore) -> None:
    first = json.loads((await run(config, "open", TARGET, "--author", "ada", "--json")).stdout)["breaker"]
    assert (first["state"], first["author"], first["note"]) == ("forced_open", "ada", None)
    assert ", as it was." in (await run(config, "open", TARGET, "--note", "still")).stdout
    _generation, (kept,) = await store.breakers.all()
    assert (kept.state, kept.author, kept.note) == (State.FORCED_OPEN, "grace", "still")


async def test_one_that_opened_by_itself_goes_on_where_it_is_to_act_by_itself(config: Path, store: SqliteStore) -> None:
    await store.breakers.apply(TARGET, Step(Event.TRIPPED, 1, cause="slow"))
    said = (await run(config, "auto", TARGET)).stdout
    assert said == (f"{TARGET} is open and acts by itself, as it was: nothing has changed. "
                    f"To close it now: `lockgate breakers close {TARGET}`, and then `auto`.\n")


async def test_one_that_opened_by_itself_is_closed_by_closing_it_and_letting_it_go(config: Path, store: SqliteStore) -> None:
    """As the answer and the guide say: there is no other word for it."""
    await store.breakers.apply(TARGET, Step(Event.TRIPPED, 1, cause="slow"))
    for verb in ("close", "auto"):
        assert (await run(config, verb, TARGET)).exit_code == 0
    told = (await listed(config))[TARGET]
    assert (told["state"], told["cause"], told["trips"]) == ("closed", None, 0)
    assert (await run(config, "auto", TARGET)).stdout == f"{TARGET} is closed and acts by itself, as it was: nothing has changed.\n"


@pytest.mark.parametrize("verb", ["open", "close", "auto"])
async def test_the_help_says_what_a_target_may_be(config: Path, verb: str) -> None:
    assert "PROVIDER/MODEL, or tool:NAME/METHOD of an HTTP tool" in " ".join((await run(config, verb, "--help")).stdout.split())


@pytest.mark.parametrize(("arguments", "code", "error"), [
    (("open", "one/meta/smal"), 1, "there is no target 'one/meta/smal' (did you mean"),
    (("open", "elsewhere"), 1, "there is no target 'elsewhere' (there is one/judge, one/meta/small, one/twin, tool:bank.pay/POST)"),
    (("open", KEY), 1, "there is no target '[secret]'"),
    (("open", TARGET, "--author", " "), 2, "is empty: say who you are"),
    (("open", TARGET, "--note", f"key {KEY}"), 2, "holds a virtual key"),
    (("open", TARGET, "--note", "x" * 501), 2, "has 501 characters, and may have 500"),
    (("close", TARGET, "--note", "\x1b[2J"), 2, "holds characters that cannot be shown"),
])
async def test_what_cannot_be_set_is_refused_and_changes_nothing(
    config: Path, store: SqliteStore, arguments: tuple[str, ...], code: int, error: str,
) -> None:
    result = await run(config, *arguments)
    assert (result.exit_code, error in result.stderr) == (code, True), result.stderr
    assert KEY not in result.output
    assert await store.breakers.all() == (0, [])


async def test_where_there_is_no_target_there_is_none_to_set(config: Path) -> None:
    (config.parent / "routes/routes.toml").unlink()
    assert await listed(config) == {}
    assert "(no route has one)" in (await run(config, "open", TARGET)).stderr
