"""The CEL rules of a route that choose among its targets. Pure.

They read the facts of `request` rules and `task`. They are no policy: what policy has taken out of a route they cannot bring back, and one
that cannot be evaluated does not hold.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from gateway.core.body import UnreadableFactError
from gateway.core.expressions import Engine, Fault, Library, Program, attempt, compile_expression, evaluate, open_engine
from gateway.core.facts import BUDGET_FACTS, SESSION_FACTS, Fact, facts_of
from gateway.core.question import Question
from gateway.session import SessionQuery

TASK: Final = "task"


@dataclass(frozen=True, slots=True)
class RouteRule:
    """One rule: `targets` are globs of the targets that a call may go to where it holds."""

    program: Program
    targets: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Choice:
    """What the rules say of a call: the globs of the first that holds, None where none does, and its `when`.

    `notes` say which rules before it could not be evaluated, and why.
    """

    targets: tuple[str, ...] | None = None
    rule: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RouteRules:
    """The rules of a route, in order. `facts` are those that they read, `queries` what they ask of the session."""

    engine: Engine = field(repr=False)
    rules: tuple[RouteRule, ...]
    facts: tuple[Fact, ...]
    queries: frozenset[SessionQuery]
    reads_task: bool
    reads_session: bool
    reads_budgets: bool

    def choose(self, question: Question, task: str) -> Choice:
        """The first rule that holds. Total: what goes wrong is in the notes."""
        values: dict[str, Any] = {TASK: task}
        unreadable: dict[str, str] = {}
        for fact in self.facts:
            try:
                values[fact.name] = fact.read(question)
            except UnreadableFactError as error:
                unreadable[fact.name] = str(error)
        answers = question.session.answers if question.session else {}
        activation = attempt(lambda given: self.engine.activation(given, answers), values)
        notes: list[str] = []
        for rule in self.rules:
            verdict = _verdict(rule.program, activation, unreadable)
            if verdict is True:
                return Choice(rule.targets, rule.program.source, tuple(notes))
            if isinstance(verdict, Fault):
                notes.append(f"{rule.program.source}: {verdict.text}")
        return Choice(notes=tuple(notes))


def route_engine(choice: str, library: Library) -> Engine:
    """What rules of routes are compiled with. Raises `ImportError` as `open_engine` does."""
    return open_engine(choice, {name: fact.type for name, fact in facts_of("request").items()} | {TASK: "string"}, library)


def compile_rule(engine: Engine, when: str, targets: Sequence[str]) -> RouteRule:
    """One rule. Raises `ExpressionError` for an expression that cannot be used."""
    return RouteRule(compile_expression(engine, when), tuple(targets))


def route_rules(engine: Engine, rules: Sequence[RouteRule]) -> RouteRules | None:
    """The rules of a route; None where it has none."""
    if not rules:
        return None
    names = frozenset[str]().union(*(rule.program.names for rule in rules))
    queries = frozenset[SessionQuery]().union(*(rule.program.queries for rule in rules))
    facts = tuple(fact for name, fact in facts_of("request").items() if name in names)
    return RouteRules(engine, tuple(rules), facts, queries, TASK in names, bool(queries or names & SESSION_FACTS),
                      bool(names & BUDGET_FACTS))


def _verdict(program: Program, activation: Any, unreadable: Mapping[str, str]) -> bool | Fault:
    missing = {name: why for name, why in unreadable.items() if name in program.names}
    unclear = "; ".join(f"{name}: {why}" for name, why in missing.items())
    if missing.keys() - SESSION_FACTS:
        return Fault(unclear)
    if isinstance(activation, Fault):
        return activation
    # What a call without a session lacks is missed only where the verdict hangs on it: `session.id != "" && session.calls > 9`.
    verdict = evaluate(program, activation)
    return Fault(unclear) if isinstance(verdict, Fault) and unclear else verdict
