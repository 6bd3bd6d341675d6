"""What `[breaker]`, `[providers.NAME.health]` and the retries of routes and tools may say, as strict models."""

from typing import Annotated

from pydantic import Field

from gateway.units import Duration, PositiveDuration
from gateway.validation import Strict

Share = Annotated[float, Field(ge=0, le=1, strict=False)]


class BreakerConfig(Strict):
    """`[breaker]`: when a target that fails or dawdles gets no more calls for a while. A provider or a tool may change single keys."""

    enabled: bool = Field(default=True, description="Whether breakers open by themselves; they can be opened by hand all the same.")
    window: PositiveDuration = Field(default=30.0, description="How far back outcomes count.")
    calls: int = Field(default=10, ge=1, le=100_000, description="The fewest outcomes in the window that a share is taken of.")
    failures: Share = Field(default=0.5, description="The share of failures that opens it.")
    consecutive: int = Field(default=5, ge=1, le=100_000, description="Failures in a row that open it, however few calls there are.")
    slow: Share = Field(default=0.8, description="The share of slow answers that opens it.")
    slow_first_token: PositiveDuration | None = Field(default=None, description=(
        "An answer whose first token took longer is slow. Without it none is."))
    slow_gap: PositiveDuration | None = Field(default=None, description=(
        "A stream with a longer gap between two pieces is slow. Without it none is."))
    open: PositiveDuration = Field(default=5.0, description="How long it stays open at first; twice as long each time it opens again.")
    open_cap: PositiveDuration = Field(default=300.0, description="The longest that it stays open before a call is let through to see.")
    probes: int = Field(default=1, ge=1, le=100, description="Calls that are let through at a time to see whether it is well again.")
    cool_cap: PositiveDuration = Field(default=60.0, description="The longest that a target rests because it answered 429.")


class HealthConfig(Strict):
    """`[providers.NAME.health]`: asks the provider whether it is well, so that a dead one is known before a call meets it."""

    path: str = Field(default="/models", pattern=r"^/[!-~]{0,255}$", description="What is asked for with GET, behind the base URL.")
    interval: PositiveDuration = Field(default=10.0, description="How often.")
    timeout: PositiveDuration = Field(default=2.0, description="How long an answer may take.")
    failures: int = Field(default=3, ge=1, le=100, description="Failures in a row that open the breakers of its targets.")


class RetryBudgetConfig(Strict):
    """How many further attempts a route may make, so that an outage is never made worse."""

    share: Share = Field(default=0.2, description="Further attempts for each call.")
    per_second: Annotated[float, Field(ge=0, le=10_000, strict=False)] = Field(default=3.0, description="And so many a second on top.")


class HedgeConfig(Strict):
    """A second attempt beside the first, where that one is slow to answer; whichever answers first is taken, the other one cancelled."""

    after: Duration = Field(default=0.0, description='How long to wait for the first before the second is sent; "0s": none ever is.')
    share: Share = Field(default=0.05, description="The most of these for each call.")
