"""What the rules say about a call, as data: a closed family of frozen values, each with its reasons."""

from dataclasses import dataclass
from typing import ClassVar, Literal, TypeAlias

from gateway.call import JsonObject

Effect: TypeAlias = Literal["deny", "allow", "log"]
Verdict: TypeAlias = Literal["matched", "not_matched", "error"]

POLICY_ERROR = "policy_error"


@dataclass(frozen=True, slots=True)
class Reason:
    """One rule that was asked and what it answered. `source` is `file:line`.

    `message` is the rule's own, or `policy_error: …` where it could not be evaluated.
    """

    rule: str
    effect: Effect
    verdict: Verdict
    source: str
    message: str


@dataclass(frozen=True, slots=True)
class Allowed:
    """The call may go on.

    `rule` is the `allow` rule that said so, None where no rule did: the principal is entitled to its route anyway.
    `labels` are what matching `log` rules say, in declared order; `bundle` is the digest of the rules that were asked.
    """

    name: ClassVar[Literal["allow"]] = "allow"

    rule: str | None
    message: str | None
    remedy: str | None
    reasons: tuple[Reason, ...]
    labels: tuple[str, ...]
    bundle: str


@dataclass(frozen=True, slots=True)
class Denied:
    """The call ends here. `rule` is the first `deny` rule, in declared order, that matched or could not be evaluated.

    `message` and `remedy` are for the caller. The other fields are those of `Allowed`.
    """

    name: ClassVar[Literal["deny"]] = "deny"

    rule: str
    message: str
    remedy: str | None
    reasons: tuple[Reason, ...]
    labels: tuple[str, ...]
    bundle: str


Decision: TypeAlias = Allowed | Denied


def reason_json(reason: Reason) -> JsonObject:
    """A reason as the journal, the log and `explain` hold it."""
    return {"rule": reason.rule, "effect": reason.effect, "verdict": reason.verdict,
            "source": reason.source, "message": reason.message}
