"""Keeps secrets and, where asked, people's words out of the journal. Pure."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, AnyStr, Final

import orjson

from gateway.call import CallRecord, JsonObject
from gateway.secret import Secret
from gateway.store.rows import json_text

REPLACEMENT: Final = "[secret]"

# What a virtual key (`gateway/keyring.py` makes them) and a person's API token (`gateway/identity/accounts.py`) look like; the prefixes
# alone are what a clean text is searched for.
KEY_PREFIXES: Final = ("lgk_", "lgp_")
KEY_PATTERN: Final = r"lg[kp]_[A-Za-z0-9]{12}_[A-Za-z0-9]{32}"

# A shorter value would be found in innocent text; a credential of this length protects nothing.
_SHORTEST: Final = 8
# What is left of a secret that was cut off is replaced from this length on, and from half of the secret on. Below that it is as good as
# any other text; and whoever has a provider repeat guesses would be told how far they are right, from a beginning that many share.
_CUT: Final = 12
_CUT_KEY: Final = r"lg[kp]_[A-Za-z0-9]{12}_[A-Za-z0-9]{1,31}\Z"

# The fields of a record and of its origin that others than the gateway write to.
_WRITTEN: Final = ("route", "message", "rule", "labels", "finish_reasons", "reasons", "verdicts", "answer_labels", "tool_results")
_SAID: Final = ("session", "run", "step", "traceparent", "tags")


class Scrubber:
    """Replaces every known secret, plain or as it stands inside JSON, and everything that looks like a virtual key, by `[secret]`.

    A secret whose end is cut off by the end of the text is replaced where more than half of it is left, and 12 characters at least.
    One that is cut in two otherwise, by the chunks of a stream for instance, is not recognised.
    """

    __slots__ = ("_bytes_heads", "_bytes_needles", "_bytes_pattern", "_heads", "_needles", "_pattern")

    def __init__(self, secrets: Iterable[Secret]) -> None:
        self._needles: tuple[str, ...] = ()
        self.learn(secrets)

    def learn(self, secrets: Iterable[Secret]) -> None:
        """Know these too from now on. What was known stays known: a call that runs may still see it."""
        new = {form for secret in secrets if len(secret.reveal()) >= _SHORTEST for form in _forms(secret.reveal())}
        needles = tuple(sorted(new.union(self._needles), key=lambda value: (-len(value), value)))
        pattern = "|".join([re.escape(value) for value in needles] + [KEY_PATTERN, _CUT_KEY])
        self._needles = needles
        self._pattern = re.compile(pattern)
        self._bytes_needles = tuple(needle.encode() for needle in needles)
        self._bytes_pattern = re.compile(pattern.encode())
        # Last, because a thread may be scrubbing: a head that it finds must lead to a pattern that knows it.
        self._heads = tuple(dict.fromkeys((*KEY_PREFIXES, *(needle[:_CUT] for needle in needles))))
        self._bytes_heads = tuple(head.encode() for head in self._heads)

    def __repr__(self) -> str:
        return f"Scrubber({len(self._needles)} values)"

    def text(self, text: str) -> str:
        """The text without secrets; the same object where there are none."""
        for head in self._heads:  # `in` reads 1 MB in some 50 µs where the pattern takes milliseconds
            if head in text:
                whole = self._pattern.sub(REPLACEMENT, text)
                cut = _cut_at_the_end(whole, self._needles)
                return whole[:-cut] + REPLACEMENT if cut else whole
        return text

    def bytes(self, data: bytes) -> bytes:
        """The same for UTF-8 bytes."""
        for head in self._bytes_heads:
            if head in data:
                whole = self._bytes_pattern.sub(REPLACEMENT.encode(), data)
                cut = _cut_at_the_end(whole, self._bytes_needles)
                return whole[:-cut] + REPLACEMENT.encode() if cut else whole
        return data

    def record(self, record: CallRecord) -> CallRecord:
        """A record without secrets in any field that a client, a provider or a rule's author can write to."""
        origin = record.origin
        written: list[str] = [
            record.route, record.message, record.rule, *record.labels, *record.finish_reasons,
            origin.session or "", origin.run or "", origin.step or "", origin.traceparent or "", *origin.tags, *origin.tags.values(),
            *(attempt.message for attempt in record.attempts), *record.answer_labels,
            *(text for result in record.tool_results for text in result),
            *(text for use in record.tool_uses for text in (use.id, use.name)),
        ]
        written += map(json_text, (record.reasons, record.verdicts, [use.args for use in record.tool_uses]))
        joined = "\n".join(written)
        if not any(head in joined for head in self._heads):  # each field has an end of its own, where a secret may be cut
            return record
        return replace(
            record, **{name: self.value(getattr(record, name)) for name in _WRITTEN},
            origin=replace(origin, **{name: self.value(getattr(origin, name)) for name in _SAID}),
            attempts=tuple(replace(attempt, message=self.text(attempt.message)) for attempt in record.attempts),
            tool_uses=tuple(
                replace(use, **{name: self.value(getattr(use, name)) for name in ("id", "name", "args")}) for use in record.tool_uses),
        )

    def value(self, value: Any) -> Any:
        """A JSON value without secrets in its strings and keys; a tuple stays a tuple."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, Mapping):
            return {self.text(key): self.value(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(self.value(item) for item in value)
        return value


def _cut_at_the_end(text: AnyStr, needles: Iterable[AnyStr]) -> int:
    """How long the longest beginning of a needle is that the text ends with; 0 where it is too short to matter."""
    longest = 0
    for needle in needles:
        for length in range(min(len(needle) - 1, len(text)), max(_CUT - 1, len(needle) // 2, longest), -1):
            if text.endswith(needle[:length]):
                longest = length
                break
    return longest


def _forms(value: str) -> set[str]:
    """A value as it stands in plain text and in JSON, escaped as much or as little as serialisers do."""
    escaped = {json.dumps(value)[1:-1], json.dumps(value, ensure_ascii=False)[1:-1]}
    return {value, *escaped, *(form.replace("/", "\\/") for form in escaped)}


# Keys whose string values are words of the protocol, not of a person.
_STRUCTURE: Final = frozenset({
    "role", "type", "model", "object", "id", "call_id", "tool_call_id", "finish_reason", "tool_choice", "format", "detail",
    "encoding_format", "response_format", "service_tier", "system_fingerprint", "reasoning_effort", "verbosity", "modalities",
})
# `name` is a person's in a message, a function's in these.
_NAMED: Final = frozenset({"function", "function_call", "custom", "json_schema", "tool", "tools", "functions"})
# Objects whose keys the caller invents: nothing inside is structure.
_FREE: Final = frozenset({"metadata", "arguments", "input", "parameters", "schema", "logit_bias"})
# What a word of the protocol looks like: a sentence under `type` is not one.
_WORD: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,127}")
_NUMBERS: Final = frozenset({int, float, bool})
# Deeper than any body that is let in; what is below is not walked.
_DEEPEST: Final = 200
# Values of which the shape is kept: others wait while it is made, and nobody reads more.
_MOST_VALUES: Final = 10_000


def reduce_body(body: JsonObject, mode: str, *, invented: bool = False) -> bytes | None:
    """The body as `journal.bodies` lets it be stored: `full` whole, `none` not at all, `redacted` in its shape only.

    Redacted: every string becomes `[redacted: N characters]` and every list of numbers (token ids, a vector) `[redacted: N numbers]`;
    what stays is the keys, numbers, booleans, and the protocol's own words (`role`, `type`, `model`, a function's name, ids).
    `invented`: the keys are no protocol's, as in a tool's arguments and answers, so no text stays.
    """
    if mode == "none":
        return None
    return orjson.dumps(body if mode == "full" else _Shape().of(body, "", free=invented, depth=0), default=dict)


class _Shape:
    """Makes the shape of one body, up to `_MOST_VALUES` values of it."""

    def __init__(self) -> None:
        self._left = _MOST_VALUES

    def of(self, value: Any, key: str, *, free: bool, depth: int) -> Any:
        if isinstance(value, str):
            return value if not free and key in _STRUCTURE and _WORD.fullmatch(value) else f"[redacted: {len(value)} characters]"
        if isinstance(value, Mapping | list | tuple):
            return "[redacted: too deep]" if depth > _DEEPEST else self._of_many(value, key, free=free or key in _FREE, depth=depth + 1)
        return value

    def _of_many(self, held: Mapping[str, Any] | Sequence[Any], key: str, *, free: bool, depth: int) -> Any:
        named = isinstance(held, Mapping)
        if held and not named and _NUMBERS.issuperset(map(type, held)):  # a list of token ids may be millions long
            return f"[redacted: {len(held)} numbers]"
        if len(held) > self._left:
            left = f"[redacted: {len(held)} values]"
            return {"": left} if named else left
        self._left -= len(held)
        if isinstance(held, Mapping):
            return {name: item if _is_name(name, item, key) and not free else self.of(item, name, free=free, depth=depth)
                    for name, item in held.items()}
        return [self.of(item, key, free=free, depth=depth) for item in held]


def _is_name(name: str, item: Any, key: str) -> bool:
    return name == "name" and key in _NAMED and isinstance(item, str) and _WORD.fullmatch(item) is not None
