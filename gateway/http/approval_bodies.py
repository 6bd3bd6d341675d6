"""What people send to the endpoints of approvals and grants, as strict models."""

from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, Field

from gateway.approvals.deciding import LONGEST_GRANT_S, MOST_USES, MOST_VOTES, Offer
from gateway.store.scrub import Scrubber
from gateway.units import PositiveDuration
from gateway.validation import Strict

LONGEST_COMMENT: Final = 2000
_LONGEST_NOTE: Final = 500
_LONGEST_CONDITION: Final = 4096
_LONGEST_ID: Final = 100
_DAY_S: Final = 86_400.0


def _sayable(text: str) -> str:
    """A text that others are shown as it is: several lines of it, and nothing that steers a terminal or belongs to somebody."""
    if not all(line.isprintable() for line in text.split("\n")):
        raise ValueError("holds characters that cannot be shown")
    if Scrubber(()).text(text) != text:
        raise ValueError("holds a virtual key, which belongs to its owner alone; what stands here is shown to others")
    return text


def _bounded(seconds: float) -> float:
    if seconds > LONGEST_GRANT_S:
        raise ValueError(f"is longer than a grant may last: {LONGEST_GRANT_S / _DAY_S:.0f} days at the most")
    return seconds


Comment = Annotated[str, Field(max_length=LONGEST_COMMENT), AfterValidator(_sayable)]
Digest = Annotated[str, Field(max_length=_LONGEST_ID, description="The digest of the action that was shown.")]


class GrantBody(Strict):
    """`grant` of a vote: calls like this one go on for a while."""

    condition: Annotated[str, Field(max_length=_LONGEST_CONDITION, description=(
        "CEL over what rules of the phase read; empty: every call that the rule would hold."))] = ""
    uses: Annotated[int, Field(ge=1, le=MOST_USES)] | None = Field(default=None, description="How many calls; null: any number.")
    lasting: Annotated[PositiveDuration, AfterValidator(_bounded)] = Field(alias="for", description='How long: "1h". 30 days at the most.')
    session: bool = Field(default=False, description="Whether it is for the session of this approval alone.")
    note: Annotated[str, Field(max_length=_LONGEST_NOTE), AfterValidator(_sayable)] = ""

    @property
    def offer(self) -> Offer:
        """The grant as it is asked for."""
        return Offer(self.lasting, self.condition, self.uses, self.session, self.note)


class VoteBody(Strict):
    """A vote on what was shown."""

    verdict: Literal["approve", "deny"]
    digest: Digest
    comment: Comment = ""
    grant: GrantBody | None = None


class EditBody(Strict):
    """Other arguments for an action."""

    digest: Digest
    arguments: dict[str, Any] = Field(description="All of them: the arguments of a tool, or the messages and parameters of a model call.")
    comment: Comment = ""
    approve: bool = Field(default=False, description="Whether to approve the new action with it, unless a rule makes another one of it.")


class ResolveBody(Strict):
    """What came of an action that nobody knew it of."""

    outcome: Literal["succeeded", "failed"]
    comment: Annotated[Comment, Field(min_length=1, description="How you know.")]


class WithdrawBody(Strict):
    """Why an action is taken back."""

    comment: Comment = ""


class ShownAction(Strict):
    """One action of a batch, as it was shown."""

    id: Annotated[str, Field(max_length=_LONGEST_ID)]
    digest: Digest


class BatchBody(Strict):
    """One verdict on several actions of the same shape and rule."""

    verdict: Literal["approve", "deny"]
    comment: Comment = ""
    approvals: Annotated[tuple[ShownAction, ...], Field(strict=False, min_length=1, max_length=MOST_VOTES)]
