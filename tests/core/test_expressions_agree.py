"""The two engines side by side: one is the other's oracle, over the rules that ship and over generated calls."""

import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.call import Call, Origin
from gateway.core.expressions import Engine, Fault, compile_expression, evaluate
from gateway.core.facts import FACTS, UnreadableFactError

SHIPPED = [rule["when"] for path in sorted((Path(__file__).parents[2] / "policies").glob("*.toml"))
           if not path.name.endswith(".cases.toml")
           for rule in tomllib.loads(path.read_text(encoding="utf-8"))["rule"] if "when" in rule]

EXPRESSIONS = [fact.example for fact in FACTS] + [
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
]

NOW_NS = 1_700_000_000_000_000_000
TEXT = st.text(st.characters(codec="utf-8"), max_size=4) | st.sampled_from(["user", "system", "x", "prod", "a secret"])
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
    "stream": st.booleans(), "route": st.sampled_from(["fast", "first", ""]), "size": st.sampled_from([0, 1_000_001]),
    "origin": st.builds(Origin, tags=st.dictionaries(st.sampled_from(["env", "x"]), st.sampled_from(["prod", "dev"])))})


def verdicts(engine: Engine, sources: list[str], call: Call) -> list[bool | None]:
    """What each expression gives: None for an error, which is also what an unreadable fact comes to."""
    values: dict[str, Any] = {}
    for fact in FACTS:
        try:
            values[fact.name] = fact.extract(call, NOW_NS)
        except UnreadableFactError:
            continue
    activation = engine.activation(values)
    programs = (compile_expression(engine, source) for source in sources)
    given = (evaluate(program, activation) if program.names <= values.keys() else Fault("") for program in programs)
    return [None if isinstance(verdict, Fault) else verdict for verdict in given]


@settings(deadline=None, max_examples=25)
@given(body=HOSTILE | USUAL, around=AROUND)
def test_engines_agree_on_the_rules_that_ship_whatever_is_sent(
        body: Any, around: Any, engines: tuple[Engine, Engine], call: Callable[..., Call]) -> None:
    """The same deployment must decide the same on a platform without the first engine."""
    assert SHIPPED
    judged = call(body, **around)
    assert verdicts(engines[0], SHIPPED, judged) == verdicts(engines[1], SHIPPED, judged)


@settings(deadline=None, max_examples=25)
@given(body=USUAL, around=AROUND)
def test_engines_agree_on_calls_of_the_usual_types(
        body: Any, around: Any, engines: tuple[Engine, Engine], call: Callable[..., Call]) -> None:
    """Errors included: a field that is not there, a division by zero, an overflow."""
    judged = call(body, **around)
    first, second = (dict(zip(EXPRESSIONS, verdicts(engine, EXPRESSIONS, judged), strict=True)) for engine in engines)
    assert first == second


@settings(deadline=None, max_examples=25)
@given(body=HOSTILE, around=AROUND)
def test_engines_never_contradict_each_other(
        body: Any, around: Any, engines: tuple[Engine, Engine], call: Callable[..., Call]) -> None:
    """On values of unusual types one may see an error where the other does not; no two verdicts are opposites."""
    judged = call(body, **around)
    for source, first, second in zip(EXPRESSIONS, *(verdicts(engine, EXPRESSIONS, judged) for engine in engines), strict=True):
        assert first is None or second is None or first == second, source
