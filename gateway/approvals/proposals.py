"""Tool calls that a model proposes: each is judged before its client can see it, and people are asked where a rule says so."""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from gateway.approvals.holding import Holding, OnHold
from gateway.approvals.matters import of_tool
from gateway.approvals.tickets import Matter
from gateway.asking import Asking, limits_of
from gateway.call import Call, Json, JsonObject, ToolCall, ToolUse
from gateway.core.approval import Ticket
from gateway.core.decision import BAD_ARGUMENTS, Decision, Denied, Held, Reason
from gateway.core.question import Question
from gateway.enact import enact, rate_spent, takes_of
from gateway.errors import ApprovalDenied, ApprovalUnknown, CallError, Forbidden, RateLimited, UpstreamFailed
from gateway.gate import Ruling
from gateway.progress import Progress
from gateway.schemas import SchemaCache
from gateway.snapshot import Snapshot
from gateway.tool_offers import read, refused, say, unfit
from gateway.wire.tool_calls import CALLS, LEGACY, Proposed, misplaced, proposed, rewritten

STRAY_CALL: Final = "The answer holds what may be a tool call in a place where none belongs."
_MOST_LATELY: Final = 10_000
_LONGEST_ID: Final = 256
_MOST_PROPOSED: Final = 1024  # tool calls in one answer, all its choices together

Answer = Callable[[], JsonObject | None]  # the answer that a proposal stands in, as it is kept; None where it cannot be


@dataclass(frozen=True, slots=True)
class _Passed:
    """A proposed tool call that was judged: what it may go on under, or why it may not go on at all.

    `place` is its own among the call's uses of tools. `matter` is None where nobody has to be asked; else `ticket` is None where `grants`
    cover it.
    """

    asked: Proposed
    tool: ToolCall
    decision: Decision | None
    place: int
    error: Forbidden | RateLimited | ApprovalDenied | ApprovalUnknown | None = None
    matter: Matter | None = None
    ticket: Ticket | None = None
    grants: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Proposals:
    """Judges what models propose. One per gateway; `current` gives the snapshot that is in force.

    `lately` are the ids of proposed tool calls, and whether they were let through.
    """

    asking: Asking
    holding: Holding
    current: Callable[[], Snapshot]
    schemas: SchemaCache = field(default_factory=SchemaCache)
    lately: OrderedDict[tuple[str, str], bool] = field(default_factory=OrderedDict)

    async def choice(self, case: Progress, snapshot: Snapshot, call: Call, choice: Json, answer: Answer) -> Json:
        """One choice of a plain answer with its tool calls judged."""
        if not isinstance(choice, dict) or misplaced(choice, "message"):
            raise UpstreamFailed(STRAY_CALL)
        message = choice.get("message")
        if not isinstance(message, dict) or not (message.get("tool_calls") or message.get(LEGACY)):
            return choice
        message = {name: value for name, value in message.items() if name not in CALLS}
        entries = choice["message"].get("tool_calls") or []
        older = choice["message"].get(LEGACY)
        pairs = [(each, "") for each in (entries if isinstance(entries, list) else [entries])] + ([(older, LEGACY)] if older else [])
        asked = [proposed(entry, kind) for entry, kind in pairs]
        kept = []
        for (entry, kind), each, ruling in zip(pairs, asked, await self.ruled(case, snapshot, call, asked, answer), strict=True):
            if ruling.arguments is None:
                say(message, ruling.text, snapshot.config.policy.withheld)
            elif kind:
                message[LEGACY] = rewritten(entry, each, ruling.arguments)
            else:
                kept.append(rewritten(entry, each, ruling.arguments))
        if kept:
            message["tool_calls"] = kept
        left = {**choice, "message": message, **({"logprobs": None} if "logprobs" in choice else {})}  # they would spell out every call
        nothing = not kept and LEGACY not in message
        return {**left, "finish_reason": "stop"} if nothing and choice.get("finish_reason") in CALLS else left

    async def ruled(
        self, case: Progress, snapshot: Snapshot, call: Call, asked: Sequence[Proposed], answer: Answer,
    ) -> list[Ruling]:
        """What becomes of each of these, once people have decided on all that they are asked about: they see all of them at once.

        Raises:
            ApprovalPending: nobody has decided yet, and the caller should come back.
        """
        decided = case.verdicts if case.answered else case.decisions
        before, used = len(decided), len(case.uses)
        if used + len(asked) > _MOST_PROPOSED:
            raise UpstreamFailed(f"The answer calls more than {_MOST_PROPOSED} tools.")
        while True:
            passed: list[_Passed] = []
            case.passing = frozenset()
            on_hold: list[Ticket] = []
            for each in asked:
                try:
                    passed.append(await self._proposed(case, snapshot, call, each, answer))
                except OnHold as hold:
                    on_hold.append(hold.ticket)
            if not on_hold:  # nothing of it goes on before all of it may
                try:
                    return [await self._released(case, snapshot, call, each) for each in passed]
                except OnHold as hold:
                    on_hold.append(hold.ticket)
                except CallError:
                    del case.uses[used:]  # none has gone on
                    raise
            del case.uses[used:]
            case.withheld = True  # if it ends now, the provider has done its work all the same
            await self.holding.wait(case, snapshot, on_hold[0])
            case.withheld = False
            del decided[before:]  # all of it is asked again
            snapshot = self.current()

    def remember(self, principal: str, tool_call_id: str, *, released: bool) -> None:
        """A client that reads a stream may bring the result before the answer's end is on record."""
        if len(tool_call_id) > _LONGEST_ID:  # a provider's; the record has it
            return
        self.lately[principal, tool_call_id] = released
        if len(self.lately) > _MOST_LATELY:
            self.lately.popitem(last=False)

    async def _proposed(self, case: Progress, snapshot: Snapshot, call: Call, asked: Proposed, answer: Answer) -> _Passed:
        """One tool call that a model proposes. Raises `OnHold` where people have to decide first."""
        await asyncio.sleep(0)  # there may be many, and other calls wait
        known = snapshot.tools.get(asked.name)
        now_ns = self.asking.clock.now_ns()
        tool, wrong = read(asked, call, known, self.schemas)
        judged = None
        try:
            if wrong:
                raise Forbidden(f"The model's arguments cannot be used: {wrong}.", rule=BAD_ARGUMENTS)
            question = self.asking.question(snapshot, "tool_call", call, tool=tool, known_tool=known is not None)
            judged = await self.asking.ask(case, snapshot, question)
            made, tool = tool, judged.question.tool or tool
            held = enact(judged.decision)
            if tool.args is not made.args:
                _check_made(tool, asked, unfit(tool, call, known, self.schemas))
            passed = _Passed(asked, tool, judged.decision, len(case.uses))
            if held:
                passed = await self._permitted(case, snapshot, judged.question, passed, held, answer)
        except (Forbidden, ApprovalDenied, ApprovalUnknown) as error:
            passed = _Passed(asked, tool, judged.decision if judged is not None else None, len(case.uses), error)
        case.uses.append(_use(call, passed, tool.args, now_ns, released=passed.error is None))  # for the rules, the next one comes after it
        return passed

    async def _permitted(
        self, case: Progress, snapshot: Snapshot, question: Question, passed: _Passed, held: tuple[Held, ...], answer: Answer,
    ) -> _Passed:
        """The tool call with the approval or the grants that let it go on. Raises as `Holding.permit` does."""
        tool = passed.tool
        matter = of_tool(snapshot, self.holding.conditions, question, tool, held, kind="tool_call")
        ticket = await self.holding.permit(case, snapshot, matter, answer())
        if ticket is not None and ticket.id in case.passing:
            twice = "The same call stands in this answer already, and an approval is for one. Propose it again once that one is done."
            raise ApprovalDenied(twice, ticket=ticket.id, rule=ticket.rule)
        if ticket is not None:
            case.passing |= {ticket.id}
        if ticket is not None and ticket.digest != matter.action.digest:
            await self._reconsidered(case, snapshot, replace(question, tool=replace(tool, args=ticket.shown["arguments"])), matter, ticket)
        return replace(passed, matter=matter, ticket=ticket, grants=case.grants)

    async def _released(self, case: Progress, snapshot: Snapshot, call: Call, passed: _Passed) -> Ruling:
        """What becomes of a tool call that may go on, or may not. Raises `OnHold` where what it was to go on under is another by now."""
        asked, tool, now_ns = passed.asked, passed.tool, self.asking.clock.now_ns()
        arguments, error = tool.args, passed.error
        if error is None:
            try:
                if passed.decision is not None:
                    await self._take(case, call, passed.decision, now_ns)
                if passed.matter is not None:
                    keep = tool.name in snapshot.tools
                    changed = await self.holding.release(case, passed.matter, passed.ticket, grants=passed.grants, keep=keep)
                    arguments = tool.args if changed is None else changed
            except RateLimited as spent:
                error = spent
        ruling = Ruling(arguments)
        if error is not None:
            if passed.decision is None or passed.decision.name == "allow":  # the gateway's own refusal: no decision of the rules says it
                case.decided(_denied(snapshot, asked.name, error.rule, error.message))
            remedy = error.remedy if isinstance(error, Forbidden) else None
            ruling = Ruling(None, refused(asked.name, error.message, error.rule, remedy))
        released = error is None
        case.uses[passed.place] = _use(call, passed, arguments, now_ns, released=released)
        self.remember(call.principal.id, asked.id, released=released)
        return ruling

    async def _reconsidered(self, case: Progress, snapshot: Snapshot, question: Question, matter: Matter, ticket: Ticket) -> None:
        """Ask the rules about what goes on in place of what was proposed: the arguments that people have seen, and perhaps written.

        Raises:
            Forbidden, ApprovalDenied: the rules of now do not let it.
            OnHold: they ask for more people.
        """
        judged = await self.asking.judged(snapshot.bundle, await self.asking.informed(case, snapshot, question))
        held = enact(judged.decision)
        if question.tool is not None and judged.question.tool is not None:
            known = snapshot.tools.get(question.tool.name)
            if judged.question.tool.args != question.tool.args or unfit(question.tool, question.call, known, self.schemas):
                why = "The rules make another action of it by now than what was approved."
                raise ApprovalDenied(why, ticket=ticket.id, rule=ticket.rule)
        await self.holding.reconsider(case, matter, ticket, held)

    async def _take(self, case: Progress, call: Call, decision: Decision, now_ns: int) -> None:
        """Take the rates of a tool call that a model proposes: of requests, others are refused in its phase.

        Raises:
            RateLimited: one is used up; none is taken.
        """
        limits = [(limit, self.asking.scrub(decision.subject)) for limit in limits_of(decision)]
        if not limits:
            return
        spent = await self.asking.budgets.take(takes_of(limits, self.asking.subjects(case, call), 0), now_ns=now_ns)
        if spent is not None:
            raise rate_spent(spent)


def _use(call: Call, passed: _Passed, arguments: JsonObject, at_ns: int, *, released: bool) -> ToolUse:
    return ToolUse(call.id, passed.asked.id, passed.asked.name, "model", arguments, released, at_ns)


def _check_made(tool: ToolCall, asked: Proposed, problem: str) -> None:
    """Raise `Forbidden` where what a rule makes of the arguments is not what the tool takes."""
    if asked.kind == "custom" and (tool.args.keys() != {"input"} or not isinstance(tool.args["input"], str)):
        problem = "it takes one text"
    if problem:
        raise Forbidden(f"What a rule makes of the arguments does not fit the tool: {problem}.", rule=BAD_ARGUMENTS)


def _denied(snapshot: Snapshot, tool: str, rule: str, why: str) -> Denied:
    """A refusal by the gateway itself, as a decision."""
    reason = Reason(rule, "limit" if rule != BAD_ARGUMENTS else "deny", "matched", "", why)
    return Denied(rule, why, None, (reason,), (), snapshot.bundle.digest, "tool_call", tool)

