"""A configuration is taken whole or refused with the place of everything that is wrong. Nothing in it is guessed."""

import os
from pathlib import Path

import pytest

from gateway.config import Config
from gateway.deployment import read_deployment
from gateway.errors import ConfigError
from gateway.route_config import RouteConfig
from gateway.rule_config import RuleConfig

ROUTE = """
[[route]]
name = "fast"
[[route.targets]]
provider = "one"
model = "m"
"""
RULE = """
[[rule]]
id = "a"
effect = "deny"
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("routes", "policies"):
        (tmp_path / name).mkdir()
    (tmp_path / "config.toml").write_text("")
    return tmp_path


def problems(folder: Path) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        read_deployment(folder / "config.toml")
    return [str(problem) for problem in caught.value.problems]


def config_problems(folder: Path, text: str) -> list[str]:
    (folder / "config.toml").write_text(text)
    return problems(folder)


def test_an_empty_configuration_is_all_defaults(folder):
    deployment = read_deployment(folder / "config.toml")
    assert deployment.config == Config()
    assert (deployment.folder, deployment.routes, deployment.rules) == (folder, (), ())


def test_routes_and_rules_know_their_file_and_line(folder):
    (folder / "routes/b.toml").write_text("\n# more\n" + ROUTE + ROUTE.replace("fast", "slow"))
    (folder / "routes/a.toml").write_text(ROUTE.replace("fast", "first"))
    (folder / "policies/p.toml").write_text(RULE)
    deployment = read_deployment(folder / "config.toml")
    assert [(route.name, route.source) for route in deployment.routes] == [
        ("first", "routes/a.toml:2"), ("fast", "routes/b.toml:4"), ("slow", "routes/b.toml:10")]
    assert [rule.source for rule in deployment.rules] == ["policies/p.toml:2"]


def test_values_arrive_in_seconds_and_bytes(folder):
    (folder / "config.toml").write_text(
        '[server]\nmax_body = "1KiB"\nbody_timeout = "250ms"\ndrain_timeout = "0s"\n[store]\nbusy_timeout = "1.5m"')
    server, store = (config := read_deployment(folder / "config.toml").config).server, config.store
    assert (server.max_body, server.body_timeout, server.drain_timeout, store.busy_timeout) == (1024, 0.25, 0.0, 90.0)


@pytest.mark.parametrize(("text", "expected"), [
    ("[server]\nprot = 1", 'config.toml:2:server.prot: unknown key (did you mean "port"?)'),
    ("[sever]\nport = 1", 'config.toml:1:sever: unknown key (did you mean "server"?)'),
    ("[server]\nport = '1'", "config.toml:2:server.port: should be a whole number, without quotes"),
    ("[server]\nport = 1.0", "config.toml:2:server.port: should be a whole number, without quotes"),
    ("[server]\nport = true", "config.toml:2:server.port: should be a whole number, without quotes"),
    ("[server]\n\nport = 65536", "config.toml:3:server.port: should be less than or equal to 65535"),
    ("server = 1", "config.toml:1:server: should be a table"),
    ("providers = [1]", "config.toml:1:providers: should be a table"),
    ("[server]\ndialects = 'openai'", "config.toml:2:server.dialects: should be a list (a list stands in brackets: [ ])"),
    ("[server]\ndialects = []", "config.toml:2:server.dialects: must not be empty"),
    ("[server]\ndialects = [\n'openai',\n3]", "config.toml:4:server.dialects[1]: should be a valid string"),
    ("[server]\ndialects = ['openai', 'openai']", "config.toml:2:server.dialects: named twice: openai"),
    ("[server]\ndialects = ['../x']", "does not have the form"),
    ("[journal]\nbodies = 'redact'", 'config.toml:2:journal.bodies: is none of the possible values (did you mean "redacted"?)'),
    ("[log]\nlevel = 'INFO'", 'config.toml:2:log.level: is none of the possible values (did you mean "info"?)'),
    ("[log]\nlevel = 0x" + "f" * 5000, "config.toml:2:log.level: is none of the possible values (there is debug, error, info, warning)"),
    ("[server]\nhost = ''", "config.toml:2:server.host: must not be empty"),
    ("[auth]\nrequired = 'no'", "config.toml:2:auth.required: should be true or false, without quotes"),
    ("[prices.'a/b']\ninput = '0.0000025'\noutput = '1'", "USD); prices are per million tokens"),
    ("# x\n[server]\nport = " + "9" * 5000, "config.toml:3: a number has more digits than can be read"),
    ("[server]\nport = 0x" + "f" * 5000, "config.toml:2:server.port: should be less than or equal to 65535"),
    ("[journal]\nbodies = 1", "config.toml:2:journal.bodies: is none of the possible values (there is full, none, redacted)"),
    ("[providers.one]\nadapter = 'openai'", "config.toml:1:providers.one.base_url: is missing (Where it is,"),
    ("[providers.'o/e']\nadapter = 'openai'\nbase_url = 'http://h'", 'config.toml:1:providers."o/e": the name does not have the form'),
])
def test_a_wrong_setting_is_named_with_file_line_key_and_a_hint(folder, text, expected):
    found = config_problems(folder, text)
    assert len(found) == 1
    assert expected in found[0]


@pytest.mark.parametrize("value", [
    "30", "30 s", "-1s", "1e3s", "nans", "infs", "1h30m", "s", "", "٣s", "367d", "1.s", "1S", "\n30s", "30s\n", "0s", "9" * 400 + "s"])
def test_what_is_not_a_duration_is_refused(folder, value):
    encoded = '"' + value.replace("\n", "\\n") + '"'
    assert config_problems(folder, f"[server]\nbody_timeout = {encoded}")[0].startswith("config.toml:2:server.body_timeout: ")


def test_clients_are_told_to_come_back_no_later_than_they_obey(folder):
    """Longer waits than a minute are not obeyed by official clients, which then come back by a schedule of their own."""
    assert config_problems(folder, '[approvals]\nretry_after = "61s"')[0].startswith("config.toml:2:approvals.retry_after: ")
    (folder / "config.toml").write_text('[approvals]\nretry_after = "60s"')
    assert read_deployment(folder / "config.toml").config.approvals.retry_after == 60.0


@pytest.mark.parametrize("value", ["30", "30.0", "nan", "true", "[]", "1979-05-27"])
def test_a_number_without_a_unit_is_not_a_duration(folder, value):
    assert "a duration is a string" in config_problems(folder, f"[server]\nbody_timeout = {value}")[0]


@pytest.mark.parametrize("value", ["10MB", "10", "1.5MiB", "-1B", "0B", "1025GiB", "10 MiB", "10mib", "٣B"])
def test_what_is_not_a_size_is_refused(folder, value):
    assert config_problems(folder, f'[server]\nmax_body = "{value}"')[0].startswith("config.toml:2:server.max_body: ")


@pytest.mark.parametrize(("value", "expected"), [
    ("2.5", "an amount of money is a string"), ("'-1'", "an amount of money"),
    ("'1e3'", "an amount of money"), ("'NaN'", "an amount of money"),
    ("'1,5'", "an amount of money"), ("' 1'", "an amount of money"), ("'٣'", "an amount of money"),
    ("'0.0000015'", "more digits than can be counted exactly"),
    ("'0.0005'", "$0.0005 per million tokens is outside $0.001 to $1000"), ("'2500'", "$2500 per million tokens is outside")])
def test_a_price_that_is_not_exact_or_not_plausible_is_refused(folder, value, expected):
    found = config_problems(folder, f"[prices.'one/m']\ninput = {value}\noutput = '1'")
    assert len(found) == 1
    assert found[0].startswith('config.toml:2:prices."one/m".input: ')
    assert expected in found[0]


def test_an_odd_price_is_taken_where_it_is_forced_and_a_free_one_always(folder):
    (folder / "config.toml").write_text("[prices.'one/m']\noutput = '2500'\ninput = '0'\nforce = true\nrequest = '0.0000000001'")
    price = read_deployment(folder / "config.toml").config.prices["one/m"]
    assert (price.output, price.input, price.request) == (2_500_000_000, 0, 100)


@pytest.mark.parametrize("setting", ["[auth]\npepper", "[admin]\ntoken", "[providers.one]\nadapter='openai'\nbase_url='http://h'\napi_key"])
@pytest.mark.parametrize("value", ["sk-proj-abc123", "ENV:X", "env:", "env:A B", "env:1A", "file:", ""])
def test_a_secret_written_out_is_refused_and_never_repeated(folder, setting, value):
    found = config_problems(folder, f'{setting} = "{value}"')
    assert "a secret is never written here" in found[0]
    assert "sk-proj" not in "".join(found)


@pytest.mark.parametrize(("url", "expected"), [
    ("ftp://h/v1", "http:// or https://"), ("h/v1", "http:// or https://"),
    ("http:///v1", "http:// or https://"), ("", "http:// or https://"),
    ("https://user:pass@h/v1", "credentials do not belong"), ("https://h/v1?key=1", "a query"), ("https://h/v1#a", "a query or a fragment"),
    ("https://h:99999/v1", "not a URL"), ("https://h:x/v1", "not a URL"), ("https://[::1/v1", "not a URL"),
    ("https://h/a b", "printable ASCII"),
    ("https://h/ü", "printable ASCII"), ("https://h\\u0000/", "printable ASCII"), ("https://h:0/", "http:// or https://")])
def test_a_base_url_only_says_where(folder, url, expected):
    found = config_problems(folder, f'[providers.one]\nadapter = "openai"\nbase_url = "{url}"')
    assert found[0].startswith("config.toml:3:providers.one.base_url: ")
    assert expected in found[0]
    assert "pass" not in found[0]


def test_a_base_url_loses_the_slash_at_its_end(folder):
    (folder / "config.toml").write_text("[providers.one]\nadapter = 'openai'\nbase_url = 'http://127.0.0.1:9090/v1/'")
    assert read_deployment(folder / "config.toml").config.providers["one"].base_url == "http://127.0.0.1:9090/v1"


@pytest.mark.parametrize("headers", ["'a b' = 'x'", "a = 'x\\n'", 'a = "x\\r\\ny: 1"', "a = ''", "a = ' x'", "'' = 'x'", "'x:' = 'y'"])
def test_a_header_that_could_break_a_request_is_refused(folder, headers):
    text = f"[providers.one]\nadapter = 'openai'\nbase_url = 'http://h'\nheaders = {{ {headers} }}".replace("'x\\n'", '"x\\n"')
    assert config_problems(folder, text)[0].startswith("config.toml:4:providers.one.headers")


def test_every_problem_of_every_file_is_reported_at_once(folder):
    (folder / "routes/r.toml").write_text("[[route]]\nnam = 1\n")
    (folder / "routes/s.toml").write_text("[[route]\n")
    (folder / "policies/p.toml").write_text(RULE + "effct = 1\n" + RULE.replace("deny", "dney"))
    found = config_problems(folder, "[server]\nport = 'x'\n[log]\nlevel = 'loud'")
    assert [problem.partition(": Expected")[0] for problem in found] == [
        "config.toml:2:server.port: should be a whole number, without quotes",
        "config.toml:4:log.level: is none of the possible values (there is debug, error, info, warning)",
        "routes/r.toml:1:route[0].name: is missing (What clients send as `model`.)",
        "routes/r.toml:1:route[0].targets: is missing (Where calls go; the next one is for when the one before has failed.)",
        'routes/r.toml:2:route[0].nam: unknown key (did you mean "name"?)',
        "routes/s.toml:1: not TOML",
        'policies/p.toml:5:rule[0].effct: unknown key (did you mean "effect"?)',
        'policies/p.toml:9:rule[1].effect: is none of the possible values (did you mean "deny"?)',
    ]


def test_a_place_inside_an_entry_is_found_through_arrays_of_tables(folder):
    (folder / "routes/r.toml").write_text(ROUTE + ROUTE + "[[route.targets]]\nprovider = 'two'\nmodel = 3\n"
                                          "[route.retry]\nattempts = 0\n")
    assert problems(folder) == [
        "routes/r.toml:15:route[1].targets[1].model: should be a valid string",
        "routes/r.toml:17:route[1].retry.attempts: should be greater than or equal to 1",
    ]


def test_a_wrong_entry_of_a_list_is_not_reported_as_an_empty_list_too(folder):
    (folder / "routes/r.toml").write_text("[[route]]\nname = 'x'\ntargets = [3]")
    assert problems(folder) == ["routes/r.toml:3:route[0].targets[0]: should be a table"]


@pytest.mark.parametrize(("kind", "text", "place"), [
    ("routes/r.toml", ROUTE.replace('"fast"', '"fast"\nsource = "x"'), "4:route[0]"),
    ("policies/p.toml", RULE + 'source = "x"', "5:rule[0]")])
def test_a_file_cannot_pretend_to_stand_elsewhere(folder, kind, text, place):
    (folder / kind).write_text(text)
    assert [problem.partition(":")[2] for problem in problems(folder)] == [f"{place}.source: unknown key"]


@pytest.mark.parametrize("text", ["route = 3", "route = [3]", "[route]\nname = 'x'", "[[routes]]\nname = 'x'"])
def test_a_routes_file_of_another_shape_is_refused(folder, text):
    (folder / "routes/r.toml").write_text(text)
    assert problems(folder)[0].startswith("routes/r.toml:1:route")


def test_hidden_files_and_other_files_are_not_read(folder):
    for name in (".#x.toml", "x.toml~", "README.md", "x.tml", "x.TOML"):
        (folder / "policies" / name).write_text("not = toml = at all")
    (folder / "policies/sub.toml.d").mkdir()
    (folder / "routes/more").mkdir()
    deployment = read_deployment(folder / "config.toml")
    assert deployment.rules == ()
    assert deployment.unread == (
        "routes/more", "policies/README.md", "policies/sub.toml.d", "policies/x.TOML", "policies/x.tml", "policies/x.toml~")


def test_a_configuration_that_is_missing_is_the_only_problem(folder):
    """Its folders are not known, so nothing is said about any."""
    (folder / "config.toml").unlink()
    (folder / "policies").rmdir()
    (found,) = problems(folder)
    assert found.startswith("config.toml: ")


@pytest.mark.parametrize("key", ["principals", "teams", "roles", "protocols", "routes", "models", "tools"])
def test_an_empty_list_in_match_is_refused(folder, key):
    """It reads like nobody, and a key that is not given means everybody."""
    (folder / "policies/p.toml").write_text(RULE + f"match = {{ {key} = [] }}\n")
    assert problems(folder) == [f"policies/p.toml:5:rule[0].match.{key}: must not be empty"]


def test_a_folder_of_rules_that_is_missing_is_an_error_and_not_an_empty_one(folder):
    (folder / "policies").rmdir()
    assert problems(folder)[0].startswith("config.toml:paths.policies: the folder policies cannot be read: No such file or directory (make it")
    assert config_problems(folder, "[paths]\npolicies = 'pp'")[0].startswith("config.toml:2:paths.policies: the folder pp cannot be read: ")


def test_the_folders_may_stand_elsewhere(folder, tmp_path_factory):
    rules = tmp_path_factory.mktemp("rules")
    (rules / "p.toml").write_text(RULE)
    (folder / "config.toml").write_text(f"[paths]\npolicies = '{rules}'")
    assert read_deployment(folder / "config.toml").rules[0].source == f"{rules}/p.toml:2"


@pytest.mark.parametrize(("text", "expected"), [
    ("[[rule]]\nid = a", 'policies/p.toml:2: not TOML: Invalid value (at line 2, column 6) (a text stands in quotes: key = "text")'),
    ('[[rule]]\nwhen = "route == "a""', "(a text with \" in it stands within ' … ')"),
    ("[[rule]]\nwhen = 'a ||\n b'", "(a text of several lines stands within ''' … ''')"),
    ('[[rule]]\nmatch = { teams = ["a"]\n', "(a table in { } ends on the line that it begins on)"),
    ("[[rule]]\nmatch = { teams = [] }\nmatch.roles = []", "(a table in { } is complete: write the key inside it)"),
    ('[rule]\nid = "a"\n[rule]\nid = "b"', "(entries of a list are written [[name]], each)"),
    ('[rule]\nid = "a"', "policies/p.toml:1:rule: should be a list (write [[rule]])"),
])
def test_what_is_written_wrong_most_often_is_answered_with_how_it_is_written(folder, text, expected):
    (folder / "config.toml").write_text("")
    (folder / "policies/p.toml").write_text(text)
    found = problems(folder)
    assert len(found) == 1
    assert expected in found[0]


@pytest.mark.parametrize(("data", "expected"), [
    (b"\xff\xfe\x00", "not UTF-8 text: byte 0 cannot be read"),
    (b"a = 1\x00", "not TOML"),
    (bytes(range(256)) * 64, "not"),
    (b"# " + b"x" * 5 * 1024 * 1024, "larger than 1048576 bytes"),
    (b"a = " + b"[" * 100_000, "nested too deeply"),
    (b"a = " + b"{b=" * 20_000, "nested too deeply"),
    (b"a = '''", "config.toml:1: not TOML"),
    (b"\n\na = 1\na = 2", "config.toml:4: not TOML: Cannot overwrite a value"),
])
def test_a_file_that_is_not_a_configuration_is_refused_in_one_line(folder, data, expected):
    (folder / "config.toml").write_bytes(data)
    found = problems(folder)
    assert len(found) == 1
    assert expected in found[0]
    assert len(found[0]) < 300


def test_a_byte_order_mark_and_windows_line_ends_are_read(folder):
    (folder / "config.toml").write_bytes(b"\xef\xbb\xbf[server]\r\n\r\nport = 1\r\n[log]\r\nlevel = 'x'\r\n")
    assert problems(folder)[0].startswith("config.toml:5:log.level")


def test_thousands_of_levels_of_dotted_keys_are_one_unknown_key(folder):
    assert config_problems(folder, ".".join("a" * 5000) + " = 1") == [
        "config.toml:a: unknown key (there is admin, approvals, auth, breaker, budgets, journal, log, login, models, notify, oidc, otlp, …)"]


@pytest.mark.parametrize("kind", ["missing", "directory", "loop", "pipe", "dangling"])
def test_what_is_not_a_readable_file_is_said_at_once(folder, kind):
    path = folder / "config.toml"
    path.unlink()
    match kind:
        case "directory":
            path.mkdir()
        case "loop":
            path.symlink_to("config.toml")
        case "pipe":
            os.mkfifo(path)
        case "dangling":
            path.symlink_to("nowhere")
        case _:
            pass
    assert problems(folder)[0].startswith(f"config.toml: {path} ")


def test_models_are_frozen_and_strict_when_made_by_hand():
    rule = RuleConfig(id="a", effect="deny")
    with pytest.raises(ValueError, match="frozen"):
        rule.id = "b"
    with pytest.raises(ValueError, match="valid string"):
        RouteConfig(name=3, targets=())  # type: ignore[arg-type]


def test_a_list_that_is_too_short_is_told_although_its_entries_are_right(folder):
    """A route that is wrong and without a problem would be gone in silence."""
    (folder / "routes").mkdir(exist_ok=True)
    (folder / "routes/r.toml").write_text('[[route]]\nname = "r"\n[[route.targets]]\nprovider = "p"\nmodel = "m"\n'
                                          '[route.classifier]\nprovider = "p"\nmodel = "m"\ntasks = ["a"]\ndefault = "a"\n')
    assert any("classifier.tasks" in problem for problem in config_problems(folder, ""))
