"""A tool's declaration is taken whole, compiled to a route and an upstream of its own, or refused with file, line and key."""

import re
from pathlib import Path
from typing import Any

import pytest

from gateway.call import Target
from gateway.core.money import Price
from gateway.core.plan import Deadlines, Retry
from gateway.deployment import read_deployment
from gateway.errors import ConfigError
from gateway.secret import Secret
from gateway.snapshot import Snapshot, compile_snapshot
from gateway.tool_config import ToolConfig, split_template, template_parts

TOOL = """
[[tool]]
name = "bank.pay"
description = "Pays."
method = "POST"
url = "https://bank.example/v1/accounts/{account}/payments"
query = ["currency"]
effect = "idempotent"
[tool.headers]
Authorization = "env:BANK"
[tool.arguments]
required = ["account", "amount"]
[tool.arguments.properties]
account = { type = "string" }
amount = { type = "number" }
currency = { enum = ["EUR"], type = "string" }
"""
ROUTE = '[[route]]\nname = "fast"\n[[route.targets]]\nprovider = "one"\nmodel = "m"\n'
CONFIG = '[auth]\nrequired = false\n[providers.one]\nadapter = "openai"\nbase_url = "http://127.0.0.1:1/v1"\n'


class Folder:
    """A deployment that a test writes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        for name in ("routes", "policies"):
            (path / name).mkdir()
        (path / "config.toml").write_text(CONFIG)

    def compile(self, routes: str) -> Snapshot:
        (self.path / "routes/t.toml").write_text(routes)
        return compile_snapshot(read_deployment(self.path / "config.toml"), {"BANK": "Bearer of-the-bank"})

    def problems(self, routes: str) -> list[str]:
        with pytest.raises(ConfigError) as caught:
            self.compile(routes)
        return [str(problem) for problem in caught.value.problems]


@pytest.fixture
def folder(tmp_path):
    return Folder(tmp_path)


def test_a_tool_becomes_a_route_with_an_upstream_of_its_own(folder):
    snapshot = folder.compile(ROUTE + TOOL)
    tool, route, provider = snapshot.tools["bank.pay"], snapshot.routes["bank.pay"], snapshot.providers["tool:bank.pay"]
    assert (tool.method, tool.description, tool.annotations) == ("POST", "Pays.", {"effect": "idempotent", "irreversible": False})
    assert (route.operations, [(to.target, to.price) for to in route.targets]) == (
        frozenset({"tool"}), [(Target("tool:bank.pay", "POST"), Price(0, 0, request=0))])
    assert str(route.targets[0].target) == "tool:bank.pay/POST"
    assert (route.deadlines, route.retry) == (Deadlines(5.0, 60.0, 60.0, 60.0, 120.0), Retry(2, 0.25, 5.0))
    assert (provider.base_url, provider.private, provider.max_answer, provider.api_key) == ("https://bank.example", False, 1024 * 1024, None)
    assert provider.headers["authorization"] == "Bearer of-the-bank"
    assert "application/json" in provider.headers["accept"]
    assert Secret("Bearer of-the-bank") in snapshot.secrets
    assert set(snapshot.tools) == {"bank.pay"}
    with pytest.raises(TypeError):
        snapshot.tools["new"] = tool


def test_every_setting_of_a_tool_is_in_force(folder):
    settings = ('price = "0.01"\nprivate = true\nmax_answer = "2KiB"\nheaders = { Accept = "text/plain" }\n'
                '[tool.deadlines]\nconnect = "1s"\nheaders = "2s"\ntotal = "3s"\n[tool.retry]\nattempts = 4\nbase = "5ms"\ncap = "6ms"\n')
    snapshot = folder.compile('[[tool]]\nname = "find"\nmethod = "GET"\nurl = "http://10.0.0.1:81"\neffect = "read"\n' + settings)
    route, provider = snapshot.routes["find"], snapshot.providers["tool:find"]
    assert route.targets[0].price == Price(0, 0, request=10**10)
    assert (route.deadlines, route.retry) == (Deadlines(1.0, 2.0, 2.0, 2.0, 3.0), Retry(4, 0.005, 0.006))
    assert (provider.base_url, provider.private, provider.max_answer, dict(provider.headers)) == ("http://10.0.0.1:81", True, 2048, {"accept": "text/plain"})


def test_what_must_not_be_sent_twice_is_tried_once(folder):
    snapshot = folder.compile(TOOL.replace('effect = "idempotent"\n', ""))
    assert (snapshot.tools["bank.pay"].effect, snapshot.routes["bank.pay"].retry.attempts) == ("at_most_once", 1)


@pytest.mark.parametrize(("old", "new", "expected"), [
    ("https://bank.example", "http://127.0.0.1", "url: 127.0.0.1 is not a public address (say `private = true` if it is meant)"),
    ("bank.example", "localhost:81", "url: localhost is not a public address"),
    ("bank.example", "[::ffff:10.0.0.1]", "url: ::ffff:10.0.0.1 is not a public address"),
    ("bank.example", "169.254.169.254", "url: 169.254.169.254 is not a public address"),
    ('"env:BANK"', '"env:NONE"', "headers.Authorization: the environment variable NONE is not set"),
    ("Authorization", "Content-Length", "headers.Content-Length: this header is the transport's own"),
    ('Authorization = "env:BANK"', 'a = "x"\nA = "y"', "headers.A: the same header twice"),
    ("{account}", "{acount}", 'url: {acount} is none of the arguments (did you mean "account"?)'),
    ('query = ["currency"]', 'query = ["curency"]', "query[0]: 'curency' is none of the arguments"),
    ('account = { type = "string" }', "account = { }", "arguments.properties.account: is part of the path (give it a `type`"),
    ('required = ["account", "amount"]', "", "arguments: `account` is part of the path (put it into `required`)"),
    ('type = "number"', 'type = "nubmer"', "arguments: /properties/amount/type: is not what may stand there"),
    ('type = "number"', "default = 2026-01-01", "arguments: the schema holds what JSON does not have, such as a date"),
])
def test_what_is_wrong_with_a_tool_is_said_with_its_place(folder, old, new, expected):
    found = folder.problems(TOOL.replace(old, new, 1))
    assert len(found) == 1, found
    assert expected in found[0]
    assert found[0].startswith("routes/t.toml:")
    assert ":tool[0]." in found[0]


def test_a_second_try_of_what_must_not_be_sent_twice_is_a_contradiction(folder):
    (found,) = folder.problems(TOOL.replace("idempotent", "at_most_once") + "[tool.retry]\nattempts = 3\n")
    assert "tool[0].retry.attempts: a tool that is `at_most_once` is tried once" in found


def test_routes_and_tools_share_no_name(folder):
    (found,) = folder.problems(ROUTE + TOOL.replace("bank.pay", "fast"))
    assert "tool[0].name: 'fast' is defined twice (first at routes/t.toml:1)" in found
    (found,) = folder.problems(TOOL + TOOL)
    assert "tool[1].name: 'bank.pay' is defined twice (first at routes/t.toml:2)" in found


def test_everything_that_is_wrong_is_said_at_once(folder):
    wrong = TOOL.replace("https://bank.example", "http://10.0.0.1").replace("{account}", "{x}").replace("env:BANK", "env:NONE")
    assert len(folder.problems(ROUTE.replace('"one"', '"two"') + wrong + wrong)) == 8


@pytest.mark.parametrize(("text", "expected"), [
    ('name = "a b"', "name: the value does not have the form"), ('name = "a/b"', "name: the value does not have the form"),
    ('method = "TRACE"', "method: is none of the possible values"), ('method = "post"', "method: is none of the possible values"),
    ('url = "ftp://h/"', "url: a URL begins with http:// or https://"), ('url = "https://u:p@h/"', "url: credentials do not belong in a URL"),
    ('url = "https://h/x?y=1"', "url: a query or a fragment does not belong in this URL"), ('url = "https://h/x#y"', "url: a query or a fragment"),
    ('url = "https://{host}/"', "url: parameters stand in the path only"), ('url = "https://h/{}"', "url: a parameter is a name in braces"),
    ('url = "https://h/{a"', "url: a parameter is a name in braces"), ('url = "https://h/{a b}"', "url: a parameter is a name in braces"),
    ('url = "https://h/{a}/{a}"', "url: a parameter stands in the path twice"), ('url = "https://h//x"', "url: the path has empty segments"),
    ('url = "https://h/../x"', "url: the path has empty segments, `.` or `..`"), ('url = "https://h/x/."', "url: the path has empty segments"),
    ('url = "https://h/a b"', "url: a URL holds printable ASCII only"), ('effect = "write"', "effect: is none of the possible values"),
    ('price = "-1"', "price: an amount of money"), ("price = 1", "price: an amount of money"), ('max_answer = "0B"', "max_answer: should be greater than 0"),
    ("private = 1", "private: should be true or false"), ("timeout = 1", "timeout: unknown key"), ('source = "x"', "source: unknown key"),
    ("deadlines = { idle = '1s' }", "deadlines.idle: unknown key"), ("retry = { attempts = 0 }", "retry.attempts: should be greater than or equal to 1"),
])
def test_a_wrong_setting_of_a_tool_is_named(folder, text, expected):
    key = text.split(" = ")[0]
    rest = "\n".join(line for line in ('name = "a"', 'method = "GET"', 'url = "https://h/"') if not line.startswith(f"{key} "))
    (found,) = folder.problems(f"[[tool]]\n{rest}\n{text}\n")
    assert f"tool[0].{expected}" in found


REPOSITORY = Path(__file__).parents[1]


def test_the_examples_of_the_documentation_are_right(folder):
    blocks = re.findall(r"^```toml\n(.*?)^```", (REPOSITORY / "docs/tools.md").read_text(), re.MULTILINE | re.DOTALL)
    files = {re.match(r"# (\S+?\.toml)", block)[1]: block for block in blocks}
    assert set(files) == {"routes/bank.toml", "policies/bank.toml", "routes/payments.toml", "policies/irreversible.toml"}
    for name, text in files.items():
        (folder.path / name).write_text(text)
    snapshot = folder.compile("")
    target, body = snapshot.tools["bank.pay"].target({"account": "DE12", "amount": 5, "currency": "EUR"})
    assert (target, body) == ("/v1/accounts/DE12/payments?currency=EUR", b'{"amount":5}')
    verify = snapshot.tools["payments.make"].verify
    assert verify is not None
    assert verify.asks({"reference": "p-7", "amount": 5}, "apr_1") == {"reference": "p-7"}
    assert [verify.says(status, result) for status, result in ((200, {"state": "booked"}), (200, {"state": "new"}), (404, None))] == [
        True, False, False]


def test_the_example_among_the_shipped_routes_works_when_it_is_uncommented(folder):
    shipped = (REPOSITORY / "routes/simulator.toml").read_text()
    example = re.sub(r"^# ?", "", shipped[shipped.index("# [[tool]]"):], flags=re.MULTILINE)
    tool = folder.compile(example).tools["echo"]
    assert tool.target({"room": "a b", "text": "hi", "language": "de"}) == ("/tools/echo/a%20b?language=de", b'{"text":"hi"}')


@pytest.mark.parametrize(("url", "origin", "parts"), [
    ("https://h", "https://h", ["/"]), ("https://h/", "https://h", ["/"]), ("http://h:81/a/{b}/c", "http://h:81", ["/a/", "b", "/c"]),
    ("https://h/{a}.{b}/", "https://h", ["/", "a", ".", "b", "/"]),
])
def test_a_template_is_its_origin_and_the_parts_of_its_path(url, origin, parts):
    made: Any = ToolConfig(name="a", method="GET", url=url).url
    assert (split_template(made)[0], template_parts(split_template(made)[1])) == (origin, parts)
