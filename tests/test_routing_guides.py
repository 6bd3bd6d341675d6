"""The guides to routing and resilience can be followed: every example loads, and what their tables and lists name is what there is."""

import re
import tomllib
from pathlib import Path
from typing import get_args

import pytest

from gateway.config import Config
from gateway.deployment import read_deployment
from gateway.errors import CODES
from gateway.resilience_config import BreakerConfig, HealthConfig
from gateway.route_config import DeadlinesConfig, RouteConfig
from gateway.snapshot import Snapshot, compile_snapshot
from gateway.telemetry.metrics import METRICS, PARTS_NOT_MADE
from gateway.units import show_duration

ROOT = Path(__file__).parents[1]
PAGES = {name: (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8") for name in ("routing", "resilience")}
BLOCKS = [(name, block) for name, page in PAGES.items() for block in re.findall(r"^```toml\n(.*?)^```", page, re.MULTILINE | re.DOTALL)]
BASE = next(block for _, block in BLOCKS if block.startswith("# config.toml\n"))
BREAKERS = next(block for name, block in BLOCKS if name == "resilience" and block.startswith("# config.toml\n"))
ROUTES = [(name, block) for name, block in BLOCKS if block.startswith("# routes/")]
OPEN = "[auth]\nrequired = false\n"


def loaded(folder: Path, config: str, route: str) -> Snapshot:
    """The deployment of an example: its configuration, and one file of routes."""
    for name in ("routes", "policies"):
        (folder / name).mkdir()
    (folder / "config.toml").write_text(OPEN + config)
    (folder / "routes" / "example.toml").write_text(route)
    return compile_snapshot(read_deployment(folder / "config.toml"), {"CLOUD_KEY": "sk-cloud"})


def rows(page: str, head: str) -> list[list[str]]:
    """The cells of the table whose first line begins so."""
    table = page[page.index(f"| {head}"):].partition("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table]


@pytest.mark.parametrize(("page", "block"), ROUTES, ids=[block.splitlines()[0] for _, block in ROUTES])
def test_an_example_of_a_route_loads(tmp_path, page, block):
    made = loaded(tmp_path, BASE, block)
    assert made.routes, page
    for name, value in tomllib.loads(block)["route"][0].items():
        assert name in RouteConfig.model_fields, value


def test_the_example_of_breakers_and_checks_loads_and_says_what_is_the_default_anyway(tmp_path):
    cloud = BASE[BASE.index("[providers.cloud]"):BASE.index("[providers.house]")]
    made = loaded(tmp_path, BREAKERS + cloud, ROUTES[0][1])
    assert made.config.providers["house"].health == HealthConfig()
    given, usual = made.config.breaker, BreakerConfig()
    for name in given.model_fields_set - {"slow_first_token", "slow_gap"}:
        assert getattr(given, name) == getattr(usual, name), name
    (route,) = {each.name: each for each in made.routes.values()}.values()
    assert {to.target.provider: to.breaker.consecutive for to in route.targets} == {"cloud": 5, "house": 3}


def test_every_block_says_into_which_file_it_goes():
    for _, block in BLOCKS:
        assert re.match(r"# (config\.toml|routes/[a-z-]+\.toml)\n", block), block


def test_every_strategy_is_in_the_table():
    known = get_args(RouteConfig.model_fields["strategy"].annotation)
    assert [row[0].strip("`") for row in rows(PAGES["routing"], "`strategy`")] == list(known)


def test_what_is_not_made_is_named_as_the_metric_names_it():
    named = set(re.findall(r"`(\w+)`", PARTS_NOT_MADE.help))
    assert named == {"rules", "breaker", "budget", "price", "full"}
    for section in ("## Mirrors", "## Tasks"):
        text = PAGES["routing"].partition(section)[2].partition("\n## ")[0]
        assert named <= set(re.findall(r"`(\w+)`", text)), section


def test_every_metric_that_is_named_is_there():
    known = {spec.name for spec in METRICS}
    for page in PAGES.values():
        assert set(re.findall(r"lockgate_\w+", page)) <= known


def test_the_deadlines_are_those_of_the_settings_with_their_defaults():
    told = {row[0].strip("`"): row[1] for row in rows(PAGES["resilience"], "deadline |")}
    usual = DeadlinesConfig()
    assert told == {name: show_duration(getattr(usual, name)) for name in DeadlinesConfig.model_fields}


def test_the_wall_has_its_21_scenarios_and_every_code_it_names_is_one():
    wall = rows(PAGES["resilience"], "# | the provider")
    assert [row[0] for row in wall] == [str(number) for number in range(1, 22)]
    for row in wall:
        for status, code in re.findall(r"(\d{3}) `(\w+)`", " ".join(row)):
            assert CODES[code].status == int(status), row


@pytest.mark.parametrize("page", PAGES)
def test_a_setting_that_is_named_is_one(page):
    """Names in code that look like a key of a table of routes or of `server`."""
    for section, key in re.findall(r"`(server|journal|policy)\.([a-z_]+)", PAGES[page]):
        assert key in type(getattr(Config(), section)).model_fields, (section, key)


@pytest.mark.parametrize("page", PAGES)
def test_what_is_linked_is_there(page):
    path = ROOT / "docs" / f"{page}.md"
    for target, anchor in re.findall(r"\]\(([^)#:]*)(?:#([\w-]+))?\)", PAGES[page]):
        linked = path.parent / target if target else path
        assert linked.is_file(), target
        heads = re.findall(r"^#+ (.*)$", linked.read_text(encoding="utf-8"), re.MULTILINE)
        assert not anchor or anchor in {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}, anchor


@pytest.mark.parametrize("page", PAGES)
def test_the_page_can_be_read_in_ten_minutes(page):
    """200 words a minute, for who is tired."""
    text = re.sub(r"^```.*?^```", "", PAGES[page], flags=re.MULTILINE | re.DOTALL)
    assert len(text.split()) < 2000
