"""What people are asked about: a call, a tool call or an answer as one exact action. Pure."""

from collections.abc import Sequence
from dataclasses import replace

from gateway.approvals.tickets import Matter
from gateway.call import Json, JsonObject, Reply, ToolCall
from gateway.core.action import Action, UncanonicalError, digest_of, without_delivery
from gateway.core.approval import Kind
from gateway.core.conditions import ConditionError, Conditions
from gateway.core.decision import Held
from gateway.core.question import Question
from gateway.errors import ApprovalUnavailable, InvalidRequest
from gateway.snapshot import Snapshot
from gateway.tool_offers import definitions
from gateway.tools import OPERATION


def of_call(snapshot: Snapshot, conditions: Conditions, question: Question, held: Sequence[Held]) -> Matter:
    """A model call before it leaves: its route, its messages and parameters."""
    call = question.call
    principal = call.principal
    action = Action("request", call.operation, principal.id, principal.on_behalf_of, call.route, "", "", without_delivery(call.body))
    return _matter(snapshot, conditions, question, held, action, "model")


def of_tool(
    snapshot: Snapshot, conditions: Conditions, question: Question, tool: ToolCall, held: Sequence[Held], *, kind: Kind,
) -> Matter:
    """A tool call, made by a client (`tool`) or proposed by a model (`tool_call`): one and the same where the tool is declared here."""
    known = snapshot.tools.get(tool.name)
    schema: Json = definitions(question.call).get(tool.name, [])
    if known is not None:  # what is done with the arguments is a part of the action
        schema = [known.parameters, known.method, list(known.path), sorted(known.query), known.effect]
    principal = question.call.principal
    try:
        named = digest_of(schema)
    except UncanonicalError as error:
        raise InvalidRequest(f"What the request says of the tool {tool.name} cannot be shown to anybody: {error}.") from error
    action = Action(kind, OPERATION, principal.id, principal.on_behalf_of, "", tool.name, named, tool.args)
    effect = known.effect if known is not None else "at_most_once"
    return _matter(snapshot, conditions, question, held, action, effect, irreversible=bool(tool.annotations.get("irreversible")))


def of_answer(snapshot: Snapshot, conditions: Conditions, question: Question, reply: Reply, held: Sequence[Held]) -> Matter:
    """What came back, before its client can see it: a model's answer, or a tool's."""
    call = question.call
    said = {name: value for name, value in reply.body.items() if name in ("choices", "json", "text", "status")}
    tool = call.route if call.operation == OPERATION else ""
    action = Action("response", call.operation, call.principal.id, call.principal.on_behalf_of, call.route, tool, "", said)
    return _matter(snapshot, conditions, question, held, action, "read")


def _matter(  # noqa: PLR0913 - the parts of one value
    snapshot: Snapshot, conditions: Conditions, question: Question, held: Sequence[Held], action: Action, effect: str, *,
    irreversible: bool = False,
) -> Matter:
    approvals = {each.rule: each for one in held for each in one.approvals}.values()
    named = [each for each in approvals if each.identity]
    identity: JsonObject | None = None
    if named and len(named) == len(approvals):  # one that asks for all of it stands for all
        try:
            identity = {each.rule: conditions.identity(snapshot.bundle, each, question) for each in named}
        except ConditionError as error:
            raise ApprovalUnavailable(f"What makes the action the same cannot be read: {error}.", rule=held[0].rule or "") from error
    session = (question.call.origin.session or "") if any(each.by_session for each in approvals) else ""
    return Matter(action.kind, replace(action, session=session, identity=identity), tuple(held), question, effect, irreversible)
