"""Compiled conditions, kept: those of approvals' identity and of grants, by the rules that are in force. Pure."""

from collections import OrderedDict
from typing import Final

from gateway.call import Json
from gateway.core.condition import Condition, ConditionError, Kind, compile_condition
from gateway.core.decision import Approval, Phase
from gateway.core.expressions import ExpressionError
from gateway.core.question import Question
from gateway.core.rules import Bundle

__all__ = ["MOST_KEPT", "ConditionError", "Conditions"]

MOST_KEPT: Final = 2048  # grants are many, and each is asked again and again
_ALWAYS: Final = "true"  # what an empty condition means


class Conditions:
    """Compiled conditions of the bundles that are in use, a bounded number of them."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[str, Phase, Kind, str], Condition | str] = OrderedDict()

    def identity(self, bundle: Bundle, approval: Approval, question: Question) -> dict[str, Json]:
        """The values by which the action is the same, by their expressions. Raises `ConditionError`."""
        return {text: self._compiled(bundle, question.phase, "json", text).value(question) for text in approval.identity}

    def holds(self, bundle: Bundle, text: str, question: Question) -> bool:
        """Whether a condition is true of what is judged; an empty one always is. One that cannot be evaluated does not hold."""
        try:
            return self._compiled(bundle, question.phase, "bool", text or _ALWAYS).value(question) is True
        except ConditionError:
            return False

    def _compiled(self, bundle: Bundle, phase: Phase, kind: Kind, text: str) -> Condition:
        key = (bundle.digest, phase, kind, text)
        made = self._kept.pop(key, None)
        if made is None:
            try:
                made = compile_condition(text, phase, bundle.phases[phase].engine, kind=kind)
            except ExpressionError as error:  # what a rule's condition was may be none under the rules of now
                made = str(error)
        self._kept[key] = made
        if len(self._kept) > MOST_KEPT:
            self._kept.popitem(last=False)
        if isinstance(made, str):
            raise ConditionError(made)
        return made
