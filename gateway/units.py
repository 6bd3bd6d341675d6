"""How settings are written: durations, sizes, prices, names, references. Parses a text to its number; never guesses a unit."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Annotated, Any, Final, TypeAlias
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field

_SECONDS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_BYTES: Final = {"B": 1, "KiB": 1024, "MiB": 1024**2, "GiB": 1024**3}
_LONGEST_S: Final = 366 * 86400.0
_LARGEST: Final = 1024**4
_DEAREST_CALL: Final = 1000 * 10**12  # pico-USD

_DURATION: Final = re.compile(r"(\d{1,9}(?:\.\d{1,6})?)(ms|s|m|h|d)", re.ASCII)
_SIZE: Final = re.compile(r"(\d{1,13})(B|KiB|MiB|GiB)", re.ASCII)
_USD: Final = re.compile(r"\d{1,9}(?:\.\d{1,18})?", re.ASCII)
_REFERENCE: Final = re.compile(r"env:[A-Za-z_][A-Za-z0-9_]*|file:[^\x00-\x1f\x7f]+")


@dataclass(frozen=True, slots=True)
class Written:
    """Tells the documentation how a value of this type is written: its kind, and the text for a parsed value."""

    kind: str
    show: Callable[[Any], str]

    def __get_pydantic_json_schema__(self, schema: Any, handler: Any) -> dict[str, Any]:
        """In a JSON Schema: a text, whatever it becomes."""
        _ = (schema, handler)
        return {"type": "string", "description": self.kind}


def parse_duration(value: object) -> float:
    """`"250ms"`, `"30s"`, `"24h"` as seconds. Raises `ValueError` for anything else, and above 366 days."""
    found = _DURATION.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        raise ValueError('a duration is a string of a number and a unit (ms, s, m, h, d): "250ms", "30s", "24h"')
    seconds = float(found[1]) * _SECONDS[found[2]]
    if seconds > _LONGEST_S:
        raise ValueError("a duration is at most 366 days")
    return seconds


def show_duration(seconds: float) -> str:
    """Seconds as `parse_duration` reads them, in the largest unit that needs no fraction."""
    for unit in ("d", "h", "m", "s", "ms"):
        number = seconds / _SECONDS[unit]
        if seconds and math.isclose(number, round(number)) and round(number) >= 1:
            return f"{round(number)}{unit}"
    return f"{seconds:.6f}".rstrip("0").rstrip(".") + "s"


def parse_size(value: object) -> int:
    """`"512KiB"`, `"10MiB"` as bytes. Raises `ValueError` for anything else, and above 1024 GiB."""
    found = _SIZE.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        raise ValueError('a size is a string of a whole number and a unit (B, KiB, MiB, GiB): "10MiB"')
    size = int(found[1]) * _BYTES[found[2]]
    if size > _LARGEST:
        raise ValueError("a size is at most 1024GiB")
    return size


def show_size(size: int) -> str:
    """Bytes as `parse_size` reads them, in the largest unit that needs no fraction."""
    unit = next(unit for unit in ("GiB", "MiB", "KiB", "B") if size % _BYTES[unit] == 0)
    return f"{size // _BYTES[unit]}{unit}"


class _TooFineError(ValueError):
    """An amount of money with more digits than are counted."""


def parse_usd(value: object) -> Fraction:
    """`"0.40"` as an exact number of USD. Raises `ValueError` for anything else: a float, a sign, an exponent."""
    if not isinstance(value, str) or _USD.fullmatch(value) is None:
        raise ValueError('an amount of money is a string of a decimal number in USD: "0.40"')
    return Fraction(value)  # a Decimal would round as the host process has set its context


def _pico(value: object, scale: int) -> int:
    pico = parse_usd(value) * scale
    if pico.denominator != 1:
        raise _TooFineError("the amount has more digits than can be counted exactly (a millionth of a millionth of a USD)")
    return pico.numerator


def parse_token_price(value: object) -> int:
    """USD per million tokens as pico-USD per token, exact or refused with `ValueError`."""
    try:
        return _pico(value, 10**6)
    except _TooFineError as error:
        raise ValueError(f"{error}; prices are per million tokens") from error


def parse_request_price(value: object) -> int:
    """USD per call as pico-USD, exact or refused with `ValueError`, as is more than $1000."""
    pico = _pico(value, 10**12)
    if pico > _DEAREST_CALL:
        raise ValueError("a call costs at most $1000")
    return pico


def parse_money(value: object) -> int:
    """USD as nano-USD, exact or refused with `ValueError`."""
    nano = parse_usd(value) * 10**9
    if nano.denominator != 1:
        raise ValueError("the amount has more digits than are counted (a billionth of a USD)")
    return nano.numerator


def plausible(pico: int) -> bool:
    """Whether a price a token is free or within $0.001 to $1000 per million tokens; outside, it is most likely a slip of the unit."""
    return pico == 0 or 10**3 <= pico <= 10**9


def show_pico(scale: int) -> Callable[[int], str]:
    """What writes a price back as USD: `scale` is the pico-USD in one of its units."""
    return lambda pico: f"{Decimal(pico) / scale:f}"


def parse_reference(value: object) -> str:
    """`env:NAME` or `file:PATH`. The message never quotes the value: it may be the secret itself."""
    if not isinstance(value, str) or _REFERENCE.fullmatch(value) is None:
        raise ValueError('a secret is never written here, only a reference to it: "env:NAME" or "file:PATH"')
    return value


def parse_url(value: str) -> str:
    """An http(s) URL that only says where: no credentials, query or fragment, and no slash at its end."""
    if not value.isascii() or not value.isprintable() or " " in value:
        raise ValueError("a URL holds printable ASCII only")
    try:
        parts = urlsplit(value)
        port = parts.port
    except ValueError as error:
        raise ValueError(f"not a URL: {error}") from error
    if parts.scheme not in {"http", "https"} or not parts.hostname or port == 0:
        raise ValueError('a URL begins with http:// or https:// and a host: "https://api.example.com/v1"')
    if "@" in parts.netloc:
        raise ValueError("credentials do not belong in a URL; use `api_key` or `headers` with a reference")
    if "?" in value or "#" in value:
        raise ValueError("a query or a fragment does not belong in this URL")
    return value.rstrip("/")


def _distinct(values: tuple[str, ...]) -> tuple[str, ...]:
    repeated = sorted({value for value in values if values.count(value) > 1})
    if repeated:
        raise ValueError(f"named twice: {', '.join(repeated)}")
    return values


Duration: TypeAlias = Annotated[float, BeforeValidator(parse_duration), Written("duration", show_duration)]
PositiveDuration: TypeAlias = Annotated[Duration, Field(gt=0)]
Size: TypeAlias = Annotated[int, BeforeValidator(parse_size), Field(gt=0), Written("size", show_size)]
TokenPrice: TypeAlias = Annotated[int, BeforeValidator(parse_token_price), Written("USD per million tokens", show_pico(10**6))]
RequestPrice: TypeAlias = Annotated[int, BeforeValidator(parse_request_price), Written("USD per call", show_pico(10**12))]
Money: TypeAlias = Annotated[int, BeforeValidator(parse_money), Written("USD", show_pico(10**9))]
Reference: TypeAlias = Annotated[str, BeforeValidator(parse_reference), Written("reference", str)]
Url: TypeAlias = Annotated[str, AfterValidator(parse_url), Written("URL", str)]

# Lists come from TOML as `list`; strict mode would ask for a `tuple`. What is in them stays strict.
Name: TypeAlias = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,63}$")]
Names: TypeAlias = Annotated[tuple[Name, ...], Field(strict=False), AfterValidator(_distinct)]
Globs: TypeAlias = Annotated[tuple[Annotated[str, Field(min_length=1, max_length=256)], ...], Field(strict=False, min_length=1)]
Label: TypeAlias = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
RouteName: TypeAlias = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,127}$")]
ModelName: TypeAlias = Annotated[str, Field(pattern=r"^[!-~]{1,256}$")]  # printable ASCII: it is shown in a header
HeaderName: TypeAlias = Annotated[str, Field(pattern=r"^[A-Za-z0-9!#$%&'*+.^_`|~-]{1,100}$")]
HeaderValue: TypeAlias = Annotated[str, Field(pattern=r"^[!-~](?:[ -~]{0,4094}[!-~])?$")]
