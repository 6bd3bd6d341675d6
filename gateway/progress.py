"""What is known of one call so far. Owned by the one task that handles the call; becomes a frozen `CallRecord` at the end."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from operator import attrgetter
from typing import Final

from gateway.breakers import Permit
from gateway.call import Attempt, AttemptEnd, Call, CallRecord, JsonObject, Origin, Outcome, Principal, ToolUse, Usage
from gateway.core.approval import Event, Result, Ticket
from gateway.core.decision import Decision, Denied, Limit, reasons_json, strictest, verdict_json
from gateway.core.estimate import BYTES_OF_A_TOKEN, estimated_usage
from gateway.core.money import cost_nusd
from gateway.core.plan import RouteTarget
from gateway.errors import AttemptFailed, CallError
from gateway.spending import Spending
from gateway.store.approvals_protocol import Claim, KeptAnswer
from gateway.store.protocol import NOTHING_BOOKED, Booked
from gateway.waiting import Presence
from gateway.wire.assemble import Assembler
from gateway.wire.protocol import Event as StreamEvent
from gateway.wire.protocol import StreamEncoder
from gateway.wire.text_size import text_size

NOBODY = Principal(id="", routes=())

_MOST_REASONS: Final = 128  # the API that is the canonical form gives at most as many choices
_LONGEST_ID: Final = 1000  # of an answer that somebody may go on from
_UNSEEN: Final = 256  # tokens: what a fast provider makes in the time that it takes to tell it to stop
# The provider answered with an error status or was never reached: it has not worked, so it has not billed.
_UNBILLED: Final = ("connect", "tls", "timeout:connect")


@dataclass(slots=True)
class Receipt:
    """What an attempt has brought so far; right at any moment, so that one that breaks off can be settled from it.

    `answered`: there is an answer, or a stream of one has begun; until then nobody knows how much was made.
    """

    usage: Usage | None = None
    pieces: int = 0  # chunks that brought text
    text_bytes: int = 0  # of what the provider wrote, whether the client got it or not
    usage_bytes: int = 0  # of that, what had come when it last said what it used
    answered: bool = False
    largest_gap_s: float | None = None  # between two pieces of a stream

    def meter(self, event: StreamEvent) -> None:
        """Note what the provider sent, and what it says it used: that is owed whatever becomes of the answer."""
        if event.body is not None and (size := text_size(event.body)):
            self.pieces += 1
            self.text_bytes += size
        if event.usage is not None and (self.usage is None or _total(event.usage) >= _total(self.usage)):
            self.usage, self.usage_bytes = event.usage, self.text_bytes

    @property
    def stated(self) -> Usage | None:
        """What the provider said that it used; a report that words came after is none of the whole."""
        return self.usage if self.text_bytes <= self.usage_bytes else None


@dataclass(slots=True, eq=False)
class Trying:
    """An attempt under way. `why`, `breaker` and `retries_left` are those of `Attempt`; `ended` hears of its end, once.

    `units` is what was granted for each choice of its answer. `sent`: a first byte may have left.
    """

    n: int
    to: RouteTarget
    started_ns: int
    waited_s: float = 0.0
    units: int | None = None
    sent: bool = True
    why: str = ""
    breaker: str = "closed"
    retries_left: float | None = None
    permit: Permit | None = None  # its target's breaker's
    ended: "Callable[[Trying, Attempt, AttemptFailed | None], None] | None" = None
    first_byte_ns: int | None = None
    receipt: Receipt = field(default_factory=Receipt)

    def sending(self) -> None:
        """It leaves: from here on its provider may have worked."""
        self.sent = True


@dataclass(slots=True)
class Tally:
    """What of a stream the client has got."""

    assembler: Assembler | None
    finish_reasons: list[str] = field(default_factory=list)
    answer_id: str = ""

    def add(self, event: StreamEvent) -> None:
        """Note one event that goes to the client."""
        if event.finish_reason is not None and len(self.finish_reasons) < _MOST_REASONS:
            self.finish_reasons.append(event.finish_reason)
        if event.body is None:
            return
        if not self.answer_id:
            self.answer_id = id_of(event.body)
        if self.assembler is not None:
            self.assembler.add(event.body)


@dataclass(slots=True)
class Progress:
    """One call under way. Every field is written once, in the order of the path of a call."""

    id: str
    dialect: str
    operation: str
    received_ns: int
    bodies: str = "none"  # what the journal keeps of bodies, under the settings that the call began with
    principal: Principal = NOBODY
    origin: Origin = field(default_factory=Origin)
    hints: Mapping[str, str] = field(default_factory=dict)  # what its body says of where it belongs
    chained: bool = False  # its answer's id leads to its session
    answer_id: str = ""  # as it is looked up by, where that is so
    presence: Presence = field(default_factory=Presence)
    call: Call | None = None
    received: JsonObject = field(default_factory=dict, repr=False)  # the body as it came, before rules changed anything
    approval: Ticket | None = None  # the latest that it went on under, or waits for
    under: Ticket | None = None  # the one that is about the call as a whole
    claim: Claim | None = None  # what its intent takes
    kept: KeptAnswer | None = None  # the answer that was held for people, and is given now
    passing: frozenset[str] = frozenset()  # approvals of an answer whose parts are to go on together
    shown: bool = False  # a byte of the answer may have left for the client
    keeps: bool = False  # there is one, of its own or from before
    taken: KeptAnswer | None = None  # the same, once something of it goes on: nobody else is given it
    once: bool = False  # a proposed call of the answer goes on by people's word: the answer is for one, who makes it
    released: frozenset[str] = frozenset()  # approvals under which something of it has gone on
    grants: tuple[str, ...] = ()  # what its intent, or what goes on without one, uses up
    granted: tuple[str, ...] = ()  # the grants that it has used
    asked_again: str = ""  # what an answer is kept under that is held for people; empty where none can be
    result: Result | None = field(default=None, repr=False)  # what came of an approved action, for whoever waits for it
    tool: str = ""  # the HTTP tool that the address names; known before its arguments are
    decisions: list[Decision] = field(default_factory=list)  # before anything left
    verdicts: list[Decision] = field(default_factory=list)  # on what came back
    offers: list[Decision] = field(default_factory=list)  # why a tool was not offered to the model
    labels: dict[str, None] = field(default_factory=dict)  # what the rules have said so far, in order
    uses: list[ToolUse] = field(default_factory=list)
    results: dict[str, str] = field(default_factory=dict)  # what tools gave back, by the id of the call
    answered: bool = False  # a provider has answered: from here on rules judge what came back
    unfit: str = ""  # why validators do not let the answer pass that people are to look at
    withheld: bool = False  # a rule keeps the answer from the client
    open: list[Trying] = field(default_factory=list)  # attempts under way: one, or two beside each other
    lost: int = 0  # numbers of attempts of which nobody knows whether they are on record; none of them was made
    given: int = 0  # the number of the attempt whose answer is given, where that is not the last that has one
    attempts: list[Attempt] = field(default_factory=list)
    left: list[Attempt] = field(default_factory=list)  # those of which a byte may have been sent
    limits: list[tuple[Limit, str]] = field(default_factory=list)  # rates that the call takes, each with the tool it is about, if any
    spending: Spending | None = None
    booked: Booked = NOTHING_BOOKED
    account: str = ""  # the one whose budget refused the call or ended its answer
    cut_short: bool = False  # the answer was ended because its money was used up
    finish_reasons: tuple[str, ...] = ()
    tally: Tally | None = None  # set once a stream is relayed to the client
    encoder: StreamEncoder | None = None  # the one that writes the open stream, to its end: from then on an error is an event in it
    notes: list[str] = field(default_factory=list)  # what came of the question for the call's task
    plan: JsonObject | None = None  # which targets were to be tried and why, where there was a choice
    part_of: str = ""  # the call that this one is made for
    begun: bool = False  # the intent is in the journal, so an outcome must follow
    doubtful: bool = False  # nobody can say whether the intent is in the journal: the store failed while it was written
    patience: str = "the deadline"  # how long it may take, and who says so
    inside: bool = False  # it has a place in the house
    settled: bool = False  # the outcome is on its way to the journal, so no second one may
    ended_by: CallError | None = None  # why the gateway itself has cancelled it

    @property
    def decision(self) -> Decision | None:
        """What was decided before anything left: the strictest of it."""
        return strictest(self.decisions)

    @property
    def strictest(self) -> Decision | None:
        """The strictest of all that was decided so far."""
        return strictest([*self.decisions, *self.verdicts]) if self.verdicts else self.decision

    def again(self) -> None:
        """It has waited for people, and the rules are asked once more: what they said before does not count."""
        self.claim, self.grants = None, ()
        for noted in (self.decisions, self.offers, self.uses, self.limits, self.notes):
            noted.clear()
        self.labels.clear()
        self.results.clear()

    def undecided(self, decision: Decision) -> None:
        """People have to decide first, and then it is asked once more: it is one decision."""
        decisions = self.verdicts if self.answered else self.decisions
        decisions.remove(decision)

    def decided(self, decision: Decision) -> None:
        """Note a decision."""
        (self.verdicts if self.answered else self.decisions).append(decision)
        self.labels.update(dict.fromkeys(decision.labels))

    @property
    def unlabels(self) -> tuple[str, ...]:
        """The labels that rules have taken off the session and the store does not know of yet; what the call itself has put on stays."""
        return tuple([label for label in _taken_off(self.verdicts if self.begun else self.decisions) if label not in self.labels])

    @property
    def trying(self) -> Trying | None:
        """The attempt under way, of two the later one."""
        return self.open[-1] if self.open else None

    @property
    def begun_attempts(self) -> int:
        """How many attempts there were so far, those under way included."""
        return len(self.attempts) + len(self.open)

    @property
    def next_n(self) -> int:
        """The number of the next attempt."""
        return self.begun_attempts + self.lost + 1

    def start_attempt(self, trying: Trying) -> Trying:
        """An attempt is about to be sent, with what was granted for it."""
        granted = self.spending.granted if self.spending else None
        trying.units = granted.units if granted else None
        self.open.append(trying)
        return trying

    def end_attempts(
        self, end: AttemptEnd, *, ended_ns: int, failure: AttemptFailed | None = None, status: int | None = None, message: str = "",
    ) -> None:
        """Put what is still under way on record."""
        for trying in tuple(self.open):
            self.end_attempt(trying, end, ended_ns=ended_ns, failure=failure, status=status, message=message)

    def end_attempt(
        self, trying: Trying, end: AttemptEnd, *, ended_ns: int, failure: AttemptFailed | None = None, status: int | None = None,
        message: str = "",
    ) -> None:
        """Put an attempt on record, priced where that is possible; nothing where it has ended already."""
        if trying not in self.open:
            return
        self.open.remove(trying)
        receipt = trying.receipt
        usage = receipt.stated
        cause = failure.cause if failure else ""
        price = trying.to.price
        if usage is not None and receipt.text_bytes > 0 and not (usage.input_tokens and usage.output_tokens):
            usage = None  # words came, and it says that there were none
        refused = end is AttemptEnd.REJECTED or cause in _UNBILLED or cause.startswith("status:")
        unbilled = usage is None and (refused or not trying.sent)
        if usage is None and not unbilled:
            usage = self._estimated(trying, broken=end is not AttemptEnd.SUCCEEDED, paid=cause == "too_long")
        elif usage is not None and self.spending is not None and self.spending.measured.images:
            usage = replace(usage, images=self.spending.measured.images)
        cost = 0 if unbilled else cost_nusd(price, usage) if price and usage else None
        attempt = Attempt(
            n=trying.n, target=trying.to.target, started_ns=trying.started_ns, ended_ns=ended_ns, end=end,
            cause=cause, message=failure.message if failure else message, status=failure.status if failure else status,
            first_byte_ns=trying.first_byte_ns, waited_s=trying.waited_s, usage=usage, cost_nusd=cost, prices=trying.to.prices,
            why=trying.why, breaker=trying.breaker, retries_left=trying.retries_left, largest_gap_s=receipt.largest_gap_s)
        self.attempts.append(attempt)
        if trying.sent and cause not in _UNBILLED:
            self.left.append(attempt)
        if trying.ended is not None:
            trying.ended(trying, attempt, failure)

    @property
    def delivering(self) -> Attempt | None:
        """The attempt that delivered: the last that succeeded, else the last that the client has heard of; None where there was none."""
        succeeded = [attempt for attempt in self.attempts if attempt.end is AttemptEnd.SUCCEEDED and self.given in (0, attempt.n)]
        heard = [attempt for attempt in self.attempts if attempt.end not in (AttemptEnd.FAILED, AttemptEnd.CANCELLED)]
        return (succeeded or heard or self.attempts)[-1] if self.attempts else None

    def estimated_so_far(self, trying: Trying) -> Usage | None:
        """What an attempt under way has used at the most, as far as anybody knows."""
        return self._estimated(trying, broken=False)

    def _estimated(self, trying: Trying, *, broken: bool, paid: bool = False) -> Usage | None:
        """What an attempt used whose provider did not say: an upper bound of what came, never nothing. `paid`: at most what was granted.

        Nobody sees a model think: where it may have, or where nothing came, it may have used all that was granted. Of a stream that is
        broken off, a provider may have made more than came by the time that it hears of it.
        """
        if self.spending is None:
            return None
        bounds, measured, receipt = trying.to.bounds, self.spending.measured, trying.receipt
        came: int | None = receipt.text_bytes
        thinks = measured.thinks if bounds.hidden_reasoning is None else bounds.hidden_reasoning
        if bounds.bills_unanswered and (thinks or (not came and (broken or not receipt.answered))):
            came = None
        elif came is not None and broken and bounds.bills_unanswered:
            came += _UNSEEN
        unpaid = self.cut_short or paid  # what was not paid for, nobody got
        least = 0 if unpaid else max(receipt.pieces, receipt.text_bytes // BYTES_OF_A_TOKEN)
        return estimated_usage(measured, bounds, came, trying.units, least)

    def spent_beside(self, trying: Trying) -> int:
        """What the other attempts cost at the most: what is set aside for one that runs beside this one is not this one's."""
        ended = sum(attempt.cost_nusd or 0 for attempt in self.attempts)
        if self.spending is None:
            return ended
        others = [(self.spending.need(each.to), each.units) for each in self.open if each is not trying]
        return ended + sum(need.cost(need.most if units is None else units) for need, units in others)

    @property
    def spent_nusd(self) -> int:
        """What the attempts so far cost at the most, those under way included: what a further one comes on top of."""
        ended = sum(attempt.cost_nusd or 0 for attempt in self.attempts)
        granted = self.spending.granted if self.spending else None
        return max(ended, granted.amount_nusd) if self.open and granted else ended

    def cost_nusd(self) -> int | None:
        """What the call cost, in nano-USD: the known costs together, None where the attempt that delivered has no known cost.

        An attempt that failed after it was sent may have been billed by its provider; its own row says at most how much.
        """
        delivered = [attempt for attempt in self.attempts if attempt.end is not AttemptEnd.FAILED]
        if any(attempt.cost_nusd is None for attempt in delivered or self.attempts):
            return None
        return sum(attempt.cost_nusd or 0 for attempt in self.attempts)

    @property
    def outcome_of_failure(self) -> Outcome:
        """What an error now would make of the call."""
        if self.withheld:
            return Outcome.WITHHELD
        if self.tally is not None:
            return Outcome.CUT
        return Outcome.FAILED if self.begun else Outcome.REFUSED

    def record(self, outcome: Outcome, *, ended_ns: int, status: int, code: str = "", message: str = "") -> CallRecord:
        """The record of the call, as of now."""
        decision = self.decision
        call = self.call
        return CallRecord(
            id=self.id, principal=self.principal, dialect=self.dialect, operation=self.operation,
            route=call.route if call else self.tool, stream=call.stream if call else False, origin=self.origin,
            received_ns=self.received_ns, ended_ns=ended_ns, outcome=outcome, status=status, code=code, message=message,
            decision=decision.name if decision else "", rule=(decision.rule or "") if decision else "",
            labels=tuple(self.labels), bundle=decision.bundle if decision else "", reasons=self._reasons(),
            attempts=tuple(sorted(self.attempts, key=attrgetter("n"))), cost_nusd=self.cost_nusd(),
            usage=self.delivering.usage if self.delivering else None,
            first_byte_ns=self.delivering.first_byte_ns if self.delivering else None, finish_reasons=self.finish_reasons,
            verdicts=tuple([verdict_json(each, self.bodies) for each in self.verdicts if _says_something(each)]),
            answer_labels=tuple(dict.fromkeys(label for each in self.verdicts for label in each.labels)),
            tool_uses=tuple(self.uses), tool_results=tuple(self.results.items()), account=self.account,
            reserved_nusd=self._reserved_nusd(), plan=self.plan, part_of=self.part_of, unlabels=_taken_off(self.decisions),
            answer_unlabels=_taken_off(self.verdicts), answer_id=self.answer_id,
            approval=ticket.id if (ticket := self.under or self.approval) else "", approval_end=self._action_end(outcome),
        )

    def _action_end(self, outcome: Outcome) -> str:
        """What becomes of the approval that the call was made under: the name of an `Event`; empty where it was made under none."""
        if self.claim is None or self.under is None:
            return ""
        if outcome in (Outcome.COMPLETED, Outcome.WITHHELD):
            return Event.SUCCEED
        if not self.left:  # nothing has been sent: it may be done yet
            return Event.RETURN
        if self.under.effect == "model" or all(each.status is not None for each in self.left):
            return Event.FAIL
        return Event.LOSE if self.under.effect == "at_most_once" else Event.RETURN

    def _reserved_nusd(self) -> int | None:
        spending = self.spending
        return spending.granted.amount_nusd if spending and spending.granted and spending.standings else None

    def _reasons(self) -> tuple[JsonObject, ...]:
        told = [reason for decision in self.decisions for reason in reasons_json(decision, self.bodies)]
        for decision in self.offers:
            told += [{**reason, "offered": False} for reason in reasons_json(decision, self.bodies)]
        return tuple(told)


def id_of(body: JsonObject) -> str:
    """The id that an answer, or a piece of a stream, has; empty where it has none."""
    found = body.get("id")
    return found if isinstance(found, str) and len(found) <= _LONGEST_ID else ""


def _taken_off(decisions: Sequence[Decision]) -> tuple[str, ...]:
    """What rules take off the session: those of a denial let nothing pass, and take nothing off."""
    return tuple(dict.fromkeys(label for each in decisions if not isinstance(each, Denied) for label in each.unlabels))


def _says_something(decision: Decision) -> bool:
    return isinstance(decision, Denied) or any(reason.verdict != "not_matched" for reason in decision.reasons)


def _total(usage: Usage) -> int:
    return usage.input_tokens + usage.output_tokens
