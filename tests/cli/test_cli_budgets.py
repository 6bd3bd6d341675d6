"""`lockgate budgets` from a terminal, beside a store that is open: what is told, what is changed, and what is refused."""

import asyncio
import csv
import getpass
import importlib.util
import io
import json
from collections.abc import AsyncIterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from click.testing import CliRunner, Result

from gateway.cli.budget_reports import configured
from gateway.cli.budgets import budgets
from gateway.core.budget import Short
from gateway.deployment import read_settings
from gateway.errors import ConfigError, StoreError
from gateway.store.protocol import Admitted
from gateway.store.sqlite import SqliteStore

CONFIG = """
[store]
path = "data.db"

[budgets.teams]
scope = "team"
limit = "0.00001"
soft = "0.000004"

[budgets.users]
scope = "user"
limit = "0.5"
window = "24h"

[budgets.runs]
scope = "run"
soft = "0.25"
window = "day"
timezone = "Europe/Berlin"
"""
SEPTEMBER = ("--since", "2026-09-01", "--until", "2026-10-01")
SECRET = "s" * 32
KEY = f"lgk_abcdefghijkl_{SECRET}"


@pytest.fixture(scope="module")
def samples() -> ModuleType:
    spec = importlib.util.spec_from_file_location("samples", Path(__file__).parents[1] / "store" / "samples.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(getpass, "getuser", lambda: "grace")
    file = tmp_path / "config.toml"
    file.write_text(CONFIG)
    return file


@pytest.fixture
async def store(config: Path, samples: ModuleType) -> AsyncIterator[SqliteStore]:
    opened = SqliteStore(config.with_name("data.db"), "one")
    await opened.start(now_ns=samples.NOW_NS)
    await opened.heartbeat(now_ns=samples.NOW_NS, lease_ns=2**62)  # it lives, whatever the clock of a command says
    await opened.keys.create(samples.key(1))
    yield opened
    await opened.close()


@pytest.fixture
def till(config: Path, store: SqliteStore, samples: ModuleType) -> Any:
    return samples.Till(store, *configured(read_settings(config)).budgets.values())


@pytest.fixture
async def spent(till: Any) -> None:
    """The team blue has spent 4,000 nano-USD and has 1,000 set aside for a call that runs; red has spent 50."""
    await till.spend(1, 4000, at_s=1)
    await till.begin(2, 1000, at_s=2)
    await till.spend(3, 50, team="red", at_s=90_000)


def _run(config: Path, *arguments: str) -> Result:
    return CliRunner().invoke(budgets, [*arguments, "--config", str(config)])


def _json(config: Path, *arguments: str) -> Any:
    result = _run(config, *arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def _refused(config: Path, *arguments: str) -> str:
    """What is said of a command that changes nothing."""
    before = _history(config)
    result = _run(config, *arguments)
    assert result.exit_code in (1, 2), result.output
    assert isinstance(result.exception, SystemExit), result.exception
    assert SECRET not in result.output
    assert _history(config) == before
    return result.stderr


def _history(config: Path, name: str = "teams") -> Any:
    result = _run(config, "history", name, "--json")
    return json.loads(result.stdout)["changes"] if result.exit_code == 0 else None


def _accounts(config: Path, *arguments: str) -> dict[str, Any]:
    return {row["account"]: row for row in _json(config, "show", *arguments)["accounts"]}


@pytest.mark.usefixtures("spent")
class TestShow:
    """With money spent, set aside, and budgets that nobody has used."""

    def test_every_account_stands_there_with_its_figures_and_every_budget_that_nobody_has_used(self, config: Path) -> None:
        lines = _run(config, "show").stdout.splitlines()
        assert lines[0].split() == [
            "account", "limit_usd", "soft_usd", "used_usd", "reserved_usd", "remaining_usd", "used_percent", "window", "resets_at"]
        rows = {line.split()[0]: line.split()[1:] for line in lines[1:]}
        assert list(rows) == ["runs", "teams/blue", "teams/red", "users"]
        assert rows["teams/blue"] == ["0.00001", "0.000004", "0.000004", "0.000001", "0.000005", "40.0", "none", "-"]
        assert rows["runs"][:3] == ["-", "0.25", "0"]
        assert "day Europe/Berlin" in lines[1]
        assert rows["users"][6] == "1d"

    def test_programs_get_the_budgets_and_the_accounts(self, config: Path) -> None:
        told = _json(config, "show")
        assert [(each["name"], each["source"]) for each in told["budgets"]] == [(name, "config.toml") for name in ("runs", "teams", "users")]
        assert [(each["account"], each["used_nusd"], each["reserved_nusd"], each["past_soft_limit"]) for each in told["accounts"]] == [
            ("teams/blue", 4000, 1000, True), ("teams/red", 50, 0, False)]
        assert (told["raises"], told["more"]) == ([], False)

    def test_one_budget_or_one_account_is_shown_alone(self, config: Path) -> None:
        assert list(_accounts(config, "teams")) == ["teams/blue", "teams/red"]
        assert list(_accounts(config, "teams/red")) == ["teams/red"]
        assert _accounts(config, "users") == {}

    def test_an_account_that_nobody_has_used_shows_what_it_may_spend(self, config: Path) -> None:
        row = _accounts(config, "users/key000000001/ada")["users/key000000001/ada"]
        assert (row["limit_usd"], row["used_usd"], row["remaining_usd"]) == ("0.5", "0", "0.5")

    def test_what_is_left_out_is_told(self, config: Path) -> None:
        result = _run(config, "show", "-n", "1")
        assert "more than 1 accounts" in result.stderr
        assert len(result.stdout.splitlines()) == 2
        assert _json(config, "show", "-n", "1")["more"] is True

    @pytest.mark.parametrize(("arguments", "why"), [
        (("show", "team"), 'did you mean "teams"'), (("show", "users/ada"), "KEY_ID/NAME"), (("show", "/blue"), "there is no budget ''"),
        (("history", "teems"), 'did you mean "teams"'), (("show", KEY), "there is no budget"),
    ])
    def test_what_there_is_not_is_told_with_what_there_is(self, config: Path, arguments: tuple[str, ...], why: str) -> None:
        assert why in _refused(config, *arguments)


@pytest.mark.usefixtures("spent")
class TestChanges:
    """Beside a gateway that has the database open."""

    def test_a_budget_is_made_changed_and_taken_back_and_its_history_stays(self, config: Path) -> None:
        made = _json(config, "set", "nightly", "--scope", "tag", "--of", "job=*", "--limit", "2.50", "--window", "7d", "--note", "for the nights")
        assert made["change"]["settings"] == {
            "name": "nightly", "source": "set", "scope": "tag", "of": ["job=*"], "limit": "2.5", "soft": None, "limits": {}, "window": "7d",
            "timezone": "UTC", "on_short": "clamp", "least_output": 16}
        _json(config, "set", "nightly", "--window", "day", "--timezone", "Asia/Tokyo", "--on-short", "deny", "--least-output", "64")
        _json(config, "set", "nightly", "--limit", "9", "--soft", "8")
        settings = next(each for each in _json(config, "show")["budgets"] if each["name"] == "nightly")
        assert settings == {
            "name": "nightly", "source": "set", "scope": "tag", "of": ["job=*"], "limit": "9", "soft": "8", "limits": {}, "window": "day",
            "timezone": "Asia/Tokyo", "on_short": "deny", "least_output": 64}
        assert "What was set for nightly is taken back" in _run(config, "remove", "nightly", "--author", "heidi").stdout
        assert "nightly" not in _run(config, "show").stdout
        changes = _history(config, "nightly")
        assert [(each["kind"], each["author"], each["note"]) for each in changes] == [
            ("remove", "heidi", ""), ("set", "grace", ""), ("set", "grace", ""), ("set", "grace", "for the nights")]
        assert "there is no budget 'nightly'" in _refused(config, "remove", "nightly")
        table = _run(config, "history", "nightly").stdout
        assert "scope=tag, of=job=*, limit=2.5, window=7d" in table

    def test_an_account_gets_limits_of_its_own(self, config: Path) -> None:
        told = _run(config, "set", "teams", "blue", "--limit", "0.5", "--soft", "0.25")
        assert told.stdout == "teams/blue is set. This counts from the next call.\n"
        assert told.stderr == ""
        assert {name: row["limit_usd"] for name, row in _accounts(config).items()} == {"teams/blue": "0.5", "teams/red": "0.00001"}
        _json(config, "remove", "teams", "blue")
        assert _accounts(config)["teams/blue"]["limit_usd"] == "0.00001"

    def test_a_raise_has_an_end_an_author_and_a_reason_and_shows(self, config: Path) -> None:
        told = _run(config, "raise", "teams", "blue", "--by", "0.5", "--for", "24h", "--note", "demo on Friday")
        assert told.stdout.startswith("teams/blue may use 0.5 USD more until 20")
        _json(config, "raise", "teams", "--by", "0.25", "--until", "2200-01-31")
        assert _accounts(config)["teams/blue"]["limit_usd"] == "0.75001"
        assert _accounts(config)["teams/red"]["limit_usd"] == "0.25001"
        shown = _run(config, "show", "teams").stdout.partition("raised\n")[2]
        assert shown.splitlines()[1].split()[-1] == "2200-01-31T00:00:00Z"
        assert [row["subject"] for row in _json(config, "show", "teams/blue")["raises"]] == ["", "blue"]
        assert [row["subject"] for row in _json(config, "show", "teams/red")["raises"]] == [""]
        changes = _history(config)
        assert [(each["kind"], each["subject"], each["author"], each["limit_usd"], each["note"]) for each in changes] == [
            ("raise", "", "grace", "0.25", ""), ("raise", "blue", "grace", "0.5", "demo on Friday")]
        table = _run(config, "history", "teams", "blue").stdout
        assert "by 0.25 until 2200-01-31T00:00:00Z" in table
        assert "demo on Friday" in table

    def test_a_limit_below_what_is_spent_is_set_and_says_so(self, config: Path) -> None:
        told = _run(config, "set", "teams", "blue", "--limit", "0.000003")
        assert told.exit_code == 0
        assert "teams/blue has used 0.000004 USD, with 0.000001 set aside, and may use 0.000003" in told.stderr
        assert "until it is raised" in told.stderr
        assert _json(config, "set", "teams", "--limit", "0.00000002")["over"] == ["teams/blue", "teams/red"]
        row = _accounts(config)["teams/blue"]
        assert (row["remaining_usd"], row["used_usd"]) == ("0", "0.000004")

    def test_who_stops_an_account_is_told_of_a_raise_that_goes_on(self, config: Path) -> None:
        for subject in ((), ("blue",), ("red",)):
            _json(config, "raise", "teams", *subject, "--by", "0.5", "--until", "2200-01-31")
        told = _run(config, "set", "teams", "blue", "--limit", "0").stderr
        assert "teams is raised, and may use 0.5 USD beside its limit until 2200-01-31T00:00:00Z" in told
        assert "teams/blue is raised" in told
        assert "teams/red" not in told
        assert "teams/red is raised" in _run(config, "set", "teams", "--limit", "0").stderr

    def test_a_limit_for_all_does_not_reach_those_with_limits_of_their_own(self, config: Path) -> None:
        for n in range(11):
            _json(config, "set", "teams", f"team-{n:02}", "--limit", "1")
        told = _run(config, "set", "teams", "--limit", "0").stderr
        assert "team-00, team-01" in told
        assert "team-09 and 1 more of teams have limits of their own, which stay as they are" in told
        assert _accounts(config)["teams/team-10"]["limit_usd"] == "1"

    def test_a_subject_that_no_key_has_is_most_likely_a_slip(self, config: Path) -> None:
        assert 'there is no team \'bleu\' yet (did you mean "blue"?)' in _run(config, "set", "teams", "bleu", "--limit", "1").stderr
        assert "there is no key 'nobody' yet" in _run(config, "set", "users", "nobody/ada", "--limit", "1").stderr
        assert _run(config, "set", "users", "key000000001/ada", "--limit", "1").stderr == ""
        _json(config, "set", "all", "--scope", "all", "--limit", "1")
        assert _run(config, "raise", "all", "all", "--by", "1", "--for", "1h").stderr == ""

    def test_windows_are_told_with_the_changes(self, config: Path) -> None:
        told = _json(config, "history", "teams", "blue")
        assert [(each["account"], each["used_nusd"], each["reserved_nusd"], each["limit_nusd"]) for each in told["windows"]] == [
            ("teams/blue", 4000, 1000, 10_000)]
        assert [each["subject"] for each in _json(config, "history", "teams", "-n", "1")["windows"]] == ["blue"]
        assert "0.000004" in _run(config, "history", "teams").stdout

    @pytest.mark.parametrize(("arguments", "why"), [
        (("set", "teams", "--limit", "1.5e3"), "decimal number"), (("set", "teams", "--limit", "-1"), "decimal number"),
        (("set", "teams", "--limit", "0.0000000001"), "a billionth"), (("set", "teams"), "--limit"),
        (("set", "teams", "blue", "--limit", "1", "--soft", "2"), "--soft"), (("set", "teams", "--window", "day"), "stands in config.toml"),
        (("set", "teams", "blue", "--window", "day"), "belongs to a budget"), (("set", "users", "ada", "--limit", "1"), "KEY_ID/NAME"),
        (("set", "taems", "--limit", "1"), 'did you mean "teams"?); a new one needs --scope'),
        (("set", "taems", "blue", "--limit", "1"), 'did you mean "teams"'),
        (("set", "new", "--scope", "team", "--limit", "1", "--window", "monthly"), "--window"),
        (("set", "new", "--scope", "team"), "--limit"), (("set", "new", "--scope", "tem", "--limit", "1"), "--scope"),
        (("set", "new", "--scope", "team", "--limit", "1", "--least-output", "0"), "--least-output"),
        (("set", "new", "--scope", "team", "--limit", "1", "--of", ""), "--of"),
        (("set", "new", "--scope", "team", "--limit", "1", "--timezone", "../../etc/passwd"), "--timezone"),
        (("set", "../new", "--scope", "team", "--limit", "1"), "name has up to 64"),
        (("set", "teams", "blue", "--limit", "1", "--note", "a\x1b[2J"), "--note"),
        (("set", "teams", "blue", "--limit", "1", "--author", " "), "--author"),
        (("set", "teams", KEY, "--limit", "1"), "virtual key"), (("set", "teams", "blue", "--limit", "1", "--note", KEY), "virtual key"),
        (("raise", "teams", "--by", "1"), "either --for or --until"),
        (("raise", "teams", "--by", "1", "--for", "1h", "--until", "2200-01-01"), "either --for or --until"),
        (("raise", "teams", "--by", "0", "--for", "1h"), "--by"), (("raise", "teams", "--by", "1", "--for", "soon"), "--for"),
        (("raise", "teams", "--by", "1", "--for", "0s"), "--until"), (("raise", "teams", "--by", "1", "--until", "2020-01-01"), "--until"),
        (("raise", "teams", "--by", "1", "--until", "tomorrow"), "--until"), (("raise", "runs", "--by", "1", "--for", "1h"), "no limit"),
        (("remove", "teams"), "what stands in config.toml is removed there"), (("remove", "teams", "blue"), "nothing is set for teams/blue"),
    ])
    def test_what_makes_no_sense_changes_nothing_and_says_why(self, config: Path, arguments: tuple[str, ...], why: str) -> None:
        assert why in _refused(config, *arguments)

    def test_a_user_without_a_name_is_a_number(self, config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def nobody() -> str:
            raise KeyError("getpwuid(): uid not found: 4711")

        monkeypatch.setattr(getpass, "getuser", nobody)
        assert _json(config, "set", "teams", "blue", "--limit", "1")["change"]["author"].startswith("uid ")


async def test_a_change_counts_from_the_next_call_of_a_gateway_that_runs(config: Path, till: Any, samples: ModuleType) -> None:
    await till.spend(1, 9000)
    need = samples.tokens(5000, rigid=True)
    assert isinstance(await till.begin(2, need), Short)
    raised = await asyncio.to_thread(_run, config, "raise", "teams", "blue", "--by", "0.000004", "--until", "2200-01-01")
    assert raised.exit_code == 0, raised.output
    assert isinstance(await till.begin(3, need), Admitted)
    assert isinstance(await till.begin(4, need), Short)
    lowered = await asyncio.to_thread(_run, config, "set", "teams", "blue", "--limit", "0")
    assert lowered.exit_code == 0, lowered.output
    assert isinstance(await till.begin(5, 1), Short)


@pytest.mark.usefixtures("spent")
class TestCosts:
    """Two calls of one team and one of another, on two days."""

    def test_the_groups_add_up_to_the_ledger(self, config: Path) -> None:
        report = _json(config, "costs", "--by", "team", *SEPTEMBER)
        assert [(each["group"], each["cost_nusd"]) for each in report["groups"]] == [("blue", 4050)]
        assert (report["total_usd"], report["since_at"]) == ("0.00000405", "2026-09-01T00:00:00Z")

    def test_days_stand_in_their_order_and_all_else_by_cost(self, config: Path) -> None:
        assert [each["group"] for each in _json(config, "costs", "--by", "day", *SEPTEMBER)["groups"]] == ["2026-09-21", "2026-09-22"]
        lines = _run(config, "costs", "--by", "route", *SEPTEMBER).stdout.splitlines()
        assert [line.split() for line in lines] == [
            ["route", "cost_usd", "estimated_usd", "calls", "lines"], ["fast", "0.00000405", "0", "2", "2"],
            ["total", "0.00000405", "0", "-", "2"]]
        assert _run(config, "costs", "--by", "tool", *SEPTEMBER).stdout.splitlines()[1].split()[0] == "-"

    def test_a_spreadsheet_gets_a_row_a_group_and_one_for_the_rest(self, config: Path) -> None:
        told = _run(config, "costs", "--by", "day", "--csv", "-n", "1", *SEPTEMBER)
        assert list(csv.reader(io.StringIO(told.stdout))) == [
            ["day", "cost_usd", "estimated_usd", "calls", "lines"], ["2026-09-21", "0.000004", "0", "1", "1"],
            ["(others)", "0.00000005", "0", "1", "1"]]
        assert "(others)" in _run(config, "costs", "--by", "day", "-n", "1", *SEPTEMBER).stdout

    def test_what_was_not_spent_then_is_not_told(self, config: Path) -> None:
        report = _json(config, "costs", "--since", "1970-01-01", "--until", "2026-09-01")
        assert (report["by"], report["groups"], report["total_usd"]) == ("model", [], "0")

    @pytest.mark.parametrize(("arguments", "why"), [
        (("--since", "soon"), "--since"), (("--until", "1960-01-01"), "--until"), (("--since", "1h", "--until", "2h"), "not after --since"),
        (("--csv", "--json"), "exclude each other"), (("--by", "moon"), "--by"), (("-n", "0"), "-n"),
    ])
    def test_what_cannot_be_asked_is_told(self, config: Path, arguments: tuple[str, ...], why: str) -> None:
        assert why in _refused(config, "costs", *arguments)


class TestSuspects:
    """A process died with 3,000 nano-USD set aside for a call."""

    @pytest.fixture(autouse=True)
    async def _crash(self, config: Path, store: SqliteStore, samples: ModuleType) -> None:
        dying = SqliteStore(config.with_name("data.db"), "dying")
        await dying.start(now_ns=samples.NOW_NS)
        await samples.Till(dying, *configured(read_settings(config)).budgets.values()).begin(7, 3000)
        await dying.close()
        await store.heartbeat(now_ns=samples.NOW_NS, lease_ns=2**62)

    def test_what_was_booked_at_the_estimate_is_listed_until_it_is_resolved(self, config: Path, samples: ModuleType) -> None:
        call = samples.call_id(7)
        assert [(row["call"], row["cost_usd"], row["accounts"]) for row in _json(config, "suspects")] == [(call, "0.000003", ["teams/blue"])]
        assert "0.000003" in _run(config, "suspects").stdout
        told = _run(config, "resolve", call, "--cost", "0.000001")
        assert told.stdout == f"Call {call} is resolved: it cost 0.000001 USD.\n"
        assert _json(config, "suspects") == []
        assert _accounts(config)["teams/blue"]["used_usd"] == "0.000001"
        assert "nothing is in doubt about the call" in _refused(config, "resolve", call, "--cost", "0.000002")

    def test_what_was_booked_may_be_right(self, config: Path, samples: ModuleType) -> None:
        told = _json(config, "resolve", samples.call_id(7), "--as-booked", "--author", "heidi")
        assert told == {"call": samples.call_id(7), "cost_usd": None, "as_booked": True, "resolved": True}
        assert _accounts(config)["teams/blue"]["used_usd"] == "0.000003"

    def test_people_are_told_that_it_was_right(self, config: Path, samples: ModuleType) -> None:
        assert "what was booked is right" in _run(config, "resolve", samples.call_id(7), "--as-booked").stdout

    @pytest.mark.parametrize(("arguments", "why"), [
        (("call_x", "--as-booked"), "there is no call 'call_x' on record"), ((KEY, "--as-booked"), "there is no call '[secret]'"),
        (("call_x",), "either --cost or --as-booked"), (("call_x", "--cost", "1", "--as-booked"), "either --cost or --as-booked"),
        (("call_x", "--cost", "a lot"), "--cost"), (("call_x", "--as-booked", "--author", "a\x07"), "--author"),
    ])
    def test_what_is_no_suspect_is_not_resolved(self, config: Path, arguments: tuple[str, ...], why: str) -> None:
        assert why in _refused(config, "resolve", *arguments)
        assert len(_json(config, "suspects")) == 1


def test_before_the_first_call_there_is_no_database_and_after_the_first_change_there_is(config: Path) -> None:
    missing = _run(config, "show")
    assert isinstance(missing.exception, StoreError)
    assert "there is no database" in str(missing.exception)
    _json(config, "set", "teams", "blue", "--limit", "1")
    assert _accounts(config)["teams/blue"]["limit_usd"] == "1"


@pytest.mark.usefixtures("store")
def test_where_there_is_no_budget_it_says_how_to_make_one(config: Path) -> None:
    config.write_text('[store]\npath = "data.db"\n')
    assert "`lockgate budgets set NAME --scope team --limit USD`" in _run(config, "show").stderr
    assert _json(config, "show") == {"budgets": [], "accounts": [], "raises": [], "more": False}


@pytest.mark.usefixtures("store")
def test_a_budget_of_config_toml_that_cannot_be_is_told_with_its_line(config: Path) -> None:
    config.write_text('[store]\npath = "data.db"\n[budgets.b]\nscope = "team"\nlimit = "1"\nwindow = "monthly"\n')
    for command in (("show",), ("set", "b", "x", "--limit", "1")):
        result = _run(config, *command)
        assert isinstance(result.exception, ConfigError)
        assert "config.toml:6:budgets.b.window" in str(result.exception)


async def test_names_that_callers_chose_do_not_steer_a_terminal(config: Path, till: Any) -> None:
    await till.spend(1, 5, run="k/\x1b]0;owned\x07")
    await till.spend(2, 5, run="k/=1+1", route=("fast",))
    for command in (("show",), ("history", "runs"), ("show", "runs/k/\x1b[2J"), ("costs", "--by", "run", *SEPTEMBER)):
        result = await asyncio.to_thread(_run, config, *command)
        assert result.exit_code == 0, result.output
        assert "\x1b" not in result.output


async def test_what_is_wrong_with_many_accounts_is_told_of_a_few(config: Path, till: Any) -> None:
    for n in range(12):
        await till.spend(n, 5, team=f"team-{n}")
    told = await asyncio.to_thread(_run, config, "set", "teams", "--limit", "0")
    assert told.stderr.count("nothing that costs goes out") == 10
    assert "that is so of 2 more accounts; `lockgate budgets show teams`" in told.stderr
