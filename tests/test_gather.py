"""Only what candidate rules read is taken from what is judged."""

from collections import UserDict
from dataclasses import replace
from typing import Any

import pytest

from gateway.call import Call, Principal, Said, ToolCall
from gateway.core import matching
from gateway.core.decide import decide
from gateway.core.decision import PHASES, Phase
from gateway.core.facts import TOOLS_FACT
from gateway.core.question import Question
from gateway.core.rules import compile_bundle
from gateway.gather import gather, selected
from gateway.rule_config import DefaultsConfig, RuleConfig
from gateway.session import SessionFacts, SessionQuery


def rule(when: str | None = None, *, id: str = "r", phase: str = "request", **match: list[str]) -> RuleConfig:  # noqa: A002 - the key's name
    return RuleConfig.model_validate({"id": id, "effect": "deny", "phase": phase, "when": when, "match": match})


def asked(body: Any, phase: Phase = "request", **given: Any) -> Question:
    call = Call("call_1", Principal("key_1", team="t"), "openai", "chat", "fast", body, stream=False, size=9, received_ns=0)
    return Question(phase, call, 0, **given)


class Watched(UserDict[str, Any]):
    """A body that notes which of its fields are looked at."""

    def __init__(self, content: dict[str, Any]) -> None:
        self.looked_at: list[str] = []
        super().__init__(content)

    def get(self, key: str, default: Any = None) -> Any:
        self.looked_at.append(key)
        return super().get(key, default)


def test_facts_are_read_only_for_rules_that_could_apply() -> None:
    """A body is large and most rules are about somebody else."""
    bundle = compile_bundle([rule("route == 'x' && request.size > 1"), rule("size(messages) > 1", id="other", teams=["other"])], "auto")
    body = Watched({"messages": "junk"})
    facts = gather(bundle, asked(body))
    assert facts.values == {"route": "fast", "request.size": 9}
    assert facts.unreadable == {}
    assert body.looked_at == []


def test_tools_are_looked_for_only_where_a_rule_matches_on_them() -> None:
    """They are the only match key that stands in the body."""
    body = Watched({})
    gather(compile_bundle([rule(teams=["t"])], "auto"), asked(body))
    assert body.looked_at == []
    gather(compile_bundle([rule(tools=["x"])], "auto"), asked(body))
    assert body.looked_at == ["tools", "functions"]


def test_what_cannot_be_read_is_noted_and_the_rest_is_there() -> None:
    """The rules that read it fail closed; the others are still asked."""
    bundle = compile_bundle([rule("size(messages) > 1 && route == 'x'"), rule(id="tools", tools=["x"])], "auto")
    facts = gather(bundle, asked({"messages": 5, "tools": 5}))
    assert facts.values == {"route": "fast"}
    assert facts.unreadable == {"messages": "`messages` is not a list",
                                "tools_offered": "`tools` is not a list of at most 2048 tools"}
    assert facts.keys.tools is None


@pytest.mark.parametrize("phase", ["request", "response"])
def test_more_tools_than_can_be_looked_up_fail_closed(phase: Phase, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand invented names must neither hold the others' calls up nor get past the rules on tools."""
    monkeypatch.setattr(matching, "MOST_STEPS", 100)
    rules = [rule(id=f"r{number}", phase=phase, tools=[f"*bank{number}*"]) for number in range(20)]
    bundle = compile_bundle(rules, "auto")
    few, many = (tuple(f"t{number}" for number in range(count)) for count in (4, 5))
    for names, name in ((few, "allow"), (many, "deny")):
        question = asked({"tools": [{"type": each} for each in names]}, phase, said=Said("", names) if phase == "response" else None)
        facts = gather(bundle, question)
        assert decide(bundle, phase, facts).name == name
        assert set(facts.unreadable) == (set() if name == "allow" else {TOOLS_FACT[phase]})
    assert len(selected(bundle, question).rules) == 20


def test_a_phase_whose_part_is_not_there_fails_closed() -> None:
    """A defect of whoever asks must not look like a call of no tool at all."""
    for phase in PHASES:
        bundle = compile_bundle([rule(phase=phase, tools=["bank.*"])], "auto")
        assert decide(bundle, phase, gather(bundle, asked({}, phase))).name == ("allow" if phase == "request" else "deny")


def test_the_time_of_judging_is_an_argument() -> None:
    """Nothing in the core asks a clock."""
    facts = gather(compile_bundle([rule("now.getFullYear() > 1")], "auto"), replace(asked({}), now_ns=86_400 * 10**9))
    assert facts.values["now"].isoformat() == "1970-01-02T00:00:00+00:00"


def test_what_has_to_be_fetched_of_the_session_is_known_before() -> None:
    """Of the rules that could apply, not of all."""
    bundle = compile_bundle([rule('session.called("kyc.check")', tools=["bank.*"], phase="tool_call"),
                             rule('session.called("other")', id="other", tools=["mail.*"], phase="tool_call")], "auto")
    question = asked({}, "tool_call", tool=ToolCall("t1", "bank.pay", {}))
    query = SessionQuery("called", "kyc.check")
    assert selected(bundle, question).queries == {query}
    facts = gather(bundle, replace(question, session=SessionFacts(answers={query: True})))
    assert (facts.answers, facts.subject) == ({query: True}, "bank.pay")
    assert gather(bundle, question).answers == {}


@pytest.mark.parametrize(("phase", "operation", "known_tool", "key"), [
    ("request", "chat", False, "models"), ("request", "tool", False, None), ("tool_call", "chat", False, "application_tools"),
    ("tool_call", "chat", True, "tools"), ("tool_call", "tool", True, "tools"), ("response", "chat", False, None),
    ("tool_result", "tool", True, None)])
def test_what_holds_where_no_rule_decides_is_the_default_of_the_place(phase: Phase, operation: str, known_tool: bool, key: str | None) -> None:  # noqa: FBT001 - a table
    """An HTTP tool call is decided by the phase that knows the tool; what comes back was let through before."""
    tool = ToolCall("t1", "bank.pay", {}) if phase.startswith("tool") else None
    question = replace(asked({}, phase, tool=tool, known_tool=known_tool), call=replace(asked({}).call, operation=operation))
    for denied in ("models", "tools", "application_tools"):
        defaults = DefaultsConfig.model_validate({**dict.fromkeys(("models", "tools", "application_tools"), "allow"), denied: "deny"})
        assert gather(compile_bundle([], "auto", defaults=defaults), question).allowed is (denied != key)
