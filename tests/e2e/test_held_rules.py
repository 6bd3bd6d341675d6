"""What rules and people make of a held action: answers, identity, edits, grants; and what changes between an approval and its use."""

import asyncio
import json
from typing import Any

import openai
import pytest

from gateway.app import Parts

SOON_S = 20
PLANS = """
[[rule]]
id = "secret-plans"
when = 'texts.exists(text, text.contains("plan"))'
effect = "require_approval"
message = "Plans are looked at."
"""
AT_ONCE = '[approvals]\nhold = "0s"\n'
STREAMED = pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])


def chat(text: str, **more: Any) -> dict[str, Any]:
    return {"model": "fast", "messages": [{"role": "user", "content": text}], **more}


ASKED = chat("say The plan is good")


async def said(house: Any, given: Any = ASKED, *, stream: bool = False, **options: Any) -> tuple[str, Any]:
    """What an official client gets: the text and the headers."""
    client = house.client(**options)
    async with asyncio.timeout(SOON_S):
        raw = await client.chat.completions.with_raw_response.create(**given, **({"stream": True} if stream else {}))
        if not stream:
            return raw.parse().choices[0].message.content, raw.headers
        return "".join([chunk.choices[0].delta.content or "" async for chunk in raw.parse() if chunk.choices]), raw.headers


def begin(house: Any, *arguments: Any, **options: Any) -> "asyncio.Task[tuple[str, Any]]":
    return asyncio.create_task(said(house, *arguments, **options))


async def refused(house: Any, given: Any = ASKED, **options: Any) -> openai.APIError:
    with pytest.raises(openai.APIError) as caught:
        await said(house, given, **options)
    return caught.value


async def approved(house: Any, given: Any = ASKED) -> Any:
    """An action that people have approved and nobody has presented since. For houses whose hold is nothing."""
    assert (await refused(house, given)).code == "approval_pending"
    ticket = await house.ticket()
    await house.vote(ticket)
    return ticket


async def change(house: Any, policies: str) -> None:
    house.write("policies/policies.toml", policies)
    await house.gateway.reload()


# Answers.

LEAKS = """
[[rule]]
id = "prices"
phase = "response"
when = 'response.text.contains("USD")'
effect = "require_approval"
message = "Prices are looked at."
"""
PRICE = chat("say It is 5 USD")


@STREAMED
async def test_an_answer_is_held_until_somebody_has_read_it(house, stream):
    await house.open(policies=LEAKS)
    task = begin(house, PRICE, stream=stream)
    ticket = await house.ticket()
    assert (ticket["kind"], ticket["effect"], ticket["grantable"]) == ("response", "read", False)
    assert ticket["action"]["arguments"]["choices"][0]["message"]["content"] == "It is 5 USD"
    assert len(house.one.requests) == 1
    await house.vote(ticket)
    assert (await task)[0] == "It is 5 USD"
    assert len(house.one.requests) == 1
    assert (await house.call((await house.calls())[0]["id"]))["outcome"] == "completed"


@STREAMED
async def test_an_answer_that_is_denied_is_withheld(house, stream):
    await house.open(policies=LEAKS)
    task = begin(house, PRICE, stream=stream)
    await house.vote(await house.ticket(), verdict="deny", comment="Not yet public.")
    with pytest.raises(openai.APIError, match="Not yet public") as caught:
        await task
    assert caught.value.code == "approval_denied"
    row = await house.call((await house.calls())[0]["id"])
    assert (row["outcome"], row["withheld"]) == ("withheld", True)


@STREAMED
async def test_who_comes_back_for_an_answer_gets_the_one_that_was_read(house, stream):
    await house.open(policies=LEAKS, config=AT_ONCE)
    assert (await refused(house, PRICE, stream=stream)).code == "approval_pending"
    await house.vote(await house.ticket())
    assert (await said(house, PRICE, stream=stream))[0] == "It is 5 USD"
    assert len(house.one.requests) == 1
    assert (await refused(house, PRICE, stream=stream)).code == "approval_pending"  # a new answer, to be read anew
    assert len(house.one.requests) == 2


async def test_a_call_may_be_held_before_it_leaves_and_its_answer_as_well(house):
    await house.open(policies=PLANS + LEAKS)
    task = begin(house, chat("say The plan costs 5 USD"))
    request = await house.ticket()
    assert request["kind"] == "request"
    await house.vote(request)
    answer = await house.ticket()
    assert answer["kind"] == "response"
    await house.vote(answer)
    assert (await task)[0] == "The plan costs 5 USD"
    assert len(house.one.requests) == 1


# What makes an action the same.

PAYMENT = """
[[rule]]
id = "tools-ok"
phase = "tool_call"
effect = "allow"
match = { tools = ["*"] }
[[rule]]
id = "large-payments"
phase = "tool_call"
match = { tools = ["pay"] }
when = 'double(tool.args.amount) > 1000.0'
effect = "require_approval"
message = "Payments above 1000 are looked at."
"""


def pay_tool(house: Any, more: str = "") -> str:
    made: str = house.paying(f'price = "0.01"\n{more}')
    return made


async def pay(house: Any, **arguments: Any) -> tuple[int, Any, Any]:
    headers = {f"X-Lockgate-{name.title()}": arguments.pop(name) for name in ("session",) if name in arguments}
    status, given, raw = await house.present("/tools/pay", arguments, **headers)
    return status, given, json.loads(raw)


def paid(house: Any) -> list[Any]:
    return [entry.body for entry in house.one.requests if entry.path == "/tools/pay"]


async def test_who_rewords_what_does_not_matter_meets_the_same_approval_and_what_was_stored_is_sent(house):
    identity = 'approval = { identity = ["tool.args.amount", "tool.args.to"] }\n'
    await house.open(routes=pay_tool(house), policies=PAYMENT + identity, config=AT_ONCE)
    assert (await pay(house, amount=5000, to="DE1", note="the rent"))[0] == 409
    ticket = await house.ticket()
    assert (await pay(house, amount=5000, to="DE1", note="rent for May"))[0] == 409
    assert [row["id"] for row in await house.tickets()] == [ticket["id"]]
    assert (await pay(house, amount=5000, to="DE2", note="the rent"))[0] == 409
    assert len(await house.tickets()) == 2
    await house.vote(ticket)
    status, headers, _told = await pay(house, amount=5000, to="DE1", note="once more, the rent")
    assert (status, headers["X-Lockgate-Approval"]) == (200, ticket["id"])
    assert paid(house) == [{"amount": 5000, "to": "DE1", "note": "the rent"}]


async def test_an_identity_that_cannot_be_read_refuses_the_call(house):
    identity = 'approval = { identity = ["tool.args.to"] }\n'
    await house.open(routes=pay_tool(house), policies=PAYMENT + identity, config=AT_ONCE)
    status, _headers, told = await pay(house, amount=5000)
    assert (status, told["code"]) == (403, "approval_unavailable")
    assert await house.tickets() == []


async def test_an_edited_model_call_is_what_is_sent_and_its_caller_is_told(house):
    await house.open(policies=PLANS)
    task = begin(house)
    ticket = await house.ticket()
    arguments = {**ticket["action"]["arguments"], "messages": [{"role": "user", "content": "say The plan is fine"}]}
    await house.ask("POST", f"/-/approvals/{ticket['id']}/edit", {"digest": ticket["digest"], "arguments": arguments, "approve": True})
    text, headers = await task
    assert text == "The plan is fine"
    assert [op["path"] for op in json.loads(headers["x-lockgate-approval-patch"])] == ["/messages/0/content"]
    (sent,) = house.one.requests
    assert sent.body["messages"] == arguments["messages"]


async def test_an_edited_call_of_a_tool_is_what_is_sent(house):
    await house.open(routes=pay_tool(house), policies=PAYMENT)
    task = asyncio.create_task(pay(house, amount=5000))
    ticket = await house.ticket()
    edited = {"amount": 2000, "to": "DE1"}
    await house.ask("POST", f"/-/approvals/{ticket['id']}/edit", {"digest": ticket["digest"], "arguments": edited, "approve": True})
    status, headers, _told = await task
    assert status == 200
    assert json.loads(headers["X-Lockgate-Approval-Patch"])
    assert paid(house) == [edited]


# Grants.


async def grant(house: Any, ticket: Any, **more: Any) -> Any:
    await house.vote(ticket, grant={"for": "1h", **more})
    (made,) = (await house.ask("GET", "/-/grants"))["grants"]
    return made


async def test_a_grant_lets_calls_like_it_go_on_as_often_as_it_says(house):
    await house.open(routes=pay_tool(house), policies=PAYMENT, config=AT_ONCE)
    assert (await pay(house, amount=2000))[0] == 409
    made = await grant(house, await house.ticket(), condition="double(tool.args.amount) < 3000.0", uses=2)
    assert (made["rule"], made["uses"], made["tool"], made["author"]) == ("large-payments", 2, "pay", "admin")
    assert (await pay(house, amount=2000))[0] == 200  # by its own approval
    assert (await pay(house, amount=2500))[0] == 200
    assert (await pay(house, amount=3500))[0] == 409  # not what the condition is of
    assert (await pay(house, amount=2600))[0] == 200
    assert (await pay(house, amount=2700))[0] == 409  # used up
    assert [each["amount"] for each in paid(house)] == [2000, 2500, 2600]
    await house.spent("nothing")


async def test_a_grant_ends_with_its_time_or_when_it_is_revoked(house, leaping):
    await house.open(policies=PLANS, config=AT_ONCE, parts=Parts(clock=leaping))
    assert (await refused(house)).code == "approval_pending"
    made = await grant(house, await house.ticket())
    assert (await said(house, chat("say Another plan")))[0] == "Another plan"
    assert (await said(house, chat("say A third plan")))[0] == "A third plan"
    leaping.leap(3601)
    assert (await refused(house, chat("say A fourth plan"))).code == "approval_pending"
    fourth = await house.ticket()
    await house.vote(fourth, grant={"for": "1h"})
    live = [each for each in (await house.ask("GET", "/-/grants"))["grants"] if each["live"]]
    assert made["id"] not in [each["id"] for each in live]
    await house.ask("POST", f"/-/grants/{live[0]['id']}/revoke", {})
    assert (await refused(house, chat("say A fifth plan"))).code == "approval_pending"


async def test_a_grant_for_a_session_is_of_no_use_elsewhere_nor_to_others(house):
    await house.open(routes=pay_tool(house), policies=PAYMENT, config=AT_ONCE)
    assert (await pay(house, amount=2000, session="s1"))[0] == 409
    await grant(house, await house.ticket(), session=True)
    assert (await pay(house, amount=2001, session="s1"))[0] == 200
    assert (await pay(house, amount=2002, session="s2"))[0] == 409
    assert (await pay(house, amount=2003))[0] == 409
    mine, house.key = house.key, await house.new_key(name="other")
    assert (await pay(house, amount=2001, session="s1"))[0] == 409
    house.key = mine


async def test_no_grant_is_made_for_what_nothing_takes_back(house):
    await house.open(routes=pay_tool(house, "irreversible = true"), policies=PAYMENT, config=AT_ONCE)
    assert (await pay(house, amount=2000))[0] == 409
    ticket = await house.ticket()
    assert not ticket["grantable"]
    await house.vote(ticket, grant={"for": "1h"}, status=400)
    assert (await house.ticket())["votes"] == []
    await house.vote(ticket)


async def test_a_proposed_call_that_a_grant_covers_goes_on_in_the_answer(house):
    await house.open(policies=PAYMENT, config=AT_ONCE)
    tool = {"type": "function", "function": {"name": "pay", "parameters": {"type": "object", "properties": {"amount": {"type": "number"}}}}}
    client = house.client()

    async def propose(amount: int) -> Any:
        given = chat(f'call pay {{"amount": {amount}}}', tools=[tool])
        return (await client.chat.completions.create(**given)).choices[0].message.tool_calls

    with pytest.raises(openai.ConflictError):
        await propose(2000)
    await grant(house, await house.ticket(), uses=1)
    assert await propose(2000)  # its own approval
    assert await propose(2001)  # the grant's one use
    with pytest.raises(openai.ConflictError):
        await propose(2002)


# What changes between an approval and its use.


async def test_what_the_rules_deny_by_then_is_denied(house):
    await house.open(policies=PLANS, config=AT_ONCE)
    await approved(house)
    await change(house, PLANS.replace("require_approval", "deny"))
    error = await refused(house)
    assert (error.code, house.one.requests) == ("forbidden", [])


async def test_an_executed_call_that_the_rules_deny_by_then_is_denied(house):
    await house.open(policies=PLANS + 'approval = { mode = "execute" }\n', config=AT_ONCE)
    assert (await refused(house)).code == "approval_pending"
    ticket = await house.ticket()
    await change(house, PLANS + '[[rule]]\nid = "no-plans"\nwhen = \'texts.exists(text, text.contains("plan"))\'\neffect = "deny"\nmessage = "No more."\n')
    await house.vote(ticket)
    row = await house.ticket("denied")
    assert "No more." in row["reason"]
    assert house.one.requests == []


async def test_rules_that_ask_for_more_by_then_get_the_votes_that_are_missing(house):
    await house.open(policies=PLANS, config=AT_ONCE)
    await house.people(ada=("finance",), grace=("finance",))
    assert (await refused(house)).code == "approval_pending"
    ticket = await house.ticket()
    await house.vote(ticket, "ada")
    await change(house, PLANS + "quorum = 2\n")
    assert (await refused(house)).code == "approval_pending"
    row = await house.ticket("pending")
    assert (row["id"], [vote["person"] for vote in row["votes"]], row["demands"][0]["have"]) == (ticket["id"], ["ada"], 1)
    await house.vote(row, "ada", status=409)
    await house.vote(row, "grace")
    assert (await said(house))[0] == "The plan is good"


async def test_rules_that_ask_others_by_then_do_not_count_the_votes_of_before(house):
    await house.open(policies=PLANS, config=AT_ONCE)
    await house.people(ada=("finance",), grace=("security",))
    assert (await refused(house)).code == "approval_pending"
    ticket = await house.ticket()
    await house.vote(ticket, "ada")
    await change(house, PLANS + 'approvers = ["role:security"]\n')
    assert (await refused(house)).code == "approval_pending"
    assert house.one.requests == []
    await house.vote(await house.ticket("pending"), "grace")
    assert (await said(house))[0] == "The plan is good"


async def test_a_rule_that_is_taken_away_lets_the_call_go_on_and_the_approval_is_not_used(house):
    await house.open(policies=PLANS, config=AT_ONCE)
    ticket = await approved(house)
    await change(house, "")
    text, headers = await said(house)
    assert (text, headers["x-lockgate-decision"]) == ("The plan is good", "allow")
    assert (await house.ticket("approved"))["id"] == ticket["id"]


async def test_an_approval_that_nobody_uses_is_over_in_the_end(house, leaping):
    await house.open(policies=PLANS, config=f'{AT_ONCE}unexpired = "10m"\n', parts=Parts(clock=leaping))
    ticket = await approved(house)
    leaping.leap(601)
    await house.gateway.running.sweeper.sweep()
    assert (await refused(house)).code == "approval_pending"
    assert (await house.ticket("pending"))["id"] != ticket["id"]
    assert house.one.requests == []


async def test_who_did_not_decide_in_time_is_followed_by_others(house, leaping):
    await house.open(parts=Parts(clock=leaping), config='[approvals]\nhold = "1h"\n', policies=PLANS + """approvers = ["role:finance"]
approval = { expires = "10m", on_expiry = "escalate", escalate_to = ["role:directors"] }
""")
    await house.people(ada=("finance",), grace=("directors",))
    task = begin(house, timeout=7200.0)
    ticket = await house.ticket()
    await house.vote(ticket, "grace", status=403)
    leaping.leap(601)
    await house.gateway.running.sweeper.sweep()
    row = await house.ticket("pending")
    assert row["id"] == ticket["id"]
    await house.vote(row, "ada", status=403)
    await house.vote(row, "grace")
    assert (await task)[0] == "The plan is good"


BUDGET = '{hold}[budgets.blue]\nscope = "team"\nlimit = "0.000001"\nwindow = "day"\n'


async def test_money_that_is_not_there_by_then_is_told_and_the_approval_is_not_used_up(house):
    await house.open(policies=PLANS, config=BUDGET.format(hold=AT_ONCE))
    ticket = await approved(house)
    error = await refused(house)
    assert error.code == "budget_exceeded"
    assert (await house.ticket("approved"))["id"] == ticket["id"]
    await house.ask("POST", "/-/budgets/blue/raise", {"subject": "blue", "by": "1", "for": "1h"})
    assert (await said(house))[0] == "The plan is good"
    assert len(house.one.requests) == 1
    await house.spent("blue/blue")


async def test_a_session_that_is_frozen_meanwhile_makes_no_call(house):
    await house.open(policies=PLANS, config=AT_ONCE)
    given = {**ASKED, "extra_headers": {"X-Lockgate-Session": "s1"}}
    await approved(house, given)
    await house.ask("POST", "/-/sessions/s1/freeze", {"note": "odd"})
    await house.gateway.running.proxy.frozen.refresh()
    error = await refused(house, given)
    assert (error.code, house.one.requests) == ("session_frozen", [])
    await house.ask("POST", "/-/sessions/s1/thaw", {})
    await house.gateway.running.proxy.frozen.refresh()
    assert (await said(house, given))[0] == "The plan is good"


async def test_two_rules_ask_their_own_people_and_both_have_to_approve(house):
    await house.open(policies=f"""
{PLANS}approvers = ["role:finance"]
[[rule]]
id = "good-news"
when = 'texts.exists(text, text.contains("good"))'
effect = "require_approval"
approvers = ["role:press"]
""")
    await house.people(ada=("finance",), grace=("press",), alan=("finance", "press"))
    task = begin(house)
    ticket = await house.ticket()
    assert (await house.vote(ticket, "ada"))["state"] == "pending"
    assert not task.done()
    assert (await house.vote(ticket, "grace"))["state"] == "approved"
    await task
    task = begin(house, chat("say A good plan"))
    assert (await house.vote(await house.ticket(), "alan"))["state"] == "approved"  # one vote, for both
    await task
