"""The functions beyond CEL's own: what each gives on both engines, what is refused at load, and the reference made from them."""

import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from fnmatch import fnmatchcase
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gateway.core.decision import PHASES, Phase
from gateway.core.expressions import CompileProblem, Engine, ExpressionError, Fault, Library, compile_expression, evaluate, open_engine
from gateway.core.functions import (
    EXTENSIONS,
    FUNCTION_OF,
    FUNCTIONS,
    MAX_GLOB,
    STANDARD,
    Binding,
    Function,
    functions_table,
    literal_duration,
)
from gateway.session import SessionQuery

EngineOf = Callable[[str, Phase], Engine]
NOW = datetime(2026, 11, 22, 3, tzinfo=UTC)
AT_NS = 1_795_000_000_123_456_789


def run(engine: Engine, source: str, answers: Any = None, **values: Any) -> bool | Fault:
    program = compile_expression(engine, source)
    return evaluate(program, engine.activation({"now": NOW, "route": "x", **values}, answers or {}))


def problem(engine: Engine, source: str) -> CompileProblem:
    with pytest.raises(ExpressionError) as caught:
        compile_expression(engine, source)
    (found,) = caught.value.problems
    return found


def test_the_guide_holds_the_table_of_functions() -> None:
    """`gateway.core.functions.functions_table` makes it."""
    assert functions_table() in (Path(__file__).parents[2] / "docs" / "policy.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: function.name)
def test_every_documented_example_compiles_in_its_phases(function: Function, engine_name: str, engine_of: EngineOf) -> None:
    assert function.phases == PHASES
    for phase in function.phases:
        assert function.name in function.example
        compile_expression(engine_of(engine_name, phase), function.example)


def test_no_function_takes_the_name_of_one_of_cel() -> None:
    assert not {function.name for function in FUNCTIONS} & (STANDARD | EXTENSIONS)


@pytest.mark.parametrize(("source", "verdict"), [
    ('"gpt-5".glob("gpt-*")', True), ('"GPT-5".glob("gpt-*")', False), ('"a".glob("a")', True), ('"ab".glob("a")', False),
    ('"".glob("")', True), ('"aXbYc".glob("a*b*c")', True), ('"ab".glob("a*b*c")', False), ('"aba".glob("ab*ba")', False),
    ('"abc".glob("a?[c-d]")', True), ('"abd".glob("a?[!d]")', False), ('"a*".glob("a[*]")', True), ('"a\\nb".glob("a?b")', True),
    ('"a.b".glob("a?b[")', False), ('"a?b[".glob("a[?]b[")', True),
    ('"10.1.2.3".cidr("10.0.0.0/8")', True), ('"11.1.2.3".cidr("10.0.0.0/8")', False), ('"::ffff:10.1.2.3".cidr("10.0.0.0/8")', True),
    ('"fd00::1".cidr("fd00::/8")', True), ('"10.1.2.3".cidr("fd00::/8")', False), ('"10.1.2.3".cidr("10.1.2.3")', True),
    ('"bob".in_list("contractors")', True), ('in_list("anna", "contractors")', False), ('"x".in_list("empty")', False),
    ('age(timestamp("2026-11-21T03:00:00Z")) == duration("24h")', True), ("age(now) == duration('0s')", True),
    ('usd("0.40") == 400000000', True), ('usd("0.000000001") == 1', True),
    ('sha256("é") == "' + hashlib.sha256("é".encode()).hexdigest() + '"', True),
    ('pii("write to anna@example.com") == ["email"]', True), ('pii("nothing") == []', True), ('secrets("nothing").size() == 0', True),
])
def test_functions_give_what_they_promise(source: str, verdict: object, engine: Engine) -> None:
    assert run(engine, source) is verdict


@pytest.mark.parametrize(("source", "said"), [
    ('route.cidr("10.0.0.0/8")', "this is no IP address"), ('"10.0.0.1".cidr(route)', "this is no network"),
    ('"a".in_list(route)', "there is no such list"), ("usd(route) > 1", "an amount of money"),
    ("'a'.glob(run)", f"a glob is longer than {MAX_GLOB} characters"), ("'a'.glob(step)", "this is no glob"),
    ('session.called("x")', "the call belongs to no session: it has to send X-Lockgate-Session"),
    ('session.last("x") == null && session.count("x") == 0', "it has to send X-Lockgate-Session"),
])
def test_what_a_function_cannot_do_is_a_fault_that_says_why(source: str, said: str, engine: Engine) -> None:
    """And quotes nothing that a caller sent."""
    verdict = run(engine, source, run="*" * 300, step="[b-a]", route="hush")
    assert isinstance(verdict, Fault)
    assert said in verdict.text
    assert "hush" not in verdict.text


@pytest.mark.parametrize("source", [
    "request.body.x.glob('a')", 'request.body.x.in_list("empty")', "sha256(request.body.x) == ''", "pii(request.body.x).size() == 0",
    "age(request.body.x) > duration('1h')", 'request.body.x.lowerAscii() == ""'])
@pytest.mark.parametrize("value", [1, None, True, ["a"], {"a": 1}, 1.5])
def test_a_value_of_another_type_is_a_fault(source: str, value: Any, engine: Engine) -> None:
    """What a caller sends has any type; a verdict on it would be a guess."""
    assert isinstance(run(engine, source, **{"request.body": {"x": value}}), Fault)


def test_without_a_time_age_is_a_fault(engine: Engine) -> None:
    program = compile_expression(engine, "age(timestamp('2026-01-01T00:00:00Z')) > duration('1h') || route == 'y'")
    assert program.names == {"now", "route"}
    assert isinstance(evaluate(program, engine.activation({"route": "x"}, {})), Fault)


@pytest.mark.parametrize(("source", "message"), [
    ('usd("0.4x") > 1', 'usd: an amount of money is a string of a decimal number in USD: "0.40"'),
    ('usd("0.0000000001") > 1', "usd: an amount of money has at most nine decimals"),
    ('route.cidr("10.0.0.1/8")', 'cidr: this is no network: write it like "10.0.0.0/8", with no bit set after the prefix'),
    ('"10.0.0".cidr("10.0.0.0/8")', "cidr: this is no IP address"),
    ('route.in_list("contractor")', "in_list: there is no such list; did you mean 'contractors'?"),
    ('in_list(route, "zzz")', "in_list: there is no such list; a list is a file policies/lists/NAME.txt; there is contractors, empty"),
    ('route.glob("[b-a]")', "glob: this is no glob: the ranges of a set go up, [a-z]"),
    (f'route.glob("{"a" * 257}")', "glob: a glob is longer than 256 characters"),
    ('session.called("")', "session.called: a tool is named by 1 to 256 characters, without wildcards"),
    ('session.called("bank.*")', "session.called: a tool is named by 1 to 256 characters, without wildcards"),
    ('session.count("a", duration("0s")) > 1', "session.count: the time is longer than none and at most 366 days"),
    ('session.count("a", duration("-1h")) > 1', "session.count: the time is longer than none and at most 366 days"),
    ('session.count("a", duration("9000h")) > 1', "session.count: the time is longer than none and at most 366 days"),
    ('session.sum("a", "amount") > 1.0', 'session.sum: the path starts at the arguments or at the result: "args.amount", "result.total"'),
    ("session.called(route)", 'session.called takes what stands in the rule: texts and duration("…")'),
    ('session.called("a" + "b")', 'session.called takes what stands in the rule: texts and duration("…")'),
    ('session.called("a", now - now)', 'session.called takes what stands in the rule: texts and duration("…")'),
    ('session.called("a", duration(route))', 'session.called takes what stands in the rule: texts and duration("…")'),
    ('session.called("a", duration("1 hour"))', 'session.called takes what stands in the rule: texts and duration("…")'),
    ('session.colled("a")', "undeclared reference to 'session.colled'"),
    ("math.gratest(1, 2) == 2", "undeclared reference to 'math.gratest'"),
    ("glob(route, 'a')", "undeclared reference to 'glob'"),
    ("route.age() > duration('1h')", "undeclared reference to 'age'"),
])
def test_what_can_be_seen_to_be_wrong_is_refused_at_load_with_its_place(source: str, message: str, engine: Engine) -> None:
    """Else the rule fails on every call, or the answers that it needs are never fetched."""
    found = problem(engine, source)
    assert found.message == message
    assert found.pointed(source).endswith("^")


def test_a_library_without_lists_says_so(engine_name: str, library: Library) -> None:
    engine = open_engine(engine_name, {"route": "string"}, Library({}, library.detectors))
    assert problem(engine, 'route.in_list("a")').message == "in_list: there is no such list; a list is a file policies/lists/NAME.txt"


ANSWERS = {
    SessionQuery("called", "kyc.check"): True, SessionQuery("called", "kyc.check", 3600.0): False, SessionQuery("count", "a"): 3,
    SessionQuery("count", "a", 5400.5): 2, SessionQuery("sum", "a", None, "args.n.m"): 7.5, SessionQuery("sum", "a", 60.0, "result.n"): 0.0,
    SessionQuery("last", "a"): {"args": {"to": "x"}, "result": {"ok": True}, "at_ns": AT_NS}, SessionQuery("last", "b", 60.0): None}


@pytest.mark.parametrize(("source", "query"), [
    ('session.called("kyc.check")', SessionQuery("called", "kyc.check")),
    ('!session.called("kyc.check", duration("1h"))', SessionQuery("called", "kyc.check", 3600.0)),
    ('session.count("a") == 3', SessionQuery("count", "a")),
    ('session.count("a", duration("1h30m500ms")) == 2', SessionQuery("count", "a", 5400.5)),
    ('session.sum("a", "args.n.m") == 7.5', SessionQuery("sum", "a", None, "args.n.m")),
    ('session.sum("a", "result.n", duration("1m")) == 0.0', SessionQuery("sum", "a", 60.0, "result.n")),
    ('session.last("a").args.to == "x" && session.last("a").result.ok', SessionQuery("last", "a")),
    ('session.last("a").at == timestamp("2026-11-18T11:06:40.123456Z")', SessionQuery("last", "a")),
    ('age(session.last("a").at) > duration("1h")', SessionQuery("last", "a")),
    ('session.last("b", duration("60s")) == null', SessionQuery("last", "b", 60.0)),
    ("session.called(r'''kyc.check''')", SessionQuery("called", "kyc.check")),
])
def test_functions_of_the_session_name_what_they_ask_and_give_its_answer(source: str, query: SessionQuery, engine: Engine) -> None:
    """Who decides fetches the answers to `queries`, and nothing else."""
    program = compile_expression(engine, source)
    assert program.queries == {query}
    assert run(engine, source, ANSWERS) is True


def test_answers_belong_to_one_activation(engine: Engine) -> None:
    """Two calls are judged with one engine: neither may be judged by the other's session."""
    program = compile_expression(engine, 'session.called("x") && age(now) == duration("0s")')
    query = SessionQuery("called", "x")
    yes, no, unknown = (engine.activation({"now": NOW}, answers) for answers in ({query: True}, {query: False}, {}))
    assert [evaluate(program, each) for each in (yes, no, yes)] == [True, False, True]
    assert isinstance(evaluate(program, unknown), Fault)


def test_activations_stay_apart_in_threads(engine: Engine) -> None:
    """Large bodies are judged in a thread, while the loop judges others."""
    program = compile_expression(engine, 'session.count("x") == request.size && texts.all(t, session.count("x") == request.size)')
    barrier = Barrier(4, timeout=30)

    def judge(number: int) -> list[bool | Fault]:
        barrier.wait()
        return [evaluate(program, engine.activation({"request.size": number, "texts": ["a"] * 20}, {SessionQuery("count", "x"): number}))
                for _ in range(20)]

    with ThreadPoolExecutor(4) as pool:
        assert [set(verdicts) for verdicts in pool.map(judge, range(4))] == [{True}] * 4


def test_programs_asked_together_read_the_same_answers(engines: tuple[Engine, Engine]) -> None:
    sources = ('session.called("x")', 'route == "x"', "age(now) == duration('0s')")
    programs = [compile_expression(engines[0], source) for source in sources]
    together, plain = engines[0].together(programs), engines[0].together(programs[1:2])
    assert together is not None
    assert plain is not None
    activation = engines[0].activation({"route": "x", "now": NOW}, {SessionQuery("called", "x"): True})
    assert together(activation) == [True, True, True]
    assert plain(activation) == [True]


GLOBS = st.text(st.sampled_from("ab*?[]!-^\\.&~|\n"), max_size=8)


@settings(derandomize=True, deadline=None, max_examples=300)
@given(text=st.text(st.sampled_from("ab*?[]!-^\\.&~|\n"), max_size=6), glob=GLOBS)
@example(text="ab", glob="[a]?")
def test_a_glob_fits_the_texts_that_it_fits_in_match(text: str, glob: str, engines: tuple[Engine, Engine]) -> None:
    """One idea of a glob in all of a rule. What RE2 does not take is refused, never taken for something else."""
    verdict = run(engines[0], "route.glob(run)", route=text, run=glob)
    assert isinstance(verdict, Fault) or verdict is fnmatchcase(text, glob)
    if not isinstance(verdict, Fault) or "[" not in glob:
        assert verdict is fnmatchcase(text, glob)


@pytest.mark.parametrize(("text", "meant"), [
    ("1h", timedelta(hours=1)), ("1h30m", timedelta(minutes=90)), ("1.5s", timedelta(seconds=1.5)), ("-10ms", timedelta(milliseconds=-10)),
    ("7us", timedelta(microseconds=7)), ("1000ns", timedelta(microseconds=1)), ("", None), ("1", None), ("1d", None), ("h", None),
    ("999999999999h", None), ("\N{ARABIC-INDIC DIGIT ONE}h", None)])
def test_a_literal_duration_means_what_the_engine_makes_of_it(text: str, meant: timedelta | None) -> None:
    assert literal_duration(text) == meant


@pytest.mark.parametrize("broken", [lambda *_: 1, lambda *_: next(iter(()))])
def test_a_function_that_breaks_off_or_gives_something_else_is_a_fault(broken: Any, library: Library) -> None:
    """Neither may be taken for an answer, nor end a comprehension as if nothing were found."""
    given = Binding(library).bound(replace(FUNCTION_OF["glob"], run=broken))
    with pytest.raises((TypeError, RuntimeError)):
        given("a", "b")


def endless() -> Iterator[tuple[int, int]]:
    at = 0
    while True:
        yield at, at + 1
        at += 1


def test_one_finding_is_enough(engine_name: str) -> None:
    """A text full of them costs no more than its first."""

    class Finds:
        name = "many"
        longest = 1

        def find(self, text: str) -> Iterator[tuple[int, int]]:
            assert text
            return endless()

    class Kept:
        def named(self, name: str) -> tuple[Finds, ...]:
            assert name == "pii"
            return (Finds(),)

    engine = open_engine(engine_name, {"route": "string"}, Library({}, Kept()))  # type: ignore[arg-type]
    assert run(engine, 'pii(route) == ["many"]') is True
