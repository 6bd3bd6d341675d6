"""What people approve: one exact action, its canonical form and its digest. Pure.

Equal actions have equal digests, whatever order or spacing they came in (RFC 8785); two that differ in any value have two.
"""

from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from typing import Any, Final

import jsonpatch
import rfc8785

from gateway.call import Json, JsonObject
from gateway.core.approval import Kind

_LARGEST_EXACT: Final = 2**53 - 1  # beyond it two integers may be one and the same IEEE 754 double, which is all that RFC 8785 knows
_MOST_COMPARED: Final = 1000  # values of two actions that are compared one by one
_INTEGER: Final = "\x00integer"  # a name that is in no action
_NOT_THE_ACTION: Final = frozenset({"stream", "stream_options"})  # how an answer is brought is no part of what is done


class UncanonicalError(ValueError):
    """The value has no canonical form: a lone surrogate, a number that is not finite."""


def canonical(value: Json) -> bytes:
    """The canonical form of a JSON value (RFC 8785), with integers that a double cannot hold told apart. Raises `UncanonicalError`."""
    try:
        return rfc8785.dumps(_exact(value))
    except (rfc8785.CanonicalizationError, UnicodeError) as error:
        raise UncanonicalError(str(error)) from error


def digest_of(value: Json) -> str:
    """`sha256:` and the hexadecimal digest of a value's canonical form. Raises `UncanonicalError`."""
    return f"sha256:{sha256(canonical(value)).hexdigest()}"


def json_patch(before: JsonObject, after: JsonObject) -> list[dict[str, Any]]:
    """What makes `after` of `before`, as RFC 6902 has it; where they are large, by whole members: comparing lists takes quadratic time."""
    if _members(before) + _members(after) <= _MOST_COMPARED:
        return list(jsonpatch.make_patch(before, after))
    gone = [{"op": "remove", "path": _path(name)} for name in before if name not in after]
    new = [{"op": "add", "path": _path(name), "value": value} for name, value in after.items() if name not in before]
    other = [{"op": "replace", "path": _path(name), "value": value} for name, value in after.items()
             if name in before and before[name] != value]
    return [*gone, *new, *other]


@dataclass(frozen=True)
class Action:
    """One exact action. `arguments` are a tool's, or a model call's body, or what an answer says; `schema` names the tool's schema.

    `session` is empty where the rule does not bind the approval to one. `identity` holds the values that make the action the same where a
    rule names them, None where all of it does.
    """

    kind: Kind
    operation: str
    principal: str
    on_behalf_of: str
    route: str
    tool: str
    schema: str
    arguments: JsonObject = field(repr=False)
    session: str = ""
    identity: JsonObject | None = None

    def shown(self) -> dict[str, Any]:
        """As it is stored and shown: everything that the digest is of, and what identity leaves out."""
        told: dict[str, Any] = {"operation": self.operation, "principal": self.principal, "on_behalf_of": self.on_behalf_of,
                                "route": self.route, "tool": self.tool, "schema": self.schema, "arguments": dict(self.arguments)}
        if self.session:
            told["session"] = self.session
        if self.identity is not None:
            told["identity"] = dict(self.identity)
        return told

    @cached_property
    def digest(self) -> str:
        """The digest of all that is shown, whatever identity leaves out: what is approved. Raises `UncanonicalError`."""
        return digest_of({**self.shown(), "identity": None})

    @cached_property
    def presented(self) -> str:
        """The digest that a caller's action is found by: of the identity's values in place of the arguments, where there are any."""
        if self.identity is None:
            return self.digest
        told = self.shown()
        del told["arguments"]
        return digest_of(told)

    @cached_property
    def shape(self) -> str:
        """The digest of its structure without its values: actions of one shape can be looked at side by side."""
        return digest_of([self.operation, self.route, self.tool, sorted(_paths(dict(self.arguments)))])


def without_delivery(body: JsonObject) -> dict[str, Any]:
    """A model call's body without what says how the answer is brought."""
    return {name: value for name, value in body.items() if name not in _NOT_THE_ACTION}


def _path(name: str) -> str:
    return "/" + name.replace("~", "~0").replace("/", "~1")


def _members(value: Json) -> int:
    """How many values there are within one, itself included; no more than just over `_MOST_COMPARED` are counted."""
    left, found = [value], 0
    while left and found <= _MOST_COMPARED:
        each = left.pop()
        found += 1
        if isinstance(each, dict | list):
            left += (each.values() if isinstance(each, dict) else each)
    return found


def _exact(value: Json) -> Json:
    """The value with every integer beyond 2^53 - 1 as an object of one name that tells its digits."""
    if isinstance(value, dict):
        if _INTEGER in value:
            raise UncanonicalError("an object has a name that begins with a zero byte")
        return {name: _exact(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_exact(each) for each in value]
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > _LARGEST_EXACT:
        return {_INTEGER: str(value)}
    return value


def _paths(value: Json, at: str = "") -> set[str]:
    if isinstance(value, dict):
        found = {f"{at}:object"}
        for name, each in value.items():
            found |= _paths(each, f"{at}/{name}")
        return found
    if isinstance(value, list):
        found = {f"{at}:array"}
        for each in value:
            found |= _paths(each, f"{at}/*")
        return found
    kind = "null" if value is None else "boolean" if isinstance(value, bool) else "number" if isinstance(value, int | float) else "string"
    return {f"{at}:{kind}"}
