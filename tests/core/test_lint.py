"""What is said of an expression beyond its types, and of rules beside each other: all that is promised, and nothing of what is right."""

import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gateway.core.decision import Phase
from gateway.core.expressions import CompileProblem, Engine, ExpressionError, compile_expression
from gateway.core.lint import MAX_NODES, Reach, beside, by_phase
from gateway.errors import ConfigError

EngineOf = Callable[[str, Phase], Engine]
CPP = "cel-expr-python"


@pytest.fixture(scope="module")
def request_engine(engine_of: EngineOf) -> Engine:
    return engine_of(CPP, "request")


def errors(engine: Engine, source: str) -> list[str]:
    with pytest.raises(ExpressionError) as caught:
        compile_expression(engine, source)
    for problem in caught.value.problems:
        assert problem.pointed(source)
    return [problem.message for problem in caught.value.problems]


def warnings(engine: Engine, source: str) -> list[str]:
    return [problem.message for problem in compile_expression(engine, source).warnings]


# What people write. Nothing is to be said of any of it.
REALISTIC: list[tuple[Phase, str]] = [
    ("request", '!route.startsWith("small-")'),
    ("request", 'principal.team == "interns" && route.glob("gpt-*") && !("admin" in principal.roles)'),
    ("request", "request.max_tokens == 0 || request.max_tokens > 32000"),
    ("request", "has(request.params.temperature) && double(request.params.temperature) > 1.5"),
    ("request", '!has(request.params.user) || request.params.user == ""'),
    ("request", "texts.exists(t, pii(t).size() > 0 || secrets(t).size() > 0)"),
    ("request", 'texts.exists(t, ["payroll", "salary", "bonus"].exists(w, t.lowerAscii().contains(w)))'),
    ("request", 'texts.exists(t, t.matches("(?i)ignore (all )?previous instructions"))'),
    ("request", 'messages.exists(m, m.role == "system" && type(m.content) == string && m.content.size() > 4000)'),
    ("request", 'messages.exists(m, type(m.content) == list && m.content.exists(p, has(p.type) && p.type == "image_url"))'),
    ("request", '"env" in tags && tags["env"] == "prod" && (now.getHours() < 6 || now.getDayOfWeek() == 0)'),
    ("request", '!("region" in env) || env.region != "eu"'),
    ("request", 'session.spend > usd("5.00") || session.calls > 500 || session.age > duration("24h")'),
    ("request", 'tools_offered.exists(t, t.startsWith("bank.")) && !principal.roles.exists(r, r == "finance" || r == "admin")'),
    ("request", 'has(request.params.metadata) && has(request.params.metadata.tier) && request.params.metadata.tier == "free"'),
    ("request", "request.params.?temperature.orValue(0) == 2 || (has(request.params.n) ? request.params.n > 4 : false)"),
    ("request", "principal.roles.exists(r, texts.exists(t, t.contains(r)))"),
    ("tool_call", 'has(tool.args.amount) && double(tool.args.amount) > 1000.0 && !session.called("kyc.check", duration("1h"))'),
    ("tool_call", '"secret" in session.labels && !(has(tool.args.to) && tool.args.to.endsWith("@example.com"))'),
    ("tool_call", 'tool.via == "model" && session.count("search", duration("10m")) >= 20'),
    ("tool_call", 'has(tool.annotations.effect) && tool.annotations["effect"] != "read" && tool.args.exists(k, k.startsWith("admin"))'),
    ("tool_result", "!tool.released || type(result) == map && has(result.error) && result.error != null"),
    ("tool_result", 'result_text.contains("ignore previous") || (type(result) == list && result.exists(r, type(r) == string && r.contains("x")))'),
    ("request", '"team" in budget.remaining && budget.remaining["team"] < usd("5.00")'),
    ("request", 'has(budget.spent.user) && budget.spent.user >= usd("1") || user == ""'),
    ("tool_call", "budget.remaining.exists(s, budget.remaining[s] < usd('0.10'))"),
    ("response", 'response.text.contains("internal only") || response.usage.output_tokens > 10000'),
]


@pytest.mark.parametrize(("phase", "source"), REALISTIC)
def test_nothing_is_said_of_a_rule_that_is_right(phase: Phase, source: str, engine_of: EngineOf) -> None:
    """One false alarm, and people read past the true ones."""
    assert warnings(engine_of(CPP, phase), source) == []


@pytest.mark.parametrize(("source", "path", "hint"), [
    ("request.params.x == 1", "request.params.x", "write has(request.params.x) && … before it"),
    ('request.params["x"] == 1', "request.params.x", None),
    ('request.params["x-y"] == 1', 'request.params["x-y"]', 'write "x-y" in request.params && … before it'),
    ('tags["env"] == "prod"', "tags.env", 'write "env" in tags && … before it'),
    ('budget.remaining["team"] < usd("5")', "budget.remaining.team", 'write "team" in budget.remaining && … before it'),
    ("budget.spent.any < 5", "budget.spent.any", 'write "any" in budget.spent && … before it'),
    ('"team" in budget.limit && budget.remaining["team"] < usd("5")', "budget.remaining.team", None),
    ('session.facts.tier == "gold"', "session.facts.tier", 'write "tier" in session.facts && … before it'),
    ('env.region == "eu"', "env.region", 'write "region" in env && … before it'),
    ("has(request.params.a.b)", "request.params.a", None),
    ("has(request.params.a) && request.params.a.b == 1", "request.params.a.b", None),
    ("has(request.params.a) || request.params.a == 1", "request.params.a", None),
    ("!has(request.params.a) && request.params.a == 1", "request.params.a", None),
    ("has(request.params.a) ? true : request.params.a == 1", "request.params.a", None),
    ("(has(request.params.a) || request.stream) && request.params.a == 1", "request.params.a", None),
    ("texts.exists(t, t == request.params.a)", "request.params.a", None),
    ("texts.exists(t, request.params.a)", "request.params.a", None),
    ("request.params.a[0].b == 1", "request.params.a", None),
    ("[request.params.a] == [1]", "request.params.a", None),
    ("string(request.params.a).size() > 1", "request.params.a", None),
    ('"x" in request.params.a', "request.params.a", None),
    ("request.params.a.exists(x, x == 1)", "request.params.a", None),
    (".tags.a == 'x'", "tags.a", None),
])
def test_a_field_that_may_not_be_there_is_pointed_out_once_where_nothing_guards_it(
        source: str, path: str, hint: str | None, request_engine: Engine) -> None:
    """Where it is missing the rule cannot be evaluated: a `deny` then refuses every such call, an `allow` none."""
    (found,) = compile_expression(request_engine, source).warnings
    assert found.message == f"`{path}` may not be there, and then the rule cannot be evaluated"
    assert found.line == 1
    assert hint in {None, found.hint}


@pytest.mark.parametrize("source", [
    "request.params.x == 1 && has(request.params.x)", "has(request.params.x) && (request.stream || request.params.x == 1)",
    "(has(request.params.x) && has(request.params.y)) && (request.params.x == 1 || request.params.y == 1)",
    "!(!has(request.params.x) || request.params.x == 1)", "has(request.params.x) && texts.exists(t, t == request.params.x)",
    '"a.b" in tags && tags["a.b"] == "x"', "!has(request.params.x) ? false : request.params.x == 1",
    "(has(request.params.x) && request.stream || has(request.params.x)) && request.params.x == 1",
    "has(request.params.a) && has(request.params.a.b) && request.params.a.b == 1", 'tags[route] == "x"',
    "request.body.exists(request, request == 'x')", "tags.exists(tags, tags.contains('x'))", "messages.exists(tags, tags.a == 1)",
    "request.params[route].x == 1 && {'a': 1}.a == 1 && has(messages[0].x)", "route in tags"])
def test_every_way_to_guard_a_field_counts(source: str, request_engine: Engine) -> None:
    """In either order: CEL lets an error on one side go where the other side decides."""
    assert warnings(request_engine, source) == []


@pytest.mark.parametrize(("source", "said"), [
    ("true", "this is always true"), ("!true", "this is always false"), ("1 == 2", "this is always false"), ('"a" != "b"', "this is always true"),
    ("request.stream || true", "this is always true"), ("false && request.stream", "this is always false"),
    ('route == "a" && route == "b"', "this is always false"), ('route != "a" || "b" != route', "this is always true"),
    ('request.stream && (route == "a" && request.size > 1 && "b" == route)', "this is always false"),
    ("true && !false", "this is always true"), ("false || 1 == 2", "this is always false"),
    ('request.stream || (route == "a" && route == "b")', "this part is always false"),
    ('request.stream && (route != "a" || route != "b")', "this part is always true"),
])
def test_a_condition_that_no_call_changes_is_pointed_out(source: str, said: str, request_engine: Engine) -> None:
    """Mostly `&&` where `||` was meant."""
    (found,) = compile_expression(request_engine, source).warnings
    assert found.message == said
    assert found.line == 1


@pytest.mark.parametrize("source", [
    'route == "a" || route == "b"', 'route != "a" && route != "b"', 'route == "a" && run == "b"', 'route == "a" && route == "a"',
    "request.body.n == 1 && request.body.n == 1u && has(request.body.n)", "route == run && run == step"])
def test_a_condition_that_depends_on_the_call_is_left_alone(source: str, request_engine: Engine) -> None:
    assert warnings(request_engine, source) == []


@pytest.mark.parametrize(("source", "said"), [
    ("texts.exists(a, texts.exists(b, a == b))", "goes through `texts` for every item of `texts`"),
    ("messages.exists(m, texts.exists(t, t == m.role))", "goes through `texts` for every item of `messages`"),
    ("has(request.body.a) && request.body.a.all(x, messages.exists(m, m == x))", "goes through `messages` for every item of `request.body`"),
    ("texts.filter(t, t.size() > 1).exists(a, texts.exists(b, a == b))", "goes through `texts` for every item of `texts`"),
    ("messages.exists(m, m.content.exists(p, p.list.exists(q, q == 1)))", "comprehensions are nested deeper than 2"),
    ("texts.exists(t, request.body.x.contains(t))", "`request.body` is read whole for every item of `texts`"),
    ("texts.exists(t, t in texts)", "`texts` is read whole for every item of `texts`"),
    ("texts.exists(t, texts.size() > 3)", "`texts` is read whole for every item of `texts`"),
    ('texts.exists(t, t.split(" ").size() > 3)', "`split` may find as much as the caller likes"),
    ('texts.exists(t, t.split(" ", 20000).size() > 3)', "`split` may find as much as the caller likes"),
    ('texts[0].replace("a", "b", request.max_tokens) == ""', "`replace` may find as much as the caller likes"),
    ('["a", "b"].exists(w, (request.params.x + w).contains("q"))', "`request.params` is copied for every item of the list around"),
    ('texts.exists(t, ["a", "b"].exists(w, (t + w).contains("q")))', "`t` is copied for every item of the list around"),
    ("(" + " + ".join(["request.params.x"] * 10) + ').contains("a")', "joins texts 9 times where one is as long as the caller likes, and 8 is the most"),
    ('texts.exists(t, (request.body.x + t).contains("a"))', "`request.body` is read whole for every item of `texts`"),
    ("messages.exists(m, m.content.exists(p, size(request.body.x) > 1))", "`request.body` is read whole for every item of `messages`"),
    ('texts.join(texts[0]) == ""', "what `join` gives here may be as long as its two parts multiplied"),
    ('texts[0].replace("a", texts[1]) == ""', "what `replace` gives here may be as long as its two parts multiplied"),
    ('texts.exists(t, t.replace("a", t) == "")', "what `replace` gives here may be as long as its two parts multiplied"),
])
def test_what_a_caller_could_make_cost_without_bound_is_an_error(source: str, said: str, request_engine: Engine) -> None:
    """Ten thousand texts, each compared with a megabyte: one call, and the gateway stands still."""
    assert said in errors(request_engine, source)


@pytest.mark.parametrize("source", [
    'texts.exists(t, ["a", "b"].exists(w, t.contains(w)))', '["a", "b"].exists(w, texts.exists(t, t.contains(w)))',
    "messages.exists(m, m.content.exists(p, p.text == route))", "messages.map(m, m.role).exists(r, r == route)",
    "messages.exists(texts, texts.a.exists(x, x == 1))", "texts.exists(t, t.contains(route) && t.size() > request.max_tokens)",
    "texts.exists(t, has(request.params.x) && t == request.params.x)", 'texts[0].replace("a", "b", 10) == "" || texts[0].split(" ", 100).size() > 99', 'route.split("-").size() > 2',
    "principal.roles.exists(r, r in principal.roles)", "texts.map(t, t + 'x').size() > 3", '["a"].exists(w, double(request.params.x) + 1.0 > 2.0)',
    '(request.params.x + "a").contains("b")', "texts.exists(x, [x].exists(texts, texts.size() > 1))"])
def test_what_has_a_bound_is_no_error(source: str, request_engine: Engine) -> None:
    compile_expression(request_engine, source)


def test_an_expression_of_too_many_parts_is_refused(request_engine: Engine) -> None:
    """Its bytes are limited too; this is what it costs."""
    compile_expression(request_engine, f"request.size in [{', '.join('1' for _ in range(MAX_NODES - 3))}]")
    (found,) = errors(request_engine, f"request.size in [{', '.join('1' for _ in range(MAX_NODES - 2))}]")
    assert found == "the expression has 501 parts, and 500 is the most"


@pytest.mark.parametrize(("phase", "source", "message", "hint"), [
    ("request", 'response.text == ""', "`response.text` exists in phase response, not in request", 'set phase = "response"'),
    ("request", "has(tool.args.a.b)", "`tool.args` exists in phase tool_call and tool_result, not in request", 'set phase = "tool_call"'),
    ("response", "tool.released", "`tool.released` exists in phase tool_result, not in response", 'set phase = "tool_result"'),
    ("request", 'respnse.text == ""', "undeclared reference to 'respnse.text'", "did you mean 'response.text' of phase response?"),
    ("request", 'request.modle == ""', "undeclared reference to 'request.modle'", "did you mean 'request.model'?"),
    ("request", "zzzzzz == 1", "undeclared reference to 'zzzzzz'", None),
    ("request", "route == 1", None, None),
])
def test_an_undeclared_name_is_answered_with_what_other_phases_have(
        phase: Phase, source: str, message: str | None, hint: str | None, engine_name: str, engine_of: EngineOf) -> None:
    """`response` in the phase `request` is the slip that everybody makes."""
    try:
        compile_expression(engine_of(engine_name, phase), source)
    except ExpressionError as error:
        (found,) = (by_phase(problem, phase) for problem in error.problems)
        assert message in {None, found.message}
        assert found.hint == hint
    else:
        assert message is None


def test_a_bundle_with_an_error_of_the_linter_is_refused_with_file_line_key_and_caret(rule: Callable[..., Any]) -> None:
    """Nothing is served under it."""
    from_rules = pytest.importorskip("gateway.core.rules")
    with pytest.raises(ConfigError) as caught:
        from_rules.compile_bundle([rule(when='response.text == "x"'), rule(id="s", when="texts.exists(a, texts.exists(b, a == b))")], "auto")
    first, second = map(str, caught.value.problems)
    assert first.startswith("policies/x.toml:7:rule.when: `response.text` exists in phase response, not in request at character 9\n | response")
    assert second.split("\n")[2] == ' | ............................^ (rule "s") (both are as long as the caller likes)'


def reach(id: str = "a", effect: str = "deny", when: str | None = None, phase: str = "request", mode: Any = "enforce",  # noqa: A002
          **match: tuple[str, ...]) -> Reach:
    return Reach(id, phase, effect, mode, {"principals": (), "teams": (), "routes": (), **match}, when)


DENIES_ALL = 'never has an effect: the rule "a" denies every call that it is for'
SAME = 'says the same as the rule "a"'


@pytest.mark.parametrize(("other", "rule", "said"), [
    (reach(), reach("b", when="x"), DENIES_ALL),
    (reach(), reach("b", "allow", teams=("x",)), DENIES_ALL),
    (reach(teams=("x",)), reach("b", "redact", teams=("x",), when="y"), DENIES_ALL),
    (reach(teams=("x", "y")), reach("b", "limit", teams=("y",), routes=("z",)), DENIES_ALL),
    (reach(teams=("x*",)), reach("b", teams=("xy",), when="y"), DENIES_ALL),
    (reach(teams=("*",)), reach("b", "set", teams=("x*",)), DENIES_ALL),
    (reach(when="x"), reach("b", "require_approval", when="x", teams=("y",)), DENIES_ALL),
    (reach(when="x"), reach("b", when="x"), SAME),
    (reach(effect="allow", when="x"), reach("b", "allow", when="x"), SAME),
    (reach(when="x"), reach("b", "allow", when="x"), 'allows what the rule "a" denies, for the same calls: deny wins'),
])
def test_a_rule_that_another_leaves_nothing_to_do_is_pointed_out(other: Reach, rule: Reach, said: str) -> None:
    assert [(number, message) for number, message, _ in beside([other, rule])] == [(1, said)]
    if rule.effect != other.effect:  # where the `deny` stands makes no difference
        assert [(number, message) for number, message, _ in beside([rule, other])] == [(0, said)]
    else:
        assert 1 not in {number for number, message, _ in beside([rule, other]) if message == said.replace('"a"', '"b"')} or said == SAME


@pytest.mark.parametrize(("other", "rule"), [
    (reach(when="x"), reach("b")), (reach(when="x"), reach("b", when="y")), (reach(phase="response"), reach("b")),
    (reach(mode="shadow"), reach("b")), (reach(mode="off"), reach("b", "allow")), (reach(), reach("b", mode="off")),
    (reach(), reach("b", "log")), (reach(effect="allow"), reach("b", when="x")), (reach(effect="log"), reach("b", "log")),
    (reach(teams=("x",)), reach("b")), (reach(teams=("x",)), reach("b", routes=("x",))), (reach(teams=("x",)), reach("b", teams=("x", "y"))),
    (reach(teams=("x*",)), reach("b", teams=("x*y",))), (reach(teams=("x",), routes=("r",)), reach("b", teams=("x",))),
    (reach(effect="require_approval"), reach("b", "require_approval")), (reach(effect="allow"), reach("b", "allow", teams=("x",))),
    (reach(effect="redact"), reach("b", "redact")),
])
def test_rules_that_each_have_something_to_do_are_left_alone(other: Reach, rule: Reach) -> None:
    assert list(beside([other, rule])) == []


def test_ten_thousand_rules_are_not_compared_each_with_each() -> None:
    """Counted in comparisons of a match, not in time."""
    compared = 0

    class Counted(dict[str, tuple[str, ...]]):
        def items(self) -> Any:
            nonlocal compared
            compared += 1
            return super().items()

    rules = [Reach(str(number), "request", "deny", "enforce", Counted(teams=(f"t{number}",)), None) for number in range(10_000)]
    assert list(beside(rules)) == []
    assert compared < 100_000


def test_the_rules_that_ship_leave_each_other_something_to_do() -> None:
    """All bundles at once are not how they are used, but each file is."""
    for path in sorted((Path(__file__).parents[2] / "policies").rglob("*.toml")):
        if not path.name.endswith(".cases.toml"):
            rules = tomllib.loads(path.read_text(encoding="utf-8")).get("rule", ())
            reaches = [Reach(rule["id"], rule.get("phase", "request"), rule["effect"], rule.get("mode", "enforce"),
                             {key: tuple(globs) for key, globs in rule.get("match", {}).items()}, rule.get("when")) for rule in rules]
            assert list(beside(reaches)) == [], path.name


def test_the_second_engine_gives_no_warnings(engine_of: EngineOf) -> None:
    """It knows no types; `lockgate check` says once that less is checked."""
    assert compile_expression(engine_of("cel-python", "request"), "request.params.x == 1 || true").warnings == ()


def test_a_problem_without_a_name_is_not_changed() -> None:
    problem = CompileProblem("syntax error", 1, 1)
    assert by_phase(problem, "request") is problem


@pytest.mark.parametrize(("source", "level", "hint"), [
    ('"teem" in budget.remaining && budget.remaining["teem"] < usd("5")', "teem", "did you mean 'team'?"),
    ("has(budget.spent.users) && budget.spent.users > 5", "users", "did you mean 'user'?"),
    ('!("blue" in budget.limit)', "blue",
     "there are any, all, org, team, key, user, session, run, route, tool, tag")])
def test_a_scope_that_no_budget_can_have_is_pointed_out(source: str, level: str, hint: str, request_engine: Engine) -> None:
    """Asked for with `in` it is never there, so that the rule would never match, and nobody would see it."""
    found = compile_expression(request_engine, source).warnings
    assert {problem.message.partition("` ")[2] for problem in found} == {f"never has {level!r}: it is by scope"}
    assert {problem.hint for problem in found} == {hint}


def test_money_is_compared_with_whole_numbers(request_engine: Engine) -> None:
    """Amounts are nano-USD: with 5.0 a rule would be about something else."""
    assert errors(request_engine, '"team" in budget.remaining && budget.remaining["team"] < 5.0') == [
        "found no matching overload for '_<_' applied to '(int, double)'"]
