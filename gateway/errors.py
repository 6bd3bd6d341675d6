"""The one error family. Each class says what happened and what to do; `CODES` maps a code to its HTTP status.

Nothing here knows a wire format: a dialect turns an error into its own body (`gateway/wire/protocol.py`).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Final

LONGEST_MESSAGE: Final = 2000  # characters of a provider's words that are kept
LONGEST_WORD: Final = 200


@dataclass(frozen=True, slots=True)
class CodeRule:
    """What a code means on the wire: the HTTP status and whether an SDK should try again."""

    status: int
    should_retry: bool


CODES: Final[Mapping[str, CodeRule]] = {
    "invalid_request": CodeRule(400, should_retry=False),
    "unauthenticated": CodeRule(401, should_retry=False),
    "too_many_logins": CodeRule(429, should_retry=False),
    "not_permitted": CodeRule(403, should_retry=False),
    "browser_refused": CodeRule(403, should_retry=False),
    "forbidden": CodeRule(403, should_retry=False),
    "approval_unavailable": CodeRule(403, should_retry=False),
    "approval_denied": CodeRule(403, should_retry=False),
    "approval_pending": CodeRule(409, should_retry=True),
    "approval_unknown": CodeRule(409, should_retry=False),
    "approval_conflict": CodeRule(409, should_retry=False),
    "session_frozen": CodeRule(403, should_retry=False),
    "session_conflict": CodeRule(409, should_retry=False),
    "unknown_route": CodeRule(404, should_retry=False),
    "unknown_url": CodeRule(404, should_retry=False),
    "method_not_allowed": CodeRule(405, should_retry=False),
    "body_timeout": CodeRule(408, should_retry=False),
    "body_too_large": CodeRule(413, should_retry=False),
    "rate_limited": CodeRule(429, should_retry=True),
    "budget_exceeded": CodeRule(429, should_retry=False),
    "budget_busy": CodeRule(429, should_retry=True),
    "price_unknown": CodeRule(403, should_retry=False),
    "headers_too_large": CodeRule(431, should_retry=False),
    "internal_error": CodeRule(500, should_retry=False),
    "upstream_rejected": CodeRule(400, should_retry=False),
    "upstream_failed": CodeRule(502, should_retry=False),
    "upstream_timeout": CodeRule(504, should_retry=False),
    "upstream_busy": CodeRule(429, should_retry=True),
    "overloaded": CodeRule(503, should_retry=True),
    "store_unavailable": CodeRule(503, should_retry=True),
    "identity_unavailable": CodeRule(503, should_retry=True),
}


class LockgateError(Exception):
    """Base of everything Lockgate raises on purpose.

    `code` is stable and is what programs read; `message` is for people: what happened and what to do.
    """

    code: ClassVar[str] = "internal_error"

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class CallError(LockgateError):
    """A governed call ends with this error. `pointer` is an RFC 6901 JSON pointer into the body, when one place is at fault."""

    def __init__(self, message: str, *, pointer: str | None = None, retry_after_s: int | None = None) -> None:
        super().__init__(message)
        self.pointer = pointer
        self.retry_after_s = retry_after_s

    @property
    def status(self) -> int:
        """The HTTP status of this code."""
        return CODES[self.code].status

    @property
    def should_retry(self) -> bool:
        """What `x-should-retry` tells the client's SDK."""
        return CODES[self.code].should_retry


class InvalidRequest(CallError):
    """The body or a header is wrong. Correct what `pointer` names and send it again."""

    code = "invalid_request"


class Unauthenticated(CallError):
    """No key, an unknown key, or one that is expired or revoked. Never because a store is down."""

    code = "unauthenticated"


class TooManyLogins(CallError):
    """Too many passwords or tokens were tried, from one address or for one name. Wait for `retry_after_s`."""

    code = "too_many_logins"


class BrowserRefused(CallError):
    """A browser has sent this from a page that is not the gateway's, by a name that is not the gateway's, or without its CSRF token."""

    code = "browser_refused"


class NotPermitted(CallError):
    """Who you are is known, and what you may do here does not include this. Ask somebody who may."""

    code = "not_permitted"


class Forbidden(CallError):
    """A rule denies this call. `rule` is its id; `remedy` is what the rule's author says to do instead."""

    code = "forbidden"

    def __init__(self, message: str, *, rule: str, remedy: str | None = None) -> None:
        super().__init__(message)
        self.rule = rule
        self.remedy = remedy


class ApprovalUnavailable(Forbidden):
    """A rule asks for a person's approval, and this cannot wait for one: the call is refused. `rule` is its id; the message says why."""

    code = "approval_unavailable"


class OfApproval(CallError):
    """An end that an approval makes. `ticket` is its id; `rule` the rule that asked for it."""

    def __init__(self, message: str, *, ticket: str, rule: str, retry_after_s: int | None = None) -> None:
        super().__init__(message, retry_after_s=retry_after_s)
        self.ticket = ticket
        self.rule = rule


class ApprovalPending(OfApproval):
    """People are asked, and nobody has decided yet. Send the same request again: it finds the same approval, `ticket`."""

    code = "approval_pending"


class ApprovalAccepted(ApprovalPending):
    """The same, for a caller that asked not to be kept waiting (`Prefer: respond-async`): 202, with where to look."""

    status = 202  # not an error of the caller's, and no answer either


class ApprovalDenied(OfApproval):
    """People have denied the action, or nobody decided in time, or it was withdrawn. The message has the approver's comment."""

    code = "approval_denied"


class ApprovalUnknown(OfApproval):
    """The approved action was sent, and nobody knows what came of it. It is not sent again; an operator says what happened."""

    code = "approval_unknown"


class ApprovalConflict(CallError):
    """The approval is another than you think: it is decided, claimed or over, or shows another action. Look at it again."""

    code = "approval_conflict"


class SessionFrozen(CallError):
    """An operator has frozen or killed the session: none of its calls go on."""

    code = "session_frozen"


class SessionConflict(CallError):
    """The session or its fact is another than you think: it was killed, or the fact has another version. Look at it again."""

    code = "session_conflict"


class RateLimited(CallError):
    """A `limit` rule's rate is used up, or you asked for too many approvals. Try again after `retry_after_s`; `rule` is the rule's id."""

    code = "rate_limited"

    def __init__(self, message: str, *, rule: str, retry_after_s: int) -> None:
        super().__init__(message, retry_after_s=retry_after_s)
        self.rule = rule


class BudgetExceeded(CallError):
    """An account's money is used up. The error names the `account`, its limit, what is used and reserved, and when it resets."""

    code = "budget_exceeded"

    def __init__(self, message: str, *, account: str, figures: Mapping[str, str | None], retry_after_s: int | None = None) -> None:
        super().__init__(message, retry_after_s=retry_after_s)
        self.account = account
        self.figures = figures  # limit_usd, used_usd, reserved_usd, resets_at: texts; None where there is none


class BudgetBusy(BudgetExceeded):
    """What is left of an account is only held by calls in flight. Try again in a moment."""

    code = "budget_busy"


class PriceUnknown(CallError):
    """A budget binds the call, and nobody knows the target's price. Set `[prices."PROVIDER/MODEL"]`, or an assumed price in `[pricing]`."""

    code = "price_unknown"


class UnknownRoute(CallError):
    """No such model for this principal; the message lists what there is."""

    code = "unknown_route"


class UnknownUrl(CallError):
    """Nothing answers at this path. See the endpoints in the README."""

    code = "unknown_url"


class MethodNotAllowed(CallError):
    """The path exists, the method does not."""

    code = "method_not_allowed"


class BodyTimeout(CallError):
    """The request's body did not arrive in time. Send it whole, or raise `server.body_timeout`."""

    code = "body_timeout"


class BodyTooLarge(CallError):
    """The body is over `server.max_body`. It is never judged on a prefix."""

    code = "body_too_large"


class HeadersTooLarge(CallError):
    """The request line or a header is over the server's limit."""

    code = "headers_too_large"


class InternalError(CallError):
    """A defect of the gateway itself. The call id is in the log beside the traceback."""

    code = "internal_error"


class UpstreamRejected(CallError):
    """The provider refused the request itself (a 4xx that is not about us). Passed on with the provider's own status and words."""

    code = "upstream_rejected"

    def __init__(self, message: str, *, status: int, upstream_type: str | None = None, upstream_code: str | None = None,
                 upstream_param: str | None = None) -> None:
        super().__init__(message)
        self.upstream_status = status
        self.upstream_type = upstream_type
        self.upstream_code = upstream_code
        self.upstream_param = upstream_param

    def scrub(self, scrub: Callable[[str], str]) -> None:
        """Take secrets out of everything the provider wrote, then cut it to length: the other way round would hide half a secret."""
        self.message = scrub(self.message)[:LONGEST_MESSAGE]
        self.upstream_type = scrub(self.upstream_type)[:LONGEST_WORD] if self.upstream_type else None
        self.upstream_code = scrub(self.upstream_code)[:LONGEST_WORD] if self.upstream_code else None
        self.upstream_param = scrub(self.upstream_param)[:LONGEST_WORD] if self.upstream_param else None

    @property
    def status(self) -> int:
        """The provider's own status."""
        return self.upstream_status


class UpstreamFailed(CallError):
    """Every attempt failed; the message lists them. The gateway has already retried."""

    code = "upstream_failed"


class UpstreamTimeout(CallError):
    """A deadline passed; the message says which one."""

    code = "upstream_timeout"


class UpstreamBusy(CallError):
    """Every target has asked to be left alone for a while (429). Try again after `retry_after_s`."""

    code = "upstream_busy"


class Overloaded(CallError):
    """Shed before any work was done. Try again after `retry_after_s`."""

    code = "overloaded"


class StoreUnavailable(CallError):
    """The store cannot be read or written, so it cannot be known whether this call is allowed."""

    code = "store_unavailable"


class IdentityUnavailable(CallError):
    """The identity provider, or the issuer of a token, does not answer, so nobody can know who you are. Try again after `retry_after_s`."""

    code = "identity_unavailable"


class AttemptFailed(LockgateError):
    """One try of one target failed. Never reaches a client as it is: the proxy retries, falls back or sums up.

    `cause` is one of `connect`, `tls`, `reset`, `timeout:connect|headers|first_token|idle|total`, `status:<n>`,
    `malformed`, `cut`, `stream_error`, `too_large`, `too_long` (for its money), `check:<validator>`, `not_accepted` (of a cascade),
    `hedged` (another answered first). `retryable` says whether the same request may be sent again.
    `retry_after_s` is what the provider asked for, in seconds.
    """

    code = "upstream_failed"

    def __init__(self, cause: str, message: str, *, retryable: bool, status: int | None = None, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.cause = cause
        self.retryable = retryable
        self.status = status
        self.retry_after_s = retry_after_s

    @property
    def told(self) -> str:
        """What callers are told: the cause, and what the provider said. Where the provider is, is on record, and none of their business."""
        return told(self.cause, self.message, self.status)

    def scrub(self, scrub: Callable[[str], str]) -> None:
        """Take secrets out of what the provider wrote, then cut it to length."""
        self.message = scrub(self.message)[:LONGEST_MESSAGE]


def told(cause: str, message: str, status: int | None) -> str:
    """How an attempt ended, for callers: what a transport says of it names the upstream's address."""
    own = status is not None or cause == "stream_error" or cause.startswith(("check:", "not_accepted", "too_long"))
    return f"{cause} ({message})" if own and message else cause


class ClientGone(LockgateError):
    """The client closed its connection before the answer's end. Nobody is left to be told; the books are closed all the same."""

    code = "client_gone"


@dataclass(frozen=True, slots=True)
class Problem:
    """One bad thing in the configuration: where it stands, what is wrong, and the nearest thing that would be right."""

    file: str
    line: int | None
    key: str
    message: str
    hint: str | None = None

    def __str__(self) -> str:
        """`file:line:key: message (hint)`, the shape that editors jump to."""
        place = ":".join(str(part) for part in (self.file, self.line, self.key) if part not in (None, ""))
        return f"{place}: {self.message}" + (f" ({self.hint})" if self.hint else "")


class ConfigError(LockgateError):
    """The configuration cannot be used; `problems` names every bad thing found."""

    code = "config_error"

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = tuple(problems)


class StoreError(LockgateError):
    """The database cannot be opened or used: a directory, read-only, from a newer version, locked for too long."""

    code = "store_unavailable"


class SetupError(LockgateError):
    """The program cannot start as asked: a port in use, a folder that exists, an unsafe binding."""

    code = "setup_error"
