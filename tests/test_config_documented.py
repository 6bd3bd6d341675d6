"""config.example.toml and docs/configuration.md hold every setting, with the defaults that are in force."""

import re
import runpy
import tomllib
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from gateway import snapshot
from gateway.config import BudgetConfig, Config, ModelConfig, PriceConfig, ProviderConfig, RoutesFile, TierConfig
from gateway.people_config import JwtConfig, NotifyConfig, OidcConfig
from gateway.resilience_config import HealthConfig
from gateway.route_config import RouteConfig
from gateway.rule_config import RuleConfig
from gateway.tool_config import ToolConfig

ROOT = Path(__file__).parents[1]
EXAMPLE = (ROOT / "config.example.toml").read_text()
SECTIONS = [name for name in Config.model_fields if name not in {"providers", "prices", "models", "budgets", "notify", "oidc"}]
# Tables that are shown as comments: of some keys only one may be given.
ONE_OF = {"url_from", "host", "port", "tls", "username", "password", "sender", "to", "jwks_file"}
# What the example sets although it has no default: the folder that `lockgate init` makes has an admin token.
SET_WITHOUT_DEFAULT = {("admin", "token")}


def uncommented(text: str) -> str:
    """The file with the settings that are shown as comments in force, up to where whole tables are comments."""
    shown = re.sub(r"^# ([a-z_]+ = |\[budgets\.|\[providers\.simulator\.|\[oidc\]|\[auth\.jwt\.|\[notify\.)", r"\1", text, flags=re.MULTILINE)
    return re.sub(r"^# (?:A real one|Whatever is compatible).*?(?=^# ----)", "", shown, flags=re.MULTILINE | re.DOTALL)


def in_force(data: dict[str, Any]) -> dict[str, Any]:
    """The settings without those of which another one is given."""
    for table in (data["notify"]["on-call"], data["auth"]["jwt"]["corporate"]):
        for key in ONE_OF & table.keys():
            del table[key]
    return data


def models(model: type[BaseModel]) -> list[type[BaseModel]]:
    """A model and those below it."""
    inner = [part for field in model.model_fields.values() for part in (field.annotation, *get_args(field.annotation))
             if isinstance(part, type) and issubclass(part, BaseModel)]
    return [model, *(below for each in inner for below in models(each))]


ALL: list[type[BaseModel]] = [*models(Config), *models(RouteConfig), *models(ToolConfig), *models(RuleConfig), *models(ProviderConfig), PriceConfig, TierConfig, ModelConfig, BudgetConfig]


def test_the_example_loads_as_it_is():
    Config.model_validate(tomllib.loads(EXAMPLE))
    Config.model_validate(in_force(tomllib.loads(uncommented(EXAMPLE))))


def test_the_example_has_every_setting_and_no_other():
    data = tomllib.loads(uncommented(EXAMPLE))
    assert set(data) == set(Config.model_fields)
    for name in SECTIONS:
        assert list(data[name]) == list(type(getattr(Config(), name)).model_fields), name
    assert list(data["oidc"]) == list(OidcConfig.model_fields)
    assert list(data["auth"]["jwt"]["corporate"]) == list(JwtConfig.model_fields)
    assert list(data["notify"]["on-call"]) == list(NotifyConfig.model_fields)
    assert set(data["providers"]["simulator"]) == set(ProviderConfig.model_fields)
    assert set(data["providers"]["simulator"]["health"]) == set(HealthConfig.model_fields)
    assert set(data["prices"]["simulator/sim-model"]) == set(PriceConfig.model_fields)
    assert set(data["prices"]["simulator/sim-model"]["tiers"][0]) == set(TierConfig.model_fields)
    assert set(data["models"]["simulator/sim-model"]) == set(ModelConfig.model_fields)
    assert set(data["budgets"]["everything"]) == set(BudgetConfig.model_fields)


def test_the_example_shows_the_defaults_that_are_in_force():
    config, default = Config.model_validate(tomllib.loads(EXAMPLE)), Config()
    for name in SECTIONS:
        section = getattr(config, name)
        for key in type(section).model_fields:
            if (name, key) not in SET_WITHOUT_DEFAULT:
                assert getattr(section, key) == getattr(getattr(default, name), key), (name, key)
    assert config.prices["simulator/sim-model"].force is PriceConfig.model_fields["force"].default
    assert config.models["simulator/sim-model"] == ModelConfig()
    assert config.budgets == {}
    shown = Config.model_validate(in_force(tomllib.loads(uncommented(EXAMPLE))))
    assert shown.oidc is not None
    assert shown.providers["simulator"].health == HealthConfig()
    tables = ((shown.oidc, ("scopes", "name_claim", "roles_claim", "teams_claim", "private", "label")),
              (shown.auth.jwt["corporate"], tuple(set(JwtConfig.model_fields) - ONE_OF - {"issuer", "audience", "jwks_url"})),
              (shown.notify["on-call"], ("headers", "private", "port", "tls", "events")),
              (config.providers["simulator"], ("max_answer", "output_limit", "bills_unanswered")),
              (shown.budgets["everything"], ("of", "limits", "window", "timezone", "on_short", "least_output")))
    for table, keys in tables:
        for key in keys:
            assert getattr(table, key) == type(table).model_fields[key].get_default(call_default_factory=True), key


def test_every_setting_of_the_example_has_a_sentence_above_it():
    lines = EXAMPLE.split("# ---- Prices")[0].splitlines()
    shared = {"cache_write", "output", "output_audio"}
    for before, line in pairwise(lines):
        setting = re.match(r"(?:# )?([a-z_]+) = ", line)
        if setting and not before.startswith(("# [", "# adapter", "# base_url", "# api_key", "# price_provider")) and setting[1] not in shared:
            assert re.match(r"# .*[.:]$", before), line


def test_the_shipped_routes_use_what_the_example_configures():
    config = Config.model_validate(tomllib.loads(EXAMPLE))
    for path in (ROOT / "routes").glob("*.toml"):
        for route in RoutesFile.model_validate(tomllib.loads(path.read_text())).route:
            for target in route.targets:
                assert target.provider in config.providers
                assert f"{target.provider}/{target.model}" in config.prices


@pytest.mark.parametrize("model", ALL)
def test_every_setting_says_what_it_is_for(model):
    for name, field in model.model_fields.items():
        inner = field.annotation
        if inner is None or not any(isinstance(part, type) and issubclass(part, BaseModel) for part in (inner, *get_args(inner))):
            assert field.description, name


def test_both_pages_name_the_settings_that_take_a_restart():
    """As the code has them; how each is kept at a reload is shown in test_reload.py."""
    fixed = {*snapshot._AT_START, "oidc", *(f"{section}.{key}" for section, key in snapshot._SOME_AT_START)}
    assert {name.partition(".")[0] for name in fixed} <= set(Config.model_fields)
    for page, sentence in (("configuration.md", r"A change of (.*?) takes effect at\sa restart"), ("policy.md", r"read at the start alone: (.*?)\. ")):
        told = re.search(sentence, (ROOT / "docs" / page).read_text(), re.DOTALL)
        assert told is not None, page
        assert set(re.findall(r"`\[?([a-z_.]+)\]?`", told[1])) == fixed, page


def test_the_reference_is_what_the_models_say():
    made = runpy.run_path(str(ROOT / "docs/configuration.py"))["reference"]()
    assert (ROOT / "docs/configuration.md").read_text() == made, "run: python docs/configuration.py > docs/configuration.md"
    for model in ALL:
        for name, field in model.model_fields.items():
            if field.description and not field.exclude:
                assert f"| `{name}` |" in made or f".{name}]]`" in made or f".{name}]`" in made or f".{name}.NAME]`" in made or f"### `{name}` of " in made
