"""A decision becomes what happens: one match over the closed family."""

from typing import assert_never

from gateway.core.decision import Allowed, Decision, Denied
from gateway.errors import Forbidden


def enact(decision: Decision) -> None:
    """Let the call go on, or end it.

    Raises:
        Forbidden: the decision is a denial; names the rule, its message and its remedy.
    """
    match decision:
        case Allowed():
            return
        case Denied():
            raise Forbidden(decision.message, rule=decision.rule, remedy=decision.remedy)
        case _:
            assert_never(decision)
