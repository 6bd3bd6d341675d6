"""What describes a call that nobody made is read strictly, and says by its own name what is wrong."""

import re
from pathlib import Path

import pytest

from gateway.asked import NAMES, asked_of, with_principal
from gateway.call import Principal
from gateway.cli.explain import explain
from gateway.keyring import ANONYMOUS
from gateway.plan_report import OPERATIONS, Asked, AskedError
from gateway.store.memory import MemoryStore
from gateway.store.protocol import StoredKey

NOW_NS = 1_790_000_000_000_000_000


def test_a_call_of_which_nothing_is_said_is_anybodys() -> None:
    assert asked_of({}) == Asked()


def test_everything_that_may_be_said_is_read() -> None:
    """One that is not would be an option that does nothing."""
    given = dict(zip(NAMES, ("code", "a=b, tier=free", "s-1", "ann", "key_9", "blue", "chat", "true", "70000"), strict=True))
    assert asked_of({"key": given.pop("key")}).key == "key_9"
    asked = asked_of(given, {"messages": []})
    assert (asked.task, dict(asked.tags), asked.session, asked.user, asked.principal.team) == ("code", {"a": "b", "tier": "free"}, "s-1", "ann", "blue")
    assert (asked.operation, asked.stream, asked.size, asked.body) == ("chat", True, 70_000, {"messages": []})
    assert asked.principal.id == ANONYMOUS.id


def test_the_guide_names_everything_that_may_be_said() -> None:
    """Its table has options in the first column and parameters in the second."""
    page = (Path(__file__).parents[1] / "docs/journal.md").read_text(encoding="utf-8")
    table = page.partition("| option | parameter | means |")[2].partition("\n\n")[0]
    rows = [line.split("|") for line in table.splitlines() if line.startswith("| `")]
    assert {name for row in rows for name in re.findall(r"`(\w+)", row[2])} == set(NAMES)
    options = {option for parameter in explain.params for option in parameter.opts} - {"call_id", "--dry-run", "--route", "--config", "--json"}
    assert {name for row in rows for name in re.findall(r"`(--\w+)", row[1])} == options


@pytest.mark.parametrize(("name", "text", "message"), [
    ("tags", "x", "must be at most 20 pairs `name=value`, separated by commas"),
    ("tags", ",".join(f"t{n}=v" for n in range(21)), "must be at most 20 pairs `name=value`, separated by commas"),
    ("session", "", "must be 1 to 200 printable ASCII characters without spaces"),
    ("user", "x" * 201, "must be 1 to 200 printable ASCII characters without spaces"),
    ("task", "x" * 201, "must be at most 200 characters that can be shown"),
    ("key", "k" * 201, "must be at most 200 characters that can be shown"),
    ("team", "\x1b", "must be at most 200 characters that can be shown"),
    ("operation", "think", f"must be one of {', '.join(OPERATIONS)}"),
    ("stream", "True", "must be true or false"),
    ("size", "1e3", "must be a whole number of bytes"),
    ("size", "٣", "must be a whole number of bytes"),
    ("size", "9" * 13, "must be a whole number of bytes"),
])
def test_what_makes_no_sense_is_refused_by_its_name(name: str, text: str, message: str) -> None:
    with pytest.raises(AskedError) as caught:
        asked_of({name: text})
    assert (caught.value.name, str(caught.value)) == (name, message)


async def test_a_call_is_its_keys_with_all_that_the_key_says() -> None:
    """A session of a key is no session of another's, and a key may have a team, roles and routes."""
    store = MemoryStore("one")
    await store.keys.create(StoredKey("key_9", "ci", b"", "blue", "acme", ("admin",), ("fast*",), expires_ns=NOW_NS + 1))
    asked = await with_principal(asked_of({"key": "key_9", "session": "s"}), store.keys, NOW_NS)
    assert asked == Asked(Principal("key_9", "ci", "blue", "acme", ("admin",), ("fast*",)), session="s", key="key_9")


async def test_a_call_of_which_no_key_is_said_asks_for_none() -> None:
    assert await with_principal(Asked(session="s"), MemoryStore("one").keys, NOW_NS) == Asked(session="s")


@pytest.mark.parametrize(("key_id", "message"), [
    ("key_8", "must be the id of a key; `lockgate keys list` shows them"),
    ("old", "has expired or was revoked: no call can be made with it"),
    ("gone", "has expired or was revoked: no call can be made with it"),
])
async def test_a_key_that_nobody_can_call_with_is_refused(key_id: str, message: str) -> None:
    store = MemoryStore("one")
    await store.keys.create(StoredKey("old", "old", b"", expires_ns=NOW_NS))
    await store.keys.create(StoredKey("gone", "gone", b"", revoked_ns=1))
    with pytest.raises(AskedError) as caught:
        await with_principal(asked_of({"key": key_id}), store.keys, NOW_NS)
    assert (caught.value.name, str(caught.value)) == ("key", message)


def test_a_team_beside_a_key_is_refused() -> None:
    """It would be another one than the key's, and the plan one of a call that nobody can make."""
    with pytest.raises(AskedError) as caught:
        asked_of({"key": "key_9", "team": "blue"})
    assert (caught.value.name, str(caught.value)) == ("team", "is that of the key: say one of the two")
