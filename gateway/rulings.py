"""What the rules say at each place where they are asked, and what that makes of the call. Owns no order: that is `Proxy.handle`'s."""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, TypeVar

from gateway.call import Call, Json, Reply, Said, ToolCall, ToolResult, ToolUse
from gateway.clock import Clock
from gateway.core.body import UnreadableFactError, messages, tools_offered
from gateway.core.decide import at_best
from gateway.core.decision import BAD_ARGUMENTS, BYPASS, Decision, Denied, Phase, Reason, Redaction
from gateway.core.detectors import DetectionError
from gateway.core.plan import Route
from gateway.core.question import Question
from gateway.core.rate import Rates
from gateway.core.redaction_stream import StreamRedactor
from gateway.core.rules import Bundle
from gateway.core.session_uses import with_uses
from gateway.enact import count, enact, rerouted
from gateway.errors import ApprovalUnavailable, CallError, Forbidden, RateLimited, UpstreamRejected
from gateway.gate import Gate, Judge, Listening, Ruling, StreamGate, WholeGate, unsearched
from gateway.gather import gather, selected
from gateway.judge import Judged, judge
from gateway.progress import Progress
from gateway.schemas import SchemaCache
from gateway.snapshot import Snapshot
from gateway.spoken import finish_reasons, flows, redacted, said
from gateway.store.protocol import Sessions
from gateway.tool_offers import annotations, called, refused, say, unfitting, without_tools
from gateway.turns import Turns
from gateway.wire.strict_json import dumps
from gateway.wire.tool_calls import (
    LEGACY,
    Proposed,
    UnreadableArgumentsError,
    parsed_result,
    proposed,
    returned,
    rewritten,
    with_contents,
)

Done = TypeVar("Done")

_MOST_LATELY: Final = 10_000


@dataclass(frozen=True, slots=True)
class Rulings:
    """Asks the rules about calls. One per gateway."""

    sessions: Sessions
    turns: Turns
    rates: Rates
    clock: Clock
    schemas: SchemaCache = field(default_factory=SchemaCache)
    lately: OrderedDict[tuple[str, str], bool] = field(default_factory=OrderedDict)  # proposed tool calls: whether they were let through

    async def request(self, case: Progress, snapshot: Snapshot, call: Call, route: Route) -> tuple[Call, Route]:
        """The call as it may leave, and where to. Judged: the request, the results that it brings, and the tool that it calls.

        Raises:
            Forbidden, ApprovalUnavailable: a rule ends it.
            RateLimited: a `limit` is used up.
        """
        judged = await self._ask(case, snapshot, self._question(snapshot, "request", call))
        enact(judged.decision)
        call = case.call = judged.question.call
        counted = [judged.decision]
        if call.operation == "tool":
            made = await self._tool_made(case, snapshot, call)
            counted.append(made.decision)
            call = case.call = made.question.call
        elif not snapshot.bundle.phases["tool_result"].empty or snapshot.bundle.judges_tools:
            call = case.call = await self._results(case, snapshot, call)
        if snapshot.bundle.judges_tools and call.operation != "tool":
            call = case.call = self._offers(case, snapshot, call)
        for decision in counted:
            count(self.rates, call, decision, self.clock.now_ns())
        return call, rerouted(route, call, judged.decision, snapshot.routes)

    async def reply(self, case: Progress, snapshot: Snapshot, call: Call, reply: Reply) -> Reply:
        """A plain answer as the client may have it. Raises `Forbidden` where a rule keeps all of it back."""
        if call.operation == "tool":
            return await self._tool_result(case, snapshot, call, reply)
        choices = reply.body.get("choices")
        if not isinstance(choices, list):
            return reply
        if snapshot.bundle.judges_tools:
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
        judges: Judge | None = self._judge_of(case, snapshot, call) if snapshot.bundle.judges_tools else None
        asked = self._question(snapshot, "response", call, said=Said(""))
        rules = () if snapshot.bundle.phases["response"].empty else selected(snapshot.bundle, asked).rules
        if not rules:
            return StreamGate(judges, (), snapshot.config.policy.withheld, contiguous=contiguous) if judges else None
        ending = [rule for rule in rules if not rule.shadow and rule.effect not in ("allow", "log")]
        if any(not flows(rule) for rule in ending):
            return WholeGate(lambda reply: self.reply(case, snapshot, call, reply))
        decision = (await self._judged(snapshot.bundle, asked)).decision if ending else None
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
        session = await self.turns.facts(snapshot.bundle, question, wait_s=snapshot.config.policy.wait)
        if session is not None:
            labels = tuple(dict.fromkeys((*session.labels, *case.labels)))
            question = replace(question, session=replace(with_uses(session, case.uses), labels=labels))
        judged = await self._judged(snapshot.bundle, question)
        case.decided(judged.decision)
        return judged

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
        if given.args is made.args:
            return judged
        problems = tool.schema.problems(given.args)
        if problems:
            raise Forbidden(f"What a rule makes of the arguments does not fit the tool: {problems[0]}", rule=BAD_ARGUMENTS)
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

    async def rejected(self, case: Progress, snapshot: Snapshot, call: Call, refusal: UpstreamRejected) -> None:
        """A provider has refused a call: of a tool, its words are what the tool gave back, and judged as that. Raises as `reply` does."""
        if call.operation != "tool" or snapshot.bundle.phases["tool_result"].empty:
            return
        case.answered = True
        words = Reply({"status": refusal.status, "content_type": "text/plain", "text": refusal.message}, None)
        refusal.message = (await self._tool_result(case, snapshot, call, words)).body["text"]

    async def _choice(self, case: Progress, snapshot: Snapshot, call: Call, choice: Json) -> Json:
        """One choice of a plain answer with its tool calls judged."""
        message = choice.get("message") if isinstance(choice, dict) else None
        if not isinstance(message, dict) or not (message.get("tool_calls") or message.get(LEGACY)):
            return choice
        judge_one = self._judge_of(case, snapshot, call)
        entries = message.get("tool_calls") or []
        kept, message = [], dict(message)
        for entry in entries if isinstance(entries, list) else [entries]:
            asked = proposed(entry)
            ruling = await judge_one(asked)
            if ruling.arguments is not None and isinstance(entry, dict):
                kept.append(rewritten(entry, asked, ruling.arguments))
            else:
                say(message, ruling.text, snapshot.config.policy.withheld)
        message.pop("tool_calls", None)
        if kept:
            message["tool_calls"] = kept
        legacy = message.pop(LEGACY, None)
        if legacy is not None:
            asked = proposed(legacy, LEGACY)
            ruling = await judge_one(asked)
            if ruling.arguments is not None and isinstance(legacy, dict):
                message[LEGACY] = rewritten(legacy, asked, ruling.arguments)
            else:
                say(message, ruling.text, snapshot.config.policy.withheld)
        reason = choice.get("finish_reason")
        nothing = not kept and LEGACY not in message
        return {**choice, "message": message, "finish_reason": "stop" if nothing and reason in ("tool_calls", LEGACY) else reason}

    def _judge_of(self, case: Progress, snapshot: Snapshot, call: Call) -> Judge:
        async def judge_one(asked: Proposed) -> Ruling:
            return await self._proposed(case, snapshot, call, asked)

        return judge_one

    async def _proposed(self, case: Progress, snapshot: Snapshot, call: Call, asked: Proposed) -> Ruling:
        """One tool call that a model proposes."""
        known = snapshot.tools.get(asked.name)
        now_ns = self.clock.now_ns()
        try:
            arguments = asked.arguments()
            wrong = unfitting(asked.name, arguments, call, known.schema.problems(arguments) if known else [], self.schemas)
        except UnreadableArgumentsError as error:
            arguments, wrong = {}, str(error)
        tool = ToolCall(asked.id, asked.name, arguments, "model", "http" if known else "",
                        known.annotations if known else annotations(call, asked.name))
        if wrong:
            denied = _denied(snapshot, asked.name, BAD_ARGUMENTS, f"The model's arguments cannot be used: {wrong}.")
            case.decided(denied)
            case.uses.append(ToolUse(call.id, asked.id, asked.name, "model", arguments, released=False, at_ns=now_ns))
            return Ruling(None, refused(asked.name, denied.message or "", BAD_ARGUMENTS, None))
        question = self._question(snapshot, "tool_call", call, tool=tool, known_tool=known is not None)
        judged = await self._ask(case, snapshot, question)
        given = judged.question.tool or tool
        try:
            enact(judged.decision)
            count(self.rates, call, judged.decision, now_ns)
        except (Forbidden, ApprovalUnavailable) as error:
            ruling = Ruling(None, refused(asked.name, error.message, error.rule, error.remedy))
        except RateLimited as error:
            case.decided(replace(_denied(snapshot, asked.name, error.rule, error.message), values=judged.decision.values))
            ruling = Ruling(None, refused(asked.name, error.message, error.rule, None))
        else:
            ruling = Ruling(given.args)
        released = ruling.arguments is not None
        case.uses.append(ToolUse(call.id, asked.id, asked.name, "model", given.args, released, now_ns))
        self._remember(call.principal.id, asked.id, released=released)
        return ruling

    def _remember(self, principal: str, tool_call_id: str, *, released: bool) -> None:
        """A client that reads a stream may bring the result before the answer's end is on record."""
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
        known: Mapping[str, bool] = {}
        if snapshot.bundle.judges_tools:
            lately = {each.id: self.lately[call.principal.id, each.id] for each in found if (call.principal.id, each.id) in self.lately}
            known = {**lately, **await self.sessions.released(call.principal.id, [each.id for each in found])}
        contents: dict[int, Json] = {}
        for each in found:
            released = known.get(each.id, not snapshot.bundle.judges_tools)
            if not released:
                case.labels[BYPASS] = None
            case.results[each.id] = each.text
            if snapshot.bundle.phases["tool_result"].empty:
                continue
            result = ToolResult(parsed_result(each.text), each.text, released)
            tool = called(each.id, each.name, each.written)
            asked = self._question(snapshot, "tool_result", call, result=result, tool=tool, known_tool=each.name in snapshot.tools)
            judged = await self._ask(case, snapshot, asked)
            enact(judged.decision)
            left = judged.question.result
            if left is not None and left is not result:
                contents[each.place] = left.text
                case.results[each.id] = left.text
        return replace(call, body=with_contents(call.body, contents)) if contents else call

    def _offers(self, case: Progress, snapshot: Snapshot, call: Call) -> Call:
        """The call without the tools that no rule could let through, so that the model is not told of them."""
        removed: dict[str, Denied] = {}
        try:
            names = tools_offered(call.body)
        except UnreadableFactError:
            return call  # whatever a model calls is judged by its name all the same
        for name in names:
            known = snapshot.tools.get(name)
            tool = ToolCall("", name, {}, "model", "http" if known else "", known.annotations if known else annotations(call, name))
            asked = self._question(snapshot, "tool_call", call, tool=tool, known_tool=known is not None)
            decision = at_best(snapshot.bundle, gather(snapshot.bundle, asked))
            if isinstance(decision, Denied):
                removed[name] = decision
        if not removed:
            return call
        for decision in removed.values():
            case.offers.append(decision)
        return replace(call, body=without_tools(call.body, removed))


async def _apart(question: Question, work: Callable[..., Done], *given: Any) -> Done:
    """Do work on what is judged: on a large text in a thread, so that other calls do not wait for it."""
    return await asyncio.to_thread(work, *given) if question.large else work(*given)


def _redactions(decision: Decision) -> list[Redaction]:
    return [] if isinstance(decision, Denied) else [each for each in decision.transforms if isinstance(each, Redaction)]


def _denied(snapshot: Snapshot, tool: str, rule: str, why: str) -> Denied:
    """A refusal by the gateway itself, as a decision."""
    reason = Reason(rule, "limit" if rule != BAD_ARGUMENTS else "deny", "matched", "", why)
    return Denied(rule, why, None, (reason,), (), snapshot.bundle.digest, "tool_call", tool)
