"""`cel-expr-python`, the CEL project's own C++ runtime: checks types at load, converts a value when it is first read."""

import re
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from types import ModuleType
from typing import Any, Final, NamedTuple

from gateway.core.checked_tree import Const, Invoked, Name, Node, children, read_tree, walk
from gateway.core.functions import (
    EXTENSIONS,
    FUNCTION_OF,
    FUNCTIONS,
    NAMESPACES,
    READS_NOW,
    STANDARD,
    Asked,
    Binding,
    Call,
    Function,
    Literally,
    examine,
    literal_duration,
)
from gateway.core.program import CompileProblem, ExpressionError, Library, NoVerdictError, Program, undeclared
from gateway.session import SessionQuery

MAX_PARTS: Final = 100_000  # nested comprehensions over so many take 50 ms, and steps that are over the engine's limit cost too

_PROBLEM: Final = re.compile(r"^(?:\w+: )?ERROR: <input>:(\d+):(\d+): (.*?)(?: \[\w+\])?$", re.MULTILINE)
_UNDECLARED: Final = re.compile(r"undeclared reference to '([^']*)'(?: \(in container ''\))?")
_CALLED: Final = re.compile(r"(\w+\.\w+)\s*\(")
_NOT_NUL: Final = "\N{REPLACEMENT CHARACTER}"
_NO_JSON: Final = frozenset({"TIMESTAMP", "DURATION", "BYTES"})
_AS_TEXT: Final = "string(…) makes a text of it"
_EXTENSIONS: Final = {"ext_strings": "ExtStrings", "ext_math": "ExtMath", "ext_optional": "ExtOptional"}


class _Activation(NamedTuple):
    """What programs are evaluated on. `asked` is for the functions that look beyond their arguments."""

    inner: Any
    asked: Asked


class CppEngine:
    """Set up once for its variables. An evaluation stops after 10,000 steps of comprehensions, and nesting at 32 levels."""

    name = "cel-expr-python"

    def __init__(self, variables: Mapping[str, str], library: Library) -> None:
        # Imported by name: the wheel may be absent, and then `ImportError` tells who opens an engine.
        cel = import_module("cel_expr_python.cel")
        extensions = [getattr(import_module(f"cel_expr_python.ext.{module}"), name)() for module, name in _EXTENSIONS.items()]
        types = _types(cel)
        self.variables = frozenset(variables)
        self._binding = Binding(library)
        self._library = library
        self._verdicts = (types["bool"], types["dyn"])
        self._env = cel.NewEnv(variables={name: types[kind] for name, kind in variables.items()}, extensions=extensions,
                               functions=[self._declared(cel, types, function) for function in FUNCTIONS])
        self._convert: Callable[[dict[str, Any]], Any] = self._env.Activation

    def _declared(self, cel: ModuleType, types: Mapping[str, Any], function: Function) -> Any:
        bound = self._binding.bound(function)

        def run(*arguments: Any) -> Any:
            return _whole(bound(*arguments))

        return cel.FunctionDecl(function.name, [
            cel.Overload(f"{function.name}_{style}_{'_'.join(taken)}", types[function.result], [types[kind] for kind in taken],
                         style == "member", run)
            for taken in function.overloads for style in function.styles])

    def activation(self, values: dict[str, Any], answers: Mapping[SessionQuery, Any]) -> _Activation:
        return _Activation(self._convert(_whole(values)), Asked(self._library, values.get("now"), answers))

    def load(self, source: str, *, verdict: bool = True) -> Program:
        try:
            expression = self._env.compile(source)
        except (RuntimeError, TypeError) as error:  # TypeError: a text that is not Unicode
            raise ExpressionError(*self._problems(str(error), source)) from error
        kind = expression.return_type()
        if verdict and kind not in self._verdicts:
            raise ExpressionError(CompileProblem(f"the expression gives {kind.name().lower()}, not bool"))
        if kind.name() in _NO_JSON:
            raise ExpressionError(CompileProblem(f"the expression gives {kind.name().lower()}, which JSON does not have", hint=_AS_TEXT))
        try:
            tree = read_tree(expression.serialize(), source)
        except ValueError as error:
            raise ExpressionError(CompileProblem(str(error))) from error
        calls = list(_calls(tree))
        queries, problems = examine(calls, self._library)
        if problems:
            raise ExpressionError(*problems)
        reads_now = any(call.function == READS_NOW for call in calls)
        names = {part.name.removeprefix(".") for part in walk(tree) if isinstance(part, Name)} | ({"now"} if reads_now else set())
        evaluate_on = _verdict(expression.eval) if verdict else _value(expression.eval)
        run = self._asking(evaluate_on) if queries or reads_now else lambda activation: evaluate_on(activation.inner)
        return Program(source, self.variables & names, run, queries, tree)

    def together(self, programs: Sequence[Program]) -> Callable[[Any], list[bool]] | None:
        # Each compiled on its own before, so none can close the bracket of another; the line break ends a comment.
        try:
            listed = self._env.compile(f"[{','.join(f'({program.source}{chr(10)})' for program in programs)}]")
        except RuntimeError:  # together they are over a limit of the parser
            return None

        def run(inner: Any) -> list[bool]:
            verdicts = listed.eval(inner).plain_value()
            if isinstance(verdicts, list) and all(isinstance(verdict, bool) for verdict in verdicts):
                return verdicts
            raise NoVerdictError("not a list of bools")

        asks = any(program.queries or "now" in program.names for program in programs)
        return self._asking(run) if asks else lambda activation: run(activation.inner)

    def _asking(self, evaluate_on: Callable[[Any], Any]) -> Callable[[_Activation], Any]:
        def run(activation: _Activation) -> Any:
            with self._binding.asking(activation.asked):
                return evaluate_on(activation.inner)

        return run

    def _problems(self, text: str, source: str) -> list[CompileProblem]:
        problems: list[CompileProblem] = []
        known = self.variables | STANDARD | EXTENSIONS | FUNCTION_OF.keys()
        methods: set[str] = set()
        for line, column, message in _PROBLEM.findall(text):
            name = _UNDECLARED.fullmatch(message)
            if name is None:
                problems.append(CompileProblem(message, max(int(line), 0), max(int(column), 0)))
                continue
            # `math.gratest(1)` is said to be two names: neither of them is what is misspelt.
            called = _CALLED.match([*source.split("\n"), ""][int(line) - 1], int(column) - 1) if name[1] in NAMESPACES else None
            if name[1] not in methods:
                problems.append(undeclared(called[1] if called else name[1], known, int(line), int(column)))
            methods = {called[1].partition(".")[2]} if called else set()
        return problems or [CompileProblem(text.partition("\n")[0])]


def _whole(value: Any) -> Any:
    """The value, with `_NOT_NUL` for every NUL: the binding ends a text there, and what comes after would be seen by no rule.

    Raises:
        ValueError: for more parts than can be read in the time that a decision may take.
    """
    todo = [value]
    for part in todo:  # grows on the way
        if isinstance(part, str):
            if "\0" in part:
                return _replaced(value)
        elif isinstance(part, dict):
            todo += part
            todo += part.values()
        elif isinstance(part, list):
            todo += part
        if len(todo) > MAX_PARTS:
            raise ValueError(f"there are more than {MAX_PARTS} values to read")
    return value


def _replaced(value: Any) -> Any:
    if isinstance(value, str):
        return value.replace("\0", _NOT_NUL)
    if isinstance(value, dict):
        return {_replaced(key): _replaced(held) for key, held in value.items()}
    return [_replaced(held) for held in value] if isinstance(value, list) else value


def _types(cel: ModuleType) -> dict[str, Any]:
    types = cel.Type
    return {"bool": types.BOOL, "int": types.INT, "double": types.DOUBLE, "string": types.STRING, "timestamp": types.TIMESTAMP,
            "duration": types.DURATION, "dyn": types.DYN, "list(string)": types.List(types.STRING), "list(dyn)": types.List(types.DYN),
            "map(string, string)": types.Map(types.STRING, types.STRING), "map(string, int)": types.Map(types.STRING, types.INT),
            "map(string, dyn)": types.Map(types.STRING, types.DYN)}


def _verdict(evaluate_on: Callable[[Any], Any]) -> Callable[[Any], bool]:
    def run(inner: Any) -> bool:
        result = evaluate_on(inner)
        value = result.value()
        if isinstance(value, bool):
            return value
        # An error comes as a value of type ERROR, or is raised: both end in a Fault.
        kind = result.type().name()
        raise NoVerdictError(value if kind == "ERROR" else f"the expression gives {kind.lower()}, not bool")

    return run


def _value(evaluate_on: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def run(inner: Any) -> Any:
        result = evaluate_on(inner)
        if result.type().name() == "ERROR":
            raise NoVerdictError(result.value())
        return result.plain_value()

    return run


def _calls(tree: Node) -> list[Call]:
    """The calls of the functions beyond CEL's own."""
    return [Call(part.function, tuple(map(_literally, children(part))), part.place)
            for part in walk(tree) if isinstance(part, Invoked) and part.function in FUNCTION_OF]


def _literally(node: Node) -> Literally:
    match node:
        case Const(value=str(text)):
            return text
        case Invoked(function="duration", arguments=(Const(value=str(text)),)):
            return literal_duration(text)
        case _:
            return None
