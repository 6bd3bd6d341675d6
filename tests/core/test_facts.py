"""Facts come out in their declared type or not at all, whatever is judged."""

import math
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.call import Call, Origin, Said, ToolCall, ToolResult, Usage
from gateway.core.body import MAX_VALUES, UnreadableFactError
from gateway.core.decision import PHASES, Phase
from gateway.core.facts import BUDGET_FACTS, FACTS, SESSION_FACTS, TOOLS_FACT, CelType, Fact, facts_of, match_keys, variables_table
from gateway.core.question import LARGE, BudgetFacts, Question
from gateway.session import SessionFacts

NOW_NS = 1_700_000_000_123_456_789
MakeCall = Callable[..., Call]


def asked(phase: Phase, call: Call, **given: Any) -> Question:
    """A question with everything that its phase has."""
    parts: dict[Phase, dict[str, Any]] = {
        "request": {},
        "tool_call": {"tool": ToolCall("t1", "bank.pay", {"amount": 5, "to": ["x"]}, annotations={"effect": "read"})},
        "response": {"said": Said("hello", ("bank.pay",), "stop", Usage(3, 4))},
        "tool_result": {"tool": ToolCall("t1", "bank.pay", {"amount": 5}, "http", "http"), "result": ToolResult({"ok": True}, '{"ok":true}')},
    }
    session = SessionFacts(90.5, ("secret",), 3, 4_000, facts={"tier": "gold"})
    budgets = BudgetFacts({"team": 4, "any": -1}, {"team": 7}, {"all": 3})
    return replace(Question(phase, call, NOW_NS, session=session, env={"region": "eu"}, budgets=budgets), **{**parts[phase], **given})


def read(name: str, question: Question) -> Any:
    return facts_of(question.phase)[name].extract(question)


def has_type(value: Any, kind: CelType) -> bool:
    """Whether a value is what the schema declares: exactly, because a bool is an int in Python."""
    match kind:
        case "list(string)":
            return type(value) is list and all(type(item) is str for item in value)
        case "map(string, string)":
            return type(value) is dict and all(type(item) is str for pair in value.items() for item in pair)
        case "map(string, int)" | "map(string, dyn)":
            return type(value) is dict and all(type(key) is str and has_type(item, "int" if kind == "map(string, int)" else "dyn") for key, item in value.items())
        case "int":
            return type(value) is int and -2**63 <= value < 2**63
        case "dyn":
            return True
        case _:
            return type(value) is {"bool": bool, "string": str, "timestamp": datetime, "duration": timedelta, "list(dyn)": list}[kind]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-2**65, 2**65) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(
        st.sampled_from(["name", "type", "function", "content", "text", "tools", "tool_calls", "arguments", "x"]), inner, max_size=4), max_leaves=12)
BODIES = st.dictionaries(st.sampled_from(
    ["messages", "prompt", "input", "max_tokens", "max_completion_tokens", "tools", "functions", "temperature", "model", "x"]), JSON)
OBJECTS = st.dictionaries(st.text(max_size=3), JSON, max_size=3)
QUESTIONS = st.fixed_dictionaries({
    "tool": st.none() | st.builds(ToolCall, st.just("t"), st.text(max_size=3), OBJECTS, annotations=OBJECTS),
    "result": st.none() | st.builds(ToolResult, JSON, st.text(max_size=3), st.booleans()),
    "said": st.none() | st.builds(Said, st.text(max_size=3), st.lists(st.text(max_size=3), max_size=3).map(tuple), st.text(max_size=3),
                                  st.none() | st.just(Usage(1, 2))),
    "session": st.none() | st.just(SessionFacts(1.5, ("a",), 2, 3, facts={"a": None})),
    "budgets": st.none() | st.just(BudgetFacts({"any": -2}, {}, {"team": 2**62})),
})


@settings(deadline=None)
@given(body=BODIES, operation=st.sampled_from(["chat", "tool"]), parts=QUESTIONS)
def test_every_fact_has_its_declared_type_or_is_unreadable(body: dict[str, Any], operation: str, parts: dict[str, Any], call: MakeCall) -> None:
    """The engines trust the declared types, and nothing else may escape into the path of a call."""
    judged = call(body, operation=operation, origin=Origin("s", "r", "p", {"env": "prod"}), roles=("a", "b"))
    for phase in PHASES:
        for fact in facts_of(phase).values():
            try:
                value = fact.extract(asked(phase, judged, **parts))
            except UnreadableFactError:
                continue
            assert has_type(value, fact.type), fact.name


BODY = {"model": "fast", "messages": [{"role": "user"}], "max_tokens": 7, "temperature": 1, "input": "x",
        "tools": [{"type": "function", "function": {"name": "f"}}]}
EVERYWHERE = {
    "principal.id": "key_1", "principal.name": "n", "principal.team": "t", "principal.org": "o", "principal.roles": ["a", "b"],
    "principal.on_behalf_of": "grace",
    "protocol": "openai", "route": "fast", "model": "fast", "request.operation": "chat", "request.model": "fast", "request.stream": True,
    "request.size": 100, "request.max_tokens": 7, "request.params": {"model": "fast", "max_tokens": 7, "temperature": 1}, "request.body": BODY,
    "messages": [{"role": "user"}], "texts": ["x"], "tools_offered": ["f"], "session.id": "s1", "session.age": timedelta(seconds=90.5),
    "session.labels": ["secret"], "session.calls": 3, "session.spend": 4_000, "session.facts": {"tier": "gold"},
    "budget.remaining": {"team": 4, "any": -1}, "budget.limit": {"team": 7}, "budget.spent": {"all": 3}, "user": "ada", "run": "r1", "step": "p1", "tags": {"k": "v"},
    "env": {"region": "eu"}, "now": datetime(2023, 11, 14, 22, 13, 20, 123456, tzinfo=UTC)}
TOOL = {"tool.name": "bank.pay", "tool.args": {"amount": 5, "to": ["x"]}, "tool.via": "model", "tool.server": "", "tool.annotations": {"effect": "read"}}
IN_PHASE: dict[Phase, dict[str, Any]] = {
    "request": {},
    "tool_call": {**TOOL, "texts": ["amount", "to", "x"]},
    "tool_result": {**TOOL, "tool.args": {"amount": 5}, "tool.via": "http", "tool.server": "http", "tool.annotations": {}, "tool.released": True,
                    "result": {"ok": True}, "result_text": '{"ok":true}', "texts": ['{"ok":true}']},
    "response": {"response.text": "hello", "response.tool_calls": ["bank.pay"], "response.finish_reason": "stop",
                 "response.usage": {"input_tokens": 3, "output_tokens": 4}, "texts": ["hello"]},
}


@pytest.mark.parametrize("phase", PHASES)
def test_facts_say_what_is_judged(phase: Phase, call: MakeCall) -> None:
    """One value of each, so that no two are mixed up, and every fact of every phase has one."""
    judged = call(BODY, name="n", team="t", org="o", roles=("a", "b"), on_behalf_of="grace", stream=True, user="ada",
                  origin=Origin("s1", "r1", "p1", {"k": "v"}))
    question = asked(phase, judged)
    assert {name: fact.extract(question) for name, fact in facts_of(phase).items()} == {**EVERYWHERE, **IN_PHASE[phase]}


def test_what_was_not_sent_reads_as_empty(call: MakeCall) -> None:
    """So that a rule need not guard the plain facts."""
    names = ("session.id", "user", "run", "step", "tags", "env", "request.max_tokens", "messages", "texts", "tools_offered")
    assert [read(name, Question("request", call(), 0)) for name in names] == ["", "", "", "", {}, {}, 0, [], [], []]


def test_an_explicit_null_is_the_same_as_leaving_it_out(call: MakeCall) -> None:
    """Clients send null for what they do not set."""
    judged = Question("request", call({"max_tokens": None, "messages": None, "tools": None, "functions": None}), 0)
    assert [read(name, judged) for name in ("request.max_tokens", "messages", "tools_offered")] == [0, [], []]


def test_what_there_is_not_is_unreadable_and_never_empty(call: MakeCall) -> None:
    """A rule on the tool, the answer, the result or the session must not find nothing wrong where there is nothing."""
    for phase in PHASES:
        bare = Question(phase, call(), 0)
        for fact in facts_of(phase).values():
            beyond = fact.phases != PHASES or fact.name in SESSION_FACTS | BUDGET_FACTS or (fact.name == "texts" and phase != "request")
            if beyond:
                with pytest.raises(UnreadableFactError):
                    fact.extract(bare)
            else:
                fact.extract(bare)


def test_without_a_session_the_error_says_what_to_send(call: MakeCall) -> None:
    """The caller is told by the rule's error; nobody else knows which header is missing."""
    for name in SESSION_FACTS:
        with pytest.raises(UnreadableFactError, match="X-Lockgate-Session"):
            read(name, Question("request", call(), 0))


def test_usage_that_the_provider_did_not_tell_is_unreadable(call: MakeCall) -> None:
    """It is not zero."""
    with pytest.raises(UnreadableFactError, match="did not say"):
        read("response.usage", asked("response", call(), said=Said("hello")))


def test_an_http_tool_offers_no_tools_whatever_its_arguments_are_called(call: MakeCall) -> None:
    """`tools` may be an argument, of any shape."""
    assert read("tools_offered", Question("request", call({"tools": "all"}, operation="tool"), 0)) == []


def test_what_holds_too_much_for_one_step_of_an_engine_is_unreadable(call: MakeCall) -> None:
    """A million numbers take a tenth of a second to convert, and nothing can interrupt it."""
    many = {"ids": [0] * (MAX_VALUES + 1)}
    large = asked("tool_result", call({**many, "messages": [{}] * (MAX_VALUES + 1)}, size=LARGE), tool=ToolCall("t1", "x", many),
                  result=ToolResult(many, ""))
    for name in ("request.params", "request.body", "messages", "tool.args", "result"):
        with pytest.raises(UnreadableFactError, match="more than"):
            read(name, large)
    assert read("result_text", large) == ""


@pytest.mark.parametrize(("kind", "value"), [("bool", 1), ("int", True), ("string", b"x"), ("timestamp", 5), ("duration", 5), ("list(string)", ()),
                                             ("list(dyn)", "x"), ("map(string, string)", []), ("map(string, dyn)", None)])
def test_an_extract_that_gives_another_type_has_given_nothing(kind: CelType, value: Any, call: MakeCall) -> None:
    """A defect of ours, which an engine could take for a plain "no": `b"x" == "x"` is false without an error."""
    fact = Fact("x", kind, PHASES, "", "", lambda _: value)
    with pytest.raises(UnreadableFactError, match="not of the type"):
        fact.read(Question("request", call(), 0))
    assert replace(fact, type="dyn").read(Question("request", call(), 0)) is value


@pytest.mark.parametrize(("parts", "large"), [
    ({}, False), ({"said": Said("x" * LARGE)}, True), ({"said": Said("x" * (LARGE - 1))}, False),
    ({"tool": ToolCall("t1", "x", {}), "result": ToolResult("", "x" * LARGE)}, True), ({"tool": ToolCall("t1", "x", {"a": ["x" * LARGE]})}, True),
    ({"tool": ToolCall("t1", "x", {"a": "x"}), "result": ToolResult("", "x")}, False)])
def test_what_takes_long_to_judge_is_told_by_its_size(parts: dict[str, Any], large: bool, call: MakeCall) -> None:  # noqa: FBT001 - a table
    """Wherever the bulk is: the request, the arguments, the answer, the result."""
    assert Question("tool_call", call(size=LARGE - 1), 0, **parts).large is large
    assert Question("tool_call", call(size=LARGE), 0, **parts).large


# Match keys


def test_match_keys_hold_what_match_looks_at(call: MakeCall) -> None:
    """Principals match by id and by name; a model is the name that was asked for."""
    judged = call({"tools": [{"type": "t"}]}, name="n", team="t", roles=("a",))
    keys = match_keys(Question("request", judged, 0), with_tools=True)
    assert (keys.principals, keys.teams, keys.roles) == (("key_1", "n"), ("t",), ("a",))
    assert (keys.protocols, keys.routes, keys.models, keys.tools) == (("openai",), ("fast",), ("fast",), ("t",))


def test_the_tools_of_match_are_those_of_the_phase(call: MakeCall) -> None:
    """Offered, called, answered with; a rule on a tool means that tool in each of them."""
    judged = call({"tools": [{"type": "offered"}]})
    found = {phase: match_keys(asked(phase, judged), with_tools=True).tools for phase in PHASES}
    assert found == {"request": ("offered",), "tool_call": ("bank.pay",), "tool_result": ("bank.pay",), "response": ("bank.pay",)}
    for phase, name in TOOLS_FACT.items():
        value = read(name, asked(phase, judged))
        assert found[phase] == ((value,) if isinstance(value, str) else tuple(value))


def test_match_keys_look_for_tools_only_where_asked(call: MakeCall) -> None:
    """No work for what no rule reads; and what cannot be read is said, not guessed."""
    junk = Question("request", call({"tools": "junk"}), 0)
    assert match_keys(junk, with_tools=False).tools == ()
    assert match_keys(junk, with_tools=True).tools is None
    for phase in ("tool_call", "tool_result", "response"):
        assert match_keys(Question(phase, call(), 0), with_tools=True).tools is None


# The schema


def test_names_fit_the_byte_search_of_the_first_engine() -> None:
    """It looks for a name after its length in one byte."""
    assert all(fact.name.isascii() and len(fact.name) < 128 for fact in FACTS)
    assert len({fact.name for fact in FACTS}) == len(FACTS)


def test_the_facts_of_a_request_are_there_in_every_phase() -> None:
    """A rule about who asks is the same rule wherever it is asked."""
    assert set(facts_of("request")) == set.intersection(*(set(facts_of(phase)) for phase in PHASES))
    assert set(facts_of("request")) >= SESSION_FACTS
    assert {fact.type for fact in FACTS} == set(get_args(CelType))


def test_every_fact_is_documented_with_an_example_that_reads_it() -> None:
    """The reference is made from the schema."""
    for fact in FACTS:
        assert fact.doc.endswith((".", "`")), fact.name
        assert fact.name in fact.example, fact.name


def test_a_type_that_the_schema_does_not_declare_is_told_apart() -> None:
    """The check above is only as good as this one."""
    wrong = {"bool": 1, "int": True, "string": b"", "timestamp": 5, "duration": 5, "list(string)": [1], "list(dyn)": (),
             "map(string, string)": {"a": 1}, "map(string, dyn)": {1: 1}}
    assert not any(has_type(value, kind) for kind, value in wrong.items())  # type: ignore[arg-type]
    assert not has_type(math.nan, "int")


def test_the_reference_shows_the_schema() -> None:
    """The table in the documentation is this schema, not a copy of it from long ago."""
    pages = (Path(__file__).parents[2] / "docs").glob("*.md")
    assert any(f"\n{variables_table()}\n" in page.read_text(encoding="utf-8") for page in pages)
