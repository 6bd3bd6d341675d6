"""Which targets a call may try: gets what the pure `core/order.py` has to know, and asks it."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final, TypeAlias

from gateway.call import Call, ToolUse
from gateway.clock import Clock, Ids
from gateway.core.breaker import Condition
from gateway.core.estimate import BYTES_OF_A_TOKEN
from gateway.core.order import Passed, Placed, Plan, Wanted, order, plan_json
from gateway.core.plan import Route, RouteTarget
from gateway.core.question import Question
from gateway.core.route_rules import Choice, RouteRules
from gateway.core.session_uses import with_uses
from gateway.errors import CallError, Forbidden, UpstreamFailed
from gateway.progress import Progress
from gateway.session import SessionKey
from gateway.snapshot import Snapshot
from gateway.spending import Spending, budget_facts
from gateway.store.protocol import Budgets, Sessions
from gateway.tools import OPERATION

# Has a call's task said by its route's classifier; the last resort is the classifier's default, so that there is always an answer.
Classify: TypeAlias = Callable[[Progress, Call, Route, Snapshot], Awaitable[str]]

_TAG: Final = "task"
_BY_CHANCE: Final = ("weighted", "fastest")
_NO_CHOICE: Final = Choice()


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of a call that is not in it: its task, and what it has left behind that is not yet on record of its session."""

    task: str = ""
    labels: Sequence[str] = ()
    uses: Sequence[ToolUse] = ()
    notes: tuple[str, ...] = ()  # what came of the question for its task


@dataclass(frozen=True, slots=True)
class Routing:
    """Plans calls. One per gateway. `condition` tells how a target is, `classify` has a small model say what kind of task a call is."""

    condition: Callable[[RouteTarget], Condition]
    classify: Classify
    sessions: Sessions
    budgets: Budgets
    clock: Clock
    ids: Ids

    async def plan(self, case: Progress, snapshot: Snapshot, call: Call, route: Route, spending: Spending) -> Plan:
        """The targets that a call tries, best first: at least one.

        Raises:
            UpstreamFailed: every target was taken out of use by hand.
            Forbidden: what policy leaves of the route, and what the route's own rules choose, have no target in common.
            StoreUnavailable: a rule reads the session or a budget, and nobody knows how they stand.
        """
        if len(route.targets) == 1 and route.rules is None and route.targets[0].canary is None:  # most calls: nothing to choose
            to = route.targets[0]
            condition = self.condition(to)
            if condition.admits:
                return Plan(route.strategy, (Placed(to, "the only one", condition),))
        task = task_of(call, route)
        if task is None and route.classifier is not None:
            task = await self.classify(case, call, route, snapshot)
        plan = await self.ordered(snapshot, call, route, spending, Known(task or "", tuple(case.labels), case.uses, tuple(case.notes)))
        if not plan.order:
            case.plan = plan_json(plan)  # what would be said of a plan that could be followed is said of this one, too
            raise nowhere(route, plan.passed)
        return plan

    async def ordered(self, snapshot: Snapshot, call: Call, route: Route, spending: Spending, known: Known) -> Plan:
        """The same for a call of which everything is known; it may hold no target."""
        choice = _NO_CHOICE
        if route.rules is not None:
            choice = await self._choice(route.rules, await self._question(route.rules, snapshot, call, spending, known), known.task)
        origin = call.origin
        stick = f"session={origin.session}" if origin.session else f"user={call.user}" if call.user else ""
        draws = [self.ids.jitter() for _ in route.targets] if route.strategy in _BY_CHANCE else ()
        wanted = Wanted(
            streamed=call.stream or call.operation == OPERATION,
            stick=f"{call.principal.id} {stick}", lot=f"{call.principal.id} {origin.session}" if origin.session else call.id,
            cost_nusd=costs_nusd(route, spending) if route.strategy == "cheapest" else (), draws=draws,
            tokens=spending.measured.size // BYTES_OF_A_TOKEN, chosen=choice.targets, rule=choice.rule, task=known.task,
            notes=(*known.notes, *choice.notes))
        return order(route, wanted, {to.target: self.condition(to) for to in route.targets})

    async def _choice(self, rules: RouteRules, question: Question, task: str) -> Choice:
        if question.large:  # other calls do not wait for it
            return await asyncio.to_thread(rules.choose, question, task)
        return rules.choose(question, task)

    async def _question(self, rules: RouteRules, snapshot: Snapshot, call: Call, spending: Spending, known: Known) -> Question:
        """What the rules are asked, with what they read of the session and the accounts."""
        question = Question("request", call, self.clock.now_ns(), env=snapshot.config.policy.env)
        if rules.reads_budgets:
            standings = await self.budgets.standing(snapshot.budgets, spending.subjects, now_ns=question.now_ns)
            question = replace(question, budgets=budget_facts(standings))
        if rules.reads_session and call.origin.session:
            key = SessionKey(call.principal.id, call.origin.session)
            facts = with_uses(await self.sessions.facts(key, rules.queries, now_ns=question.now_ns), known.uses)
            question = replace(question, session=replace(facts, labels=tuple(dict.fromkeys((*facts.labels, *known.labels)))))
        return question


def task_of(call: Call, route: Route) -> str | None:
    """What the caller says that the call is, by its tag `task`; None where that is none of the classifier's tasks."""
    said = call.origin.tags.get(_TAG)
    return said if route.classifier is None or said in route.classifier.tasks else None


def costs_nusd(route: Route, spending: Spending) -> list[int | None]:
    """What the call costs at the most at each target of the route, None where nobody knows."""
    needs = [spending.need(to) for to in route.targets]
    return [None if need.unpriced else need.cost(need.most) for need in needs]


def nowhere(route: Route, passed: Sequence[Passed]) -> CallError:
    """The error for a call that may try no target."""
    told = "; ".join(f"{each.to.target}: {each.why}" for each in passed)
    if any(not each.condition.admits for each in passed):
        return UpstreamFailed(f"No target of the route {route.name} may be tried: {told}.")
    return Forbidden(f"The rules leave no target of the route {route.name} for this call: {told}.", rule=route.name)

