"""What `lockgate check` says of a deployment that works: each piece of advice once, at its line, and none where all is well."""

from collections.abc import Callable
from pathlib import Path

import pytest

from gateway.advice import advice
from gateway.deployment import read_deployment
from gateway.snapshot import compile_snapshot

Said = Callable[[str, str], list[str]]

CONFIG = '[auth]\npepper = "env:PEPPER"\n[providers.one]\nadapter = "openai"\nbase_url = "http://127.0.0.1:9090/v1"\n'
ROUTE = '[[route]]\nname = "fast"\n[[route.targets]]\nprovider = "one"\nmodel = "m"\n'


@pytest.fixture
def said(tmp_path: Path) -> Said:
    for name in ("routes", "policies", "adapters"):
        (tmp_path / name).mkdir()

    def read(config: str, policies: str) -> list[str]:
        (tmp_path / "config.toml").write_text(config)
        (tmp_path / "routes/r.toml").write_text(ROUTE)
        (tmp_path / "policies/p.toml").write_text(policies)
        deployment = read_deployment(tmp_path / "config.toml")
        return [str(problem) for problem in advice(deployment, compile_snapshot(deployment, {"PEPPER": "pepper-of-the-tests"}))]

    return read


DENY = '[[rule]]\nid = "r"\neffect = "deny"\nmessage = "No."\n'


@pytest.mark.parametrize(("rule", "expected"), [
    (DENY, None),
    (DENY + "when = 'texts.exists(t, t == \"x\")'", None),
    (DENY + "when = 'request.operation == \"chat\" && size(messages) == 0'", None),
    (DENY + "when = 'has(request.body.user)'", None),
    (DENY + "when = 'size(messages) > 9'",
     'policies/p.toml:5:rule[0].when: does not see `prompt` of completions (rule "r") (read `texts`)'),
    (DENY + "when = 'has(request.body.messages) && size(request.body.messages) > 9'",
     'policies/p.toml:5:rule[0].when: does not see `prompt` of completions (rule "r") (read `texts`)'),
    ('[[rule]]\nid = "r"\neffect = "log"\nwhen = "size(messages) > 9"', None),
    ('[[rule]]\nid = "r"\neffect = "deny"', 'policies/p.toml:3:rule[0].effect: callers are not told why (rule "r") (add a `message`)'),
    (DENY + 'label = "l"', 'policies/p.toml:5:rule[0].label: a rule that is `deny` does not use it (rule "r") (take it out)'),
    ('[[rule]]\nid = "r"\neffect = "allow"\nmessage = "m"\nlabel = "l"',
     'policies/p.toml:5:rule[0].label: a rule that is `allow` does not use it (rule "r") (take it out)'),
    ('[[rule]]\nid = "r"\neffect = "log"\nlabel = "l"\nremedy = "m"',
     'policies/p.toml:5:rule[0].remedy: a rule that is `log` does not use it (rule "r") (take it out)'),
    (DENY + 'match = { routes = ["f*"] }', None),
    (DENY + 'match = { routes = ["fast", "fats"] }',
     'policies/p.toml:5:rule[0].match.routes: no route is named \'fats\' (rule "r") (did you mean "fast"?)'),
    ('[[rule]]\nid = "r"\neffect = "route"\nroute = { to = "fast" }', None),
    ('[[rule]]\nid = "r"\neffect = "route"\nroute = { only = ["*"] }', None),
    ('[[rule]]\nid = "r"\neffect = "route"\nroute = { to = "fats" }',
     'policies/p.toml:4:rule[0].route.to: no route is named \'fats\', so what it matches is refused (rule "r") (did you mean "fast"?)'),
])
def test_a_rule_that_is_most_likely_not_meant_so_deserves_a_look(said: Said, rule: str, expected: str | None) -> None:
    assert said(CONFIG, rule + "\n") == ([expected] if expected else [])


def test_files_that_nobody_reads_and_urls_without_a_path_deserve_a_look(said: Said, tmp_path: Path) -> None:
    (tmp_path / "policies/x.tml").write_text("")
    assert said(CONFIG.replace("/v1", "/"), "") == [
        "policies/x.tml: is not read (only files named *.toml are, and no folders)",
        "config.toml:5:providers.one.base_url: has no path (most providers need /v1)"]


def test_what_is_seen_in_a_condition_is_shown_at_its_place(said: Said) -> None:
    """A caret under the field, and what to write."""
    rule = DENY + "when = '''\n  request.stream &&\n  request.params.n > 4'''"
    (found,) = said(CONFIG, rule)
    assert found == (
        "policies/p.toml:5:rule[0].when: `request.params.n` may not be there, and then the rule cannot be evaluated at line 2 of the "
        'expression, character 10\n |   request.params.n > 4\n | .........^ (rule "r") (write has(request.params.n) && … before it)')


@pytest.mark.parametrize(("second", "expected"), [
    ('effect = "allow"\nwhen = "request.stream"', 'allows what the rule "r" denies, for the same calls: deny wins'),
    ('effect = "deny"\nmessage = "No."\nwhen = "request.stream"', 'says the same as the rule "r"'),
    ('effect = "limit"\nlimit = { requests = 1, per = "1m" }\nmatch = { teams = ["x"] }\nwhen = "request.stream"',
     'never has an effect: the rule "r" denies every call that it is for'),
])
def test_a_rule_that_another_leaves_nothing_to_do_deserves_a_look(said: Said, second: str, expected: str) -> None:
    (found,) = said(CONFIG, f'{DENY}when = "request.stream"\n[[rule]]\nid = "s"\n{second}\n')
    assert found.startswith(f'policies/p.toml:8:rule[1].effect: {expected} (rule "s") (')


def test_rules_of_two_teams_are_not_taken_for_one(said: Said, tmp_path: Path) -> None:
    """A team's rules are for that team, whatever their `match` says."""
    (tmp_path / "policies/q.toml").write_text('[bundle]\nteam = "b"\n' + DENY.replace('"r"', '"s"'))
    assert said(CONFIG, '[bundle]\nteam = "a"\n' + DENY) == []


def test_an_engine_that_checks_less_is_named_once(said: Said) -> None:
    rules = DENY + 'when = "request.params.n > 4"\n' + DENY.replace('"r"', '"s"') + 'when = "request.params.n > 5"\n'
    (found,) = said(CONFIG + '[policy]\nengine = "cel-python"\n', rules)
    assert found == ("config.toml:7:policy.engine: cel-python knows no types, so expressions are checked less than they could be "
                     "(cel-expr-python checks types, optional fields and costs)")


BUDGET = CONFIG + '[budgets.b]\nlimit = "1"\n'


@pytest.mark.parametrize(("budget", "expected"), [
    ('scope = "team"\nof = ["nobody-yet"]', None),
    ('scope = "all"', None),
    ('scope = "all"\nof = ["a*"]', None),
    ('scope = "all"\nof = ["everybody"]',
     "config.toml:9:budgets.b.of: there is no such subject (it is `all`), so the budget binds nothing (there is all)"),
    ('scope = "route"\nof = ["f*"]', None),
    ('scope = "route"\nof = ["fats"]', 'config.toml:9:budgets.b.of: there is no such route, so the budget binds nothing (did you mean "fast"?)'),
    ('scope = "tool"', "config.toml:6:budgets.b.of: there is no such tool, so the budget binds nothing"),
    ('scope = "team"\nof = ["a"]\nlimits = { a = "2" }', None),
    ('scope = "team"\nof = ["a"]\nlimits = { b = "2" }', "config.toml:10:budgets.b.limits.b: `of` leaves it out, so this limit is never used"),
    ('scope = "user"\nof = ["a"]\nlimits = { a = "2", "key_1/a" = "3" }', None),
    ('scope = "team"\nwindow = "day"\ntimezone = "Europe/Berlin"', None),
    ('scope = "team"\nwindow = "24h"\ntimezone = "Europe/Berlin"',
     'config.toml:10:budgets.b.timezone: a window of "24h" is the same in every time zone (take it out, or take a calendar window)'),
    ('scope = "team"\ntimezone = "Europe/Berlin"',
     'config.toml:9:budgets.b.timezone: a window of "none" is the same in every time zone (take it out, or take a calendar window)'),
])
def test_a_budget_that_says_less_than_it_seems_to_deserves_a_look(said: Said, budget: str, expected: str | None) -> None:
    assert said(BUDGET + budget + "\n", "") == ([] if expected is None else [expected])


@pytest.mark.parametrize(("config", "expected"), [
    (CONFIG + 'output_limit = ""\n', None),
    (BUDGET.replace("[budgets", 'output_limit = ""\n[budgets') + 'scope = "all"\n', "config.toml:6:providers.one.output_limit: "),
    (BUDGET + 'scope = "all"\n[models."one/m"]\noutput_limit = ""\n', 'config.toml:10:models."one/m".output_limit: '),
    (BUDGET + 'scope = "all"\n[models."one/m"]\noutput_limit = ""\nmax_output = 9\n', None),
    (BUDGET + 'scope = "all"\n[models."one/m"]\nmax_output = 9\n', None),
])
def test_a_model_that_takes_no_limit_and_has_no_longest_answer_deserves_a_look(said: Said, config: str, expected: str | None) -> None:
    found = said(config, "")
    assert len(found) == (0 if expected is None else 1)
    if expected is not None:
        assert found[0] == expected + ("nobody knows how long an answer of one/m may be, so that much is set aside for each call "
                                       '(give `max_output` in [models."one/m"])')


TWO = '[[rule]]\nid = "r"\neffect = "require_approval"\n'


@pytest.mark.parametrize(("rule", "expected"), [
    (TWO + 'quorum = 3\napprovers = ["person:ada", "person:grace", "person:ada"]',
     "policies/p.toml:4:rule[0].quorum: nobody can ever approve: 3 have to, and 2 may"),
    (TWO + '[[rule.approval.stages]]\n[[rule.approval.stages]]\nquorum = 2\napprovers = ["person:ada"]',
     "policies/p.toml:6:rule[0].approval.stages[1].quorum: nobody can ever approve: 2 have to, and 1 may"),
    (TWO + 'quorum = 2\napprovers = ["person:ada", "person:grace"]', None),
    (TWO + 'quorum = 2\napprovers = ["person:ada", "role:finance"]', None),
    (TWO + "quorum = 2", None),
])
def test_a_quorum_larger_than_those_who_are_named_deserves_a_look(said: Said, rule: str, expected: str | None) -> None:
    hint = ' (rule "r") (name more people, a role or a team in `approvers`)'
    assert said(CONFIG, rule + "\n") == ([expected + hint] if expected else [])


TOOL = '\n[[tool]]\nname = "bank.pay"\nmethod = "POST"\nurl = "https://bank.example.com/pay"\n'
ASK = '[[rule]]\nid = "r"\nphase = "tool_call"\neffect = "require_approval"\n'
ALLOW = '[[rule]]\nid = "ok"\nphase = "tool_call"\neffect = "allow"\n'


@pytest.mark.parametrize(("rules", "dead"), [
    (ASK, True), (ASK + 'match = { tools = ["bank.*"] }\n', True), (ASK + 'match = { tools = ["other"] }\n', False),
    (ASK + ALLOW, False), (ASK + ALLOW + 'match = { tools = ["b*"] }\n', False), (ASK + ALLOW + 'match = { tools = ["other"] }\n', True),
    (ASK + ALLOW + 'mode = "shadow"\n', True), (ASK + 'mode = "shadow"\n', False), ('[defaults]\ntools = "allow"\n' + ASK, False), ("", False),
])
def test_a_tool_that_people_are_asked_about_and_no_rule_allows_deserves_a_look(
    said: Said, monkeypatch: pytest.MonkeyPatch, rules: str, dead: bool,  # noqa: FBT001
) -> None:
    monkeypatch.setattr(f"{__name__}.ROUTE", ROUTE + TOOL)
    told = 'policies/p.toml:4:rule[0].effect: no rule allows bank.pay, so its calls are refused and nobody is asked (rule "r") '
    told += '(to ask people is not to allow: add a rule with effect = "allow" for it)'
    assert said(CONFIG, rules) == ([told] if dead else [])
