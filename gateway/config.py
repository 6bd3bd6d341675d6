"""What `config.toml` and `routes/*.toml` may say, as strict models. Owns their shape; `snapshot.py` their meaning.

Every description is the setting's documentation: `docs/configuration.md` is made of them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import Field, ValidationInfo, field_validator

from gateway.case_config import CaseConfig
from gateway.errors import Problem
from gateway.people_config import ApprovalsConfig, JwtConfig, LoginConfig, NotifyConfig, OidcConfig, SessionsConfig
from gateway.resilience_config import BreakerConfig, HealthConfig
from gateway.route_config import RouteConfig
from gateway.rule_config import DefaultsConfig, RuleConfig
from gateway.toml_source import KeyPath, Source
from gateway.tool_config import Headers, ToolConfig
from gateway.units import (
    Duration,
    Globs,
    Label,
    Money,
    Name,
    Names,
    PositiveDuration,
    Reference,
    RequestPrice,
    Size,
    TokenPrice,
    Url,
    plausible,
    show_pico,
)
from gateway.validation import Strict

MIB: Final = 1024 * 1024


class ServerConfig(Strict):
    """Where the gateway listens and what it takes."""

    host: str = Field(default="127.0.0.1", min_length=1, max_length=253, description=(
        "The address to listen on. Other than loopback needs `auth.required` and `admin.token`."))
    port: int = Field(default=8080, ge=0, le=65535, description="The port to listen on; 0 takes a free one.")
    max_body: Size = Field(default=10 * MIB, description="The largest body of a request; a larger one is refused, never judged on a part.")
    max_depth: int = Field(default=128, ge=1, le=250, description="How deep arrays and objects of a body may be nested.")
    body_timeout: PositiveDuration = Field(default=30.0, description="How long a request's body may take to arrive.")
    drain_timeout: Duration = Field(default=30.0, description="How long calls in flight may take to finish after SIGTERM.")
    grace: Duration = Field(default=2.0, description=(
        "How long connections that are open are still answered after SIGTERM: a client may be writing its next request."))
    max_in_flight: int = Field(default=1000, ge=1, le=1_000_000, description=(
        "How many calls one process works on at a time; more wait in `queue`."))
    queue: int = Field(default=1000, ge=0, le=1_000_000, description=(
        "How many calls may wait for their turn, which goes round between keys; more are refused with `overloaded`."))
    queue_wait: Duration = Field(default=5.0, description="The longest that a call waits for its turn.")
    keep_alive: PositiveDuration = Field(default=10.0, description=(
        "How long an open stream may be silent before a comment is sent, for proxies that cut what is."))
    dialects: Names = Field(default=("openai",), min_length=1, description="The APIs that clients may speak, by the name of their adapter.")


class PathsConfig(Strict):
    """The three folders of a deployment, relative to the folder of config.toml."""

    policies: str = Field(default="policies", min_length=1, description="The folder of the rules.")
    routes: str = Field(default="routes", min_length=1, description="The folder of the routes.")
    adapters: str = Field(default="adapters", min_length=1, description=(
        "The folder of your own adapters; it is searched before those that ship."))


class UpstreamConfig(Strict):
    """How the gateway speaks to providers."""

    transport: Literal["lean", "aiohttp"] = Field(default="lean", description=(
        'The HTTP client: "lean" is the gateway\'s own, cheaper and stricter; "aiohttp" is the library\'s.'))


class StoreConfig(Strict):
    """Where keys and the journal are kept."""

    path: str = Field(default="lockgate.db", min_length=1, description=(
        'The SQLite database, relative to the folder of config.toml; ":memory:" forgets everything at the end.'))
    synchronous: Literal["full", "normal"] = Field(default="full", description=(
        '"full": what was answered survives a power cut; "normal": it survives the end of the process, and is faster.'))
    busy_timeout: PositiveDuration = Field(default=5.0, description="How long to wait for another process that writes.")


class JournalConfig(Strict):
    """What is kept of each call."""

    bodies: Literal["full", "redacted", "none"] = Field(default="full", description=(
        'Bodies of requests and answers: "full", "redacted" (their shape without texts), or "none". Secrets are never kept.'))


class AuthConfig(Strict):
    """Who may call."""

    required: bool = Field(default=True, description=(
        "Whether a call needs a virtual key. Without, everybody who reaches the port may call."))
    pepper: Reference = Field(default="file:secrets/pepper", description=(
        "The key that virtual keys are hashed with. Another one makes every existing virtual key invalid."))
    jwt: Mapping[Label, JwtConfig] = Field(default_factory=dict, description=(
        "Issuers whose JSON Web Tokens are credentials beside virtual keys, by a name of yours."))


class AdminConfig(Strict):
    """Who may use the control endpoints."""

    token: Reference | None = Field(default=None, description=(
        "The token that opens the control endpoints under `/-/`; without one they stay shut."))


class PolicyConfig(Strict):
    """How rules are evaluated."""

    engine: Literal["auto", "cel-expr-python", "cel-python"] = Field(default="auto", description=(
        'The CEL engine; "auto" takes cel-expr-python where it is installed, else cel-python, which is much slower.'))
    withheld: Literal["text", "refusal", "drop"] = Field(default="text", description=(
        'What stands in an answer in place of a tool call that a rule refused: "text", a sentence in the content; "refusal", the '
        'dialect\'s own field for it; "drop", nothing in the message, only the headers, the stream\'s last comment and the record.'))
    wait: Duration = Field(default=5.0, description=(
        "How long a call waits for another call of its session, where a rule depends on that one or asks for one at a time."))
    detectors: Names = Field(default=(), description=(
        "Your own detectors, by the name of a file in the folder of adapters that exports `DETECTORS`; rules name them beside those "
        "that ship."))
    env: Mapping[Label, str] = Field(default_factory=dict, description="What rules read as `env.NAME`: the region, the stage.")
    watch: bool = Field(default=True, description="Whether `lockgate serve` reloads by itself when a file of the deployment changes.")


class LogConfig(Strict):
    """The log on standard error."""

    format: Literal["json", "text"] = Field(default="json", description="One JSON object a line, or text for people.")
    level: Literal["debug", "info", "warning", "error"] = Field(default="info", description="The least important lines that are written.")


class OtlpConfig(Strict):
    """OpenTelemetry spans over OTLP/HTTP (`pip install 'lockgate[otlp]'`)."""

    endpoint: Url | None = Field(default=None, description="Where spans are sent; without one none are made.")
    headers: Headers = Field(default_factory=dict, description='Headers to send along; a value "env:NAME" or "file:PATH" is a reference.')


class ProviderConfig(Strict):
    """`[providers.NAME]`: an upstream with its credentials. NAME is what routes and prices call it."""

    adapter: Name = Field(description="How to speak to it: a file or folder of this name under `adapters/`.")
    base_url: Url = Field(description="Where it is, up to and with the version: `https://api.example.com/v1`.")
    api_key: Reference | None = Field(default=None, description=(
        "A reference to the provider's key; it never leaves the gateway but to the provider."))
    headers: Headers = Field(default_factory=dict, description='Headers to send along; a value "env:NAME" or "file:PATH" is a reference.')
    price_provider: str | None = Field(default=None, min_length=1, max_length=64, description=(
        "Which provider's published prices apply (genai-prices' id: openai, anthropic, google, groq, …)."))
    max_answer: Size = Field(default=32 * MIB, description="The largest answer that is read; a larger one is a failure of the provider.")
    output_limit: Literal["max_tokens", "max_completion_tokens", ""] = Field(default="max_tokens", description=(
        'The field that the longest answer is given in where a budget binds; OpenAI wants "max_completion_tokens". "" where the provider '
        "takes no such field."))
    bills_unanswered: bool = Field(default=True, description=(
        "Whether an attempt that was sent and brought no answer (a timeout, a lost connection) may have cost as much as a whole one. False "
        "books its input alone."))
    breaker: BreakerConfig = Field(default=BreakerConfig(), description="What is other than in `[breaker]` for its targets.")
    health: HealthConfig | None = Field(default=None, description="Asks whether it is well, now and then.")


_FORCE: Final = "If it is right, set `force = true` beside it"
_DEAREST_IMAGE: Final = 10**12  # pico-USD


class TierConfig(Strict):
    """`[[prices."PROVIDER/MODEL".tiers]]`: what changes for calls with long contexts."""

    above: int = Field(ge=1, le=100_000_000, description="Input tokens; a call with more of them is charged by this tier.")
    input: TokenPrice = Field(description="Input.")
    output: TokenPrice = Field(description="Output.")
    cached_input: TokenPrice | None = Field(default=None, description="Input read from the provider's cache; without it, as `input`.")
    cache_write: TokenPrice | None = Field(default=None, description="Input written to the provider's cache; without it, as `input`.")


class PriceConfig(Strict):
    """`[prices."PROVIDER/MODEL"]`: what a target charges, before any published price. USD per million tokens unless said otherwise."""

    force: bool = Field(default=False, description=(
        "Take a price outside $0.001 to $1000 per million tokens, which is else taken for a slip."))
    input: TokenPrice = Field(description='Input; "0" is free of charge.')
    output: TokenPrice = Field(description='Output; "0" is free of charge, and right for embeddings.')
    cached_input: TokenPrice | None = Field(default=None, description="Input read from the provider's cache; without it, as `input`.")
    cache_write: TokenPrice | None = Field(default=None, description="Input written to the provider's cache; without it, as `input`.")
    input_audio: TokenPrice | None = Field(default=None, description="Audio input; without it, as `input`.")
    output_audio: TokenPrice | None = Field(default=None, description="Audio output; without it, as `output`.")
    reasoning: TokenPrice | None = Field(default=None, description="Hidden reasoning; without it, as `output`.")
    image: RequestPrice = Field(default=0, description="USD per picture of a request, on top of its tokens.")
    request: RequestPrice = Field(default=0, description="USD per call, on top.")
    tiers: Annotated[tuple[TierConfig, ...], Field(strict=False)] = Field(default=(), max_length=16, description=(
        "Other prices for long contexts: each holds for all tokens of a call with more than `above` input tokens."))

    @field_validator("input", "output", "cached_input", "cache_write", "input_audio", "output_audio", "reasoning")
    @classmethod
    def _plausible(cls, pico: int | None, info: ValidationInfo) -> int | None:
        _expect_plausible(pico, info)
        return pico

    @field_validator("image")
    @classmethod
    def _plausible_picture(cls, pico: int, info: ValidationInfo) -> int:
        if pico > _DEAREST_IMAGE and not info.data.get("force"):
            raise ValueError(f"${show_pico(10**12)(pico)} per picture is more than $1: a slip of the unit? {_FORCE}")
        return pico

    @field_validator("tiers")
    @classmethod
    def _plausible_tiers(cls, tiers: tuple[TierConfig, ...], info: ValidationInfo) -> tuple[TierConfig, ...]:
        for number, tier in enumerate(tiers):
            for name in ("input", "output", "cached_input", "cache_write"):
                _expect_plausible(getattr(tier, name), info, f"[{number}].{name}: ")
        if len({tier.above for tier in tiers}) < len(tiers):
            raise ValueError("two tiers begin at the same number of tokens")
        return tiers


def _expect_plausible(pico: int | None, info: ValidationInfo, where: str = "") -> None:
    if pico is not None and not plausible(pico) and not info.data.get("force"):
        raise ValueError(f"{where}${show_pico(10**6)(pico)} per million tokens is outside $0.001 to $1000: a slip of the unit? {_FORCE}")


class ModelConfig(Strict):
    """`[models."PROVIDER/MODEL"]`: what bounds the cost of a call of this target before it is sent."""

    context: int | None = Field(default=None, ge=1, le=100_000_000, description=(
        "The most input tokens that the model takes; without it, what genai-prices knows."))
    max_output: int | None = Field(default=None, ge=1, le=10_000_000, description=(
        "The longest answer that the model gives, in tokens: a client that asks for more is taken to ask for this."))
    default_output: int = Field(default=4096, ge=1, le=10_000_000, description=(
        "The longest answer, in tokens, where a budget binds and the client gives no limit: the gateway then asks for this one."))
    image_tokens: int = Field(default=50_000, ge=0, le=10_000_000, description="The most tokens that one picture counts.")
    hidden_reasoning: bool | None = Field(default=None, description=(
        "Whether the model thinks unseen, so that an answer whose provider does not say what it used counts as all that was granted. "
        "Without it, as far as the request asks for reasoning."))
    bytes_per_token: int = Field(default=1, ge=1, le=16, description=(
        "The fewest bytes of text that a token has, which bounds the tokens of an input. 1 is always right."))
    output_limit: Literal["max_tokens", "max_completion_tokens", ""] | None = Field(default=None, description=(
        'The field that the longest answer is given in where a budget binds; "" where the model takes no such field: then give '
        "`max_output`. Without it, the provider's."))


class PricingConfig(Strict):
    """What holds where nobody knows a price."""

    unknown: Literal["deny", "assume"] = Field(default="deny", description=(
        'A target without a price where a budget binds: "deny" the call, or "assume" the two prices below. Without a budget the cost is '
        "reported as unknown."))
    assumed_input: TokenPrice | None = Field(default=None, description="USD per million tokens of input that are assumed.")
    assumed_output: TokenPrice | None = Field(default=None, description="USD per million tokens of output that are assumed.")


class BudgetConfig(Strict):
    """`[budgets.NAME]`: how much money each subject of a scope may spend in a window."""

    scope: Literal["all", "org", "team", "key", "user", "session", "run", "route", "tool", "tag"] = Field(description=(
        "What has an account of its own: everything together, each organisation, team, key, user of a key, session or run of a key, "
        "route, HTTP tool, or tag (`name=value`)."))
    of: Globs = Field(default=("*",), min_length=1, description="Globs of the subjects that it binds.")
    limit: Money | None = Field(default=None, description="What may be spent in a window, in USD. Without it only `soft` warns.")
    soft: Money | None = Field(default=None, description="What may be spent before answers, the log and a metric warn, in USD.")
    limits: Mapping[str, Money] = Field(default_factory=dict, description="Limits of single subjects in place of `limit`, in USD.")
    window: str = Field(default="none", description=(
        'When money comes back: "hour", "day", "week" (from Monday), "month", a duration ("24h") for one that moves along, or "none".'))
    timezone: str = Field(default="UTC", description='The time zone of days, weeks and months: "Europe/Berlin".')
    on_short: Literal["clamp", "deny"] = Field(default="clamp", description=(
        'When what is left pays for a shorter answer than was asked: "clamp" asks for that one, "deny" refuses the call.'))
    least_output: int = Field(default=16, ge=1, le=1_000_000, description="The shortest answer that is worth it, in tokens, with `clamp`.")


class RoutesFile(Strict):
    """A file of `routes/`."""

    route: Annotated[tuple[RouteConfig, ...], Field(strict=False)] = ()
    tool: Annotated[tuple[ToolConfig, ...], Field(strict=False)] = ()


class Config(Strict):
    """`config.toml`."""

    server: ServerConfig = ServerConfig()
    paths: PathsConfig = PathsConfig()
    upstream: UpstreamConfig = UpstreamConfig()
    store: StoreConfig = StoreConfig()
    journal: JournalConfig = JournalConfig()
    auth: AuthConfig = AuthConfig()
    admin: AdminConfig = AdminConfig()
    policy: PolicyConfig = PolicyConfig()
    log: LogConfig = LogConfig()
    otlp: OtlpConfig = OtlpConfig()
    providers: Mapping[Label, ProviderConfig] = Field(default_factory=dict)
    pricing: PricingConfig = PricingConfig()
    prices: Mapping[str, PriceConfig] = Field(default_factory=dict)
    models: Mapping[str, ModelConfig] = Field(default_factory=dict)
    budgets: Mapping[Label, BudgetConfig] = Field(default_factory=dict)
    breaker: BreakerConfig = BreakerConfig()
    approvals: ApprovalsConfig = ApprovalsConfig()
    notify: Mapping[Label, NotifyConfig] = Field(default_factory=dict)
    login: LoginConfig = LoginConfig()
    oidc: OidcConfig | None = None
    sessions: SessionsConfig = SessionsConfig()


@dataclass(frozen=True, slots=True)
class Deployment:
    """A deployment folder as it was read: shapes are right, meanings are not yet checked.

    `sources` holds the files by their name in problems, `file` is the name of config.toml there; `unread` names what stands in
    the folders of routes and rules and is not read, although somebody may think so.
    """

    folder: Path
    config: Config
    routes: tuple[RouteConfig, ...] = ()
    tools: tuple[ToolConfig, ...] = ()
    rules: tuple[RuleConfig, ...] = ()
    defaults: DefaultsConfig = field(default_factory=DefaultsConfig)
    lists: Mapping[str, frozenset[str]] = field(default_factory=dict, repr=False)
    cases: tuple[CaseConfig, ...] = ()
    file: str = "config.toml"
    sources: Mapping[str, Source] = field(default_factory=dict, repr=False)
    unread: tuple[str, ...] = ()

    def problem(self, path: KeyPath, message: str, hint: str | None = None) -> Problem:
        """A problem at a key of config.toml."""
        return self.sources.get(self.file, Source(self.file)).problem(path, message, hint)

    def problem_in(self, entry: str, path: KeyPath, message: str, hint: str | None = None) -> Problem:
        """A problem inside a route, a tool or a rule; `entry` is its `source` and `path` starts at it."""
        file, _, line = entry.rpartition(":")
        known = self.sources.get(file, Source(file))
        start = next((at for at, number in known.lines.items() if number == int(line) and len(at) == 2), ())
        return known.problem((*start, *path), message, hint)
