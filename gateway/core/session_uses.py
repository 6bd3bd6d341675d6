"""What a session's facts become while an answer is judged: the tool calls of the same answer count, before they are on record. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from gateway.call import ToolUse
from gateway.session import SessionFacts, SessionQuery


def with_uses(facts: SessionFacts, uses: Sequence[ToolUse]) -> SessionFacts:
    """The facts with the calls that were let through of what a model proposes now: ten at once must not each be the first."""
    released = [use for use in uses if use.released and use.via == "model"]
    answers = dict(facts.answers)
    for query in facts.answers:
        mine = [use for use in released if use.name == query.tool]
        if mine:
            _add(answers, query, mine)
    return replace(facts, answers=answers) if released else facts


def _add(answers: dict[SessionQuery, Any], query: SessionQuery, mine: list[ToolUse]) -> None:
    if query.function == "called":
        answers[query] = True
    elif query.function == "count":
        answers[query] += len(mine)
    elif query.function == "last":
        answers[query] = {"args": mine[-1].args, "result": None, "at_ns": mine[-1].at_ns}
    else:
        numbers = [_number(use.args, query.path) for use in mine]
        if None in numbers:
            del answers[query]  # what cannot be added up is no sum, and the rule that asks for it fails closed
        else:
            answers[query] += sum(float(number) for number in numbers if number is not None)


def _number(args: Mapping[str, Any], path: str) -> float | None:
    """The number at `args.a.b`."""
    value: Any = {"args": args}
    for name in path.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None
