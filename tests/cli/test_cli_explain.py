"""`lockgate explain` from a terminal: the story of a call in the order in which it happened, and what describes none is refused."""

import asyncio
import importlib.util
import json
from collections.abc import AsyncIterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from click.testing import CliRunner, Result

from gateway.call import AttemptEnd, Outcome, Target
from gateway.cli.calls import calls
from gateway.cli.explain import explain
from gateway.core.approval import Demand, Grant, Stage, State, Ticket
from gateway.core.approval_bounds import Bounds
from gateway.store.sqlite import SqliteStore

PLAN = {"strategy": "priority", "rule": 'task == "code"', "task": "code", "notes": ["by hand"],
        "order": [{"target": "alpha/small-1", "why": "first in order"}, {"target": "beta/large-2", "why": "2nd in order", "breaker": "half_open"}],
        "passed": [{"target": "gamma/tiny", "why": "open for 3.0 s: 5 failures", "breaker": "open"}]}
MS = 1_000_000


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
    for folder in ("policies", "routes", "adapters"):
        (tmp_path / folder).mkdir()
    file = tmp_path / "config.toml"
    file.write_text('[store]\npath = "data.db"\n[auth]\nrequired = false\n')
    monkeypatch.setenv("LOCKGATE_CONFIG", str(file))
    return file


@pytest.fixture
async def store(config: Path, samples: ModuleType) -> AsyncIterator[SqliteStore]:
    opened = SqliteStore(config.with_name("data.db"), "one")
    await opened.start(now_ns=samples.NOW_NS)
    yield opened
    await opened.close()


async def run(*arguments: str, stdin: bytes | None = None) -> Result:
    return await asyncio.to_thread(CliRunner().invoke, explain, list(arguments), input=stdin)


async def test_a_call_that_waits_for_people_is_said_to_wait_and_for_what(store: SqliteStore, samples: ModuleType) -> None:
    """Its row is written at its end."""
    demand = Demand("two-eyes", (Stage(),))
    ticket = Ticket("apr_1", "request", "release", State.PENDING, "sha256:d", "sha256:d", "key000000001", "call_waits", "two-eyes", "", (demand,),
                    {}, b"{}", {}, "sha256:s", samples.NOW_NS, 2**62)
    await store.approvals.open(ticket, bounds=Bounds(9))
    for command, arguments in ((explain, ["call_waits"]), (calls, ["show", "call_waits"])):
        told = await asyncio.to_thread(CliRunner().invoke, command, arguments)
        assert (told.exit_code, told.stderr) == (1, (
            "Error: the call call_waits is waiting for the approval apr_1, and is on record once it has ended; "
            "`lockgate approvals show apr_1` shows what it asks for\n"))


async def test_the_grant_that_let_a_call_go_on_is_in_its_story(store: SqliteStore, samples: ModuleType) -> None:
    await store.journal.begin(samples.intent(1))
    await store.journal.finish(samples.completed(1), response=None)
    await store.approvals.grant(Grant("grt_1", "two-eyes", "key000000001", "", "ada", 0, 2**62))
    assert await store.approvals.use(["grt_1"], call_id=samples.call_id(1), now_ns=samples.NOW_NS)
    assert "what people had allowed before let it go on: grant grt_1" in (await run(samples.call_id(1))).stdout
    shown = await asyncio.to_thread(CliRunner().invoke, calls, ["show", samples.call_id(1)])
    assert 'grants          ["grt_1"]' in shown.stdout


def no_database(folder: Path) -> bool:
    return not (folder / "lockgate.db").exists()


async def called(store: SqliteStore, samples: ModuleType, *attempts: Any, **changes: Any) -> None:
    """Call 1, which a classifier was asked for before it began, and which was mirrored."""
    whole = samples.call_id(1)
    for n, label, at_ms in ((2, "classifier", 5), (3, "mirror", 30)):
        at_ns = samples.NOW_NS + at_ms * MS
        part: dict[str, Any] = {"labels": (label,), "part_of": whole, "received_ns": at_ns}
        await store.journal.begin(samples.intent(n, **part))
        await store.journal.finish(samples.completed(n, **part, ended_ns=at_ns + 120 * MS), response=None)
    await store.journal.begin(samples.intent(1, received_ns=samples.NOW_NS))
    for tried in attempts[1:]:
        await store.journal.dispatch(samples.dispatch(1, tried.n))
    await store.journal.finish(samples.completed(1, received_ns=samples.NOW_NS, attempts=attempts, **changes), response=None)


def tried(samples: ModuleType, n: int, begin_ms: int, end_ms: int, **changes: Any) -> Any:
    return samples.attempt(n, started_ns=samples.NOW_NS + begin_ms * MS, ended_ns=samples.NOW_NS + end_ms * MS, **changes)


async def test_the_story_of_a_call_is_told_in_the_order_in_which_it_happened(store: SqliteStore, samples: ModuleType) -> None:
    """Task, plan, attempts and copies, what the client got."""
    failed = {"end": AttemptEnd.FAILED, "cause": "status:503", "message": "no\x1b[2J room", "usage": None, "cost_nusd": 0}
    await called(
        store, samples, tried(samples, 1, 130, 140, **failed), tried(samples, 2, 340, 12_500, why="retry", waited_s=0.2, retries_left=2.5),
        tried(samples, 3, 1_340, 12_600, target=Target("beta", "large-2"), why="hedge", breaker="half_open", end=AttemptEnd.CANCELLED,
              cause="hedged", usage=None, cost_nusd=None), plan=PLAN, cost_nusd=None)
    done = await run(samples.call_id(1))
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert lines[lines.index("task code (classifier alpha/small-1, 120 ms, 0.0000015 USD)"):] == [
        "task code (classifier alpha/small-1, 120 ms, 0.0000015 USD)",
        'plan: priority, by the rule task == "code"',
        "  by hand",
        "  1. alpha/small-1: first in order",
        "  2. beta/large-2: 2nd in order [breaker half_open, so this is a probe]",
        "  not gamma/tiny: open for 3.0 s: 5 failures [breaker open]",
        "",
        f"+5 ms  classifier {samples.call_id(2)}: alpha/small-1, completed after 120 ms, 0.0000015 USD",
        f"+30 ms  mirror {samples.call_id(3)}: alpha/small-1, completed after 120 ms, 0.0000015 USD",
        "+130 ms  attempt 1, first: alpha/small-1, failed after 10 ms: status:503 (no�[2J room), 0 USD",
        "+340 ms  attempt 2, retry after 200 ms: alpha/small-1, succeeded after 12.2 s, 0.0000015 USD",
        "    the route's retry budget held 2.5 after it",
        "+1340 ms  attempt 3, hedge beside attempt 2: beta/large-2, cancelled after 11.3 s: hedged, at an unknown cost",
        "    breaker half_open",
        "",
        "+3000 ms  the client got the whole answer (200)"]
    told = json.loads((await run(samples.call_id(1), "--json")).stdout)
    assert [(each["n"], each["why"], each["said"], each["breaker"], each["retries_left"]) for each in told["attempts"]] == [
        (1, None, "first", "closed", None), (2, "retry", "retry after 200 ms", "closed", 2.5),
        (3, "hedge", "hedge beside attempt 2", "half_open", None)]
    assert (told["plan"], told["task"]["name"], [each["kind"] for each in told["parts"]]) == (PLAN, "code", ["classifier", "mirror"])


async def test_the_story_of_a_part_says_whose_it_is(store: SqliteStore, samples: ModuleType) -> None:
    await called(store, samples, tried(samples, 1, 130, 140))
    assert f"this call was made by the gateway itself, for {samples.call_id(1)}" in (await run(samples.call_id(3))).stdout.splitlines()


async def test_an_open_call_and_one_that_rested_are_told_as_far_as_they_went(store: SqliteStore, samples: ModuleType) -> None:
    await store.journal.begin(samples.intent(1, received_ns=samples.NOW_NS))
    lines = (await run(samples.call_id(1))).stdout.splitlines()
    assert lines[-3:] == ["+0 ms  attempt 1, first: alpha/small-1, under way", "", "the call has not ended yet"]
    resting = {"strategy": "priority", "order": [{"target": "alpha/small-1", "why": "first"}], "wait_s": 4.5}
    await store.journal.refuse(samples.refused(2, plan=resting, outcome=Outcome.REFUSED, status=429, code="upstream_busy"), request=None)
    lines = (await run(samples.call_id(2))).stdout.splitlines()
    assert "  every target rests; the first is ready in 4.5 s" in lines
    assert lines[-1].endswith("the client got 429 upstream_busy, and nothing was sent on")


async def test_a_part_is_told_from_a_callers_call_in_a_list(config: Path, store: SqliteStore, samples: ModuleType) -> None:
    await called(store, samples, tried(samples, 1, 130, 140, breaker="last_resort", retries_left=3.25))
    _ = config
    shown = await asyncio.to_thread(CliRunner().invoke, calls, ["tail"])
    assert ["fast (classifier)" in line for line in shown.stdout.splitlines()[1:]] == [True, False, False]
    assert "fast (mirror)" in shown.stdout
    listed = await asyncio.to_thread(CliRunner().invoke, calls, ["tail", "--part-of", samples.call_id(1), "--json"])
    assert [row["id"] for row in json.loads(listed.stdout)] == [samples.call_id(2), samples.call_id(3)]
    mine = await asyncio.to_thread(CliRunner().invoke, calls, ["tail", "--part-of", "", "--json"])
    assert [row["id"] for row in json.loads(mine.stdout)] == [samples.call_id(1)]
    one = (await asyncio.to_thread(CliRunner().invoke, calls, ["show", samples.call_id(1)])).stdout
    for part in ("last_resort", "3.2", samples.call_id(2)):
        assert part in one


@pytest.mark.parametrize(("arguments", "code", "error"), [
    ((), 2, "say which call: CALL_ID, or --dry-run"),
    (("call_1", "--route", "fast"), 2, "what describes a call belongs to --dry-run"),
    (("call_1", "--stream"), 2, "what describes a call belongs to --dry-run"),
    (("call_1", "--dry-run"), 2, "with --dry-run there is no CALL_ID"),
    (("--dry-run",), 2, "say which route: --route, or a --body that has a `model`"),
    (("--dry-run", "--route", "fast", "--tag", "x"), 2, "Invalid value for --tag: must be at most 20 pairs"),
    (("--dry-run", "--route", "fast", "--session", "a b"), 2, "Invalid value for --session: must be 1 to 200"),
    (("--dry-run", "--route", "fast", "--team", "\x1b"), 2, "Invalid value for --team: must be at most 200"),
    (("--dry-run", "--body", "-"), 2, "Invalid value for --body: is no JSON object"),
    (("call_\x1b[2J",), 1, "there is no call 'call_\\x1b[2J' on record"),
])
async def test_what_describes_no_call_is_refused(store: SqliteStore, arguments: tuple[str, ...], code: int, error: str) -> None:
    _ = store
    done = await run(*arguments, stdin=b"[]")
    assert (done.exit_code, error in done.stderr) == (code, True), done.stderr


async def test_a_body_that_is_no_json_is_refused(config: Path) -> None:
    _ = config
    done = await run("--dry-run", "--body", "-", stdin=b"{")
    assert (done.exit_code, "Invalid value for --body" in done.stderr) == (2, True)


@pytest.fixture
def routed(config: Path) -> Path:
    """The folder of a deployment with a route."""
    config.write_text('[auth]\nrequired = false\n[providers.one]\nadapter = "openai"\nbase_url = "http://127.0.0.1:9/v1"\n')
    (config.parent / "routes/r.toml").write_text(
        '[[route]]\nname = "fast"\n[[route.targets]]\nprovider = "one"\nmodel = "m"\n[[route.mirrors]]\nprovider = "one"\nmodel = "twin"\npercent = 5\n'
        '[route.classifier]\nprovider = "one"\nmodel = "judge"\ntasks = ["code", "chat"]\ndefault = "chat"\n'
        '[[route.rules]]\nwhen = \'task == "code"\'\ntargets = ["one/*"]\n')
    return config.parent


async def test_a_dry_run_names_the_routes_that_there_are(routed: Path) -> None:
    """Before there is a database."""
    done = await run("--dry-run", "--route", "fest")
    assert done.exit_code == 1
    assert "There is no route 'fest'" in str(done.exception)
    done = await run("--dry-run", "--body", "-", "--size", "10", "--user", "ann", stdin=b'{"model": "fast", "stream": true}')
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert lines[:2] == ["route fast for chat", "task chat"]
    assert "  a copy to one/twin of 5 % of the calls" in lines
    assert no_database(routed)
    done = await run("--dry-run", "--route", "fast", "--operation", "embeddings", "--json")
    assert json.loads(done.stdout)["operation"] == "embeddings"


async def test_a_dry_run_tells_what_makes_the_route(routed: Path) -> None:
    (routed / "routes/r.toml").write_text(
        '[[route]]\nname = "fine"\naliases = ["a/b"]\noperations = ["chat"]\nstrategy = "cascade"\non_exhausted = "approve"\n'
        'accept = "answer.length > 3"\nvalidators = [{ non_empty = true }, { finish_reasons = ["stop"] }]\n'
        'hedge = { after = "3s", share = 0.1 }\n'
        'retry = { attempts = 2, base = "250ms", cap = "5s" }\n'
        'targets = [{ provider = "one", model = "m" }, { provider = "one", model = "n" }]\n'
        '[[route]]\nname = "strict"\nvalidators = [{ non_empty = true }]\ntargets = [{ provider = "one", model = "m" }]\n'
        '[[route]]\nname = "whole"\nretry = { attempts = 1 }\nstream = { on_failure = "continue" }\n'
        'targets = [{ provider = "one", model = "m" }, { provider = "one", model = "n", continues = true }]\n')
    done = await run("--dry-run", "--route", "fine")
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines() == [
        "route fine (also a/b) for chat", "plan: cascade", "  1. one/m: 1st in order", "  2. one/n: 2nd in order",
        "  accepted where answer.length > 3",
        "  validators: non_empty, finish_reasons; where no answer passes, a person is asked",
        "  retries: 2 attempts at a target, a wait of up to 250ms at first and 5s at the most between two; a budget of 0.2 a call and 3 a second",
        "  hedge: after 3s, for 10 % of the calls at the most",
        "  deadlines: connect 5s, headers 5m, first_token 2m, idle 1m, total 10m"]
    strict = (await run("--dry-run", "--route", "strict")).stdout.splitlines()
    assert "  validators: non_empty; where no answer passes, the client gets an error" in strict
    assert (await run("--dry-run", "--route", "whole")).stdout.splitlines()[-3:] == [
        "  retries: one attempt at a target; a budget of 0.2 a call and 3 a second",
        "  deadlines: connect 5s, headers 5m, first_token 2m, idle 1m, total 10m",
        "  streams that break off: another target goes on, where it can"]


async def test_a_dry_run_says_the_price_of_the_cheapest_once(routed: Path) -> None:
    with (routed / "config.toml").open("a") as file:
        file.write('[prices."one/m"]\ninput = "1"\noutput = "1"\n[prices."one/n"]\ninput = "2"\noutput = "2"\n')
    (routed / "routes/r.toml").write_text(
        '[[route]]\nname = "fast"\nstrategy = "cheapest"\ntargets = [{ provider = "one", model = "n" }, { provider = "one", model = "m" }]\n')
    first, second = (await run("--dry-run", "--route", "fast")).stdout.splitlines()[2:4]
    assert first.startswith("  1. one/m: cheapest: ")
    assert second.startswith("  2. one/n: 2nd cheapest: ")
    assert (first.count("USD"), second.count("USD")) == (1, 1)


async def test_a_dry_run_says_that_it_cannot_know_how_quick_targets_are(routed: Path) -> None:
    """It has seen no call; "not measured yet" is not what the gateway beside it would say."""
    (routed / "routes/r.toml").write_text(
        '[[route]]\nname = "a/b"\nstrategy = "fastest"\ntargets = [{ provider = "one", model = "m" }, { provider = "one", model = "n" }]\n')
    lines = (await run("--dry-run", "--route", "a/b")).stdout.splitlines()
    assert lines[1:3] == ["plan: fastest",
                          "  fastest: only a gateway that runs knows how quick targets are: ask it for GET /-/routes/a%2Fb/plan"]


@pytest.mark.parametrize(("arguments", "code", "error"), [
    (("--task", "nope"), 2, "Invalid value for --task: must be one of code, chat: the route's classifier knows no other"),
    (("--key", "key_9"), 2, "Invalid value for --key: must be the id of a key"),
    (("--key", "key_9", "--team", "blue"), 2, "Invalid value for --team: is that of the key"),
    (("--operation", "tool"), 1, "The route fast is not for tool: it is for chat, completions, embeddings."),
    (("--operation", "think"), 2, "'think' is not one of 'chat', 'completions', 'embeddings', 'tool'"),
])
async def test_a_call_that_nobody_could_make_has_no_plan(routed: Path, arguments: tuple[str, ...], code: int, error: str) -> None:
    _ = routed
    done = await run("--dry-run", "--route", "fast", *arguments)
    assert (done.exit_code, error in f"{done.stderr} {done.exception}") == (code, True), done.output


async def test_a_probe_is_told_as_one_and_the_last_resort_is_not(store: SqliteStore, samples: ModuleType) -> None:
    order = [{"target": "alpha/small-1", "why": "1st in order", "breaker": "open"}]
    for n, plan in ((1, {"strategy": "priority", "order": order}), (2, {"strategy": "priority", "order": order, "last_resort": True})):
        await store.journal.refuse(samples.refused(n, plan=plan), request=None)
    assert "  1. alpha/small-1: 1st in order [breaker open, so this is a probe]" in (await run(samples.call_id(1))).stdout.splitlines()
    assert "  1. alpha/small-1: 1st in order [breaker open]" in (await run(samples.call_id(2))).stdout.splitlines()


async def test_a_call_that_was_let_through_and_sent_nowhere_says_why_once(store: SqliteStore, samples: ModuleType) -> None:
    """How it ended is what the client got, and no reason of the decision."""
    message = "The budget month/blue has too little left."
    short = {"decision": "allow", "rule": "", "reasons": (), "status": 429, "code": "budget_exceeded", "message": message}
    await store.journal.refuse(samples.refused(1, **short), request=None)
    lines = (await run(samples.call_id(1))).stdout.splitlines()
    assert "the call was allowed" in lines
    assert lines[-1].endswith(f"the client got 429 budget_exceeded, and nothing was sent on: {message}")
    assert sum(message in line for line in lines) == 1


async def test_a_call_is_shown_with_its_plan_and_rounded_waits(store: SqliteStore, samples: ModuleType) -> None:
    retried = tried(samples, 2, 340, 400, why="retry", waited_s=0.0169503095530672)
    await called(store, samples, tried(samples, 1, 130, 140), retried, plan=PLAN)
    shown = (await asyncio.to_thread(CliRunner().invoke, calls, ["show", samples.call_id(1)])).stdout
    assert 'plan: priority, by the rule task == "code"' in shown.splitlines()
    assert "  not gamma/tiny: open for 3.0 s: 5 failures [breaker open]" in shown.splitlines()
    assert "0.017" in shown
    assert "0.01695" not in shown
