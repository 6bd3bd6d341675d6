"""A rule that says what is to hold for calls without a session is asked; one that does not say it fails closed."""

from collections.abc import Callable
from typing import Any

import pytest

from gateway.call import Origin
from gateway.core.decide import decide
from gateway.core.question import Question
from gateway.core.rules import compile_bundle
from gateway.gather import gather
from gateway.rule_config import RuleConfig
from gateway.session import SessionFacts


@pytest.mark.parametrize(("when", "verdict"), [
    ('session.id != "" && session.calls > 3', "not_matched"),
    ('session.calls > 3 && session.id != ""', "not_matched"),
    ('session.id != "" && "secret" in session.labels', "not_matched"),
    ('session.id != "" && session.age > duration("1h")', "not_matched"),
    ('session.id == "" ? false : session.spend > usd("1.00")', "not_matched"),
    ('session.id != "" && session.count("mail.send") > 3', "not_matched"),
    ('!("tier" in session.facts)', "error"),
    ('session.id == "" || session.calls > 3', "matched"),
    ('session.id == "" && session.calls > 3', "error"),
    ('session.id != "" || !("secret" in session.labels)', "error"),
    ('session.id == "" && !session.labels.exists(l, l == "secret")', "error"),
    ('session.id == "" && session.calls == 0', "error"),
    ('session.id == "" && has(request.params.x) && session.spend < 1', "error"),
])
def test_what_a_call_without_a_session_lacks_is_missed_only_where_the_verdict_hangs_on_it(
        when: str, verdict: str, engine_name: str, call: Callable[..., Any]) -> None:
    """A guard says that such calls are to pass; nothing is ever taken for a count of none, or for no label."""
    bundle = compile_bundle([RuleConfig(id="r", effect="deny", when=when)], engine_name)
    decision = decide(bundle, "request", gather(bundle, Question("request", call({"x": 1}), 0)))
    assert decision.reasons[0].verdict == verdict
    assert decision.name == ("allow" if verdict == "not_matched" else "deny")
    assert ("X-Lockgate-Session" in decision.reasons[0].message) is (verdict == "error")


def test_facts_of_a_session_are_missed_no_sooner_than_what_else_is_known_of_it(engine_name: str, call: Callable[..., Any]) -> None:
    """The second engine cannot tell a map that is missing from a field of it that is: there a guard does not help, and the rule fails closed."""
    bundle = compile_bundle([RuleConfig(id="r", effect="deny", when='session.id != "" && "tier" in session.facts')], engine_name)
    decision = decide(bundle, "request", gather(bundle, Question("request", call({"x": 1}), 0)))
    assert decision.reasons[0].verdict == ("error" if engine_name == "cel-python" else "not_matched")


def test_a_guard_saves_no_rule_from_a_body_that_cannot_be_read(engine_name: str, call: Callable[..., Any]) -> None:
    """Who calls chooses whether to send a session; what else is unreadable still fails closed."""
    bundle = compile_bundle([RuleConfig(id="r", effect="deny", when='session.id != "" && messages.size() > 3 && session.calls > 3')], engine_name)
    for session, origin in ((None, Origin()), (SessionFacts(), Origin(session="s"))):
        asked = Question("request", call({"messages": "none"}, origin=origin), 0, session=session)
        assert decide(bundle, "request", gather(bundle, asked)).name == "deny"
