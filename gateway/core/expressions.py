"""CEL: compile, check types, find the names an expression reads, evaluate. The only module that imports a CEL library.

Two engines stand behind one interface: the CEL project's own C++ runtime, which checks types, and a pure Python one
without a type check or a cost limit, for platforms where the first has no wheel and as the oracle in tests. An engine
and its programs belong to one thread at a time.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from importlib import import_module
from types import ModuleType
from typing import Any, Final, Protocol, TypeVar

MAX_SOURCE_BYTES: Final = 4096
MAX_FAULT_CHARACTERS: Final = 200

Value = TypeVar("Value")

# What both engines have, so that a rule means the same on either.
_FUNCTIONS: Final = frozenset({
    "all", "bool", "bytes", "contains", "double", "duration", "dyn", "endsWith", "exists", "exists_one", "filter",
    "getDate", "getDayOfMonth", "getDayOfWeek", "getDayOfYear", "getFullYear", "getHours", "getMilliseconds",
    "getMinutes", "getMonth", "getSeconds", "has", "int", "map", "matches", "size", "startsWith", "string",
    "timestamp", "type", "uint"})
_BINDING: Final = frozenset({"all", "exists", "exists_one", "filter", "map"})  # their first argument is a new name
_TYPES: Final = frozenset({
    "bool", "bytes", "double", "int", "list", "map", "null_type", "string", "type", "uint"})

_CPP_PROBLEM: Final = re.compile(r"^(?:\w+: )?ERROR: <input>:(\d+):(\d+): (.*?)(?: \[\w+\])?$", re.MULTILINE)
_UNDECLARED: Final = re.compile(r"undeclared reference to '([^']*)'(?: \(in container ''\))?")
_QUOTED: Final = re.compile(r"""(["'])(.*?)\1""", re.DOTALL)
_MIXED_NUMBERS: Final = re.compile(r"'_(?:[<>]=?|[!=]=|[-+*/])_' applied to '\((?:int, double|double, int)\)'")
_STRING_LITERAL: Final = re.compile(r"""[rR]?(?:"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*')""")
_FOREIGN: Final = re.compile(r"\b(?:and|or|not|AND|OR|NOT)\b|(?<![=!<>])=(?!=)")  # how other languages write it
_LITERAL_PATTERN: Final = re.compile(
    r"""\bmatches\s*\((?:[\s\w.]+,)?\s*([rR]?(?:"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*'))\s*\)""")


@dataclass(frozen=True, slots=True)
class CompileProblem:
    """One bad thing in an expression. `line` and `column` count from 1; 0 stands for the expression as a whole."""

    message: str
    line: int = 0
    column: int = 0
    hint: str | None = None

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


class _NoVerdictError(ValueError):
    """The engine answered, but with neither true nor false."""


@dataclass(frozen=True, slots=True)
class Fault:
    """An evaluation that gave no verdict, and why."""

    text: str


@dataclass(frozen=True, slots=True)
class Program:
    """A compiled expression. `names` are the variables that it may read.

    `run` takes what the engine's `activation` made and may raise anything: engines work on what a client sent. Only
    `evaluate` calls it.
    """

    source: str
    names: frozenset[str]
    run: Callable[[Any], bool] = field(repr=False)


class Engine(Protocol):
    """A CEL implementation, set up for a fixed set of typed variables."""

    name: str
    variables: frozenset[str]

    def load(self, source: str) -> Program:
        """Parse and check. Raises `ExpressionError`."""

    def together(self, programs: Sequence[Program]) -> Callable[[Any], list[bool]] | None:
        """One cheaper step for the verdicts of all; it raises where any has trouble, and then each is to be asked alone."""

    def activation(self, values: dict[str, Any]) -> Any:
        """What programs read their variables from; made once for all programs of a decision. Values convert lazily."""


def open_engine(choice: str, variables: Mapping[str, str]) -> Engine:
    """The engine that `policy.engine` names, for these variables (name to CEL type); `auto` takes the best there is.

    Raises:
        ImportError: for an engine that was named and is not installed.
    """
    # Imported by name here and not at the top: either wheel may be absent, and cel-python alone takes 0.1 s.
    if choice != "cel-python":
        try:
            return _CppEngine(import_module("cel_expr_python.cel"), variables)
        except ImportError:
            if choice != "auto":
                raise
    return _PythonEngine(import_module("celpy"), variables)


def compile_expression(engine: Engine, source: str) -> Program:
    """A program whose result is a bool as far as the engine knows types.

    Raises:
        ExpressionError: with every problem found: too long, wrong syntax or types, undeclared names, a regular
            expression that RE2 does not take where it stands in the source.
    """
    if len(source.encode("utf-8", "surrogatepass")) > MAX_SOURCE_BYTES:
        raise ExpressionError(CompileProblem(f"the expression is longer than {MAX_SOURCE_BYTES} bytes"))
    try:
        program = engine.load(source)
    except ExpressionError as error:
        raise ExpressionError(*(replace(problem, hint=problem.hint or _hint(problem.message, source))
                                for problem in error.problems)) from error
    refused = [CompileProblem(f"RE2 does not take the pattern {pattern[1]}", *_place(source, pattern.start(1)))
               for pattern in _LITERAL_PATTERN.finditer(source) if not _is_regex(engine, pattern[1])]
    if refused:
        raise ExpressionError(*refused)
    return program


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
    return isinstance(program, Fault) or not isinstance(evaluate(program, engine.activation({})), Fault)


def _place(source: str, offset: int) -> tuple[int, int]:
    return source.count("\n", 0, offset) + 1, offset - source.rfind("\n", 0, offset)


def _undeclared(name: str, known: frozenset[str], line: int, column: int) -> CompileProblem:
    near = get_close_matches(name, sorted((known | _FUNCTIONS) - {name}), 1)
    hint = f"did you mean {near[0]!r}?" if near else None
    return CompileProblem(f"undeclared reference to '{name}'", line, column, hint)


class _CppEngine:
    """`cel-expr-python`: checks types at load, converts a value when it is first read, stops at 10,000 iterations."""

    name = "cel-expr-python"

    def __init__(self, cel: ModuleType, variables: Mapping[str, str]) -> None:
        types = cel.Type
        declared = {
            "bool": types.BOOL, "int": types.INT, "string": types.STRING, "timestamp": types.TIMESTAMP,
            "list(string)": types.List(types.STRING), "list(dyn)": types.List(types.DYN),
            "map(string, string)": types.Map(types.STRING, types.STRING),
            "map(string, dyn)": types.Map(types.STRING, types.DYN)}
        self.variables = frozenset(variables)
        self._verdicts = (types.BOOL, types.DYN)
        self._env = cel.NewEnv(variables={name: declared[kind] for name, kind in variables.items()})
        self.activation: Callable[[dict[str, Any]], Any] = self._env.Activation

    def load(self, source: str) -> Program:
        try:
            expression = self._env.compile(source)
        except (RuntimeError, TypeError) as error:  # TypeError: a text that is not Unicode
            raise ExpressionError(*self._problems(str(error))) from error
        kind = expression.return_type()
        if kind not in self._verdicts:
            raise ExpressionError(CompileProblem(f"the expression gives {kind.name().lower()}, not bool"))
        return Program(source, self._names(expression.serialize()), _cpp_run(expression.eval))

    def together(self, programs: Sequence[Program]) -> Callable[[Any], list[bool]] | None:
        # Each compiled on its own before, so none can close the bracket of another; the line break ends a comment.
        try:
            listed = self._env.compile(f"[{','.join(f'({program.source}{chr(10)})' for program in programs)}]")
        except RuntimeError:  # together they are over a limit of the parser
            return None

        def run(activation: Any) -> list[bool]:
            verdicts = listed.eval(activation).plain_value()
            if isinstance(verdicts, list) and all(isinstance(verdict, bool) for verdict in verdicts):
                return verdicts
            raise _NoVerdictError("not a list of bools")

        return run

    def _names(self, checked: bytes) -> frozenset[str]:
        """The variables that stand in a serialised `cel.expr.CheckedExpr`.

        An identifier is a message whose field 1 is its name: tag, length, text. Looking for those bytes needs no
        protobuf library and misses none; a name found by accident only means one value more in the activation.
        """
        return frozenset(name for name in self.variables if bytes((10, len(name))) + name.encode() in checked)

    def _problems(self, text: str) -> list[CompileProblem]:
        problems = []
        for line, column, message in _CPP_PROBLEM.findall(text):
            name = _UNDECLARED.fullmatch(message)
            problems.append(_undeclared(name[1], self.variables, int(line), int(column)) if name
                            else CompileProblem(message, int(line), int(column)))
        return problems or [CompileProblem(text.partition("\n")[0])]


def _cpp_run(evaluate_on: Callable[[Any], Any]) -> Callable[[Any], bool]:
    def run(activation: Any) -> bool:
        result = evaluate_on(activation)
        value = result.value()
        if isinstance(value, bool):
            return value
        # An error comes as a value of type ERROR, or is raised: both end in a Fault.
        kind = result.type().name()
        raise _NoVerdictError(value if kind == "ERROR" else f"the expression gives {kind.lower()}, not bool")

    return run


class _Converted(dict[str, Any]):
    """Values in cel-python's own types, each converted when a program first reads it."""

    def __init__(self, convert: Callable[[Any], Any], values: dict[str, Any]) -> None:
        super().__init__()
        self._convert = convert
        self._values = values

    def __missing__(self, name: str) -> Any:
        converted = self[name] = self._convert(self._values[name])
        return converted


class _PythonEngine:
    """`cel-python`: knows no types at load, so names are checked on the parse tree and the rest shows at evaluation.

    It interprets: the library's compiling runner fails on `has(x) && …`, and breaks where an interpreting environment
    was made first in the process, because its parser is shared by all environments.
    """

    name = "cel-python"

    def __init__(self, celpy: ModuleType, variables: Mapping[str, str]) -> None:
        self.variables = frozenset(variables)
        self._celpy = celpy
        self._env = celpy.Environment()
        self._functions = _strict_functions(celpy)

    def together(self, programs: Sequence[Program]) -> None:
        """Nothing is won: every program is interpreted anyway."""

    def activation(self, values: dict[str, Any]) -> _Converted:
        return _Converted(self._celpy.json_to_cel, values)

    def load(self, source: str) -> Program:
        try:
            tree = self._env.compile(source)
        except self._celpy.CELParseError as error:
            raise ExpressionError(CompileProblem("syntax error", error.line or 0, error.column or 0)) from error
        known = {(token, path): self._known(path) for token, path in _references(tree)}
        problems = [_undeclared(path.removesuffix("()"), self.variables, token.line, token.column)
                    for (token, path), name in known.items() if name is None]
        if problems:
            raise ExpressionError(*sorted(problems, key=lambda problem: (problem.line, problem.column)))
        return self._program(source, tree, self.variables.intersection(known.values()))

    def _known(self, path: str) -> str | None:
        """The declared variable that a dotted path starts with, or the function or type that it is."""
        if path.endswith("()"):
            return path if path[:-2] in _FUNCTIONS else None
        parts = path.split(".")
        prefixes = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
        declared = next((prefix for prefix in prefixes if prefix in self.variables), None)
        return declared or (path if path in _TYPES else None)

    def _program(self, source: str, tree: Any, names: frozenset[str]) -> Program:
        evaluate_on = self._env.program(tree, functions=self._functions).evaluate
        truths = (bool, self._celpy.celtypes.BoolType)

        def run(activation: _Converted) -> bool:
            # Every name is converted first: a missing one must not look like a field that is not there.
            value = evaluate_on({name: activation[name] for name in names})
            if isinstance(value, truths):
                return bool(value)
            raise _NoVerdictError(f"the expression gives {type(value).__name__}, not bool")

        return Program(source, names, run)


def _strict_functions(celpy: ModuleType) -> dict[str, Callable[..., Any]]:
    """The library's functions with CEL's own idea of what they take.

    By itself it finds text `in` lists and compares a bool with a number: a verdict where CEL has an error, so that a rule
    would not fail closed. Conversions stay as they are, because a type's name is its function too.
    """
    types, functions = celpy.celtypes, celpy.base_functions
    texts = dict.fromkeys(("contains", "startsWith", "endsWith", "matches"), (types.StringType,))
    sized = {"size": (types.StringType, types.BytesType, types.ListType, types.MapType)}
    strict = {name: _taking(functions[name], kinds) for name, kinds in {**texts, **sized}.items()}
    return strict | {name: _alike(functions[name], types.BoolType) for name in ("_<_", "_<=_", "_>_", "_>=_")}


def _taking(function: Callable[..., Any], kinds: tuple[type, ...]) -> Callable[..., Any]:
    def checked(first: Any, *others: Any) -> Any:
        if not isinstance(first, kinds):
            raise TypeError("no such overload")  # the library makes its own error of this one
        return function(first, *others)

    return checked


def _alike(function: Callable[..., Any], kind: type) -> Callable[..., Any]:
    def checked(left: Any, right: Any) -> Any:
        if isinstance(left, kind) is not isinstance(right, kind):
            raise TypeError("no such overload")
        return function(left, right)

    return checked


def _references(tree: Any) -> Iterator[tuple[Any, str]]:
    """Every name that no comprehension binds, with its token: `a.b.c`, or `f()` for a function.

    Keeps its own stack, because an expression may nest deeper than Python's.
    """
    todo: list[tuple[Any, frozenset[str]]] = [(tree, frozenset())]
    while todo:
        node, bound = todo.pop()
        found = _dotted(node)
        if found:
            if found[1].partition(".")[0] not in bound:
                yield found
            continue
        children = getattr(node, "children", [])
        if getattr(node, "data", "") in {"ident_arg", "dot_ident_arg", "member_dot_arg"}:
            called = next(child for child in children if not hasattr(child, "data"))
            yield called, f"{called}()"
            if called in _BINDING and len(children) == 3:
                todo.append((children[0], bound))
                variable, *children = children[2].children
                bound |= {(_dotted(variable) or ("", ""))[1]}
        todo.extend((child, bound) for child in children)


def _dotted(node: Any) -> tuple[Any, str] | None:
    """The token and text of `a.b.c`, through the levels of the grammar that hold nothing else."""
    fields: list[str] = []
    while hasattr(node, "data"):
        if node.data == "member_dot":
            fields.append(node.children[1])
        elif node.data in {"ident", "dot_ident"}:
            return node.children[0], ".".join((node.children[0], *reversed(fields)))
        elif len(node.children) != 1:
            return None
        node = node.children[0]
    return None
