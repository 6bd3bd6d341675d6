"""The two engines side by side: one is the other's oracle, over the rules that ship and over generated expressions and calls."""

import tomllib
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.call import Origin, Said, ToolCall, ToolResult, Usage
from gateway.core.body import UnreadableFactError
from gateway.core.decision import PHASES, Phase
from gateway.core.detectors import Detectors
from gateway.core.expressions import Engine, ExpressionError, Fault, Library, Program, compile_expression, evaluate, open_engine
from gateway.core.facts import FACTS, facts_of
from gateway.core.functions import EXTENSIONS, FUNCTIONS
from gateway.core.question import Question
from gateway.session import SessionFacts, SessionQuery

Ask = Callable[..., Question]
EngineOf = Callable[[str, Phase], Engine]

POLICIES = Path(__file__).parents[2] / "policies"
SHIPPED = [(path.name, rule["id"], rule.get("phase", "request"), rule["when"])
           for path in sorted(POLICIES.rglob("*.toml")) if not path.name.endswith(".cases.toml")
           for rule in tomllib.loads(path.read_text(encoding="utf-8")).get("rule", ()) if "when" in rule]
LISTS = {path.stem: frozenset({"x"}) for path in POLICIES.rglob("lists/*.txt")}

# What cel-python does not have. `check` says so there: the deployment names an engine that does, or does without.
LACKING = {
    "charAt": '"ab".charAt(0) == "a"', "format": '"%s".format(["a"]) == "a"', "lastIndexOf": '"aba".lastIndexOf("a") == 2',
    "reverse": '"ab".reverse() == "ba"', "strings.quote": 'strings.quote("a") != "a"', "trim": '" a".trim() == "a"',
    "math.bitAnd": "math.bitAnd(1, 3) == 1", "math.bitNot": "math.bitNot(1) < 0", "math.bitOr": "math.bitOr(1, 2) == 3",
    "math.bitShiftLeft": "math.bitShiftLeft(1, 2) == 4", "math.bitShiftRight": "math.bitShiftRight(4, 2) == 1",
    "math.bitXor": "math.bitXor(1, 3) == 2", "math.ceil": "math.ceil(1.5) == 2.0", "math.floor": "math.floor(1.5) == 1.0",
    "math.isFinite": "math.isFinite(1.0)", "math.isInf": "math.isInf(1.0)", "math.isNaN": "math.isNaN(1.0)",
    "math.round": "math.round(1.5) == 2.0", "math.sign": "math.sign(-3) == -1", "math.sqrt": "math.sqrt(4.0) == 2.0",
    "math.trunc": "math.trunc(1.5) == 1.0", "first": "texts.first().hasValue()", "last": "texts.last().hasValue()",
    "hasValue": "texts.first().hasValue()", "optional.none": "optional.none().hasValue()", "optional.of": "optional.of(1).hasValue()",
    "optional.ofNonZeroValue": "optional.ofNonZeroValue(1).hasValue()", "or": "optional.of(1).or(optional.of(2)).hasValue()",
    "orValue": "optional.of(1).orValue(2) == 1", "value": "optional.of(1).value() == 1", "optMap": "optional.of(1).optMap(x, x + 1).hasValue()",
    "optFlatMap": "optional.of(1).optFlatMap(x, optional.of(x)).hasValue()"}

EXPRESSIONS = [(fact.phases[0], fact.example) for fact in FACTS] + [("request", function.example) for function in FUNCTIONS] + [
    ("request", source) for source in (
        'messages.exists(m, type(m.content) == string && m.content.contains("secret"))',
        'messages.all(m, m.role != "system")',
        'messages.exists_one(m, m.role == "user")',
        'messages.filter(m, m.role == "user").size() > 1',
        'messages.map(m, m.role) == ["user"]',
        'messages[0].role == "user"',
        "size(messages) > 2 || request.stream",
        "has(request.body.user)",
        'request.body["user"] == "x"',
        "has(request.body.metadata) && has(request.body.metadata.a)",
        "request.body.user == null",
        "null != request.body.user",
        "type(request.body.n) == int && request.body.n > 1",
        "double(request.body.n) > 1.0",
        '"env" in tags && tags.env == "prod"',
        "has(tags.env)",
        'route.matches("^f.*t$")',
        "size(tools_offered) == 0",
        "tools_offered.all(t, t.size() < 5)",
        "10 / request.max_tokens > 1",
        "10 % request.max_tokens == 1",
        "request.max_tokens + 9223372036854775807 > 0",
        "-request.max_tokens < 0 ? request.stream : !request.stream",
        'now - duration("1h") < now && now > timestamp("2020-01-01T00:00:00Z")',
        "[1, 2][request.max_tokens] == 1",
        '{"fast": 1}[route] == 1',
        'route + "x" in ["fastx", "x"]',
        'principal.team.lowerAscii() == "ärzte" || principal.team.upperAscii() == "äRZTE"',
        'route.replace("s", "--") == "fa--t" && route.split("s") == ["fa", "t"] && ["a", "b"].join("+") == "a+b"',
        'route.substring(1) == "ast" && route.substring(1, 3) == "as" && route.indexOf("s") == 2',
        "route.substring(3, 1) == route",
        'route.substring(9) == ""',
        "math.greatest(request.size, 5) == math.least(5, request.size) || math.abs(-2.5) == 2.5",
        'session.last("bank.pay") == null || age(session.last("bank.pay").at) < duration("1h")',
        'session.last("none") == null',
        '"limit" in session.facts && session.facts.limit > 4 && session.facts["of"].a == [1, null]',
        "session.facts.none == 1",
        'session.last("none").args.a == 1',
        'session.called("unknown")',
        'session.called("unknown") && session.count("unknown") > 1',
        'session.called("unknown") || true',
        'route.cidr("10.0.0.0/8")',
        'route.cidr("10.0.0.0/8") || request.size >= 0',
        "route.in_list(route)",
        "route.glob(route)",
        "usd(route) > 1",
        "route.matches(route)",
    )] + [
    ("tool_call", 'has(tool.args.a) && tool.args.a == "x"'),
    ("tool_call", "tool.args.exists(k, k.startsWith('r'))"),
    ("tool_result", "type(result) == map && has(result.a) && result.a == 1"),
    ("tool_result", "result == null || result_text.size() > 3"),
    ("response", 'response.usage.output_tokens > 2 && response.text.contains("a")'),
]

ANSWERS = {
    SessionQuery("called", "kyc.check", 3600.0): True, SessionQuery("count", "mail.send"): 11,
    SessionQuery("last", "kyc.check"): {"args": {"id": 1}, "result": {"status": "passed"}, "at_ns": 1_699_999_990_123_456_789},
    SessionQuery("last", "bank.pay"): {"args": {}, "result": None, "at_ns": 1_600_000_000_000_000_000},
    SessionQuery("last", "none"): None, SessionQuery("sum", "bank.pay", 86400.0, "args.amount"): 5000.5}
SESSION = SessionFacts(90.0, ("secret",), 7, 5_000_000_001, facts={"tier": "gold", "limit": 5, "of": {"a": [1, None]}})

TEXT = st.text(st.characters(codec="utf-8"), max_size=4) | st.sampled_from(["user", "system", "x", "prod", "a secret", "a@example.com"])
ANY = st.recursive(
    st.none() | st.booleans() | st.integers(-2**63, 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["a", "role", "content", "name"]), inner, max_size=3), max_leaves=8)
MESSAGES = st.lists(st.fixed_dictionaries({"role": TEXT, "content": TEXT | st.lists(TEXT, max_size=2)}), max_size=3)
USUAL = st.fixed_dictionaries({"user": TEXT, "n": st.integers(0, 3)}, optional={
    "messages": MESSAGES, "max_tokens": st.integers(0, 12), "temperature": st.floats(0, 2) | st.integers(0, 2),
    "metadata": st.dictionaries(st.sampled_from(["a", "b"]), TEXT),
    "tools": st.lists(st.fixed_dictionaries({"type": st.just("function"), "function": st.fixed_dictionaries(
        {"name": st.sampled_from(["f", "bank.pay", "search"])})}), max_size=2)})
HOSTILE = st.dictionaries(st.sampled_from(
    ["messages", "user", "n", "max_tokens", "temperature", "metadata", "tools"]), ANY)
AROUND = st.fixed_dictionaries({
    "stream": st.booleans(), "route": st.sampled_from(["fast", "first", "", "10.1.2.3", "0.40"]), "size": st.sampled_from([0, 1_000_001]),
    "name": st.sampled_from(["bob", "Anna"]), "team": st.sampled_from(["", "Ärzte", "search"]),
    "origin": st.builds(Origin, tags=st.dictionaries(st.sampled_from(["env", "x", "ip"]), st.sampled_from(["prod", "10.9.9.9", "::1"])))})


def judged_of(held: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    args = st.dictionaries(st.sampled_from(["a", "amount", "role"]), held, max_size=3)
    return st.fixed_dictionaries({
        "tool": st.builds(ToolCall, st.just("t1"), st.sampled_from(["bank.pay", "x"]), args, st.sampled_from(["model", "http"])),
        "result": st.builds(ToolResult, held | args, TEXT, st.booleans()),
        "said": st.builds(Said, TEXT, st.just(("a", "b")), st.just("stop"), st.none() | st.just(Usage(1, 3)))})


JUDGED = judged_of(TEXT | st.integers(0, 2000) | st.booleans())
HOSTILE_JUDGED = judged_of(ANY)


def about(phase: Phase, judged: dict[str, Any]) -> dict[str, Any]:
    keys = {"tool_call": ("tool",), "tool_result": ("tool", "result"), "response": ("said",)}.get(phase, ())
    return {key: judged[key] for key in keys}


@cache
def compiled(engine: Any, source: str) -> Program:
    return compile_expression(engine, source)


def verdicts(engine: Engine, sources: list[str], asked: Question) -> list[bool | None]:
    """What each expression gives: None for an error, which is also what an unreadable fact comes to."""
    values: dict[str, Any] = {}
    for fact in facts_of(asked.phase).values():
        try:
            values[fact.name] = fact.extract(asked)
        except UnreadableFactError:
            continue
    activation = engine.activation(values, ANSWERS)
    made: Any = engine  # a protocol does not say that it can be hashed
    programs = (compiled(made, source) for source in sources)
    given = (evaluate(program, activation) if program.names <= values.keys() else Fault("") for program in programs)
    return [None if isinstance(verdict, Fault) else verdict for verdict in given]


def of_phase(pairs: Sequence[tuple[str, str]], phase: Phase) -> list[str]:
    return [source for wanted, source in pairs if wanted == phase]


def test_everything_that_ships_compiles_on_both_engines_without_a_warning() -> None:
    """Whoever installs a bundle of ours installs it on either, and nobody should have to read past warnings of ours."""
    library = Library(LISTS, Detectors())
    assert SHIPPED
    for file, name, phase, source in SHIPPED:
        for engine in ("cel-expr-python", "cel-python"):
            opened = open_engine(engine, {key: fact.type for key, fact in facts_of(phase).items()}, library)
            assert compile_expression(opened, source).warnings == (), f"{file}: {name}"


def test_what_the_second_engine_lacks_is_all_that_is_known_to_be_lacking(engines: tuple[Engine, Engine]) -> None:
    """What is not in this list has to agree, and what is in it has to be refused with the name of the function and of the engine."""
    had = {"indexOf", "join", "lowerAscii", "replace", "split", "substring", "upperAscii", "math.abs", "math.greatest", "math.least"}
    assert LACKING.keys() | had == EXTENSIONS
    for name, source in LACKING.items():
        compile_expression(engines[0], source)
        with pytest.raises(ExpressionError) as caught:
            compile_expression(engines[1], source)
        assert f"cel-python does not have the function {name}" in {problem.message for problem in caught.value.problems}


@pytest.mark.parametrize("source", ["request.params.?x.orValue(1) == 1", "[?request.params.?x].size() == 0", '{?"a": tags.?a}.size() == 0'])
def test_optional_fields_are_refused_by_the_second_engine_in_words(source: str, engines: tuple[Engine, Engine]) -> None:
    """A syntax error would send people looking for a slip that is not there."""
    compile_expression(engines[0], source)
    with pytest.raises(ExpressionError, match="cel-python does not have optional fields"):
        compile_expression(engines[1], source)


@pytest.mark.parametrize("phase", PHASES)
@settings(deadline=None, derandomize=True, max_examples=20)
@given(body=HOSTILE | USUAL, around=AROUND, judged=HOSTILE_JUDGED)
def test_engines_agree_on_the_rules_that_ship_whatever_is_sent(
        phase: Phase, body: Any, around: Any, judged: Any, engine_of: EngineOf, question: Ask) -> None:
    """The same deployment must decide the same on a platform without the first engine."""
    library = Library(LISTS, Detectors())
    sources = [source for _, _, wanted, source in SHIPPED if wanted == phase and "in_list" not in source]
    asked = question(body, phase, session=SESSION, **about(phase, judged), **around)
    assert library.lists.keys() == LISTS.keys()
    assert verdicts(engine_of("cel-expr-python", phase), sources, asked) == verdicts(engine_of("cel-python", phase), sources, asked)


@pytest.mark.parametrize("phase", PHASES)
@settings(deadline=None, derandomize=True, max_examples=20)
@given(body=USUAL, around=AROUND, judged=JUDGED)
def test_engines_agree_on_calls_of_the_usual_types(
        phase: Phase, body: Any, around: Any, judged: Any, engine_of: EngineOf, question: Ask) -> None:
    """Errors included: a field that is not there, a division by zero, an overflow, a session without an answer."""
    sources = of_phase(EXPRESSIONS, phase)
    asked = question(body, phase, session=SESSION, **about(phase, judged), **around)
    first, second = (dict(zip(sources, verdicts(engine_of(name, phase), sources, asked), strict=True))
                     for name in ("cel-expr-python", "cel-python"))
    assert first == second


@settings(deadline=None, derandomize=True, max_examples=20)
@pytest.mark.parametrize("phase", PHASES)
@given(body=HOSTILE, around=AROUND, judged=HOSTILE_JUDGED)
def test_engines_never_contradict_each_other(
        phase: Phase, body: Any, around: Any, judged: Any, engine_of: EngineOf, question: Ask) -> None:
    """On values of unusual types one may see an error where the other does not; no two verdicts are opposites."""
    sources = of_phase(EXPRESSIONS, phase)
    asked = question(body, phase, session=SESSION, **about(phase, judged), **around)
    given_by = (verdicts(engine_of(name, phase), sources, asked) for name in ("cel-expr-python", "cel-python"))
    for source, first, second in zip(sources, *given_by, strict=True):
        assert first is None or second is None or first == second, source


WORDS = st.sampled_from(['"fast"', '"a"', '"é"', '""', "route", "principal.team", "principal.name", "run"])
NUMBERS = st.sampled_from(["0", "1", "-7", "9223372036854775807", "request.size", "request.max_tokens", "session.calls", 'usd("0.000000001")'])
TEXTS = st.recursive(WORDS, lambda inner: st.builds("({} + {})".format, inner, inner) | st.builds("{}.lowerAscii()".format, inner) |
                     st.builds('{}.replace("a", "bb")'.format, inner), max_leaves=3)
SUMS = st.recursive(NUMBERS | st.builds("size({})".format, TEXTS) | st.builds("{}.indexOf({})".format, TEXTS, TEXTS),
                    lambda inner: st.builds("({} {} {})".format, inner, st.sampled_from(["+", "-", "*", "/", "%"]), inner), max_leaves=4)
ATOMS = (
    st.sampled_from([
        "true", "request.stream", "has(request.params.temperature)", "has(request.body.n) && request.body.n > 1", '"env" in tags',
        'tags["env"] == "prod"', 'texts.exists(t, t.contains("a"))', "messages.all(m, has(m.role))", 'session.called("kyc.check", duration("1h"))',
        'session.count("mail.send") > 10', 'session.called("unknown")', 'age(session.last("kyc.check").at) < duration("1m")',
        "type(request.body.user) == string", "request.body.user == null", 'principal.roles.exists(r, r == "x")',
        'texts.exists(t, "email" in pii(t))'])
    | st.builds("{} {} {}".format, SUMS, st.sampled_from(["<", "<=", ">", ">=", "==", "!="]), SUMS)
    | st.builds("{} {} {}".format, TEXTS, st.sampled_from(["<", "==", "!="]), TEXTS)
    | st.builds("{}.{}({})".format, TEXTS, st.sampled_from(["contains", "startsWith", "endsWith", "glob", "matches"]), TEXTS)
    | st.builds('{}.in_list("contractors")'.format, TEXTS) | st.builds('{}.cidr("10.0.0.0/8")'.format, TEXTS)
    | st.builds("{} in [{}, {}]".format, TEXTS, TEXTS, TEXTS))
CONDITIONS = st.recursive(ATOMS, lambda inner: (
    st.builds("({} && {})".format, inner, inner) | st.builds("({} || {})".format, inner, inner) | st.builds("!({})".format, inner)
    | st.builds("({} ? {} : {})".format, inner, inner, inner)), max_leaves=6)


@settings(deadline=None, derandomize=True, max_examples=100)
@given(source=CONDITIONS, body=USUAL, around=AROUND)
def test_engines_agree_on_generated_expressions(
        source: str, body: Any, around: Any, engines: tuple[Engine, Engine], question: Ask) -> None:
    """Nobody writes a list of all expressions. What one engine refuses at load, as too large or of a wrong type, is not compared."""
    asked = question(body, session=SESSION, **around)
    try:
        first, second = (verdicts(engine, [source], asked) for engine in engines)
    except ExpressionError:
        return
    assert first == second, source
