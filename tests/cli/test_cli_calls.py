"""`lockgate calls` and `lockgate doctor` from a terminal, beside a store that is open."""

import contextlib
import fcntl
import importlib.util
import json
import os
import re
import struct
import subprocess
import sys
import termios
from collections.abc import AsyncIterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from gateway.call import AttemptEnd, ToolUse
from gateway.cli.calls import calls, ended_calls
from gateway.errors import SetupError, StoreError
from gateway.store.database import open_readonly
from gateway.store.protocol import CallFilter
from gateway.store.rows import JOURNAL_FIELDS
from gateway.store.sqlite import SqliteStore


@pytest.fixture(scope="module")
def samples() -> ModuleType:
    spec = importlib.util.spec_from_file_location("samples", Path(__file__).parents[1] / "store" / "samples.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def config(tmp_path: Path) -> Path:
    for folder in ("policies", "routes", "adapters"):
        (tmp_path / folder).mkdir()
    file = tmp_path / "config.toml"
    file.write_text('[store]\npath = "data.db"\n')
    return file


@pytest.fixture
async def store(config: Path, samples: ModuleType) -> AsyncIterator[SqliteStore]:
    opened = SqliteStore(config.with_name("data.db"), "one")
    await opened.start(now_ns=samples.NOW_NS)
    yield opened
    await opened.close()


@pytest.fixture
async def history(store: SqliteStore, samples: ModuleType) -> None:
    await store.journal.begin(samples.intent(1, request=b'{"model":"fast","messages":[]}'))
    await store.journal.dispatch(samples.dispatch(1, 2))
    failed = samples.attempt(1, end=AttemptEnd.FAILED, cause="status:500", message="\x1b[31mboom\x9b2J", cost_nusd=0, usage=None)
    await store.journal.finish(
        samples.completed(1, attempts=(failed, samples.attempt(2, target=samples.OTHER))), response=b'{"ok":true}')
    await store.journal.refuse(samples.refused(2, route="\x1b]0;owned\x07slow", message="not \x1b[2J here"), request=b"\x1b[31mred\n{")
    await store.journal.begin(samples.intent(3))
    unknown = samples.attempt(1, cost_nusd=None, usage=None)
    await store.journal.finish(samples.completed(3, attempts=(unknown,), cost_nusd=None, usage=None), response=None)
    await store.journal.begin(samples.intent(4))


def _run(config: Path, *arguments: str) -> Result:
    return CliRunner().invoke(calls, [*arguments, "--config", str(config)])


def _ids(result: Result) -> list[int]:
    assert result.exit_code == 0, result.output
    return [int(row["id"][5:]) for row in json.loads(result.stdout)]


@pytest.mark.usefixtures("history")
class TestCalls:
    """With four calls on record: completed at the second try, refused, completed at an unknown cost, open."""

    def test_the_latest_stand_last_as_in_any_log(self, config: Path) -> None:
        assert _ids(_run(config, "tail", "--json")) == [1, 2, 3, 4]
        assert _ids(_run(config, "tail", "-n", "2", "--json")) == [3, 4]

    @pytest.mark.parametrize(("arguments", "expected"), [
        (("--outcome", "open"), [4]), (("--outcome", "refused"), [2]), (("--route", "fast"), [1, 3, 4]), (("--key", "nobody"), []),
        (("--session", "s-1", "--outcome", "completed"), [1, 3]),
        (("--rule", "no-images"), [2]), (("--code", "forbidden"), [2]), (("--team", "blue"), [1, 2, 3, 4]), (("--team", "red"), []),
        (("--rule", "office-hours", "--code", ""), [1, 3, 4]),
    ])
    def test_calls_are_filtered(self, config: Path, arguments: tuple[str, ...], expected: list[int]) -> None:
        assert _ids(_run(config, "tail", "--json", *arguments)) == expected

    def test_a_table_shows_cost_and_target_and_an_unknown_cost_is_not_nothing(self, config: Path) -> None:
        lines = _run(config, "tail").stdout.splitlines()
        assert lines[0].split() == ["time", "id", "key", "route", "target", "outcome", "code", "cost_usd", "seconds"]
        assert "beta/large-2" in lines[1]
        assert "0.0000015" in lines[1]
        assert "forbidden" in lines[2]
        assert " unknown " in lines[3]
        assert "open" in lines[4]

    def test_one_call_is_shown_whole(self, config: Path, samples: ModuleType) -> None:
        result = _run(config, "show", samples.call_id(1))
        assert result.exit_code == 0
        for part in ("completed", "office-hours", "a.toml:3", "status:500", "beta/large-2", "0.0000015", '"messages": []', '"ok": true'):
            assert part in result.stdout
        shown = json.loads(_run(config, "show", samples.call_id(1), "--json").stdout)
        assert (shown["cost_usd"], len(shown["attempts"]), shown["response"]) == ("0.0000015", 2, '{"ok":true}')

    async def test_the_money_of_a_call_is_shown_where_it_is_on_record(self, config: Path, store: SqliteStore, samples: ModuleType) -> None:
        till = samples.Till(store, samples.budget(limit=5000), samples.budget("all", "all", None))
        await till.begin(5, 3000)
        open_call = _run(config, "show", samples.call_id(5)).stdout
        assert "reserved        0.000003 on all/all, team-cap/blue, for an answer of up to 3000 tokens\n" in open_call
        assert "settled" not in open_call
        guessed = samples.attempt(1, usage=replace(samples.USAGE, estimated=True), cost_nusd=2000, prices="assumed")
        await store.journal.finish(samples.completed(5, attempts=(guessed,), usage=guessed.usage, cost_nusd=2000), response=None)
        shown = _run(config, "show", samples.call_id(5)).stdout
        assert "settled         0.000002 (settled)\n" in shown
        assert "cost_usd        0.000002 (estimated)\n" in shown
        ledger = shown.partition("\nledger\n")[2].splitlines()
        assert [line.split() for line in ledger[:2]] == [
            ["n", "target", "cost_usd", "estimated", "images", "prices"], ["1", "alpha/small-1", "0.000002", "True", "0", "assumed"]]
        money = json.loads(_run(config, "show", samples.call_id(5), "--json").stdout)["money"]
        assert (money["reserved_nusd"], money["settlement"]["cost_nusd"], len(money["lines"])) == (3000, 2000, 1)
        await samples.Till(store, samples.budget("all", "all", None)).begin(6, 3000)
        assert "reserved        0.000003 on all/all\n" in _run(config, "show", samples.call_id(6)).stdout

    async def test_a_suspect_says_what_to_do_and_what_was_decided_says_by_whom(
        self, config: Path, store: SqliteStore, samples: ModuleType,
    ) -> None:
        dying = SqliteStore(config.with_name("data.db"), "dying")
        await dying.start(now_ns=samples.NOW_NS)
        await samples.Till(dying, samples.budget(limit=5000)).begin(5, 3000)
        await dying.close()
        await store.heartbeat(now_ns=samples.NOW_NS, lease_ns=samples.SECOND_NS)
        suspect = _run(config, "show", samples.call_id(5)).stdout
        assert "settled         0.000003 (recovered): a suspect, `lockgate budgets resolve` books what it really was" in suspect
        await store.budgets.resolve(samples.call_id(5), 1000, author="ada", now_ns=samples.NOW_NS)
        shown = _run(config, "show", samples.call_id(5)).stdout
        assert "settled         0.000001 (resolved by ada)\n" in shown
        assert "-0.000002" in shown

    def test_a_call_without_money_shows_none(self, config: Path, samples: ModuleType) -> None:
        assert json.loads(_run(config, "show", samples.call_id(2), "--json").stdout)["money"] is None
        assert "reserved" not in _run(config, "show", samples.call_id(4)).stdout

    async def test_what_was_decided_later_and_the_tool_calls_are_shown_too(
        self, config: Path, store: SqliteStore, samples: ModuleType,
    ) -> None:
        reason = {"rule": "no-mail", "effect": "deny", "verdict": "matched", "source": "mail.toml:9", "message": "", "phase": "tool_call",
                  "subject": "mail.send"}
        shadow = {**reason, "rule": "soon", "shadow": True}
        verdict = {"phase": "tool_call", "subject": "mail.send", "decision": "deny", "rule": "no-mail", "message": "Not \x1b[2Joutside.",
                   "bundle": "sha256:abc", "reasons": [reason, shadow]}
        use = ToolUse(samples.call_id(4), "c1", "mail.send", "model", {"to": "a\x1b[31m@b"}, released=False, at_ns=1)
        await store.journal.finish(
            samples.completed(4, verdicts=(verdict,), answer_labels=("tried-mail",), tool_uses=(use,)), response=None)
        lines = _run(config, "show", samples.call_id(4)).stdout.splitlines()
        rows = [re.split(r"\s{2,}", line) for line in lines]
        assert ["tool_call", "mail.send", "deny", "no-mail", "Not \N{REPLACEMENT CHARACTER}[2Joutside."] in rows
        assert ["request", "-", "office-hours", "allow", "matched", "enforce", "a.toml:3"] in rows
        assert ["tool_call", "mail.send", "soon", "deny", "matched", "shadow", "mail.toml:9"] in rows
        assert ["c1", "mail.send", "model", "False", '{"to":"a\\u001b[31m@b"}'] in rows
        assert ["withheld", "true"] in rows
        assert ["labels", '["checked","tried-mail"]'] in rows

    @pytest.mark.parametrize("n", [1, 2, 3, 4])
    def test_nothing_that_was_stored_steers_the_terminal(self, config: Path, samples: ModuleType, n: int) -> None:
        for result in (_run(config, "tail"), _run(config, "show", samples.call_id(n))):
            assert result.exit_code == 0
            assert not [character for character in result.output if not character.isprintable() and character != "\n"]

    def test_an_unknown_call_is_an_error_that_says_what_to_do(self, config: Path) -> None:
        result = _run(config, "show", "call_\x1b[31m")
        assert result.exit_code == 1
        assert "there is no call 'call_\\x1b[31m' on record; `lockgate calls tail` lists the latest" in result.stderr

    def test_json_has_the_same_fields_wherever_it_is_asked_for(
        self, config: Path, samples: ModuleType, monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        rows = json.loads(_run(config, "tail", "--json").stdout)
        monkeypatch.setattr("gateway.cli.calls.ended_calls", lambda *_, **__: iter(rows))
        followed = [json.loads(line) for line in _run(config, "tail", "-f", "--json").stdout.splitlines()]
        assert followed == rows
        for n, row in enumerate(rows, 1):
            assert tuple(row) == JOURNAL_FIELDS
            shown = json.loads(_run(config, "show", samples.call_id(n), "--json").stdout)
            assert {name: shown[name] for name in JOURNAL_FIELDS} == row
        assert [row["cost_usd"] for row in rows] == ["0.0000015", "0", None, None]

    async def test_json_holds_nothing_that_steers_a_terminal_and_says_the_same(
        self, config: Path, store: SqliteStore, samples: ModuleType, monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        def interrupt(event: Any, timeout: float) -> bool:
            _ = event, timeout
            raise KeyboardInterrupt

        monkeypatch.setattr("threading.Event.wait", interrupt)
        hostile = "\x9b2J\x85\u202eno\u2066"
        await store.journal.refuse(samples.refused(9, message=hostile), request=None)
        for arguments in (("tail", "--json"), ("tail", "-f", "--json"), ("show", samples.call_id(9), "--json")):
            printed = _run(config, *arguments).stdout
            assert not [character for character in printed if not character.isprintable() and character != "\n"]
            said = json.loads(printed.strip().splitlines()[-1])
            assert (said[-1] if isinstance(said, list) else said)["message"] == hostile

    def test_on_a_narrow_terminal_no_id_is_cut(self, config: Path, samples: ModuleType) -> None:
        ours, theirs = os.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        done = subprocess.run(
            [sys.executable, "-m", "gateway.cli", "calls", "tail", "--config", str(config)], stdout=theirs, stderr=subprocess.PIPE,
            env={**os.environ, "COLUMNS": "80", "TERM": "xterm"}, timeout=60, check=False)
        os.close(theirs)
        shown = b""
        with contextlib.suppress(OSError):  # what a terminal says at its end
            while piece := os.read(ours, 65536):
                shown += piece
        os.close(ours)
        assert (done.returncode, done.stderr) == (0, b"")
        assert all(samples.call_id(n).encode() in shown for n in (1, 2, 3, 4))

    @pytest.mark.parametrize("wanted", [{"rule": "special"}, {"code": "overloaded"}, {"code": ""}, {"team": "red"}])
    async def test_following_filters_as_listing_does(
        self, config: Path, store: SqliteStore, samples: ModuleType, wanted: dict[str, str],
    ) -> None:
        team = replace(samples.record(0).principal, team=wanted.get("team", "blue"))
        fits = {"principal": team, **{name: value for name, value in wanted.items() if name != "team"}}
        turns = iter([False, True])
        await store.journal.refuse(samples.refused(5, **fits), request=None)
        with closing(open_readonly(config.with_name("data.db"))) as connection:
            feed = ended_calls(connection, CallFilter(limit=1, **wanted), wait=lambda: next(turns))
            assert next(feed)["id"] == samples.call_id(5)
            await store.journal.refuse(samples.refused(6), request=None)
            await store.journal.refuse(samples.refused(7, **fits), request=None)
            assert [row["id"] for row in feed] == [samples.call_id(7)]

    async def test_following_shows_each_call_once_when_it_has_ended(
        self, config: Path, store: SqliteStore, samples: ModuleType,
    ) -> None:
        done = 0
        seen: list[int] = []

        def wait() -> bool:
            return done == 4

        with closing(open_readonly(config.with_name("data.db"))) as connection:
            feed = ended_calls(connection, CallFilter(limit=2), wait=wait)
            seen.append(int(next(feed)["id"][5:]))  # call 3 has ended, call 4 is open
            await store.journal.finish(samples.completed(4), response=None)
            await store.journal.begin(samples.intent(5))
            row = next(feed)
            assert tuple(row) == JOURNAL_FIELDS
            seen.append(int(row["id"][5:]))
            await store.journal.refuse(samples.refused(6), request=None)
            seen.append(int(next(feed)["id"][5:]))
            await store.journal.finish(samples.completed(5), response=None)
            seen.append(int(next(feed)["id"][5:]))
            done = 4
            assert list(feed) == []
        assert seen == [3, 4, 6, 5]

    async def test_following_filters_and_misses_nothing_of_a_burst(
        self, config: Path, store: SqliteStore, samples: ModuleType,
    ) -> None:
        turns = iter([False, True])
        for n in range(100, 150):
            await store.journal.refuse(samples.refused(n, route="burst" if n % 2 else "slow"), request=None)
        with closing(open_readonly(config.with_name("data.db"))) as connection:
            feed = ended_calls(connection, CallFilter(limit=1, route="burst"), wait=lambda: next(turns))
            first = next(feed)
            assert first["id"] == samples.call_id(149)
            for n in range(2000, 2600):
                await store.journal.refuse(samples.refused(n, route="burst" if n % 2 else "slow"), request=None)
            assert [int(row["id"][5:]) for row in feed] == list(range(2001, 2600, 2))

    def test_following_prints_a_line_a_call_until_it_is_interrupted(self, config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def interrupt(event: Any, timeout: float) -> bool:
            _ = event, timeout
            raise KeyboardInterrupt

        monkeypatch.setattr("threading.Event.wait", interrupt)
        table, lines = _run(config, "tail", "-f"), _run(config, "tail", "-f", "--json")
        assert isinstance(table.exception, SystemExit | click.Abort)
        assert table.stdout.split()[:3] == ["time", "id", "key"]
        assert len([line for line in table.stdout.splitlines() if line.startswith("20")]) == 3
        assert [json.loads(line)["outcome"] for line in lines.stdout.splitlines() if line] == ["completed", "refused", "completed"]


def test_a_database_in_memory_or_not_there_is_told(config: Path) -> None:
    result = _run(config, "tail")
    assert isinstance(result.exception, StoreError)
    assert "there is no database at" in result.exception.message
    assert "`lockgate serve` or `lockgate keys create` makes it" in result.exception.message
    config.write_text('[store]\npath = ":memory:"\n')
    assert isinstance(_run(config, "tail").exception, SetupError)
