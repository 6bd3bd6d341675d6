"""Asking the rules: a question with everything that they read, and what they say of it on record."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from gateway.call import Call
from gateway.clock import Clock
from gateway.core.accounts import Subjects
from gateway.core.decision import Decision, Denied, Limit, Phase, Redaction
from gateway.core.question import Question
from gateway.core.rules import Bundle
from gateway.core.session_uses import with_uses
from gateway.gather import selected
from gateway.judge import Judged, judge
from gateway.progress import Progress
from gateway.snapshot import Snapshot
from gateway.spending import budget_facts, subjects_of
from gateway.store.protocol import Budgets
from gateway.turns import Turns

Done = TypeVar("Done")


@dataclass(frozen=True, slots=True)
class Asking:
    """Puts questions to the rules. One per gateway."""

    turns: Turns
    budgets: Budgets
    clock: Clock
    scrub: Callable[[str], str]

    def question(self, snapshot: Snapshot, phase: Phase, call: Call, **what: Any) -> Question:
        """A question to the rules of a phase."""
        return Question(phase, call, self.clock.now_ns(), env=snapshot.config.policy.env, **what)

    async def ask(self, case: Progress, snapshot: Snapshot, question: Question) -> Judged:
        """Ask the rules of a phase and put on record what they say."""
        judged = await self.judged(snapshot.bundle, await self.informed(case, snapshot, question))
        case.decided(judged.decision)
        return judged

    async def informed(self, case: Progress, snapshot: Snapshot, question: Question) -> Question:
        """The question with how the accounts stand and what is known of the session, this call's part included."""
        if snapshot.bundle.phases[question.phase].reads_budgets and selected(snapshot.bundle, question).reads_budgets:
            standings = await self.budgets.standing(snapshot.budgets, self.subjects(case, question.call), now_ns=question.now_ns)
            question = replace(question, budgets=budget_facts(standings))
        session = await self.turns.facts(snapshot.bundle, question, wait_s=snapshot.config.policy.wait)
        if session is None:
            return question
        gone = case.unlabels
        labels = tuple(dict.fromkeys((*(label for label in session.labels if label not in gone), *case.labels)))
        return replace(question, session=replace(with_uses(session, case.uses), labels=labels))

    async def judged(self, bundle: Bundle, question: Question) -> Judged:
        """What the rules say, without a record of it."""
        if bundle.phases[question.phase].empty:
            return judge(bundle, question)
        return await apart(question, judge, bundle, question)

    def subjects(self, case: Progress, call: Call) -> Subjects:
        """Whose accounts a call is on: before it is known where it goes, those of the route that was asked for."""
        return case.spending.subjects if case.spending is not None else subjects_of(call, call.route, self.scrub)


async def apart(question: Question, work: Callable[..., Done], *given: Any) -> Done:
    """Do work on what is judged: on a large text in a thread, so that other calls do not wait for it."""
    return await asyncio.to_thread(work, *given) if question.large else work(*given)


def limits_of(decision: Decision) -> tuple[Limit, ...]:
    """The rates that a decision obliges to."""
    return () if isinstance(decision, Denied) else decision.limits


def redactions_of(decision: Decision) -> list[Redaction]:
    """What a decision has taken out."""
    return [] if isinstance(decision, Denied) else [each for each in decision.transforms if isinstance(each, Redaction)]
