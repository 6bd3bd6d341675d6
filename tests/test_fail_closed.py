"""A fault in any callback of a decision never ends in an allow that a rule would have stopped.

The faults are put in by hand, into everything that a decision calls: facts, functions, steps of the engine, what is answered over the
session, detectors, validators. What there is comes from the registries, so that a new fact or function is covered by itself.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final, get_args

import pytest

from gateway.call import Call, Origin, Principal, Said, ToolCall, ToolResult
from gateway.core import cel_cpp, cel_python, functions
from gateway.core.body import UnreadableFactError
from gateway.core.decision import PHASES, Allowed, Decision, Denied, Effect, Phase, Redaction
from gateway.core.expressions import Program
from gateway.core.facts import FACTS, CelType, Fact, facts_of
from gateway.core.functions import FUNCTIONS, Function
from gateway.core.matching import Index, MatchKeys
from gateway.core.question import Question
from gateway.core.rules import Bundle, Rule, Selection, compile_bundle
from gateway.judge import judge
from gateway.rule_config import PHASES_OF, DefaultsConfig, RuleConfig
from gateway.schemas import SchemaCache
from gateway.session import SessionFacts, SessionQuery
from gateway.tool_offers import unfitting

ENGINES: Final = ("cel-expr-python", "cel-python")
EFFECTS: Final[tuple[Effect, ...]] = ("deny", "require_approval", "redact", "set", "route", "limit", "allow", "log")
TABLES: Final[dict[str, Any]] = {
    "redact": {"patterns": ["evil"]}, "set": {"values": {"x": 1}}, "route": {"only": ["eu/*"]}, "limit": {"requests": 1, "per": "1s"}}
DENIED: Final = DefaultsConfig(models="deny", tools="deny", application_tools="deny")


def legal(effect: Effect) -> tuple[Phase, ...]:
    return tuple(phase for phase in PHASES if phase in PHASES_OF.get(effect, PHASES))


def configured(name: str, effect: Effect, phase: Phase, when: str | None) -> RuleConfig:
    table = {effect: TABLES[effect]} if effect in TABLES else {}
    return RuleConfig.model_validate({"id": name, "effect": effect, "phase": phase, "when": when, **table})


def question(phase: Phase) -> Question:
    call = Call("call_1", Principal("key_1"), "openai", "chat", "fast", {"messages": [{"role": "user", "content": "evil"}]}, stream=False,
                size=100, received_ns=0)
    tool = ToolCall("t1", "bank.pay", {"to": "evil"})
    parts: dict[Phase, dict[str, Any]] = {"request": {}, "tool_call": {"tool": tool}, "response": {"said": Said("evil")},
                                          "tool_result": {"tool": tool, "result": ToolResult("evil", "evil")}}
    return Question(phase, call, 1_700_000_000_000_000_000, session=SessionFacts(), **parts[phase])


def with_selection(bundle: Bundle, phase: Phase, selection: Selection) -> Bundle:
    """The bundle, with an index of this phase that always gives this."""
    return replace(bundle, phases={**bundle.phases, phase: replace(bundle.phases[phase], index=Index([{}], lambda _: selection))})


def decided(bundle: Bundle, phase: Phase) -> Decision | None:
    """The decision; None where there is none, which ends the call as a defect of the gateway. Nothing is sent then."""
    return decided_on(bundle, question(phase))


def decided_on(bundle: Bundle, asked: Question) -> Decision | None:
    try:
        return judge(bundle, asked).decision
    except Exception:  # noqa: BLE001 - whatever was put in
        return None


def stopped(effect: Effect, decision: Decision | None) -> bool:
    """Whether the rule's effect has happened, or something stricter. Nothing rests on a `log` rule, and an `allow` rule stops nothing by itself:
    where it is the only one and the default denies, its fault must not let anything pass.
    """
    match decision:
        case None | Denied():
            return True
        case _ if effect == "log":
            return not decision.labels
        case _:
            kept = {"redact": decision.transforms, "set": decision.transforms, "route": decision.reroutings, "limit": decision.limits}
            return bool(kept[effect]) if effect in kept else effect == "require_approval" and not isinstance(decision, Allowed)


def takes_effect(effect: Effect, decision: Decision | None) -> bool:
    """Whether a healthy rule does what it is for: else the tests below would prove nothing."""
    if decision is None:
        return False
    if effect == "allow":
        return isinstance(decision, Allowed)
    return bool(decision.labels) if effect == "log" else stopped(effect, decision)


class Raising:
    """Raises instead of answering, whoever calls it and with what."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def __call__(self, *_: Any, **__: Any) -> Any:
        raise self.error

    def __repr__(self) -> str:
        return f"raises {self.error!r}"


class Giving:
    """Gives something that was not asked for."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __call__(self, *_: Any, **__: Any) -> Any:
        return self.value

    def __repr__(self) -> str:
        return f"gives {self.value!r}"


def giving(*values: Any) -> list[Callable[..., Any]]:
    return [Giving(value) for value in values]


RAISED: Final[list[Callable[..., Any]]] = [Raising(error) for error in (ZeroDivisionError("x"), KeyError("x"), RecursionError(), MemoryError(), RuntimeError("x"), StopIteration())]
VALUES: Final[list[Any]] = [None, True, 5, 1.5, "x", b"x", [], [5], {}, {5: 5}, {"x": b""}, datetime(2026, 1, 1, tzinfo=UTC),
                     timedelta(1), object(), ..., 2**70]

# Facts: a value that the rule is about, and the rule.
ABOUT: Final[dict[CelType, tuple[Any, str]]] = {
    "bool": (True, "{}"), "int": (7, "{} == 7"), "string": ("evil", '{} == "evil"'),
    "timestamp": (datetime(2030, 1, 1, tzinfo=UTC), '{} > timestamp("2029-01-01T00:00:00Z")'), "duration": (timedelta(2), '{} > duration("1h")'),
    "list(string)": (["evil"], '"evil" in {}'), "list(dyn)": (["evil"], '{}.exists(x, x == "evil")'),
    "map(string, string)": ({"evil": "1"}, '"evil" in {}'), "map(string, int)": ({"evil": 1}, '"evil" in {}'),
    "map(string, dyn)": ({"evil": 1}, '"evil" in {}'), "dyn": ("evil", '{} == "evil"')}


def fits(kind: CelType, value: Any) -> bool:
    """Whether a value is of the type that the fact declares, so that no fault can be seen in it."""
    match kind:
        case "bool" | "int" | "string" | "duration":
            return type(value) is {"bool": bool, "int": int, "string": str, "duration": timedelta}[kind] and value != 2**70
        case "timestamp":
            return type(value) is datetime
        case "list(string)" | "list(dyn)":
            return type(value) is list  # of what is in it the tests of facts speak
        case "map(string, string)" | "map(string, int)" | "map(string, dyn)":
            return type(value) is dict
        case "dyn":
            return value is not ... and value != 2**70 and value.__class__ is not object


@pytest.fixture(scope="module", params=ENGINES)
def on_facts(request: pytest.FixtureRequest) -> dict[tuple[Phase, str, Effect], tuple[Bundle, Rule]]:
    """A rule on every fact, in every phase, with every effect. Compiled at once: an engine is dear to open."""
    wanted = [(phase, fact.name, effect) for phase in PHASES for fact in facts_of(phase).values() for effect in EFFECTS if phase in legal(effect)]
    types = {fact.name: fact.type for fact in FACTS}
    rules = [configured(f"r{number}", effect, phase, ABOUT[types[name]][1].format(name)) for number, (phase, name, effect) in enumerate(wanted)]
    stopping = compile_bundle(rules, request.param)
    allowing = replace(stopping, defaults=DENIED)
    return {key: (allowing if key[2] == "allow" else stopping, rule) for key, rule in zip(wanted, stopping.rules, strict=True)}


def with_fact(on_facts: Any, key: tuple[Phase, str, Effect], extract: Callable[..., Any]) -> Bundle:
    bundle, rule = on_facts[key]
    fact: Fact = replace(facts_of(key[0])[key[1]], extract=extract)
    return with_selection(bundle, key[0], Selection((rule,), (fact,)))


@pytest.mark.parametrize("effect", EFFECTS)
def test_a_fault_in_a_fact_never_lets_pass_what_a_rule_stops(effect: Effect, on_facts: Any) -> None:
    """Every fact in every phase: it raises, it cannot be read, it is of another type, it is not there."""
    for phase in legal(effect):
        for fact in facts_of(phase).values():
            key = phase, fact.name, effect
            healthy = decided(with_fact(on_facts, key, Giving(ABOUT[fact.type][0])), phase)
            assert takes_effect(effect, healthy), (key, healthy)
            unreadable: list[Callable[..., Any]] = [Raising(UnreadableFactError("x"))]
            wrong = giving(*(value for value in VALUES if not fits(fact.type, value)))
            for fault in [*RAISED, *wrong, *unreadable]:
                assert stopped(effect, decided(with_fact(on_facts, key, fault), phase)), (key, fault)
            bundle, rule = on_facts[key]
            assert stopped(effect, decided(with_selection(bundle, phase, Selection((rule,), ())), phase)), (key, "not gathered")


# The engine


@pytest.mark.parametrize("effect", EFFECTS)
@pytest.mark.parametrize("engine", ENGINES)
def test_a_fault_in_a_step_of_the_engine_never_lets_pass_what_a_rule_stops(engine: str, effect: Effect) -> None:
    """Making the activation, asking one rule, asking all at once."""
    for phase in legal(effect):
        bundle = compile_bundle([configured("a", effect, phase, 'route == "fast"'), configured("b", "log", phase, 'route == "x"')], engine,
                                defaults=DENIED if effect == "allow" else None)
        assert takes_effect(effect, decided(bundle, phase))
        rules = bundle.phases[phase]
        route = facts_of(phase)["route"]
        for fault in [*RAISED, *giving(None, 5, "x", [], [None, None], ...)]:
            broken = replace(bundle.rules[0], program=Program("", frozenset({"route"}), fault))
            for selection in (Selection((broken,), (route,)), Selection((broken, bundle.rules[1]), (route,), fault)):
                assert stopped(effect, decided(with_selection(bundle, phase, selection), phase)), (phase, fault)
            without = replace(rules, engine=Activating(rules.engine, fault))
            assert stopped(effect, decided(replace(bundle, phases={**bundle.phases, phase: without}), phase)), (phase, fault)


class Activating:
    """An engine whose activations are not what they should be."""

    def __init__(self, engine: Any, activation: Any) -> None:
        self.name, self.variables, self.load, self.together, self.activation = engine.name, engine.variables, engine.load, engine.together, activation


# Functions


RESTING: Final[tuple[Effect, ...]] = ("deny", "require_approval", "limit", "allow")  # one of each kind
SESSION_ANSWERS: Final = {"called": True, "count": 11, "sum": 5001.0, "last": {"args": {}, "result": {"status": "passed"}, "at_ns": 0}}


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: function.name)
@pytest.mark.parametrize("engine", ENGINES)
def test_a_fault_in_a_function_never_lets_pass_what_a_rule_stops(engine: str, function: Function, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every function of the registry, called as its own example calls it, in rules of every effect."""
    nothing = () if function.result == "dyn" else (None,)  # null is an answer where anything may be one
    for fault in [*RAISED, *giving(*nothing, object(), ..., {5: 5})]:
        table = tuple(replace(each, run=fault) if each is function else each for each in FUNCTIONS)
        for module in (functions, cel_cpp, cel_python):
            monkeypatch.setattr(module, "FUNCTIONS", table)
            monkeypatch.setattr(module, "FUNCTION_OF", {each.name: each for each in table})
        bundle = compile_bundle([configured(effect.replace("_", "-"), effect, "request", function.example) for effect in RESTING], engine,
                                lists={"contractors": frozenset()})
        asked = replace(question("request"), session=SessionFacts(answers=dict(answered(function))))
        asked = replace(asked, call=replace(asked.call, origin=Origin(tags={"ip": "10.1.1.1"})))
        for effect, rule in zip(RESTING, bundle.rules, strict=True):
            alone = with_selection(bundle, "request", replace(bundle.phases["request"].index.select(MatchKeys()), rules=(rule,), together=None))
            assert stopped(effect, decided_on(replace(alone, defaults=DENIED) if effect == "allow" else alone, asked)), (fault, effect)


def answered(function: Function) -> Iterator[tuple[SessionQuery, Any]]:
    if function.of_session is not None:
        within = {"called": 3600.0, "sum": 86400.0}.get(function.of_session)
        tool = {"called": "kyc.check", "count": "mail.send", "last": "kyc.check", "sum": "bank.pay"}[function.of_session]
        yield SessionQuery(function.of_session, tool, within, "args.amount" if function.of_session == "sum" else ""), SESSION_ANSWERS[function.of_session]


# Answers over the session


@pytest.mark.parametrize("function", [each for each in FUNCTIONS if each.of_session], ids=lambda function: function.name)
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("effect", RESTING)
def test_an_answer_that_is_missing_or_wrong_never_lets_pass_what_a_rule_stops(engine: str, effect: Effect, function: Function) -> None:
    """What the store gave is of another type, is to another question, or is not there at all."""
    bundle = compile_bundle([configured("r", effect, "request", function.example)], engine, defaults=DENIED if effect == "allow" else None)
    ((query, answer),) = answered(function)
    healthy = replace(question("request"), session=SessionFacts(answers={query: answer}))
    assert takes_effect(effect, decided_on(bundle, healthy))
    wrong: list[Any] = [{}, {query._replace(tool="other"): answer}, {query._replace(within_s=1.0): answer}]
    wrong += [{query: value} for value in (object(), ..., b"x", {}, {"args": 5}) if not (function.of_session == "last" and value == {})]
    for answers in wrong:
        assert stopped(effect, decided_on(bundle, replace(healthy, session=SessionFacts(answers=answers)))), answers
    assert stopped(effect, decided_on(bundle, replace(healthy, session=None)))


# Detectors, and what a transform is made of


@pytest.mark.parametrize("phase", legal("redact"))
@pytest.mark.parametrize("fault", [*RAISED, *giving(None, 5, [(1,)], [("a", "b")], [None])], ids=repr)
def test_a_fault_in_a_detector_never_lets_pass_what_a_rule_takes_out(phase: Phase, fault: Callable[..., Any]) -> None:
    """It may be somebody else's; then nothing is sent."""
    bundle = compile_bundle([configured("r", "redact", phase, None)], "auto")
    (rule,) = bundle.rules
    action = rule.action
    assert isinstance(action, Redaction)
    assert isinstance(decided(bundle, phase), Allowed)
    broken = replace(rule, action=replace(action, detectors=(Detecting(fault),)))
    decision = decided(with_selection(bundle, phase, Selection((broken,), ())), phase)
    assert decision is None or isinstance(decision, Denied)


class Detecting:
    """A detector that is broken."""

    name = "broken"
    longest = 10

    def __init__(self, find: Callable[..., Any]) -> None:
        self.find = find


# Schemas of tools


class BrokenSchemas(SchemaCache):
    """Finds a schema and fails, or fails to find one."""

    def __init__(self, error: Exception, *, found: bool) -> None:
        super().__init__()
        self.problems = Raising(error)
        self.finding = Giving(self) if found else Raising(error)

    def get(self, schema: Any) -> Any:
        return self.finding(schema)


@pytest.mark.parametrize("error", [ValueError("x"), RuntimeError("x"), RecursionError(), MemoryError(), KeyError("x")], ids=repr)
def test_a_fault_in_the_check_of_arguments_never_finds_that_they_fit(error: Exception) -> None:
    """Compiling the schema, or asking it: the arguments do not fit, or there is no answer at all."""
    tool = {"type": "function", "function": {"name": "bank.pay", "parameters": {"type": "object"}}}
    call = replace(question("request").call, body={"tools": [tool]})
    assert unfitting("bank.pay", {}, call, [], SchemaCache()) == ""
    for found in (True, False):
        try:
            assert unfitting("bank.pay", {}, call, [], BrokenSchemas(error, found=found))
        except type(error):
            continue


def test_every_effect_and_phase_is_covered() -> None:
    """A new one has to be put into the tables above."""
    fields = RuleConfig.model_fields
    assert set(EFFECTS) == set(get_args(fields["effect"].annotation))
    assert {phase for effect in EFFECTS for phase in legal(effect)} == set(get_args(fields["phase"].annotation))
    assert set(ABOUT) == set(get_args(CelType))
