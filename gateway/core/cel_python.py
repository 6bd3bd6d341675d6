"""`cel-python`: pure Python, for platforms where the first engine has no wheel, and the oracle in tests.

Knows no types at load, so names are checked on the parse tree and the rest shows at evaluation; has no limit on steps. It interprets:
the library's compiling runner fails on `has(x) && …`, and breaks where an interpreting environment was made first in the process.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from importlib import import_module
from types import ModuleType
from typing import Any, Final

import re2

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
    compiled,
    examine,
    literal_duration,
)
from gateway.core.program import CompileProblem, ExpressionError, Library, NoVerdictError, Program, undeclared
from gateway.session import SessionQuery

_BINDING: Final = frozenset({"all", "exists", "exists_one", "filter", "map"})  # their first argument is a new name
_TYPES: Final = frozenset({"bool", "bytes", "double", "int", "list", "map", "null_type", "string", "type", "uint"})
_CALLS: Final = frozenset({"ident_arg", "dot_ident_arg", "member_dot_arg"})
_OPTIONAL: Final = re.compile(r"\.\?|\[\s*\?|\{\s*\?")
_STRING_LITERAL: Final = re.compile(r"""[rR]?(?:"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*')""")
_INSTEAD: Final = 'do without it, or set policy.engine = "cel-expr-python"'


@dataclass(frozen=True, slots=True)
class _Reference:
    """A name that no comprehension binds, `a.b.c`; or a call, with its arguments (the receiver of a member function first)."""

    token: Any
    name: str
    style: str = ""
    arguments: tuple[Any, ...] = ()
    call: Any = None


class _Converted(dict[str, Any]):
    """Values in cel-python's own types, each converted when a program first reads it."""

    def __init__(self, convert: Callable[[Any], Any], values: dict[str, Any], asked: Asked) -> None:
        super().__init__()
        self._convert = convert
        self._values = values
        self.asked = asked

    def knows(self, name: str) -> bool:
        """Whether there is a value of this name."""
        return name in self._values

    def __missing__(self, name: str) -> Any:
        converted = self[name] = self._convert(self._values[name])
        return converted


class PythonEngine:
    """Set up once for its variables."""

    name = "cel-python"

    def __init__(self, variables: Mapping[str, str], library: Library) -> None:
        # Imported by name: it takes 0.1 s, which is for nothing where the first engine is there.
        self._celpy = import_module("celpy")
        self.variables = frozenset(variables)
        self._holding = frozenset(name for name, kind in variables.items() if kind == "dyn" or kind.startswith("map"))
        self._env = self._celpy.Environment()
        self._library = library
        self._binding = Binding(library)
        self._functions = {**_strict_functions(self._celpy), **_extensions(self._celpy),
                           **{function.name: self._own(function) for function in FUNCTIONS}}

    def together(self, programs: Sequence[Program]) -> None:
        """Nothing is won: every program is interpreted anyway."""

    def activation(self, values: dict[str, Any], answers: Mapping[SessionQuery, Any]) -> _Converted:
        return _Converted(self._celpy.json_to_cel, values, Asked(self._library, values.get("now"), answers))

    def load(self, source: str, *, verdict: bool = True) -> Program:
        try:
            tree = self._env.compile(source)
        except self._celpy.CELParseError as error:
            if _OPTIONAL.search(_STRING_LITERAL.sub("", source)):
                raise ExpressionError(CompileProblem(f"{self.name} does not have optional fields (`.?`)", hint=_INSTEAD)) from error
            raise ExpressionError(CompileProblem("syntax error", error.line or 0, error.column or 0)) from error
        _join_namespaces(tree)
        references = list(_references(tree))
        problems = [problem for reference in references if (problem := self._refused(reference))]
        calls = [Call(each.name, tuple(map(self._literally, each.arguments)), (each.token.line, each.token.column))
                 for each in references if each.style and each.name in FUNCTION_OF]
        queries, refused = examine(calls, self._library)
        if problems or refused:
            raise ExpressionError(*sorted({*problems, *refused}, key=lambda problem: (problem.line, problem.column)))
        names = {self._declared(reference.name) for reference in references if not reference.style}
        if any(call.function == READS_NOW for call in calls):
            names.add("now")
        for reference in references:
            if reference.style == "global" and reference.name in _CONVERTED:
                reference.call.children[0] = reference.token.update(value=f"@{reference.name}")
        run = self._run(tree, self.variables & names)
        return Program(source, self.variables & names, self._verdict(run) if verdict else run, queries)

    def _refused(self, reference: _Reference) -> CompileProblem | None:
        """What is wrong with a reference, if anything."""
        place = (reference.token.line, reference.token.column)
        name = reference.name
        if reference.style:
            function = FUNCTION_OF.get(name)
            if name in STANDARD or name in _EXTENSIONS or (function and reference.style in function.styles):
                return None
            if name in EXTENSIONS:
                return CompileProblem(f"{self.name} does not have the function {name}", *place, _INSTEAD)
        elif self._declared(name) or name in _TYPES:
            return None
        return undeclared(name, self.variables | STANDARD | EXTENSIONS | FUNCTION_OF.keys(), *place)

    def _declared(self, path: str) -> str:
        """The declared variable that a dotted path starts with; an empty text if there is none."""
        parts = path.split(".")
        prefixes = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
        return next((prefix for prefix in prefixes if prefix in self.variables), "")

    def _literally(self, node: Any) -> Literally:
        """The text, or the time of `duration("…")`, that an argument is."""
        while len(node.children) == 1 and hasattr(node.children[0], "data"):
            node = node.children[0]
        if node.data == "literal" and node.children[0].type in {"STRING_LIT", "MLSTRING_LIT"}:
            return str(self._env.program(node).evaluate({}))
        if node.data == "ident_arg" and node.children[0] == "duration" and len(node.children) == 2:
            text = self._literally(node.children[1])
            return literal_duration(text) if isinstance(text, str) else None
        return None

    def _run(self, tree: Any, names: frozenset[str]) -> Callable[[_Converted], Any]:
        """What evaluates a tree; its values are Python's own as far as JSON has them."""
        evaluate_on = self._env.program(tree, functions=self._functions).evaluate
        absent = self._celpy.CELEvalError("no value")

        def run(activation: _Converted) -> Any:
            # Every name is converted first: a missing one that holds fields must not look like a field that is not there.
            values = {name: activation[name] if name in self._holding or activation.knows(name) else absent for name in names}
            with self._binding.asking(activation.asked):
                return _plain(self._celpy.celtypes, evaluate_on(values))

        return run

    @staticmethod
    def _verdict(run: Callable[[_Converted], Any]) -> Callable[[_Converted], bool]:
        def judged(activation: _Converted) -> bool:
            value = run(activation)
            if isinstance(value, bool):
                return value
            raise NoVerdictError(f"the expression gives {type(value).__name__}, not bool")

        return judged

    def _own(self, function: Function) -> Callable[..., Any]:
        """One of the functions beyond CEL's own; its errors are values, as all of the library's are."""
        bound, convert, fault = self._binding.bound(function), self._celpy.json_to_cel, self._celpy.CELEvalError
        overloads = [tuple(_kind(self._celpy, name) for name in types) for types in function.overloads]

        def run(*arguments: Any) -> Any:
            _fit(arguments, overloads)
            try:
                return convert(bound(*arguments))
            except ValueError as error:
                return fault(str(error))

        return run


def _plain(types: ModuleType, value: Any) -> Any:
    """A value of the library's in Python's own types, where JSON has it; else as it is."""
    if isinstance(value, types.BoolType):
        return bool(value)
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        return str(value) if isinstance(value, str) else _native(value)
    if isinstance(value, list):
        return [_plain(types, each) for each in value]
    if isinstance(value, dict):
        return {_plain(types, name): _plain(types, each) for name, each in value.items()}
    return value


def _kind(celpy: ModuleType, name: str) -> type:
    """What a value of a CEL type is an instance of. Some operators of the library give Python's own types back."""
    types = celpy.celtypes
    kinds: Mapping[str, type] = {
        "string": str, "bytes": bytes, "timestamp": datetime, "duration": timedelta, "int": types.IntType, "uint": types.UintType,
        "double": types.DoubleType, "bool": types.BoolType, "list": list}
    return kinds[name]


def _fit(arguments: Sequence[Any], overloads: Sequence[tuple[type, ...]]) -> None:
    if not any(len(arguments) == len(types) and all(map(isinstance, arguments, types)) for types in overloads):
        raise TypeError("no such overload")  # the library makes its own error of this one


def _strict_functions(celpy: ModuleType) -> dict[str, Callable[..., Any]]:
    """The library's functions with CEL's own idea of what they take.

    By itself it finds text `in` lists, compares a bool with a number and makes a number of null: a verdict where CEL has another or an
    error, so that a rule would not fail closed. Conversions have an `@` in their names here: without it they are types.
    """
    types, functions = celpy.celtypes, celpy.base_functions
    texts = dict.fromkeys(("startsWith", "endsWith"), (str,))
    sized = {"size": (str, types.BytesType, types.ListType, types.MapType)}
    strict = {name: _taking(functions[name], kinds) for name, kinds in {**texts, **sized}.items()}
    strict |= {name: _ordered(celpy, functions[name]) for name in ("_<_", "_<=_", "_>_", "_>=_")}
    strict |= {name: _first_fault(celpy, functions[name]) for name in ("_&&_", "_||_")}
    strict |= {f"@{name}": _taking(functions[name], tuple(_kind(celpy, kind) for kind in kinds)) for name, kinds in _CONVERTED.items()}
    strict |= {"_==_": _compared(celpy, equal=True), "_!=_": _compared(celpy, equal=False), "_in_": partial(_within, celpy)}
    return strict | {"contains": _taking(partial(_contains, celpy), (str,)), "matches": _taking(partial(_matches, celpy), (str,))}


def _first_fault(celpy: ModuleType, function: Callable[..., Any]) -> Callable[..., Any]:
    def joined(left: Any, right: Any) -> Any:
        faults = isinstance(left, celpy.CELEvalError) and isinstance(right, celpy.CELEvalError)
        return left if faults else function(left, right)

    return joined


def _equal(types: ModuleType, left: Any, right: Any) -> bool:
    """CEL's own idea: numbers of any type compare, and values of different types differ."""
    if isinstance(left, types.BoolType) or isinstance(right, types.BoolType):
        return type(left) is type(right) and bool(left) is bool(right)
    if isinstance(left, int | float) and isinstance(right, int | float):
        return bool(_native(left) == _native(right))
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(_equal(types, one, other) for one, other in zip(left, right, strict=True))
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(_equal(types, left[key], right[key]) for key in left)
    alike = left is right or any(isinstance(left, kind) and isinstance(right, kind) for kind in (str, bytes, datetime, timedelta))
    return alike and bool(left == right)


def _native(number: Any) -> int | float:
    """The library's own numbers do not compare with those of another type."""
    return float(number) if isinstance(number, float) else int(number)


def _compared(celpy: ModuleType, *, equal: bool) -> Callable[..., Any]:
    def compared(left: Any, right: Any) -> Any:
        fault = next((value for value in (left, right) if isinstance(value, celpy.CELEvalError)), None)
        return fault or celpy.celtypes.BoolType(_equal(celpy.celtypes, left, right) is equal)

    return compared


def _within(celpy: ModuleType, item: Any, container: Any) -> Any:
    fault = next((value for value in (item, container) if isinstance(value, celpy.CELEvalError)), None)
    if not isinstance(container, list | dict):
        return fault or celpy.CELEvalError("no such overload")
    return fault or celpy.celtypes.BoolType(any(_equal(celpy.celtypes, item, each) for each in container))


def _ordered(celpy: ModuleType, function: Callable[..., Any]) -> Callable[..., Any]:
    def ordered(left: Any, right: Any) -> Any:
        bools = [isinstance(value, celpy.celtypes.BoolType) for value in (left, right)]
        if bools[0] is not bools[1]:
            raise TypeError("no such overload")
        numbers = isinstance(left, int | float) and isinstance(right, int | float) and not bools[0]
        return function(_native(left), _native(right)) if numbers else function(left, right)

    return ordered


def _contains(celpy: ModuleType, text: str, part: Any) -> Any:
    return celpy.celtypes.BoolType(part in text)


def _matches(celpy: ModuleType, text: str, pattern: str) -> Any:
    try:
        return celpy.celtypes.BoolType(compiled(pattern).search(text) is not None)
    except re2.error:
        return celpy.CELEvalError("RE2 does not take the pattern")


def _taking(function: Callable[..., Any], kinds: tuple[type, ...]) -> Callable[..., Any]:
    def checked(first: Any, *others: Any) -> Any:
        if not isinstance(first, kinds):
            raise TypeError("no such overload")
        return function(first, *others)

    return checked


def _substring(text: str, start: int, end: int | None = None) -> str:
    end = len(text) if end is None else end
    if not 0 <= start <= end <= len(text):
        raise ValueError("the range is outside the text")
    return text[start:end]


# What conversions take.
_NUMBERS: Final = ("int", "uint", "double", "string")
_CONVERTED: Final[Mapping[str, tuple[str, ...]]] = {
    "int": (*_NUMBERS, "timestamp"), "uint": _NUMBERS, "double": _NUMBERS, "bool": ("bool", "string"), "bytes": ("bytes", "string"),
    "string": (*_NUMBERS, "bool", "bytes", "timestamp", "duration"), "timestamp": ("timestamp", "string", "int"),
    "duration": ("duration", "string")}

# Of CEL's extensions, those that rules need most: the kinds of arguments, and what does it.
_EXTENSIONS: Final[Mapping[str, tuple[tuple[tuple[str, ...], ...], Callable[..., Any]]]] = {
    "lowerAscii": ((("string",),), lambda text: text.encode().lower().decode()),  # of bytes, only ASCII has a lower case
    "upperAscii": ((("string",),), lambda text: text.encode().upper().decode()),
    "replace": ((("string", "string", "string"),), str.replace),
    "split": ((("string", "string"),), lambda text, by: text.split(by) if by else list(text)),
    "join": ((("list",), ("list", "string")), lambda texts, by="": by.join(texts)),
    "indexOf": ((("string", "string"),), str.find),
    "substring": ((("string", "int"), ("string", "int", "int")), _substring),
    "math.greatest": ((("int", "int"), ("double", "double")), max),
    "math.least": ((("int", "int"), ("double", "double")), min),
    "math.abs": ((("int",), ("double",)), abs),
}


def _extensions(celpy: ModuleType) -> dict[str, Callable[..., Any]]:
    def run(overloads: Sequence[tuple[type, ...]], function: Callable[..., Any], *arguments: Any) -> Any:
        _fit(arguments, overloads)
        return celpy.json_to_cel(function(*arguments))

    return {name: partial(run, [tuple(_kind(celpy, kind) for kind in kinds) for kinds in overloads], function)
            for name, (overloads, function) in _EXTENSIONS.items()}


def _join_namespaces(tree: Any) -> None:
    """Make `math.greatest(…)` the call of one function: the library would look for a method of a variable `math`."""
    for node in tree.iter_subtrees():
        called = node.children[0] if node.data == "member" else None
        if called is None or called.data != "member_dot_arg":
            continue
        namespace = _dotted(called.children[0])
        if namespace and namespace[1] in NAMESPACES:
            called.data = "ident_arg"
            called.children = [namespace[0].update(value=f"{namespace[1]}.{called.children[1]}"), *called.children[2:]]
            node.children = [type(node)("primary", [called], called.meta)]


def _references(tree: Any) -> Iterator[_Reference]:
    """Every reference of an expression. Keeps its own stack, because an expression may nest deeper than Python's."""
    todo: list[tuple[Any, frozenset[str]]] = [(tree, frozenset())]
    while todo:
        node, bound = todo.pop()
        found = _dotted(node)
        if found:
            if found[1].partition(".")[0] not in bound:
                yield _Reference(*found)
            continue
        children = getattr(node, "children", [])
        if getattr(node, "data", "") in _CALLS:
            called = next(child for child in children if not hasattr(child, "data"))
            listed = children[-1].children if hasattr(children[-1], "data") and children[-1].data == "exprlist" else []
            member = node.data == "member_dot_arg"
            arguments = (*children[:1], *listed) if member else tuple(listed)
            yield _Reference(called, str(called), "member" if member else "global", arguments, node)
            if called in _BINDING and len(children) == 3:
                todo.append((children[0], bound))
                variable, *children = listed
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
