"""The merge, its errors, and what a bundle refuses to be made of."""

import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.call import Call
from gateway.core.decide import Bundle, PhaseRules, Selection, compile_bundle, decide, merge
from gateway.core.decision import Allowed, Decision, Denied
from gateway.core.expressions import Program
from gateway.core.facts import Facts, facts_of
from gateway.core.matching import Index, MatchKeys
from gateway.errors import ConfigError, Problem
from gateway.gather import gather

Make = Callable[..., Any]


def judged(bundle: Bundle, call: Call) -> Decision:
    return decide(bundle, "request", gather(bundle, call, 0))


def problems(*rules: Any, engine: str = "auto") -> tuple[Problem, ...]:
    with pytest.raises(ConfigError) as caught:
        compile_bundle(rules, engine)
    return caught.value.problems


WHEN = {"matched": "true", "not_matched": "false", "error": "request.body.missing"}


def expected(rules: list[tuple[str, str]]) -> tuple[str, str | None, tuple[str, ...]]:
    """The precedence as the documentation words it, one sentence a line: name, rule, labels."""
    numbered = [(effect, verdict, f"r{number}") for number, (effect, verdict) in enumerate(rules)]
    labels = tuple(rule for effect, verdict, rule in numbered if (effect, verdict) == ("log", "matched"))
    for effect, verdict, rule in numbered:
        if effect == "deny" and verdict in ("matched", "error"):
            return "deny", rule, labels
    for effect, verdict, rule in numbered:
        if effect == "allow" and verdict == "matched":
            return "allow", rule, labels
    return "allow", None, labels


@settings(deadline=None)
@given(cases=st.lists(st.tuples(st.sampled_from(["deny", "allow", "log"]), st.sampled_from([*WHEN])), max_size=7))
def test_the_strongest_effect_wins_and_the_first_of_equals_decides(
        cases: list[tuple[str, str]], rule: Make, call: Make) -> None:
    """Against an independent merge, over every mixture of effects and verdicts."""
    rules = [rule(id=f"r{number}", effect=effect, when=WHEN[verdict]) for number, (effect, verdict) in enumerate(cases)]
    decision = judged(compile_bundle(rules, "cel-expr-python"), call())
    assert (decision.name, decision.rule, decision.labels) == expected(cases)
    assert [(reason.rule, reason.effect, reason.verdict) for reason in decision.reasons] == [
        (f"r{number}", *case) for number, case in enumerate(cases)]


def test_without_rules_a_call_is_allowed(call: Make) -> None:
    """Its key is entitled to the route; rules only take away."""
    bundle = compile_bundle([], "auto")
    assert judged(bundle, call()) == Allowed(None, None, None, (), (), bundle.digest)


def test_a_denial_carries_the_rules_words(rule: Make, call: Make, engine_name: str) -> None:
    """They are all that the caller gets to see of the rule."""
    bundle = compile_bundle([rule(id="no", when="request.size > 5", message="Too big.", remedy="Send less.")], engine_name)
    decision = judged(bundle, call(size=6))
    assert isinstance(decision, Denied)
    assert (decision.rule, decision.message, decision.remedy) == ("no", "Too big.", "Send less.")
    assert decision.bundle == bundle.digest
    assert decision.reasons[0].source == "policies/x.toml:7"
    assert judged(bundle, call(size=5)).name == "allow"


def test_a_denial_without_a_message_does_not_name_its_rule_twice(rule: Make, call: Make) -> None:
    """Whoever shows a denial names the rule first, so the message does not."""
    decision = judged(compile_bundle([rule(id="no")], "auto"), call())
    assert (decision.rule, decision.message) == ("no", "This call is not allowed.")


def test_an_allow_rule_is_on_record_with_its_words(rule: Make, call: Make) -> None:
    """It changes nothing here, but says whose rule let the call pass."""
    bundle = compile_bundle([rule(id="ok", effect="allow", message="Known batch job.")], "auto")
    decision = judged(bundle, call())
    assert (decision.name, decision.rule, decision.message) == ("allow", "ok", "Known batch job.")


def test_labels_stand_once_each_in_declared_order(rule: Make, call: Make) -> None:
    """Several rules may say the same; a rule without a label is its own."""
    rules = [rule(id=f"r{number}", effect="log", label=label) for number, label in enumerate(["b", "a", "b", None])]
    assert judged(compile_bundle(rules, "auto"), call()).labels == ("b", "a", "r3")


def test_labels_are_on_a_denied_call_too(rule: Make, call: Make) -> None:
    """The record of a denied call is the one that is read."""
    rules = [rule(id="d"), rule(id="l", effect="log", label="big")]
    assert judged(compile_bundle(rules, "auto"), call()).labels == ("big",)


def test_only_rules_whose_match_fits_are_asked(rule: Make, call: Make) -> None:
    """The others could not have contributed, so they are not in the reasons."""
    rules = [rule(id="mine", effect="log", teams=("a*",)), rule(id="other", teams=("b",)),
             rule(id="tool", effect="log", tools=("bank.*",), when='route == "fast"')]
    body = {"tools": [{"type": "function", "function": {"name": "bank.pay"}}]}
    bundle = compile_bundle(rules, "auto")
    assert judged(bundle, call(body, team="alpha")).labels == ("mine", "tool")
    assert [reason.rule for reason in judged(bundle, call(team="alpha")).reasons] == ["mine"]


# Errors


def test_a_deny_that_cannot_be_evaluated_says_so_before_the_rules_words(rule: Make, call: Make, engine_name: str) -> None:
    """The rule's message alone would accuse the caller of what nobody could find out."""
    bundle = compile_bundle([rule(id="no", when="request.body.x > 1", message="x!", remedy="y!")], engine_name)
    decision = judged(bundle, call())
    assert decision.name == "deny"
    unclear = "The rule could not be evaluated on this call, so the call is refused (policy_error)."
    assert (decision.message, decision.remedy) == (f"{unclear} The rule says: x!", "y!")
    silent = judged(compile_bundle([rule(when="request.body.x > 1")], engine_name), call())
    assert (silent.message, silent.remedy) == (unclear, None)
    assert decision.reasons[0].verdict == "error"
    assert decision.reasons[0].message.startswith("policy_error: ")


@pytest.mark.parametrize("body", [
    {"tools": "junk"}, {"tools": [{"type": "function"}]}, {"tools": [{"type": "function", "Function": {"Name": "bank.pay"}}]},
    {"functions": {"name": "bank.pay"}}])
def test_tools_that_cannot_be_read_are_denied_by_a_rule_on_tools(body: Any, rule: Make, call: Make) -> None:
    """Else a shape that we do not know and the provider does would pass."""
    decision = judged(compile_bundle([rule(tools=("bank.pay",)), rule(id="teams", teams=("t",))], "auto"), call(body))
    assert (decision.name, decision.reasons[0].verdict) == ("deny", "error")
    assert len(decision.reasons) == 1


def test_a_fact_that_cannot_be_read_fails_even_where_the_rule_might_not_have_looked(rule: Make, call: Make) -> None:
    """`has()` and `||` must not turn an unreadable body into a clean one."""
    bundle = compile_bundle([rule(when="request.max_tokens > 5 && false")], "auto")
    decision = judged(bundle, call({"max_tokens": "9"}))
    assert decision.name == "deny"
    assert decision.reasons[0].message == "policy_error: request.max_tokens: `max_tokens` is not a 64-bit integer"


HOSTILE: list[Any] = [
    {"max_tokens": 2**63}, {"max_tokens": "1000001"}, {"max_tokens": [1000001]}, {"max_tokens": 1e300},
    {"max_tokens": True}, {"max_completion_tokens": 1000001, "max_tokens": 1}, {"max_tokens": {"a": 1}}]


@pytest.mark.parametrize("body", HOSTILE)
def test_no_hostile_type_gets_past_a_limit(body: Any, rule: Make, call: Make, engine_name: str) -> None:
    """Each of them is over the limit or cannot be judged; none is let through."""
    assert judged(compile_bundle([rule(when="request.max_tokens > 1000000")], engine_name), call(body)).name == "deny"


@pytest.mark.parametrize("messages", [5, "x", {}, [5], [None], [{}], [{"content": 5}], [{"content": ["x"]}], [[[]]],
                                      [{"content": 2**70}], True])
def test_no_hostile_messages_get_past_a_rule_that_reads_them(
        messages: Any, rule: Make, call: Make, engine_name: str) -> None:
    """The rule can find nothing in them, and that is not the same as finding that nothing is there."""
    for when in ('messages.exists(m, m.content.startsWith("y"))', 'messages.exists(m, m.content.contains("y"))'):
        assert judged(compile_bundle([rule(when=when)], engine_name), call({"messages": messages})).name == "deny"


def test_a_deeply_nested_body_is_judged(rule: Make, call: Make, engine_name: str) -> None:
    """Far beyond the depth that the reader of bodies lets through."""
    body: dict[str, Any] = {"a": 1}
    for _ in range(400):
        body = {"a": body}
    decision = judged(compile_bundle([rule(when="request.body.a.a.a.b == 1")], engine_name), call(body))
    assert decision.name == "deny"


FAILURES = [ZeroDivisionError("x"), KeyError("x"), RecursionError(), MemoryError(), RuntimeError("x"), TypeError(),
            UnicodeError("x"), AssertionError()]


@pytest.mark.parametrize("failure", FAILURES, ids=repr)
@pytest.mark.parametrize("effect", ["deny", "allow", "log"])
def test_whatever_an_expression_raises_fails_closed(effect: str, failure: Exception, rule: Make, call: Make) -> None:
    """A fault put into the engine itself: the decision is still one, and still the strict one."""

    def fail(_: Any) -> bool:
        raise failure

    compiled = compile_bundle([rule(effect=effect, when="route != ''")], "auto")
    broken = replace(compiled.rules[0], program=Program("", frozenset({"route"}), fail))
    index = Index([{}], lambda _: Selection((broken,), ()))
    bundle = replace(compiled, phases={"request": PhaseRules(compiled.phases["request"].engine, index)})
    decision = judged(bundle, call())
    assert decision.name == ("deny" if effect == "deny" else "allow")
    assert decision.labels == ()
    assert decision.rule == ("r" if effect == "deny" else None)
    assert decision.reasons[0].verdict == "error"


def test_an_extract_with_a_defect_gives_no_decision_at_all(rule: Make, call: Make) -> None:
    """It is our own code, so a defect is not dressed up as a verdict; without a decision nothing is sent."""
    compiled = compile_bundle([rule(when="request.size > 5")], "auto")

    def fail(_call: Call, _now_ns: int) -> int:
        raise KeyError

    broken = replace(facts_of("request")["request.size"], extract=fail)
    index = Index([{}], lambda _: Selection(compiled.rules, (broken,)))
    bundle = replace(compiled, phases={"request": PhaseRules(compiled.phases["request"].engine, index)})
    with pytest.raises(KeyError):
        judged(bundle, call())


def test_an_activation_that_cannot_be_made_fails_closed(rule: Make) -> None:
    """Facts that are no facts: nothing can be evaluated, so whatever could deny does."""
    bundle = compile_bundle([rule(id="a", effect="allow", when="route != ''"), rule(id="d", when="route == ''")], "auto")
    nonsense: Any = {5: 5}
    decision = decide(bundle, "request", Facts(MatchKeys(), nonsense, {}))
    assert (decision.name, decision.rule) == ("deny", "d")
    assert [reason.verdict for reason in decision.reasons] == ["error", "error"]


def test_facts_that_were_not_gathered_fail_closed(rule: Make, engine_name: str) -> None:
    """A missing fact is not an empty one."""
    bundle = compile_bundle([rule(when='route == "x"')], engine_name)
    assert decide(bundle, "request", Facts(MatchKeys(), {}, {})).name == "deny"


def test_every_rule_needs_its_reason() -> None:
    """A merge over half of the verdicts is a defect, not a decision."""
    with pytest.raises(ValueError, match="zip"):
        merge([], [None], "")  # type: ignore[list-item]


# Compiling


def test_every_problem_of_every_rule_is_listed_with_file_line_and_key(rule: Make, engine_name: str) -> None:
    """One round of corrections."""
    found = problems(rule(id="a", when="request.modle == 'x'", source="policies/a.toml:3"),
                     rule(id="b", when="route == ", source="policies/b.toml:9"),
                     rule(id="a", source="policies/b.toml:20"), engine=engine_name)
    assert {(problem.file, problem.line, problem.key) for problem in found} == {
        ("policies/a.toml", 3, "rule.when"), ("policies/b.toml", 9, "rule.when"), ("policies/b.toml", 20, "rule.id")}
    typo = next(problem for problem in found if problem.line == 3)
    assert '(rule "a")' in typo.message
    assert typo.hint == "did you mean 'request.model'?"
    assert " | request.modle == 'x'\n" in str(typo)


def test_a_taken_id_says_where_it_was_first_used(rule: Make) -> None:
    """Ids are what callers, the journal and the reasons name; two of one would be none."""
    (problem,) = problems(rule(), rule())
    assert (problem.message, problem.hint) == ("the id 'r' is taken", "first used at policies/x.toml:7")


def test_a_source_without_a_line_is_named_as_it_is(rule: Make) -> None:
    """Rules may come from elsewhere than a file."""
    (problem,) = problems(rule(when="nope", source="test"))
    assert (problem.file, problem.line) == ("test", None)


def test_an_engine_that_is_not_installed_is_a_problem_of_the_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    """With what to do about it."""
    monkeypatch.setitem(sys.modules, "cel_expr_python.cel", None)
    (problem,) = problems(engine="cel-expr-python")
    assert (problem.key, problem.hint) == ("policy.engine", 'use "auto"')


def test_the_digest_names_the_content_and_its_order(rule: Make) -> None:
    """Equal rules, equal digest; where they stand in a file is not what they say."""
    rules = [rule(id="a", when="true"), rule(id="b", teams=("t",))]
    digest = compile_bundle(rules, "auto").digest
    assert digest == compile_bundle([replace(each, source="policies/y.toml:1") for each in rules], "cel-python").digest
    assert digest.startswith("sha256:")
    assert len(digest) >= len("sha256:") + 16
    changed = [rules[::-1], [rules[0]], [replace(rules[0], when="false"), rules[1]],
               [replace(rules[0], effect="log"), rules[1]], [rules[0], rule(id="b", teams=("u",))],
               [rules[0], rule(id="b", roles=("t",))], [replace(rules[0], message="m"), rules[1]]]
    assert len({digest, *(compile_bundle(each, "auto").digest for each in changed)}) == len(changed) + 1


def test_a_bundle_shows_its_rules_and_its_digest(rule: Make) -> None:
    """Logs and tests read it."""
    bundle = compile_bundle([rule(id="a", when="true")], "auto")
    assert bundle.digest in repr(bundle)
    assert "id='a'" in repr(bundle)


TROUBLE = ("request.size / (request.size - 100) > 0", 'request.params.absent == "x"', "dyn(1)", "messages[0].content.size() > 3")
PLAIN = ("request.size > 1", "request.size > 100000", 'request.model.startsWith("x") // a comment', "true\n|| false", "!request.stream")


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["deny", "allow", "log"]), st.none() | st.sampled_from(PLAIN + TROUBLE)), max_size=8))
def test_rules_asked_together_say_what_each_says_alone(rule: Make, call: Make, given_rules: list[tuple[str, str | None]]) -> None:
    """One evaluation for all is only a cheaper way to the same answers, errors included."""
    rules = [rule(id=f"r{n}", effect=effect, when=when) for n, (effect, when) in enumerate(given_rules)]
    together = judged(compile_bundle(rules, "cel-expr-python"), call(body={"messages": [{"content": 5}]}))
    alone = [judged(compile_bundle([each], "cel-expr-python"), call(body={"messages": [{"content": 5}]})).reasons for each in rules]
    assert [reason.verdict for reason in together.reasons] == [reasons[0].verdict for reasons in alone]


def test_rules_that_are_too_much_together_are_asked_one_by_one(rule: Make, call: Make) -> None:
    """Forty rules of four kilobytes are over what the parser takes at once."""
    rules = [rule(id=f"r{n}", effect="deny", when=f'request.model == "{"x" * 4000}{n}"') for n in range(40)]
    assert judged(compile_bundle(rules, "cel-expr-python"), call()).name == "allow"


def test_a_fact_that_cannot_be_read_is_the_trouble_of_the_rules_that_read_it_alone(rule: Make, call: Make) -> None:
    rules = [rule(id="reads", effect="log", when="size(messages) > 0"), rule(id="does-not", effect="log", when="request.size > 1")]
    decision = judged(compile_bundle(rules, "auto"), call(body={"messages": 5}))
    assert [reason.verdict for reason in decision.reasons] == ["error", "matched"]
