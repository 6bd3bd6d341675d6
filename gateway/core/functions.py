"""The functions that rules may call beyond CEL's own: one list for both engines, the checks at load, and the documentation.

Functions have no side effects. Whatever one raises is an error of the rule that called it; its text quotes no argument.
"""

import hashlib
import ipaddress
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from difflib import get_close_matches
from fnmatch import translate
from typing import Any, Final, Literal, NamedTuple, TypeAlias, TypeVar

import re2

from gateway.core.checked_tree import Place
from gateway.core.decision import PHASES, Phase
from gateway.core.program import CompileProblem, Library
from gateway.core.redaction import found_in
from gateway.session import SessionFunction, SessionQuery
from gateway.units import parse_usd

Done = TypeVar("Done")
Literally: TypeAlias = str | timedelta | None  # an argument as it stands in the source; None for one that is only known later

MAX_GLOB: Final = 256
_LONGEST_NAME: Final = 256
_LONGEST: Final = timedelta(days=366)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_NANO: Final = 10**9
_GLOB_PART: Final = re.compile(r"\*+|\?|\[!?\]?[^\]]*\]|[^*?\[]+|\[")
_DURATION: Final = re.compile(r"-?(?:\d{1,12}(?:\.\d{0,9})?(?:ns|us|ms|s|m|h))+", re.ASCII)
_DURATION_PART: Final = re.compile(r"([\d.]+)(ns|us|ms|s|m|h)", re.ASCII)
_MICROSECONDS: Final = {"ns": 0.001, "us": 1, "ms": 1000, "s": 10**6, "m": 60 * 10**6, "h": 3600 * 10**6}
_PATH: Final = re.compile(r"(?:args|result)(?:\.[A-Za-z_]\w*)+", re.ASCII)


class Moment(datetime):
    """A time within an object. The first engine takes one only where its type is declared, or told as a protobuf message tells it."""

    class DESCRIPTOR:
        """Where that engine looks."""

        full_name = "google.protobuf.Timestamp"


class Asked(NamedTuple):
    """What functions read beside their arguments: the library, and what an activation knows."""

    library: Library
    now: datetime | None = None
    answers: Mapping[SessionQuery, Any] | None = None


@dataclass(frozen=True, slots=True)
class Function:
    """A function. `overloads` are the types of its arguments; `styles` whether it is written `f(x)`, `x.f()` or both.

    `run` takes what was `Asked` and the arguments. `verify` takes the library and the arguments as they stand in the source, and raises
    `ValueError` for what can be seen to be wrong at load. `literal`: all arguments have to stand in the source.
    """

    name: str
    overloads: tuple[tuple[str, ...], ...]
    result: str
    doc: str
    example: str
    run: Callable[..., Any]
    verify: Callable[..., object] | None = None
    styles: tuple[Literal["global", "member"], ...] = ("global",)
    phases: tuple[Phase, ...] = PHASES
    literal: bool = False
    of_session: SessionFunction | None = None

    def signatures(self) -> Iterator[str]:
        """How it is called: `string.glob(string) -> bool`."""
        for types in self.overloads:
            for style in self.styles:
                receiver, taken = (f"{types[0]}.", types[1:]) if style == "member" else ("", types)
                yield f"{receiver}{self.name}({', '.join(taken)}) -> {self.result}"


@dataclass(frozen=True, slots=True)
class Call:
    """A call of one of these functions in an expression, with its arguments (the receiver of a member function first)."""

    function: str
    arguments: tuple[Literally, ...]
    place: Place


def compiled(pattern: str) -> Any:
    """A pattern on RE2, kept by its own cache. What RE2 says of a bad one is raised and not written to the log: it quotes a caller."""
    options = re2.Options()
    options.log_errors = False
    return re2.compile(pattern, options)


def _glob(_: Asked, text: str, pattern: str) -> bool:
    if len(pattern) > MAX_GLOB:
        raise ValueError(f"a glob is longer than {MAX_GLOB} characters")
    if "?" in pattern or "[" in pattern:
        return _glob_on_re2(pattern).fullmatch(text) is not None
    return _fits(text, pattern.split("*"))


def _fits(text: str, parts: list[str]) -> bool:
    """Whether a text consists of these parts in order with anything between them: RE2 through Python takes ten times as long."""
    if len(parts) == 1:
        return text == parts[0]
    first, *middle, last = parts
    if len(text) < len(first) + len(last) or not (text.startswith(first) and text.endswith(last)):
        return False
    at, end = len(first), len(text) - len(last)
    for part in middle:
        found = text.find(part, at, end)
        if found < 0:
            return False
        at = found + len(part)
    return True


def _glob_on_re2(pattern: str) -> Any:
    """A glob on RE2, since it may come from a caller: the same texts fit it as in `match`. RE2's own cache keeps it."""
    parts = []
    for part in _GLOB_PART.findall(pattern):
        if part[0] in "*?":
            parts.append(".*" if part[0] == "*" else ".")
        elif part[0] == "[" and len(part) > 1:
            parts.append(translate(part).partition(":")[2].rpartition(")")[0])  # of `(?s:[abc])` and an end
        else:
            parts.append(re2.escape(part))
    try:
        return compiled(f"(?s:{''.join(parts)})")
    except re2.error as error:
        raise ValueError("this is no glob: the ranges of a set go up, [a-z]") from error


def _verify_glob(library: Library, _: Literally, pattern: Literally) -> None:
    if isinstance(pattern, str):
        _glob(Asked(library), "", pattern)


def _cidr(_: Asked, address: str, network: str) -> bool:
    return _address(address) in _network(network)


def _address(written: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """An IPv4 address that is written as an IPv6 one is that IPv4 address: else it would get round a rule."""
    try:
        address = ipaddress.ip_address(written)
    except ValueError as error:
        raise ValueError("this is no IP address") from error
    return (address.ipv4_mapped or address) if isinstance(address, ipaddress.IPv6Address) else address


def _network(written: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    try:
        return ipaddress.ip_network(written)
    except ValueError as error:
        raise ValueError('this is no network: write it like "10.0.0.0/8", with no bit set after the prefix') from error


def _verify_cidr(_: Library, address: Literally, network: Literally) -> None:
    if isinstance(address, str):
        _address(address)
    if isinstance(network, str):
        _network(network)


def _in_list(asked: Asked, item: str, name: str) -> bool:
    return item in _list(asked.library, name)


def _list(library: Library, name: str) -> frozenset[str]:
    if name not in library.lists:
        near = get_close_matches(name, sorted(library.lists), 1)
        known = f"; there is {', '.join(sorted(library.lists))}" if library.lists else ""
        hint = f"did you mean {near[0]!r}?" if near else f"a list is a file policies/lists/NAME.txt{known}"
        raise ValueError(f"there is no such list; {hint}")
    return library.lists[name]


def _verify_list(library: Library, _: Literally, name: Literally) -> None:
    if isinstance(name, str):
        _list(library, name)


def _usd(_: Asked, amount: str) -> int:
    nano = parse_usd(amount) * _NANO
    if nano.denominator != 1:
        raise ValueError("an amount of money has at most nine decimals")
    return nano.numerator


def _verify_usd(library: Library, amount: Literally) -> None:
    if isinstance(amount, str):
        _usd(Asked(library), amount)


def _age(asked: Asked, then: datetime) -> timedelta:
    if asked.now is None:
        raise ValueError("it is not known what time it is")
    return asked.now - then


def _sha256(_: Asked, text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _found(kind: str) -> Callable[[Asked, str], list[str]]:
    def find(asked: Asked, text: str) -> list[str]:
        return found_in(text, asked.library.detectors.named(kind))

    return find


def _query(function: SessionFunction, arguments: tuple[Literally, ...]) -> SessionQuery:
    """What is asked of the session. Raises `ValueError` for what cannot be."""
    tool, *rest = arguments
    path = rest.pop(0) if function == "sum" and rest else ""
    within = rest.pop(0) if rest else None
    if not isinstance(tool, str) or not 0 < len(tool) <= _LONGEST_NAME or any(sign in tool for sign in "*?["):
        raise ValueError(f"a tool is named by 1 to {_LONGEST_NAME} characters, without wildcards")
    if not isinstance(path, str) or (function == "sum" and _PATH.fullmatch(path) is None):
        raise ValueError('the path starts at the arguments or at the result: "args.amount", "result.total"')
    if not isinstance(within, timedelta | None) or not timedelta(0) < (_LONGEST if within is None else within) <= _LONGEST:
        raise ValueError("the time is longer than none and at most 366 days")
    return SessionQuery(function, tool, None if within is None else within / timedelta(seconds=1), path)


def _session(function: SessionFunction) -> tuple[Callable[..., Any], Callable[..., object]]:
    """What runs one of these functions, and what verifies its arguments."""

    def run(asked: Asked, *arguments: Any) -> Any:
        query = _query(function, arguments)
        if asked.answers is None or query not in asked.answers:
            raise ValueError("the call belongs to no session: it has to send X-Lockgate-Session")
        answer = asked.answers[query]
        return _last(answer) if function == "last" and answer is not None else answer

    def verify(_: Library, *arguments: Literally) -> None:
        _query(function, arguments)

    return run, verify


def _last(answer: Mapping[str, Any]) -> dict[str, Any]:
    at = _EPOCH + timedelta(microseconds=answer["at_ns"] // 1000)
    return {"args": dict(answer["args"]), "result": answer["result"], "at": Moment.fromtimestamp(0, UTC) + (at - _EPOCH)}


def _of_session(function: SessionFunction, result: str, doc: str, example: str) -> Function:
    run, verify = _session(function)
    taken: tuple[str, ...] = ("string", "string") if function == "sum" else ("string",)
    overloads = (taken, (*taken, "duration"))
    return Function(f"session.{function}", overloads, result, doc, example, run, verify, literal=True, of_session=function)


FUNCTIONS: Final[tuple[Function, ...]] = (
    Function("glob", (("string", "string"),), "bool", "Whether the text fits a glob, as in `match`: `*`, `?`, `[abc]`; case matters.",
             'route.glob("gpt-*")', _glob, _verify_glob, ("member",)),
    Function("cidr", (("string", "string"),), "bool", "Whether an IP address is in a network. A text that is no address is an error.",
             '"ip" in tags && tags["ip"].cidr("10.0.0.0/8")', _cidr, _verify_cidr, ("member",)),
    Function("in_list", (("string", "string"),), "bool", "Whether the text is an item of `policies/lists/NAME.txt`.",
             'principal.name.in_list("contractors")', _in_list, _verify_list, ("member", "global")),
    Function("age", (("timestamp",),), "duration", "How long ago that was, at `now`.",
             'age(timestamp("2026-01-01T00:00:00Z")) > duration("24h")', _age),
    Function("usd", (("string",),), "int", "An amount of money, to compare with `session.spend` and what `budget.…` holds.",
             'session.spend > usd("0.40")', _usd, _verify_usd),
    Function("sha256", (("string",),), "string", "The hash of the text in UTF-8, in hexadecimal digits.",
             'sha256(principal.name).startsWith("0")', _sha256),
    Function("pii", (("string",),), "list(string)", "The names of the detectors of personal data that find something in the text.",
             'texts.exists(t, "iban" in pii(t))', _found("pii")),
    Function("secrets", (("string",),), "list(string)", "The names of the detectors of credentials that find something in the text.",
             "texts.exists(t, secrets(t).size() > 0)", _found("secrets")),
    _of_session("called", "bool", "Whether the session used the tool, at all or within a time.",
                'session.called("kyc.check", duration("1h"))'),
    _of_session("count", "int", "How often the session used the tool, at all or within a time.", 'session.count("mail.send") > 10'),
    _of_session("last", "dyn", "The latest use: an object of `args`, `result` and `at` (a timestamp), or null.",
                'session.last("kyc.check") != null && session.last("kyc.check").result.status == "passed"'),
    _of_session("sum", "double", "The sum of the numbers at a path of the uses, at all or within a time.",
                'session.sum("bank.pay", "args.amount", duration("24h")) > 5000.0'),
)
# CEL's own functions, and those of its strings, math and optional extensions.
STANDARD: Final = frozenset({
    "all", "bool", "bytes", "contains", "double", "duration", "dyn", "endsWith", "exists", "exists_one", "filter",
    "getDate", "getDayOfMonth", "getDayOfWeek", "getDayOfYear", "getFullYear", "getHours", "getMilliseconds",
    "getMinutes", "getMonth", "getSeconds", "has", "int", "map", "matches", "size", "startsWith", "string",
    "timestamp", "type", "uint"})
EXTENSIONS: Final = frozenset({
    "charAt", "format", "indexOf", "join", "lastIndexOf", "lowerAscii", "replace", "reverse", "split", "strings.quote", "substring", "trim",
    "upperAscii", "math.abs", "math.bitAnd", "math.bitNot", "math.bitOr", "math.bitShiftLeft", "math.bitShiftRight", "math.bitXor",
    "math.ceil", "math.floor", "math.greatest", "math.isFinite", "math.isInf", "math.isNaN", "math.least", "math.round", "math.sign",
    "math.sqrt", "math.trunc", "first", "hasValue", "last", "optFlatMap", "optMap", "optional.none", "optional.of",
    "optional.ofNonZeroValue", "or", "orValue", "value"})
NAMESPACES: Final = frozenset({"math", "optional", "session", "strings"})

# What a function has to give; of `dyn` anything is.
_RESULTS: Final[Mapping[str, type | tuple[type, ...]]] = {
    "bool": bool, "int": int, "double": (float, int), "string": str, "duration": timedelta, "list(string)": list}

FUNCTION_OF: Final[Mapping[str, Function]] = {function.name: function for function in FUNCTIONS}
READS_NOW: Final = "age"


def examine(calls: Iterable[Call], library: Library) -> tuple[frozenset[SessionQuery], list[CompileProblem]]:
    """What the calls of an expression ask of the session, and what is wrong with their arguments as far as they stand in the source."""
    queries: set[SessionQuery] = set()
    problems: list[CompileProblem] = []
    for call in calls:
        function = FUNCTION_OF[call.function]
        if function.literal and None in call.arguments:
            problems.append(CompileProblem(f'{function.name} takes what stands in the rule: texts and duration("…")', *call.place,
                                           "the answers are fetched before the rule is asked"))
            continue
        try:
            if function.verify is not None:
                function.verify(library, *call.arguments)
            if function.of_session is not None:
                queries.add(_query(function.of_session, call.arguments))
        except ValueError as error:
            problems.append(CompileProblem(f"{function.name}: {error}", *call.place))
    return frozenset(queries), problems


def literal_duration(text: str) -> timedelta | None:
    """What `duration("…")` means, to the microsecond; None for what it does not take."""
    if _DURATION.fullmatch(text) is None:
        return None
    microseconds = sum(float(number) * _MICROSECONDS[unit] for number, unit in _DURATION_PART.findall(text))
    try:
        return timedelta(microseconds=-microseconds if text.startswith("-") else microseconds)
    except OverflowError:
        return None


class Binding:
    """The functions as an engine calls them: with what was asked for in the evaluation that is under way, in each thread its own."""

    def __init__(self, library: Library) -> None:
        self._idle = Asked(library)
        self._asked: ContextVar[Asked] = ContextVar("asked")

    def bound(self, function: Function) -> Callable[..., Any]:
        """What an engine calls with the arguments alone."""
        run, asked, idle = function.run, self._asked, self._idle
        kinds = _RESULTS.get(function.result, object)

        def call(*arguments: Any) -> Any:
            try:
                given = run(asked.get(idle), *arguments)
            except StopIteration as error:  # within a comprehension of cel-python it would end the loop, as if nothing were found
                raise RuntimeError("the function broke off") from error
            if not isinstance(given, kinds):  # cel-python would take it for a plain "no"
                raise TypeError(f"the function does not give {function.result}")
            return given

        return call

    @contextmanager
    def asking(self, asked: Asked) -> Iterator[None]:
        """Evaluate for one activation."""
        token = self._asked.set(asked)
        try:
            yield
        finally:
            self._asked.reset(token)


def functions_table() -> str:
    """The functions as the Markdown table of the guide."""
    lines = ["| function | phases | what | example |", "|---|---|---|---|"]
    for function in FUNCTIONS:
        signatures = "<br>".join(f"`{signature}`" for signature in function.signatures())
        phases = "all" if function.phases == PHASES else ", ".join(function.phases)
        lines.append(f"| {signatures} | {phases} | {function.doc} | `{function.example}` |")
    return "\n".join(lines)
