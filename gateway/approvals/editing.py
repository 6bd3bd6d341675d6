"""An approval whose action a person has changed: another action, judged like one that has just come. Owns what of an action may be edited.

Nothing goes round the rules: the tool's schema is asked again, the rules of now are, and what they make of it is what people then see.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from gateway.approvals.matters import of_call, of_tool
from gateway.approvals.performing import origin_in, principal_in
from gateway.approvals.tickets import Matter
from gateway.asking import Asking
from gateway.call import Call, JsonObject, ToolCall
from gateway.clock import Ids
from gateway.core.action import UncanonicalError, json_patch
from gateway.core.approval import Demand, State, Ticket
from gateway.core.conditions import Conditions
from gateway.core.decision import BAD_ARGUMENTS, Held, Phase
from gateway.enact import enact
from gateway.errors import ApprovalConflict, Forbidden, InvalidRequest
from gateway.judge import Judged
from gateway.progress import Progress
from gateway.schemas import SchemaCache
from gateway.snapshot import Snapshot
from gateway.store.approvals_protocol import Approvals
from gateway.tool_offers import unfit
from gateway.tools import Tool
from gateway.wire.strict_json import dumps, loads

_DELIVERY: Final = ("stream", "stream_options")  # how the answer is brought is its caller's to say
_MOST_EDITS: Final = 50  # of one action, one after the other


@dataclass(frozen=True, slots=True)
class Editing:
    """Makes tickets of edited actions. `schemas` keeps those that applications' own tools have; `scrub` takes secrets out of bytes."""

    store: Approvals
    asking: Asking
    conditions: Conditions
    schemas: SchemaCache
    ids: Ids
    scrub: Callable[[bytes], bytes]

    async def edited(self, snapshot: Snapshot, ticket: Ticket, arguments: JsonObject) -> Ticket:
        """The ticket that is to stand in place of this one. It is not stored yet.

        Raises:
            InvalidRequest: this cannot be edited so: it names the place.
            Forbidden: the rules deny it.
            ApprovalConflict: what it was made for is not there any more.
        """
        now_ns = self.asking.clock.now_ns()
        call = _call_of(ticket, now_ns)
        case = Progress(self.ids.call_id(), call.dialect, call.operation, now_ns, principal=call.principal, origin=call.origin)
        match ticket.kind:
            case "request":
                matter, body = await self._request(case, snapshot, ticket, call, arguments)
            case "tool":
                matter, body = await self._tool(case, snapshot, ticket, call, arguments)
            case "tool_call":
                matter, body = await self._proposal(case, snapshot, ticket, call, arguments)
            case "response":
                raise InvalidRequest("An answer cannot be edited: it is what was said. Approve it, or deny it.")
        first = await self._first(ticket)
        try:
            made = _made(ticket, first, matter, body, f"apr_{self.ids.call_id().removeprefix('call_')}", now_ns)
        except UncanonicalError as error:
            raise InvalidRequest(f"This cannot be shown to anybody as it is: {error}.", pointer="/arguments") from error
        if made.digest == ticket.digest:
            raise InvalidRequest("Nothing is changed: this is the same action.", pointer="/arguments")
        shown = dumps(made.shown) + made.body
        if self.scrub(shown) != shown:
            raise InvalidRequest("It holds a secret of this gateway, which nobody is to be shown.", pointer="/arguments")
        return made

    async def _request(
        self, case: Progress, snapshot: Snapshot, ticket: Ticket, call: Call, arguments: JsonObject,
    ) -> tuple[Matter, bytes]:
        """A model call with other messages and parameters."""
        received = _received(ticket)
        for name in _DELIVERY:
            if name in arguments:
                raise InvalidRequest(f"`{name}` is not a part of the action.", pointer=f"/arguments/{name}")
        if arguments.get("model", received.get("model")) != received.get("model"):
            raise InvalidRequest("The model cannot be edited: deny the call, and ask for another one.", pointer="/arguments/model")
        kept = {name: received[name] for name in ("model", *_DELIVERY) if name in received}
        body = {**_untold(ticket, received, arguments), **kept}
        dialect = next((each for each in snapshot.dialects if each.name == call.dialect), None)
        if dialect is None:
            raise ApprovalConflict(f"The dialect {call.dialect} is not there any more.")
        dialect.read(call.operation, body)
        call = replace(call, body=body, size=len(dumps(body)))
        judged = await self._judged(case, snapshot, "request", call)
        return of_call(snapshot, self.conditions, judged.question, enact(judged.decision)), dumps(body)

    async def _tool(self, case: Progress, snapshot: Snapshot, ticket: Ticket, call: Call, arguments: JsonObject) -> tuple[Matter, bytes]:
        """A client's call of an HTTP tool with other arguments. Judged in both phases, as the call was."""
        tool = _declared(snapshot, ticket)
        tool.check(arguments)
        call = replace(call, body=arguments, size=len(dumps(arguments)))
        asked = await self._judged(case, snapshot, "request", call)
        held = list(enact(asked.decision))
        call = asked.question.call
        made = ToolCall(call.id, tool.name, call.body, "http", "http", tool.annotations)
        judged = await self._judged(case, snapshot, "tool_call", call, tool=made, known_tool=True)
        held += enact(judged.decision)
        given = judged.question.tool or made
        _check_made(tool.schema.problems(given.args))
        tool.target(given.args)  # raises where it could not be sent
        return of_tool(snapshot, self.conditions, judged.question, given, held, kind="tool"), dumps(arguments)

    async def _proposal(
        self, case: Progress, snapshot: Snapshot, ticket: Ticket, call: Call, arguments: JsonObject,
    ) -> tuple[Matter, bytes]:
        """A tool call that a model proposed, with other arguments. What the request said of the tool stands with the ticket."""
        known = snapshot.tools.get(ticket.tool)
        defined = ticket.origin.get("definitions") or []
        call = replace(call, body={"tools": [{"type": "function", "function": each} for each in defined]})
        strict = {"strict": defined[0]["strict"]} if defined and "strict" in defined[0] else {}
        made = (ToolCall("", ticket.tool, arguments, "model", "http", known.annotations) if known is not None
                else ToolCall("", ticket.tool, arguments, "model", "", strict))
        problem = unfit(made, call, known, self.schemas)
        if problem:
            raise InvalidRequest(f"The arguments do not fit the tool {ticket.tool}: {problem}.", pointer="/arguments")
        judged = await self._judged(case, snapshot, "tool_call", call, tool=made, known_tool=known is not None)
        held = enact(judged.decision)
        given = judged.question.tool or made
        again = unfit(given, call, known, self.schemas)
        _check_made([again] if again else [])
        return of_tool(snapshot, self.conditions, judged.question, given, held, kind="tool_call"), ticket.body

    async def _judged(self, case: Progress, snapshot: Snapshot, phase: Phase, call: Call, **what: Any) -> Judged:
        question = self.asking.question(snapshot, phase, call, **what)
        return await self.asking.judged(snapshot.bundle, await self.asking.informed(case, snapshot, question))

    async def _first(self, ticket: Ticket) -> Ticket:
        """What the caller has asked for: the one that all edits began with."""
        for _ in range(_MOST_EDITS):
            before = await self.store.get(ticket.edited_from) if ticket.edited_from else None
            if before is None:
                return ticket
            ticket = before
        raise InvalidRequest(f"It was edited {_MOST_EDITS} times. Deny it, and let it be asked for anew.")


def _made(ticket: Ticket, first: Ticket, matter: Matter, body: bytes, ticket_id: str, now_ns: int) -> Ticket:
    """The new ticket: its caller finds it by what they present, as before; people have as long as they had for the old one."""
    action = matter.action
    return replace(
        ticket, id=ticket_id, state=State.PENDING, digest=action.digest, shape=action.shape, shown=action.shown(), body=body,
        demands=_united(ticket.demands, matter.held), created_ns=now_ns, edited_from=ticket.id, replaced_by="",
        patch=json_patch(first.shown["arguments"], action.shown()["arguments"]), votes=(), fence=0, executed_by="", decided_ns=None,
        ended_ns=None, delivered_ns=None, reason="", changed=0, result=None, effect=matter.effect,
        irreversible=ticket.irreversible or matter.irreversible)


def _united(demands: tuple[Demand, ...], held: tuple[Held, ...]) -> tuple[Demand, ...]:
    """What was demanded, and what other rules demand of the action as it is now: an edit never asks fewer people."""
    known = {demand.rule for demand in demands}
    more = {each.rule: each.demand for one in held for each in one.approvals if each.rule not in known}
    return (*demands, *more.values())


def _call_of(ticket: Ticket, now_ns: int) -> Call:
    """The call that the ticket was opened for, without its body."""
    told = ticket.origin
    return Call(ticket.call_id, principal_in(ticket), told["dialect"], told["operation"], ticket.route, {}, stream=False, size=0,
                received_ns=now_ns, origin=origin_in(ticket), user=told["user"], asked=told["asked"])


def _received(ticket: Ticket) -> JsonObject:
    body: JsonObject = loads(ticket.body)
    return body


def _untold(ticket: Ticket, received: JsonObject, arguments: JsonObject) -> Mapping[str, Any]:
    """The body without the messages that rules have put before the caller's: they will do so again."""
    shown, sent, given = (each.get("messages") for each in (ticket.shown["arguments"], received, arguments))
    own = len(shown) - len(sent) if isinstance(shown, list) and isinstance(sent, list) else 0
    if own <= 0 or not isinstance(given, list) or not isinstance(shown, list):
        return arguments
    if given[:own] != shown[:own]:
        raise InvalidRequest(f"The first {own} of the messages are rules' own, and stay as they are.", pointer="/arguments/messages/0")
    return {**arguments, "messages": given[own:]}


def _declared(snapshot: Snapshot, ticket: Ticket) -> Tool:
    tool = snapshot.tools.get(ticket.tool)
    if tool is None:
        raise ApprovalConflict(f"The tool {ticket.tool} is not declared any more.")
    return tool


def _check_made(problems: Sequence[str]) -> None:
    """Raise where what a rule makes of the arguments is not what the tool takes."""
    if problems:
        raise Forbidden(f"What a rule makes of the arguments does not fit the tool: {problems[0]}.", rule=BAD_ARGUMENTS)
