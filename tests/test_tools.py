"""A tool's declaration says where every argument goes. Whatever an argument holds, it goes there and nowhere else, or is refused."""

from dataclasses import replace
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.call import Call, Principal, Reply, Target, Usage
from gateway.errors import AttemptFailed, Forbidden, InternalError, InvalidRequest, MethodNotAllowed, UpstreamRejected
from gateway.secret import Secret
from gateway.store.scrub import Scrubber
from gateway.tool_config import ToolConfig
from gateway.tools import Tool, ToolAdapter, ToolDialect, compile_tool, head_of
from gateway.wire.protocol import Adapter, Dialect

TEXT = {"type": "string"}


def config(**changed: Any) -> ToolConfig:
    return ToolConfig(**{
        "name": "bank.pay", "method": "POST", "url": "https://bank.example/v1/accounts/{account}/payments/{number}", "query": ("currency", "tags"),
        "effect": "idempotent", "arguments": {
            "required": ["account", "number"],
            "properties": {"account": TEXT, "number": {"type": "integer"}, "currency": TEXT, "tags": {"type": "array", "items": TEXT},
                           "amount": {"type": "number"}, "note": {}}},
        **changed})


def tool(**changed: Any) -> Tool:
    made, problems = compile_tool(config(**changed))
    assert problems == []
    assert made is not None
    return made


def getter(**changed: Any) -> Tool:
    return tool(**{"method": "GET", "url": "https://h/find/{place}", "query": (), "effect": "read", "arguments": {
        "required": ["place"], "properties": {
            "place": TEXT, "limit": {"type": "integer"}, "near": {"type": "number"}, "open": {"type": "boolean"}, "kinds": {"type": "array", "items": TEXT},
            "ids": {"type": "array", "items": {"type": "integer"}}, "either": {"type": ["integer", "string"]}}}, **changed})


def call(arguments: Any) -> Call:
    return Call("call_1", Principal("key"), "tools", "tool", "bank.pay", arguments, stream=False, size=1, received_ns=0)


def test_every_argument_goes_into_its_place():
    target, body = tool().target({"account": "DE 1", "number": 7, "currency": "EUR", "tags": ["a", "b&c=d"], "amount": 1.5, "note": {"deep": [1]}})
    assert target == "/v1/accounts/DE%201/payments/7?currency=EUR&tags=a&tags=b%26c%3Dd"
    assert orjson.loads(body) == {"amount": 1.5, "note": {"deep": [1]}}


def test_a_method_without_a_body_has_everything_in_the_query():
    assert getter().target({"place": "x", "limit": 3, "near": -0.5, "open": True, "kinds": [], "ids": [1, 2]}) == (
        "/find/x?limit=3&near=-0.5&open=true&ids=1&ids=2", b"")
    assert getter().target({"place": "x"}) == ("/find/x", b"")
    assert tool().target({"account": "a", "number": 1})[1] == b"{}"


# What would be another path than the declared one, to a server that decodes once, twice, or folds look-alikes.
OTHER_PATHS = (
    "", ".", "..", " ", " .. ", "..;", "..;x", ";x", "/", "a/b", "../../admin", "..\\..", "\\", "a\\b", "%2e%2e", "%2E%2e%2fadmin", "%2f", "a%2Fb", "%5c", "%252e%252e",
    "%252f", "%25252f", "%2525252525252e", "\uff0f", "a\uff0fb", "\uff0e\uff0e", "\u2024\u2024", "\u2025", "\ufe52.", "%ef%bc%8f", "\uff3c", "%00", "a\x00", "\r\n", "a\rb", "a\nb", "x\tb",
    "a%0d%0aSet-Cookie:x", "\x7f", "\x85", "\u2028", "\u2029", "a\udcff", "\ud800",
)


@pytest.mark.parametrize("value", OTHER_PATHS, ids=ascii)
def test_an_argument_that_could_be_another_path_is_refused(value):
    with pytest.raises(InvalidRequest) as caught:
        tool().target({"account": value, "number": 1})
    assert caught.value.pointer == "/account"
    assert value.strip() not in caught.value.message or len(value.strip()) < 3


# What looks as if, and is a text like any other.
PLAIN_TEXTS = ("a", "a b", "100%", "%", "%zz", "...", "a..b", "..a", "{number}", "{account}", "${x}", "?a=b", "#x", "a?b#c", "&=", "a;b", "@", ":", "é", "日本", "🏦", "a+b", "~", "*",
               "'", '"', "<script>", "|", "^", "`", "x" * 1000)


@pytest.mark.parametrize("value", PLAIN_TEXTS, ids=ascii)
def test_any_other_text_arrives_as_it_was_given(value):
    target, _ = tool().target({"account": value, "number": 1, "currency": value})
    parts = urlsplit("https://h" + target)
    assert [unquote(part) for part in parts.path.split("/")] == ["", "v1", "accounts", value, "payments", "1"]
    assert parse_qsl(parts.query, keep_blank_values=True, strict_parsing=True) == [("currency", value)]
    assert parts.fragment == ""


@given(account=st.text(max_size=40), currency=st.text(max_size=40), tags=st.lists(st.text(max_size=10), max_size=4), number=st.integers(-(2**63), 2**64 - 1))
def test_the_structure_is_the_declared_one_whatever_the_arguments_are(account, currency, tags, number):
    """Either refused, or every decoded part of the request equals its argument."""
    try:
        target, body = tool().target({"account": account, "number": number, "currency": currency, "tags": tags, "note": account})
    except InvalidRequest as error:
        assert error.pointer in ("/account", "/currency", "/tags")  # noqa: PT017 - most are not refused
        return
    assert target.isascii()
    assert target.isprintable()
    path, _, query = target.partition("?")
    assert [unquote(part) for part in path.split("/")] == ["", "v1", "accounts", account, "payments", str(number)]
    assert parse_qsl(query, keep_blank_values=True) == [("currency", currency), *(("tags", tag) for tag in tags)]
    assert orjson.loads(body) == {"note": account}


@pytest.mark.parametrize(("number", "written"), [
    (0, "0"), (-1, "-1"), (2**64 - 1, "18446744073709551615"), (-(2**63), "-9223372036854775808"), (5.0, "5.0"),
])
def test_numbers_are_written_as_in_json(number, written):
    assert tool().target({"account": "a", "number": number})[0].endswith(f"/payments/{written}")


@pytest.mark.parametrize("value", [None, {}, {"a": 1}, [[1]], [None], [{"a": 1}]])
def test_what_is_neither_a_scalar_nor_a_list_of_them_cannot_stand_in_a_query(value):
    with pytest.raises(InvalidRequest) as caught:
        getter(arguments={"additionalProperties": True, "required": ["place"], "properties": {"place": TEXT}}).target({"place": "x", "extra": value})
    assert caught.value.pointer == "/extra"


def test_what_makes_a_url_too_long_or_a_query_too_wide_is_refused():
    with pytest.raises(InvalidRequest, match="8192 are the most"):
        tool().target({"account": "é" * 2000, "number": 1})
    with pytest.raises(InvalidRequest, match="1000 values at most"):
        getter().target({"place": "x", "ids": [1] * 1001})
    with pytest.raises(InvalidRequest) as caught:
        getter().target({"place": "x", "\ud800": 1})
    assert caught.value.pointer == "/\ud800"


# Arguments and their schema.


@pytest.mark.parametrize(("arguments", "pointer"), [
    ({}, ""), ({"account": "a"}, ""), ({"account": 3, "number": 1}, "/account"), ({"account": "a", "number": 1, "other": 1}, "/other"),
    ({"account": "a", "number": 1.5}, "/number"), ({"account": "a", "number": True}, "/number"), ({"account": "a", "number": 1, "tags": "x"}, "/tags"),
    ({"account": "a", "number": 1, "Account": "b"}, "/Account"),
])
def test_arguments_that_do_not_fit_the_schema_are_refused_with_their_place(arguments, pointer):
    with pytest.raises(InvalidRequest, match=r"do not fit the tool bank\.pay") as caught:
        ToolDialect({"bank.pay": tool()}, "bank.pay").read("tool", arguments)
    assert caught.value.pointer == pointer


def test_arguments_are_checked_again_when_they_are_sent_because_rules_may_have_changed_them():
    with pytest.raises(InvalidRequest):
        ToolAdapter(tool()).encode(call({"account": "a", "number": "[redacted]"}), Target("tool:bank.pay", "POST"), None)


@pytest.mark.parametrize("declared", [{"additionalProperties": True}, {"additionalProperties": TEXT}, {"unevaluatedProperties": True}])
def test_other_arguments_are_taken_only_where_the_schema_says_so(declared):
    tool(arguments={**config().arguments, **declared}).check({"account": "a", "number": 1, "other": "x"})
    with pytest.raises(InvalidRequest):
        tool().check({"account": "a", "number": 1, "other": "x"})


@pytest.mark.parametrize(("query", "arguments"), [
    ([("place", "Paris")], {"place": "Paris"}),
    ([("place", "1"), ("limit", "3"), ("near", "-1.5e3"), ("open", "true")], {"place": "1", "limit": 3, "near": -1500.0, "open": True}),
    ([("kinds", "a")], {"kinds": ["a"]}), ([("kinds", "a"), ("kinds", "b")], {"kinds": ["a", "b"]}), ([("ids", "1"), ("ids", "x")], {"ids": [1, "x"]}),
    ([("place", "a"), ("place", "b")], {"place": ["a", "b"]}),
    ([("either", "7")], {"either": 7}), ([("either", "seven")], {"either": "seven"}),
    ([("limit", "18446744073709551615")], {"limit": 2**64 - 1}), ([("unknown", "1")], {"unknown": "1"}),
    *(([("limit", text)], {"limit": text}) for text in ("", "1.0", "+1", "01", " 1", "1e3", "0x1", "\u0661", "1_0", "9" * 20, "18446744073709551616", "true")),
    *(([("near", text)], {"near": text}) for text in ("", "nan", "inf", "-Infinity", "1e999", ".5", "5.", "1e", "9" * 400, "0x1p3")),
    *(([("open", text)], {"open": text}) for text in ("", "1", "True", "TRUE", "yes")),
])
def test_a_query_is_read_by_the_types_of_the_schema_and_never_by_guessing(query, arguments):
    read = getter().read_query(query)
    assert read == arguments
    assert {name: type(value) for name, value in read.items()} == {name: type(value) for name, value in arguments.items()}


def test_a_key_that_is_given_twice_is_refused_unless_it_is_a_list():
    with pytest.raises(InvalidRequest) as caught:
        getter().check(getter().read_query([("place", "a"), ("place", "b")]))
    assert caught.value.pointer == "/place"


# Declarations.


@pytest.mark.parametrize(("changed", "path", "message"), [
    ({"arguments": {"type": "array"}}, ("arguments", "type"), "arguments are an object"),
    ({"arguments": {"properties": {"a": {"type": "nope"}}}}, ("arguments",), "/properties/a/type: is not what may stand there"),
    ({"arguments": {"$ref": "https://h/schema"}}, ("arguments",), "nothing is fetched"),
    ({"url": "https://h/{acount}/{number}"}, ("url",), "{acount} is none of the arguments"),
    ({"url": "https://h/{amount}"}, ("arguments",), "`amount` is part of the path"),
    ({"url": "https://h/{note}"}, ("arguments", "properties", "note"), "is part of the path"),
    ({"url": "https://h/{tags}"}, ("arguments", "properties", "tags"), "is part of the path"),
    ({"query": ("nothing",)}, ("query", 0), "'nothing' is none of the arguments"),
    ({"query": ("account",)}, ("query", 0), "'account' has its place already"),
    ({"query": ("tags", "tags")}, ("query", 1), "'tags' has its place already"),
    ({"query": ("note",)}, ("arguments", "properties", "note"), "is part of the query"),
    ({"method": "DELETE", "query": ()}, ("arguments", "properties", "note"), "is part of the query"),
    ({"effect": "at_most_once", "retry": {"attempts": 2}}, ("retry", "attempts"), "is tried once"),
])
def test_a_declaration_that_makes_no_sense_is_refused_where_it_stands(changed, path, message):
    made, problems = compile_tool(config(**changed))
    assert made is None
    assert (path, True) in [(problem.path, message in problem.message) for problem in problems]


@pytest.mark.parametrize("items", [{"type": "array", "items": TEXT}, {"type": "object"}, {}, True])
def test_a_list_of_lists_or_of_objects_has_no_form_in_a_query(items):
    assert compile_tool(config(arguments={
        "required": ["account", "number"], "properties": {**config().arguments["properties"], "tags": {"type": "array", "items": items}}}))[0] is None


@pytest.mark.parametrize("effect", ["read", "idempotent", "at_most_once"])
def test_the_effect_is_what_rules_may_know(effect):
    assert tool(effect=effect).annotations == {"effect": effect, "irreversible": False}


# What is sent.


@pytest.mark.parametrize(("effect", "key"), [("read", None), ("idempotent", "call_1"), ("at_most_once", "call_1")])
def test_a_call_that_changes_something_carries_its_id_as_idempotency_key(effect, key):
    made = ToolAdapter(tool(effect=effect)).encode(call({"account": "a", "number": 1, "amount": 2}), Target("tool:bank.pay", "POST"), None)
    assert (made.method, made.path, made.body) == ("POST", "/v1/accounts/a/payments/1", b'{"amount":2}')
    assert made.headers.get("idempotency-key") == key
    assert made.headers["content-type"] == "application/json"


def test_a_request_without_a_body_says_nothing_of_one():
    made = ToolAdapter(getter()).encode(call({"place": "x"}), Target("tool:find", "GET"), None)
    assert (made.headers, made.body) == ({}, b"")


# What comes back.


@pytest.mark.parametrize(("content_type", "body", "expected"), [
    ("application/json", b'{"a": [1, "x"]}', {"content_type": "application/json", "json": {"a": [1, "x"]}}),
    ('Application/JSON ; charset="UTF-8"', b"7", {"content_type": "application/json", "json": 7}),
    ("application/vnd.bank+json", b"null", {"content_type": "application/vnd.bank+json", "json": None}),
    ("text/plain", "é".encode(), {"content_type": "text/plain; charset=utf-8", "text": "é"}),
    ("text/html;charset=us-ascii;x=y", b"<p>", {"content_type": "text/html; charset=utf-8", "text": "<p>"}),
    ("", b"", {"content_type": "text/plain; charset=utf-8", "text": ""}), ("image/png", b"", {"content_type": "text/plain; charset=utf-8", "text": ""}),
])
def test_json_and_text_are_taken(content_type, body, expected):
    reply = ToolAdapter(tool()).decode(201, {"content-type": content_type}, body)
    assert reply == Reply({"status": 201, **expected}, Usage())


@pytest.mark.parametrize(("content_type", "body"), [
    (None, b"x"), ("", b"x"), ("nonsense", b"x"), ("image/png", b"x"), ("application/octet-stream", b"x"), ("application/xml", b"<x/>"), ("text/plain", b"\xff"),
    ("text/plain; charset=latin-1", b"x"), ("text/plain; charset=utf-16", b"x"), ("application/json", b"{"), ("application/json", b"NaN"),
    ("application/json", b"\xef\xbb\xbf{}"), ("application/json", b"1" * 30), ("application/json", b"[" * 300 + b"]" * 300), ("application/json", b"\xff"),
    ("text/plain\r\nx: y", b"x"), ("te xt/plain", b"x"), ("text/" + "x" * 200, b"x"),
])
@pytest.mark.parametrize("effect", ["idempotent", "at_most_once"])
def test_anything_else_is_a_failure_of_the_upstream(content_type, body, effect):
    headers = {} if content_type is None else {"content-type": content_type}
    with pytest.raises(AttemptFailed) as caught:
        ToolAdapter(tool(effect=effect)).decode(200, headers, body)
    assert (caught.value.cause, caught.value.retryable) == ("malformed", effect == "idempotent")


@pytest.mark.parametrize(("body", "words"), [
    (b'{"title": "Not found", "detail": "no account DE1"}', "no account DE1"), (b'{"title": "Not found"}', "Not found"),
    (b'{"error": {"message": "m"}}', "m"), (b'{"error": "e", "message": "m"}', "e"), (b'{"message": "m", "error": {"message": "n"}}', "m"),
    (b'{"error_description": "d", "error": {}}', "d"), (b"plain words\n", "plain words"), (b"\xff\xfe", "\ufffd\ufffd"),
    (b"", "without a reason"), (b"<html>no</html>", "without a reason"), (b"[]", "without a reason"), (b'{"detail": 3, "message": ""}', "without a reason"), (b"3", "without a reason"),
])
def test_what_an_upstream_says_of_a_wrong_call_is_passed_on(body, words):
    error = ToolAdapter(tool()).decode_error(404, {}, body)
    assert isinstance(error, UpstreamRejected)
    assert error.status == 404
    assert words in error.message


def test_an_upstreams_words_are_bounded():
    error = ToolAdapter(tool()).decode_error(400, {}, b"x" * 1990 + b"sk-0123456789abcdef" + b"x" * 60_000)
    error.scrub(Scrubber([Secret("sk-0123456789abcdef")]).text)
    assert len(error.message) == 2000
    assert error.message.endswith("x[secret]xx")


@pytest.mark.parametrize(("status", "effect", "retryable"), [
    (500, "read", True), (503, "idempotent", True), (599, "read", True), (501, "read", False), (500, "at_most_once", False), (503, "at_most_once", False),
    (302, "read", False), (307, "at_most_once", False), (401, "read", False), (407, "idempotent", False), (429, "read", True), (408, "idempotent", True), (425, "read", True),
])
def test_a_failure_of_the_upstream_may_be_tried_again_where_that_does_no_harm(status, effect, retryable):
    error = ToolAdapter(tool(effect=effect)).decode_error(status, {"retry-after": "3"}, b"")
    assert isinstance(error, AttemptFailed)
    assert (error.cause, error.retryable, error.status, error.retry_after_s) == (f"status:{status}", retryable, status, 3.0)
    assert ("not followed" in error.message) is (status < 400)


@pytest.mark.parametrize("status", [408, 425, 429, 400, 403, 404, 409, 422, 499])
def test_what_must_not_be_sent_twice_is_told_to_the_caller(status):
    assert isinstance(ToolAdapter(tool(effect="at_most_once")).decode_error(status, {"retry-after": "soon"}, b""), UpstreamRejected)


def test_a_wait_that_cannot_be_read_is_none():
    error = ToolAdapter(tool()).decode_error(503, {"retry-after": "Wed, 21 Oct 2026 07:28:00 GMT"}, b"")
    assert isinstance(error, AttemptFailed)
    assert error.retry_after_s is None


# What clients of /tools read.


def test_a_client_gets_json_again_and_text_as_it_was():
    dialect = ToolDialect({}, "x")
    assert dialect.answer(call({}), Reply({"status": 200, "content_type": "application/json", "json": {"a": 1}}, Usage())) == b'{"a":1}'
    assert dialect.answer(call({}), Reply({"status": 200, "content_type": "text/plain", "text": "é"}, Usage())) == "é".encode()


def test_an_error_is_problem_json():
    told = orjson.loads(ToolDialect({}, "x").error(Forbidden("No.", rule="r", remedy="Ask."), "call_1"))
    assert told == {"type": "about:blank", "title": "forbidden", "status": 403, "detail": "No.", "code": "forbidden", "rule": "r", "remedy": "Ask.", "call_id": "call_1"}


def test_the_list_of_tools_says_what_a_model_needs_to_know():
    listed = orjson.loads(ToolDialect({"bank.pay": tool(description="Pays.")}).models(["gpt", "bank.pay"]))
    assert listed == {"tools": [{"name": "bank.pay", "description": "Pays.", "effect": "idempotent", "parameters": dict(tool().parameters)}]}


def test_a_tool_is_asked_for_as_a_route():
    ask = ToolDialect({"find": getter()}, "find", safe=True).read("tool", {"place": "x"})
    assert (ask.route, ask.stream) == ("find", False)


@pytest.mark.parametrize("effect", ["idempotent", "at_most_once"])
def test_what_a_link_could_call_must_change_nothing(effect):
    with pytest.raises(MethodNotAllowed, match="send POST"):
        ToolDialect({"find": getter(effect=effect)}, "find", safe=True).read("tool", {"place": "x"})


def test_the_head_of_an_answer_is_the_tools_own_and_a_models_the_usual_one():
    reply = Reply({"status": 201, "content_type": "text/html; charset=utf-8", "text": ""}, Usage())
    assert head_of(call({}), reply) == (201, "text/html; charset=utf-8")
    assert head_of(replace(call({}), operation="chat"), reply) == (200, None)


def test_nothing_is_streamed():
    with pytest.raises(InternalError):
        ToolDialect({}, "x").encoder(call({}))


def test_the_parts_are_what_the_engine_asks_for():
    """A dialect in full; an adapter but for what only models have."""
    dialect: Dialect = ToolDialect({}, "x")
    assert dialect.endpoints == ()
    wanted = {name for name in vars(Adapter) if not name.startswith("_")} - {"decoder", "health"}
    assert wanted <= set(dir(ToolAdapter(tool())))
