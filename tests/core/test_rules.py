"""What a bundle is made of, what it refuses to be made of, and what its digest names."""

import json
import sys
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from gateway.core import rules as rules_module
from gateway.core.decide import decide
from gateway.core.decision import PHASES
from gateway.core.matching import MatchKeys
from gateway.core.question import Question
from gateway.core.rules import Bundle, compile_bundle, match_of
from gateway.errors import ConfigError, Problem
from gateway.gather import gather
from gateway.rule_config import DefaultsConfig, RuleConfig
from gateway.session import SessionQuery

Make = Callable[..., Any]
SOURCE = "policies/x.toml:7"


def rule(**keys: Any) -> RuleConfig:
    return RuleConfig.model_validate({"id": "r", "effect": "deny", "source": SOURCE, **keys})


def problems(*rules: RuleConfig, engine: str = "auto", **more: Any) -> tuple[Problem, ...]:
    with pytest.raises(ConfigError) as caught:
        compile_bundle(rules, engine, **more)
    return caught.value.problems


def test_every_problem_of_every_rule_is_listed_with_file_line_and_key(engine_name: str) -> None:
    """One round of corrections."""
    found = problems(rule(id="a", when="request.modle == 'x'", source="policies/a.toml:3"),
                     rule(id="b", when="route == ", source="policies/b.toml:9"),
                     rule(id="a", source="policies/b.toml:20"),
                     rule(id="c", effect="redact", redact={"patterns": ["("]}, source="policies/b.toml:30"), engine=engine_name)
    assert {(problem.file, problem.line, problem.key) for problem in found} == {
        ("policies/a.toml", 3, "rule.when"), ("policies/b.toml", 9, "rule.when"), ("policies/b.toml", 20, "rule.id"),
        ("policies/b.toml", 30, "rule.redact")}
    typo = next(problem for problem in found if problem.line == 3)
    assert '(rule "a")' in typo.message
    assert typo.hint == "did you mean 'request.model'?"
    assert " | request.modle == 'x'\n" in str(typo)
    assert '(rule "c")' in next(problem for problem in found if problem.line == 30).message


def test_a_taken_id_says_where_it_was_first_used() -> None:
    """Ids are what callers, the journal and the reasons name; two of one would be none."""
    (problem,) = problems(rule(), rule())
    assert (problem.message, problem.hint) == ("the id 'r' is taken", "first used at policies/x.toml:7")


def test_a_source_without_a_line_is_named_as_it_is() -> None:
    """Rules may come from elsewhere than a file."""
    (problem,) = problems(rule(when="nope", source="test"))
    assert (problem.file, problem.line) == ("test", None)


def test_who_knows_the_files_says_where_a_problem_stands() -> None:
    """The loader has the line of every key."""
    def locate(source: str, path: tuple[str | int, ...], message: str, hint: str | None) -> Problem:
        return Problem("found.toml", 99, f"{source}|{path}", message, hint)

    (problem,) = problems(rule(when="nope"), locate=locate)
    assert (problem.file, problem.line, problem.key) == ("found.toml", 99, "policies/x.toml:7|('when',)")


def test_an_engine_that_is_not_installed_is_a_problem_of_the_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    """With what to do about it."""
    monkeypatch.setitem(sys.modules, "cel_expr_python.cel", None)
    monkeypatch.setitem(sys.modules, "cel_expr_python", None)
    (problem,) = problems(engine="cel-expr-python")
    assert (problem.key, problem.hint) == ("policy.engine", 'use "auto"')


def test_a_rule_may_read_what_its_phase_has_and_nothing_else(engine_name: str) -> None:
    """A variable of another phase would never have a value."""
    for phase, when in (("tool_call", 'tool.name == ""'), ("response", 'response.text == ""'), ("tool_result", "tool.released")):
        compile_bundle([rule(phase=phase, when=when)], engine_name)
        for other in {*PHASES} - {phase, "tool_result" if phase == "tool_call" else phase}:
            (problem,) = problems(rule(phase=other, when=when), engine=engine_name)
            assert (problem.line, problem.key) == (7, "rule.when")
            assert f"not in {other}" in problem.message or "undeclared" in problem.message


# The digest


def test_the_digest_names_the_content_and_its_order() -> None:
    """Equal rules, equal digest; where they stand in a file is not what they say."""
    def two(*, first: dict[str, Any] | None = None, second: dict[str, Any] | None = None) -> list[RuleConfig]:
        return [rule(**{"id": "a", "when": "true", **(first or {})}), rule(**{"id": "b", "match": {"teams": ["t"]}, **(second or {})})]

    digest = compile_bundle(two(), "auto").digest
    assert digest == compile_bundle(two(first={"source": "policies/y.toml:1"}), "cel-python").digest
    assert digest.startswith("sha256:")
    assert len(digest) >= len("sha256:") + 16
    redact = {"effect": "redact", "redact": {"patterns": ["a"]}}
    changed: list[Sequence[RuleConfig]] = [
        two()[::-1], two()[:1], two(first={"when": "false"}), two(first={"effect": "log"}), two(first={"mode": "shadow"}),
        two(first={"mode": "off"}), two(first={"phase": "tool_call"}), two(first={"message": "m"}), two(first={"remedy": "m"}),
        two(second={"match": {"teams": ["u"]}}), two(second={"match": {"roles": ["t"]}}), two(second={"team": "t", "match": {}}),
        two(first=redact), two(first={**redact, "redact": {"patterns": ["b"]}}), two(first={"serial": True}),
        two(first={"effect": "require_approval"}), two(first={"effect": "require_approval", "quorum": 2}),
        two(first={"effect": "require_approval", "approvers": ["role:x"]})]
    others = [compile_bundle(two(), "auto", defaults=DefaultsConfig(models="deny")).digest,
              compile_bundle(two(), "auto", lists={"words": frozenset({"a"})}).digest,
              compile_bundle(two(), "auto", lists={"words": frozenset({"b"})}).digest]
    assert len({digest, *others, *(compile_bundle(each, "auto").digest for each in changed)}) == len(changed) + len(others) + 1


def test_the_digest_is_of_the_content_that_can_be_shown() -> None:
    """What is kept beside a decision is what was decided with."""
    bundle = compile_bundle([rule(id="a", when="true")], "auto", lists={"words": frozenset("cab")})
    told = json.loads(bundle.content)
    assert told["rules"] == [{"id": "a", "when": "true", "effect": "deny"}]
    assert told["lists"] == {"words": ["a", "b", "c"]}
    assert told["defaults"] == {"models": "allow", "tools": "deny", "application_tools": "allow"}


def test_a_bundle_shows_its_rules_and_its_digest() -> None:
    """Logs and tests read it."""
    bundle = compile_bundle([rule(id="a", when="true")], "auto")
    assert bundle.digest in repr(bundle)
    assert "id='a'" in repr(bundle)


# What is selected


def everything(bundle: Bundle, phase: Any = "request") -> Any:
    return bundle.phases[phase].index.select(MatchKeys(tools=None))


def test_a_rule_that_is_off_is_checked_and_never_asked() -> None:
    """So that it works on the day it is turned on."""
    bundle = compile_bundle([rule(id="off", mode="off"), rule(id="on")], "auto")
    assert [each.id for each in bundle.rules] == ["off", "on"]
    assert [each.id for each in everything(bundle).rules] == ["on"]
    assert "undeclared" in problems(rule(mode="off", when="nope"))[0].message


def test_rules_are_asked_in_their_own_phase_only() -> None:
    bundle = compile_bundle([rule(id=phase.replace("_", "-"), phase=phase) for phase in PHASES], "auto")
    for phase in PHASES:
        assert [each.id for each in everything(bundle, phase).rules] == [phase.replace("_", "-")]


def test_a_selection_says_what_its_rules_read_of_the_call_and_of_the_session() -> None:
    """So that exactly this is looked at and fetched."""
    bundle = compile_bundle([
        rule(id="plain", when='route == "x"'), rule(id="matched", match={"tools": ["x"]}),
        rule(id="counting", phase="tool_call", when='session.count("mail.send", duration("1h")) > 3', serial=True),
        rule(id="labelled", phase="tool_result", when='"secret" in session.labels')], "auto")
    request, call, result = (everything(bundle, phase) for phase in ("request", "tool_call", "tool_result"))
    assert ([fact.name for fact in request.facts], request.queries, request.reads_session, request.serial) == (
        ["route", "tools_offered"], frozenset(), False, False)
    assert (call.queries, call.reads_session, call.serial) == ({SessionQuery("count", "mail.send", 3600.0)}, True, True)
    assert ([fact.name for fact in result.facts], result.reads_session, result.serial) == (["session.labels"], True, False)
    assert not result.reads_facts
    asking = compile_bundle([rule(id="r", when='"tier" in session.facts')], "auto")
    assert (everything(asking, "request").reads_facts, everything(asking, "request").reads_session) == (True, True)
    assert [(phase, bundle.phases[phase].reads_session, bundle.phases[phase].serial) for phase in PHASES] == [
        ("request", False, False), ("tool_call", True, True), ("response", False, False), ("tool_result", True, False)]


def test_a_rule_says_what_it_reads() -> None:
    """It is shown with its reason."""
    (compiled,) = compile_bundle([rule(phase="tool_call", match={"tools": ["x"]}, when=(
        'route == "x" && session.sum("bank.pay", "args.amount", duration("90s")) > 5.0 && session.called("a")'))], "auto").rules
    assert compiled.reads == {"route", "tool.name"}
    assert compiled.matched.reads == ("route", "tool.name", 'session.called("a")', 'session.sum("bank.pay", "args.amount", 90s)')


@pytest.mark.parametrize(("rules", "defaults", "judged"), [
    ([], {}, False), ([rule()], {}, False), ([rule(phase="tool_call")], {}, True), ([rule(phase="tool_call", mode="off")], {}, False),
    ([], {"application_tools": "deny"}, True), ([rule(phase="tool_call", effect="log")], {}, True)])
def test_proposed_tool_calls_are_looked_at_where_anything_could_be_said_of_them(
        rules: list[RuleConfig], defaults: dict[str, Any], *, judged: bool) -> None:
    """A stream is held back for it, so only where it is needed."""
    assert compile_bundle(rules, "auto", defaults=DefaultsConfig.model_validate(defaults)).judges_tools is judged


# A team's rules


def test_a_teams_labels_carry_its_name() -> None:
    """Else a team could put the label on its session that a rule of the organisation's trusts."""
    made = compile_bundle([rule(id="a", effect="log", label="checked"), rule(id="b", effect="log", label="checked", team="search"),
                           rule(id="c", effect="log", team="search")], "auto")
    assert [each.label for each in made.rules] == ["checked", "search:checked", "search:c"]


def test_a_team_takes_off_no_label_but_its_own() -> None:
    """Else a team could clear its session of what a rule of the organisation's has found in it."""
    made = compile_bundle([rule(id="a", effect="log", unlabel=["secret"]), rule(id="b", effect="log", unlabel=["secret", "x"], team="search")], "auto")
    assert [each.unlabel for each in made.rules] == [("secret",), ("search:secret", "search:x")]


@pytest.mark.parametrize("team", ["search", "*", "a?b", "[x]", "a]b", "[!a]", ""])
def test_a_teams_rule_is_for_that_team_whatever_signs_its_name_has(team: str) -> None:
    """The name is no glob: a team called `*` has no say over the others."""
    bundle = compile_bundle([rule(team=team)], "auto")
    chosen = bundle.phases["request"].index.select
    assert len(chosen(MatchKeys(teams=(team,))).rules) == 1
    if team:
        assert chosen(MatchKeys(teams=("other",))).rules == ()
        assert chosen(MatchKeys(teams=("",))).rules == ()


def test_a_teams_rule_keeps_what_else_it_matches_on() -> None:
    """Its own team is put to it, nothing is taken."""
    assert match_of(rule(team="t", match={"routes": ["fast"]})) == {
        "principals": (), "teams": ("t",), "roles": (), "protocols": (), "routes": ("fast",), "models": (), "tools": (), "kinds": ()}


@pytest.mark.parametrize("effect", [{"effect": "set", "set": {"values": {"temperature": 0.1}}}, {"effect": "route", "route": {"only": ["eu/*"]}}])
def test_what_is_set_in_a_request_or_sent_elsewhere_is_a_model_calls(effect: dict[str, Any]) -> None:
    """The arguments of an HTTP tool are no body of a model call, and it has one target."""
    index = compile_bundle([rule(**effect)], "auto").phases["request"].index
    assert len(index.select(MatchKeys()).rules) == 1
    assert index.select(MatchKeys(kinds=("tool",))).rules == ()


# Asked together: what a caller can make it cost has a bound.


def test_rules_that_are_too_much_together_are_asked_one_by_one(call: Make) -> None:
    """Forty rules of four kilobytes take a tenth of a second to compile in one piece, for each combination that a caller makes up."""
    rules = [rule(id=f"r{n}", when=f'request.model == "{"x" * 4000}{n}"') for n in range(40)]
    bundle = compile_bundle(rules, "cel-expr-python")
    assert everything(bundle).together is None
    assert decide(bundle, "request", gather(bundle, Question("request", call(), 0))).name == "allow"


def test_combinations_that_callers_make_up_do_not_cost_a_compilation_each_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which tools a call offers is the caller's choice: twelve rules on tools are four thousand combinations."""
    monkeypatch.setattr(rules_module, "_ALL_TOGETHER", 400)
    bundle = compile_bundle([rule(id=f"r{n}", match={"tools": [f"t{n}"]}, when="request.size > 1000 && request.stream") for n in range(12)],
                            "cel-expr-python")
    select = bundle.phases["request"].index.select
    chosen = [select(MatchKeys(tools=tuple(f"t{n}" for n in range(12) if number >> n & 1))) for number in range(3, 4096, 8)]
    compiled = [each for each in chosen if each.together is not None]
    assert sum(len(each.rules) * len("request.size > 1000 && request.stream") for each in compiled) <= 400
    assert compiled
    assert chosen[0] is select(MatchKeys(tools=("t0", "t1")))


def test_one_rule_alone_needs_no_joint_step() -> None:
    assert everything(compile_bundle([rule(when="true"), rule(id="b")], "cel-expr-python")).together is None
