"""Whole answers and errors, from the provider and to the client."""

import json
from types import MappingProxyType
from typing import Any

import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway import errors
from gateway.store.scrub import Scrubber
from gateway.wire import AttemptFailed, Reply, Secret, UpstreamRejected, Usage, dumps, loads

CHOICE = {"index": 0, "message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}
NO_HEADERS: MappingProxyType[str, str] = MappingProxyType({})
JSON = "application/json"


def body_of(**fields: object) -> bytes:
    return dumps({"id": "c", "object": "chat.completion", "choices": [CHOICE], **fields})


def test_a_whole_answer_is_kept_as_it_came_with_its_usage_and_reasons(adapter, dialect, make_call):
    body = body_of(choices=[CHOICE, {**CHOICE, "finish_reason": "length"}], x_unknown=[1], usage={
        "prompt_tokens": 100, "completion_tokens": 50, "total_tokens": 150,
        "prompt_tokens_details": {"cached_tokens": 40, "audio_tokens": 10},
        "completion_tokens_details": {"reasoning_tokens": 30, "audio_tokens": 5},
    })
    reply = adapter.decode(make_call(), body)
    assert reply.body == loads(body)
    assert reply.finish_reasons == ("stop", "length")
    assert reply.usage == Usage(
        input_tokens=100, output_tokens=50, cache_read_tokens=40, reasoning_tokens=30, input_audio_tokens=10,
        output_audio_tokens=5,
    )
    assert dialect.answer(make_call(), reply) == body


@pytest.mark.parametrize(("operation", "body"), [
    ("chat", {"choices": [{"message": {}}]}),
    ("chat", {"choices": [{"message": {"content": None}, "finish_reason": None}], "usage": None, "object": ""}),
    ("chat", {"choices": [CHOICE], "object": "text_completion", "error": None}),
    ("chat", {"choices": [CHOICE], "object": "a_kind_of_its_own"}),
    ("completions", {"choices": [{"text": "hi"}], "object": "text_completion"}),
    ("embeddings", {"data": [{"embedding": [0.1], "index": 0}], "object": "list"}),
    ("embeddings", {"data": [{"embedding": "AAAA"}]}),
])
def test_what_compatible_servers_leave_out_or_name_differently_is_taken(adapter, make_call, operation, body):
    reasons = ("stop",) if CHOICE in body.get("choices", ()) else ()
    assert adapter.decode(make_call(operation), dumps(body)) == Reply(body, None, reasons)


@pytest.mark.parametrize(("operation", "body"), [
    ("chat", b""),
    ("chat", b"<html>502</html>"),
    ("chat", b"[]"),
    ("chat", b"null"),
    ("chat", b'"hi"'),
    ("chat", b"{}"),
    ("chat", b'{"choices": []}'),
    ("chat", b'{"choices": null}'),
    ("chat", b'{"choices": {"0": {}}}'),
    ("chat", b'{"choices": [null]}'),
    ("chat", b'{"choices": [{}]}'),
    ("chat", b'{"choices": [{"delta": {"content": "x"}}]}'),
    ("chat", b'{"choices": [{"message": "hi"}]}'),
    ("chat", body_of(object="chat.completion.chunk")),
    ("chat", body_of(object="list")),
    ("chat", body_of()[:-5]),
    ("chat", b"data: " + body_of() + b"\n\n"),
    ("chat", body_of()[:-1] + b',"n":18446744073709551616}'),
    ("completions", b'{"data": []}'),
    ("embeddings", b'{"data": [0.1, 0.2]}'),
    ("embeddings", b'{"choices": [{}]}'),
])
def test_an_answer_that_is_not_one_fails_the_attempt(adapter, make_call, operation, body):
    with pytest.raises(AttemptFailed) as failed:
        adapter.decode(make_call(operation), body)
    assert failed.value.cause == "malformed"
    assert failed.value.retryable


@pytest.mark.parametrize("body", [
    {"error": {"message": "overloaded", "type": "server_error"}},
    {"error": "overloaded"},
    {"object": "error", "message": "overloaded", "code": 50001},
    {"error": {"message": "overloaded"}, "choices": [CHOICE]},
])
def test_an_error_under_a_200_fails_the_attempt(adapter, make_call, body):
    with pytest.raises(AttemptFailed, match="overloaded") as failed:
        adapter.decode(make_call(), dumps(body))
    assert failed.value.cause == "stream_error"


def test_an_error_without_words_still_says_something(adapter, make_call):
    with pytest.raises(AttemptFailed, match="without a message"):
        adapter.decode(make_call(), b'{"error": [1]}')


@pytest.mark.parametrize(("operation", "usage", "expected"), [
    ("chat", None, None),
    ("chat", [], None),
    ("chat", {}, None),
    ("chat", {"prompt_tokens": 5}, None),
    ("chat", {"completion_tokens": 5}, None),
    ("chat", {"prompt_tokens": -1, "completion_tokens": 1}, None),
    ("chat", {"prompt_tokens": 1.0, "completion_tokens": 1}, None),
    ("chat", {"prompt_tokens": "1", "completion_tokens": 1}, None),
    ("chat", {"prompt_tokens": True, "completion_tokens": 1}, None),
    ("chat", {"prompt_tokens": 1, "completion_tokens": 10**10}, None),
    ("chat", {"prompt_tokens": 1, "completion_tokens": None}, None),
    ("chat", {"prompt_tokens": 0, "completion_tokens": 0}, Usage()),
    ("chat", {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8}, Usage(5, 3)),
    ("chat", {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": None}, Usage(5, 3)),
    ("chat", {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": -1}, Usage(5, 3)),
    ("chat", {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 10**10}, Usage(5, 3)),
    ("completions", {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 2}, Usage(5, 3)),
    ("embeddings", {"prompt_tokens": 7, "total_tokens": 9}, Usage(input_tokens=7)),
    ("embeddings", {"prompt_tokens": 7, "total_tokens": 7}, Usage(input_tokens=7)),
    ("embeddings", {"prompt_tokens": 7, "completion_tokens": None}, Usage(input_tokens=7)),
    ("embeddings", {"total_tokens": 7}, None),
])
def test_usage_that_cannot_be_trusted_is_unknown_and_never_zero(adapter, make_call, operation, usage, expected):
    body = {"choices": [CHOICE], "data": [{}], "usage": usage}
    assert adapter.decode(make_call(operation), dumps(body)).usage == expected


def test_reasoning_that_a_provider_counts_beside_the_completion_is_output(adapter, make_call):
    """Else a thought of a hundred tokens would cost nothing."""
    usage = {"prompt_tokens": 32, "completion_tokens": 9, "total_tokens": 135, "completion_tokens_details": {"reasoning_tokens": 94}}
    assert adapter.decode(make_call(), body_of(usage=usage)).usage == Usage(32, 103, reasoning_tokens=94)


@pytest.mark.parametrize("details", [
    None, [], "x", {}, {"cached_tokens": None, "audio_tokens": None, "reasoning_tokens": None},
    {"cached_tokens": -1, "audio_tokens": -1, "reasoning_tokens": -1},
    {"cached_tokens": 11, "audio_tokens": 11, "reasoning_tokens": 11},
    {"cached_tokens": "5", "audio_tokens": 5.0, "reasoning_tokens": True},
])
def test_a_part_larger_than_its_whole_or_of_no_number_counts_as_none(adapter, make_call, details):
    parts = {"prompt_tokens_details": details, "completion_tokens_details": details}
    body = body_of(usage={"prompt_tokens": 10, "completion_tokens": 10, **parts})
    assert adapter.decode(make_call(), body).usage == Usage(input_tokens=10, output_tokens=10)


def test_cached_and_audio_tokens_together_never_exceed_the_prompt(adapter, make_call):
    """The discount is what is given up: an overlap would otherwise make the rest negative, and the price with it."""
    details = {"cached_tokens": 6, "audio_tokens": 6}
    body = body_of(usage={"prompt_tokens": 10, "completion_tokens": 1, "prompt_tokens_details": details})
    assert adapter.decode(make_call(), body).usage == Usage(input_tokens=10, output_tokens=1, input_audio_tokens=6)


@pytest.mark.parametrize(("status", "retryable"), [
    (408, True), (409, True), (425, True), (429, True), (500, True), (501, False), (502, True), (503, True), (529, True),
    (301, False), (401, False), (402, False), (403, False), (404, False), (405, False), (407, False),
])
def test_what_is_not_about_the_request_fails_the_attempt(adapter, status, retryable):
    """A provider's 401 is about our key: the client's own key is fine and must not look wrong."""
    error = adapter.decode_error(status, NO_HEADERS, b'{"error": {"message": "no luck", "code": "x"}}')
    assert isinstance(error, AttemptFailed)
    assert (error.cause, error.status, error.retryable) == (f"status:{status}", status, retryable)
    assert (error.message, error.retry_after_s) == ("no luck", None)


@pytest.mark.parametrize("status", [400, 413, 415, 422, 451, 499])
def test_what_is_about_the_request_is_passed_on_in_the_providers_words(adapter, status):
    body = {"error": {"message": "bad schema", "type": "their_type", "param": "tools[0]", "code": "bad"}}
    error = adapter.decode_error(status, NO_HEADERS, dumps(body))
    assert isinstance(error, UpstreamRejected)
    assert (error.message, error.status) == ("bad schema", status)
    assert (error.upstream_type, error.upstream_param, error.upstream_code) == ("their_type", "tools[0]", "bad")


def test_a_quota_that_is_used_up_is_not_tried_again_on_the_same_target(adapter):
    assert not adapter.decode_error(429, NO_HEADERS, b'{"error": {"code": "insufficient_quota"}}').retryable


def test_a_provider_that_says_not_to_retry_is_obeyed(adapter):
    assert not adapter.decode_error(503, {"x-should-retry": "false"}, b"").retryable
    assert adapter.decode_error(503, {"x-should-retry": "true"}, b"").retryable
    assert not adapter.decode_error(401, {"x-should-retry": "true"}, b"").retryable


@pytest.mark.parametrize(("headers", "seconds"), [
    ({}, None),
    ({"retry-after": "7"}, 7.0),
    ({"retry-after": " 0.5 "}, 0.5),
    ({"retry-after-ms": "250"}, 0.25),
    ({"retry-after-ms": "250", "retry-after": "7"}, 0.25),
    ({"retry-after-ms": "soon", "retry-after": "7"}, 7.0),
    ({"retry-after": "Wed, 21 Oct 2026 07:28:00 GMT"}, None),
    ({"retry-after": "-1"}, None),
    ({"retry-after": "inf"}, None),
    ({"retry-after": "1_0"}, None),
    ({"retry-after": "\u0661"}, None),
    ({"retry-after": "9" * 400}, None),
])
def test_the_wait_a_provider_asks_for_is_read_in_seconds(adapter, headers, seconds):
    assert adapter.decode_error(429, headers, b"").retry_after_s == seconds


@pytest.mark.parametrize(("body", "message"), [
    (b'{"error": "model not found"}', "model not found"),
    (b'{"error": {"message": "m", "code": 400}}', "m"),
    (b'[{"error": {"message": "in a list"}}]', "in a list"),
    (b'{"message": "flat", "type": "BadRequestError"}', "flat"),
    (b'{"detail": "framework"}', "framework"),
    (b'{"detail": [{"loc": ["body"], "msg": "field required"}]}', '[{"loc":["body"],"msg":"field required"}]'),
    (b'{"object": "error", "message": "old"}', "old"),
    (b"plain words\n", "plain words"),
])
def test_the_providers_words_are_found_in_every_shape_servers_use(adapter, body, message):
    assert adapter.decode_error(400, NO_HEADERS, body).message == message
    assert adapter.decode_error(500, NO_HEADERS, body).message == message


@pytest.mark.parametrize("body", [
    b"", b"  ", b"<html><body>Too Large</body></html>", b"[]", b"{}", b"null", b"17", b'{"error": null}',
    b'{"detail": 3}', b'{"error": "' + b"x" * 5_000_000 + b'"}',
])
def test_an_error_without_readable_words_is_told_by_its_status(adapter, body):
    error = adapter.decode_error(413, NO_HEADERS, body)
    assert error.message == "The provider answered 413 without a reason that can be read."


def test_a_providers_words_are_handed_on_whole_so_that_a_secret_in_them_is_recognised(adapter):
    """Cut first and searched afterwards, a key across the cut would leave all but its last character."""
    key = "sk-" + "k" * 34
    for words in ("x" * 1990 + key, "x" * 50_000 + key):
        body = dumps({"error": {"message": words, "type": "t" * 190 + key, "param": ["p"], "code": 400, "more": key}})
        error = adapter.decode_error(400, {"set-cookie": "secret"}, body)
        assert (error.message, error.upstream_type, error.upstream_param, error.upstream_code) == (words, "t" * 190 + key, None, "400")
        assert adapter.decode_error(503, NO_HEADERS, words.encode()).message == words
        error.scrub(Scrubber([Secret(key)]).text)
        assert not any("sk-" in text for text in (error.message, error.upstream_type))
        assert (len(error.message), len(error.upstream_type)) == (min(2000, len(words) - 37 + 8), 198)


def test_nothing_of_a_providers_error_but_its_four_fields_reaches_the_client(adapter, dialect):
    body = dumps({"error": {"message": "m", "type": "t", "param": "p", "code": 7, "account": "acc-1", "debug": {"host": "h"}}})
    told = loads(dialect.error(adapter.decode_error(400, NO_HEADERS, body), "call_1"))
    assert told == {"error": {"message": "m", "type": "t", "param": "p", "code": "7", "call_id": "call_1"}}


def test_the_log_probabilities_of_a_long_answer_are_taken(adapter, make_call):
    """More members than a request may have; twenty for each of 2,000 tokens are 200,000."""
    tops = [{"token": "a", "logprob": -1, "bytes": [97]}] * 20
    content = [{"token": "a", "logprob": -1, "bytes": [97], "top_logprobs": tops}] * 2000
    assert adapter.decode(make_call(), body_of(choices=[{**CHOICE, "logprobs": {"content": content}}])).finish_reasons == ("stop",)
    with pytest.raises(AttemptFailed, match="more than 2200000 members"):
        adapter.decode(make_call(), body_of(x=[{}] * 2_200_000))


def bodies(*names: str) -> st.SearchStrategy[bytes]:
    """JSON of any shape out of these names."""
    return st.recursive(
        st.none() | st.booleans() | st.integers(-9, 9) | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(names), inner),
        max_leaves=8,
    ).map(dumps)


ERROR_BODIES = bodies("error", "message", "type", "code", "param", "detail", "object")
ANSWERS = bodies("error", "choices", "message", "usage", "object", "data", "finish_reason", "prompt_tokens")


@given(status=st.integers(300, 599), body=st.binary() | ERROR_BODIES)
def test_any_error_body_means_something(adapter, status, body):
    error = adapter.decode_error(status, NO_HEADERS, body)
    assert error.status == status
    assert error.message


@given(body=ANSWERS, operation=st.sampled_from(["chat", "completions", "embeddings"]))
def test_any_answer_is_read_or_fails_the_attempt(adapter, make_call, body, operation):
    try:
        reply = adapter.decode(make_call(operation), body)
    except AttemptFailed:
        return
    assert reply.body == loads(body)


@pytest.fixture
def raised(dialect, official):
    """The exception that the official client raises for an error."""
    def raise_(error: errors.CallError) -> Any:
        client = official(error.status, JSON, dialect.error(error, "call_1"))
        with pytest.raises(openai.APIStatusError) as caught:
            client.chat.completions.create(model="m", messages=[{"role": "user", "content": "hi"}])
        return caught.value

    return raise_


BAD = (openai.BadRequestError, "invalid_request_error", "invalid_request")
FAILED = (openai.InternalServerError, "server_error")


@pytest.mark.parametrize(("error", "expected"), [
    (errors.InvalidRequest("m", pointer="/messages/0/role"), (*BAD, "messages[0].role")),
    (errors.InvalidRequest("m", pointer=""), (*BAD, None)),
    (errors.InvalidRequest("m", pointer="/a~1b/c~0d"), (*BAD, "a/b.c~d")),
    (errors.Unauthenticated("m"), (openai.AuthenticationError, "authentication_error", "unauthenticated", None)),
    (errors.UnknownRoute("m", pointer="/model"),
     (openai.NotFoundError, "invalid_request_error", "unknown_route", "model")),
    (errors.MethodNotAllowed("m"), (openai.APIStatusError, "invalid_request_error", "method_not_allowed", None)),
    (errors.BodyTooLarge("m"), (openai.APIStatusError, "invalid_request_error", "body_too_large", None)),
    (errors.InternalError("m"), (*FAILED, "internal_error", None)),
    (errors.UpstreamFailed("m"), (*FAILED, "upstream_failed", None)),
    (errors.UpstreamTimeout("m"), (*FAILED, "upstream_timeout", None)),
    (errors.Overloaded("m"), (*FAILED, "overloaded", None)),
    (UpstreamRejected("m", status=422),
     (openai.UnprocessableEntityError, "invalid_request_error", "upstream_rejected", None)),
    (UpstreamRejected("m", status=429), (openai.RateLimitError, "rate_limit_error", "upstream_rejected", None)),
    (UpstreamRejected("m", status=400, upstream_type="t", upstream_code="c", upstream_param="p"),
     (openai.BadRequestError, "t", "c", "p")),
])
def test_the_official_client_reads_every_error(raised, error, expected):
    found = raised(error)
    assert (type(found), found.type, found.code, found.param) == expected
    assert found.body["message"] == "m"
    assert found.body["call_id"] == "call_1"
    assert found.body.get("pointer") == error.pointer


FIGURES = {"limit_usd": "2", "used_usd": "1.5", "reserved_usd": "0.4", "needed_usd": "0.123", "resets_at": None}


@pytest.mark.parametrize(("error", "expected"), [
    (errors.BudgetExceeded("m", account="b/team", figures=FIGURES), ("insufficient_quota", "budget_exceeded")),
    (errors.BudgetBusy("m", account="b/team", figures=FIGURES, retry_after_s=1), ("rate_limit_error", "budget_busy"))])
def test_a_budget_names_its_account_and_its_figures(raised, error, expected):
    """`insufficient_quota` is this API's word for money that is used up; what only waits for other calls is a rate."""
    found = raised(error)
    assert (type(found), found.type, found.code) == (openai.RateLimitError, *expected)
    assert {name: found.body[name] for name in ("account", *FIGURES)} == {"account": "b/team", **FIGURES}


def test_a_rate_that_is_used_up_names_its_rule(raised):
    found = raised(errors.RateLimited("m", rule="slow-down", retry_after_s=7))
    assert (type(found), found.type, found.code, found.body["rule"]) == (openai.RateLimitError, "rate_limit_error", "rate_limited", "slow-down")


def test_a_price_that_nobody_knows_is_a_refusal(raised):
    found = raised(errors.PriceUnknown("m"))
    assert (type(found), found.type, found.code) == (openai.PermissionDeniedError, "permission_error", "price_unknown")


def test_a_denial_names_its_rule_and_its_remedy_in_words_and_fields(raised):
    found = raised(errors.Forbidden("No images.", rule="no-images", remedy="Ask the data team."))
    assert (type(found), found.type, found.code) == (openai.PermissionDeniedError, "permission_error", "forbidden")
    assert found.body["message"] == "Denied by rule no-images: No images. Ask the data team."
    assert (found.body["rule"], found.body["remedy"]) == ("no-images", "Ask the data team.")


def test_a_rate_names_its_rule_in_a_field(raised):
    found = raised(errors.RateLimited("Later.", rule="slowly", retry_after_s=3))
    assert (type(found), found.type, found.code) == (openai.RateLimitError, "rate_limit_error", "rate_limited")
    assert (found.body["message"], found.body["rule"]) == ("Later.", "slowly")


def test_what_waits_for_people_names_its_approval_and_its_rule(raised):
    found = raised(errors.ApprovalPending("Later.", ticket="apr_1", rule="payments", retry_after_s=5))
    assert (type(found), found.code, found.body["message"]) == (openai.ConflictError, "approval_pending", "Later.")
    assert (found.body["ticket"], found.body["rule"]) == ("apr_1", "payments")


def test_a_denial_without_a_remedy_has_none(dialect):
    body = loads(dialect.error(errors.Forbidden("No.", rule="r"), "call_1"))["error"]
    assert body["message"] == "Denied by rule r: No."
    assert "remedy" not in body


def test_an_error_can_be_written_whatever_is_in_its_texts(dialect):
    """A header's bytes may reach a message undecoded; the answer to that must not be a second error."""
    body = json.loads(dialect.error(errors.InvalidRequest("bad \udcff header \0", pointer="/\ud800"), "call_1"))
    assert body["error"]["message"] == "bad ? header \0"
    assert body["error"]["param"] == "?"


def test_the_list_of_models_is_what_the_official_client_reads(dialect, official):
    body = dialect.models(["fast", "vendor/smart"])
    assert loads(body) == {"object": "list", "data": [
        {"id": "fast", "object": "model", "created": 0, "owned_by": "lockgate"},
        {"id": "vendor/smart", "object": "model", "created": 0, "owned_by": "lockgate"},
    ]}
    assert [model.id for model in official(200, JSON, body).models.list()] == ["fast", "vendor/smart"]
    assert loads(dialect.models([])) == {"object": "list", "data": []}
