"""What a plan has to know is got before it is made: the task, what rules read of session and accounts, costs, conditions, draws."""

import asyncio
import json
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gateway.call import Call, Origin, Principal, ToolUse
from gateway.core.accounts import Account
from gateway.core.breaker import Condition
from gateway.core.budget import Balance
from gateway.core.order import Plan
from gateway.core.plan import Route, RouteTarget
from gateway.deployment import read_deployment
from gateway.errors import Forbidden, InvalidRequest, StoreUnavailable, UnknownRoute, UpstreamFailed
from gateway.plan_report import Asked, AskedError, describe
from gateway.progress import Progress
from gateway.routing import Routing
from gateway.session import SessionFacts
from gateway.snapshot import Snapshot, compile_snapshot
from gateway.spending import spending_of
from gateway.store.protocol import Standing

NOW_NS = 1_700_000_000_000_000_000
CONFIG = """[auth]
pepper = "env:PEPPER"
[policy]
env = { region = "eu" }
[providers.one]
adapter = "openai"
base_url = "http://127.0.0.1:9090/v1"
[providers.two]
adapter = "openai"
base_url = "http://127.0.0.1:9091/v1"
[prices."one/m"]
input = "10"
output = "10"
[prices."two/m"]
input = "1"
output = "1"
[budgets.all]
scope = "all"
limit = "5.00"
"""
TARGETS = 'targets = [{ provider = "one", model = "m" }, { provider = "two", model = "m" }]\n'
CLASSIFIED = f"""[[route]]
name = "r"
{TARGETS}[[route.rules]]
when = 'task == "code"'
targets = ["two/*"]
[route.classifier]
provider = "one"
model = "judge"
tasks = ["code", "talk"]
default = "talk"
"""


class World:
    """A routing with everything around it made up. `asked` is what was asked of the classifier and the store."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.asked: list[Any] = []
        self.conditions: dict[str, Condition] = {}
        self.session = SessionFacts(calls=7, labels=("old",))
        self.failing = False
        self.task = "code"
        self.draws = 0
        parts: Any = self  # as far as they are used
        self.routing = Routing(self.condition, self.classify, parts, parts, parts, parts)
        for name in ("routes", "policies"):
            (path / name).mkdir()

    def compile(self, routes: str, config: str = "") -> Snapshot:
        (self.path / "config.toml").write_text(CONFIG + config)
        (self.path / "routes/r.toml").write_text(routes)
        return compile_snapshot(read_deployment(self.path / "config.toml"), {"PEPPER": "p" * 32})

    async def plan(self, routes: str, call: Call, case: Progress | None = None, change: Callable[[Route], Route] = lambda same: same) -> Plan:
        snapshot = self.compile(routes)
        route = change(snapshot.routes[call.route])
        return await self.routing.plan(case or progress(), snapshot, call, route, spending_of(call, route, call.body, str))

    def condition(self, to: RouteTarget) -> Condition:
        return self.conditions.get(to.target.provider, Condition())

    async def classify(self, _case: Progress, call: Call, route: Route, _snapshot: Snapshot) -> str:
        self.asked.append(("classify", call.id, route.name))
        return self.task

    async def facts(self, key: Any, _queries: Any, *, now_ns: int) -> SessionFacts:
        self.asked.append(("session", tuple(key), now_ns))
        if self.failing:
            raise StoreUnavailable("no")
        return self.session

    async def standing(self, book: Any, subjects: Any, *, now_ns: int) -> list[Any]:
        self.asked.append(("budgets", sorted(subjects), now_ns))
        account = Account("all", "all", "all", book.budgets["all"].limit_nusd)
        return [Standing(account, Balance(4_900_000_000, 0), 0, None)]

    def now_ns(self) -> int:
        return NOW_NS

    def monotonic(self) -> float:
        return 0.0

    def call_id(self) -> str:
        return "call_made_up"

    def jitter(self) -> float:
        self.draws += 1
        return 0.5


def progress() -> Progress:
    return Progress("call_1", "openai", "chat", NOW_NS)


def call_of(body: Any = None, **given: Any) -> Call:
    usual = {"id": "call_1", "principal": Principal("key_1"), "dialect": "openai", "operation": "chat", "route": "r",
             "body": {"messages": []} if body is None else body, "stream": False, "size": 100, "received_ns": NOW_NS}
    return Call(**{**usual, **given})


def in_order(plan: Plan) -> list[str]:
    return [each.to.target.provider for each in plan.order]


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


ONE = '[[route]]\nname = "r"\ntargets = [{ provider = "one", model = "m" }]\n'
TWO = '[[route]]\nname = "r"\n' + TARGETS


async def test_where_there_is_nothing_to_choose_nobody_is_asked(world):
    plan = await world.plan(ONE, call_of())
    assert in_order(plan) == ["one"]
    assert (world.asked, world.draws) == ([], 0)


async def test_the_one_target_that_does_not_admit_is_the_last_resort(world):
    world.conditions["one"] = Condition("open", admits=False)
    plan = await world.plan(ONE, call_of())
    assert plan.last_resort
    assert in_order(plan) == ["one"]


async def test_where_every_target_was_opened_by_hand_the_error_says_so(world):
    world.conditions = dict.fromkeys(("one", "two"), Condition("forced_open", admits=False, cause="repairs"))
    case = progress()
    with pytest.raises(UpstreamFailed) as caught:
        await world.plan(TWO, call_of(), case)
    assert caught.value.message == (
        "No target of the route r may be tried: one/m: opened by hand: repairs; two/m: opened by hand: repairs.")
    assert case.plan is not None
    assert len(case.plan["passed"]) == 2


async def test_a_rule_that_chooses_what_policy_forbids_leaves_nowhere(world):
    rules = '[[route.rules]]\nwhen = "true"\ntargets = ["two/*"]\n'
    with pytest.raises(Forbidden) as caught:
        await world.plan(TWO + rules, call_of(), change=without("two"))
    assert caught.value.rule == "r"
    assert "one/m: not of rule: true" in caught.value.message


def without(provider: str) -> Callable[[Route], Route]:
    """What policy makes of a route where it takes a provider out."""
    return lambda route: replace(route, targets=tuple(to for to in route.targets if to.target.provider != provider))


async def test_a_canary_alone_is_no_target_for_who_was_not_drawn(world):
    canary = TWO.replace('provider = "two", model = "m"', 'provider = "two", model = "m", canary = 0.0001')
    with pytest.raises(Forbidden):
        await world.plan(canary, call_of(), change=without("one"))


async def test_costs_are_those_of_the_call(world):
    plan = await world.plan(TWO + 'strategy = "cheapest"\n', call_of({"messages": [], "max_tokens": 1000}))
    assert in_order(plan) == ["two", "one"]
    assert plan.order[0].why.startswith("cheapest: 0.0011")


async def test_only_chance_is_drawn_for(world):
    await world.plan(TWO, call_of())
    assert world.draws == 0
    plan = await world.plan(TWO + 'strategy = "weighted"\n', call_of())
    assert world.draws == 2
    assert len(plan.order) == 2


async def test_what_sticks_is_the_session_else_the_user_else_the_key(world):
    sticky = TWO + 'strategy = "sticky"\n'

    async def first(**given: Any) -> str:
        return in_order(await world.plan(sticky, call_of(**given)))[0]

    async def spread(make: Callable[[int], dict[str, Any]]) -> set[str]:
        return {await first(**make(number)) for number in range(12)}

    assert await spread(lambda number: {"origin": Origin(session=f"s{number}")}) == {"one", "two"}
    assert await spread(lambda number: {"user": f"u{number}"}) == {"one", "two"}
    assert await spread(lambda number: {"principal": Principal(f"key_{number}")}) == {"one", "two"}
    assert len(await spread(lambda number: {"origin": Origin(session="s"), "user": f"u{number}", "id": f"call_{number}"})) == 1
    assert len(await spread(lambda number: {"user": "u", "id": f"call_{number}"})) == 1
    assert len(await spread(lambda number: {"id": f"call_{number}"})) == 1


async def test_a_canary_is_drawn_by_session_and_key_else_by_call(world):
    canary = TWO.replace('provider = "two", model = "m"', 'provider = "two", model = "m", canary = 50')

    async def drawn(**given: Any) -> bool:
        return in_order(await world.plan(canary, call_of(**given)))[0] == "two"

    assert len({await drawn(origin=Origin(session="s"), id=f"call_{each}") for each in range(12)}) == 1
    assert {await drawn(origin=Origin(session="s"), principal=Principal(f"key_{each}")) for each in range(12)} == {True, False}
    assert {await drawn(id=f"call_{each}") for each in range(12)} == {True, False}


async def test_a_context_that_is_surely_too_small_is_last(world):
    small = '[models."one/m"]\ncontext = 1000\n'
    snapshot = world.compile(TWO, small)
    route = snapshot.routes["r"]
    for size, expected in ((8000, ["one", "two"]), (9000, ["two", "one"])):
        call = call_of(size=size)
        plan = await world.routing.plan(progress(), snapshot, call, route, spending_of(call, route, call.body, str))
        assert in_order(plan) == expected, size


# Tasks.


async def test_the_classifier_says_the_task(world):
    plan = await world.plan(CLASSIFIED, call_of())
    assert (in_order(plan), plan.task, plan.rule) == (["two"], "code", 'task == "code"')
    assert world.asked == [("classify", "call_1", "r")]


async def test_the_callers_tag_goes_before_the_classifier(world):
    plan = await world.plan(CLASSIFIED, call_of(origin=Origin(tags={"task": "talk"})))
    assert (in_order(plan), plan.task) == (["one", "two"], "talk")
    assert world.asked == []


async def test_a_tag_that_is_no_task_is_not_believed(world):
    plan = await world.plan(CLASSIFIED, call_of(origin=Origin(tags={"task": "root"})))
    assert plan.task == "code"


async def test_without_a_classifier_the_tag_alone_says_the_task(world):
    rules = """[[route.rules]]\nwhen = 'task == "code"'\ntargets = ["two/*"]\n"""
    assert in_order(await world.plan(TWO + rules, call_of(origin=Origin(tags={"task": "code"})))) == ["two"]
    assert in_order(await world.plan(TWO + rules, call_of())) == ["one", "two"]


async def test_what_came_of_the_question_for_the_task_is_in_the_plan(world):
    case = progress()
    case.notes.append("the classifier was late")
    assert (await world.plan(CLASSIFIED, call_of(), case)).notes == ("the classifier was late",)


# What rules read.


def ruled(when: str) -> str:
    return f"{TWO}[[route.rules]]\nwhen = '{when}'\ntargets = [\"two/*\"]\n"


async def test_rules_read_the_session_with_what_this_call_has_left(world):
    case = progress()
    case.labels["new"] = None
    case.uses.append(ToolUse("call_1", "c", "mail.send", "model", {}, True, NOW_NS))
    plan = await world.plan(ruled('session.calls == 7 && "old" in session.labels && "new" in session.labels'),
                            call_of(origin=Origin(session="s")), case)
    assert in_order(plan) == ["two"]
    assert world.asked == [("session", ("key_1", "s"), NOW_NS)]


async def test_a_call_without_a_session_is_not_looked_up(world):
    plan = await world.plan(ruled("session.calls == 7"), call_of())
    assert in_order(plan) == ["one", "two"]
    assert len(plan.notes) == 1
    assert world.asked == []


async def test_rules_read_what_is_left_of_the_accounts(world):
    plan = await world.plan(ruled('budget.remaining["any"] <= usd("0.10")'), call_of())
    assert in_order(plan) == ["two"]
    assert [each[0] for each in world.asked] == ["budgets"]


async def test_nothing_is_asked_that_no_rule_reads(world):
    assert in_order(await world.plan(ruled('env["region"] == "eu"'), call_of(origin=Origin(session="s")))) == ["two"]
    assert world.asked == []


async def test_where_the_store_cannot_say_the_call_is_refused(world):
    world.failing = True
    with pytest.raises(StoreUnavailable):
        await world.plan(ruled("session.calls == 7"), call_of(origin=Origin(session="s")))


async def test_a_large_call_is_looked_at_beside_the_loop(world, monkeypatch):
    """Other calls do not wait while a rule reads ten megabytes."""
    threads: list[str] = []

    async def noted(work: Callable[..., Any], *given: Any) -> Any:
        def run() -> Any:
            threads.append(threading.current_thread().name)
            return work(*given)
        return await asyncio.get_running_loop().run_in_executor(None, run)

    monkeypatch.setattr("gateway.routing.asyncio.to_thread", noted)
    assert in_order(await world.plan(ruled("request.size > 1"), call_of(size=100))) == ["two"]
    assert threads == []
    assert in_order(await world.plan(ruled("request.size > 1"), call_of(size=100_000))) == ["two"]
    assert len(threads) == 1
    assert threads != [threading.current_thread().name]


# Told to people.


async def test_a_plan_is_told_for_a_call_that_nobody_made(world):
    world.conditions = {"one": Condition("open", admits=False, until_s=2.0, cause="reset"), "two": Condition(first_token_s=0.25, answered_s=1.5)}
    snapshot = world.compile(TWO + 'aliases = ["other"]\nhedge = { after = "1s" }\nvalidators = [{ non_empty = true }]\n'
                             'mirrors = [{ provider = "two", model = "copy", percent = 5 }]\n')
    told = await describe(world.routing, snapshot, "other", Asked(body={"messages": [], "max_tokens": 1000}, size=100))
    assert told["order"] == [{"target": "two/m", "why": "2nd in order", "breaker": "closed", "cost_usd": told["order"][0]["cost_usd"], "weight": 1,
                              "canary": None, "first_token_ms": 250, "answered_ms": 1500, "probe": False}]
    assert told["order"][0]["cost_usd"].startswith("0.0011")
    assert [(each["target"], each["why"], each["breaker"]) for each in told["passed"]] == [("one/m", "open for 2.0 s: reset", "open")]
    assert (told["route"], told["aliases"], told["strategy"], told["last_resort"], told["wait_s"]) == ("r", ["other"], "priority", False, 0.0)
    assert (told["deadlines"]["total_s"], told["retry"]["attempts"], told["hedge"]) == (600.0, 2, {"after_s": 1.0, "share": 0.05})
    assert (told["validators"], told["mirrors"], told["classifier"]) == (["non_empty"], [{"target": "two/copy", "percent": 5.0}], None)
    assert (told["operation"], told["accept"], told["notes"]) == ("chat", None, [])
    json.dumps(told, allow_nan=False)
    assert (told["on_exhausted"], told["on_stream_failure"]) == ("error", "error")


async def test_a_report_asks_no_classifier(world):
    snapshot = world.compile(CLASSIFIED)
    told = await describe(world.routing, snapshot, "r", Asked())
    assert (told["task"], told["notes"]) == ("talk", ["the classifier one/judge is not asked here: its default is taken"])
    assert world.asked == []
    assert told["classifier"] == {"target": "one/judge", "tasks": ["code", "talk"]}
    supposed = await describe(world.routing, snapshot, "r", Asked(task="code"))
    assert (supposed["task"], supposed["rule"], [each["target"] for each in supposed["order"]]) == ("code", 'task == "code"', ["two/m"])
    tagged = await describe(world.routing, snapshot, "r", Asked(tags={"task": "code"}))
    assert (tagged["task"], tagged["notes"]) == ("code", [])
    with pytest.raises(AskedError, match="must be one of code, talk: the route's classifier knows no other") as caught:
        await describe(world.routing, snapshot, "r", Asked(task="nope"))
    assert caught.value.name == "task"


LOT = "weighted: drawn by lot, each call anew; this is one of the orders that there may be"
STRAY = "canaries: a call that belongs to no session is drawn by lot, each call anew"
OWN = "sessions and users are a key's own: say which `key`, else this is only one of the orders that there may be"


@pytest.mark.parametrize(("strategy", "canary", "asked", "notes"), [
    ("priority", False, Asked(session="s"), []),
    ("weighted", False, Asked(key="k"), [LOT]),
    ("sticky", False, Asked(), [OWN]),
    ("sticky", False, Asked(session="s", key="k"), []),
    ("priority", True, Asked(), [STRAY]),
    ("priority", True, Asked(session="s"), [OWN]),
    ("priority", True, Asked(session="s", key="k"), []),
    ("sticky", True, Asked(), [STRAY, OWN]),
])
async def test_a_report_says_what_of_an_order_is_a_lot(world, strategy, canary, asked, notes):
    """Else it tells the operator that a session goes where it does not."""
    new = 'targets = [{ provider = "one", model = "m" }, { provider = "two", model = "m" }, { provider = "two", model = "new", canary = 5 }]\n'
    snapshot = world.compile(f'[[route]]\nname = "r"\nstrategy = "{strategy}"\n{new if canary else TARGETS}')
    assert (await describe(world.routing, snapshot, "r", asked))["notes"] == notes


async def test_where_there_is_one_target_there_is_no_lot(world):
    for strategy in ("weighted", "sticky"):
        assert (await describe(world.routing, world.compile(f'{ONE}strategy = "{strategy}"\n'), "r", Asked()))["notes"] == []


async def test_a_session_goes_where_its_key_has_it_go(world):
    """As in a call with that key, and with another key elsewhere."""
    routes = f'[[route]]\nname = "r"\nstrategy = "sticky"\n{TARGETS}'
    firsts = set()
    for number in range(16):
        principal = Principal(f"key_{number}")
        told = await describe(world.routing, world.compile(routes), "r", Asked(principal, session="s", key=principal.id))
        plan = await world.plan(routes, call_of(principal=principal, origin=Origin(session="s")))
        assert [each["target"] for each in told["order"]] == [str(each.to.target) for each in plan.order]
        firsts.add(told["order"][0]["target"])
    assert firsts == {"one/m", "two/m"}


async def test_where_no_keys_are_asked_for_all_sessions_are_one_callers(world):
    snapshot = world.compile(f'[[route]]\nname = "r"\nstrategy = "sticky"\n{TARGETS}')
    open_to_all = replace(snapshot, config=snapshot.config.model_copy(update={"auth": snapshot.config.auth.model_copy(update={"required": False})}))
    assert (await describe(world.routing, open_to_all, "r", Asked(session="s")))["notes"] == []
    with pytest.raises(AskedError, match="all callers are one") as caught:
        await describe(world.routing, open_to_all, "r", Asked(session="s", key="k"))
    assert caught.value.name == "key"


async def test_what_a_route_or_a_key_is_not_for_is_told_as_the_call_would_be(world):
    """Its error has the same code: a plan of it would be one of a call that nobody can make."""
    snapshot = world.compile(TWO + 'operations = ["chat"]\naliases = ["other"]\n')
    with pytest.raises(UnknownRoute, match="The route other is not for embeddings: it is for chat"):
        await describe(world.routing, snapshot, "other", Asked(operation="embeddings"))
    with pytest.raises(UnknownRoute, match=r"The key may not use the route r: it may use oth\*, x"):
        await describe(world.routing, snapshot, "r", Asked(Principal("k", routes=("oth*", "x")), key="k"))
    with pytest.raises(UnknownRoute, match="it may use none"):
        await describe(world.routing, snapshot, "r", Asked(Principal("k", routes=()), key="k"))
    assert (await describe(world.routing, snapshot, "other", Asked(Principal("k", routes=("oth*",)), key="k")))["route"] == "r"


@pytest.mark.parametrize(("condition", "probe"), [
    (Condition("open"), True), (Condition("half_open"), True), (Condition("forced_closed"), False), (Condition(), False),
    (Condition("open", admits=False), False),
])
async def test_a_call_that_is_to_show_how_a_target_is_is_told_as_a_probe(world, condition, probe):
    """As the last resort it is none: it is sent whatever the breaker says."""
    world.conditions = {"one": condition, "two": Condition("open", admits=False, badness=9.0)}
    told = await describe(world.routing, world.compile(TWO), "r", Asked())
    assert (told["order"][0]["target"], told["order"][0]["probe"]) == ("one/m", probe)
    assert not any(each["probe"] for each in told["passed"])


async def test_a_cascade_tells_what_it_accepts(world):
    snapshot = world.compile('[[route]]\nname = "r"\noperations = ["chat"]\nstrategy = "cascade"\n'
                             f"accept = 'response.finish_reason == \"stop\"'\n{TARGETS}")
    assert (await describe(world.routing, snapshot, "r", Asked()))["accept"] == 'response.finish_reason == "stop"'


async def test_a_report_takes_the_call_for_what_it_is_said_to_be(world):
    snapshot = world.compile(ruled('session.calls == 7 && request.stream && request.size == 900 && user == "ada" && principal.team == "blue"'))
    asked = Asked(Principal("key_9", team="blue"), "chat", "s", "ada", stream=True, size=900)
    assert [each["target"] for each in (await describe(world.routing, snapshot, "r", asked))["order"]] == ["two/m"]
    assert world.asked == [("session", ("key_9", "s"), NOW_NS)]


async def test_a_report_says_why_nothing_may_be_tried(world):
    world.conditions = dict.fromkeys(("one", "two"), Condition("forced_open", admits=False))
    told = await describe(world.routing, world.compile(TWO), "r", Asked())
    assert told["order"] == []
    assert [each["why"] for each in told["passed"]] == ["opened by hand", "opened by hand"]


async def test_a_target_of_unknown_price_costs_nobody_knows_what(world):
    told = await describe(world.routing, world.compile(ONE.replace('"m"', '"new"')), "r", Asked())
    assert told["order"][0]["cost_usd"] is None


async def test_a_tool_has_a_plan_too(world):
    snapshot = world.compile('[[tool]]\nname = "t"\nmethod = "GET"\nurl = "https://tools.example/t"\nprice = "0.01"\n')
    told = await describe(world.routing, snapshot, "t", Asked())
    assert [(each["target"], each["cost_usd"]) for each in told["order"]] == [("tool:t/GET", "0.01")]


async def test_a_route_that_is_not_there_is_told_with_the_nearest(world):
    snapshot = world.compile(TWO)
    with pytest.raises(UnknownRoute, match=r"There is no route 'R'"):
        await describe(world.routing, snapshot, "R", Asked())
    with pytest.raises(InvalidRequest):
        await describe(world.routing, snapshot, "r", Asked(body={"max_tokens": "many"}))
