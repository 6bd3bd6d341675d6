"""Requests in OpenAI's dialect: what is checked, what is refused, and that everything else reaches the provider."""

import copy

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.wire import Ask, Endpoint, InvalidRequest, Secret, Target, dumps, loads

TARGET = Target("provider", "upstream-model")
MESSAGES = [{"role": "user", "content": "hi"}]
CHAT = {"model": "m", "messages": MESSAGES}


def test_its_endpoints_are_those_of_the_api(dialect, adapter):
    assert dialect.name == adapter.name == "openai"
    assert dialect.endpoints == (
        Endpoint("POST", "/v1/chat/completions", "chat"),
        Endpoint("POST", "/v1/completions", "completions"),
        Endpoint("POST", "/v1/embeddings", "embeddings"),
        Endpoint("GET", "/v1/models", "models"),
    )
    assert dialect.stream_content_type == "text/event-stream"
    assert adapter.operations == {"chat", "completions", "embeddings"}


@pytest.mark.parametrize(("operation", "body", "ask"), [
    ("chat", CHAT, Ask("m", stream=False)),
    ("chat", {**CHAT, "stream": None, "stream_options": None}, Ask("m", stream=False)),
    ("chat", {**CHAT, "stream": False}, Ask("m", stream=False)),
    ("chat", {**CHAT, "stream": True}, Ask("m", stream=True)),
    ("chat", {**CHAT, "stream": True, "stream_options": {"include_usage": None, "x": 1}}, Ask("m", stream=True)),
    ("completions", {"model": "m", "prompt": ""}, Ask("m", stream=False)),
    ("completions", {"model": "m" * 256, "prompt": [[1, 2]], "stream": True}, Ask("m" * 256, stream=True)),
    ("embeddings", {"model": "m", "input": ["a"]}, Ask("m", stream=False)),
    ("embeddings", {"model": "m", "input": "a", "stream": False}, Ask("m", stream=False)),
])
def test_a_body_that_is_right_is_read(dialect, operation, body, ask):
    assert dialect.read(operation, body) == ask


@pytest.mark.parametrize(("body", "user"), [
    ({}, ""), ({"user": "ada"}, "ada"), ({"user": None}, ""), ({"user": ""}, ""), ({"user": "é 7"}, "é 7"), ({"user": "u" * 200}, "u" * 200),
    ({"safety_identifier": "s"}, "s"), ({"user": "ada", "safety_identifier": "s"}, "ada"), ({"user": "", "safety_identifier": "s"}, "s")])
@pytest.mark.parametrize(("operation", "plain"), [("chat", CHAT), ("completions", {"model": "m", "prompt": ""}), ("embeddings", {"model": "m", "input": ""})])
def test_who_asks_is_read_from_the_field_that_the_api_has_for_it(dialect, operation, plain, body, user):
    assert dialect.read(operation, {**plain, **body}).user == user


@pytest.mark.parametrize("name", ["user", "safety_identifier"])
@pytest.mark.parametrize("value", [5, True, ["ada"], {"id": 1}, "u" * 201, "a\nb", "a\x00", "\u202eada", "\ud800"])
def test_a_name_that_no_account_can_have_is_refused(dialect, name, value):
    """Two accounts must not look alike in a report, and none may steer a terminal."""
    with pytest.raises(InvalidRequest) as refused:
        dialect.read("chat", {**CHAT, name: value})
    assert refused.value.pointer == f"/{name}"


@pytest.mark.parametrize(("body", "hints"), [
    ({}, {}),
    ({"metadata": {"session_id": "s"}}, {"metadata": "s"}),
    ({"metadata": {"user_id": "u", "conversation_id": "c", "session_id": "s"}}, {"metadata": "s"}),
    ({"metadata": {"user_id": "u", "conversation_id": "c"}}, {"metadata": "c"}),
    ({"metadata": {"user_id": "u", "session_id": ""}}, {"metadata": "u"}),
    ({"metadata": {"user_id": "u", "session_id": ["s"], "conversation_id": 5}}, {"metadata": "u"}),
    ({"metadata": {"session_id": "s" * 1000}}, {"metadata": "s" * 1000}),
    ({"metadata": {"session_id": "s" * 1001}}, {}),
    ({"metadata": {"other": "x"}}, {}), ({"metadata": "s"}, {}), ({"metadata": None}, {}), ({"metadata": ["session_id"]}, {}),
    ({"conversation": "c"}, {"conversation": "c"}), ({"conversation": {"id": "c"}}, {"conversation": "c"}),
    ({"conversation": {}}, {}), ({"conversation": {"id": 5}}, {}), ({"conversation": ["c"]}, {}), ({"conversation": ""}, {}),
    ({"previous_response_id": "r"}, {"previous": "r"}), ({"previous_response_id": None}, {}), ({"previous_response_id": {"id": "r"}}, {}),
    ({"user": "ada"}, {"user": "ada"}), ({"safety_identifier": "s"}, {"user": "s"}),
    ({"user": "ada", "conversation": {"id": "c", "x": 1}, "previous_response_id": "r", "metadata": {"session_id": "s"}},
     {"user": "ada", "conversation": "c", "previous": "r", "metadata": "s"}),
])
@pytest.mark.parametrize(("operation", "plain"), [("chat", CHAT), ("completions", {"model": "m", "prompt": ""}), ("embeddings", {"model": "m", "input": ""})])
def test_what_a_body_says_of_where_it_belongs_is_a_hint_and_never_an_error(dialect, operation, plain, body, hints):
    """These are the provider's fields: it says what may stand in them."""
    assert dialect.read(operation, {**plain, **body}).hints == hints


@pytest.mark.parametrize("name", ["Conversation", "PREVIOUS_RESPONSE_ID", "Metadata"])
def test_a_hint_in_another_case_is_refused(dialect, name):
    """Some servers would go on from it, in a session that nobody here knows of."""
    with pytest.raises(InvalidRequest) as refused:
        dialect.read("chat", {**CHAT, name: "x"})
    assert refused.value.pointer == f"/{name}"


def test_who_asks_is_told_to_the_provider_too(adapter, make_call):
    call = make_call(user="ada")
    assert loads(adapter.encode(call, TARGET, None).body)["user"] == "ada"


@pytest.mark.parametrize(("operation", "body", "pointer"), [
    ("chat", [CHAT], ""),
    ("chat", {"messages": MESSAGES}, "/model"),
    ("chat", {**CHAT, "model": ""}, "/model"),
    ("chat", {**CHAT, "model": None}, "/model"),
    ("chat", {**CHAT, "model": ["m"]}, "/model"),
    ("chat", {**CHAT, "model": "m" * 257}, "/model"),
    ("chat", {"model": "m"}, "/messages"),
    ("chat", {"model": "m", "messages": []}, "/messages"),
    ("chat", {"model": "m", "messages": "hi"}, "/messages"),
    ("chat", {"model": "m", "messages": {"role": "user"}}, "/messages"),
    ("chat", {"model": "m", "messages": [*MESSAGES, "hi"]}, "/messages/1"),
    ("chat", {"model": "m", "messages": [*MESSAGES, {"content": "hi"}]}, "/messages/1/role"),
    ("chat", {"model": "m", "messages": [{"role": 1}]}, "/messages/0/role"),
    ("chat", {**CHAT, "stream": "yes"}, "/stream"),
    ("chat", {**CHAT, "stream": 1}, "/stream"),
    ("chat", {**CHAT, "stream_options": []}, "/stream_options"),
    ("chat", {**CHAT, "stream_options": {"include_usage": "yes"}}, "/stream_options/include_usage"),
    ("completions", {"model": "m"}, "/prompt"),
    ("completions", {"model": "m", "prompt": 3}, "/prompt"),
    ("embeddings", {"model": "m"}, "/input"),
    ("embeddings", {"model": "m", "input": "a", "stream": True}, "/stream"),
])
def test_the_first_wrong_thing_is_named_by_its_pointer(dialect, operation, body, pointer):
    with pytest.raises(InvalidRequest) as refused:
        dialect.read(operation, body)
    assert refused.value.pointer == pointer
    assert refused.value.status == 400


@pytest.mark.parametrize(("extra", "pointer"), [
    ({"Model": "other"}, "/Model"),
    ({"MODEL": "other"}, "/MODEL"),
    ({"Messages": []}, "/Messages"),
    ({"Stream": True}, "/Stream"),
    ({"\u017ftream": True}, "/\u017ftream"),
    ({"max_to\u212aens": 1}, "/max_to\u212aens"),
    ({"stream_options": {"Include_Usage": True}}, "/stream_options/Include_Usage"),
    ({"messages": [*MESSAGES, {"role": "user", "content": "hi", "Content": "evil"}]}, "/messages/1/Content"),
    ({"messages": [{"role": "user", "content": [{"text": "hi", "TEXT": "evil"}]}]}, "/messages/0/content/0/TEXT"),
    ({"tools": [{"type": "function", "function": {"name": "safe", "Name": "drop_tables"}}]}, "/tools/0/function/Name"),
    ({"tools": [{"type": "function", "Function": {"name": "drop_tables"}}]}, "/tools/0/Function"),
    ({"tool_choice": {"type": "function", "function": {"NAME": "x"}}}, "/tool_choice/function/NAME"),
])
def test_a_field_in_another_case_cannot_smuggle_a_value_past_the_rules(dialect, extra, pointer):
    """Some servers match names without regard to case, and would act on the value that no rule has seen."""
    with pytest.raises(InvalidRequest, match="case") as refused:
        dialect.read("chat", {**CHAT, **extra})
    assert refused.value.pointer == pointer


def test_a_field_in_another_case_is_refused_instead_of_the_right_one_too(dialect):
    with pytest.raises(InvalidRequest) as refused:
        dialect.read("chat", {"Model": "m", "messages": MESSAGES})
    assert refused.value.pointer == "/Model"


def test_names_that_are_the_clients_own_may_be_in_any_case(dialect):
    schema = {"type": "object", "properties": {"Model": {"type": "string"}, "NAME": {}}, "Type": 1}
    body = {
        **CHAT, "metadata": {"Model": "x"}, "X-Own": 1, "logit_bias": {"Model": 1},
        "tools": [{"type": "function", "function": {"name": "f", "parameters": schema}}],
        "response_format": {"type": "json_schema", "json_schema": {"Name": "n", "schema": schema}},
    }
    assert dialect.read("chat", body) == Ask("m", stream=False)


@pytest.mark.parametrize(("operation", "path"), [
    ("chat", "/chat/completions"), ("completions", "/completions"), ("embeddings", "/embeddings"),
])
def test_a_request_goes_to_the_operations_path_with_the_targets_model(adapter, make_call, operation, path):
    request = adapter.encode(make_call(operation), TARGET, Secret("sk-provider"))
    assert (request.method, request.path) == ("POST", path)
    assert request.headers == {
        "content-type": "application/json", "accept": "application/json", "authorization": "Bearer sk-provider",
    }
    assert loads(request.body) == {"model": "upstream-model", "messages": MESSAGES}


def test_without_a_key_no_authorization_is_sent(adapter, make_call):
    assert "authorization" not in adapter.encode(make_call(), TARGET, None).headers
    assert "authorization" not in adapter.health("/models", None).headers


def test_a_provider_is_asked_whether_it_is_well_as_who_calls_it(adapter):
    """A key that is not taken fails calls, too, and some providers answer nobody without one."""
    asked = adapter.health("/models?x=1", Secret("sk-provider"))
    assert (asked.method, asked.path, asked.body) == ("GET", "/models?x=1", b"")
    assert asked.headers == {"accept": "application/json", "authorization": "Bearer sk-provider"}


@pytest.mark.parametrize("options", [
    {}, {"stream_options": None}, {"stream_options": {"include_usage": False, "include_obfuscation": False}},
])
def test_the_usage_of_a_stream_is_always_asked_for_beside_the_clients_own_options(adapter, make_call, options):
    call = make_call(stream=True, **options)
    before = copy.deepcopy(call.body)
    request = adapter.encode(call, TARGET, None)
    sent = loads(request.body)["stream_options"]
    assert sent == {**(options.get("stream_options") or {}), "include_usage": True}
    assert request.headers["accept"] == "text/event-stream"
    assert call.body == before


RESERVED = {"model", "messages", "stream", "stream_options"}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text()
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(fields=st.dictionaries(st.text().map("x_".__add__), JSON), stream=st.booleans())
def test_every_field_the_gateway_does_not_know_reaches_the_provider(adapter, dialect, make_call, fields, stream):
    fields = {"tools": [{"x_own": fields}], **fields}
    call = make_call(stream=stream, **fields)
    before = copy.deepcopy(call.body)
    assert dialect.read("chat", loads(dumps(call.body))) == Ask("public", stream=stream)
    sent = loads(adapter.encode(call, TARGET, None).body)
    assert {name: value for name, value in sent.items() if name not in RESERVED} == fields
    assert call.body == before


@given(body=st.dictionaries(st.sampled_from([
    "model", "messages", "stream", "stream_options", "prompt", "input", "tools", "Model", "role",
]) | st.text(), JSON), operation=st.sampled_from(["chat", "completions", "embeddings"]))
def test_any_body_is_read_or_refused_with_a_pointer(dialect, body, operation):
    try:
        ask = dialect.read(operation, body)
    except InvalidRequest as refused:
        assert refused.pointer is not None  # noqa: PT017 - either way out is right
    else:
        assert ask.route == body["model"]
