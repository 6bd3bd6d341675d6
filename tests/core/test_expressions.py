"""Both engines: what is refused at load, what an evaluation gives, and that none of it ever raises."""

import sys
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.core import cel_cpp
from gateway.core.decision import Phase
from gateway.core.expressions import (
    MAX_FAULT_CHARACTERS,
    MAX_SOURCE_BYTES,
    CompileProblem,
    Engine,
    ExpressionError,
    Fault,
    Library,
    Program,
    attempt,
    compile_expression,
    evaluate,
    open_engine,
)
from gateway.core.facts import FACTS, Fact
from gateway.session import SessionQuery

EngineOf = Callable[[str, Phase], Engine]

VARIABLES = {"request.model": "string", "request.size": "int"}


def run(engine: Engine, source: str, **values: Any) -> bool | Fault:
    activation = engine.activation({name.replace("__", "."): value for name, value in values.items()}, {})
    return evaluate(compile_expression(engine, source), activation)


def problems(engine: Engine, source: str) -> tuple[CompileProblem, ...]:
    with pytest.raises(ExpressionError) as caught:
        compile_expression(engine, source)
    return caught.value.problems


@pytest.mark.parametrize("fact", FACTS, ids=lambda fact: fact.name)
def test_every_documented_example_compiles_in_its_phases_and_reads_its_fact(fact: Fact, engine_name: str, engine_of: EngineOf) -> None:
    """The guide is made of them; and a fact that is not in `names` would not be gathered."""
    for phase in fact.phases:
        assert compile_expression(engine_of(engine_name, phase), fact.example).names == {fact.name}


@pytest.mark.parametrize(("source", "names"), [
    ("true", set()),
    ("messages.exists(m, m.x == step && m.exists(run, run.y))", {"messages", "step"}),
    ('[route].map(x, x.startsWith("a"), {"k": run}[x])[0] == request.body.a.b["c"]', {"route", "run", "request.body"}),
    ("(route).size() > 1 || !has(request.params.x)", {"route", "request.params"}),
    ("type(messages[0].content) == string", {"messages"}),
    ('"request.size session.id" == route', {"route"}),
    (".run == step", {"run", "step"}),
])
def test_a_program_names_the_variables_it_reads(source: str, names: set[str], engine: Engine) -> None:
    """Only those are gathered. One too many (a bound name like a variable's) costs a little; one too few would fail."""
    found = compile_expression(engine, source).names
    assert found >= names
    assert found - names <= {"run"}


@pytest.mark.parametrize(("source", "line", "name", "hint"), [
    ('request.modle == "a"', 1, "request.modle", "did you mean 'request.model'?"),
    ('true\n && principl.team == ""', 2, "principl.team", "did you mean 'principal.team'?"),
    ('route.startWith("a")', 1, "startWith", "did you mean 'startsWith'?"),
    ('team == "search"', 1, "team", "did you mean 'principal.team'?"),
    ('messages.exists(m, mm.role == "x")', 1, "mm.role", None),
    ("zzz(1) > 1", 1, "zzz", None),
    ('.zzz == ""', 1, "zzz", None),
])
def test_an_undeclared_name_is_refused_with_its_place_and_the_nearest_name(
        source: str, line: int, name: str, hint: str | None, engine: Engine) -> None:
    """A typo in a rule is found when the rule is loaded, not when it should have fired."""
    (problem,) = problems(engine, source)
    assert f"{name}'" in problem.message
    assert problem.line == line
    assert problem.hint == hint
    assert problem.pointed(source).endswith(f" | {source.splitlines()[line - 1]}\n | {'.' * (problem.column - 1)}^")


def test_all_undeclared_names_are_listed_in_order(engine: Engine) -> None:
    """One round of corrections, not one for each."""
    assert [problem.message for problem in problems(engine, "aaa == 1 && route == bbb.ccc")] == [
        "undeclared reference to 'aaa'", "undeclared reference to 'bbb.ccc'"]


@pytest.mark.parametrize("source", ["", "  ", "// nothing", '"a" ==', "a b", '"open', "1 +\n", "route == 'x", "a[", "\x00"])
def test_wrong_syntax_is_refused(source: str, engine: Engine) -> None:
    """With a place that can be shown, even at the end of the text."""
    for problem in problems(engine, source):
        assert problem.pointed(source).startswith(problem.message)
        assert problem.line >= 1


def test_an_expression_over_the_limit_is_refused_by_its_bytes(engine: Engine) -> None:
    """What nobody can read nobody can review."""
    longest = f'route == "{"é" * ((MAX_SOURCE_BYTES - 12) // 2)}"'
    compile_expression(engine, longest)
    assert problems(engine, longest + " " * 10)[0].pointed("") == "the expression is longer than 4096 bytes"


@pytest.mark.parametrize("source", [
    'route.matches("(")', 'route.matches( r"(?=a)" )', "matches(route, '[')", 'request.stream ||\n route.matches("a\\\\1")'])
def test_a_literal_pattern_that_re2_refuses_is_refused_at_load(source: str, engine: Engine) -> None:
    """Else the rule fails on every call."""
    (problem,) = problems(engine, source)
    assert problem.message.startswith("RE2 does not take the pattern ")
    assert source.split("\n")[problem.line - 1][problem.column - 1] in "r'\""


@pytest.mark.parametrize("source", [
    'route.matches("^gpt-[0-9]+$")', r'route.matches(r"\d")', "route != '''x.matches(\"(\n\")'''", "route.matches(run)"])
def test_other_patterns_are_left_alone(source: str, engine: Engine) -> None:
    """Good ones, ones only known later, and text that merely looks like one."""
    assert run(engine, source, route="gpt-5", run="g") is True


def test_what_cannot_be_text_is_refused_not_raised(engine: Engine) -> None:
    """Rules may also come from a program that embeds the gateway."""
    assert problems(engine, "route == \ud800")


@pytest.mark.parametrize("source", ["1", "request.size", "route", "request.body", "[true]", "has(request.model)"])
def test_the_first_engine_refuses_what_is_no_bool(source: str, engines: tuple[Engine, Engine]) -> None:
    """It knows types, so this is found at load. `has()` on a plain variable is that variable, hence no bool either."""
    (problem,) = problems(engines[0], source)
    assert problem.message.endswith(", not bool")


def test_the_first_engine_checks_types_at_load(engines: tuple[Engine, Engine]) -> None:
    """Every wrong comparison is listed with its place."""
    found = problems(engines[0], 'route == 1 || request.size == "x"')
    assert [(problem.line, problem.column) for problem in found] == [(1, 7), (1, 28)]


def test_an_expression_whose_tree_cannot_be_read_is_refused(engines: tuple[Engine, Engine], monkeypatch: pytest.MonkeyPatch) -> None:
    """From an engine of another make: what was not linted is not served."""

    def unreadable(_: bytes, __: str) -> Any:
        raise ValueError("a value is cut short")

    monkeypatch.setattr(cel_cpp, "read_tree", unreadable)
    assert problems(engines[0], "request.stream") == (CompileProblem("a value is cut short"),)


def test_programs_that_are_too_much_together_are_left_to_be_asked_alone(engines: tuple[Engine, Engine]) -> None:
    """Together they are over a limit of the parser, or one of them gives no bool."""
    deep = compile_expression(engines[0], "(" * 28 + "request.stream" + ")" * 28)
    assert engines[0].together([deep, deep]) is not None
    deepest = compile_expression(engines[0], "(" * 31 + "request.stream" + ")" * 31)
    assert engines[0].together([deepest, deepest]) is None
    flag = compile_expression(engines[0], "request.body.flag")
    run_all = engines[0].together([flag, flag])
    assert run_all is not None
    with pytest.raises(ValueError, match="not a list of bools"):
        run_all(engines[0].activation({"request.body": {"flag": 1}}, {}))
    assert engines[1].together([flag, flag]) is None


def test_the_first_engine_refuses_deep_nesting(engines: tuple[Engine, Engine]) -> None:
    """This problem comes without a place."""
    source = "(" * 100 + "true" + ")" * 100
    assert "recursion limit" in problems(engines[0], source)[0].pointed(source)


@pytest.mark.parametrize(("source", "x", "verdict"), [
    ("request.body.x == 1", True, False), ("request.body.x == 1", 1.0, True), ("request.body.x != null", None, False),
    ("request.body.x == [1, {'a': 2}]", [1.0, {"a": 2}], True), ("request.body.x == [1]", [1, 2], False), ("request.body.x == {'a': 1}", {"a": True}, False),
    ("request.body.x == {'a': 1}", {"b": 1}, False), ("request.body.x == '1'", 1, False), ("1 in request.body.x", [True, "1"], False),
    ("'a' in request.body.x", {"a": 1}, True), ("request.body.x < 2", 1.5, True), ("request.body.x >= false", True, True),
    ("double(request.body.x) > 1.0", "1.5", True), ("request.body.x == b'a'", "a", False), ("request.body.x == duration('1h')", "1h", False)])
def test_values_of_any_type_compare_as_cel_says(source: str, x: Any, verdict: object, engine: Engine) -> None:
    """What a caller sends is of any type, and `1` is not `true`."""
    assert run(engine, source, request__body={"x": x}) is verdict


@pytest.mark.parametrize("source", [
    "'a' in request.body.x", "double(request.body.x) > 1.0", "int(request.body.x) == 0", "bool(request.body.x)", "request.body.x < 1",
    "size(string(request.body.x)) > 0", "duration(request.body.x) > duration('0s')", "timestamp(request.body.x) > now"])
@pytest.mark.parametrize("x", [None, {"b": []}])
def test_what_cannot_be_converted_is_a_fault_and_no_verdict(source: str, x: Any, engine: Engine) -> None:
    """A `require_approval` on `double(tool.args.amount)` must not be passed by null."""
    if not (source.startswith("'a' in") and x):
        assert isinstance(run(engine, source, request__body={"x": x}), Fault)


def test_a_result_that_is_no_bool_is_a_fault(engine: Engine) -> None:
    """Where the type is only known later, there is still no verdict to be had from a number."""
    verdict = run(engine, "request.body.flag", request__body={"flag": 1})
    assert isinstance(verdict, Fault)
    assert verdict.text.endswith(", not bool")


@pytest.mark.parametrize(("source", "values"), [
    ("request.body.x == 1", {"request__body": {}}),
    ("1 / request.size > 1", {"request__size": 0}),
    ("request.size + 9223372036854775807 > 0", {"request__size": 1}),
    ("request.body.x > 1", {"request__body": {"x": "s"}}),
    ("request.body.x.y.z > 1", {"request__body": {"x": "s"}}),
    ("messages[3].role == 'x'", {"messages": []}),
    ("route.matches(run)", {"route": "a", "run": "("}),
    ("request.body.x == 1", {"request__body": {"x": 2**70}}),
    ("has(request.body.x)", {"request__body": object()}),
    ("!has(request.body.x)", {}),
    ('route == "a"', {}),
    ("request.size > 1", {"request__size": "5" * 400}),
    ("messages.all(m, m.a)", {"messages": [{"a": True}, 5]}),
    ('request.body.x.contains("y")', {"request__body": {"x": ["y"]}}),
    ("request.body.x > 0", {"request__body": {"x": True}}),
    ("size(request.body.x) == 0", {"request__body": {"x": None}}),
])
def test_an_evaluation_that_fails_is_a_fault(source: str, values: dict[str, Any], engine: Engine) -> None:
    """Returned errors, raised ones and missing values all end the same way."""
    verdict = run(engine, source, **values)
    assert isinstance(verdict, Fault)
    assert len(verdict.text) <= MAX_FAULT_CHARACTERS


def test_a_text_that_is_not_unicode_is_a_fault_of_the_first_engine(engines: tuple[Engine, Engine]) -> None:
    """It raises instead of returning an error; headers can hold such text."""
    assert isinstance(run(engines[0], 'route == "a"', route="\ud800"), Fault)


NUL = "\0"


@pytest.mark.parametrize(("source", "values", "verdict"), [
    ('route.contains("pay")', {"route": f"{NUL}pay"}, True), ('route == ""', {"route": NUL}, False), ("route.size() == 3", {"route": f"a{NUL}b"}, True),
    ('texts.exists(t, t.contains("pay"))', {"texts": ["x", f"a{NUL}{NUL} pay"]}, True),
    ('has(request.body.a) && request.body.a[0].b.endsWith("c")', {"request__body": {"a": [{"b": f"a{NUL}c", "n": 1}]}}, True),
    ("has(request.body.a)", {"request__body": {f"a{NUL}": 1}}, False),
    ('messages.exists(m, m.role == "system")', {"messages": [{"role": "user"}, {"role": "system", "x": f"{NUL}{NUL}"}]}, True)])
def test_no_character_hides_what_comes_after_it(source: str, values: dict[str, Any], verdict: object, engine: Engine) -> None:
    """The first engine's binding ends a text at its first NUL, which JSON can hold: a rule would see what a caller lets it see."""
    assert run(engine, source, **values) is verdict


def test_a_value_of_very_many_parts_ends_in_no_verdict(engines: tuple[Engine, Engine]) -> None:
    """A body may have a million of them, and the time for a decision is bounded."""
    most = engines[0].activation({"request.body": {"x": [0] * (cel_cpp.MAX_PARTS - 10)}, "route": "a"}, {})
    assert evaluate(compile_expression(engines[0], 'route == "a"'), most) is True
    over = attempt(lambda values: engines[0].activation(values, {}), {"request.body": {"x": [[0]] * cel_cpp.MAX_PARTS}})
    assert over == Fault("there are more than 100000 values to read")


def test_what_a_tool_gave_back_is_seen_whole_too(engine: Engine) -> None:
    """Results of functions take the same way into the engine."""
    answers = {SessionQuery("last", "a"): {"args": {}, "result": {"text": f"a{NUL}b"}, "at_ns": 0}}
    program = compile_expression(engine, 'session.last("a").result.text.endsWith("b")')
    assert evaluate(program, engine.activation({}, answers)) is True


def test_the_first_engine_stops_after_ten_thousand_steps(engines: tuple[Engine, Engine]) -> None:
    """A caller chooses how many messages there are. This error is raised, not returned."""
    assert run(engines[0], "messages.all(m, m == 1)", messages=[1] * 9_000) is True
    verdict = run(engines[0], "messages.all(m, m == 1)", messages=[1] * 10_001)
    assert isinstance(verdict, Fault)
    assert "budget" in verdict.text


def test_a_verdict_that_does_not_depend_on_an_error_stands(engine: Engine) -> None:
    """CEL's own rule for `||` and `&&`, whichever side fails."""
    assert run(engine, "1 / request.size > 1 || true", request__size=0) is True
    assert run(engine, "request.size == 0 || 1 / request.size > 1", request__size=0) is True
    assert run(engine, "false && 1 / request.size > 1", request__size=0) is False


def test_many_programs_read_one_activation(engine: Engine) -> None:
    """An activation is made once for a decision."""
    activation = engine.activation({"route": "a", "request.size": 5}, {})
    sources = ('route == "a"', "request.size > 5", 'route == "a" && request.size == 5')
    assert [evaluate(compile_expression(engine, source), activation) for source in sources] == [True, False, True]


def test_a_fault_does_not_quote_what_the_caller_sent(engine: Engine) -> None:
    """Faults are journaled even where bodies are not."""
    for source, body in (("request.body.x > 1", {"x": "hush"}), ("request.body.x.y", {"x": "hush"}),
                         ("request.body[request.body.x]", {"x": "hush"}), ("request.body.x > 1", {"x": {"hush": 2**70}}),
                         ("int(request.body.x) > 1", {"x": "hush"}), ("request.body.hush.x", {"hush": {}})):
        verdict = run(engine, source, request__body=body)
        assert isinstance(verdict, Fault)
        assert "hush" not in verdict.text.replace("request.body.hush", "")


def test_a_fault_quotes_the_rule(engines: tuple[Engine, Engine]) -> None:
    """The name of the field that is missing is what its author needs."""
    verdict = run(engines[0], "request.body.temprature > 1", request__body={})
    assert verdict == Fault('NOT_FOUND: Key not found in map : "temprature"')


@pytest.mark.parametrize("error", [ZeroDivisionError(), KeyError(5), MemoryError("m"), RecursionError("r"), ValueError("x" * 999)])
def test_whatever_an_engine_raises_is_a_fault(error: Exception) -> None:
    """The engines are foreign code over hostile values: no list of exceptions would be complete."""

    def fail(_: Any) -> bool:
        raise error

    assert isinstance(evaluate(Program("true", frozenset(), fail), None), Fault)
    assert isinstance(attempt(fail, None), Fault)


@pytest.mark.parametrize("source", [
    "request.stream and true", "true or request.stream", "not request.stream", "route = 'x'", "route == 'x' AND true"])
def test_operators_of_another_language_are_answered_with_those_of_cel(source: str, engine: Engine) -> None:
    """The first thing that a newcomer gets wrong."""
    assert problems(engine, source)[0].hint == "CEL writes &&, ||, !, =="


@pytest.mark.parametrize("source", ["route == 'a and b' &&", 'route != "x = y" ||', "request.size >= <= 1"])
def test_a_word_in_a_text_or_a_comparison_is_not_taken_for_an_operator(source: str, engine: Engine) -> None:
    """A wrong hint is worse than none."""
    assert problems(engine, source)[0].hint is None


def test_a_whole_number_beside_one_with_a_fraction_is_answered_with_both_ways_out(engines: tuple[Engine, Engine]) -> None:
    """Only the first engine knows types before it evaluates."""
    for source in ("request.size > 1.5", "1.5 == request.size", "request.size * 2.0 > 1.0"):
        assert problems(engines[0], source)[0].hint == "write double(x) or a whole number"


@pytest.mark.parametrize(("source", "where"), [
    ("request.modle == 'x'", " at character "), ("true &&\nrequest.modle == 'x'", " at line 2 of the expression, character ")])
def test_the_place_in_an_expression_cannot_be_taken_for_one_in_a_file(source: str, where: str, engine: Engine) -> None:
    """Lines of the file stand before the message."""
    assert where in problems(engine, source)[0].pointed(source)


@settings(deadline=None)
@given(source=st.text(st.characters(codec="utf-8"), max_size=30) | st.text("()[]{}.,:?!&|=<>+-*/%\"'ab1 \n", max_size=30))
def test_any_text_compiles_or_is_refused(source: str, engines: tuple[Engine, Engine]) -> None:
    """Nothing but `ExpressionError` comes out of loading a rule."""
    for engine in engines:
        try:
            program = compile_expression(engine, source)
        except ExpressionError:
            continue
        assert isinstance(evaluate(program, engine.activation({}, {})), bool | Fault)


def test_auto_takes_the_first_engine_where_it_is_installed(library: Library) -> None:
    """A hundred times faster, and it checks types."""
    assert open_engine("auto", VARIABLES, library).name == "cel-expr-python"


def test_auto_falls_back_where_the_first_engine_is_missing(monkeypatch: pytest.MonkeyPatch, library: Library) -> None:
    """Not every platform has its wheel."""
    monkeypatch.setitem(sys.modules, "cel_expr_python.cel", None)
    assert open_engine("auto", VARIABLES, library).name == "cel-python"
    assert open_engine("cel-python", VARIABLES, library).name == "cel-python"
    with pytest.raises(ImportError):
        open_engine("cel-expr-python", VARIABLES, library)
