"""`lockgate people` from a terminal: accounts are made and changed, passwords and tokens are shown nowhere but where they are given."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from gateway.cli.init import init
from gateway.cli.keys import keys
from gateway.cli.people import people
from gateway.clock import SystemClock, SystemIds
from gateway.errors import InvalidRequest, StoreError, TooManyLogins, Unauthenticated
from gateway.identity.accounts import digest
from gateway.identity.guesses import Came
from gateway.identity.logins import Logins
from gateway.people_config import LoginConfig
from gateway.secret import Secret
from gateway.store.sqlite import SqliteStore

GOOD = "correct horse battery"
PEPPER = Secret("pepper-of-this-test")


@pytest.fixture
def config(tmp_path: Path) -> Path:
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "pepper").write_text("pepper-of-this-test\n")
    for folder in ("policies", "routes", "adapters"):
        (tmp_path / folder).mkdir()
    file = tmp_path / "config.toml"
    file.write_text('[auth]\npepper = "file:secrets/pepper"\n')
    return file


def run(config: Path, *arguments: str, given: str | None = None) -> Result:
    return CliRunner().invoke(people, [*arguments, "--config", str(config)], input=given)


def told(config: Path, *arguments: str, given: str | None = None) -> Any:
    result = run(config, *arguments, "--json", given=given)
    assert result.exit_code == 0, (result.output, result.exception)
    return json.loads(result.stdout)


def create(config: Path, *arguments: str) -> Any:
    return told(config, "create", "ada", "--permission", "approve", "--password-stdin", *arguments, given=f"{GOOD}\n")["person"]


class Silent:
    """A log that nobody reads."""

    def event(self, *_args: object, **_fields: object) -> None:
        """Nothing."""


def logged_in(config: Path, **given: str) -> str:
    """Who a gateway on this database would take somebody for."""
    return asyncio.run(_logged_in(config, given))


async def _logged_in(config: Path, given: dict[str, str]) -> str:
    store, clock = SqliteStore(config.with_name("lockgate.db"), "tests"), SystemClock()
    await store.start(now_ns=clock.now_ns())
    try:
        logins = Logins(store.people, LoginConfig(), PEPPER, None, clock, SystemIds(clock), Silent())
        try:
            opened = await (logins.with_token(given["token"], "") if "token" in given else logins.with_password("ada", given["password"], Came("")))
        except (Unauthenticated, TooManyLogins) as error:
            return error.code
        return opened.actor.id
    finally:
        await store.close()


def test_an_account_is_made_with_a_password_from_a_prompt_or_a_pipe_and_it_is_shown_nowhere(config):
    result = run(config, "create", "bob", "--permission", "view", given=f"{GOOD}\n{GOOD}\n")
    assert result.exit_code == 0, result.output
    assert "bob can log in" in result.stdout
    made = create(config, "--role", "finance", "--role", "legal", "--team", "blue", "--name", "Ada", "--email", "ada@example.org")
    assert made == {"id": "ada", "name": "Ada", "permission": "approve", "roles": ["finance", "legal"], "teams": ["blue"], "email": "ada@example.org",
                    "state": "active", "password": True, "token": False, "oidc": False, "created": made["created"], "disabled": None}
    listed = run(config, "list").output
    assert [line.split()[0] for line in listed.splitlines()] == ["id", "ada", "bob"]
    stored = b"".join(file.read_bytes() for file in config.parent.glob("lockgate.db*"))
    assert GOOD.encode() not in stored
    assert GOOD not in listed + result.output


def test_where_the_input_ends_before_a_password_it_is_said(config):
    result = run(config, "create", "ada", "--permission", "view", given="")
    assert (result.exit_code, "the input ended before a password came" in result.output) == (1, True), result.output


def test_an_account_without_a_password_is_told_what_is_next(config):
    result = run(config, "create", "ada", "--permission", "view", "--no-password")
    assert result.output == "ada cannot log in yet: `lockgate people password` or `token` is next.\n"


@pytest.mark.parametrize(("arguments", "given", "error"), [
    (("create", "Ada", "--permission", "view", "--no-password"), None, InvalidRequest),
    (("create", "admin", "--permission", "view", "--no-password"), None, InvalidRequest),
    (("create", "ada", "--permission", "root", "--no-password"), None, SystemExit),
    (("create", "ada", "--no-password"), None, SystemExit),
    (("create", "ada", "--permission", "view", "--password-stdin"), "short\n", InvalidRequest),
    (("create", "ada", "--permission", "view", "--password-stdin"), "", InvalidRequest),
    (("create", "ada", "--permission", "view", "--password-stdin"), "x" * 5000, InvalidRequest),
    (("create", "ada", "--permission", "view", "--no-password", "--role", ""), None, InvalidRequest),
    (("create", "ada", "--permission", "view", "--no-password", "--name", "\u202eada"), None, InvalidRequest),
    (("create", "ada", "--permission", "view"), f"{GOOD}\nanother one entirely\n", SystemExit),
])
def test_an_account_that_cannot_be_is_not_made(config, arguments, given, error):
    result = run(config, *arguments, given=given)
    assert result.exit_code != 0
    assert isinstance(result.exception, error)
    assert told(config, "list") == []


def test_an_id_is_one_person_s(config):
    create(config)
    assert isinstance(run(config, "create", "ada", "--permission", "admin", "--no-password").exception, StoreError)
    assert told(config, "list")[0]["permission"] == "approve"


def test_what_is_changed_is_changed_and_the_rest_stays_and_all_of_it_is_on_record(config):
    create(config, "--role", "finance", "--team", "blue")
    changed = told(config, "change", "ada", "--permission", "operate", "--team", "", "--author", "grace")["person"]
    assert (changed["permission"], changed["roles"], changed["teams"]) == ("operate", ["finance"], [])
    assert told(config, "disable", "ada")["person"]["state"] == "disabled"
    told(config, "disable", "ada")  # a second time changes nothing
    assert told(config, "enable", "ada")["person"]["state"] == "active"
    shown = told(config, "show", "ada")
    assert [(each["what"], each["detail"]) for each in shown["history"]] == [
        ("enabled", {}), ("disabled", {}), ("changed", {"permission": "operate", "teams": []}),
        ("created", {"name": "ada", "permission": "approve", "roles": ["finance"], "teams": ["blue"], "email": ""})]
    assert shown["history"][2]["author"] == "grace"
    assert "permission: operate" in run(config, "show", "ada").output
    assert run(config, "change", "ada").exit_code == 2


@pytest.mark.parametrize("arguments", [("show",), ("change", "--name", "x"), ("token",), ("disable",), ("enable",), ("password", "--password-stdin")])
def test_of_nobody_there_is_no_account(config, arguments):
    command, *rest = arguments
    result = run(config, command, "nobody", *rest, given=f"{GOOD}\n")
    assert result.exit_code == 1
    assert "there is no account 'nobody'" in result.output


def test_what_is_made_here_is_good_in_a_gateway(config):
    create(config)
    assert logged_in(config, password=GOOD) == "ada"
    result = run(config, "token", "ada")
    text = result.stdout.strip()
    assert "only time" in result.stderr
    assert logged_in(config, token=text) == "ada"
    assert logged_in(config, token=told(config, "token", "ada")["token"]) == "ada"
    assert logged_in(config, token=text) == "unauthenticated"  # the old one stopped
    told(config, "password", "ada", "--password-stdin", given="another good password\r\n")
    assert (logged_in(config, password=GOOD), logged_in(config, password="another good password")) == ("unauthenticated", "ada")
    for _ in range(5):
        assert logged_in(config, password="wrong") == "unauthenticated"
    assert logged_in(config, password="another good password") == "too_many_logins"
    told(config, "enable", "ada")
    assert logged_in(config, password="another good password") == "ada"
    told(config, "disable", "ada")
    assert logged_in(config, password="another good password") == "unauthenticated"


def test_whose_a_key_is_stands_beside_it(config):
    create(config)
    made = CliRunner().invoke(keys, ["create", "--name", "ci", "--owner", "ada", "--config", str(config), "--json"])
    assert json.loads(made.stdout)["owner"] == "ada"
    refused = CliRunner().invoke(keys, ["create", "--name", "ci", "--owner", "nobody", "--config", str(config)])
    assert (refused.exit_code, "there is no account 'nobody'" in refused.output) == (2, True)


def test_without_keys_there_need_be_no_pepper(config):
    config.write_text("[auth]\nrequired = false\n")
    (config.parent / "secrets" / "pepper").unlink()
    create(config)
    assert told(config, "token", "ada")["token"].startswith("lgp_")
    assert told(config, "enable", "ada")["person"]["state"] == "active"
    assert digest(Secret(""), "x") != digest(PEPPER, "x")


def test_init_says_how_the_first_person_is_made(tmp_path):
    result = CliRunner().invoke(init, [str(tmp_path / "made")])
    assert "lockgate people create ada --permission admin" in result.output
