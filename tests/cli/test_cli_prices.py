"""`lockgate prices` says what every target costs and why, and what the published prices know of a model."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from gateway.cli.prices import prices
from gateway.prices import PUBLISHED

PROVIDERS = """
[auth]
pepper = "env:NOT_SET"
[providers.openai]
adapter = "openai"
base_url = "https://api.openai.com/v1"
api_key = "env:NOT_SET_EITHER"
price_provider = "openai"
output_limit = "max_completion_tokens"
[providers.own]
adapter = "openai"
base_url = "http://127.0.0.1:8000/v1"
"""
ROUTES = """
[[route]]
name = "fast"
[[route.targets]]
provider = "openai"
model = "gpt-4o"
[[route.targets]]
provider = "own"
model = "gpt-4o"
[[route]]
name = "slow"
[[route.targets]]
provider = "openai"
model = "gpt-4o-2024-08-06"
[[route.targets]]
provider = "openai"
model = "gpt-4o"
"""
OWN = """
[prices."own/gpt-4o"]
input = "0.10"
output = "0.2"
cached_input = "0.01"
image = "0.001"
request = "0.005"
[[prices."own/gpt-4o".tiers]]
above = 1000
input = "1"
output = "2"
[models."own/gpt-4o"]
context = 32000
max_output = 800
image_tokens = 70
bytes_per_token = 2
output_limit = ""
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "routes").mkdir()
    (tmp_path / "policies").mkdir()
    (tmp_path / "routes/r.toml").write_text(ROUTES)
    (tmp_path / "config.toml").write_text(PROVIDERS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def add(folder: Path, text: str) -> None:
    (folder / "config.toml").write_text(PROVIDERS + text)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(prices, arguments)


def said(*arguments: str) -> Any:
    done = run(*arguments, "--json")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


@pytest.mark.usefixtures("folder")
def test_every_target_of_every_route_is_shown_without_a_secret_being_there():
    done = run("show")
    assert (done.exit_code, done.stderr) == (0, "")
    assert [line for line in done.stdout.splitlines() if "->" in line] == [
        "fast -> openai/gpt-4o", "fast -> own/gpt-4o", "slow -> openai/gpt-4o-2024-08-06", "slow -> openai/gpt-4o"]


@pytest.mark.usefixtures("folder")
def test_a_published_price_says_whose_it_is_and_what_it_holds_for():
    told = run("show", "--route", "slow").stdout.split("\n\n")[1].splitlines()
    assert told == [
        "slow -> openai/gpt-4o", "  per million tokens: input 2.5, cached_input 1.25, output 10", f"  from: {PUBLISHED}",
        "  service tiers: the usual ones; where a budget binds a dearer one is refused, for its price is unknown",
        "  input: at most a token for each byte and 50000 for a picture, 128000 at the most",
        "  output: asked for in `max_completion_tokens`, 4096 where the client gives no limit, longest answer unknown"]


def test_a_price_of_ones_own_is_shown_with_all_its_classes_and_tiers(folder):
    add(folder, OWN)
    assert run("show", "--route", "fast").stdout.split("\n\n")[1].splitlines() == [
        "fast -> own/gpt-4o", "  per million tokens: input 0.1, cached_input 0.01, output 0.2", "  above 1000 input tokens: input 1, output 2",
        "  per image: 0.001", "  per request: 0.005", "  from: [prices]",
        "  input: at most a token for every 2 bytes and 70 for a picture, 32000 at the most", "  output: takes no limit, 800 at the most"]


def test_a_price_that_nobody_knows_says_what_happens(folder):
    assert '  price: unknown, as is then what a call costs; where a budget binds it is refused ([pricing] unknown = "deny")' in (
        run("show").stdout.splitlines())
    add(folder, '[pricing]\nunknown = "assume"\nassumed_input = "7"\nassumed_output = "8"\n')
    assert "  per million tokens: input 7, output 8\n  from: [pricing], assumed\n" in run("show").stdout


def test_json_has_the_same_as_strings_of_usd(folder):
    add(folder, OWN)
    published, own = said("show", "--route", "fast")
    assert published["price"] == {"input": "2.5", "cached_input": "1.25", "output": "10", "image": "0", "request": "0", "tiers": []}
    assert own == {
        "route": "fast", "target": "own/gpt-4o", "from": "configuration", "context": 32000, "max_output": 800, "default_output": 4096,
        "image_tokens": 70, "bytes_per_token": 2, "output_limit": "", "bills_unanswered": True, "any_tier": True,
        "price": {"input": "0.1", "cached_input": "0.01", "output": "0.2", "image": "0.001", "request": "0.005",
                  "tiers": [{"above": 1000, "input": "1", "output": "2"}]}}


@pytest.mark.usefixtures("folder")
def test_an_unknown_price_is_null_and_never_zero():
    assert [(each["price"], each["from"]) for each in said("show", "--route", "fast")][1] == (None, None)


@pytest.mark.usefixtures("folder")
def test_a_route_that_is_not_there_is_named_with_the_nearest():
    done = run("show", "--route", "fats")
    assert done.exit_code == 1
    assert """there is no route 'fats' (did you mean "fast"?)""" in done.stderr


def test_without_routes_there_is_nothing_to_show(folder):
    (folder / "routes/r.toml").unlink()
    assert (run("show").stdout, said("show")) == ("", [])
    assert "Error: there is no route 'x'\n" in run("show", "--route", "x").stderr


def test_a_target_of_no_provider_is_a_problem_with_its_place(folder):
    (folder / "routes/r.toml").write_text(ROUTES.replace('"own"', '"onw"'))
    done = run("show")
    assert str(done.exception) == """routes/r.toml:8:route[0].targets[1].provider: there is no provider 'onw' (did you mean "own"?)"""


def test_a_model_is_shown_with_who_is_charged_by_it(folder):
    add(folder, OWN)
    assert run("check", "gpt-4o", "--provider", "openai").stdout.splitlines() == [
        f"openai: gpt-4o ({PUBLISHED})", "  per million tokens: input 2.5, cached_input 1.25, output 10", "  context: 128000",
        "  used by: openai/gpt-4o, openai/gpt-4o-2024-08-06", "  not used by: own/gpt-4o (a price of its own, or no `price_provider`)"]


@pytest.mark.usefixtures("folder")
def test_without_a_provider_every_one_that_knows_the_model_is_shown():
    found = said("check", "gpt-4o")
    assert (found["model"], found["data"]) == ("gpt-4o", PUBLISHED)
    by_name = {each["provider"]: each for each in found["found"]}
    assert {"openai", "azure"} <= set(by_name)
    assert (by_name["openai"]["used_by"], by_name["azure"]["used_by"]) == (["openai/gpt-4o", "openai/gpt-4o-2024-08-06"], [])
    assert by_name["openai"]["price"]["output"] == "10"


def test_a_model_can_be_looked_up_without_a_deployment(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "  used by: no target" in run("check", "gpt-4o", "--provider", "openai").stdout


@pytest.mark.usefixtures("folder")
def test_a_model_that_is_not_charged_by_the_token_is_said_to_be_so():
    told = run("check", "whisper-large-v3", "--provider", "groq").stdout.splitlines()
    assert told[1:3] == ["  price: not by the token, so that no cost is known", "  context: unknown"]


@pytest.mark.usefixtures("folder")
def test_a_model_that_nobody_knows_is_an_exit_code_and_the_nearest_names():
    done = run("check", "gpt-4oo", "--provider", "openai")
    assert (done.exit_code, done.stdout) == (1, "")
    assert f"error: {PUBLISHED} knows no model 'gpt-4oo' (names like it: gpt-4o" in done.stderr
    done = run("check", "§§§", "--json")
    assert (done.exit_code, json.loads(done.stdout)["found"]) == (1, [])
    assert done.stderr == f"error: {PUBLISHED} knows no model '§§§'\n"


@pytest.mark.usefixtures("folder")
def test_a_provider_that_nobody_knows_is_named_with_the_nearest():
    done = run("check", "gpt-4o", "--provider", "opnai")
    assert done.exit_code == 1
    assert f"""{PUBLISHED} knows no provider 'opnai' (did you mean "openai"?)""" in done.stderr


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("model", ["", "\x1b[2J", "a" * 100_000, "\u202eo4-tpg"])
def test_no_name_steers_a_terminal_or_takes_long(model):
    done = run("check", model)
    assert done.exit_code == 1
    assert all(line.isprintable() and len(line) < 300 for line in done.stderr.splitlines())
