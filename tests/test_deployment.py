"""What stands in the folders of a deployment is read whole or refused; what a team's file says can only take away."""

from pathlib import Path

import pytest

from gateway.config import Deployment
from gateway.deployment import read_deployment
from gateway.errors import ConfigError

TEAM = '[bundle]\nteam = "blue"\n'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("routes", "policies"):
        (tmp_path / name).mkdir()
    (tmp_path / "config.toml").write_text("")
    return tmp_path


def read(folder: Path, **files: str | bytes) -> Deployment:
    """Read the deployment with these files in `policies/`: `a_toml` is `a.toml`, `lists__x_txt` is `lists/x.txt`."""
    for name, text in files.items():
        path = folder / "policies" / name.replace("__", "/").replace("_", ".")
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_deployment(folder / "config.toml")


def problems(folder: Path, **files: str | bytes) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        read(folder, **files)
    return [str(problem) for problem in caught.value.problems]


def rule(text: str, name: str = "a") -> str:
    return f'[[rule]]\nid = "{name}"\n{text}\n'


def test_every_rule_of_a_teams_file_is_that_teams_and_no_other_file_is_concerned(folder):
    deployment = read(folder, a_toml=TEAM + rule('effect = "deny"') + rule('effect = "log"', "b"), b_toml=rule('effect = "allow"', "c"))
    assert [(each.id, each.team) for each in deployment.rules] == [("a", "blue"), ("b", "blue"), ("c", "")]


@pytest.mark.parametrize(("text", "place", "says"), [
    ('effect = "allow"', "5:rule[0].effect", "lets calls through"),
    ('effect = "deny"\nmatch = { teams = ["red"] }', "6:rule[0].match.teams", "says whose calls they are"),
    ('effect = "route"\nroute = { to = "large" }', "6:rule[0].route.to", "may not use"),
    ('effect = "set"\nset = { values = { max_tokens = 9 } }', "6:rule[0].set.values", "more than was asked for"),
    ('effect = "set"\n[rule.set.clamp]\nmax_tokens = { max = 9, min = 1 }', "7:rule[0].set.clamp.max_tokens.min", "more than was asked for"),
    ('effect = "set"\nset = { system = "Be brief.", system_mode = "replace" }', "6:rule[0].set.system_mode", "what the organisation has added"),
])
def test_a_teams_rule_that_could_widen_what_it_may_is_refused_at_its_place(folder, text, place, says):
    found = problems(folder, a_toml=TEAM + rule(text))
    assert len(found) == 1
    assert found[0].startswith(f"policies/a.toml:{place}: ")
    assert says in found[0]
    assert "a team's rules can only narrow (take it out, or move it to a file without `[bundle] team`)" in found[0]
    assert read(folder, a_toml=rule(text)).rules[0].team == ""


@pytest.mark.parametrize("mode", ["shadow", "off"])
def test_a_rule_that_changes_nothing_yet_must_be_narrow_already(folder, mode):
    """Who sets `mode` to enforce some day looks at one word, not at the whole rule."""
    assert len(problems(folder, a_toml=TEAM + rule(f'effect = "allow"\nmode = "{mode}"'))) == 1


@pytest.mark.parametrize("text", [
    'effect = "deny"\nwhen = "true"', 'effect = "require_approval"', 'effect = "log"\nlabel = "x"', 'effect = "redact"\nredact = { detectors = ["pii"] }',
    'effect = "limit"\nlimit = { requests = 1, per = "1m" }', 'effect = "route"\nroute = { only = ["one/*"], remove = ["two/*"] }',
    'effect = "set"\nset = { clamp = { max_tokens = { max = 9 } }, system = "Be brief." }', 'effect = "deny"\nserial = true\nphase = "response"',
])
def test_what_only_takes_away_is_a_teams_to_say(folder, text):
    assert read(folder, a_toml=TEAM + rule(text)).rules[0].team == "blue"


@pytest.mark.parametrize("key", ["team", "source"])
def test_whose_a_rule_is_and_where_it_stands_is_not_the_rules_to_say(folder, key):
    found = problems(folder, a_toml=rule(f'effect = "deny"\n{key} = "red"'))
    assert found == [f"policies/a.toml:4:rule[0].{key}: unknown key"]


def test_a_slip_near_a_key_of_the_loaders_is_not_led_to_it(folder):
    assert '"team"' not in problems(folder, a_toml=rule('effect = "deny"\nteams = "red"'))[0]


def test_the_defaults_are_those_of_the_one_file_that_has_them(folder):
    assert (read(folder).defaults.models, read(folder).defaults.tools, read(folder).defaults.application_tools) == ("allow", "deny", "allow")
    assert read(folder, b_toml='[defaults]\ntools = "allow"\n').defaults.tools == "allow"


def test_defaults_in_two_files_are_refused(folder):
    """Which of two holds would depend on the names of files."""
    found = problems(folder, a_toml="# first\n[defaults]\n", b_toml='[defaults]\ntools = "allow"\n', c_toml="[defaults]")
    assert found == [f"policies/{name}.toml:1:defaults: is given twice (first at policies/a.toml:2)" for name in "bc"]


def test_defaults_in_a_teams_file_are_refused(folder):
    assert problems(folder, a_toml=TEAM + "[defaults]\n", b_toml="[defaults]\n") == [
        ("policies/a.toml:3:defaults: is the organisation's to say: a team's rules can only narrow "
         "(take it out, or move it to a file without `[bundle] team`)")]


def test_a_list_is_an_item_a_line_without_comments_and_blanks(folder):
    text = "\ufeff# who may\nalice\r\n  bob  # since May\n\n\t\nC#\nalice\n#eve\nspäße\na b"
    lists = read(folder, lists__people_txt=text, lists__none_txt="# nobody").lists
    assert lists == {"people": frozenset({"alice", "bob", "C#", "späße", "a b"}), "none": frozenset()}


def test_a_deployment_without_lists_has_none(folder):
    assert read(folder).lists == {}


@pytest.mark.parametrize(("content", "says"), [
    (b"\xff\xfe", "not UTF-8 text: byte 0"), (b"x\n" * 100_000, "has 100001 lines, and a list has 100000 at most"),
    (b"x" * (10 * 1024 * 1024 + 1), "is larger than 10485760 bytes")], ids=["encoding", "lines", "bytes"])
def test_a_list_that_cannot_be_used_is_named(folder, content, says):
    found = problems(folder, lists__big_txt=content)
    assert len(found) == 1
    assert found[0].startswith("policies/lists/big.txt: ")
    assert says in found[0]


def test_lists_are_limited_together(folder):
    half = b"x" * (6 * 1024 * 1024)
    found = problems(folder, lists__a_txt=half, lists__b_txt=half)
    assert len(found) == 1
    assert found[0].startswith("policies/lists/b.txt: ")
    assert found[0].endswith("is larger than 4194304 bytes (all lists together may have 10485760 bytes)")


def test_lists_that_are_no_folder_are_not_taken_for_none(folder):
    assert problems(folder, lists="x") == ["policies/lists: cannot be read: Not a directory (make it a folder of lists, or remove it)"]


def test_what_is_not_read_is_told_and_lists_are_read(folder):
    (folder / "policies/lists/deeper").mkdir(parents=True)
    (folder / "policies/team").mkdir()
    (folder / "routes/lists").mkdir()
    deployment = read(folder, lists__a_txt="x", lists__b_csv="x", **{"lists__.hidden": "x"}, notes_md="x", a_cases_toml="")
    assert deployment.unread == ("routes/lists", "policies/notes.md", "policies/team", "policies/lists/b.csv", "policies/lists/deeper")


def test_every_problem_of_every_file_is_told_at_once(folder):
    found = problems(folder, a_toml="x = 1", b_toml=TEAM + rule('effect = "allow"'), lists__x_txt=b"\xff")
    assert [line.split(":")[0] for line in found] == ["policies/a.toml", "policies/lists/x.txt", "policies/b.toml"]
