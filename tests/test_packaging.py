"""What is published is what was tested: the wheel is built, looked into, installed into an empty environment and put to work there."""

import json
import os
import selectors
import subprocess
import sys
import sysconfig
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import gateway

REPOSITORY = Path(__file__).parents[1]
DEADLINE_S = 60


def run(*command: str | Path, cwd: Path) -> str:
    """Run a command to its end, in an environment that knows nothing of this checkout; its standard output."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(command, cwd=cwd, env=environ, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout, built without network by the build backend that is installed."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--quiet", "--no-index", "--no-deps", "--no-build-isolation",
        "--wheel-dir", folder, REPOSITORY, cwd=folder)
    [built] = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` folder of an environment with nothing in it but the wheel.

    Its dependencies are not downloaded again: a path file lends it those of the environment that runs the tests. A path file within
    the lent folder is not read (`site` reads them in the environment's own folders alone), so an editable installation of this
    checkout does not come along.
    """
    folder = tmp_path_factory.mktemp("installed")
    run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder)
    python = folder / "bin" / "python"
    run(sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python, "install", "--quiet", "--no-index", "--no-deps",
        wheel, cwd=folder)
    own = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip())
    lent = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (own / "dependencies-of-the-tests.pth").write_text("\n".join(sorted(lent)) + "\n")
    return folder / "bin"


def test_the_wheel_holds_the_package_the_shipped_folders_and_nothing_else(wheel):
    """A file that starts with Python (`.pth`) or that nobody expects is how packages have been poisoned."""
    sources = {f"gateway/{path.relative_to(REPOSITORY / 'gateway').as_posix()}"
               for pattern in ("*.py", "py.typed") for path in (REPOSITORY / "gateway").rglob(pattern)}
    sources |= {path.relative_to(REPOSITORY).as_posix() for path in (REPOSITORY / "gateway/page").rglob("*") if path.is_file()}
    shipped = {"gateway/_shipped/config.example.toml"}
    for folder, patterns in {"policies": ["*.toml", "*.md"], "routes": ["*.toml"], "adapters": ["*.py", "*.md"]}.items():
        shipped |= {f"gateway/_shipped/{path.relative_to(REPOSITORY).as_posix()}"
                    for pattern in patterns for path in (REPOSITORY / folder).rglob(pattern)}
    about = {f"lockgate-{gateway.__version__}.dist-info/{name}"
             for name in ("METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE")}
    with zipfile.ZipFile(wheel) as archive:
        assert set(archive.namelist()) == sources | shipped | about


def test_the_distribution_and_the_package_agree_on_the_version(wheel):
    assert wheel.name == f"lockgate-{gateway.__version__}-py3-none-any.whl"


def test_what_is_imported_is_what_was_installed(installed, tmp_path):
    where = run(installed / "python", "-c", "import gateway; print(gateway.__file__)", cwd=tmp_path)
    assert Path(where.strip()).is_relative_to(installed.parent)


@pytest.mark.parametrize("unwanted", ["gateway.cli", "gateway.app", "aiohttp", "click", "adapters", "opentelemetry", "pydantic"])
def test_importing_the_package_loads_neither_the_command_line_nor_an_adapter(installed, tmp_path, unwanted):
    """A host process pays for what it uses."""
    code = f"import gateway, sys; print(any(name.split('.')[0] == 'adapters' or name == {unwanted!r} for name in sys.modules))"
    assert run(installed / "python", "-c", code, cwd=tmp_path) == "False\n"


def test_the_command_says_its_name_and_version(installed, tmp_path):
    assert gateway.__version__ in run(installed / "lockgate", "--version", cwd=tmp_path)


class Server:
    """A `lockgate` command that runs until it is told to stop; `url` is where it says it is, once it says that it is ready."""

    def __init__(self, *command: str | Path, cwd: Path) -> None:
        environ = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        self.errors = cwd / f"{command[1]}.log"
        with self.errors.open("wb") as errors:
            self.process = subprocess.Popen(command, cwd=cwd, env=environ, stdout=subprocess.PIPE, stderr=errors)
        self.url = ""

    def wait_until_ready(self) -> None:
        assert self.process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            assert selector.select(DEADLINE_S), "it says nothing"
        line = self.process.stdout.readline().decode()
        assert " ready on http://127.0.0.1:" in line, self.errors.read_text()
        self.url = line.split(" ready on ")[1].strip()

    def stop(self) -> int:
        """End it, also a second time; its exit code."""
        assert self.process.stdout is not None
        self.process.terminate()
        try:
            return self.process.wait(DEADLINE_S)
        finally:
            self.process.kill()
            self.process.wait()
            self.process.stdout.close()


@pytest.fixture
def serve(installed: Path) -> Iterator[Callable[..., Server]]:
    running: list[Server] = []

    def start(*arguments: str | Path, cwd: Path) -> Server:
        server = Server(installed / "lockgate", *arguments, cwd=cwd)
        running.append(server)
        server.wait_until_ready()
        return server

    yield start
    for server in reversed(running):
        server.stop()


def post(url: str, key: str, body: dict[str, Any]) -> tuple[int, dict[str, str], dict[str, Any]]:
    """Status, headers with lower-case names and body of the answer, an error's too."""
    request = urllib.request.Request(url, json.dumps(body).encode(), {"authorization": f"Bearer {key}", "content-type": "application/json"})  # noqa: S310 - our own server
    try:
        with urllib.request.urlopen(request, timeout=DEADLINE_S) as answer:  # noqa: S310 - the same
            return answer.status, {name.lower(): value for name, value in answer.headers.items()}, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        with error:
            return error.code, {name.lower(): value for name, value in error.headers.items()}, json.loads(error.read())


def test_an_installed_wheel_makes_a_deployment_and_serves_a_call(installed, serve, tmp_path):
    folder = tmp_path / "deployment"
    lockgate = installed / "lockgate"
    run(lockgate, "init", folder, cwd=tmp_path)
    simulator = serve("simulate", "--port", "0", cwd=tmp_path)
    config = folder / "config.toml"
    text = config.read_text()
    assert "http://127.0.0.1:9090/v1" in text
    config.write_text(text.replace("http://127.0.0.1:9090/v1", simulator.url))  # a free port, where the shipped file has a fixed one
    run(lockgate, "check", "--config", config, cwd=tmp_path)
    key = json.loads(run(lockgate, "keys", "create", "--config", config, "--name", "first", "--json", cwd=tmp_path))["key"]

    server = serve("serve", "--config", config, "--port", "0", cwd=tmp_path)
    body = {"model": "demo-model", "messages": [{"role": "user", "content": "Hello"}]}
    status, headers, answer = post(f"{server.url}/v1/chat/completions", key, body)
    assert (status, answer["object"], headers["x-lockgate-decision"]) == (200, "chat.completion", "allow")
    assert post(f"{server.url}/v1/chat/completions", f"{key}x", body)[0] == 401
    with urllib.request.urlopen(f"{server.url}/metrics", timeout=DEADLINE_S) as metrics:  # noqa: S310 - our own server
        assert 'lockgate_calls_total{code="",outcome="completed",route="demo-model",team=""} 1.0' in metrics.read().decode()
    assert server.stop() == 0

    [call] = json.loads(run(lockgate, "calls", "tail", "--config", config, "--json", cwd=tmp_path))
    assert (call["id"], call["outcome"]) == (headers["x-lockgate-call"], "completed")
    run(lockgate, "doctor", "--config", config, cwd=tmp_path)
