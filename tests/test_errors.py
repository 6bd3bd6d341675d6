"""One error family, one table of codes, one page that documents it."""

import pickle
from pathlib import Path

import pytest

from gateway import errors
from gateway.errors import CODES, CallError, ConfigError, Problem
from gateway.secret import Secret

PAGE = Path(__file__).parent.parent / "docs/errors.md"
# Those with a code of their own: others only say more of one.
CALL_ERRORS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, CallError) and "code" in vars(kind)]


def row(kind: type[CallError]) -> str:
    rule = CODES[kind.code]
    status = "the provider's" if kind.code == "upstream_rejected" else rule.status
    return f"| `{kind.code}` | {status} | {str(rule.should_retry).lower()} | {' '.join((kind.__doc__ or '').split())} |"


def test_every_code_has_one_class_and_every_class_a_code():
    assert sorted(kind.code for kind in CALL_ERRORS) == sorted(CODES)


def test_the_page_documents_every_code():
    rows = [line for line in PAGE.read_text().splitlines() if line.startswith("| `")]
    assert rows == [row(kind) for kind in CALL_ERRORS], "docs/errors.md must have these rows:\n" + "\n".join(map(row, CALL_ERRORS))


@pytest.mark.parametrize("kind", CALL_ERRORS)
def test_a_class_says_what_happened_and_what_it_means(kind):
    assert len(kind.__doc__ or "") > 20


def test_the_gateway_asks_for_a_retry_only_where_trying_again_can_help():
    """The gateway has already retried what is worth it; an SDK that tries again on top makes an outage worse."""
    assert {code for code, rule in CODES.items() if rule.should_retry} == {
        "approval_pending", "budget_busy", "identity_unavailable", "overloaded", "rate_limited", "store_unavailable", "upstream_busy"}


def test_a_problem_prints_as_editors_jump_to_it():
    problem = Problem("routes/a.toml", 12, "route[0].name", "must be a string", "did you mean `names`?")
    assert str(problem) == "routes/a.toml:12:route[0].name: must be a string (did you mean `names`?)"
    assert str(Problem("config.toml", None, "", "no such file")) == "config.toml: no such file"
    assert ConfigError([problem, problem]).problems == (problem, problem)


def test_a_secret_is_not_pickled_and_not_printed():
    secret = Secret("sk-very-secret")
    assert "sk-very-secret" not in f"{secret} {secret!r} {[secret]}"
    with pytest.raises(TypeError):
        pickle.dumps(secret)
    assert secret == Secret("sk-very-secret")
    assert secret != Secret("sk-other")
    assert secret != "sk-very-secret"
    assert len({secret, Secret("sk-very-secret")}) == 1
