"""What an expression becomes and what can be wrong with it: the types that the engines share with `expressions.py`, their facade."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, Protocol

from gateway.core.checked_tree import Node
from gateway.core.detectors import Detectors
from gateway.session import SessionQuery


@dataclass(frozen=True, slots=True)
class CompileProblem:
    """One bad thing in an expression. `line` and `column` count from 1; 0 stands for the expression as a whole.

    `undeclared` is the name, where the problem is that nothing has it.
    """

    message: str
    line: int = 0
    column: int = 0
    hint: str | None = None
    undeclared: str = ""

    def pointed(self, source: str) -> str:
        """The message, and the line at fault with a caret under the place."""
        if not self.line:
            return self.message
        shown = [*source.split("\n"), ""][self.line - 1]
        where = f"line {self.line} of the expression, character {self.column}" if "\n" in source else f"character {self.column}"
        return f"{self.message} at {where}\n | {shown}\n | {'.' * (self.column - 1)}^"


class ExpressionError(ValueError):
    """The expression cannot be used; `problems` says why."""

    def __init__(self, *problems: CompileProblem) -> None:
        super().__init__("; ".join(problem.message for problem in problems))
        self.problems = problems


class NoVerdictError(ValueError):
    """The engine answered, but with neither true nor false."""


@dataclass(frozen=True, slots=True)
class Library:
    """What functions look into beside their arguments: lists of words by name, and detectors."""

    lists: Mapping[str, frozenset[str]]
    detectors: Detectors


@dataclass(frozen=True, slots=True)
class Program:
    """A compiled expression. `names` are the variables that it may read, `queries` what it asks of the session.

    `run` takes what the engine's `activation` made and may raise anything: engines work on what a client sent. Only
    `evaluate` calls it. `tree` is None where the engine gives none; `warnings` are what works and deserves a look.
    """

    source: str
    names: frozenset[str]
    run: Callable[[Any], Any] = field(repr=False)
    queries: frozenset[SessionQuery] = frozenset()
    tree: Node | None = field(default=None, repr=False, compare=False)
    warnings: tuple[CompileProblem, ...] = field(default=(), repr=False)


class Engine(Protocol):
    """A CEL implementation, set up for a fixed set of typed variables. May be used by several threads, one at a time."""

    name: str
    variables: frozenset[str]

    def load(self, source: str, *, verdict: bool = True) -> Program:
        """Parse and check. With `verdict` the program gives a bool; else any value that JSON has. Raises `ExpressionError`."""

    def together(self, programs: Sequence[Program]) -> Callable[[Any], list[bool]] | None:
        """One cheaper step for the verdicts of all; it raises where any has trouble, and then each is to be asked alone."""

    def activation(self, values: dict[str, Any], answers: Mapping[SessionQuery, Any]) -> Any:
        """What programs read their variables from; made once for all programs of a decision. Values convert lazily.

        `answers` are those to what the programs ask of the session; asking without an answer is an error.
        """


def undeclared(name: str, known: frozenset[str], line: int, column: int) -> CompileProblem:
    """The problem of a name that nothing has, with the nearest one of `known` as its hint."""
    others = sorted(known - {name})
    near = [each for each in others if each.endswith(f".{name}")] or get_close_matches(name, others, 1)
    return CompileProblem(f"undeclared reference to '{name}'", line, column, f"did you mean {near[0]!r}?" if near else None, name)
