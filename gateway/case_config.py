"""What `policies/*.cases.toml` may say, as strict models. Owns the shape of cases; `cases.py` asks the rules about them."""

import math
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Final, Literal, Self, TypeAlias, TypeVar

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from gateway.units import Duration, parse_money
from gateway.validation import Strict

Item = TypeVar("Item")
Many = Annotated[tuple[Item, ...], Field(strict=False)]

MOST_DEEP: Final = 128
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def _json(value: Any) -> Any:
    """A TOML value that is JSON too. Keeps its own stack: a file nests as deep as its writer likes."""
    todo = [(value, 0)]
    while todo:
        held, depth = todo.pop()
        if depth > MOST_DEEP:
            raise ValueError(f"nested deeper than {MOST_DEEP}")
        if isinstance(held, dict):
            todo += [(item, depth + 1) for item in held.values()]
        elif isinstance(held, list):
            todo += [(item, depth + 1) for item in held]
        elif isinstance(held, int) and not -(2**63) <= held < 2**64:
            raise ValueError("a whole number of JSON has 64 bits here")
        elif not isinstance(held, str | int | float) or (isinstance(held, float) and not math.isfinite(held)):
            raise ValueError(f"{held} is nothing that JSON can hold: write it as text")
    return value


def _moment_ns(value: object) -> int:
    """A time with its zone as wall nanoseconds: TOML's own, or the same as text."""
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            value = None
    if not isinstance(value, datetime) or value.tzinfo is None:
        raise ValueError('a time is written with its zone: "2026-11-22T03:00:00Z"')
    return (value - _EPOCH) // timedelta(microseconds=1) * 1000


def _printable(value: str) -> str:
    if not value.isprintable():
        raise ValueError("holds what cannot be printed: it stands in reports")
    return value


Word: TypeAlias = Annotated[str, Field(min_length=1, max_length=200), AfterValidator(_printable)]
Json: TypeAlias = Annotated[Any, AfterValidator(_json)]
JsonTable: TypeAlias = Annotated[dict[str, Any], AfterValidator(_json)]
Moment: TypeAlias = Annotated[int, BeforeValidator(_moment_ns)]
Nusd: TypeAlias = Annotated[int, BeforeValidator(parse_money)]
Level: TypeAlias = Literal["all", "org", "team", "key", "user", "session", "run", "route", "tool", "tag", "any"]
ByLevel: TypeAlias = Mapping[Level, Nusd]
Int64: TypeAlias = Annotated[int, Field(ge=-(2**63), lt=2**63)]
Count: TypeAlias = Annotated[int, Field(ge=0, lt=2**63)]


class PrincipalFacts(Strict):
    """`facts.principal`: who calls."""

    id: str = "anonymous"
    name: str = ""
    team: str = ""
    org: str = ""
    roles: Many[str] = ()
    on_behalf_of: str = ""


class RequestFacts(Strict):
    """`facts.request`: what is called. `body` is where `messages`, `texts` and the like are taken from."""

    operation: Literal["chat", "completions", "embeddings", "tool"] | None = None
    model: str | None = None
    stream: bool | None = None
    size: Count | None = None
    max_tokens: Int64 | None = None
    params: JsonTable | None = None
    body: JsonTable = Field(default_factory=dict)


class SessionFactsConfig(Strict):
    """`facts.session`: what is on record of the session before this call."""

    id: str = "session"
    age: Duration = 0.0
    labels: Many[str] = ()
    calls: Count = 0
    spend: Nusd = 0
    facts: JsonTable = Field(default_factory=dict)


class BudgetFactsConfig(Strict):
    """`facts.budget`: how the accounts stand that bind the call, in USD by scope. `any` is that of the scope with the least left."""

    remaining: ByLevel = Field(default_factory=dict)
    limit: ByLevel = Field(default_factory=dict)
    spent: ByLevel = Field(default_factory=dict)


class ToolFacts(Strict):
    """`facts.tool`: the tool call that is judged, or whose result is."""

    name: str = ""
    args: JsonTable = Field(default_factory=dict)
    via: Literal["model", "http"] = "model"
    server: str | None = None
    annotations: JsonTable | None = None
    released: bool = True


class UsageFacts(Strict):
    """`facts.response.usage`: what the provider said that it used."""

    input_tokens: Count = 0
    output_tokens: Count = 0


class ResponseFacts(Strict):
    """`facts.response`: what the model answered."""

    text: str = ""
    tool_calls: Many[str] = ()
    finish_reason: str = ""
    usage: UsageFacts = UsageFacts()


class FactsConfig(Strict):
    """`facts` of a case, by the names that rules read them under. What is not given is what an empty call has."""

    principal: PrincipalFacts = PrincipalFacts()
    protocol: str | None = None
    route: str | None = None
    model: str | None = None
    request: RequestFacts = RequestFacts()
    messages: Annotated[list[Any], AfterValidator(_json)] | None = None
    texts: Many[str] | None = None
    tools_offered: Many[str] | None = None
    session: SessionFactsConfig = SessionFactsConfig()
    budget: BudgetFactsConfig = BudgetFactsConfig()
    user: str | None = None
    run: str = ""
    step: str = ""
    tags: Mapping[str, str] = Field(default_factory=dict)
    env: Mapping[str, str] | None = None
    now: Moment | None = None
    tool: ToolFacts = ToolFacts()
    result: Json = None
    result_text: str | None = None
    response: ResponseFacts = ResponseFacts()


class UseConfig(Strict):
    """An entry of `session.called`: a use of a tool earlier in the session, let through and successful."""

    tool: str = Field(min_length=1, description="The tool that was called.")
    ago: Duration = Field(default=0.0, description="How long before this call.")
    args: JsonTable = Field(default_factory=dict, description="Its arguments.")
    result: Json = Field(default=None, description="What it gave back.")


class PastConfig(Strict):
    """`session` of a case: what functions over the session see."""

    called: Many[UseConfig] = Field(default=(), max_length=1000, description="The uses of tools, in any order.")


class ExpectConfig(Strict):
    """`expect` of a case."""

    effect: Literal["allow", "deny", "require_approval", "redact", "set", "route", "limit"] = Field(
        description="What has to come of it.")
    rule: Word | None = Field(default=None, description=(
        "The rule that has to decide it, or one of those whose transform, route, limit or approval applies; `default` where none does."))
    labels: Many[str] | None = Field(default=None, description="Labels that have to be said of it; an empty list: none may be.")
    message: str | None = Field(default=None, min_length=1, description="A part of what the caller has to be told.")
    changed: Mapping[str, Json] = Field(default_factory=dict, description=(
        "What has to stand at a JSON pointer into what is judged (the body, the arguments, the result, the answer's text), after the "
        "transforms."))


class CaseConfig(Strict):
    """`[[case]]`: one call, and what the rules have to make of it."""

    name: Word = Field(description="What it shows, as a sentence.")
    phase: Literal["request", "tool_call", "response", "tool_result"] = Field(default="request", description="Which rules are asked.")
    facts: FactsConfig = Field(default=FactsConfig(), description="Any fact by its name.")
    session: PastConfig = Field(default=PastConfig(), description="What functions over the session see.")
    now: Moment | None = Field(default=None, description="When it is judged; without it a Thursday at noon, UTC.")
    call: Word | None = Field(default=None, description=(
        "Instead of facts: the id of a recorded call, which is judged again. Needs the deployment's database."))
    expect: ExpectConfig = Field(description="What the rules have to make of it.")
    source: str = Field(default="", exclude=True, description="`file:line`; set by the loader.")

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if self.call is not None and self.model_fields_set & {"facts", "session", "now"}:
            raise ValueError("a recorded `call` has facts of its own: take out `facts`, `session` and `now`")
        if self.now is not None and self.facts.now is not None:
            raise ValueError("`now` and `facts.now` are the same: take one out")
        return self


class CasesFile(Strict):
    """A file `policies/*.cases.toml`."""

    case: Annotated[tuple[CaseConfig, ...], Field(strict=False)] = ()
