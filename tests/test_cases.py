"""Cases are put to the rules as calls would be; what does not come as expected is a problem with its place."""

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest

from gateway.case_config import CaseConfig, ExpectConfig, Level, UseConfig
from gateway.cases import CasesResult, run_cases
from gateway.config import Deployment
from gateway.core.accounts import SCOPES
from gateway.core.facts import FACTS, facts_of
from gateway.deployment import read_deployment, read_policies
from gateway.errors import ConfigError
from gateway.judge import judge
from gateway.snapshot import compile_rules
from gateway.supposed import NOON_NS, question_of, world_of
from gateway.validation import Strict

RULES = """
[[rule]]
id = "small-for-interns"
match = { teams = ["interns"] }
when = '!route.startsWith("small")'
effect = "deny"
message = "Interns use the small models."
remedy = "Choose one."

[[rule]]
id = "night"
when = "now.getHours() < 6"
effect = "require_approval"
approvers = ["role:ops"]

[[rule]]
id = "clamped"
match = { teams = ["interns"] }
effect = "set"
set = { clamp = { max_tokens = { max = 1000 } } }

[[rule]]
id = "no-mails"
when = 'has(request.params.mails)'
effect = "redact"
redact = { fields = ["/mails"] }

[[rule]]
id = "big"
when = "request.size > 100000"
effect = "log"
label = "large"

[[rule]]
id = "rate"
match = { teams = ["rated"] }
effect = "limit"
limit = { requests = 5, per = "1m" }

[[rule]]
id = "stay"
when = '"region" in env && env["region"] == "eu"'
effect = "route"
route = { only = ["eu/*"] }

[[rule]]
id = "paid-without-check"
phase = "tool_call"
match = { tools = ["bank.pay"] }
when = '!session.called("kyc.check", duration("1h"))'
effect = "deny"

[[rule]]
id = "gone"
phase = "response"
when = 'response.text.contains("secret")'
effect = "deny"

[[rule]]
id = "house-style"
match = { teams = ["housed"] }
effect = "set"
set = { system = "Be brief." }

[[rule]]
id = "no-addresses"
phase = "tool_result"
match = { tools = ["mail.*"] }
effect = "redact"
redact = { detectors = ["email"] }

[[rule]]
id = "dark"
phase = "tool_result"
mode = "shadow"
when = "!tool.released"
effect = "deny"
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("routes", "policies"):
        (tmp_path / name).mkdir()
    (tmp_path / "config.toml").write_text("")
    (tmp_path / "policies/rules.toml").write_text(RULES)
    return tmp_path


@pytest.fixture
def read(folder: Path) -> Callable[[str], Deployment]:
    """The deployment with this text as its file of cases."""

    def write(cases: str) -> Deployment:
        (folder / "policies/x.cases.toml").write_text(cases)
        return read_deployment(folder / "config.toml")

    return write


@pytest.fixture
def run(read: Callable[[str], Deployment]) -> Callable[[str], CasesResult]:
    """The results of this text as a file of cases."""

    def to_end(cases: str) -> CasesResult:
        deployment = read(cases)
        return run_cases(deployment, compile_rules(deployment))

    return to_end


def case(text: str, expect: str = 'effect = "allow"', name: str = "it") -> str:
    return f'[[case]]\nname = "{name}"\n{text}\nexpect = {{ {expect} }}\n'


def told(result: CasesResult) -> list[str]:
    return [str(problem) for problem in result.failures]


@pytest.mark.parametrize(("facts", "expect"), [
    ('facts.principal.team = "interns"\nfacts.route = "large"', 'effect = "deny", rule = "small-for-interns", message = "small models"'),
    ('facts.principal.team = "interns"\nfacts.model = "small-1"', 'effect = "set", rule = "clamped", changed = { "/max_tokens" = 1000 }'),
    ('facts.principal.team = "interns"\nfacts.request.body = { model = "small-1", max_tokens = 5 }', 'effect = "set", changed = { "/max_tokens" = 5 }'),
    ('now = "2026-11-22T03:00:00Z"', 'effect = "require_approval", rule = "night"'),
    ("now = 2026-11-22T08:00:00+04:00", 'effect = "require_approval"'),
    ('facts.now = "2026-11-22T03:00:00Z"', 'effect = "require_approval"'),
    ('facts.request.params = { mails = ["a@b.c"], user = "u" }', 'effect = "redact", changed = { "/mails" = "[redacted:field]", "/user" = "u" }'),
    ("facts.request.size = 100001", 'effect = "allow", rule = "default", labels = ["large"]'),
    ("", 'effect = "allow", labels = []'),
    ("", 'effect = "allow", changed = { "/messages" = [] }'),
    ("facts.request.body = { user = 'u' }", 'effect = "allow", changed = { "" = { user = "u" } }'),
    ("facts.request.operation = 'embeddings'", 'effect = "allow", changed = { "" = {} }'),
    ('facts.principal.team = "housed"', 'effect = "set", rule = "house-style", changed = { "/messages/0/content" = "Be brief." }'),
    ('facts.principal.team = "rated"', 'effect = "limit", rule = "rate"'),
    ('facts.principal.team = "rated"', 'effect = "allow"'),
    ('facts.principal.team = "interns"\nfacts.request.body = { model = "small-1", max_tokens = 5 }', 'effect = "allow", rule = "default"'),
    ('phase = "tool_result"\nfacts.tool.name = "mail.read"\nfacts.result = "nothing to see"', 'effect = "allow"'),
    ('phase = "tool_result"\nfacts.tool.name = "mail.read"\nfacts.result = "a@example.com"', 'effect = "redact", rule = "no-addresses"'),
    ('facts.env.region = "eu"', 'effect = "route", rule = "stay"'),
    ('phase = "tool_call"\nfacts.tool = { name = "bank.pay", args = { amount = 5 } }\nsession.called = [{ tool = "kyc.check", ago = "5m" }]',
     'effect = "allow", changed = { "" = { amount = 5 } }'),
    ('phase = "tool_call"\nfacts.tool.name = "bank.pay"\nsession.called = [{ tool = "kyc.check", ago = "2h" }, { tool = "other" }]',
     'effect = "deny", rule = "paid-without-check"'),
    ('phase = "tool_call"\nfacts.tool.name = "bank.pay"', 'effect = "deny", rule = "paid-without-check", message = "policy_error"'),
    ('phase = "tool_call"\nfacts.tool = { name = "pay", via = "http" }', 'effect = "deny", rule = "default"'),
    ('phase = "response"\nfacts.response.text = "a secret"', 'effect = "deny", rule = "gone"'),
    ('phase = "response"\nfacts.response.text = "hi"', 'effect = "allow", changed = { "" = "hi" }'),
    ('phase = "tool_result"\nfacts.tool = { name = "x", released = false }\nfacts.result = { a = [1, { b = true }] }',
     'effect = "allow", changed = { "/a/1/b" = true }'),
])
def test_a_case_that_expects_what_comes_passes(facts: str, expect: str, run: Callable[[str], CasesResult]) -> None:
    """Each effect, each phase, and facts given in each of their ways."""
    assert told(run(case(facts, expect))) == []


@pytest.mark.parametrize(("facts", "expect", "key", "message"), [
    ('facts.principal.team = "interns"\nfacts.route = "large"', 'effect = "allow"', "expect.effect",
     'expected allow, and it is deny by small-for-interns (case "it") (small-for-interns matched; clamped matched)'),
    ('facts.principal.team = "interns"\nfacts.request.body = { model = "small-1", max_tokens = 5000 }', 'effect = "allow"', "expect.effect",
     "expected allow, and it is set by clamped"),
    ('facts.env.region = "eu"', 'effect = "allow"', "expect.effect", "expected allow, and it is route by stay"),
    ("", 'effect = "deny"', "expect.effect", 'expected deny, and it is allow by default (case "it") (no rule matched)'),
    ('now = "2026-11-22T03:00:00Z"', 'effect = "require_approval", rule = "rate"', "expect.rule",
     "expected require_approval by rate, and it is require_approval by night"),
    ("facts.request.size = 100001", 'effect = "allow", labels = []', "expect.labels", "expected no label, and the labels are large"),
    ("", 'effect = "allow", labels = ["x"]', "expect.labels", "expected x, and the labels are none"),
    ("", 'effect = "allow", message = "x"', "expect.message", "expected 'x' in the message, and it is None"),
    ('facts.route = "a"', 'effect = "allow", changed = { "/model" = "b" }', 'expect.changed."/model"', "expected 'b' at '/model', and it is 'a'"),
    ("", 'effect = "allow", changed = { "/x/0" = 1 }', "expect.changed", "expected 1 at '/x/0', and nothing is there"),
    ("facts.request.body = { a = [true] }", 'effect = "allow", changed = { "/a/0" = 1 }', "expect.changed", "and it is True"),
    ("facts.request.body = { a = [1] }", 'effect = "allow", changed = { "/a/1" = 1 }', "expect.changed", "and nothing is there"),
    ("facts.request.body = { a = [1] }", 'effect = "allow", changed = { "/a" = [1, 2] }', "expect.changed", "and it is [1]"),
    ('facts.request.body = { "a/b" = { "~" = 1 } }', 'effect = "allow", changed = { "/a~1b" = { "~" = 2 } }', "expect.changed", "and it is {'~': 1}"),
    ('phase = "tool_result"\nfacts.tool = { name = "x", released = false }', 'effect = "deny"', "expect.effect", "(dark in shadow matched)"),
    ('facts.tool.name = "x"', 'effect = "allow"', "facts.tool.name", "is no fact of phase request (case"),
    ('facts.tool.name = "x"', 'effect = "allow"', "facts.tool.name", "(only of tool_call and tool_result)"),
    ('phase = "tool_call"\nfacts.tool.name = "x"\nfacts.tool.released = true', 'effect = "allow"', "facts.tool.released", "(only of tool_result)"),
    ('phase = "tool_call"', 'effect = "allow"', "facts.tool.name", "is missing: phase tool_call is about a tool"),
    ('phase = "tool_call"\nfacts.tool.name = "x"\nfacts.texts = ["a"]', 'effect = "allow"', "facts.texts", "(give `tool.args`)"),
    ('facts.texts = ["a"]\nfacts.messages = []', 'effect = "allow"', "facts.texts", "follows from `messages`"),
    ('facts.route = "a"\nfacts.request.model = "b"', 'effect = "allow"', "facts", "and here they are a and b"),
    ("", 'effect = "deny", rule = "small-for-intern"', "expect.rule", 'there is no rule "small-for-intern" (case "it") (did you mean "small-for-interns"?)'),
])
def test_what_does_not_come_or_cannot_be_is_a_problem_where_it_stands(
    facts: str, expect: str, key: str, message: str, run: Callable[[str], CasesResult],
) -> None:
    """An editor jumps to it, and a reload refuses the rules."""
    result = run("# one\n\n" + case(facts, expect))
    assert len(result.failures) == 1, told(result)
    problem = result.failures[0]
    assert problem.file == "policies/x.cases.toml"
    assert problem.line is not None
    assert problem.line >= 3
    assert problem.key.startswith(f"case[0].{key}")
    assert message in str(problem)


@pytest.mark.parametrize(("text", "expected"), [
    ('facts.principal.taem = "x"', 'case[0].facts.principal.taem: unknown key (did you mean "team"?)'),
    ('facts.rout = "x"', 'case[0].facts.rout: unknown key (did you mean "route"?)'),
    ('fact.route = "x"', 'case[0].fact: unknown key (did you mean "facts"?)'),
    ('facts.request.size = "5"', "case[0].facts.request.size: should be a whole number, without quotes"),
    ("facts.request.size = -1", "case[0].facts.request.size: should be greater than or equal to 0"),
    ('phase = "tool"', "case[0].phase: is none of the possible values"),
    ('source = "x"', "case[0].source: unknown key"),
    ('now = "yesterday"', "case[0].now: a time is written with its zone"),
    ("now = 2026-11-22T03:00:00", "case[0].now: a time is written with its zone"),
    ("facts.request.body = { a = 2026-11-22 }", "case[0].facts.request.body: 2026-11-22 is nothing that JSON can hold: write it as text"),
    ("facts.request.body = { a = inf }", "case[0].facts.request.body: inf is nothing that JSON can hold"),
    ("facts.messages = [18446744073709551616]", "case[0].facts.messages: a whole number of JSON has 64 bits here"),
    (f"facts.result = {'[' * 130}{']' * 130}", "case[0].facts.result: nested deeper than 128"),
    ("facts.budget.remaining = { team = 5 }", "case[0].facts.budget.remaining.team: an amount of money is a string"),
    ('facts.budget.spent = { team = "0.0000000001" }', "case[0].facts.budget.spent.team: the amount has more digits than are counted"),
    ('facts.budget.limit = { nation = "5" }', "case[0].facts.budget.limit.nation"),
    ('facts.budget.left = { team = "5" }', "case[0].facts.budget.left: unknown key"),
    ('facts.session.spend = "0.0000000001"', "case[0].facts.session.spend: the amount has more digits than are counted (a billionth of a USD)"),
    ('session.called = [{ tool = "x", ago = 5 }]', "case[0].session.called[0].ago: a duration is a string"),
    ('session.called = [{ tol = "x" }]', 'case[0].session.called[0].tol: unknown key (did you mean "tool"?)'),
    ('call = "a\\u001b[31m"', "case[0].call: holds what cannot be printed"),
    ('call = "call_1"\nfacts.route = "x"', "case[0]: a recorded `call` has facts of its own"),
    ('now = "2026-11-22T03:00:00Z"\nfacts.now = "2026-11-22T03:00:00Z"', "case[0]: `now` and `facts.now` are the same"),
])
def test_a_file_of_cases_is_read_as_strictly_as_any_other(text: str, expected: str, read: Callable[[str], Deployment]) -> None:
    """A case that says nothing because of a slip would pass for ever."""
    with pytest.raises(ConfigError) as caught:
        read(case(text))
    assert [problem for problem in map(str, caught.value.problems) if expected in problem], caught.value.problems


def test_every_case_says_what_it_expects(read: Callable[[str], Deployment]) -> None:
    """One that expects nothing shows nothing."""
    with pytest.raises(ConfigError, match=r"case\[0\].expect: is missing"):
        read('[[case]]\nname = "x"\n')
    with pytest.raises(ConfigError, match=r"case\[0\].expect.effect: is missing"):
        read('[[case]]\nname = "x"\nexpect = {}\n')


FACT_VALUES = {
    "principal.id": "key_1", "principal.name": "n", "principal.team": "t", "principal.org": "o", "principal.roles": ["a"], "principal.on_behalf_of": "grace", "protocol": "p",
    "route": "r", "model": "m", "request.operation": "embeddings", "request.model": "m", "request.stream": True, "request.size": 7,
    "request.max_tokens": 9, "request.params": {"a": 1}, "request.body": {"b": 2}, "messages": [{"role": "user"}], "texts": ["x", "y"],
    "tools_offered": ["f", "g"], "session.id": "s", "session.age": "2h", "session.labels": ["l"], "session.calls": 3, "session.spend": "0.40", "session.facts": {"tier": "gold"},
    "budget.remaining": {"team": "5.00", "all": "6"}, "budget.limit": {"team": "10", "all": "20"}, "budget.spent": {"user": "0.5"}, "user": "ada",
    "run": "u", "step": "p", "tags": {"k": "v"}, "env": {"k": "v"}, "now": "2026-11-22T03:00:00Z", "tool.name": "f", "tool.args": {"a": 1},
    "tool.via": "http", "tool.server": "http", "tool.annotations": {"effect": "read"}, "result": {"a": 1}, "result_text": "x", "tool.released": False,
    "response.text": "x", "response.tool_calls": ["f"], "response.finish_reason": "stop", "response.usage": {"input_tokens": 4, "output_tokens": 5},
}
READ_AS = {"session.age": "2:00:00", "session.spend": 400_000_000, "now": "2026-11-22 03:00:00+00:00", "request.params": {"a": 1},
           "request.body": {"b": 2}, "budget.remaining": {"any": 5 * 10**9, "team": 5 * 10**9, "all": 6 * 10**9},
           "budget.limit": {"team": 10**10, "all": 2 * 10**10}, "budget.spent": {"any": 5 * 10**8, "user": 5 * 10**8}}


GIVEN = [(fact.name, phase) for fact in FACTS for phase in fact.phases if fact.name != "texts" or phase == "request"]


@pytest.mark.parametrize(("name", "phase"), GIVEN)
def test_every_fact_can_be_given_by_its_name_in_every_phase_that_has_it(name: str, phase: str, folder: Path) -> None:
    """A rule that reads a fact can be tested; a new fact without a way to give it fails here."""
    value = FACT_VALUES[name]
    tool = "" if name == "tool.name" or not phase.startswith("tool") else 'facts.tool.name = "f"\n'
    (folder / "policies/x.cases.toml").write_text(case(f'phase = "{phase}"\n{tool}facts.{name} = {_toml(value)}'))
    deployment = read_deployment(folder / "config.toml")
    assert [problem for problem in run_cases(deployment, compile_rules(deployment)).failures if ".facts." in problem.key] == []
    question = question_of(deployment.cases[0], (), world_of(deployment))
    read = facts_of(question.phase)[name].extract(question)
    assert read == READ_AS.get(name, value) or str(read) == READ_AS.get(name)


def test_budgets_can_be_given_of_every_scope() -> None:
    """A new one fails here."""
    assert get_args(Level) == (*SCOPES, "any")


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_toml(item)}" for key, item in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return f'"{value}"' if isinstance(value, str) else str(value).lower()


def facts_read(deployment: Deployment) -> dict[str, Any]:
    question = question_of(deployment.cases[0], (), world_of(deployment))
    return {name: fact.extract(question) for name, fact in facts_of("request").items() if not name.startswith("session.")}


def test_what_is_not_given_is_what_an_empty_call_has(read: Callable[[str], Deployment]) -> None:
    """On a fixed day, so that a case says the same tomorrow."""
    facts = facts_read(read(case("")))
    assert facts["principal.id"] == "anonymous"
    assert (facts["user"], facts["budget.remaining"], facts["budget.limit"], facts["budget.spent"]) == ("", {}, {}, {})
    assert (facts["route"], facts["texts"], facts["request.body"], facts["tags"], facts["env"]) == ("", [], {"messages": []}, {}, {})
    assert str(facts["now"]) == "2026-01-01 12:00:00+00:00"
    assert facts["now"].strftime("%A") == "Thursday"
    assert int(facts["now"].timestamp()) * 10**9 == NOON_NS


@pytest.mark.parametrize(("text", "expected"), [
    ('facts.request.body = { model = "large", max_tokens = 7, messages = [{ role = "user", content = "hi" }] }',
     {"route": "large", "model": "large", "request.max_tokens": 7, "texts": ["hi"], "request.operation": "chat"}),
    ('facts.request.body = { prompt = "p" }', {"request.operation": "completions", "texts": ["p"]}),
    ('facts.request.body = { input = ["i"] , stream = true}', {"request.operation": "embeddings", "texts": ["i"], "request.stream": True}),
    ('facts.route = "a"\nfacts.request.body = { model = "b" }', {"route": "a", "request.body": {"model": "a"}}),
    ('facts.texts = ["t"]\nfacts.request.body = { prompt = "p", n = 1 }', {"texts": ["t"], "request.params": {"n": 1}}),
    ('facts.texts = ["t"]\nfacts.request.operation = "embeddings"', {"texts": ["t"], "request.body": {"input": ["t"]}}),
    ("facts.request.max_tokens = 3\nfacts.request.body = { max_completion_tokens = 9 }", {"request.max_tokens": 3}),
    ('facts.tools_offered = ["f"]\nfacts.request.body = { functions = [{ name = "g" }] }', {"tools_offered": ["f"]}),
    ('facts.request.body = { user = "ada" }', {"user": "ada"}), ('facts.request.body = { user = ["ada"] }', {"user": ""}),
    ('facts.user = "eve"\nfacts.request.body = { user = "ada" }', {"user": "eve"}),
    ('facts.request.operation = "tool"\nfacts.request.body = { user = "ada" }', {"user": ""}),
    ('facts.budget.remaining = { team = "5", user = "2" }\nfacts.budget.limit = { team = "9", user = "8" }',
     {"budget.remaining": {"any": 2 * 10**9, "team": 5 * 10**9, "user": 2 * 10**9}, "budget.limit": {"any": 8 * 10**9, "team": 9 * 10**9, "user": 8 * 10**9},
      "budget.spent": {}}),
    ('facts.budget.remaining = { any = "1", team = "5" }', {"budget.remaining": {"any": 10**9, "team": 5 * 10**9}, "budget.limit": {}}),
    ('facts.request.operation = "tool"\nfacts.route = "pay"\nfacts.request.body = { amount = 1 }',
     {"protocol": "tools", "route": "pay", "request.body": {"amount": 1}, "texts": ["amount"]}),
])
def test_derived_facts_follow_from_the_body_unless_they_are_given(
    text: str, expected: dict[str, Any], read: Callable[[str], Deployment],
) -> None:
    """What is given is written into the body, so that transforms and the second look see it too."""
    facts = facts_read(read(case(text)))
    assert {name: facts[name] for name in expected} == expected


SESSION = """
session.called = [
    { tool = "pay", ago = "5m", args = { amount = 2, to = { n = 1 } } },
    { tool = "pay", ago = "3h", args = { amount = 2.5, to = { n = 3 } }, result = { ok = true } },
]
"""


@pytest.mark.parametrize(("when", "expected"), [
    ('session.called("pay")', True), ('session.called("other")', False), ('session.count("pay") == 2', True),
    ('session.count("pay", duration("1h")) == 1', True), ('session.sum("pay", "args.amount") == 4.5', True),
    ('session.sum("pay", "args.to.n", duration("1h")) == 1.0', True), ('session.last("pay").args.amount == 2', True),
    ('session.last("pay").at == timestamp("2026-01-01T11:55:00Z")', True), ('session.last("other") == null', True),
    ('session.calls == 0 && session.id == "session" && session.labels == []', True),
])
def test_functions_over_the_session_see_what_was_called(when: str, expected: bool, folder: Path) -> None:  # noqa: FBT001 - an expectation
    """They are answered as the store would answer them."""
    (folder / "policies/rules.toml").write_text(
        f"[[rule]]\nid = 'r'\nphase = 'tool_call'\nwhen = '''{when}'''\neffect = 'deny'\nmessage = 'no'\n")
    text = case(f'phase = "tool_call"\nfacts.tool.name = "x"\n{SESSION}', 'effect = "deny", message = "no"' if expected else 'effect = "allow"')
    (folder / "policies/x.cases.toml").write_text(text)
    deployment = read_deployment(folder / "config.toml")
    result = run_cases(deployment, compile_rules(deployment))
    assert told(result) == []
    assert [reason.verdict for reason in result.results[0].decision.reasons] == ["matched" if expected else "not_matched"]  # type: ignore[union-attr]


def test_a_call_without_a_session_has_none(run: Callable[[str], CasesResult]) -> None:
    """As in life: a rule that asks of it fails closed."""
    for text in ("", 'facts.session.id = ""'):
        result = run(case(f'phase = "tool_call"\nfacts.tool.name = "bank.pay"\n{text}', 'effect = "deny"'))
        assert told(result) == []
        assert [reason.verdict for reason in result.results[0].decision.reasons] == ["error"]  # type: ignore[union-attr]


def test_branches_are_covered_where_a_rule_was_asked(run: Callable[[str], CasesResult]) -> None:
    """A call that `match` keeps away from a rule says nothing of its expression; it does of a rule without one."""
    result = run(case('facts.principal.team = "interns"\nfacts.route = "large"', 'effect = "deny"') + case("", name="other"))
    branches = {each.rule: each for each in result.branches}
    seen = {name: (each.matched, each.not_matched) for name, each in branches.items()}
    assert (seen["small-for-interns"], seen["clamped"], seen["night"], seen["gone"]) == ((1, 0), (1, 1), (0, 2), (0, 0))
    assert branches["night"].uncovered == ("matched",)
    assert branches["gone"].uncovered == ("matched", "not matched")
    assert branches["night"].source == "policies/rules.toml:10"
    covered = sum(bool(number) for pair in seen.values() for number in pair)
    assert result.coverage == pytest.approx(100 * covered / (2 * len(seen)))


def test_a_rule_that_could_not_be_evaluated_is_neither(run: Callable[[str], CasesResult]) -> None:
    """Coverage counts answers."""
    result = run(case('phase = "tool_call"\nfacts.tool.name = "bank.pay"', 'effect = "deny"'))
    assert next(each for each in result.branches if each.rule == "paid-without-check").uncovered == ("matched", "not matched")


def test_without_rules_everything_is_covered(folder: Path) -> None:
    """There is nothing to cover."""
    (folder / "policies/rules.toml").write_text("")
    deployment = read_deployment(folder / "config.toml")
    assert run_cases(deployment, compile_rules(deployment)).coverage == 100


def test_a_recorded_call_is_skipped_without_a_database(run: Callable[[str], CasesResult]) -> None:
    """A reload has none at hand, and says nothing of what it did not run."""
    result = run(case('call = "call_1"'))
    assert (told(result), result.results[0].skipped) == ([], "is about a recorded call, and there is no database here")


def test_cases_stand_with_their_lines_in_the_order_of_their_files(folder: Path) -> None:
    """Reports name the place."""
    for name in ("b", "a"):
        (folder / f"policies/{name}.cases.toml").write_text("# first\n" + case("", name=f"{name}1") + case("", name=f"{name}2"))
    deployment = read_deployment(folder / "config.toml")
    assert [(each.name, each.source) for each in deployment.cases] == [
        ("a1", "policies/a.cases.toml:2"), ("a2", "policies/a.cases.toml:6"), ("b1", "policies/b.cases.toml:2"), ("b2", "policies/b.cases.toml:6")]


def test_a_folder_of_rules_is_read_alone(folder: Path) -> None:
    """A library of rules proves itself without a deployment around it."""
    (folder / "config.toml").unlink()
    (folder / "policies/x.cases.toml").write_text(case('now = "2026-11-22T03:00:00Z"', 'effect = "require_approval"'))
    deployment = read_policies(folder / "policies")
    result = run_cases(deployment, compile_rules(deployment))
    assert (told(result), len(result.results), len(result.branches)) == ([], 1, 12)
    (folder / "policies/x.cases.toml").write_text("[[cas]]")
    with pytest.raises(ConfigError, match=r"policies/x\.cases\.toml:1:cas: unknown key"):
        read_policies(folder / "policies")
    with pytest.raises(ConfigError, match="the folder nowhere cannot be read"):
        read_policies(folder / "nowhere")


def test_a_case_is_judged_as_a_call_would_be(read: Callable[[str], Deployment]) -> None:
    """By `judge` and nothing else: the same question gives the same decision."""
    deployment = read(case('facts.principal.team = "interns"\nfacts.route = "small"', 'effect = "set"'))
    bundle = compile_rules(deployment)
    again = judge(bundle, question_of(deployment.cases[0], (), world_of(deployment))).decision
    first = run_cases(deployment, bundle).results[0].decision
    assert first is not None
    assert dataclasses.replace(first, values={}) == dataclasses.replace(again, values={})


DOCS = Path(__file__).parents[1] / "docs" / "policy-tests.md"


def test_the_examples_of_the_page_are_rules_and_the_cases_that_cover_them(folder: Path) -> None:
    """What people copy works, and its output is the page's."""
    rules, cases = re.findall(r"```toml\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    (folder / "policies/rules.toml").write_text(rules)
    (folder / "policies/rules.cases.toml").write_text(cases)
    deployment = read_deployment(folder / "config.toml")
    result = run_cases(deployment, compile_rules(deployment))
    assert (told(result), len(result.results), result.coverage) == ([], 4, 100)


@pytest.mark.parametrize("model", [CaseConfig, ExpectConfig, UseConfig])
def test_every_key_of_a_case_is_on_the_page(model: type[Strict]) -> None:
    """And the page names no other."""
    tables = re.findall(r"\| key \| what \|\n\|---\|---\|\n((?:\|.*\n)+)", DOCS.read_text(encoding="utf-8"))
    documented = [re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE) for table in tables]
    assert [name for name in model.model_fields if name != "source"] in documented
