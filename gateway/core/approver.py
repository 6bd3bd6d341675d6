"""Who may decide: what stands under `approvers` in a rule, and where a person's vote would count. Pure.

Fails closed: an expression that cannot be evaluated is true of nobody.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple

from gateway.core.approval import Demand, Stage, State, Ticket, Voter, standing
from gateway.core.body import UnreadableFactError, bounded
from gateway.core.condition import ConditionError, evaluated
from gateway.core.expressions import CompileProblem, Engine, ExpressionError, Library, Program, compile_expression, open_engine
from gateway.core.facts import CelType

ADMIN: Final = "admin"  # the id, and the one role, of whoever holds the admin token: nobody's own name
_MOST_KEPT: Final = 1024
_LONGEST: Final = 4  # approvers that are named where somebody is told why they may not vote
_NAMED: Final = ("role:", "team:", "person:")
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


class Matter(NamedTuple):
    """A person, what they would vote on, and when."""

    voter: Voter
    ticket: Ticket
    now_ns: int


@dataclass(frozen=True, slots=True)
class ApproverFact:
    """One variable of the expressions under `approvers`."""

    name: str
    type: CelType
    doc: str
    example: str
    extract: Callable[[Matter], Any]


def _login_age(matter: Matter) -> timedelta:
    if not matter.voter.login_ns:
        raise UnreadableFactError("they did not log in, but sent a token")
    return timedelta(microseconds=(matter.now_ns - matter.voter.login_ns) // 1000)


def _args(matter: Matter) -> dict[str, Any]:
    arguments = matter.ticket.shown.get("arguments")
    return bounded(dict(arguments)) if isinstance(arguments, dict) else {}


FACTS: Final[tuple[ApproverFact, ...]] = (
    ApproverFact("approver.id", "string", "The person's id.", 'approver.id in ["grace", "ada"]', lambda matter: matter.voter.id),
    ApproverFact("approver.name", "string", "Their name.", 'approver.name != ""', lambda matter: matter.voter.name),
    ApproverFact("approver.roles", "list(string)", "Their roles.",
                 '"finance" in approver.roles', lambda matter: list(matter.voter.roles)),
    ApproverFact("approver.teams", "list(string)", "Their teams.",
                 "approval.team in approver.teams", lambda matter: list(matter.voter.teams)),
    ApproverFact("approver.method", "string", "How they proved who they are: `password`, `oidc`, `token`.",
                 'approver.method == "oidc"', lambda matter: matter.voter.method),
    ApproverFact("approver.login_age", "duration", "How long ago they logged in. Who sends an API token did not: then it cannot be read.",
                 'approver.login_age < duration("15m")', _login_age),
    ApproverFact("approval.rule", "string", "The rule that asks.", 'approval.rule == "large-payments"', lambda matter: matter.ticket.rule),
    ApproverFact("approval.kind", "string", "What waits: `request`, `tool`, `tool_call` (proposed by a model), `response`.",
                 'approval.kind != "response"', lambda matter: str(matter.ticket.kind)),
    ApproverFact("approval.tool", "string", "The tool that is called, empty where none is.",
                 'approval.tool.startsWith("bank.")', lambda matter: matter.ticket.tool),
    ApproverFact("approval.route", "string", "The route.", 'approval.route == "fast"', lambda matter: matter.ticket.route),
    ApproverFact("approval.principal", "string", "The id of whoever asks for it.",
                 'approval.principal != ""', lambda matter: matter.ticket.principal),
    ApproverFact("approval.principal_name", "string", "Their name.",
                 'approval.principal_name.startsWith("ci-")', lambda matter: matter.ticket.principal_name),
    ApproverFact("approval.team", "string", "Their team, empty if there is none.",
                 "approval.team in approver.teams", lambda matter: matter.ticket.team),
    ApproverFact("approval.on_behalf_of", "string", "Whom they act for, empty where nobody is named.",
                 "approval.on_behalf_of != approver.id", lambda matter: matter.ticket.on_behalf_of),
    ApproverFact("approval.session", "string", "The session that it was asked in, empty if none.",
                 'approval.session != ""', lambda matter: matter.ticket.session),
    ApproverFact("approval.args", "map(string, dyn)", "The arguments of the tool, or the body of the model call. Guard with `has()`.",
                 'has(approval.args.amount) && double(approval.args.amount) < 5000.0 && "finance" in approver.roles', _args),
    ApproverFact("approval.created_age", "duration", "How long it waits.", 'approval.created_age > duration("10m")',
                 lambda matter: timedelta(microseconds=(matter.now_ns - matter.ticket.created_ns) // 1000)),
    ApproverFact("approval.irreversible", "bool", "Whether the tool's declaration says that nothing takes it back.",
                 '!approval.irreversible || approver.method == "oidc"', lambda matter: matter.ticket.irreversible),
    ApproverFact("now", "timestamp", "Wall time of the vote, UTC.",
                 "now.getDayOfWeek() in [1, 2, 3, 4, 5]", lambda matter: _EPOCH + timedelta(microseconds=matter.now_ns // 1000)),
)


@dataclass(frozen=True, slots=True)
class Eligibility:
    """Where a vote would count, as `Vote.places` has it. Without any place, `why_not` tells the person why."""

    places: tuple[tuple[str, int], ...] = ()
    why_not: str = ""

    def __bool__(self) -> bool:
        return bool(self.places)


class Approvers:
    """The expressions of one bundle under `approvers`, compiled when they are first met: those of older tickets stand in no rule of now."""

    def __init__(self, choice: str, library: Library) -> None:
        self._engine: Engine = open_engine(choice, {fact.name: fact.type for fact in FACTS}, library)
        self._kept: OrderedDict[str, Program] = OrderedDict()

    def check(self, text: str) -> None:
        """Raise `ExpressionError` for what names nobody: neither a role, a team, a person, nor an expression that can be used."""
        prefix = next((each for each in _NAMED if text.startswith(each)), None)
        if prefix is None:
            self._program(text)
        elif not (name := text.removeprefix(prefix)).strip() or name != name.strip() or not name.isprintable():
            raise ExpressionError(CompileProblem(f"{prefix}NAME needs a name, without blanks around it"))

    def fits(self, text: str, matter: Matter) -> bool:
        """Whether one of `approvers` means this person. Raises `ConditionError` where nobody can say."""
        by_name = named(text, matter.voter)
        if by_name is not None:
            return by_name
        if matter.voter.id == ADMIN:  # an expression may say what is true of everybody; the token is no person
            return False
        try:
            program = self._program(text)
        except ExpressionError as error:
            raise ConditionError(str(error)) from error
        values: dict[str, Any] = {}
        for fact in FACTS:
            if fact.name in program.names:
                try:
                    values[fact.name] = fact.extract(matter)
                except UnreadableFactError as error:
                    raise ConditionError(f"{fact.name}: {error}") from error
        return evaluated(self._engine, program, values) is True

    def _program(self, text: str) -> Program:
        program = self._kept.pop(text, None)
        if program is None:
            program = compile_expression(self._engine, text)
            if program.queries:
                raise ExpressionError(CompileProblem("the tools of a session cannot be asked about here"))
        self._kept[text] = program
        if len(self._kept) > _MOST_KEPT:
            self._kept.popitem(last=False)
        return program


def named(text: str, voter: Voter) -> bool | None:
    """Whether one of `approvers` means this person by role, team or id; None where it is an expression."""
    kind, colon, name = text.partition(":")
    if f"{kind}{colon}" not in _NAMED:
        return None
    held = {"role": voter.roles, "team": voter.teams, "person": (voter.id,)}[kind]
    return name in held


def eligible(ticket: Ticket, voter: Voter, now_ns: int, approvers: Approvers) -> Eligibility:
    """Where this person's vote on a ticket would count: in the present stage of every demand whose approvers they are one of."""
    barred = _barred(ticket, voter, now_ns)
    if barred:
        return Eligibility(why_not=barred)
    matter = Matter(voter, ticket, now_ns)
    places: list[tuple[str, int]] = []
    asked: list[str] = []
    unclear = ""
    for demand, number, stage in _present(ticket.demands, ticket):
        fits, failed = _one_of(stage, matter, approvers)
        if fits:
            places.append((demand.key, number))
        asked += stage.approvers
        unclear = unclear or failed
    if places:
        return Eligibility(tuple(places))
    who = list(dict.fromkeys(asked))
    told = ", ".join(who[:_LONGEST]) + (", …" if len(who) > _LONGEST else "")
    why = f"Others are asked at this stage: {told}." if told else "Nobody is asked any more."
    return Eligibility(why_not=f"{why} What they are named by cannot be told of you ({unclear})." if unclear else why)


def _barred(ticket: Ticket, voter: Voter, now_ns: int) -> str:
    """Why this person may not vote, whoever is asked; empty where they may."""
    if ticket.state is not State.PENDING:
        return f"It is decided on: {ticket.state}."
    if now_ns >= ticket.expires_ns:
        return "Its time is over."
    if ticket.asked_by(voter.id):
        own = {ticket.principal: "You have asked for it yourself.", ticket.owner: "It was asked for with a key of yours."}
        return own.get(voter.id, "It is asked for on your behalf.")
    if any(vote.voter.id == voter.id for vote in ticket.votes):
        return "You have voted."
    return ""


def _present(demands: Iterable[Demand], ticket: Ticket) -> Iterable[tuple[Demand, int, Stage]]:
    """The stage of each demand that is asked now; none of one that is met."""
    for demand in demands:
        number = standing(demand, ticket.votes).stage
        if number is not None:
            yield demand, number, demand.stages[number]


def _one_of(stage: Stage, matter: Matter, approvers: Approvers) -> tuple[bool, str]:
    """Whether a person is one of those that a stage asks; and, of an expression that could not be evaluated, why."""
    if not stage.approvers:
        return True, ""
    failed = ""
    for text in stage.approvers:
        try:
            if approvers.fits(text, matter):
                return True, ""
        except ConditionError as error:
            failed = failed or str(error)
    return False, failed


def variables_table() -> str:
    """The schema as the Markdown table of the guide."""
    lines = ["| variable | type | what | example |", "|---|---|---|---|"]
    for fact in FACTS:
        example = fact.example.replace("|", "\\|")
        lines.append(f"| `{fact.name}` | `{fact.type}` | {fact.doc} | `{example}` |")
    return "\n".join(lines)
