"""What a call may cost is bounded from above before it is sent: for every price, every body, and every usage within what was asked for."""

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.call import Usage
from gateway.core.budget import Need
from gateway.core.estimate import OUTPUT_LIMITS, Bounds, Measure, estimated_usage, input_bound, limited, measure, need, output_bound
from gateway.core.money import Price, Tier, cost_nusd
from gateway.errors import InvalidRequest

FIELDS = ("max_tokens", "max_completion_tokens", "")


@pytest.fixture
def measured(call):
    """What is seen of a body; its size is that of its text unless told."""

    def look(operation: str = "chat", size: int | None = None, **body: Any) -> Measure:
        return measure(call(body, operation=operation), len(json.dumps(body).encode()) if size is None else size)

    return look


def messages(*parts: Any, role: str = "user", **message: Any) -> list[dict[str, Any]]:
    return [{"role": role, "content": list(parts), **message}]


# How long the answer may be.


@pytest.mark.parametrize(("body", "asked"), [
    ({}, None), ({"max_tokens": 5}, 5), ({"max_completion_tokens": 5}, 5), ({"max_tokens": None}, None), ({"max_tokens": 5, "n_predict": None}, 5),
    *[({name: 7}, 7) for name in OUTPUT_LIMITS], ({"max_tokens": 5, "max_completion_tokens": 900}, 900), ({"n_predict": 9, "max_tokens": 5}, 9),
    ({"max_tokens": -1}, None), ({"max_tokens": 5, "num_predict": -2}, None), ({"max_tokens": 0}, None), ({"max_tokens": 10**30}, 10**30)])
def test_the_largest_limit_that_a_body_gives_is_what_it_asks_for_and_no_limit_is_none(measured, body, asked):
    """To some servers a negative number is none, and so may 0 be."""
    assert measured(**body).asked == asked


@pytest.mark.parametrize("value", [True, False, 5.0, 1e300, "5", "", [], [5], {}, {"a": 1}])
@pytest.mark.parametrize("name", [*OUTPUT_LIMITS, "n", "best_of"])
def test_a_limit_that_is_no_whole_number_is_named_by_its_pointer(measured, name, value):
    with pytest.raises(InvalidRequest) as refused:
        measured(**{name: value})
    assert refused.value.pointer == f"/{name}"


@pytest.mark.parametrize(("asked", "bounds", "most"), [
    (None, Bounds(), 4096), (None, Bounds(max_output=100), 100), (None, Bounds(max_output=100, default_output=50), 50), (7, Bounds(), 7),
    (500, Bounds(max_output=100), 100), (10**12, Bounds(), 262_144), (10**12, Bounds(default_output=10**6), 10**6),
    (7, Bounds(output_limit=""), 262_144), (7, Bounds(output_limit="", max_output=100), 100), (None, Bounds(output_limit="", max_output=100), 100)])
def test_an_answer_is_at_most_as_long_as_asked_and_as_the_model_makes_it(asked, bounds, most):
    """A model that takes no limit makes its longest answer, whatever it is asked for; a billion tokens hold no account's whole rest."""
    assert output_bound(Measure(10, asked=asked), bounds) == most


def test_embeddings_and_tools_make_no_tokens(measured):
    assert output_bound(measured("embeddings", input=["a"]), Bounds()) == 0
    tool = measured("tool", anything=1)
    assert (tool, input_bound(tool, Bounds())) == (Measure(0, produces=False), 0)
    assert need(tool, Price(0, 0, request=5_000), Bounds()) == Need(5)


@pytest.mark.parametrize(("operation", "body", "choices"), [
    ("chat", {}, 1), ("chat", {"n": 3}, 3), ("chat", {"n": None}, 1), ("chat", {"n": 0}, 1), ("chat", {"n": -4}, 1), ("chat", {"n": 4096}, 4096),
    ("chat", {"n": 2, "prompt": ["a", "b"]}, 2), ("completions", {"n": 2, "best_of": 5, "prompt": "a"}, 5),
    ("completions", {"prompt": ["a", "b", "c"], "n": 2}, 6), ("completions", {"prompt": [1, 2, 3]}, 1),
    ("completions", {"prompt": [[1, 2], [3]]}, 2), ("completions", {"prompt": [1, "a"]}, 2), ("completions", {"prompt": []}, 1),
    ("completions", {"prompt": [True, False]}, 2), ("completions", {"prompt": {"a": 1}}, 1)])
def test_all_answers_that_are_made_are_counted(measured, operation, body, choices):
    assert measured(operation, **body).choices == choices


@pytest.mark.parametrize(("body", "pointer"), [({"n": 4097}, "/n"), ({"n": 10**30}, "/n"), ({"best_of": 10**6}, "/best_of"),
                                               ({"n": 4096, "prompt": ["a"] * 17}, "/prompt"), ({"prompt": ["a"] * 65_537}, "/prompt")])
def test_more_answers_than_anybody_makes_are_refused(measured, body, pointer):
    with pytest.raises(InvalidRequest) as refused:
        measured("completions", **body)
    assert refused.value.pointer == pointer


# How much the input may be.


def test_a_text_has_at_most_as_many_tokens_as_bytes(measured):
    plain = measured(messages=messages({"type": "text", "text": "hé"}), size=100)
    assert plain == Measure(100)
    assert input_bound(plain, Bounds()) == 101
    assert input_bound(plain, Bounds(bytes_per_token=3)) == 34
    assert input_bound(plain, Bounds(context=50)) == 50


def test_each_of_several_texts_has_a_context_of_its_own(measured):
    """A provider that takes 8000 tokens takes 8000 of each input, and bills all of them."""
    assert input_bound(measured("embeddings", input=["a", "b", "c"], size=10**6), Bounds(context=8000)) == 24_000
    assert input_bound(measured("completions", prompt=[[1], [2]], size=10**6), Bounds(context=8000)) == 16_000
    assert input_bound(measured("embeddings", input=[1, 2, 3], size=10**6), Bounds(context=8000)) == 8000
    assert input_bound(measured("embeddings", input="abc", size=10**6), Bounds(context=8000)) == 8000


@pytest.mark.parametrize("part", [
    {"type": "image_url", "image_url": {"url": "https://x/y.png"}}, {"type": "input_image", "image_url": "https://x/y.png"},
    {"image_url": {"url": "https://x/y.png"}}, {"type": "image", "source": {"url": "https://x"}}, {"type": "text", "image_url": "https://x"}])
def test_a_picture_is_counted_by_number(measured, part):
    seen = measured(messages=messages(part, part, {"type": "text", "text": "x"}), size=100)
    assert (seen.images, seen.files, seen.audio) == (2, False, False)
    assert input_bound(seen, Bounds(image_tokens=1000)) == 101 + 2000


def test_a_picture_that_stands_in_the_body_counts_as_a_picture_and_not_as_text(measured):
    data = "data:image/png;base64," + "A" * 10_000
    body = {"messages": messages({"type": "image_url", "image_url": {"url": data}}, {"type": "input_image", "image_url": data})}
    seen = measured(**body)
    assert (seen.images, seen.size) == (2, len(json.dumps(body)) - 2 * len(data))
    assert measured(messages=messages({"type": "image_url", "image_url": data}), size=5).size == 1


@pytest.mark.parametrize("url", ["data:text/plain;base64," + "A" * 99, "https://x/" + "a" * 99, "x" * 99, "data:image/png," + "é" * 99, 5, None, ["data:image/png,"]])
def test_what_is_no_picture_in_the_body_counts_as_text(measured, url):
    body = {"messages": messages({"type": "image_url", "image_url": {"url": url}})}
    assert measured(**body, size=1000).size == 1000


@pytest.mark.parametrize("part", [
    {"type": "file", "file": {"file_id": "f"}}, {"type": "input_file", "file_id": "f"}, {"type": "video_url", "video_url": {"url": "u"}},
    {"type": "document", "source": {}}, {"video_url": "u"}, {"type": "what_is_this"}, {"type": 5}, {"type": ["text"]}, {"type": {}},
    {"type": "text", "file": {"file_id": "f"}}, {"type": "tool_result", "content": [{"type": "file", "file": {}}]},
    {"type": "tool_result", "content": [{"type": "tool_result", "content": {"type": "file", "file": {}}}]}])
def test_what_is_only_referred_to_may_fill_the_context(measured, part):
    seen = measured(messages=messages(part), size=100)
    assert seen.files
    assert (input_bound(seen, Bounds(context=5000)), input_bound(seen, Bounds())) == (5000, 2_097_152)
    assert input_bound(replace(seen, size=10**7), Bounds()) == 10**7 + 1


@pytest.mark.parametrize("body", [
    {"web_search_options": {}}, {"search_parameters": {"mode": "on"}}, {"plugins": [{"id": "web"}]}, {"tools": [{"type": "web_search"}]},
    {"tools": [{"type": 5}]}, {"functions": [{"name": "f"}], "tools": [{"type": "mcp"}]}])
def test_what_a_provider_looks_up_may_fill_the_context(measured, body):
    assert measured(**body).files


@pytest.mark.parametrize("body", [
    {"tools": [{"type": "function", "function": {"name": "f"}}]}, {"tools": [{"type": "custom"}, {"function": {}}, "x"]},
    {"functions": [{"name": "f"}]}])
def test_tools_bring_what_a_provider_says_of_tools(measured, body):
    seen = measured(**body, size=100)
    assert (seen.tools, seen.files) == (True, False)
    assert input_bound(seen, Bounds()) == 101 + 1024


@pytest.mark.parametrize("body", [
    {"messages": messages({"type": "input_audio", "input_audio": {"data": "AA"}})}, {"messages": messages({"input_audio": {}})},
    {"messages": messages(role="assistant", audio={"id": "a"})}, {"audio": {"voice": "v"}}, {"modalities": ["text", "audio"]},
    {"messages": messages({"type": "file"})}])
def test_sound_in_either_direction_is_seen(measured, body):
    assert measured(**body).audio


@pytest.mark.parametrize("body", [{}, {"audio": None}, {"modalities": ["text"]}, {"modalities": "audio"}, {"messages": messages("x", audio=None)}])
def test_a_call_without_sound_is_not_charged_for_it(measured, body):
    assert not measured(**body).audio


def test_a_predicted_answer_that_is_rejected_is_billed_as_output(measured):
    seen = measured(prediction={"type": "content", "content": "x"}, max_tokens=10, size=100)
    price = Price(0, 1_000_000)
    assert seen.predicted == 100
    assert need(seen, price, Bounds()).cost(10) >= cost_nusd(price, Usage(output_tokens=110))
    assert estimated_usage(seen, Bounds(), None, None).output_tokens == 110
    assert measured(prediction=None).predicted == 0


@pytest.mark.parametrize(("body", "dear"), [
    ({}, False), ({"service_tier": None}, False), ({"service_tier": "auto"}, False), ({"service_tier": "flex"}, False), ({"speed": "standard"}, False),
    ({"service_tier": "priority"}, True), ({"service_tier": "fast"}, True), ({"service_tier": ""}, True), ({"service_tier": []}, True),
    ({"speed": "fast"}, True), ({"speed": {}}, True), ({"service_tier": "default", "speed": 1}, True)])
def test_a_service_tier_that_may_cost_more_has_no_published_price(measured, body, dear):
    for operation in ("chat", "embeddings"):
        seen = measured(operation, **body)
        assert seen.dear is dear
        assert need(seen, Price(1, 1), Bounds(any_tier=False)).unpriced is dear
        assert not need(seen, Price(1, 1), Bounds()).unpriced


def test_what_nobody_knows_the_price_of_is_said_to_be_so():
    assert need(Measure(10, asked=5), None, Bounds()) == Need(0, unpriced=True, most=5)


def test_a_model_that_takes_no_limit_cannot_be_asked_for_less():
    assert need(Measure(10), Price(1, 1), Bounds(output_limit="")).rigid
    assert not need(Measure(10), Price(1, 1), Bounds()).rigid
    assert not need(Measure(10, produces=False), Price(1, 1), Bounds(output_limit="")).rigid


def test_a_model_that_is_free_of_charge_needs_nothing():
    assert need(Measure(10), Price(0, 0), Bounds()).cost(4096) == 0


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5) | st.sampled_from(["text", "image_url", "file", "audio"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(
        st.sampled_from(["type", "content", "image_url", "url", "audio", "file", "role", "x"]), inner, max_size=4), max_leaves=12)
NAMES = st.sampled_from([*OUTPUT_LIMITS, "n", "best_of", "prompt", "input", "messages", "modalities", "audio", "prediction", "service_tier", "speed",
                         "tools", "functions", "web_search_options", "plugins", "min_tokens"])


@settings(derandomize=True, deadline=None, max_examples=600)
@given(st.dictionaries(NAMES, JSON, max_size=6), st.sampled_from(["chat", "completions", "embeddings", "tool"]),
       st.integers(0, 10**6), st.sampled_from(FIELDS), st.integers(0, 300))
def test_any_body_is_bounded_or_refused_with_a_pointer(call, body, operation, size, field, units):
    try:
        seen = measure(call(body, operation=operation), size)
    except InvalidRequest as refused:
        pointer = refused.pointer
    else:
        pointer = None
    if pointer is not None:
        assert pointer[1:] in body
        return
    bounds = Bounds(output_limit=field)
    wanted = need(seen, Price(1, 1), bounds)
    assert 0 <= wanted.cost(0) <= wanted.cost(wanted.most) < 2**62
    assert input_bound(seen, bounds) >= (seen.size if operation != "tool" else 0)
    sent = limited(body, units, field)
    assert sent == limited(sent, units, field)


# The bound, against what a provider may report.

RATES = st.integers(0, 10**9)
CLASSES = ("cache_read", "cache_write", "input_audio", "output_audio", "reasoning")
PLAIN = st.builds(Price, RATES, RATES, **dict.fromkeys(CLASSES, st.none() | RATES), image=RATES, request=st.integers(0, 10**12))
TIERS = st.lists(st.builds(Tier, st.integers(1, 30_000), PLAIN), max_size=3, unique_by=lambda tier: tier.above)
PRICES = st.builds(lambda price, tiers: replace(price, tiers=tuple(sorted(tiers, key=lambda tier: tier.above))), PLAIN, TIERS)
MEASURES = st.builds(
    Measure, st.integers(1, 20_000), st.integers(1, 5), st.none() | st.integers(1, 3000), st.integers(0, 3), st.booleans(), st.booleans(),
    st.booleans(), st.integers(1, 3), st.integers(0, 100), st.booleans())
BOUNDS = st.builds(Bounds, st.none() | st.integers(1, 50_000), st.none() | st.integers(1, 5000), st.integers(1, 5000), st.integers(0, 3000),
                   st.integers(1, 4), st.sampled_from(FIELDS))


@settings(derandomize=True, deadline=None, max_examples=1000)
@given(PRICES, MEASURES, BOUNDS, st.data())
def test_no_usage_within_the_bounds_costs_more_than_what_is_set_aside(price, seen, bounds, data):
    wanted = need(seen, price, bounds)
    units = data.draw(st.integers(0, wanted.most), label="units")
    tokens, output = input_bound(seen, bounds), units * seen.choices + seen.predicted * seen.produces
    share = st.integers(0, 10**6).map(lambda part: part / 10**6)

    def part_of(whole: int) -> int:
        return int(min(whole, round(whole * data.draw(share))))

    used, made = part_of(tokens), part_of(output)
    read = part_of(used)
    usage = Usage(used, made, read, part_of(used - read), part_of(made), part_of(used) if seen.audio else 0, part_of(made) if seen.audio else 0,
                  images=seen.images)
    assert cost_nusd(price, usage) <= wanted.cost(units)
    whole = replace(usage, input_tokens=tokens, output_tokens=output)
    assert cost_nusd(price, whole) <= wanted.cost(units)


@settings(derandomize=True, deadline=None, max_examples=300)
@given(PRICES, MEASURES, BOUNDS, st.none() | st.integers(0, 10_000), st.data())
def test_what_is_estimated_never_costs_more_than_was_set_aside(price, seen, bounds, delivered, data):
    wanted = need(seen, price, bounds)
    units = data.draw(st.none() | st.integers(0, wanted.most))
    usage = estimated_usage(seen, bounds, delivered, units)
    assert usage.estimated
    assert usage.input_tokens == input_bound(seen, bounds) > 0
    if units is not None or delivered is None:  # where nothing was granted nothing was asked for in its place
        assert cost_nusd(price, usage) <= wanted.cost(wanted.most if units is None else units)


@pytest.mark.parametrize(("delivered", "units", "output"), [
    (None, None, 200), (None, 30, 60), (40, None, 40), (10**6, None, 524_288), (10**6, 30, 60), (0, None, 0)])
def test_what_came_is_what_is_estimated_and_the_whole_where_nobody_saw(delivered, units, output):
    usage = estimated_usage(Measure(50, choices=2, asked=100, images=3), Bounds(image_tokens=7), delivered, units)
    assert usage == Usage(51 + 21, output, estimated=True, images=3)


def test_sound_that_nobody_counted_is_taken_for_sound():
    usage = estimated_usage(Measure(50, asked=100, audio=True), Bounds(), 40, None)
    assert (usage.input_audio_tokens, usage.output_audio_tokens) == (51, 40)


# What is asked for.


@pytest.mark.parametrize(("body", "sent"), [
    ({}, {"max_tokens": 50}), ({"max_tokens": 50}, None), ({"max_tokens": 7}, None), ({"max_tokens": 51}, {"max_tokens": 50}),
    ({"max_tokens": -1}, {"max_tokens": 50}), ({"max_tokens": None}, {"max_tokens": 50}), ({"max_tokens": 0}, {"max_tokens": 50}),
    ({"max_tokens": 10**30, "n_predict": 7, "num_predict": 99}, {"max_tokens": 50, "n_predict": 7, "num_predict": 50}),
    ({"max_tokens": 7, "max_completion_tokens": 99}, {"max_tokens": 7, "max_completion_tokens": 50}),
    ({"max_completion_tokens": 7}, {"max_tokens": 7}), ({"max_completion_tokens": 99}, {"max_tokens": 50}),
    ({"max_completion_tokens": -1}, {"max_tokens": 50}), ({"n_predict": 7}, {"n_predict": 7, "max_tokens": 50}),
    ({"max_tokens": 7, "min_tokens": 99, "min_length": 7}, {"max_tokens": 7, "min_tokens": 50, "min_length": 7}),
    ({"max_tokens": 7, "min_tokens": "99"}, {"max_tokens": 7, "min_tokens": 50}), ({"max_tokens": 7, "min_tokens": 1e9}, {"max_tokens": 7, "min_tokens": 50})])
def test_the_body_asks_for_no_more_than_is_paid_for_in_the_field_that_its_target_reads(body, sent):
    given = {"model": "m", **body}
    made = limited(given, 50, "max_tokens")
    assert made == ({"model": "m", **sent} if sent is not None else given)
    assert (made is given) is (sent is None)


def test_the_other_name_of_the_field_is_the_targets_own_where_it_wants_that_one():
    assert limited({"max_tokens": 7}, 50, "max_completion_tokens") == {"max_completion_tokens": 7}
    assert limited({"max_tokens": 99, "x": 1}, 50, "max_completion_tokens") == {"x": 1, "max_completion_tokens": 50}


def test_a_model_that_takes_no_limit_is_given_none():
    assert limited({"max_tokens": 99}, 50, "") == {"max_tokens": 50}
    body = {"x": 1}
    assert limited(body, 50, "") is body


@settings(derandomize=True, deadline=None, max_examples=300)
@given(st.dictionaries(st.sampled_from([*OUTPUT_LIMITS, "min_tokens", "x"]), st.none() | st.integers(-2, 100), max_size=5),
       st.sampled_from(FIELDS), st.integers(0, 60))
def test_no_server_reads_a_limit_above_what_was_granted(body, field, units):
    sent = limited(body, units, field)
    assert all(0 <= sent[name] <= units for name in OUTPUT_LIMITS if sent.get(name) is not None)
    assert not field or sent[field] is not None
    assert sent.get("min_tokens") is None or sent["min_tokens"] <= units
    assert sent.get("x") == body.get("x")


@pytest.mark.parametrize(("body", "thinks"), [
    ({"reasoning_effort": "high"}, True), ({"reasoning_effort": "none"}, False), ({"thinking": {"type": "enabled"}}, True),
    ({"enable_thinking": False}, False), ({}, False)])
def test_a_request_says_whether_it_asks_for_thinking(measured, body, thinks):
    assert measured(**body).thinks is thinks


@pytest.mark.parametrize(("prompt", "ids"), [([1] * 40, 40), ([[1] * 30, [2] * 20], 50), ("words", 0), (["a", "b"], 0), ([], 0), ([[1], "a", 2], 1)])
def test_a_prompt_in_tokens_is_no_shorter_for_a_model_with_long_tokens(measured, prompt, ids):
    seen = measured("completions", 50, prompt=prompt)
    assert seen.ids == ids
    assert input_bound(seen, Bounds(bytes_per_token=16)) == max(3, ids) + 1


@pytest.mark.parametrize(("tool", "reads"), [
    ({"google_search": {}}, True), ({"function": {"name": "f"}}, False), ({"type": "function", "function": {"name": "f"}}, False), ({"name": "f"}, False)])
def test_a_tool_that_the_provider_runs_may_bring_in_what_is_not_in_the_body(measured, tool, reads):
    assert measured(tools=[tool]).files is reads
