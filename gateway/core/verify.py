"""What came of an action of which nobody knows the end: which read is made to find out, and what its answer says. Pure.

The expressions fail closed: what cannot be evaluated says nothing, and then a person is asked.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from gateway.call import Json, JsonObject
from gateway.core.action import UncanonicalError, canonical
from gateway.core.condition import ConditionError, evaluated
from gateway.core.expressions import CompileProblem, Engine, ExpressionError, Library, Program, compile_expression, open_engine
from gateway.tool_config import VerifyConfig

_SENT: Final = {"arguments": "map(string, dyn)", "key": "string"}
_STATUS: Final = "status"
_SAID: Final = {"result": "dyn", _STATUS: "int"}


class Engines(NamedTuple):
    """What expressions over what was sent are compiled with, and those over what the read says."""

    sent: Engine
    said: Engine


class VerifyProblem(NamedTuple):
    """What is wrong with a declaration; `path` starts at its table `verify`."""

    path: tuple[str, ...]
    problem: CompileProblem
    source: str


@dataclass(frozen=True, slots=True)
class Verify:
    """How to find out: `tool` is asked first after `after_s` and then `every_s`, `attempts` times at the most."""

    tool: str
    arguments: Mapping[str, Program]
    happened: Program
    after_s: float
    attempts: int
    every_s: float
    engines: Engines = field(repr=False, compare=False)

    def asks(self, arguments: JsonObject, key: str) -> dict[str, Json]:
        """The arguments of the read, for an action that was sent with these and this key. Raises `ConditionError`."""
        asked = {name: evaluated(self.engines.sent, program, {"arguments": dict(arguments), "key": key})
                 for name, program in self.arguments.items()}
        try:
            canonical(asked)
        except UncanonicalError as error:
            raise ConditionError("an expression gives what JSON does not have") from error
        return asked

    def says(self, status: int, result: Json) -> bool:
        """Whether the action happened, by the answer to the read. Raises `ConditionError` where it does not say."""
        if not 200 <= status < 300 and _STATUS not in self.happened.names:
            raise ConditionError(f"its status is {status}, which `happened` does not look at")
        said: bool = evaluated(self.engines.said, self.happened, {"result": result, "status": status})
        return said


def open_engines(choice: str, library: Library) -> Engines:
    """Raises `ImportError` as `open_engine` does."""
    return Engines(open_engine(choice, _SENT, library), open_engine(choice, _SAID, library))


def compile_verify(given: VerifyConfig, engines: Engines) -> Verify | list[VerifyProblem]:
    """A compiled declaration, or everything that is wrong with its expressions."""
    programs: dict[tuple[str, ...], Program] = {}
    problems: list[VerifyProblem] = []
    for path, source, engine, verdict in _expressions(given, engines):
        try:
            programs[path] = _compiled(engine, source, verdict=verdict)
        except ExpressionError as error:
            problems += [VerifyProblem(path, problem, source) for problem in error.problems]
    if problems:
        return problems
    arguments = {name: programs["arguments", name] for name in given.arguments}
    return Verify(given.tool, arguments, programs["happened",], given.after, given.attempts, given.every, engines)


def _expressions(given: VerifyConfig, engines: Engines) -> Iterator[tuple[tuple[str, ...], str, Engine, bool]]:
    for name, source in given.arguments.items():
        yield ("arguments", name), source, engines.sent, False
    yield ("happened",), given.happened, engines.said, True


def _compiled(engine: Engine, source: str, *, verdict: bool) -> Program:
    program = compile_expression(engine, source, verdict=verdict)
    if program.queries:
        raise ExpressionError(CompileProblem(f"`{min(query.shown for query in program.queries)}` cannot be asked for here"))
    if verdict and not program.names:
        raise ExpressionError(CompileProblem("it reads nothing, so that every answer would say the same", hint="read `result`"))
    return program
