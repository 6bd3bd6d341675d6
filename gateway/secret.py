"""A value that must never be shown. It prints as asterisks, so that a log line or a traceback cannot leak it."""

import hmac
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from gateway.smallfile import read_small

_MAX_BYTES: Final = 64 * 1024  # far above any credential; a wrong path must not load a disk image


class Secret:
    """Holds a credential. `reveal()` is the only way to the value; equality takes constant time."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        """The value itself, for the one place that sends or compares it."""
        return self._value

    def __repr__(self) -> str:
        return "Secret(********)"

    __str__ = __repr__

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return False  # what came in a header may hold lone surrogates: they are compared, not refused
        return hmac.compare_digest(self._value.encode(errors="surrogatepass"), other._value.encode(errors="surrogatepass"))

    def __hash__(self) -> int:
        return hash(("Secret", self._value))

    def __reduce__(self) -> str:
        raise TypeError("a Secret is not pickled")


def resolve(reference: str, environ: Mapping[str, str], folder: Path) -> Secret:
    """The secret behind `env:NAME` or `file:PATH` (relative to `folder`). A line break at its end is not part of it.

    Raises:
        ValueError: says what to do; never quotes the value.
    """
    kind, _, name = reference.partition(":")
    if kind == "env":
        if name not in environ:
            raise ValueError(f"the environment variable {name} is not set; export it before the start")
        return _checked(environ[name], f"the environment variable {name}")
    if kind == "file":
        return _checked(read_small(folder / name, limit=_MAX_BYTES).decode("utf-8", "replace"), f"the file {name}")
    raise ValueError('a secret is a reference: "env:NAME" or "file:PATH"')


def _checked(value: str, where: str) -> Secret:
    value = value.rstrip("\r\n")
    if not value:
        raise ValueError(f"{where} is empty")
    if not (value.isascii() and value.isprintable()):
        raise ValueError(f"{where} holds line breaks or other than printable ASCII, which no header can carry")
    return Secret(value)
