"""The guide to identities can be followed: its settings are valid, its commands and endpoints are there, and its numbers are those in force."""

import re
from pathlib import Path
from typing import Any, get_args

import pytest
from click.testing import CliRunner
from pydantic import ValidationError

from gateway.cli import cli
from gateway.cli.people import people
from gateway.config import Config
from gateway.deployment import read_deployment
from gateway.errors import CODES, ConfigError
from gateway.http.people_desk import PeopleDesk
from gateway.identity.actor import PERMISSIONS, Permission
from gateway.identity.guesses import EVERYWHERE
from gateway.identity.passwords import LONGEST, SHORTEST
from gateway.people_config import JwtConfig, LoginConfig, OidcConfig
from gateway.snapshot import compile_snapshot, keep_fixed, needing_restart
from gateway.store.people import MOST_LOGINS

TEXT = (Path(__file__).parents[1] / "docs" / "identities.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```toml\n# config.toml\n(.*?)```", TEXT, re.DOTALL)


def compiled(folder: Path, config: str) -> Any:
    for name in ("policies", "routes", "adapters"):
        (folder / name).mkdir(exist_ok=True)
    (folder / "config.toml").write_text(config)
    return compile_snapshot(read_deployment(folder / "config.toml"), {"OIDC_SECRET": "s3cret", "PEPPER": "p" * 40})


@pytest.mark.parametrize("block", BLOCKS)
def test_the_settings_of_the_guide_are_taken(tmp_path, block):
    auth = "" if "[auth" in block else '[auth]\npepper = "env:PEPPER"\n'
    text = auth + block if auth else block.replace("[auth.jwt", '[auth]\npepper = "env:PEPPER"\n[auth.jwt', 1)
    snapshot = compiled(tmp_path, text)
    assert isinstance(snapshot.config, Config)
    assert (snapshot.oidc_secret is not None) == ("[oidc]" in block)


def test_every_command_and_every_endpoint_of_accounts_stands_in_the_guide():
    for name in people.commands:
        assert f"`lockgate people {name} " in TEXT or f"`lockgate people {name}`" in TEXT, name
    written = {(method, path) for method, path in re.findall(r"`(GET|POST) (/-/people[^`]*)`", TEXT)}
    endpoints = PeopleDesk(None, None, None).endpoints  # type: ignore[arg-type] # the table of paths needs none of them
    assert written == set(endpoints)


def test_the_commands_of_the_guide_have_these_options():
    for line in re.findall(r"^    (lockgate [^#\n]+)", TEXT, re.MULTILINE):
        _, group, command, *rest = line.split()
        shown = CliRunner().invoke(cli, [group, command, "--help"]).output
        assert [option for option in rest if option.startswith("--") and option not in shown] == []


def test_permissions_are_explained_in_their_order_and_roles_of_providers_map_to_them():
    assert re.findall(r"^\| `(\w+)` \| ", TEXT, re.MULTILINE)[:4] == list(PERMISSIONS) == list(get_args(Permission))


def test_the_numbers_are_those_in_force():
    login = LoginConfig()
    assert (login.attempts, login.locked, login.idle, login.longest, MOST_LOGINS) == (5, 900, 3600, 43200, 20)
    assert f"{SHORTEST} to {LONGEST} characters" in TEXT
    assert f"{login.attempts * EVERYWHERE} in a row, from wherever" in TEXT
    assert {"browser_refused", "identity_unavailable", "unauthenticated"} <= set(CODES)


@pytest.mark.parametrize(("model", "changed", "why"), [
    (LoginConfig, {"proxies": ["proxy.example"]}, "no address"), (LoginConfig, {"proxies": ["0.0.0.0/0"]}, "everybody"),
    (LoginConfig, {"proxies": ["10.0.0.1/8"]}, "no address"), (LoginConfig, {"proxies": ["::/0"]}, "everybody"), (LoginConfig, {"proxies": [1]}, "string"),
    (OidcConfig, {"permissions": {}}, "at least 1"), (OidcConfig, {"scopes": ["email"]}, "openid"), (OidcConfig, {"issuer": "http://id.example"}, "TLS"),
    (OidcConfig, {"permissions": {"x": "root"}}, "view"), (OidcConfig, {"client_secret": "plain"}, "reference"),
    (JwtConfig, {"jwks_url": "http://id.example/keys"}, "TLS"), (JwtConfig, {"jwks_file": "keys.json"}, "jwks_url"), (JwtConfig, {"jwks_url": None}, "jwks_url"),
    (JwtConfig, {"algorithms": ["HS256"]}, "RS256"), (JwtConfig, {"algorithms": ["none"]}, "RS256"), (JwtConfig, {"audience": []}, "at least 1"),
    (JwtConfig, {"algorithms": []}, "at least 1"),
])
def test_settings_that_would_let_in_anybody_or_nobody_are_refused(model, changed, why):
    usual: dict[type, dict[str, Any]] = {
        LoginConfig: {"proxies": ["10.0.0.0/8", "10.0.0.1", "fd00::/8"]},
        OidcConfig: {"issuer": "https://id.example", "client_id": "x", "permissions": {"a": "view"}},
        JwtConfig: {"issuer": "https://id.example", "audience": ["x"], "jwks_url": "https://id.example/keys"}}
    assert model.model_validate(usual[model])
    with pytest.raises(ValidationError, match=why):
        model.model_validate({**usual[model], **changed})


def test_tokens_where_nobody_is_asked_for_one_and_keys_that_cannot_be_read_are_found_at_the_start(tmp_path):
    issuer = '[auth.jwt.a]\nissuer = "https://id.example"\naudience = ["x"]\njwks_file = "keys.json"\n'
    with pytest.raises(ConfigError, match=r"nobody is asked for a token.*(\n.*)*keys\.json"):
        compiled(tmp_path, f"[auth]\nrequired = false\n{issuer}")
    (tmp_path / "keys.json").write_text('{"keys": [{"kty": "oct", "k": "AAAA"}]}')
    with pytest.raises(ConfigError, match="none that a signature could be checked with"):
        compiled(tmp_path, f'[auth]\npepper = "env:PEPPER"\n{issuer}')


def test_a_reload_says_what_needs_a_restart_and_keeps_it_as_it_is(tmp_path):
    oidc = BLOCKS[0].partition("[oidc]")[2]
    auth = '[auth]\npepper = "env:PEPPER"\n'
    old = compiled(tmp_path, auth)
    new = compiled(tmp_path, f'{auth}[login]\nidle = "2h"\n[oidc]{oidc}')
    assert set(needing_restart(old.config, new.config)) == {"login.idle", "oidc"}
    kept, secrets = keep_fixed(old, new)
    assert (kept.config.login, kept.config.oidc, kept.oidc_secret, secrets) == (old.config.login, None, None, ("oidc.client_secret",))
