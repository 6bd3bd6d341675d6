"""What rules are asked about: a call, and what of it is judged at the moment."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from gateway.call import NO_TAGS, Call, Said, ToolCall, ToolResult
from gateway.core.body import weight
from gateway.core.decision import Phase
from gateway.session import SessionFacts

LARGE: Final = 64 * 1024


@dataclass(frozen=True, slots=True)
class BudgetFacts:
    """How the accounts that bind a call stand, in nano-USD, by scope: of each the tightest. `any` is the tightest of all."""

    remaining: Mapping[str, int]
    limit: Mapping[str, int]
    spent: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Question:
    """One question to the rules of a phase. `now_ns` is wall time.

    `tool` is set in `tool_call` and `tool_result`, `result` in `tool_result`, `said` in `response`. `session` is None where no rule
    that could apply reads it, or where the call belongs to none; `budgets` where no rule that could apply reads it. `env` is
    `[policy] env`. `known_tool`: the tool is declared here.
    """

    phase: Phase
    call: Call
    now_ns: int
    tool: ToolCall | None = None
    result: ToolResult | None = None
    said: Said | None = None
    session: SessionFacts | None = None
    env: Mapping[str, str] = field(default_factory=lambda: NO_TAGS)
    known_tool: bool = False
    budgets: BudgetFacts | None = None

    @property
    def large(self) -> bool:
        """Whether judging it may take longer than other calls should wait for: it is done beside the event loop, rule by rule."""
        text = self.said.text if self.said is not None else self.result.text if self.result is not None else ""
        return self.call.size >= LARGE or len(text) >= LARGE or (self.tool is not None and weight(self.tool.args, LARGE) >= LARGE)
