"""What the rules say at each place where they are asked, and what that makes of the call. Owns no order: that is `Proxy.handle`'s."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

from gateway.approvals.holding import Holding, OnHold
from gateway.approvals.kept import Keeping, kept_json, kept_stream
from gateway.approvals.matters import of_answer, of_call, of_tool
from gateway.approvals.proposals import STRAY_CALL, Proposals
from gateway.asking import Asking, apart, limits_of, redactions_of
from gateway.call import Call, Reply, Said, ToolCall, ToolResult, ToolUse
from gateway.core.approval import Demand, Stage
from gateway.core.body import UnreadableFactError, messages, tools_offered
from gateway.core.decide import LATER, at_best
from gateway.core.decision import BAD_ARGUMENTS, BYPASS, VALIDATORS, Approval, Denied, Held
from gateway.core.detectors import DetectionError
from gateway.core.facts import match_keys
from gateway.core.plan import Route
from gateway.core.question import Question
from gateway.core.redaction_stream import StreamRedactor
from gateway.enact import enact, rerouted
from gateway.errors import CallError, Forbidden, InvalidRequest, UpstreamFailed, UpstreamRejected
from gateway.gate import Gate, Judge, Listening, StreamGate, WholeGate, unsearched
from gateway.gather import gather
from gateway.judge import Judged
from gateway.progress import Progress
from gateway.snapshot import Snapshot
from gateway.spoken import finish_reasons, flows, redacted, said
from gateway.store.protocol import Sessions
from gateway.tool_offers import called, definitions, described, without_tools
from gateway.wire.assemble import Assembler
from gateway.wire.strict_json import dumps
from gateway.wire.tool_calls import misplaced, parsed_result, returned, with_contents

_MOST_RESULTS: Final = 2048  # results of tools in one request


@dataclass(frozen=True, slots=True)
class Rulings:
    """Asks the rules about calls. One per gateway."""

    sessions: Sessions
    asking: Asking
    holding: Holding
    proposals: Proposals

    async def request(self, case: Progress, snapshot: Snapshot, call: Call, route: Route) -> tuple[Call, Route]:
        """The call as it may leave, and where to. Judged: the request, the results that it brings, and the tool that it calls.

        Raises:
            Forbidden: a rule ends it.
            OnHold, Finished, …: people are asked, see `Holding.permit`.
        """
        judged = await self.asking.ask(case, snapshot, self.asking.question(snapshot, "request", call))
        held = list(enact(judged.decision))
        call = case.call = judged.question.call
        counted = [judged.decision]
        if call.operation == "tool":
            made = await self._tool_made(case, snapshot, call, held)
            counted.append(made.decision)
            call = case.call = made.question.call
        else:
            if _judges_tools(snapshot) or not snapshot.bundle.phases["tool_result"].empty:
                call = case.call = await self._results(case, snapshot, call, held)
            if _judges_tools(snapshot):
                call = case.call = await self._offers(case, snapshot, call)
            if (held or case.presence.performing) and case.kept is None:  # what was approved is claimed, also where nobody asks any more
                question = replace(judged.question, call=call)
                await self.holding.permit(case, snapshot, of_call(snapshot, self.holding.conditions, question, held))
        case.limits += [(limit, decision.subject) for decision in counted for limit in limits_of(decision)]  # taken with the intent
        return call, rerouted(route, call, judged.decision, snapshot.routes)

    async def reply(self, case: Progress, snapshot: Snapshot, call: Call, reply: Reply) -> Reply:
        """A plain answer as the client may have it. Raises `Forbidden` where a rule keeps all of it back."""
        if call.operation == "tool":
            return await self._tool_result(case, snapshot, call, reply)
        raw, choices = reply, reply.body.get("choices")
        if not isinstance(choices, list):
            return reply
        if _judges_tools(snapshot):
            if misplaced({name: value for name, value in reply.body.items() if name != "choices"}, ""):
                raise UpstreamFailed(STRAY_CALL)
            kept = partial(kept_json, raw, case.unfit)
            choices = [await self.proposals.choice(case, snapshot, call, choice, kept) for choice in choices]
            reply = replace(reply, body={**reply.body, "choices": choices}, finish_reasons=finish_reasons(choices))
        if snapshot.bundle.phases["response"].empty and not case.unfit:
            return reply
        judged = await self._late(case, snapshot, raw, lambda now: self.asking.question(now, "response", call, said=said(reply)))
        redactions = redactions_of(judged.decision)
        if not redactions:
            return reply
        try:
            return replace(reply, body=await apart(judged.question, redacted, reply.body, redactions))
        except DetectionError as error:
            case.withheld = True
            raise unsearched(redactions) from error

    async def gate(self, case: Progress, snapshot: Snapshot, call: Call, *, contiguous: bool) -> Gate | None:
        """What stands between a streamed answer and its client; None where nothing of it is judged."""
        whole = Assembler()
        judges: Judge | None = None
        if _judges_tools(snapshot):
            judges = partial(self.proposals.ruled, case, snapshot, call, answer=partial(kept_stream, whole))
        asked = self.asking.question(snapshot, "response", call, said=Said(""))
        index = snapshot.bundle.phases["response"].index
        rules = index.select(replace(match_keys(asked, with_tools=False), tools=None)).rules  # which tools it calls is not known yet
        if not rules:
            only = StreamGate(judges, (), snapshot.config.policy.withheld, contiguous=contiguous)
            return self._keeping(snapshot, only, whole) if judges else None
        ending = [rule for rule in rules if not rule.shadow and rule.effect not in ("allow", "log")]
        if any(not flows(rule) for rule in ending):
            return WholeGate(lambda reply: self.reply(case, snapshot, call, reply))
        asked = await self.asking.informed(case, snapshot, asked) if ending else asked
        redactions = redactions_of((await self.asking.judged(snapshot.bundle, asked)).decision) if ending else []
        if redactions and StreamRedactor(redactions).whole:
            return WholeGate(lambda reply: self.reply(case, snapshot, call, reply))
        inner = self._keeping(snapshot, StreamGate(judges, redactions, snapshot.config.policy.withheld, contiguous=contiguous), whole)
        return Listening(inner, lambda reply: self._heard(case, snapshot, call, reply))

    async def _heard(self, case: Progress, snapshot: Snapshot, call: Call, reply: Reply) -> None:
        """Put on record what the rules say of an answer that has gone by: none of them could have stopped it."""
        await self.asking.ask(case, snapshot, self.asking.question(snapshot, "response", call, said=said(reply)))

    def _keeping(self, snapshot: Snapshot, gate: Gate, whole: Assembler) -> Gate:
        """The gate, with all that comes to it put together where people may have to look at a part of it."""
        return Keeping(gate, whole) if snapshot.bundle.holds_answers else gate

    async def _late(self, case: Progress, snapshot: Snapshot, raw: Reply, asked: Callable[[Snapshot], Question]) -> Judged:
        """Judge what came back, and have people look at it where rules ask for that; `raw` is what is kept meanwhile.

        Raises `CallError` where it does not go on: the outcome says so, because the provider has done its work.
        """
        while True:
            judged = await self.asking.ask(case, snapshot, asked(snapshot))
            try:
                if held := (*enact(judged.decision), *_unfit(case, judged)):
                    matter = of_answer(snapshot, self.holding.conditions, judged.question, raw, held)
                    ticket = await self.holding.permit(case, snapshot, matter, kept_json(raw, case.unfit))
                    await self.holding.release(case, matter, ticket, grants=case.grants, keep=False)
            except CallError:
                case.withheld = True
                raise
            except OnHold as hold:
                ticket = hold.ticket
            else:
                return judged
            case.withheld = True
            await self.holding.wait(case, snapshot, ticket)
            case.withheld, snapshot = False, self.proposals.current()
            case.undecided(judged.decision)  # it is asked again: it is one decision

    # Tool calls.

    async def _tool_made(self, case: Progress, snapshot: Snapshot, call: Call, held: list[Held]) -> Judged:
        """A client's call of an HTTP tool. Its arguments are the body. `held` is what people have to decide already."""
        tool = snapshot.tools[call.route]
        made = ToolCall(call.id, call.route, call.body, "http", "http", tool.annotations)
        asked = self.asking.question(snapshot, "tool_call", call, tool=made, known_tool=True)
        judged = await self.asking.ask(case, snapshot, asked)
        allowed = not isinstance(judged.decision, Denied) and judged.decision.name == "allow"
        given = judged.question.tool or made
        case.uses.append(ToolUse(call.id, call.id, call.route, "http", given.args, allowed, self.asking.clock.now_ns()))
        held += enact(judged.decision)
        problems = tool.schema.problems(given.args)  # again: a rule of this phase or of `request` may have changed them
        if problems:
            raise Forbidden(f"What a rule makes of the arguments does not fit the tool: {problems[0]}.", rule=BAD_ARGUMENTS)
        if (held or case.presence.performing) and case.kept is None:
            matter = of_tool(snapshot, self.holding.conditions, judged.question, given, held, kind="tool")
            await self.holding.permit(case, snapshot, matter)
            case.uses[-1] = replace(case.uses[-1], released=True)
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
        judged = await self._late(case, snapshot, reply, lambda now: self.asking.question(
            now, "tool_result", call, tool=tool, result=result, known_tool=True))
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

    async def _results(self, case: Progress, snapshot: Snapshot, call: Call, held: list[Held]) -> Call:
        """The results of tools that a client brings back: each is judged, and must be of a call that was let through. Where people have to
        look at one, the call waits for them (`held`).
        """
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
            seen, caller = self.proposals.lately, call.principal.id
            lately = {each.id: seen[caller, each.id] for each in found if (caller, each.id) in seen}
            known = {**lately, **await self.sessions.released(call.principal.id, [each.id for each in found])}
        contents: dict[int, str] = {}
        for each in found:
            released = known.get(each.id, not _judges_tools(snapshot))
            if not released:
                case.labels[BYPASS] = None
            case.results[each.id] = each.text
            if snapshot.bundle.phases["tool_result"].empty:
                continue
            result = ToolResult(parsed_result(each.text), each.text, released)
            tool = called(each.id, each.name, each.written)
            asked = self.asking.question(snapshot, "tool_result", call, result=result, tool=tool, known_tool=each.name in snapshot.tools)
            judged = await self.asking.ask(case, snapshot, asked)
            await asyncio.sleep(0)
            held += enact(judged.decision)
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
            asked = self.asking.question(snapshot, "tool_call", call, tool=tool, known_tool=known is not None)
            decision = at_best(snapshot.bundle, gather(snapshot.bundle, asked, without=LATER))
            if isinstance(decision, Denied):
                removed[name] = decision
            await asyncio.sleep(0)
        case.offers += removed.values()
        return replace(call, body=without_tools(call.body, removed)) if removed else call


def _unfit(case: Progress, judged: Judged) -> tuple[Held, ...]:
    """What people have to decide because no target's answer is what the route asks for."""
    if not case.unfit or judged.question.phase != "response":
        return ()
    look = Approval(VALIDATORS, Demand(VALIDATORS, (Stage(),)))
    message = f"No target gave an answer that is what this route asks for: {case.unfit}."
    return (Held(VALIDATORS, message, None, (), (), judged.decision.bundle, "response", approvals=(look,)),)


def _judges_tools(snapshot: Snapshot) -> bool:
    """Whether tool calls that a model proposes have to be looked at."""
    return snapshot.bundle.judges_tools or (bool(snapshot.tools) and snapshot.bundle.defaults.tools == "deny")
