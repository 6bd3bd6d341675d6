"""Expressions beside the conditions of rules: by which values an action is the same (`approval.identity`), what a grant is for. Pure.

They read what rules of their phase read, as it is at that moment, and fail closed: what cannot be read or evaluated has no value.
"""

from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeAlias

from gateway.call import Json
from gateway.core.action import UncanonicalError, canonical
from gateway.core.body import UnreadableFactError
from gateway.core.decision import Phase
from gateway.core.expressions import CompileProblem, Engine, ExpressionError, Fault, Program, attempt, compile_expression
from gateway.core.facts import BUDGET_FACTS, SESSION_FACTS, Fact, facts_of
from gateway.core.lint import by_phase
from gateway.core.question import Question

Kind: TypeAlias = Literal["bool", "json"]

# What is asked of the store for the rules that read it, and for nothing else.
_NOT_THERE: Final = SESSION_FACTS | BUDGET_FACTS
_OF_STORE: Final = "it is asked for rules alone"


class ConditionError(ValueError):
    """An expression has no value here: it cannot be compiled, a fact cannot be read, the evaluation failed. Quotes nothing of a call."""


def evaluated(engine: Engine, program: Program, values: dict[str, Any]) -> Any:
    """The value of a program on these facts. Raises `ConditionError`."""
    activation = attempt(lambda facts: engine.activation(facts, {}), values)
    value = activation if isinstance(activation, Fault) else attempt(program.run, activation, program.source)
    if isinstance(value, Fault):
        raise ConditionError(value.text)
    return value


@dataclass(frozen=True, slots=True)
class Condition:
    """A compiled expression over the facts of a phase."""

    program: Program
    facts: tuple[Fact, ...]
    engine: Engine = field(repr=False)

    def value(self, question: Question) -> Json:
        """The value for what is judged. Raises `ConditionError`."""
        values: dict[str, Any] = {}
        for fact in self.facts:
            try:
                values[fact.name] = fact.read(question)
            except UnreadableFactError as error:
                raise ConditionError(f"{fact.name}: {error}") from error
        value = evaluated(self.engine, self.program, values)
        try:
            canonical(value)
        except UncanonicalError as error:
            raise ConditionError("the expression gives what JSON does not have") from error
        return value


def compile_condition(text: str, phase: Phase, engine: Engine, *, kind: Kind = "bool") -> Condition:
    """An expression as rules of this phase have them; `engine` is theirs. Of the kind `json` it gives any value that JSON has.

    Raises:
        ExpressionError: with every problem found.
    """
    try:
        program = compile_expression(engine, text, verdict=kind == "bool")
    except ExpressionError as error:
        raise ExpressionError(*(by_phase(each, phase) for each in error.problems)) from error
    stored = sorted(program.names & _NOT_THERE) + sorted(query.shown for query in program.queries)
    if stored:
        raise ExpressionError(CompileProblem(f"`{stored[0]}` cannot be read here", hint=_OF_STORE))
    if kind == "json" and "now" in program.names:
        raise ExpressionError(CompileProblem("the time is part of it, so that no action would be the same as one before"))
    if kind == "json" and not program.names:
        raise ExpressionError(CompileProblem("it reads nothing: every action would be the same", hint="read `tool.args`, or others"))
    known = facts_of(phase)
    return Condition(program, tuple(known[name] for name in sorted(program.names)), engine)
