"""Only what candidate rules read is taken from a call."""

from collections import UserDict
from types import SimpleNamespace
from typing import Any

from gateway.call import Call, Principal
from gateway.core.decide import compile_bundle
from gateway.core.matching import MATCH_KEYS
from gateway.gather import gather


def rule(when: str | None, **match: tuple[str, ...]) -> Any:
    keys = SimpleNamespace(**{key: match.get(key, ()) for key in MATCH_KEYS})
    return SimpleNamespace(id=f"{when}{match}", phase="request", match=keys, when=when, effect="deny", message=None,
                           remedy=None, label=None, source="policies/x.toml:1")


def call(body: Any) -> Call:
    return Call("call_1", Principal("key_1", team="t"), "openai", "chat", "fast", body, stream=False, size=9, received_ns=0)


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
    bundle = compile_bundle([rule("route == 'x' && request.size > 1"), rule("size(messages) > 1", teams=("other",))], "auto")
    body = Watched({"messages": "junk"})
    facts = gather(bundle, call(body), 0)
    assert facts.values == {"route": "fast", "request.size": 9}
    assert facts.unreadable == {}
    assert body.looked_at == []


def test_tools_are_looked_for_only_where_a_rule_matches_on_them() -> None:
    """They are the only match key that stands in the body."""
    body = Watched({})
    gather(compile_bundle([rule(None, teams=("t",))], "auto"), call(body), 0)
    assert body.looked_at == []
    gather(compile_bundle([rule(None, tools=("x",))], "auto"), call(body), 0)
    assert body.looked_at == ["tools", "functions"]


def test_what_cannot_be_read_is_noted_and_the_rest_is_there() -> None:
    """The rules that read it fail closed; the others are still asked."""
    bundle = compile_bundle([rule("size(messages) > 1 && route == 'x'"), rule(None, tools=("x",))], "auto")
    facts = gather(bundle, call({"messages": 5, "tools": 5}), 0)
    assert facts.values == {"route": "fast"}
    assert facts.unreadable == {"messages": "`messages` is not a list",
                                "tools_offered": "`tools` is not a list of at most 2048 tools"}
    assert facts.keys.tools is None


def test_the_time_of_judging_is_an_argument() -> None:
    """Nothing in the core asks a clock."""
    facts = gather(compile_bundle([rule("now.getFullYear() > 1")], "auto"), call({}), 86_400 * 10**9)
    assert facts.values["now"].isoformat() == "1970-01-02T00:00:00+00:00"
