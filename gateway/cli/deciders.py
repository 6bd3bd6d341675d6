"""Who could decide: the accounts on a database beside what rules, and what waits, ask for."""

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from typing import Final

from gateway.config import Deployment
from gateway.core.approval import Demand, Stage, Vote, Voter, standing
from gateway.core.approver import ADMIN, named
from gateway.core.decision import Approval
from gateway.errors import Problem, StoreError
from gateway.snapshot import Snapshot
from gateway.store.approval_rows import demands_of, places_of
from gateway.store.database import Connection, open_readonly
from gateway.store.invariants import Invariant
from gateway.store.library import sqlite3
from gateway.validation import nearest

NOBODY: Final = Invariant(
    "approvals-that-nobody-can-decide",
    "SELECT id, rule, principal_name, expires_ns FROM approvals WHERE state = 'pending' AND expires_ns > :now_ns "
    "AND nobody_can_decide(demands, json_array(principal, owner, on_behalf_of), "
    "(SELECT coalesce(json_group_array(json_array(person, verdict, coalesce(nullif(places, ''), '[]'))), '[]') FROM approval_votes "
    "WHERE ticket = approvals.id))",
    "too few people with an account are asked by these, so they wait until their time is over: give somebody the role or the team "
    "(`lockgate people change`), or change `approvers` of the rule",
    note=True,
)
_WHAT: Final = {"role": "has the role", "team": "is in the team", "person": "has the id"}
_ACCOUNTS: Final = "SELECT id, roles, teams FROM people WHERE disabled_ns IS NULL AND permission IN ('approve', 'operate', 'admin')"
_HOLDER: Final = Voter(ADMIN, ADMIN, (ADMIN,), method="token")  # of the admin token


def voters(connection: Connection) -> list[Voter]:
    """Everybody with an account that may vote at all. Raises `sqlite3.Error` or `ValueError` where they cannot be read."""
    return [Voter(person, roles=tuple(json.loads(roles)), teams=tuple(json.loads(teams)))
            for person, roles, teams in connection.execute(_ACCOUNTS)]


def teach(connection: Connection) -> None:
    """Give a connection the function of `NOBODY`. Where accounts cannot be read, there is nothing to say."""
    try:
        known = [*voters(connection), _HOLDER]
    except (sqlite3.Error, ValueError):
        known = []

    def nobody_can_decide(demands: str, asked_by: str, votes: str) -> bool:
        try:
            cast = [Vote(Voter(person), verdict, "", 0, places=places_of(places)) for person, verdict, places in json.loads(votes)]
            barred = {*json.loads(asked_by), *(vote.voter.id for vote in cast)}
            able = [voter for voter in known if voter.id not in barred]
            return bool(known) and any(_stuck(demand, cast, able) for demand in demands_of(demands))
        except (ValueError, TypeError, KeyError):
            return False  # an invariant tells of what cannot be read

    connection.create_function("nobody_can_decide", 3, nobody_can_decide)


def _stuck(demand: Demand, votes: Iterable[Vote], able: Sequence[Voter]) -> bool:
    """Whether a stage of a demand can never be met. One that others take over in time goes on."""
    now = standing(demand, votes)
    return now.stage is not None and not demand.escalate and any(
        (few := _able(stage, able)) is not None and few < stage.quorum - (now.have if number == 0 else 0)
        for number, stage in enumerate(demand.stages[now.stage:]))


def _able(stage: Stage, able: Sequence[Voter]) -> int | None:
    """How many of these a stage asks; None where only an expression could say."""
    if any(named(text, _HOLDER) is None for text in stage.approvers):
        return None
    return sum(1 for voter in able if not stage.approvers or any(named(text, voter) for text in stage.approvers))


def advice_on_approvers(deployment: Deployment, snapshot: Snapshot) -> Iterator[Problem]:
    """Rules that ask people whom nobody with an account is. Nothing where accounts cannot be read, or come from an identity provider."""
    if deployment.config.oidc is not None or deployment.config.store.path == ":memory:":
        return
    try:
        with closing(open_readonly(deployment.folder / deployment.config.store.path)) as connection:
            known = voters(connection)
    except (StoreError, sqlite3.Error, ValueError):
        return  # there is no database yet, or `lockgate doctor` says what is wrong with it
    known += [_HOLDER] if deployment.config.admin.token is not None else []
    for given, rule in zip(deployment.rules, snapshot.bundle.rules, strict=True):
        if isinstance(rule.action, Approval) and given.mode != "off":
            demand = rule.action.demand
            staged = bool(given.approval.stages)
            for number, stage in enumerate(demand.stages):
                path = ("approval", "stages", number, "approvers") if staged else ("approvers",)
                yield from (deployment.problem_in(given.source, path, f'{words} (rule "{given.id}")', hint)
                            for words, hint in _of_stage(stage, known))
            if demand.escalate:
                last = Stage(demand.escalate, max(stage.quorum for stage in demand.stages))
                yield from (deployment.problem_in(given.source, ("approval", "escalate_to"), f'{words} (rule "{given.id}")', hint)
                            for words, hint in _of_stage(last, known))


def _of_stage(stage: Stage, known: Sequence[Voter]) -> Iterator[tuple[str, str | None]]:
    """What deserves a look in whom a stage asks, with what helps."""
    unknown = [text for text in stage.approvers if named(text, _HOLDER) is not None and not any(named(text, each) for each in known)]
    for text in unknown:
        kind, _colon, name = text.partition(":")
        there = {"role": [role for each in known for role in each.roles], "team": [team for each in known for team in each.teams],
                 "person": [each.id for each in known]}[kind]
        yield (f'nobody with an account who may approve {_WHAT[kind]} "{name}"',
               nearest(name, there) or "`lockgate people` makes and changes accounts")
    few = _able(stage, known)
    if not unknown and few is not None and few < stage.quorum:
        yield (f"too few people can decide: {stage.quorum} have to approve, and of those with an account {few} may",
               "`lockgate people` makes and changes accounts")
