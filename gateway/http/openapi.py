"""`/-/openapi.json`: every endpoint of the gateway as OpenAPI 3.1 has it, made from the table below and the models that read bodies.

The table is literal, so that one can read it; a test holds it against the endpoints that answer, both ways.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from aiohttp import web
from pydantic import BaseModel

from gateway import __version__
from gateway.approvals.reports import MOST_USES
from gateway.asked import NAMES
from gateway.core.approval import State
from gateway.errors import CODES
from gateway.http.approval_bodies import BatchBody, EditBody, ResolveBody, VoteBody, WithdrawBody
from gateway.http.approvals_desk import FILTERS, KINDS, MOST_ROWS, ORDERS, STATES
from gateway.http.client import HttpClient
from gateway.http.control import Control
from gateway.http.data import Handler
from gateway.http.desk import query_of
from gateway.http.keys_desk import _NewKey
from gateway.http.login_desk import _Credentials, _NewPassword
from gateway.http.money import _Cost, _NewBudget, _Raise
from gateway.http.people_desk import _Change, _New
from gateway.http.routing_desk import _Setting
from gateway.http.sessions_desk import FactGiven, NoteGiven
from gateway.wire.problem import PROBLEM_TYPE
from gateway.wire.strict_json import dumps

AT: Final = "/-/openapi.json"
_JSON: Final = "application/json"
_OF_NUMBERS: Final = frozenset({"gt", "ge", "lt", "le", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"})
_PARAMETER: Final = re.compile(r"\{(\w+)\}")
_OPEN: Final = ""  # whoever asks
_CALLER: Final = "caller"  # with a virtual key, or a token of an issuer that is configured


@dataclass(frozen=True, slots=True)
class Doc:
    """One endpoint. `need` is the permission it takes: of a person, `caller` for a caller's own credential, empty for none.

    `query` are the names of its parameters, `body` the model that reads what is sent, `answer` the content type of its answer.
    """

    method: str
    path: str
    summary: str
    need: str = "view"
    query: tuple[str, ...] = ()
    body: type[BaseModel] | None = None
    answer: str = _JSON
    schema: str = ""  # of the answer, among the components


_CALLS: Final = ("limit", "before", "after", "key", "route", "outcome", "session", "rule", "code", "team", "part_of")

DOCS: Final[tuple[Doc, ...]] = (
    Doc("GET", "/-/approvals", "What waits for people, oldest first, or any others that are asked for.",
        query=("state", "order", "limit", *FILTERS), schema="Approvals"),
    Doc("GET", "/-/approvals/{id}", "One approval: the exact action, its votes, and everything that happened.", schema="Approval"),
    Doc("POST", "/-/approvals/{id}/vote", "Approve or deny what was shown.", "approve", body=VoteBody, schema="Approval"),
    Doc("POST", "/-/approvals/{id}/edit", "Put another action in its place, judged like one that has just come.", "approve", body=EditBody,
        schema="Approval"),
    Doc("POST", "/-/approvals/{id}/resolve", "Say what came of an action that nobody knows it of.", "operate", body=ResolveBody,
        schema="Approval"),
    Doc("POST", "/-/approvals/{id}/withdraw", "Take an action back that has not been done.", "operate", body=WithdrawBody,
        schema="Approval"),
    Doc("POST", "/-/approvals/votes", "One verdict on several actions of the same shape and rule.", "approve", body=BatchBody),
    Doc("GET", "/-/grants", "What people have let go on for a while, newest first.", query=("rule", "principal", "live", "limit"),
        schema="Grants"),
    Doc("POST", "/-/grants/{id}/revoke", "Take a grant back.", "approve"),
    Doc("GET", "/-/notices", "What people were told, and whether it arrived.", query=("limit",)),
    Doc("GET", "/-/tickets/{id}", "What became of an approval that the caller waits for, and its answer.", _CALLER, schema="Ticket"),
    Doc("POST", "/-/tickets/{id}/withdraw", "The caller does not want it any more.", _CALLER, body=WithdrawBody, schema="Ticket"),
    Doc("GET", "/-/events", "Server-sent events: one whenever something has changed.", answer="text/event-stream"),
    Doc("GET", "/-/sessions", "Sessions, the latest first.", query=("principal", "since", "after", "limit")),
    Doc("GET", "/-/sessions/{id}", "One session: its state, labels, facts, calls and cost.", query=("principal",)),
    Doc("GET", "/-/sessions/{id}/timeline", "Everything on record of a session, in order.", query=("principal", "after", "limit")),
    Doc("PUT", "/-/sessions/{id}/facts/{name}", "Set a fact that rules may read.", "operate", query=("principal",), body=FactGiven),
    Doc("POST", "/-/sessions/{id}/freeze", "Let none of its calls go on.", "operate", query=("principal",), body=NoteGiven),
    Doc("POST", "/-/sessions/{id}/thaw", "Let its calls go on again.", "operate", query=("principal",), body=NoteGiven),
    Doc("POST", "/-/sessions/{id}/kill", "End it for good.", "operate", query=("principal",), body=NoteGiven),
    Doc("GET", "/-/calls", "The latest calls, newest first.", query=_CALLS),
    Doc("GET", "/-/calls/{id}", "One call with its decision, attempts, cost and bodies."),
    Doc("GET", "/-/calls/{id}/explain", "Why a call was decided as it was, and what would have to change."),
    Doc("GET", "/-/rules", "The rules that are in force, with how often each has matched."),
    Doc("GET", "/-/routes", "Every route with its targets, and how they are."),
    Doc("GET", "/-/routes/{name}/plan", "The order in which a call would try a route's targets, and why.", query=NAMES),
    Doc("GET", "/-/breakers", "The breaker of every target."),
    Doc("POST", "/-/breakers", "Open or close a breaker by hand, or let it act by itself again.", "operate", body=_Setting),
    Doc("GET", "/-/budgets", "Every budget, and the accounts that have something to tell.", query=("scope", "subject", "limit")),
    Doc("GET", "/-/budgets/{name}", "A budget with its accounts, raises, windows and changes.", query=("subject", "limit")),
    Doc("PUT", "/-/budgets/{name}", "Make or change a budget; with a `subject`, the limits of one of its accounts.", "operate",
        body=_NewBudget),
    Doc("DELETE", "/-/budgets/{name}", "Take back what was set.", "operate", query=("subject", "note")),
    Doc("POST", "/-/budgets/{name}/raise", "A higher limit for a while.", "operate", body=_Raise),
    Doc("GET", "/-/budgets/suspects", "What was booked at the estimate because a process died.", query=("limit",)),
    Doc("POST", "/-/budgets/suspects/{call}", "What a suspect really cost.", "operate", body=_Cost),
    Doc("GET", "/-/costs", "What was spent, grouped.", query=("by", "since", "until", "format", "limit")),
    Doc("GET", "/-/keys", "Virtual keys, without their secrets."),
    Doc("POST", "/-/keys", "Make a virtual key; it is shown once.", "admin", body=_NewKey),
    Doc("POST", "/-/keys/{id}/revoke", "Stop a key for good.", "admin"),
    Doc("POST", "/-/keys/{id}/rotate", "Give a key a new secret; it is shown once.", "admin"),
    Doc("GET", "/-/people", "Accounts of people.", "admin"),
    Doc("POST", "/-/people", "Make an account.", "admin", body=_New),
    Doc("GET", "/-/people/{id}", "One account.", "admin"),
    Doc("POST", "/-/people/{id}", "Change an account.", "admin", body=_Change),
    Doc("POST", "/-/people/{id}/token", "A new API token; it is shown once.", "admin"),
    Doc("POST", "/-/people/{id}/disable", "Let somebody in no more.", "admin"),
    Doc("POST", "/-/people/{id}/enable", "Let somebody in again.", "admin"),
    Doc("GET", "/-/me", "Who asks, and what they may do."),
    Doc("POST", "/-/me/password", "Another password of one's own; all other logins end.", body=_NewPassword),
    Doc("GET", "/-/login/methods", "How one may log in.", _OPEN),
    Doc("POST", "/-/login", "Log in with a password or a token: sets the cookie.", _OPEN, body=_Credentials),
    Doc("POST", "/-/logout", "Log out."),
    Doc("GET", "/-/oidc/begin", "To the identity provider.", _OPEN),
    Doc("GET", "/-/oidc/callback", "Back from the identity provider.", _OPEN, query=("code", "state", "error", "error_description", "iss")),
    Doc("POST", "/-/reload", "Put changed files in force.", "operate"),
    Doc("GET", AT, "This document."),
    Doc("GET", "/-/admin", "The page.", _OPEN, answer="text/html"),
    Doc("GET", "/-/admin/{file}", "A file of the page.", _OPEN, answer="text/plain"),
    Doc("GET", "/-/admin/vendor/{file}", "A file of a library that the page uses.", _OPEN, answer="text/plain"),
    Doc("GET", "/healthz", "The process answers.", _OPEN),
    Doc("GET", "/readyz", "Whether calls can be taken: 503 while they cannot.", _OPEN),
    Doc("GET", "/metrics", "Figures in Prometheus' text format.", _OPEN, answer="text/plain"),
    Doc("GET", "/v1/models", "The models that the caller may use.", _CALLER),
    Doc("POST", "/v1/chat/completions", "A chat, answered plainly or as a stream.", _CALLER),
    Doc("POST", "/v1/completions", "A completion.", _CALLER),
    Doc("POST", "/v1/embeddings", "Embeddings.", _CALLER),
    Doc("GET", "/tools", "The HTTP tools that the caller may use.", _CALLER),
    *(Doc(method, "/tools/{name}", f"Call an HTTP tool; its arguments stand in the {where}.", _CALLER)
      for method, where in (("GET", "query"), ("DELETE", "query"), ("POST", "body"), ("PUT", "body"), ("PATCH", "body"))),
)

_TEXT: Final[Mapping[str, Any]] = {"type": "string"}
_MAYBE: Final[Mapping[str, Any]] = {"type": ["string", "null"]}
_NUMBER: Final[Mapping[str, Any]] = {"type": "integer"}
_YES: Final[Mapping[str, Any]] = {"type": "boolean"}
_ANY: Final[Mapping[str, Any]] = {"type": "object"}
_STATE: Final[Mapping[str, Any]] = {"type": "string", "enum": [each.value for each in State]}

# What parameters of queries may be, where it is more than a text.
_PARAMETERS: Final[Mapping[str, Mapping[str, Any]]] = {
    "limit": {"type": "integer", "minimum": 1}, "live": _YES, "state": {"type": "string", "enum": list(STATES)},
    "order": {"type": "string", "enum": list(ORDERS)}, "kind": {"type": "string", "enum": list(KINDS)}}


def _row(*required: Mapping[str, Mapping[str, Any]], **more: Mapping[str, Any]) -> dict[str, Any]:
    known = {name: dict(schema) for group in (*required, more) for name, schema in group.items()}
    return {"type": "object", "properties": known, "required": sorted(known)}


def _and(row: Mapping[str, Any], **more: Mapping[str, Any]) -> dict[str, Any]:
    """A row with what is not always there."""
    return {**row, "properties": {**row["properties"], **more}}


def _all(schema: Mapping[str, Any], *names: str) -> dict[str, Mapping[str, Any]]:
    return dict.fromkeys(names, schema)


_ROW: Final = _row(
    _all(_TEXT, "id", "mode", "effect", "digest", "shape", "principal", "call", "rule", "message", "summary", "created_at", "expires_at"),
    _all(_MAYBE, "principal_name", "team", "on_behalf_of", "route", "tool", "session", "decided_at", "ended_at", "why_not", "edited_from",
         "replaced_by", "reason", "executed_by"),
    _all(_YES, "irreversible", "may_vote"), state=_STATE, kind={"type": "string", "enum": list(KINDS)},
    demands={"type": "array", "items": _ANY}, votes={"type": ["integer", "array"]})
_SCHEMAS: Final[Mapping[str, Any]] = {
    "Row": _ROW,
    "Approval": _row(approval={"$ref": "#/components/schemas/Row"}),
    "Approvals": _row(_all(_MAYBE, "next"), approvals={
        "type": "array", "maxItems": MOST_ROWS, "items": {"$ref": "#/components/schemas/Row"}}, counts=_ANY),
    "Grants": _row(more=_YES, grants={"type": "array", "items": _row(
        _all(_TEXT, "id", "rule", "principal", "author", "created_at", "expires_at"),
        _all(_MAYBE, "session", "tool", "condition", "ticket", "note", "revoked_at", "revoked_by"), live=_YES,
        uses={"type": ["integer", "null"]}, calls={"type": "array", "maxItems": MOST_USES, "items": _row(_all(_TEXT, "call", "at"))},
        more_calls=_YES)}),
    "Ticket": _and(
        _row(_all(_TEXT, "ticket", "rule", "message", "created_at", "expires_at", "mode"), _all(_MAYBE, "comment"), state=_STATE,
             votes_needed=_NUMBER, edited=_YES, patch={"type": ["array", "null"]}),
        result=_and(_row(status=_NUMBER, content_type=_TEXT), body={}), next=_TEXT, next_state=_STATE),
    "Problem": _row(_all(_TEXT, "type", "title", "detail", "call_id"), status=_NUMBER, code={"type": "string", "enum": sorted(CODES)}),
}


@dataclass(frozen=True, slots=True)
class OpenApi:
    """The endpoint of the document."""

    control: Control

    @property
    def endpoints(self) -> Mapping[tuple[str, str], Handler]:
        """The handlers by method and path."""
        return {("GET", AT): self.show}

    async def show(self, request: web.BaseRequest, client: HttpClient) -> None:
        """`GET /-/openapi.json`: this gateway's endpoints."""
        await self.control.authorise(request, "view")
        query_of(request)
        await client.answer(200, {}, dumps(document()))


def document() -> dict[str, Any]:
    """The whole document."""
    paths: dict[str, dict[str, Any]] = {}
    schemas = dict(_SCHEMAS)
    for doc in DOCS:
        paths.setdefault(doc.path, {})[doc.method.lower()] = _operation(doc, schemas)
    return {
        "openapi": "3.1.0", "jsonSchemaDialect": "https://json-schema.org/draft/2020-12/schema",
        "info": {"title": "Lockgate", "version": __version__, "summary": "A policy-first gateway for AI traffic."},
        "paths": paths,
        "components": {"schemas": schemas, "securitySchemes": {
            "person": {"type": "http", "scheme": "bearer", "description": "The admin token, or a person's API token."},
            "browser": {"type": "apiKey", "in": "cookie", "name": "lockgate_login", "description": "A login of the page."},
            "caller": {"type": "http", "scheme": "bearer", "description": "A virtual key, or a JSON Web Token of a configured issuer."}}},
    }


def _operation(doc: Doc, schemas: dict[str, Any]) -> dict[str, Any]:
    told: dict[str, Any] = {"summary": doc.summary, "operationId": _name(doc), "security": _security(doc), "responses": _responses(doc)}
    parameters = [{"name": name, "in": "path", "required": True, "schema": _TEXT} for name in _PARAMETER.findall(doc.path)]
    parameters += [{"name": name, "in": "query", "schema": _PARAMETERS.get(name, _TEXT)} for name in doc.query]
    if parameters:
        told["parameters"] = parameters
    if doc.need and doc.need != _CALLER:
        told["description"] = f"Needs the permission `{doc.need}`."
    if doc.body is not None:
        name = doc.body.__name__.lstrip("_")
        made = doc.body.model_json_schema(ref_template="#/components/schemas/{model}")
        schemas.update({known: _plain(schema) for known, schema in made.pop("$defs", {}).items()})
        schemas[name] = _plain(made)
        told["requestBody"] = {"required": True, "content": {_JSON: {"schema": {"$ref": f"#/components/schemas/{name}"}}}}
    return told


def _responses(doc: Doc) -> dict[str, Any]:
    schema = {"$ref": f"#/components/schemas/{doc.schema}"} if doc.schema else {"type": "string"} if doc.answer != _JSON else _ANY
    wrong = {"description": "What is wrong (RFC 9457).", "content": {PROBLEM_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}}
    return {"200": {"description": doc.summary, "content": {doc.answer: {"schema": schema}}}, "default": wrong}


def _security(doc: Doc) -> list[dict[str, list[str]]]:
    if not doc.need:
        return []
    return [{"caller": []}] if doc.need == _CALLER else [{"person": []}, {"browser": []}]


def _name(doc: Doc) -> str:
    """A name of its own: `post_approvals_id_vote`."""
    words = [part.strip("{}") for part in re.split(r"[/.]", doc.path) if part.strip("-")]
    return "_".join([doc.method.lower(), *words])


def _plain(schema: Any) -> Any:
    """A schema as the document has it: without titles that repeat names, and without a number's bounds where it is written as a text."""
    if isinstance(schema, list):
        return [_plain(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    return dict(_kept(schema))


def _kept(schema: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in schema.items():
        if (name == "title" and isinstance(value, str)) or (name in _OF_NUMBERS and schema.get("type") == "string"):
            continue
        yield name, ({key: _plain(each) for key, each in value.items()} if name == "properties" else _plain(value))
