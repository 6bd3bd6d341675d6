"""A session as rules see it: who it belongs to, what they ask of it, and the answers. The calls of one conversation or agent."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypeAlias

SessionFunction: TypeAlias = Literal["called", "count", "last", "sum"]


class SessionKey(NamedTuple):
    """A session of a principal: another principal that sends the same name has another session."""

    principal: str
    id: str


class SessionQuery(NamedTuple):
    """One question about the tools of a session: `session.count("mail.send", duration("1h"))`. `within_s` None: the whole session.

    `called` is answered with a bool and `count` with an int, over uses that were let through and, where the gateway made the call,
    succeeded; `sum` with a float, of the numbers at the dotted `path` of those uses (`args.amount`); `last` with an object
    (`args`, `result`, `at_ns`) of the latest of them, or None.
    """

    function: SessionFunction
    tool: str
    within_s: float | None = None
    path: str = ""

    @property
    def shown(self) -> str:
        """As it is written in a rule, for people."""
        parts = [f'"{self.tool}"', *([f'"{self.path}"'] if self.path else []), *([f"{self.within_s:g}s"] if self.within_s else [])]
        return f"session.{self.function}({', '.join(parts)})"


@dataclass(frozen=True, slots=True)
class SessionFacts:
    """What is on record of a session. `spend_nusd` holds known costs only; `age_s` is 0 for one that begins.

    `facts` is what operators and programs have put there, read only where a rule asks.
    """

    age_s: float = 0.0
    labels: tuple[str, ...] = ()
    calls: int = 0
    spend_nusd: int = 0
    answers: Mapping[SessionQuery, Any] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
