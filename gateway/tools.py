"""HTTP tools: what a declaration means, how arguments become a request, and what of an upstream's answer is taken.

What is judged is what is sent: every argument goes into exactly one place, encoded for that place alone, and an argument that could mean
another path than the declared one is refused.
"""

import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple
from urllib.parse import quote, unquote

from gateway.call import Call, Json, JsonObject, Reply, Target, Usage
from gateway.core.verify import Verify
from gateway.errors import LONGEST_MESSAGE, AttemptFailed, CallError, InternalError, InvalidRequest, MethodNotAllowed, UpstreamRejected
from gateway.schemas import Schema, compile_schema, pointer
from gateway.secret import Secret
from gateway.toml_source import KeyPath
from gateway.tool_config import ToolConfig, split_template, template_parts
from gateway.validation import nearest
from gateway.wire.problem import problem
from gateway.wire.protocol import Ask, Endpoint, StreamEncoder, UpstreamRequest
from gateway.wire.strict_json import dumps, loads

OPERATION: Final = "tool"
WITH_BODY: Final = frozenset({"POST", "PUT", "PATCH"})
ACCEPT: Final = "application/json, text/*;q=0.5"
_EMPTY: Final = "text/plain; charset=utf-8"
_JSON: Final = "application/json"
_LONGEST_TARGET: Final = 8 * 1024  # bytes of a path with its query; servers refuse longer ones
_MOST_VALUES: Final = 1000  # in one query
_SCALARS: Final = ("integer", "number", "boolean", "string")
_INTEGER: Final = re.compile(r"-?(?:0|[1-9][0-9]{0,19})")
_NUMBER: Final = re.compile(r"-?(?:0|[1-9][0-9]{0,308})(?:\.[0-9]{1,308})?(?:[eE][+-]?[0-9]{1,3})?")
_UNPRINTABLE: Final = frozenset({"Cc", "Cs", "Zl", "Zp"})
_DECODINGS: Final = 4  # more layers of percent-encoding than any chain of servers takes off
_CONTENT_TYPE: Final = re.compile(r"\s*([A-Za-z0-9!#$&^_.+-]{1,127}/[A-Za-z0-9!#$&^_.+-]{1,127})\s*(?:;(.*))?", re.DOTALL)
_CHARSET: Final = re.compile(r"(?:^|;)\s*charset\s*=\s*\"?([^\s\";]*)", re.IGNORECASE)
_UTF_8: Final = frozenset({"utf-8", "utf8", "us-ascii", "ascii"})
_MOST_MEMBERS: Final = 1_000_000  # in an answer; `max_answer` bounds the rest
_OUR_CREDENTIALS: Final = frozenset({401, 407})
_PASSING: Final = frozenset({408, 425, 429})
_REASONS: Final = ("detail", "message", "error_description", "title")
_SECONDS: Final = re.compile(r"[0-9]{1,9}")


@dataclass(frozen=True, slots=True)
class Tool:
    """A compiled tool. `path` is its literal texts and, at every second place, the name of a parameter.

    `kinds` are the types that the schema gives an argument, of an array those of its items; `lists` are the arguments that are arrays.
    `verify` tells whether a call happened of which nobody knows the end.
    """

    name: str
    description: str
    method: str
    effect: str
    path: tuple[str, ...]
    query: frozenset[str]
    kinds: Mapping[str, tuple[str, ...]]
    lists: frozenset[str]
    parameters: JsonObject = field(repr=False)
    schema: Schema = field(repr=False)
    irreversible: bool = False
    verify: Verify | None = field(default=None, repr=False)

    @property
    def annotations(self) -> dict[str, Json]:
        """What rules may know of the declaration."""
        return {"effect": self.effect, "irreversible": self.irreversible}

    @property
    def retryable(self) -> bool:
        """Whether a call that may have been worked on may be sent again."""
        return self.effect != "at_most_once"

    def check(self, arguments: JsonObject) -> None:
        """Raise `InvalidRequest` with the place of the first thing that the tool's schema does not take."""
        faults = self.schema.faults(arguments)
        if faults:
            told = "; ".join(str(fault) for fault in faults)
            raise InvalidRequest(f"The arguments do not fit the tool {self.name}: {told}.", pointer=faults[0].pointer)

    def read_query(self, pairs: Iterable[tuple[str, str]]) -> dict[str, Json]:
        """The arguments that a query stands for. A text that is not of its argument's type stays one: the schema says so better."""
        given: dict[str, list[Json]] = {}
        for name, text in pairs:
            given.setdefault(name, []).append(self._read(name, text))
        return {name: values if name in self.lists or len(values) > 1 else values[0] for name, values in given.items()}

    def _read(self, name: str, text: str) -> Json:
        kinds = self.kinds.get(name, ())
        if "integer" in kinds and _INTEGER.fullmatch(text) and -(2**63) <= int(text) < 2**64:
            return int(text)
        if "number" in kinds and _NUMBER.fullmatch(text):
            number = float(text)
            return number if abs(number) < float("inf") else text
        if "boolean" in kinds and text in ("true", "false"):
            return text == "true"
        return text

    def target(self, arguments: JsonObject) -> tuple[str, bytes]:
        """The path with its query, and the body (empty for a method without one), for arguments that `check` has passed.

        Raises:
            InvalidRequest: an argument cannot stand where it would have to, or all of them are too long together.
        """
        path = "".join(_in_path(each, arguments.get(each)) if number % 2 else each for number, each in enumerate(self.path))
        rest = {name: value for name, value in arguments.items() if name not in self.path[1::2]}
        if self.method in WITH_BODY:
            asked = {name: value for name, value in rest.items() if name in self.query}
            body = dumps({name: value for name, value in rest.items() if name not in self.query})
        else:
            asked, body = rest, b""
        query = "&".join(pair for name, value in asked.items() for pair in _in_query(name, value))
        target = f"{path}?{query}" if query else path
        if len(target) > _LONGEST_TARGET:
            raise InvalidRequest(f"The arguments make a URL of {len(target)} bytes; {_LONGEST_TARGET} are the most.", pointer="")
        return target, body


def _in_path(name: str, value: Json) -> str:
    """An argument as a part of a path, for a reader who decodes it once, or more often than he should."""
    text = _scalar(name, value)
    seen = text
    for _ in range(_DECODINGS):
        for form in (seen, unicodedata.normalize("NFKC", seen)):  # some servers fold look-alikes: a full-width slash is a slash to them
            if form.partition(";")[0].strip() in ("", ".", "..") or "/" in form or "\\" in form:
                raise InvalidRequest("This argument is part of a path: it cannot be empty, dots, or hold a slash, plain or encoded.",
                                     pointer=pointer([name]))
        if any(unicodedata.category(letter) in _UNPRINTABLE for letter in seen):
            raise InvalidRequest("This argument is part of a path: it cannot hold control characters.", pointer=pointer([name]))
        before, seen = seen, unquote(seen)
        if seen == before:
            return quote(text, safe="")
    raise InvalidRequest("This argument is percent-encoded over and over.", pointer=pointer([name]))


def _in_query(name: str, value: Json) -> list[str]:
    values = value if isinstance(value, list) else [value]
    if len(values) > _MOST_VALUES:
        raise InvalidRequest(f"This argument is a list in a query: it has {_MOST_VALUES} values at most.", pointer=pointer([name]))
    key = quote(_scalar(name, name), safe="")
    return [f"{key}={quote(_scalar(name, each), safe='')}" for each in values]


def _scalar(name: str, value: Json) -> str:
    """A scalar as text; numbers as JSON writes them."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise InvalidRequest("This argument is not Unicode text.", pointer=pointer([name])) from None
        return value
    if isinstance(value, bool | int | float):
        return dumps(value).decode()
    raise InvalidRequest("This argument stands in a URL: it has to be a text, a number, true or false.", pointer=pointer([name]))


class ToolAdapter:
    """Speaks to the upstream of one tool, as an `Adapter` does; of an answer it reads the head, too."""

    name = OPERATION
    operations = frozenset({OPERATION})

    def __init__(self, tool: Tool) -> None:
        self.tool = tool

    def encode(self, call: Call, target: Target, api_key: Secret | None) -> UpstreamRequest:
        """The request for the call's body, which are the arguments; checked here once more, as rules may have changed them."""
        _ = (target, api_key)  # credentials are headers of the declaration
        self.tool.check(call.body)
        path, body = self.tool.target(call.body)
        headers = {"content-type": _JSON} if self.tool.method in WITH_BODY else {}
        if self.tool.effect != "read":
            headers["idempotency-key"] = call.key or call.id  # the same for every try
        return UpstreamRequest(self.tool.method, path, headers, body)

    def decode(self, status: int, headers: Mapping[str, str], body: bytes) -> Reply:
        """A 2xx answer: `status`, `content_type`, and `json` or `text`. Raises `AttemptFailed`: `malformed` for anything else."""
        if not body:
            return Reply({"status": status, "content_type": _EMPTY, "text": ""}, Usage())
        found = _CONTENT_TYPE.fullmatch(headers.get("content-type", ""))
        if found is None:
            raise self._malformed("it does not say what it is (`Content-Type`)")
        kind = found[1].lower()
        charset = _CHARSET.search(found[2] or "")
        if charset is not None and charset[1].lower() not in _UTF_8:
            raise self._malformed("its text is not UTF-8")
        if kind == _JSON or kind.endswith("+json"):
            try:
                return Reply({"status": status, "content_type": kind, "json": loads(body, most_members=_MOST_MEMBERS)}, Usage())
            except ValueError as error:
                raise self._malformed(f"it is not JSON that can be read in one way: {error}") from error
        if not kind.startswith("text/"):
            raise self._malformed("it is neither JSON nor text")
        try:
            return Reply({"status": status, "content_type": f"{kind}; charset=utf-8", "text": body.decode()}, Usage())
        except UnicodeDecodeError as error:
            raise self._malformed("its text is not UTF-8") from error

    def decode_error(self, status: int, headers: Mapping[str, str], body: bytes) -> AttemptFailed | UpstreamRejected:
        """What a non-2xx answer means: a 4xx is the call's fault and passed on; our credentials, a redirect and a 5xx are not."""
        words = _words(body) or f"The upstream of {self.tool.name} answered {status} without a reason that can be read."
        passing = status in _PASSING and self.tool.retryable
        if 400 <= status < 500 and status not in _OUR_CREDENTIALS and not passing:
            return UpstreamRejected(words, status=status)
        if status < 400:
            words = "a redirect, which is not followed"
        retryable = self.tool.retryable and (passing or (status >= 500 and status != 501))
        after = headers.get("retry-after", "").strip()
        return AttemptFailed(f"status:{status}", words, retryable=retryable, status=status,
                             retry_after_s=float(after) if _SECONDS.fullmatch(after) else None)

    def _malformed(self, why: str) -> AttemptFailed:
        return AttemptFailed("malformed", f"the answer of {self.tool.name} cannot be used: {why}", retryable=self.tool.retryable)


def _words(body: bytes) -> str:
    """The reason in an upstream's error: RFC 9457's, or what most others write; else a short text as it is."""
    try:
        value = loads(body)
    except ValueError:
        text = body[:4 * LONGEST_MESSAGE].decode(errors="replace").strip()  # cut to length once there are no secrets in it
        return "" if text.startswith("<") else text  # a web page says nothing to a program
    within: Json = value.get("error") if isinstance(value, dict) else None
    if isinstance(within, str):
        return within
    said = [holder.get(key) for holder in (value, within) if isinstance(holder, dict) for key in _REASONS]
    return next((text for text in said if isinstance(text, str) and text), "")


def head_of(call: Call, reply: Reply) -> tuple[int, str | None]:
    """The status and the content type of a plain answer: of a tool what its upstream said, of a model the usual ones."""
    return (reply.body["status"], reply.body["content_type"]) if call.operation == OPERATION else (200, None)


class ToolDialect:
    """Speaks to a client that calls the tool `called`, of those there are; empty where it asks which there are.

    `safe`: it calls with GET, which a link or a picture in a web page could do as well, so that it must change nothing.
    """

    name = "tools"
    endpoints: tuple[Endpoint, ...] = ()  # the paths are made of the tools' names
    stream_content_type = _EMPTY

    def __init__(self, tools: Mapping[str, Tool], called: str = "", *, safe: bool = False) -> None:
        self._tools = tools
        self._called = called
        self._safe = safe

    def read(self, operation: str, body: JsonObject) -> Ask:
        """The tool as the route; its arguments are the body.

        Raises:
            InvalidRequest: they do not fit its schema.
            MethodNotAllowed: it does more than read, and is called as if it did not.
        """
        _ = operation
        tool = self._tools[self._called]  # whoever may not use it, or asks for one that is not there, has been told so
        if self._safe and tool.effect != "read":
            raise MethodNotAllowed('GET is for tools that only read (effect = "read"); send POST with the arguments as JSON.')
        tool.check(body)
        return Ask(self._called, stream=False)

    def answer(self, call: Call, reply: Reply) -> bytes:
        _ = call
        return dumps(reply.body["json"]) if "json" in reply.body else str(reply.body["text"]).encode()

    def error(self, error: CallError, call_id: str) -> bytes:
        return problem(error, call_id)

    def models(self, routes: Iterable[str]) -> bytes:
        """Those of the routes that are tools, as a model is told of them."""
        known = [self._tools[name] for name in routes if name in self._tools]
        return dumps({"tools": [{"name": tool.name, "description": tool.description, "effect": tool.effect, "parameters": tool.parameters}
                                for tool in known]})

    def encoder(self, call: Call) -> StreamEncoder:
        raise InternalError(f"The answer of the tool {call.route} is not streamed.")


class ToolProblem(NamedTuple):
    """What is wrong with a declaration; `path` starts at its table."""

    path: KeyPath
    message: str
    hint: str | None = None


def compile_tool(given: ToolConfig) -> tuple[Tool | None, list[ToolProblem]]:
    """The tool of a declaration, or what is wrong with it."""
    parameters: dict[str, Any] = {"type": "object", "properties": {}, **given.arguments}
    if not parameters.keys() & {"additionalProperties", "unevaluatedProperties"}:
        parameters["additionalProperties"] = False
    if parameters["type"] != "object":
        return None, [ToolProblem(("arguments", "type"), "arguments are an object", 'write type = "object", or leave it out')]
    try:
        schema = compile_schema(parameters)
    except ValueError as error:
        return None, [ToolProblem(("arguments",), str(error))]
    path = tuple(template_parts(split_template(given.url)[1]))
    known: dict[str, Any] = parameters["properties"]
    problems = [*_of_path(path[1::2], parameters), *_of_query(given, path[1::2], known), *_of_retry(given),
                *_of_effect(given)]
    forms = {name: form for name, declared in known.items() if (form := _form(declared)) is not None}
    tool = Tool(
        given.name, given.description, given.method, given.effect, path, frozenset(given.query),
        {name: kinds for name, (kinds, _) in forms.items()}, frozenset(name for name, (_, is_list) in forms.items() if is_list),
        parameters, schema, given.irreversible)
    return (None if problems else tool), problems


def _form(declared: Json) -> tuple[tuple[str, ...], bool] | None:
    """The scalar types of a property as its schema says them, and whether it is a list of such; None where it is neither."""
    kind = declared.get("type") if isinstance(declared, dict) else None
    if kind == "array":
        items = _form(declared.get("items"))
        return (items[0], True) if items is not None and not items[1] else None
    kinds = tuple(kind) if isinstance(kind, list) else (kind,)
    return (kinds, False) if all(each in _SCALARS for each in kinds) else None


def _of_path(names: Iterable[str], parameters: JsonObject) -> Iterator[ToolProblem]:
    known, required = parameters["properties"], parameters.get("required", ())
    for name in names:
        form = _form(known.get(name))
        if name not in known:
            yield ToolProblem(("url",), f"{{{name}}} is none of the arguments", nearest(name, known))
        elif form is None or form[1]:
            yield ToolProblem(("arguments", "properties", name), "is part of the path", f"give it a `type`: {', '.join(_SCALARS)}")
        elif name not in required:
            yield ToolProblem(("arguments",), f"`{name}` is part of the path", "put it into `required`")


def _of_query(given: ToolConfig, in_path: Iterable[str], known: Mapping[str, Json]) -> Iterator[ToolProblem]:
    for number, name in enumerate(given.query):
        if name not in known:
            yield ToolProblem(("query", number), f"{name!r} is none of the arguments", nearest(name, known))
        elif name in in_path or name in given.query[:number]:
            yield ToolProblem(("query", number), f"{name!r} has its place already")
    asked = given.query if given.method in WITH_BODY else known.keys() - set(in_path)
    for name in known:
        if name in asked and _form(known[name]) is None:
            yield ToolProblem(("arguments", "properties", name), "is part of the query",
                              f"give it a `type`: {', '.join(_SCALARS)}, or an array with `items` of one")


def _of_effect(given: ToolConfig) -> Iterator[ToolProblem]:
    """What a tool that only reads has no use for."""
    if given.effect == "read" and given.irreversible:
        yield ToolProblem(("irreversible",), 'a tool with effect = "read" changes nothing', "take one of them out")
    if given.effect == "read" and given.verify is not None:
        yield ToolProblem(("verify",), 'a tool with effect = "read" can be called again', "take it out")


def _of_retry(given: ToolConfig) -> Iterator[ToolProblem]:
    if given.effect == "at_most_once" and "attempts" in given.retry.model_fields_set and given.retry.attempts > 1:
        yield ToolProblem(("retry", "attempts"), "a tool that is `at_most_once` is tried once",
                          'take it out, or say effect = "idempotent" where a second call does no harm')
