"""What `[[route]]` in `routes/*.toml` may say, as a strict model. Owns the shape of routes; `snapshot.py` owns their meaning."""

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal, Self, TypeAlias

from pydantic import Field, model_validator

from gateway.resilience_config import HedgeConfig, RetryBudgetConfig
from gateway.units import Duration, Globs, Label, ModelName, PositiveDuration, RouteName
from gateway.validation import Strict

OPERATIONS: Final = ("chat", "completions", "embeddings")
Expression: TypeAlias = Annotated[str, Field(min_length=1, max_length=4096)]
Percent: TypeAlias = Annotated[float, Field(gt=0, le=100, strict=False)]


class TargetConfig(Strict):
    """`[[route.targets]]`: one place where the call may go."""

    provider: Label = Field(description="The name of a `[providers.NAME]`.")
    model: ModelName = Field(description="The model's name there.")
    weight: int = Field(default=1, ge=1, le=1_000_000, description="Its share of the calls, with the strategies `weighted` and `sticky`.")
    canary: Percent | None = Field(default=None, description=(
        "The percentage of sessions (without one, of calls) that go here first; the others never do."))
    continues: bool = Field(default=False, description=(
        "Whether it goes on with an answer that stands, half done, in the last message: where another target's stream broke off."))
    continue_with: Mapping[str, Any] = Field(default_factory=dict, description=(
        "Fields of the body that ask it to: `{ continue_final_message = true, add_generation_prompt = false }` for vLLM."))


class MirrorConfig(Strict):
    """`[[route.mirrors]]`: gets a copy of calls; what it answers is priced, put on record and dropped."""

    provider: Label = Field(description="The name of a `[providers.NAME]`.")
    model: ModelName = Field(description="The model's name there.")
    percent: Percent = Field(default=100.0, description="The percentage of calls.")


class RouteRuleConfig(Strict):
    """`[[route.rules]]`: which targets a call may go to. The first that holds counts; where none does, all of them. One that cannot be
    evaluated does not hold.
    """

    when: Expression = Field(description=(
        "A CEL expression over the [variables](policy.md#variables) of `request` rules, and `task`: what the call's tag `task` says, or "
        "else the classifier."))
    targets: Globs = Field(description='Globs of targets ("PROVIDER/MODEL"): those that match, in this order.')


class ClassifierConfig(Strict):
    """`[route.classifier]`: a small model says what kind of task a call is, for `task` in the route's rules."""

    provider: Label = Field(description="The name of a `[providers.NAME]`.")
    model: ModelName = Field(description="The model's name there.")
    tasks: Annotated[tuple[Label, ...], Field(strict=False)] = Field(min_length=2, max_length=32, description="What it chooses from.")
    default: Label = Field(description="The task where it fails, is late, or says something else; one of `tasks`.")
    instructions: str = Field(default="", max_length=4000, description="What it should know to choose; the tasks are named to it anyway.")
    deadline: PositiveDuration = Field(default=2.0, description="How long it may take.")
    cache: Duration = Field(default=600.0, description="How long its word on the same text holds.")


class CheckConfig(Strict):
    """`[[route.validators]]`: what an answer must be; one that is not is an attempt that failed. Each table says one thing."""

    non_empty: bool = Field(default=False, description="Every choice says something, or calls a tool.")
    json_schema: Mapping[str, Any] | None = Field(default=None, description=(
        "Its text is JSON that fits this JSON Schema. Not asked of a choice that only calls tools."))
    matches: str | None = Field(default=None, min_length=1, max_length=4096, description=(
        "Its text matches this RE2 pattern somewhere. Not asked of a choice that only calls tools."))
    expression: Expression | None = Field(default=None, description="A CEL expression over the answer that must hold.")
    finish_reasons: Annotated[tuple[Label, ...], Field(strict=False)] | None = Field(default=None, min_length=1, description=(
        "Every choice ended for one of these reasons."))

    @model_validator(mode="after")
    def _one_thing(self) -> Self:
        said = [name for name in type(self).model_fields if getattr(self, name) not in (None, False)]
        if len(said) != 1:
            raise ValueError(f"a validator says exactly one of: {', '.join(type(self).model_fields)}")
        return self


class DeadlinesConfig(Strict):
    """`[route.deadlines]`: how long to wait for what."""

    connect: PositiveDuration = Field(default=5.0, description="To connect to a provider, TLS included.")
    headers: PositiveDuration = Field(default=300.0, description=(
        "For the head of its answer. A plain answer's comes when the model has finished, so this bounds its thinking."))
    first_token: PositiveDuration = Field(default=120.0, description="For the first event of a stream, from when it was asked for.")
    idle: PositiveDuration = Field(default=60.0, description="Between two pieces of an answer.")
    total: PositiveDuration = Field(default=600.0, description=(
        "For the call, all attempts together. What a client says that it waits makes it shorter."))


class RetryConfig(Strict):
    """`[route.retry]`: how often one target is tried before the next."""

    attempts: int = Field(default=2, ge=1, le=10, description="Tries of one target; 1 is no retry.")
    base: Duration = Field(default=0.25, description=(
        "The wait before the second try, doubled with each; the real wait is drawn from 0 to this."))
    cap: Duration = Field(default=5.0, description="The longest wait. A provider that asks for more is passed over for the next target.")
    budget: RetryBudgetConfig = RetryBudgetConfig()


class StreamConfig(Strict):
    """`[route.stream]`: streamed answers that are late or break."""

    on_failure: Literal["error", "continue"] = Field(default="error", description=(
        'What becomes of a stream that breaks off: "error" ends it with an error event; "continue" has a target with `continues` go on.'))
    early: Duration = Field(default=0.0, description=(
        "How long the client waits for the first event before its answer begins with a comment, for proxies that cut what is silent. "
        'From then on a failure is an event in the stream, no status. "0s": it never begins before the first event.'))


class RouteConfig(Strict):
    """`[[route]]`: a public model name and where its calls go."""

    name: RouteName = Field(description="What clients send as `model`.")
    aliases: Annotated[tuple[RouteName, ...], Field(strict=False)] = Field(default=(), max_length=64, description="Other names for it.")
    operations: Annotated[tuple[Literal["chat", "completions", "embeddings"], ...], Field(strict=False)] = Field(
        default=OPERATIONS, min_length=1, description="What may be asked of it.")
    strategy: Literal["priority", "weighted", "cheapest", "fastest", "sticky", "cascade"] = Field(default="priority", description=(
        'Which target is tried first: "priority", in order; "weighted", by chance; "cheapest", for this call; "fastest", by how '
        'long it takes; "sticky", the same for a session; "cascade", in order until `accept` holds for an answer.'))
    targets: Annotated[tuple[TargetConfig, ...], Field(strict=False)] = Field(
        min_length=1, max_length=32, description="Where calls go; the next one is for when the one before has failed.")
    rules: Annotated[tuple[RouteRuleConfig, ...], Field(strict=False)] = Field(default=(), max_length=64, description=(
        "Which of the targets a call may go to, by what it is."))
    classifier: ClassifierConfig | None = Field(default=None, description="Who says what kind of task a call is.")
    mirrors: Annotated[tuple[MirrorConfig, ...], Field(strict=False)] = Field(default=(), max_length=4, description="Who gets a copy.")
    accept: Expression | None = Field(default=None, description=(
        "With `cascade`: a CEL expression over the answer; where it does not hold the next target is asked."))
    validators: Annotated[tuple[CheckConfig, ...], Field(strict=False)] = Field(default=(), max_length=16, description=(
        "What an answer must be. A stream is held until its end where there are any."))
    on_exhausted: Literal["error", "approve"] = Field(default="error", description=(
        'When no target gives an answer that passes the validators: "error", or "approve" to have a person look.'))
    deadlines: DeadlinesConfig = DeadlinesConfig()
    retry: RetryConfig = RetryConfig()
    hedge: HedgeConfig = HedgeConfig()
    stream: StreamConfig = StreamConfig()
    source: str = Field(default="", exclude=True, description="`file:line`; set by the loader.")

    @model_validator(mode="after")
    def _accepts(self) -> Self:
        if (self.strategy == "cascade") != (self.accept is not None):
            raise ValueError('`accept` and `strategy = "cascade"` need each other')
        if self.classifier is not None and self.classifier.default not in self.classifier.tasks:
            raise ValueError("the classifier's `default` is one of its `tasks`")
        return self
