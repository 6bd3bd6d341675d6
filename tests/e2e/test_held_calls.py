"""Model calls that wait for people, with the unmodified official client: approved, denied, expired, withdrawn, and come back for."""

import asyncio
from typing import Any

import openai
import pytest

from gateway.cli.story import story

RULE = """
[[rule]]
id = "secret-plans"
when = 'texts.exists(text, text.contains("plan"))'
effect = "require_approval"
message = "Plans are looked at."
"""
ASKED: dict[str, Any] = {"model": "fast", "messages": [{"role": "user", "content": "say The plan is good"}]}
SOON_S = 20


def rule(**more: str) -> str:
    """The rule with settings of its approval, in TOML."""
    return f"{RULE}approval = {{ {', '.join(f'{name} = {value}' for name, value in more.items())} }}\n"


def asked(text: str) -> dict[str, Any]:
    return {**ASKED, "messages": [{"role": "user", "content": text}]}


def begin(house: Any, given: Any = ASKED, **options: Any) -> "asyncio.Task[Any]":
    """A call under way; its raw answer, or what the client raises."""
    return asyncio.create_task(house.client(**options).chat.completions.with_raw_response.create(**given))


async def ended(task: "asyncio.Task[Any]") -> Any:
    async with asyncio.timeout(SOON_S):
        return await task


async def refused(task: "asyncio.Task[Any]", kind: type[openai.APIStatusError]) -> openai.APIStatusError:
    with pytest.raises(kind) as caught:
        await ended(task)
    return caught.value


async def delivered(house: Any) -> Any:
    """The approval of a call that is done, once it is on record that its caller has the answer: that is noted after it was given."""
    async def noted() -> Any:
        shown = await house.ticket("succeeded")
        return shown if shown["history"][-1]["event"] == "deliver" else None

    return await house.until(noted)


async def test_a_call_is_held_until_it_is_approved_and_then_answered(house):
    await house.open(policies=RULE)
    task = begin(house)
    ticket = await house.ticket()
    assert house.one.requests == []
    assert (ticket["kind"], ticket["mode"], ticket["effect"], ticket["rule"], ticket["message"]) == (
        "request", "release", "model", "secret-plans", "Plans are looked at.")
    assert (ticket["route"], ticket["team"], ticket["summary"]) == ("fast", "blue", "fast: say The plan is good")
    assert ticket["action"]["arguments"]["messages"] == ASKED["messages"]
    assert not task.done()
    await house.vote(ticket, comment="go on")
    raw = await ended(task)
    assert raw.parse().choices[0].message.content == "The plan is good"
    assert (raw.headers["x-lockgate-approval"], raw.headers["x-lockgate-decision"]) == (ticket["id"], "held")
    assert (raw.headers["x-lockgate-rule"], raw.headers["x-lockgate-target"]) == ("secret-plans", "one/sim-fast")
    assert float(raw.headers["x-lockgate-cost-usd"]) > 0
    assert len(house.one.requests) == 1
    done = await delivered(house)
    assert [(each["event"], each["state"], each["author"]) for each in done["history"]] == [
        ("open", "pending", ticket["principal"]), ("vote", "pending", "admin"), ("approve", "approved", "admin"),
        ("claim", "executing", ""), ("succeed", "succeeded", ""), ("deliver", "succeeded", "")]
    assert [(vote["person"], vote["verdict"], vote["comment"]) for vote in done["votes"]] == [("admin", "approve", "go on")]


async def test_the_record_says_what_it_waited_for_and_under_what_it_was_sent(house):
    await house.open(policies=RULE)
    task = begin(house)
    ticket = await house.ticket()
    await house.vote(ticket)
    raw = await ended(task)
    done = await house.ticket("succeeded")
    row = await house.call(done["executed_by"])
    assert (row["outcome"], row["decision"], row["rule"]) == ("completed", "held", "secret-plans")
    assert (row["approval"], row["part_of"]) == (ticket["id"], raw.headers["x-lockgate-call"])
    presented = await house.call(row["part_of"])
    assert (presented["outcome"], presented["decision"], presented["approval"], presented["parts"]) == (
        "completed", "held", ticket["id"], [row["id"]])
    assert (presented["attempt_count"], presented["cost_usd"]) == (0, "0")  # what it cost is on record once
    assert await house.spent("nothing") == 0  # the doctor is content


async def test_the_story_of_a_call_names_its_approval(house):
    await house.open(policies=RULE)
    task = begin(house)
    ticket = await house.ticket()
    await house.vote(ticket)
    raw = await ended(task)
    told = await house.ask("GET", f"/-/calls/{raw.headers['x-lockgate-call']}/explain")
    assert (told["decision"], told["rule"], told["approval"]) == ("held", "secret-plans", ticket["id"])
    assert f"people were asked: approval {ticket['id']}" in list(story(told))


@pytest.mark.parametrize("max_retries", [0, 2])
async def test_a_denied_call_ends_with_the_comment_and_is_not_tried_again(house, max_retries):
    await house.open(policies=RULE)
    task = begin(house, max_retries=max_retries)
    await house.vote(await house.ticket(), verdict="deny", comment="Not this week.")
    error = await refused(task, openai.PermissionDeniedError)
    assert (error.status_code, error.code) == (403, "approval_denied")
    assert "Not this week." in error.message
    assert error.response.headers["x-should-retry"] == "false"
    assert (house.one.requests, len(await house.calls())) == ([], 1)
    row = (await house.calls())[0]
    assert (row["outcome"], row["code"]) == ("refused", "approval_denied")


async def test_a_denial_stands_for_who_asks_again(house):
    await house.open(policies=RULE)
    task = begin(house)
    await house.vote(await house.ticket(), verdict="deny", comment="No.")
    await refused(task, openai.PermissionDeniedError)
    error = await refused(begin(house), openai.PermissionDeniedError)
    assert "No." in error.message
    assert await house.tickets("pending") == []


async def test_a_call_that_nobody_decides_on_in_time_is_refused(house):
    await house.open(policies=rule(expires='"300ms"'))
    error = await refused(begin(house, max_retries=2), openai.PermissionDeniedError)
    assert error.code == "approval_denied"
    assert error.message.endswith("Its time is over, so it is refused. Nobody decided in time.")
    assert house.one.requests == []
    (row,) = await house.tickets("expired")
    await house.vote(row, status=409)


@pytest.mark.parametrize(("on_disconnect", "state"), [("leave", "pending"), ("withdraw", "withdrawn")])
async def test_a_client_that_hangs_up_leaves_its_approval_or_withdraws_it_as_the_rule_says(house, on_disconnect, state):
    await house.open(policies=rule(on_disconnect=f'"{on_disconnect}"'))
    task = begin(house)
    await house.ticket()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    (row,) = await house.until(lambda: house.calls(outcome="cancelled"))
    assert row["outcome"] == "cancelled"
    await house.ticket(state)
    assert house.one.requests == []


async def test_one_of_two_presenters_that_hangs_up_withdraws_nothing(house):
    await house.open(policies=rule(on_disconnect='"withdraw"'))
    first, second = begin(house), begin(house)
    waiting = house.gateway.running.proxy.holding.waiting
    ticket = await house.ticket()

    async def both() -> bool:
        return len(waiting) == 2

    await house.until(both)
    first.cancel()
    await house.until(lambda: house.calls(outcome="cancelled"))
    await house.vote(ticket)
    assert (await ended(second)).parse().choices[0].message.content == "The plan is good"


async def test_every_presenter_of_one_action_gets_the_one_answer(house):
    await house.open(policies=RULE)
    tasks = [begin(house) for _ in range(8)]
    waiting = house.gateway.running.proxy.holding.waiting

    async def all_wait() -> bool:
        return len(waiting) == len(tasks)

    await house.until(all_wait)
    await house.vote(await house.ticket())
    answers = [await ended(task) for task in tasks]
    assert {raw.parse().id for raw in answers} == {answers[0].parse().id}
    assert {raw.headers["x-lockgate-cost-usd"] for raw in answers} == {answers[0].headers["x-lockgate-cost-usd"]}
    assert len(house.one.requests) == 1


async def test_another_session_of_the_same_client_is_the_same_action_unless_the_rule_says_otherwise(house):
    await house.open(policies=rule(by_session="true"))
    one = begin(house, {**ASKED, "extra_headers": {"X-Lockgate-Session": "s1"}})
    first = await house.ticket()
    other = begin(house, {**ASKED, "extra_headers": {"X-Lockgate-Session": "s2"}})
    (second,) = await house.until(lambda: house.tickets(session="s2"))
    assert second["digest"] != first["digest"]
    await house.vote(first)
    assert (await ended(one)).parse().choices[0].message.content == "The plan is good"
    assert not other.done()
    await house.vote(second, verdict="deny")
    await refused(other, openai.PermissionDeniedError)


async def test_another_principals_identical_request_needs_its_own_approval(house):
    await house.open(policies=RULE)
    other_key = await house.new_key(name="other", team="red")
    mine, theirs = begin(house), begin(house, key=other_key)
    (first,) = await house.until(lambda: house.tickets(team="blue"))
    (second,) = await house.until(lambda: house.tickets(team="red"))
    assert first["digest"] != second["digest"]
    await house.vote(first)
    await ended(mine)
    assert not theirs.done()
    await house.vote(second, verdict="deny")
    await refused(theirs, openai.PermissionDeniedError)
    assert len(house.one.requests) == 1


@pytest.mark.parametrize("changed", [
    {"temperature": 0.1}, {"messages": [{"role": "user", "content": "say The plan is good!"}]}, {"user": "somebody"},
    {"extra_body": {"something": "new"}}], ids=["temperature", "messages", "user", "unknown"])
async def test_an_action_that_differs_in_anything_needs_its_own_approval(house, changed):
    await house.open(policies=RULE, config='[approvals]\nhold = "0s"\n')
    await refused(begin(house), openai.ConflictError)
    ticket = await house.ticket()
    await house.vote(ticket)
    await refused(begin(house, {**ASKED, **changed}), openai.ConflictError)
    assert len(await house.tickets("pending")) == 1
    assert house.one.requests == []


async def test_an_approval_that_was_used_lets_nothing_else_through(house):
    await house.open(policies=RULE)
    task = begin(house)
    first = await house.ticket()
    await house.vote(first)
    await ended(task)
    await delivered(house)
    again = begin(house)
    second = await house.ticket()
    assert second["id"] != first["id"]
    assert second["similar"]["id"] == first["id"]
    assert second["similar"]["patch"] == []
    await house.vote(second, verdict="deny")
    await refused(again, openai.PermissionDeniedError)
    assert len(house.one.requests) == 1


async def test_nobody_votes_on_what_they_were_not_shown(house):
    await house.open(policies=RULE)
    task = begin(house)
    ticket = await house.ticket()
    told = await house.vote({**ticket, "digest": "sha256:" + "0" * 64}, status=409)
    assert told["code"] == "approval_conflict"
    await house.vote(ticket)
    await ended(task)


async def test_the_owner_of_the_requesting_key_does_not_vote(house):
    await house.open(policies=RULE)
    await house.people(ada=(), grace=())
    key = await house.new_key(name="agent", owner="ada")
    task = begin(house, key=key)
    ticket = await house.ticket()
    await house.vote(ticket, "ada", status=403)
    await house.vote(ticket, "grace")
    await ended(task)


async def test_two_people_of_a_role_have_to_approve_and_one_denial_ends_it(house):
    await house.open(policies=RULE.replace("message", 'approvers = ["role:finance"]\nquorum = 2\nmessage'))
    await house.people(ada=("finance",), grace=("finance",), mallory=("sales",))
    task = begin(house)
    ticket = await house.ticket()
    await house.vote(ticket, "mallory", status=403)
    await house.vote(ticket, status=403)  # the admin token is nobody of finance
    row = await house.vote(ticket, "ada")
    assert (row["state"], row["demands"][0]["have"]) == ("pending", 1)
    await house.vote(ticket, "ada", status=409)
    assert not task.done()
    assert (await house.vote(ticket, "grace"))["state"] == "approved"
    await ended(task)
    task = begin(house, asked("say Another plan"))
    ticket = await house.ticket()
    await house.vote(ticket, "ada")
    await house.vote(ticket, "grace", "deny", comment="one is enough")
    assert "one is enough" in (await refused(task, openai.PermissionDeniedError)).message
