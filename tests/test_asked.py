"""What describes a call that nobody made is read strictly, and says by its own name what is wrong."""

import pytest

from gateway.asked import NAMES, AskedError, asked_of
from gateway.keyring import ANONYMOUS
from gateway.plan_report import OPERATIONS, Asked


def test_a_call_of_which_nothing_is_said_is_anybodys() -> None:
    assert asked_of({}) == Asked()


def test_everything_that_may_be_said_is_read() -> None:
    """One that is not would be an option that does nothing."""
    given = dict(zip(NAMES, ("code", "a=b, tier=free", "s-1", "ann", "blue", "chat", "true", "70000"), strict=True))
    asked = asked_of(given, {"messages": []})
    assert (asked.task, dict(asked.tags), asked.session, asked.user, asked.principal.team) == ("code", {"a": "b", "tier": "free"}, "s-1", "ann", "blue")
    assert (asked.operation, asked.stream, asked.size, asked.body) == ("chat", True, 70_000, {"messages": []})
    assert asked.principal.id == ANONYMOUS.id


@pytest.mark.parametrize(("name", "text", "message"), [
    ("tags", "x", "must be at most 20 pairs `name=value`, separated by commas"),
    ("tags", ",".join(f"t{n}=v" for n in range(21)), "must be at most 20 pairs `name=value`, separated by commas"),
    ("session", "", "must be 1 to 200 printable ASCII characters without spaces"),
    ("user", "x" * 201, "must be 1 to 200 printable ASCII characters without spaces"),
    ("task", "x" * 201, "must be at most 200 characters that can be shown"),
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
