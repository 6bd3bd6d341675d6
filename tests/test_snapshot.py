"""Every name, secret, adapter, price and rule is resolved before the first call, and everything that is wrong is said at once."""

from pathlib import Path

import pytest

from gateway.call import Target
from gateway.config import Deployment
from gateway.core.money import Price
from gateway.core.plan import Deadlines, Retry
from gateway.deployment import read_deployment
from gateway.errors import ConfigError, SetupError
from gateway.secret import Secret
from gateway.snapshot import Snapshot, compile_snapshot, is_loopback, refuse_open_doors

ENVIRON = {"PEPPER": "pepper-of-the-tests", "ADMIN": "admin-of-the-tests", "KEY": "sk-provider-key", "TRACE": "trace-secret"}
AUTH = '[auth]\npepper = "env:PEPPER"\n'
ONE = '[providers.one]\nadapter = "openai"\nbase_url = "http://127.0.0.1:9090/v1"\n'
EVERYWHERE = "0.0.0.0"  # noqa: S104 - nothing listens here; it is what must be refused
ROUTE = '[[route]]\nname = "fast"\n[[route.targets]]\nprovider = "one"\nmodel = "m"\n'
ADAPTER = """
class A:
    name = "small"
    operations = frozenset({"chat"})
    def encode(self, call, target, api_key): ...
    def decode(self, call, body): ...
    def decode_error(self, status, headers, body): ...
    def decoder(self, call): ...
    def health(self, path, api_key): ...
ADAPTER = A()
"""
DIALECT = """
from gateway.wire import Endpoint
class D:
    name = "other"
    endpoints = (Endpoint("GET", "/v1/models", "models"),)
    stream_content_type = "text/event-stream"
    def read(self, operation, body): ...
    def answer(self, call, reply): ...
    def error(self, error, call_id): ...
    def models(self, routes): ...
    def encoder(self, call): ...
DIALECT = D()
"""


class Folder:
    """A deployment folder that is written and read by a test."""

    def __init__(self, path: Path) -> None:
        self.path = path
        for name in ("routes", "policies", "adapters"):
            (path / name).mkdir()

    def read(self, config: str, routes: str = "", policies: str = "") -> Deployment:
        (self.path / "config.toml").write_text(config)
        (self.path / "routes/r.toml").write_text(routes)
        (self.path / "policies/p.toml").write_text(policies)
        return read_deployment(self.path / "config.toml")

    def compile(self, config: str, routes: str = "", policies: str = "") -> Snapshot:
        return compile_snapshot(self.read(config, routes, policies), ENVIRON)

    def problems(self, config: str, routes: str = "", policies: str = "") -> list[str]:
        with pytest.raises(ConfigError) as caught:
            self.compile(config, routes, policies)
        return [str(problem) for problem in caught.value.problems]


@pytest.fixture
def folder(tmp_path):
    return Folder(tmp_path)


def test_a_whole_deployment_is_compiled(folder):
    config = (
        AUTH + '[admin]\ntoken = "env:ADMIN"\n[otlp]\nendpoint = "http://127.0.0.1:4318"\nheaders = { X-Trace = "env:TRACE" }\n' + ONE
        + 'api_key = "env:KEY"\nmax_answer = "1MiB"\nheaders = { X-Team = "blue", "X-Other" = "env:TRACE" }\n'
        + '[prices."one/m"]\ninput = "1"\noutput = "2"\n')
    routes = ROUTE + '[[route.targets]]\nprovider = "one"\nmodel = "n"\n' + (
        '[route.retry]\nattempts = 3\nbase = "1s"\n[route.deadlines]\ntotal = "1m"\n')
    snapshot = folder.compile(config, routes, '[[rule]]\nid = "no"\neffect = "deny"\nmatch = { teams = ["x"] }\n')
    provider, route = snapshot.providers["one"], snapshot.routes["fast"]
    assert (provider.base_url, provider.max_answer, provider.api_key) == (
        "http://127.0.0.1:9090/v1", 1024 * 1024, Secret("sk-provider-key"))
    assert dict(provider.headers) == {"x-team": "blue", "x-other": "trace-secret"}
    assert [(to.target, to.price) for to in route.targets] == [
        (Target("one", "m"), Price(10**6, 2 * 10**6)), (Target("one", "n"), None)]
    assert route.operations == {"chat", "completions", "embeddings"}
    assert route.deadlines == Deadlines(5.0, 300.0, 120.0, 60.0, 60.0)
    assert route.retry == Retry(3, 1.0, 5.0)
    assert [dialect.name for dialect in snapshot.dialects] == ["openai"]
    assert [rule.id for rule in snapshot.bundle.rules] == ["no"]
    assert dict(snapshot.otlp_headers) == {"x-trace": "trace-secret"}
    assert (snapshot.pepper, snapshot.admin_token) == (Secret("pepper-of-the-tests"), Secret("admin-of-the-tests"))
    assert set(snapshot.secrets) == {Secret(value) for value in ENVIRON.values()}


def test_a_snapshot_shows_no_secret_and_cannot_be_changed(folder):
    snapshot = folder.compile(AUTH + ONE + 'api_key = "env:KEY"\nheaders = { x = "env:TRACE" }', ROUTE)
    assert not [value for value in ENVIRON.values() if value in repr(snapshot)]
    with pytest.raises(TypeError):
        snapshot.routes["new"] = snapshot.routes["fast"]


def test_a_credential_written_into_a_header_is_scrubbed_all_the_same(folder):
    snapshot = folder.compile(AUTH + ONE + 'headers = { Authorization = "Bearer abc", x-api-key = "def", x-keyboard = "ghi" }')
    assert set(snapshot.secrets) == {Secret("pepper-of-the-tests"), Secret("Bearer abc"), Secret("def")}


def test_a_published_price_applies_where_the_provider_is_named(folder):
    snapshot = folder.compile(AUTH + ONE + 'price_provider = "openai"\n', ROUTE.replace('"m"', '"gpt-4o"'))
    assert snapshot.routes["fast"].targets[0].price is not None


def test_without_authentication_no_pepper_is_needed(folder):
    assert folder.compile("[auth]\nrequired = false\n").pepper is None


@pytest.mark.parametrize(("config", "routes", "expected"), [
    ("", "", "config.toml:auth.pepper: "),
    ('[auth]\npepper = "env:NONE"', "", "config.toml:2:auth.pepper: the environment variable NONE is not set; export it before the start"),
    (AUTH + '[admin]\ntoken = "file:none"', "", "config.toml:4:admin.token: "),
    (AUTH + ONE + 'api_key = "env:NONE"', "", "config.toml:6:providers.one.api_key: the environment variable NONE is not set"),
    (AUTH + ONE + 'headers = { a = "env:NONE" }', "", "config.toml:6:providers.one.headers.a: the environment variable NONE is not set"),
    (AUTH + ONE + 'headers = { a = "1", A = "2" }', "", "config.toml:6:providers.one.headers.A: the same header twice"),
    (AUTH + ONE + 'headers = { Host = "1" }', "", "config.toml:6:providers.one.headers.Host: this header is the transport's own"),
    (AUTH + ONE.replace('"openai"', '"opneai"'), "",
     """config.toml:4:providers.one.adapter: there is no adapter named 'opneai' (did you mean "openai"?)"""),
    (AUTH + ONE + 'price_provider = "opnai"', "",
     """config.toml:6:providers.one.price_provider: genai-prices knows no provider 'opnai' (did you mean"""),
    (AUTH + '[server]\ndialects = ["opneai"]', "",
     """config.toml:4:server.dialects[0]: there is no adapter named 'opneai' (did you mean "openai"?)"""),
    (AUTH + ONE, ROUTE.replace('"one"', '"noe"'),
     """routes/r.toml:4:route[0].targets[0].provider: there is no provider 'noe' (did you mean "one"?)"""),
    (AUTH + ONE, ROUTE + ROUTE, "routes/r.toml:7:route[1].name: the route 'fast' is defined twice (first at routes/r.toml:1)"),
    (AUTH + ONE + '[prices."noe/m"]\ninput="1"\noutput="1"', "",
     """config.toml:6:prices."noe/m": there is no provider 'noe' (did you mean "one"?)"""),
    (AUTH + ONE + '[prices.one]\ninput="1"\noutput="1"', "", "config.toml:6:prices.one: an entry of `prices` is for a target"),
    (AUTH + ONE + '[prices."one/"]\ninput="1"\noutput="1"', "", 'config.toml:6:prices."one/": an entry of `prices` is for a target (write [prices."PROVIDER/MODEL"])'),
])
def test_a_dangling_name_or_reference_is_named_with_its_place(folder, config, routes, expected):
    found = folder.problems(config, routes)
    assert len(found) == 1
    assert expected in found[0]


PRICED = '[prices."one/m"]\ninput = "1"\noutput = "2"\n'


@pytest.mark.parametrize(("config", "expected"), [
    ('[models."noe/m"]\ncontext = 1', """config.toml:6:models."noe/m": there is no provider 'noe' (did you mean "one"?)"""),
    ("[models.one]\ncontext = 1", "config.toml:6:models.one: an entry of `models` is for a target"),
    ('[models."one/m"]\ncontext = 0', 'config.toml:7:models."one/m".context: '),
    ('[models."one/m"]\nmax_output = 0', 'config.toml:7:models."one/m".max_output: '),
    ('[models."one/m"]\nbytes_per_token = 0', 'config.toml:7:models."one/m".bytes_per_token: '),
    ('[models."one/m"]\noutput_limit = "n_predict"', 'config.toml:7:models."one/m".output_limit: is none of the possible values'),
    ('[models."one/m"]\ncontxt = 1', 'config.toml:7:models."one/m".contxt: unknown key (did you mean "context"?)'),
    ('[pricing]\nunknown = "assume"', "config.toml:7:pricing.unknown: what is to be assumed is not said (give `assumed_input` and `assumed_output`)"),
    ('[pricing]\nunknown = "assume"\nassumed_input = "1"', "config.toml:7:pricing.unknown: what is to be assumed is not said"),
    ('[pricing]\nunknown = "free"', "config.toml:7:pricing.unknown: is none of the possible values"),
    (PRICED + 'reasoning = "5000"', 'config.toml:9:prices."one/m".reasoning: $5000 per million tokens is outside $0.001 to $1000'),
    (PRICED + 'image = "40"', 'config.toml:9:prices."one/m".image: $40 per picture is more than $1: a slip of the unit?'),
    (PRICED + '[[prices."one/m".tiers]]\nabove = 5\ninput = "1"\noutput = "5000"',
     'config.toml:9:prices."one/m".tiers: [0].output: $5000 per million tokens is outside $0.001 to $1000'),
    (PRICED + '[[prices."one/m".tiers]]\nabove = 0\ninput = "1"\noutput = "5"', 'config.toml:10:prices."one/m".tiers[0].above: '),
    ('[budgets.b]\nscope = "team"', "config.toml:6:budgets.b.limit: a budget needs `limit`, `soft` or `limits`"),
    ('[budgets.b]\nscope = "tem"\nlimit = "1"', 'config.toml:7:budgets.b.scope: is none of the possible values (did you mean "team"?)'),
    ('[budgets.b]\nscope = "team"\nlimit = "1"\nsoft = "2"', "config.toml:9:budgets.b.soft: the soft limit is above the limit"),
    ('[budgets.b]\nscope = "team"\nlimit = "1"\nwindow = "30s"', "config.toml:9:budgets.b.window: a rolling window is a minute at the least"),
    ('[budgets.b]\nscope = "team"\nlimit = "1"\nwindow = "fortnight"', "config.toml:9:budgets.b.window: a window is "),
    ('[budgets.b]\nscope = "team"\nlimit = "1"\ntimezone = "Mars/Base"', "config.toml:9:budgets.b.timezone: there is no time zone 'Mars/Base'"),
    ('[budgets.b]\nscope = "team"\nlimit = 1', "config.toml:8:budgets.b.limit: an amount of money is a string"),
    ('[budgets.b]\nscope = "team"\nlimits = { a = "-1" }', "config.toml:8:budgets.b.limits.a: an amount of money is a string"),
    ('[budgets."b c"]\nscope = "team"\nlimit = "1"', "the name does not have the form"),
])
def test_what_is_wrong_about_money_is_named_with_its_place(folder, config, expected):
    found = folder.problems(AUTH + ONE + config)
    assert len(found) == 1, found
    assert expected in found[0]


def test_budgets_and_what_bounds_a_call_are_compiled(folder):
    config = (AUTH + ONE + 'output_limit = "max_completion_tokens"\nbills_unanswered = false\n' + PRICED
              + '[models."one/m"]\ncontext = 9\nmax_output = 8\n[budgets.b]\nscope = "team"\nlimit = "1"\nwindow = "day"\n')
    snapshot = folder.compile(config, ROUTE)
    (to,) = snapshot.routes["fast"].targets
    assert (to.bounds.context, to.bounds.max_output, to.bounds.output_limit, to.bounds.bills_unanswered) == (9, 8, "max_completion_tokens", False)
    assert to.prices == "configuration"
    assert snapshot.budgets.budgets["b"].limit_nusd == 10**9


def test_everything_that_is_wrong_is_said_at_once_and_once(folder):
    (folder.path / "adapters/broken.py").write_text("\nraise ValueError('no')\n")
    config = '[auth]\npepper = "env:A"\n' + ONE.replace('"openai"', '"broken"') + (
        ONE.replace(".one", ".two").replace('"openai"', '"broken"'))
    found = folder.problems(config, ROUTE.replace("one", "six"), '[[rule]]\nid = "r"\neffect = "deny"\nwhen = "request.modle =="\n')
    assert [problem.split(": ")[0] for problem in found] == [
        f"{folder.path}/adapters/broken.py:2", "routes/r.toml:4:route[0].targets[0].provider",
        "policies/p.toml:4:rule[0].when", "config.toml:2:auth.pepper"]


def test_a_problem_of_an_expression_is_at_its_own_line_with_a_hint(folder):
    rules = '[[rule]]\nid = "r"\neffect = "deny"\n\nwhen = "request.stream and route == 1"\n'
    (found,) = folder.problems(AUTH, "", rules)
    assert found.startswith("policies/p.toml:5:rule[0].when: ")
    assert " at character 16\n" in found
    assert found.endswith(' (rule "r") (CEL writes &&, ||, !, ==)')


def test_a_route_that_promises_what_a_target_cannot_do_is_refused(folder):
    (folder.path / "adapters/small.py").write_text(ADAPTER)
    config = AUTH + ONE + ONE.replace(".one", ".small").replace('"openai"', '"small"')
    second = '[[route.targets]]\nprovider = "small"\nmodel = "m"\n'
    promising = ROUTE.replace('"fast"\n', '"fast"\noperations = ["chat", "embeddings"]\n') + second
    assert folder.problems(config, promising)[0].startswith(
        "routes/r.toml:3:route[0].operations: not every target's adapter can do this: embeddings (")
    assert folder.compile(config, ROUTE + second).routes["fast"].operations == {"chat"}


def test_a_route_whose_targets_have_nothing_in_common_is_refused(folder):
    (folder.path / "adapters/small.py").write_text(ADAPTER)
    (folder.path / "adapters/tiny.py").write_text(ADAPTER.replace("small", "tiny").replace('"chat"', '"embeddings"'))
    config = AUTH + ONE.replace('"openai"', '"small"') + ONE.replace(".one", ".two").replace('"openai"', '"tiny"')
    found = folder.problems(config, ROUTE + '[[route.targets]]\nprovider = "two"\nmodel = "m"\n')
    assert found[0].startswith("routes/r.toml:1:route[0].operations: not every target's adapter can do this: chat, completions, embeddings")


def test_two_dialects_that_answer_the_same_request_are_refused(folder):
    (folder.path / "adapters/other.py").write_text(DIALECT)
    assert folder.problems(AUTH + '[server]\ndialects = ["openai", "other"]') == [
        "config.toml:4:server.dialects[1]: other and openai both answer GET /v1/models (take one of them out)"]


@pytest.mark.parametrize(("host", "expected"), [
    ("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("[::1]", True), ("localhost", True), ("LOCALHOST", True),
    (EVERYWHERE, False),
    ("::", False), ("10.0.0.1", False), ("example.com", False), ("127.0.0.1.example.com", False), ("localhost.example.com", False), ("", False)])
def test_loopback_is_told_from_what_others_can_reach(host, expected):
    assert is_loopback(host) is expected


@pytest.mark.parametrize(("config", "doors"), [
    (AUTH + '[admin]\ntoken = "env:ADMIN"\n', []),
    (AUTH, ["config.toml:admin.token"]),
    ('[auth]\nrequired = false\n[admin]\ntoken = "env:ADMIN"\n', ["config.toml:2:auth.required"]),
    ("[auth]\nrequired = false\n", ["config.toml:2:auth.required", "config.toml:admin.token"]),
])
def test_a_port_that_others_reach_is_not_opened_without_keys_and_admin_token(folder, config, doors):
    public = config + f'[server]\nhost = "{EVERYWHERE}"\n'
    deployment = folder.read(config)
    compile_snapshot(deployment, ENVIRON)
    refuse_open_doors("127.0.0.1", deployment)
    if not doors:
        folder.compile(public)
        refuse_open_doors(EVERYWHERE, deployment)
        return
    assert [problem.split(": ")[0].replace("config.toml:3:admin", "config.toml:admin") for problem in folder.problems(public)] == doors
    with pytest.raises(SetupError, match=r"^0\.0\.0\.0 is reachable by others"):
        refuse_open_doors(EVERYWHERE, deployment)
