"""A stream is stopped before it runs over its money, and ends as one that was cut to length."""

import pytest

from gateway.call import Usage
from gateway.meter import Meter
from gateway.progress import Receipt
from gateway.wire.protocol import Event

HEAD = {"id": "c1", "object": "chat.completion.chunk", "created": 5, "model": "m"}


class Purse:
    """What grants more units, up to so many, and remembers what it was asked for."""

    def __init__(self, most: int = 0) -> None:
        self.most = most
        self.asked: list[int] = []

    async def extend(self, units: int) -> int:
        self.asked.append(units)
        return min(units, self.most)


def metered(units: int, choices: int = 1, most: int = 0) -> tuple[Meter, Purse]:
    purse = Purse(most)
    return Meter(Receipt(), units, choices, purse.extend), purse


def event(text: str = "a", index: object = 0, finish_reason: str | None = None, words: str = "delta") -> Event:
    choice = {"index": index, words: {"content": text} if words == "delta" else text, "finish_reason": finish_reason}
    return Event({**HEAD, "choices": [choice]}, finish_reason=finish_reason)


async def fed(meter: Meter, *events: Event) -> list[bool]:
    paid = []
    for each in events:
        meter.receipt.meter(each)
        paid.append(await meter.covers(each))
    return paid


def ends(meter: Meter) -> list[tuple[int, str]]:
    (last,) = meter.last(None)
    assert last.body is not None
    assert last.finish_reason == "length"
    return [(choice["index"], choice["finish_reason"]) for choice in last.body["choices"]]


async def test_a_provider_that_keeps_to_its_limit_is_let_be():
    meter, purse = metered(3)
    assert await fed(meter, event(), event(), event(), event("", finish_reason="stop")) == [True] * 4
    assert purse.asked == []
    assert meter.last(None) == []


async def test_more_is_asked_for_before_a_stream_runs_over_and_not_for_every_piece():
    meter, purse = metered(2, most=1000)
    assert await fed(meter, *[event() for _ in range(300)]) == [True] * 300
    assert purse.asked == [3 + 256, 260 + 256]


async def test_a_piece_that_nobody_pays_for_is_not_passed_on():
    meter, purse = metered(2)
    assert await fed(meter, event(), event(), event()) == [True, True, False]
    assert purse.asked == [259]
    assert ends(meter) == [(0, "length")]


async def test_a_part_of_what_is_asked_for_is_used_up_to_its_end():
    meter, _ = metered(2, most=4)
    assert await fed(meter, *[event() for _ in range(5)]) == [True] * 4 + [False]


async def test_a_refusal_takes_away_nothing_of_what_was_set_aside():
    meter, _ = metered(2)
    await fed(meter, event(), event(), event())
    assert meter.units == 2


async def test_long_pieces_count_by_their_bytes():
    meter, _ = metered(10)
    assert await fed(meter, event("x" * 87), event("x")) == [True, False]


async def test_money_is_for_all_choices_together():
    meter, purse = metered(2, choices=3, most=2)
    assert await fed(meter, *[event(index=number % 3) for number in range(7)]) == [True] * 6 + [False]
    assert purse.asked == [3 + 256]


async def test_every_choice_that_has_not_ended_is_ended_also_one_that_has_not_begun():
    meter, _ = metered(1, choices=3)
    await fed(meter, event(index=0), event(index=0, finish_reason="stop"), event(index=1), event(index=1))
    assert ends(meter) == [(1, "length"), (2, "length")]


async def test_an_end_that_the_client_was_not_given_is_not_taken_for_one():
    meter, _ = metered(1)
    assert await fed(meter, event(), event("more", finish_reason="stop")) == [True, False]
    assert ends(meter) == [(0, "length")]


@pytest.mark.parametrize(("words", "nothing"), [("delta", {}), ("text", "")])
async def test_the_last_chunk_has_the_form_and_the_head_of_those_before_it(words, nothing):
    meter, _ = metered(0)
    await fed(meter, event(words=words))
    (last,) = meter.last(None)
    assert last.body == {**HEAD, "choices": [{"index": 0, words: nothing, "finish_reason": "length"}]}


async def test_usage_is_told_to_who_asked_for_it():
    meter, _ = metered(0)
    await fed(meter, event())
    _, told = meter.last(Usage(7, 3))
    assert told.body == {**HEAD, "choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}}


@pytest.mark.parametrize("body", [
    None, {}, {"choices": None}, {"choices": [None, "x", []]}, {"choices": [{"index": "0"}]}, {"choices": [{"index": [1]}]}, {"choices": [{"index": 1.5}]}])
async def test_a_chunk_of_no_known_form_is_no_choice(body):
    meter, _ = metered(5)
    assert await fed(meter, Event(body)) == [True]
    assert ends(meter) == [(0, "length")]


async def test_choices_that_a_provider_invents_are_bounded():
    meter, _ = metered(10**6, choices=2)
    await fed(meter, *[event(index=number) for number in range(1000)], *[event(index=number, finish_reason="stop") for number in range(1000)])
    assert len(meter.last(None)[0].body["choices"] if meter.last(None) else []) <= 4


async def test_a_choice_without_an_index_is_the_first():
    meter, _ = metered(5)
    await fed(meter, event(index=None), event(index=None, finish_reason="stop"))
    assert meter.last(None) == []


async def test_thousands_of_choices_are_not_all_ended():
    meter, _ = metered(0, choices=4096)
    await fed(meter, event())
    assert len(ends(meter)) == 128
