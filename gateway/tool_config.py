"""What `[[tool]]` in `routes/*.toml` may say, as a strict model. Owns the shape of tools; `tools.py` owns their meaning."""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal, TypeAlias

from pydantic import AfterValidator, Field

from gateway.resilience_config import BreakerConfig, HedgeConfig, RetryBudgetConfig
from gateway.units import Duration, HeaderName, HeaderValue, Label, PositiveDuration, RequestPrice, Size, Written, parse_url
from gateway.validation import Strict

Headers: TypeAlias = Mapping[HeaderName, HeaderValue]

_PARAMETER: Final = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]{0,63})\}")
_DOTS: Final = re.compile(r"/\.{1,2}(?:/|$)")


def split_template(url: str) -> tuple[str, str]:
    """A URL template as its origin and its path, which begins with a slash."""
    at = url.find("/", len("https://"))
    return (url, "/") if at < 0 else (url[:at], url[at:])


def template_parts(path: str) -> list[str]:
    """A path as its literal texts and, at every second place, the names of its parameters."""
    return _PARAMETER.split(path)


def parse_template(value: str) -> str:
    """An http(s) URL with parameters in its path: `https://h/accounts/{account}`. Raises `ValueError` for anything else."""
    plain = _PARAMETER.sub("x", value)
    if "{" in plain or "}" in plain:
        raise ValueError("a parameter is a name in braces: {account}")
    parse_url(plain)
    origin, path = split_template(value)
    if _PARAMETER.search(origin):
        raise ValueError("parameters stand in the path only: who is called is not for the caller to say")
    if "//" in path or _DOTS.search(path):
        raise ValueError("the path has empty segments, `.` or `..`, which servers read in more than one way")
    names = template_parts(path)[1::2]
    if len(set(names)) < len(names):
        raise ValueError("a parameter stands in the path twice")
    return value


UrlTemplate: TypeAlias = Annotated[str, AfterValidator(parse_template), Written("URL with `{parameters}`", str)]


class ToolDeadlinesConfig(Strict):
    """`[tool.deadlines]`: how long to wait for what."""

    connect: PositiveDuration = Field(default=5.0, description="To connect to the upstream, TLS included.")
    headers: PositiveDuration = Field(default=60.0, description="For the head of its answer.")
    total: PositiveDuration = Field(default=120.0, description="For the call, all attempts together.")


class ToolRetryConfig(Strict):
    """`[tool.retry]`: how often the upstream is tried. A tool that is `at_most_once` is tried once."""

    attempts: int = Field(default=2, ge=1, le=10, description="Tries; 1 is no retry.")
    base: Duration = Field(default=0.25, description=(
        "The wait before the second try, doubled with each; the real wait is drawn from 0 to this."))
    cap: Duration = Field(default=5.0, description="The longest wait. An upstream that asks for more is not tried again.")
    budget: RetryBudgetConfig = RetryBudgetConfig()


class VerifyConfig(Strict):
    """`[tool.verify]`: how the gateway finds out whether a call happened of which nobody knows the end."""

    tool: Label = Field(description='The tool that is asked; one with effect = "read".')
    arguments: Mapping[str, Annotated[str, Field(min_length=1, max_length=1000)]] = Field(default_factory=dict, description=(
        "What it is called with: CEL over `arguments`, those that were sent, and `key`, the idempotency key that went with them."))
    happened: str = Field(min_length=1, max_length=2000, description=(
        "CEL over `result`, what it says (parsed where it is JSON), and `status`, its HTTP status: true where the call happened. Where "
        "`status` is not read, an answer of 4xx says nothing."))
    after: PositiveDuration = Field(default=5.0, description="When it is asked first.")
    attempts: int = Field(default=3, ge=1, le=20, description="How often it is asked, while it says that the call did not happen.")
    every: PositiveDuration = Field(default=30.0, description="The time between two attempts.")


class ToolConfig(Strict):
    """`[[tool]]`: an HTTP endpoint that clients may call through `/tools/NAME`, under the same rules and on the same record as models."""

    name: Label = Field(description="What clients and models call it; no route may have the same name.")
    description: str = Field(default="", max_length=2000, description="What it is for; `GET /tools` shows it.")
    method: Literal["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"] = Field(description="The method that is sent upstream.")
    url: UrlTemplate = Field(description=(
        "Where it is. A name in braces is an argument in the path, percent-encoded: `https://api.example.com/v1/accounts/{account}`."))
    query: Annotated[tuple[str, ...], Field(strict=False)] = Field(default=(), max_length=100, description=(
        "Arguments that go into the query. What is neither in the path nor here goes into a JSON body, or into the query, too, where "
        "`method` is GET, HEAD or DELETE."))
    headers: Headers = Field(default_factory=dict, description='Headers to send along; a value "env:NAME" or "file:PATH" is a reference.')
    effect: Literal["read", "idempotent", "at_most_once"] = Field(default="at_most_once", description=(
        '"read" changes nothing; "idempotent" may be sent twice; "at_most_once" never is, whatever happened to the first try.'))
    irreversible: bool = Field(default=False, description=(
        "Whether nothing undoes what a call has done. Every such call that needs approval is looked at by itself: no grant covers it."))
    price: RequestPrice = Field(default=0, description="What a call costs, in USD.")
    private: bool = Field(default=False, description=(
        "Whether the upstream may have an address that is not public: private, loopback, link-local, a cloud's metadata."))
    max_answer: Size = Field(default=1024 * 1024, description="The largest answer that is read; a larger one is a failure of the upstream.")
    arguments: Mapping[str, Any] = Field(default_factory=dict, description=(
        "A JSON Schema of the arguments, of type object. Without `additionalProperties` no others than its `properties` are taken."))
    deadlines: ToolDeadlinesConfig = ToolDeadlinesConfig()
    retry: ToolRetryConfig = ToolRetryConfig()
    hedge: HedgeConfig = HedgeConfig()
    breaker: BreakerConfig = Field(default=BreakerConfig(), description="What is other than in `[breaker]` for it.")
    verify: VerifyConfig | None = Field(default=None, description="How it is found out whether a call happened, where nobody knows.")
    source: str = Field(default="", exclude=True, description="`file:line`; set by the loader.")
