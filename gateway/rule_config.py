"""What `policies/*.toml` may say, as strict models. Owns the shape of rules; `core/` gives them their meaning."""

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal, Self, TypeVar

from pydantic import Field, model_validator

from gateway.units import Globs, Label, PositiveDuration
from gateway.validation import Strict

Item = TypeVar("Item")
Many = Annotated[tuple[Item, ...], Field(strict=False)]

# The table that an effect reads, and the phases in which an effect has a meaning.
TABLE_OF: Final[Mapping[str, str]] = {"redact": "redact", "set": "set", "route": "route", "limit": "limit"}
PHASES_OF: Final[Mapping[str, tuple[str, ...]]] = {
    "allow": ("request", "tool_call"),
    "set": ("request", "tool_call"),
    "route": ("request",),
    "limit": ("request", "tool_call"),
}


class MatchConfig(Strict):
    """`match` of a rule: globs that a call's values must fit, each given key at least once. Cheap: rules are indexed by them."""

    principals: Globs = Field(default=(), description="Public ids or names of virtual keys.")
    teams: Globs = Field(default=(), description="The caller's team.")
    roles: Globs = Field(default=(), description="The caller's roles.")
    protocols: Globs = Field(default=(), description="The dialect of the call: `openai`, or `tools` for an HTTP tool.")
    routes: Globs = Field(default=(), description="The route that was asked for; of an HTTP tool its name.")
    models: Globs = Field(default=(), description="The model that was asked for, which is the name of the route.")
    tools: Globs = Field(default=(), description=(
        "In `request` the tools that the call offers to the model; in `tool_call` and `tool_result` the tool that is called; in "
        "`response` those that the answer calls."))


class RedactConfig(Strict):
    """`redact` of a rule: what is taken out, and what is written in its place."""

    detectors: Many[Label] = Field(default=(), description=(
        "What to find: `pii` or `secrets`, or one of their detectors by name (`email`, `credit_card`, `iban`, …)."))
    patterns: Many[Annotated[str, Field(min_length=1, max_length=1000)]] = Field(
        default=(), max_length=32, description="RE2 patterns of what to take out of every text.")
    fields: Many[str] = Field(default=(), max_length=32, description=(
        "Whole values to take out, as JSON pointers into what is judged (the body, the arguments, the result); `*` is any key or index."))
    replacement: str = Field(default="[redacted:{what}]", min_length=1, max_length=100, description=(
        "What is written instead; `{what}` is the detector's name, or `pattern`, or `field`."))

    @model_validator(mode="after")
    def _something(self) -> Self:
        if not (self.detectors or self.patterns or self.fields):
            raise ValueError("nothing to take out: give `detectors`, `patterns` or `fields`")
        return self


class ClampConfig(Strict):
    """`clamp` of `set`: the bounds of a number."""

    min: float | None = Field(default=None, strict=False, description="A smaller number becomes this one.")
    max: float | None = Field(default=None, strict=False, description="A larger number becomes this one, and so does a missing one.")

    @model_validator(mode="after")
    def _some_bound(self) -> Self:
        if self.min is None and self.max is None:
            raise ValueError("give `min`, `max` or both")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError("`min` is above `max`")
        return self


class SetConfig(Strict):
    """`set` of a rule: what is written into the body of a model call (phase `request`), or into a tool's arguments (`tool_call`)."""

    values: Mapping[str, Any] = Field(default_factory=dict, description=(
        "Values by field: a name at the top (`temperature`), or a JSON pointer (`/response_format/type`)."))
    clamp: Mapping[str, ClampConfig] = Field(default_factory=dict, description="Bounds by field, named in the same way.")
    system: str | None = Field(default=None, min_length=1, max_length=20_000, description="A system message for chats (phase `request`).")
    system_mode: Literal["add", "replace"] = Field(default="add", description=(
        '"add" puts it before the first message; "replace" takes the caller\'s own system and developer messages out.'))

    @model_validator(mode="after")
    def _something(self) -> Self:
        if not (self.values or self.clamp or self.system):
            raise ValueError("nothing to set: give `values`, `clamp` or `system`")
        return self


class RerouteConfig(Strict):
    """`route` of a rule: where a model call goes instead."""

    to: str | None = Field(default=None, min_length=1, description="Another route, by its name.")
    only: Globs = Field(default=(), description="Globs of targets (`PROVIDER/MODEL`): the others are taken out.")
    remove: Globs = Field(default=(), description="Globs of targets that are taken out.")

    @model_validator(mode="after")
    def _something(self) -> Self:
        if not (self.to or self.only or self.remove):
            raise ValueError("nothing to change: give `to`, `only` or `remove`")
        return self


class LimitConfig(Strict):
    """`limit` of a rule: how often, how much, how many at a time."""

    requests: int | None = Field(default=None, ge=1, le=1_000_000_000, description="How many calls; as many may come at once.")
    tokens: int | None = Field(default=None, ge=1, le=1_000_000_000_000, description=(
        "How many tokens, input and output together: reserved as an estimate, corrected when a call has ended."))
    concurrent: int | None = Field(default=None, ge=1, le=1_000_000, description="How many calls at a time.")
    per: PositiveDuration | None = Field(default=None, description="In which time; belongs to `requests` and `tokens`.")
    by: Many[Literal["all", "org", "team", "key", "user", "session", "run", "route", "tool", "tag"]] = Field(
        default=("key",), min_length=1, description="What has a count of its own: each combination of these.")

    @model_validator(mode="after")
    def _something(self) -> Self:
        if self.requests is None and self.tokens is None and self.concurrent is None:
            raise ValueError("nothing to limit: give `requests`, `tokens` or `concurrent`")
        timed = self.requests is not None or self.tokens is not None
        if timed and self.per is None:
            raise ValueError("`requests` and `tokens` need `per`: in which time")
        if self.per is not None and not timed:
            raise ValueError("`per` belongs to `requests` and `tokens`; `concurrent` has no time")
        return self


class StageConfig(Strict):
    """`[[rule.approval.stages]]`: one step of a quorum; the next one begins when it is met."""

    approvers: Many[str] = Field(default=(), max_length=32, description=(
        "Who may approve: `role:NAME`, `team:NAME`, `person:ID`, or a CEL expression over `approver.…` and `approval.…`. Without any, "
        "everybody who may approve at all."))
    quorum: int = Field(default=1, ge=1, le=16, description="How many people have to approve.")


class ApprovalConfig(Strict):
    """`[rule.approval]`: how a call that needs approval waits, and what becomes of it (`require_approval`)."""

    mode: Literal["release", "execute"] = Field(default="release", description=(
        '"release": the approval lets the same call through once, for a caller who waits or comes back; "execute": the gateway makes the '
        "stored call itself once it is approved, and keeps the answer for whoever presents it again."))
    stages: Many[StageConfig] = Field(default=(), max_length=8, description="Steps, in place of `approvers` and `quorum` of the rule.")
    denials: int = Field(default=1, ge=1, le=16, description="How many people have to deny to end it.")
    expires: PositiveDuration = Field(default=86_400.0, description="How long people have to decide.")
    on_expiry: Literal["deny", "escalate"] = Field(default="deny", description=(
        'What happens then: "deny", or "escalate": `escalate_to` are asked, with as much time again. Nothing is approved by time.'))
    escalate_to: Many[str] = Field(default=(), max_length=32, description="Who is asked next, as `approvers` are named.")
    hold: PositiveDuration | None = Field(default=None, description=(
        "How long a caller's connection is held at the most; without it, as `approvals.hold` says."))
    identity: Many[str] = Field(default=(), max_length=16, description=(
        "CEL expressions whose values make the action the same in place of all its arguments: a caller that rewords the rest meets the "
        "same approval, and what was stored is what is sent."))
    by_session: bool = Field(default=False, description="Whether an approval holds only for the session that it was asked in.")
    on_disconnect: Literal["leave", "withdraw"] = Field(default="leave", description=(
        "What becomes of it when its caller hangs up: it is left for when they come back, or withdrawn."))
    notify: Many[Label] | None = Field(default=None, description="Which channels of `[notify]` are told; without it, every one.")
    remind: PositiveDuration | None = Field(default=None, description="When people are told once more, if nobody has decided.")
    grants: bool = Field(default=True, description="Whether an approver may allow calls like it for a while.")

    @model_validator(mode="after")
    def _escalating(self) -> Self:
        if (self.on_expiry == "escalate") != bool(self.escalate_to):
            raise ValueError('`on_expiry = "escalate"` and `escalate_to` belong together')
        if self.remind is not None and self.remind >= self.expires:
            raise ValueError("`remind` must come before `expires`")
        return self


class RuleConfig(Strict):
    """`[[rule]]`: one statement of what is allowed."""

    id: Label = Field(description="Its name in answers, logs and the journal.")
    phase: Literal["request", "tool_call", "response", "tool_result"] = Field(default="request", description=(
        "When it is asked: before a call leaves; for each tool call, made or proposed by a model; for the text of an answer; for the "
        "result of a tool."))
    mode: Literal["enforce", "shadow", "off"] = Field(default="enforce", description=(
        '"shadow" is asked, counted and shown, and changes nothing; "off" is only checked.'))
    match: MatchConfig = MatchConfig()
    when: str | None = Field(default=None, min_length=1, description="A CEL expression; without it `match` says it all.")
    effect: Literal["deny", "require_approval", "redact", "set", "route", "limit", "allow", "log"] = Field(
        description="What it does when it matches. The most restrictive wins.")
    message: str | None = Field(default=None, min_length=1, max_length=1000, description="What the caller is told.")
    remedy: str | None = Field(default=None, min_length=1, max_length=1000, description="What the caller is told to do instead.")
    label: Label | None = Field(default=None, description="What a `log` rule writes on the call and its session; without it, its id.")
    approvers: Many[str] = Field(default=(), max_length=32, description=(
        "Who may approve (`require_approval`): `role:NAME`, `team:NAME`, `person:ID`, or a CEL expression over `approver.…` and "
        "`approval.…`. Without any, everybody who may approve at all."))
    quorum: int = Field(default=1, ge=1, le=16, description="How many people have to approve.")
    approval: ApprovalConfig = Field(default=ApprovalConfig(), description="For `require_approval`.")
    unlabel: Many[Label] = Field(default=(), max_length=16, description=(
        "Labels that a `log` rule takes off the session: labels only grow otherwise."))
    serial: bool = Field(default=False, description=(
        "Whether calls that this rule could apply to are handled one at a time within their session, so that each sees the one before."))
    redact: RedactConfig | None = Field(default=None, description="For `redact`.")
    set: SetConfig | None = Field(default=None, description="For `set`.")
    route: RerouteConfig | None = Field(default=None, description="For `route`.")
    limit: LimitConfig | None = Field(default=None, description="For `limit`.")
    team: str = Field(default="", exclude=True, description="The team whose bundle holds it; set by the loader.")
    source: str = Field(default="", exclude=True, description="`file:line`; set by the loader.")

    @model_validator(mode="after")
    def _fitting(self) -> Self:
        phases = PHASES_OF.get(self.effect)
        if phases is not None and self.phase not in phases:
            raise ValueError(f"`{self.effect}` has no meaning in phase `{self.phase}`, only in {' and '.join(phases)}")
        if self.effect != "require_approval" and (self.approvers or self.quorum != 1 or "approval" in self.model_fields_set):
            raise ValueError(
                f"`approvers`, `quorum` and `approval` belong to the effect `require_approval`, and this rule's is `{self.effect}`")
        if self.approval.stages and (self.approvers or self.quorum != 1):
            raise ValueError("`approval.stages` stand in place of `approvers` and `quorum`: give one or the other")
        if self.effect != "log" and self.unlabel:
            raise ValueError(f"`unlabel` belongs to the effect `log`, and this rule's is `{self.effect}`")
        for table in TABLE_OF.values():
            given = getattr(self, table) is not None
            if given and TABLE_OF.get(self.effect) != table:
                raise ValueError(f"`{table}` belongs to the effect `{table}`, and this rule's is `{self.effect}`")
            if not given and TABLE_OF.get(self.effect) == table:
                raise ValueError(f"the effect `{table}` needs a table `{table}` that says what to do")
        limit = self.limit
        if limit is not None and self.phase == "tool_call" and (limit.tokens is not None or limit.concurrent is not None):
            raise ValueError("only `requests` of a tool call can be limited: one that a model proposes has no tokens, and no end that the "
                             "gateway sees. For HTTP tools write `concurrent` in the phase `request`")
        return self


class BundleConfig(Strict):
    """`[bundle]`: whose rules a file holds. Without it they are the organisation's, for everybody."""

    team: str | None = Field(default=None, min_length=1, max_length=200, description=(
        "The team whose calls the rules of this file are for. They can only narrow what the organisation's rules allow."))
    description: str = Field(default="", max_length=1000, description="What the rules are for.")


class DefaultsConfig(Strict):
    """`[defaults]`: what holds where no rule allows or denies. In one file, and not in a team's."""

    models: Literal["allow", "deny"] = Field(default="allow", description="Calls of models, by keys that may use the route.")
    tools: Literal["allow", "deny"] = Field(default="deny", description=(
        "Calls of the HTTP tools that are declared in `routes/`, made by a client or proposed by a model."))
    application_tools: Literal["allow", "deny"] = Field(default="allow", description=(
        "Calls, proposed by a model, of tools that the application itself runs."))


class PolicyFile(Strict):
    """A file of `policies/`."""

    bundle: BundleConfig = BundleConfig()
    defaults: DefaultsConfig | None = None
    rule: Annotated[tuple[RuleConfig, ...], Field(strict=False)] = ()
