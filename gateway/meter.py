"""A stream against its money: more is set aside before the stream runs over, and where there is none it ends as one that was cut to length.

A provider that keeps to the limit it was given never gets here. For one that does not, each piece counts as a token at least.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Any, Final

from gateway.call import Json, JsonObject, Usage
from gateway.core.budget import Short
from gateway.core.estimate import BYTES_OF_A_TOKEN
from gateway.progress import Progress, Receipt, Trying
from gateway.store.protocol import Budgets
from gateway.wire.protocol import Event

_STEP: Final = 256  # tokens that are asked for at a time
_MOST_ENDS: Final = 128  # choices that are ended although they have not begun
_HEAD: Final = ("id", "object", "created", "model", "system_fingerprint")


@dataclass(slots=True)
class Meter:
    """Counts what one attempt's stream has brought. `units` is set aside for each of `choices`; `extend` asks for so many in all."""

    receipt: Receipt
    units: int
    choices: int
    extend: Callable[[int], Awaitable[int]]
    _open: set[int] = field(default_factory=set)  # choices that have begun and not ended
    _ended: set[int] = field(default_factory=set)
    _words: str = "delta"  # the field that words stand in
    _head: JsonObject = field(default_factory=dict)

    async def covers(self, event: Event) -> bool:
        """Whether what has come, this event included, is paid for. The receipt has been told of it."""
        brought = max(self.receipt.pieces, self.receipt.text_bytes // BYTES_OF_A_TOKEN)
        if brought > self.units * self.choices:
            wanted = max(-(-brought // self.choices) + _STEP, self.units)
            self.units = max(self.units, await self.extend(wanted))
        paid = brought <= self.units * self.choices
        self._note(event, passed=paid)
        return paid

    def last(self, usage: Usage | None) -> list[Event]:
        """What ends the stream in the canonical form: every choice that has not ended was cut to length, also one that has not begun (some
        providers write one after the other), and `usage` for who asked for it.
        """
        nothing: Json = {} if self._words == "delta" else ""
        left = {*range(min(self.choices, _MOST_ENDS)), *self._open} - self._ended
        ends: list[Json] = [{"index": index, self._words: nothing, "finish_reason": "length"} for index in sorted(left)]
        events = [Event({**self._head, "choices": ends}, finish_reason="length")] if ends else []
        if usage is not None:
            told = {"prompt_tokens": usage.input_tokens, "completion_tokens": usage.output_tokens,
                    "total_tokens": usage.input_tokens + usage.output_tokens}
            events.append(Event({**self._head, "choices": [], "usage": told}))
        return events

    def _note(self, event: Event, *, passed: bool) -> None:
        body = event.body
        choices: Any = body.get("choices") if body is not None else None
        if body is None or not isinstance(choices, list):
            return
        self._head = self._head or {name: body[name] for name in _HEAD if name in body}
        for choice in choices:
            if not isinstance(choice, dict):
                continue
            index = choice.get("index") or 0
            if not isinstance(index, int):
                continue
            self._words = "text" if "text" in choice else "delta"
            if choice.get("finish_reason") and passed:  # else the client is not told of this end
                self._open.discard(index)
                if len(self._ended) < self.choices:
                    self._ended.add(index)
            elif len(self._open) < self.choices:
                self._open.add(index)


def meter_of(case: Progress, trying: Trying, budgets: Budgets) -> Meter | None:
    """What watches that an attempt's stream does not run over its money; None where no account limits it."""
    spending = case.spending
    if spending is None or trying.units is None:
        return None

    async def extend(units: int) -> int:
        answer = await budgets.extend(case.id, replace(spending.need(trying.to), most=units), spent_nusd=case.spent_beside(trying))
        if isinstance(answer, Short):
            case.account = answer.holding.account.name
            return 0
        spending.granted = answer
        trying.units = answer.units
        return units if answer.units is None else answer.units

    return Meter(trying.receipt, trying.units, spending.measured.choices, extend)
