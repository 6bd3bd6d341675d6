"""What the rules say at each place where they are asked, and what that makes of the call. Owns no order: that is `Proxy.handle`'s."""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Final, TypeVar

from gateway.call import Call, Json, Reply, Said, ToolCall, ToolResult, ToolUse
from gateway.clock import Clock
from gateway.core.accounts import Subjects
from gateway.core.body import UnreadableFactError, messages, tools_offered
from gateway.core.decide import LATER, at_best
from gateway.core.decision import BAD_ARGUMENTS, BYPASS, Decision, Denied, Limit, Phase, Reason, Redaction
from gateway.core.detectors import DetectionError
from gateway.core.facts import match_keys
from gateway.core.plan import Route
from gateway.core.question import Question
from gateway.core.redaction_stream import StreamRedactor
from gateway.core.rules import Bundle
from gateway.core.session_uses import with_uses
from gateway.enact import enact, rate_spent, rerouted, takes_of
from gateway.errors import CallError, Forbidden, InvalidRequest, RateLimited, UpstreamFailed, UpstreamRejected
from gateway.gate import Gate, Judge, Listening, Ruling, StreamGate, WholeGate, unsearched
from gateway.gather import gather, selected
from gateway.judge import Judged, judge
from gateway.progress import Progress
from gateway.schemas import SchemaCache
from gateway.snapshot import Snapshot
from gateway.spending import budget_facts, subjects_of
from gateway.spoken import finish_reasons, flows, redacted, said
from gateway.store.protocol import Budgets, Sessions
from gateway.tool_offers import called, definitions, described, read, refused, say, unfit, without_tools
from gateway.turns import Turns
from gateway.wire.strict_json import dumps
from gateway.wire.tool_calls import (
    CALLS,
    LEGACY,
    Proposed,
    misplaced,
    parsed_result,
    proposed,
    returned,
    rewritten,
    with_contents,
)

Done = TypeVar("Done")

_STRAY_CALL: Final = "The answer holds what may be a tool call in a place where none belongs."
_MOST_LATELY: Final = 10_000
_LONGEST_ID: Final = 256
_MOST_PROPOSED: Final = 1024  # tool calls in one answer, all its choices together
_MOST_RESULTS: Final = 2048  # results of tools in one request


@dataclass(frozen=True, slots=True)
class Rulings:
    """Asks the rules about calls. One per gateway."""

    sessions: Sessions
    turns: Turns
    budgets: Budgets
    clock: Clock
    scrub: Callable[[str], str]
    schemas: SchemaCache = field(default_factory=SchemaCache)
    lately: OrderedDict[tuple[str, str], bool] = field(default_factory=OrderedDict)  # proposed tool calls: whether they were let through

    async def request(self, case: Progress, snapshot: Snapshot, call: Call, route: Route) -> tuple[Call, Route]:
        """The call as it may leave, and where to. Judged: the request, the results that it brings, and the tool that it calls.

        Raises:
            Forbidden, ApprovalUnavailable: a rule ends it.
        """
        judged = await self._ask(case, snapshot, self._question(snapshot, "request", call))
        enact(judged.decision)
        call = case.call = judged.question.call
        counted = [judged.decision]
        if call.operation == "tool":
            made = await self._tool_made(case, snapshot, call)
            counted.append(made.decision)
            call = case.call = made.question.call
        else:
            if _judges_tools(snapshot) or not snapshot.bundle.phases["tool_result"].empty:
                call = case.call = await self._results(case, snapshot, call)
            if _judges_tools(snapshot):
                call = case.call = await self._offers(case, snapshot, call)
        case.limits += [(limit, decision.subject) for decision in counted for limit in _limits(decision)]  # taken with the intent
        return call, rerouted(route, call, judged.decision, snapshot.routes)

    async def reply(self, case: Progress, snapshot: Snapshot, call: Call, reply: Reply) -> Reply:
        """A plain answer as the client may have it. Raises `Forbidden` where a rule keeps all of it back."""
        if call.operation == "tool":
            return await self._tool_result(case, snapshot, call, reply)
        choices = reply.body.get("choices")
        if not isinstance(choices, list):
            return reply
        if _judges_tools(snapshot):
            if misplaced({name: value for name, value in reply.body.items() if name != "choices"}, ""):
                raise UpstreamFailed(_STRAY_CALL)
            choices = [await self._choice(case, snapshot, call, choice) for choice in choices]
            reply = replace(reply, body={**reply.body, "choices": choices}, finish_reasons=finish_reasons(choices))
        if snapshot.bundle.phases["response"].empty:
            return reply
        judged = await self._ask(case, snapshot, self._question(snapshot, "response", call, said=said(reply)))
        self._enact_late(case, judged)
        redactions = _redactions(judged.decision)
        if not redactions:
            return reply
        try:
            return replace(reply, body=await _apart(judged.question, redacted, reply.body, redactions))
        except DetectionError as error:
            case.withheld = True
            raise unsearched(redactions) from error

    async def gate(self, case: Progress, snapshot: Snapshot, call: Call, *, contiguous: bool) -> Gate | None:
        """What stands between a streamed answer and its client; None where nothing of it is judged."""
        judges: Judge | None = partial(self._proposed, case, snapshot, call) if _judges_tools(snapshot) else None
        asked = self._question(snapshot, "response", call, said=Said(""))
        index = snapshot.bundle.phases["response"].index
        rules = index.select(replace(match_keys(asked, with_tools=False), tools=None)).rules  # which tools it calls is not known yet
        if not rules:
            return StreamGate(judges, (), snapshot.config.policy.withheld, contiguous=contiguous) if judges else None
        ending = [rule for rule in rules if not rule.shadow and rule.effect not in ("allow", "log")]
        if any(not flows(rule) for rule in ending):
            return WholeGate(lambda reply: self.reply(case, snapshot, call, reply))
        decision = (await self._judged(snapshot.bundle, await self._informed(case, snapshot, asked))).decision if ending else None
        redactions = _redactions(decision) if decision is not None else []
        if redactions and StreamRedactor(redactions).whole:
            return WholeGate(lambda reply: self.reply(case, snapshot, call, reply))
        inner = StreamGate(judges, redactions, snapshot.config.policy.withheld, contiguous=contiguous)
        return Listening(inner, lambda reply: self._heard(case, snapshot, call, reply))

    async def _heard(self, case: Progress, snapshot: Snapshot, call: Call, reply: Reply) -> None:
        """Put on record what the rules say of an answer that has gone by: none of them could have stopped it."""
        await self._ask(case, snapshot, self._question(snapshot, "response", call, said=said(reply)))

    def _question(self, snapshot: Snapshot, phase: Phase, call: Call, **what: Any) -> Question:
        return Question(phase, call, self.clock.now_ns(), env=snapshot.config.policy.env, **what)

    async def _ask(self, case: Progress, snapshot: Snapshot, question: Question) -> Judged:
        """Ask the rules of a phase and put on record what they say."""
        judged = await self._judged(snapshot.bundle, await self._informed(case, snapshot, question))
        case.decided(judged.decision)
        return judged

    async def _informed(self, case: Progress, snapshot: Snapshot, question: Question) -> Question:
        """The question with how the accounts stand and what is known of the session, this call's part included."""
        if snapshot.bundle.phases[question.phase].reads_budgets and selected(snapshot.bundle, question).reads_budgets:
            standings = await self.budgets.standing(snapshot.budgets, self._subjects(case, question.call), now_ns=question.now_ns)
            question = replace(question, budgets=budget_facts(standings))
        session = await self.turns.facts(snapshot.bundle, question, wait_s=snapshot.config.policy.wait)
        if session is None:
            return question
        labels = tuple(dict.fromkeys((*session.labels, *case.labels)))
        return replace(question, session=replace(with_uses(session, case.uses), labels=labels))

    async def _judged(self, bundle: Bundle, question: Question) -> Judged:
        if bundle.phases[question.phase].empty:
            return judge(bundle, question)
        return await _apart(question, judge, bundle, question)

    def _enact_late(self, case: Progress, judged: Judged) -> None:
        """What ends a call after it was answered: the outcome says so, because the provider has done its work."""
        try:
            enact(judged.decision)
        except CallError:
            case.withheld = True
            raise

    # Tool calls.

    async def _tool_made(self, case: Progress, snapshot: Snapshot, call: Call) -> Judged:
        """A client's call of an HTTP tool. Its arguments are the body."""
        tool = snapshot.tools[call.route]
        made = ToolCall(call.id, call.route, call.body, "http", "http", tool.annotations)
        asked = self._question(snapshot, "tool_call", call, tool=made, known_tool=True)
        judged = await self._ask(case, snapshot, asked)
        allowed = not isinstance(judged.decision, Denied) and judged.decision.name == "allow"
        given = judged.question.tool or made
        case.uses.append(ToolUse(call.id, call.id, call.route, "http", given.args, allowed, self.clock.now_ns()))
        enact(judged.decision)
        problems = tool.schema.problems(given.args)  # again: a rule of this phase or of `request` may have changed them
        if problems:
            raise Forbidden(f"What a rule makes of the arguments does not fit the tool: {problems[0]}.", rule=BAD_ARGUMENTS)
        if given.args is made.args:
            return judged
        return replace(judged, question=replace(judged.question, call=replace(call, body=given.args)))

    async def _tool_result(self, case: Progress, snapshot: Snapshot, call: Call, reply: Reply) -> Reply:
        """What an HTTP tool gave back."""
        if snapshot.bundle.phases["tool_result"].empty:
            return reply
        kind = "json" if "json" in reply.body else "text"
        content = reply.body[kind]
        result = ToolResult(content, content if kind == "text" else dumps(content).decode())
        tool = ToolCall(call.id, call.route, call.body, "http", "http", snapshot.tools[call.route].annotations)
        asked = self._question(snapshot, "tool_result", call, tool=tool, result=result, known_tool=True)
        judged = await self._ask(case, snapshot, asked)
        self._enact_late(case, judged)
        left = judged.question.result
        return reply if left is None or left is result else replace(reply, body={**reply.body, kind: left.content})

    async def rejected(self, case: Progress, snapshot: Snapshot, call: Call, refusal: UpstreamRejected | UpstreamFailed) -> None:
        """An upstream has refused a call, or failed at it: of a tool, its words are what the tool gave back, and judged as that.

        Raises as `reply` does.
        """
        spoke = any(attempt.status is not None for attempt in case.attempts)
        if call.operation != "tool" or snapshot.bundle.phases["tool_result"].empty or not spoke:
            return
        case.answered = True
        words = Reply({"status": refusal.status, "content_type": "text/plain", "text": refusal.message}, None)
        refusal.message = (await self._tool_result(case, snapshot, call, words)).body["text"]

    async def _choice(self, case: Progress, snapshot: Snapshot, call: Call, choice: Json) -> Json:
        """One choice of a plain answer with its tool calls judged."""
        if not isinstance(choice, dict) or misplaced(choice, "message"):
            raise UpstreamFailed(_STRAY_CALL)
        message = choice.get("message")
        if not isinstance(message, dict) or not (message.get("tool_calls") or message.get(LEGACY)):
            return choice
        message = {name: value for name, value in message.items() if name not in CALLS}
        entries = choice["message"].get("tool_calls") or []
        older = choice["message"].get(LEGACY)
        pairs = [(each, "") for each in (entries if isinstance(entries, list) else [entries])] + ([(older, LEGACY)] if older else [])
        kept = []
        for entry, kind in pairs:
            asked = proposed(entry, kind)
            ruling = await self._proposed(case, snapshot, call, asked)
            if ruling.arguments is None:
                say(message, ruling.text, snapshot.config.policy.withheld)
            elif kind:
                message[LEGACY] = rewritten(entry, asked, ruling.arguments)
            else:
                kept.append(rewritten(entry, asked, ruling.arguments))
        if kept:
            message["tool_calls"] = kept
        left = {**choice, "message": message, **({"logprobs": None} if "logprobs" in choice else {})}  # they would spell out every call
        nothing = not kept and LEGACY not in message
        return {**left, "finish_reason": "stop"} if nothing and choice.get("finish_reason") in CALLS else left

    async def _proposed(self, case: Progress, snapshot: Snapshot, call: Call, asked: Proposed) -> Ruling:
        """One tool call that a model proposes."""
        if len(case.uses) >= _MOST_PROPOSED:
            raise UpstreamFailed(f"The answer calls more than {_MOST_PROPOSED} tools.")
        await asyncio.sleep(0)  # there may be many, and other calls wait
        known = snapshot.tools.get(asked.name)
        now_ns = self.clock.now_ns()
        tool, wrong = read(asked, call, known, self.schemas)
        judged = None
        try:
            if wrong:
                raise Forbidden(f"The model's arguments cannot be used: {wrong}.", rule=BAD_ARGUMENTS)
            judged = await self._ask(case, snapshot, self._question(snapshot, "tool_call", call, tool=tool, known_tool=known is not None))
            made, tool = tool, judged.question.tool or tool
            enact(judged.decision)
            if tool.args is not made.args:
                _check_made(tool, asked, unfit(tool, call, known, self.schemas))
            await self._take(case, call, judged.decision, now_ns)
        except (Forbidden, RateLimited) as error:
            if judged is None or judged.decision.name == "allow":  # the gateway's own refusal: no decision of the rules says it
                case.decided(_denied(snapshot, asked.name, error.rule, error.message))
            remedy = error.remedy if isinstance(error, Forbidden) else None
            ruling = Ruling(None, refused(asked.name, error.message, error.rule, remedy))
        else:
            ruling = Ruling(tool.args)
        released = ruling.arguments is not None
        case.uses.append(ToolUse(call.id, asked.id, asked.name, "model", tool.args, released, now_ns))
        self._remember(call.principal.id, asked.id, released=released)
        return ruling

    async def _take(self, case: Progress, call: Call, decision: Decision, now_ns: int) -> None:
        """Take the rates of a tool call that a model proposes: of requests, others are refused in its phase.

        Raises:
            RateLimited: one is used up; none is taken.
        """
        limits = [(limit, self.scrub(decision.subject)) for limit in _limits(decision)]
        if not limits:
            return
        spent = await self.budgets.take(takes_of(limits, self._subjects(case, call), 0), now_ns=now_ns)
        if spent is not None:
            raise rate_spent(spent)

    def _subjects(self, case: Progress, call: Call) -> Subjects:
        """Whose accounts a call is on: before it is known where it goes, those of the route that was asked for."""
        return case.spending.subjects if case.spending is not None else subjects_of(call, call.route, self.scrub)

    def _remember(self, principal: str, tool_call_id: str, *, released: bool) -> None:
        """A client that reads a stream may bring the result before the answer's end is on record."""
        if len(tool_call_id) > _LONGEST_ID:  # a provider's; the record has it
            return
        self.lately[principal, tool_call_id] = released
        if len(self.lately) > _MOST_LATELY:
            self.lately.popitem(last=False)

    async def _results(self, case: Progress, snapshot: Snapshot, call: Call) -> Call:
        """The results of tools that a client brings back: each is judged, and must be of a call that was let through."""
        try:
            found = list(returned(messages(call)))
        except UnreadableFactError:
            return call  # the dialect has refused it, or the rules that read messages have
        if not found:
            return call
        if len(found) > _MOST_RESULTS:  # each is judged, and a rule may read the whole conversation every time
            raise InvalidRequest(f"A conversation brings at most {_MOST_RESULTS} results of tools. Begin a new one.", pointer="/messages")
        known: Mapping[str, bool] = {}
        if _judges_tools(snapshot):
            lately = {each.id: self.lately[call.principal.id, each.id] for each in found if (call.principal.id, each.id) in self.lately}
            known = {**lately, **await self.sessions.released(call.principal.id, [each.id for each in found])}
        contents: dict[int, Json] = {}
        for each in found:
            released = known.get(each.id, not _judges_tools(snapshot))
            if not released:
                case.labels[BYPASS] = None
            case.results[each.id] = each.text
            if snapshot.bundle.phases["tool_result"].empty:
                continue
            result = ToolResult(parsed_result(each.text), each.text, released)
            tool = called(each.id, each.name, each.written)
            asked = self._question(snapshot, "tool_result", call, result=result, tool=tool, known_tool=each.name in snapshot.tools)
            judged = await self._ask(case, snapshot, asked)
            await asyncio.sleep(0)
            enact(judged.decision)
            left = judged.question.result
            if left is not None and left is not result:
                contents[each.place] = left.text
                case.results[each.id] = left.text
        return replace(call, body=with_contents(call.body, contents)) if contents else call

    async def _offers(self, case: Progress, snapshot: Snapshot, call: Call) -> Call:
        """The call without the tools that no rule could let through, so that the model is not told of them."""
        try:
            names = tools_offered(call.body)
        except UnreadableFactError as error:  # a tool that the provider itself runs is judged nowhere else
            raise InvalidRequest(f"The tools that are offered cannot be read: {error}.") from error
        defined = definitions(call)
        removed: dict[str, Denied] = {}
        for name in names:
            known = snapshot.tools.get(name)
            tool = described(name, defined.get(name, ()), known)
            asked = self._question(snapshot, "tool_call", call, tool=tool, known_tool=known is not None)
            decision = at_best(snapshot.bundle, gather(snapshot.bundle, asked, without=LATER))
            if isinstance(decision, Denied):
                removed[name] = decision
            await asyncio.sleep(0)
        case.offers += removed.values()
        return replace(call, body=without_tools(call.body, removed)) if removed else call


def _judges_tools(snapshot: Snapshot) -> bool:
    """Whether tool calls that a model proposes have to be looked at."""
    return snapshot.bundle.judges_tools or (bool(snapshot.tools) and snapshot.bundle.defaults.tools == "deny")


def _check_made(tool: ToolCall, asked: Proposed, problem: str) -> None:
    """Raise `Forbidden` where what a rule makes of the arguments is not what the tool takes."""
    if asked.kind == "custom" and (tool.args.keys() != {"input"} or not isinstance(tool.args["input"], str)):
        problem = "it takes one text"
    if problem:
        raise Forbidden(f"What a rule makes of the arguments does not fit the tool: {problem}.", rule=BAD_ARGUMENTS)


async def _apart(question: Question, work: Callable[..., Done], *given: Any) -> Done:
    """Do work on what is judged: on a large text in a thread, so that other calls do not wait for it."""
    return await asyncio.to_thread(work, *given) if question.large else work(*given)


def _limits(decision: Decision) -> tuple[Limit, ...]:
    return () if isinstance(decision, Denied) else decision.limits


def _redactions(decision: Decision) -> list[Redaction]:
    return [] if isinstance(decision, Denied) else [each for each in decision.transforms if isinstance(each, Redaction)]


def _denied(snapshot: Snapshot, tool: str, rule: str, why: str) -> Denied:
    """A refusal by the gateway itself, as a decision."""
    reason = Reason(rule, "limit" if rule != BAD_ARGUMENTS else "deny", "matched", "", why)
    return Denied(rule, why, None, (reason,), (), snapshot.bundle.digest, "tool_call", tool)
