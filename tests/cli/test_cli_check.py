"""`lockgate check` says everything that is wrong, then everything that deserves a look, and its exit code can be relied on."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from gateway.cli.check import check
from gateway.cli.init import lay


@pytest.fixture
def folder(tmp_path, monkeypatch):
    lay(tmp_path / "d")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "d"


def run(*arguments: str) -> Result:
    return CliRunner().invoke(check, ["--config", "d/config.toml", *arguments])


def warnings_of(folder: Path, old: str, new: str) -> list[str]:
    """The warnings after a change in config.toml."""
    path = folder / "config.toml"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))
    done = run()
    assert done.exit_code == 0, done.output
    return [line for line in done.stderr.splitlines() if line.startswith("warning: ")]


@pytest.mark.usefixtures("folder")
def test_a_new_deployment_is_fine_without_a_warning():
    done = run()
    assert (done.exit_code, done.stderr) == (0, "")
    assert done.stdout.startswith("ok: 1 provider, 3 routes, ")
    assert ", bundle sha256:" in done.stdout


@pytest.mark.usefixtures("folder")
def test_json_says_the_same():
    said = json.loads(run("--json").stdout)
    assert (said["ok"], said["problems"], said["warnings"], said["loaded"]["routes"]) == (True, [], [], 3)


def test_every_problem_is_a_line_that_an_editor_can_jump_to(folder):
    (folder / "routes/simulator.toml").write_text("[[route]]\nnam = 'x'\n")
    done = run()
    assert done.exit_code == 1
    assert done.stdout == ""
    assert all(line.startswith("error: ") for line in done.stderr.splitlines())
    assert [line.split(" ")[1] for line in done.stderr.splitlines()] == [
        "d/routes/simulator.toml:1:route[0].name:", "d/routes/simulator.toml:1:route[0].targets:",
        "d/routes/simulator.toml:2:route[0].nam:"]
    assert done.stderr.endswith('unknown key (did you mean "name"?)\n')


def test_what_a_file_says_does_not_steer_a_terminal(folder):
    """Rules are passed around, and a problem quotes the keys of its file."""
    (folder / "policies/theirs.toml").write_text('"\\u001b[2J\\u009b1A\\u202e" = 1\n')
    done = run()
    assert done.exit_code == 1
    assert "theirs.toml" in done.stderr
    assert all(line.isprintable() for line in done.stderr.splitlines())


def test_problems_as_json_have_their_parts(folder):
    (folder / "config.toml").write_text("[server]\nprot = 1")
    done = run("--json")
    said = json.loads(done.stdout)
    assert (done.exit_code, said["ok"], said["loaded"]) == (1, False, None)
    assert said["problems"] == [{"file": "d/config.toml", "line": 2, "key": "server.prot", "message": "unknown key",
                                 "hint": 'did you mean "port"?'}]


def test_a_configuration_that_is_not_there_is_a_problem_and_not_a_traceback(folder):
    (folder / "config.toml").unlink()
    done = run()
    assert done.exit_code == 1
    assert "cannot be read: No such file or directory (`lockgate init DIR` makes one, and --config names another)" in done.stderr


@pytest.mark.parametrize(("old", "new", "expected"), [
    ('base_url = "http://127.0.0.1:9090/v1"', 'base_url = "http://models.example:9090/v1"', "providers.simulator.base_url: not encrypted"),
    ("required = true", "required = false", "auth.required: everybody who reaches the port may call"),
    ('# headers = { x-team = "search" }', 'headers = { authorization = "Bearer abc" }',
     "headers.authorization: looks like a secret in plain sight"),
    ('# headers = { x-api-key = "env:OTLP_KEY" }', 'headers = { x-api-key = "abc" }',
     "otlp.headers.x-api-key: looks like a secret in plain sight"),
    ('[prices."simulator/sim-small"]', '[prices."simulator/sim-smal"]', 'prices."simulator/sim-smal": no route has this target'),
    ('[prices."simulator/sim-small"]', '[prices."simulator/sim-smal"]', "the price of simulator/sim-small is not known"),
    ('[models."simulator/sim-model"]', '[models."simulator/sim-modle"]', 'models."simulator/sim-modle": no route has this target'),
    ("[server]", '[budgets.b]\nscope = "all"\nlimit = "1"\nof = ["every"]\n[server]', "budgets.b.of: there is no such subject (it is `all`)"),
])
def test_what_works_and_deserves_a_look_is_a_warning_with_its_place(folder, old, new, expected):
    found = warnings_of(folder, old, new)
    assert [line for line in found if expected in line]
    assert all("abc" not in line for line in found)


def line_of(path: Path, text: str) -> int:
    """The number of the first line that begins with a text."""
    return next(number for number, line in enumerate(path.read_text().splitlines(), 1) if line.startswith(text))


def test_an_unknown_price_is_placed_at_the_target(folder):
    line = line_of(folder / "routes/simulator.toml", 'model = "sim-small"') - 2
    found = warnings_of(folder, '[prices."simulator/sim-small"]', '[prices."simulator/sim-smal"]')
    assert [each for each in found if each.startswith(f"warning: d/routes/simulator.toml:{line}:route[1].targets[1]: the price of")]


@pytest.mark.parametrize(("budget", "unmade"), [("", False), ('[budgets.b]\nscope = "team"\nlimit = "1"\n', True)])
def test_a_mirror_and_a_classifier_without_a_price_are_said_to_be_left_out_where_a_budget_binds(folder, budget, unmade):
    routes = folder / "routes/simulator.toml"
    routes.write_text(routes.read_text() + """
[[route]]
name = "copied"
[[route.targets]]
provider = "simulator"
model = "sim-model"
[[route.rules]]
when = 'task == "a"'
targets = ["*"]
[[route.mirrors]]
provider = "simulator"
model = "unpriced"
[route.classifier]
provider = "simulator"
model = "unpriced-too"
tasks = ["a", "b"]
default = "a"
""")
    found = [line for line in warnings_of(folder, "[server]", f"{budget}[server]") if "the price of" in line]
    assert [("mirrors[0]" in line, "classifier" in line) for line in found] == [(True, False), (False, True)]
    assert all(("it gets none" in line) is unmade for line in found)


def test_secrets_that_others_may_read_or_guess_are_warned_of(folder):
    (folder / "secrets/admin-token").write_text("admin\n")
    (folder / "secrets/pepper").chmod(0o640)
    token, pepper = (line_of(folder / "config.toml", f"{key} = ") for key in ("token", "pepper"))
    short, readable = warnings_of(folder, "[server]", "[server]")
    assert short.startswith(f"warning: d/config.toml:{token}:admin.token: shorter than 16 characters")
    assert readable.startswith(f"warning: d/config.toml:{pepper}:auth.pepper: file:secrets/pepper can be read by others")


def test_a_deployment_without_routes_is_warned_of(folder):
    (folder / "routes/simulator.toml").unlink()
    assert [line for line in run().stderr.splitlines() if "there is no route" in line]


def test_the_budgets_are_counted(folder):
    (folder / "config.toml").write_text((folder / "config.toml").read_text() + '\n[budgets.b]\nscope = "team"\nlimit = "1"\n')
    done = run()
    assert (done.exit_code, done.stderr) == (0, "")
    assert ", 1 budget, bundle " in done.stdout
    assert json.loads(run("--json").stdout)["loaded"]["budgets"] == 1


@pytest.mark.parametrize(("budget", "refused"), [
    ('limit = "1"', True), ('soft = "1"\nlimits = { a = "1" }', True), ('soft = "1"', False)])
def test_a_target_without_a_price_is_said_to_be_refused_where_a_budget_binds(folder, budget, refused):
    unpriced = '[prices."simulator/sim-small"]'
    found = warnings_of(folder, unpriced, f'[budgets.b]\nscope = "team"\n{budget}\n' + unpriced.replace("small", "smal"))
    (said,) = [line for line in found if "the price of" in line]
    assert ("and a call that a budget binds is refused" in said) is refused
