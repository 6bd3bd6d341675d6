"""CEL: open an engine, compile, evaluate. Every other module knows expressions through this one.

Two engines stand behind one interface: the CEL project's own C++ runtime (`cel_cpp.py`), which checks types, and a pure Python one
(`cel_python.py`) without a type check or a cost limit, for platforms where the first has no wheel and as the oracle in tests.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, TypeVar

from gateway.core import lint
from gateway.core.cel_cpp import CppEngine
from gateway.core.cel_python import PythonEngine
from gateway.core.program import CompileProblem, Engine, ExpressionError, Library, Program

__all__ = ["MAX_FAULT_CHARACTERS", "MAX_SOURCE_BYTES", "CompileProblem", "Engine", "ExpressionError", "Fault", "Library", "Program",
           "attempt", "compile_expression", "evaluate", "open_engine"]

MAX_SOURCE_BYTES: Final = 4096
MAX_FAULT_CHARACTERS: Final = 200

Value = TypeVar("Value")

_QUOTED: Final = re.compile(r"""(["'])(.*?)\1""", re.DOTALL)
_MIXED_NUMBERS: Final = re.compile(r"'_(?:[<>]=?|[!=]=|[-+*/])_' applied to '\((?:int, double|double, int)\)'")
_NO_KEY: Final = re.compile(r"Key not found in map|no such (?:key|member in mapping)")
_STRING_LITERAL: Final = re.compile(r"""[rR]?(?:"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*')""")
_FOREIGN: Final = re.compile(r"\b(?:and|or|not|AND|OR|NOT)\b|(?<![=!<>])=(?!=)")  # how other languages write it
_LITERAL_PATTERN: Final = re.compile(
    r"""\bmatches\s*\((?:[\s\w.]+,)?\s*([rR]?(?:"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*'))\s*\)""")


@dataclass(frozen=True, slots=True)
class Fault:
    """An evaluation that gave no verdict, and why."""

    text: str

    @property
    def lacks_key(self) -> bool:
        """Whether a key was read that is not there, in the words of either engine."""
        return _NO_KEY.search(self.text) is not None


def open_engine(choice: str, variables: Mapping[str, str], library: Library) -> Engine:
    """The engine that `policy.engine` names, for these variables (name to CEL type); `auto` takes the best there is.

    Raises:
        ImportError: for an engine that was named and is not installed.
    """
    if choice != "cel-python":
        try:
            return CppEngine(variables, library)
        except ImportError:
            if choice != "auto":
                raise
    return PythonEngine(variables, library)


def compile_expression(engine: Engine, source: str, *, verdict: bool = True) -> Program:
    """A program whose result is a bool as far as the engine knows types; without `verdict`, a value that JSON has.

    Raises:
        ExpressionError: with every problem found: too long, wrong syntax or types, undeclared names, arguments that a function
            does not take, a regular expression that RE2 does not take where it stands in the source, what could cost too much.
    """
    if len(source.encode("utf-8", "surrogatepass")) > MAX_SOURCE_BYTES:
        raise ExpressionError(CompileProblem(f"the expression is longer than {MAX_SOURCE_BYTES} bytes"))
    try:
        program = engine.load(source, verdict=verdict)
    except ExpressionError as error:
        raise ExpressionError(*(replace(problem, hint=problem.hint or _hint(problem.message, source))
                                for problem in error.problems)) from error
    refused = [CompileProblem(f"RE2 does not take the pattern {pattern[1]}", *_place(source, pattern.start(1)))
               for pattern in _LITERAL_PATTERN.finditer(source) if not _is_regex(engine, pattern[1])]
    if program.tree is not None:
        refused += lint.errors(program.tree)
    if refused:
        raise ExpressionError(*refused)
    return program if program.tree is None else replace(program, warnings=tuple(lint.warnings(program.tree)))


def evaluate(program: Program, activation: Any) -> bool | Fault:
    """The verdict, or why there is none. Never raises."""
    return attempt(program.run, activation, program.source)


def attempt(step: Callable[[Any], Value], argument: Any, quotable: str = "") -> Value | Fault:
    """Do one step of an engine; whatever it raises is a `Fault`. Texts quote only what stands in `quotable`."""
    try:
        return step(argument)
    except Exception as error:  # noqa: BLE001 - decisions are total: foreign code, hostile values
        first = error.args[0] if error.args else ""
        return Fault(_without_values(first if isinstance(first, str) else type(error).__name__, quotable))


def _without_values(text: str, quotable: str) -> str:
    """An engine's message without the caller's data: the journal may be set to hold none.

    The C++ engine quotes the value it was given after ` -> `; both put keys and values in quotes.
    """
    said = text.partition(" -> ")[0]
    return _QUOTED.sub(lambda quoted: quoted[0] if quoted[2] in quotable else "…", said)[:MAX_FAULT_CHARACTERS]


def _hint(message: str, source: str) -> str | None:
    """What is most likely meant: another language's operators, or a whole number beside one with a fraction."""
    if _MIXED_NUMBERS.search(message):
        return "write double(x) or a whole number"
    if "yntax error" in message and _FOREIGN.search(_STRING_LITERAL.sub("", source)):
        return "CEL writes &&, ||, !, =="
    return None


def _is_regex(engine: Engine, literal: str) -> bool:
    """Whether RE2 takes the pattern. What does not load on its own was found inside another literal, and is none."""
    program = attempt(engine.load, f'"".matches({literal})')
    return isinstance(program, Fault) or not isinstance(evaluate(program, engine.activation({}, {})), Fault)


def _place(source: str, offset: int) -> tuple[int, int]:
    return source.count("\n", 0, offset) + 1, offset - source.rfind("\n", 0, offset)
