"""The shipped OpenAI adapter and dialect, loaded by path as the gateway loads them, and calls to give them."""

import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx2
import openai
import pytest

from gateway.wire import Adapter, Call, Dialect, Principal

ADAPTERS = Path(__file__).parents[2] / "adapters"


def load_module(name: str, folder: Path) -> ModuleType:
    path = folder / name / "__init__.py" if (folder / name).is_dir() else folder / f"{name}.py"
    inner = [str(path.parent)] if path.name == "__init__.py" else None
    spec = importlib.util.spec_from_file_location(f"loaded_{name}", path, submodule_search_locations=inner)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[f"loaded_{name}"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def load() -> Callable[[str, Path], Adapter]:
    def load_adapter(name: str, folder: Path) -> Adapter:
        adapter: Adapter = load_module(name, folder).ADAPTER
        return adapter

    return load_adapter


@pytest.fixture(scope="session")
def adapter(load: Callable[[str, Path], Adapter]) -> Adapter:
    return load("openai", ADAPTERS)


@pytest.fixture(scope="session")
def dialect() -> Dialect:
    dialect: Dialect = load_module("openai", ADAPTERS).DIALECT
    return dialect


@pytest.fixture(scope="session")
def make_call() -> Callable[..., Call]:
    def make(operation: str = "chat", *, stream: bool = False, **body: object) -> Call:
        body = {"model": "public", "messages": [{"role": "user", "content": "hi"}], **body}
        if stream:
            body["stream"] = True
        return Call(
            id="call_1", principal=Principal("key_1"), dialect="openai", operation=operation, route="public", body=body,
            stream=stream, size=100, received_ns=0,
        )

    return make


@pytest.fixture
def official() -> Iterator[Callable[..., Any]]:
    """The official client, given what each of its requests is answered with: `official(status, content_type, *pieces)`."""
    clients: list[openai.OpenAI] = []

    def make(status: int, content_type: str, *pieces: bytes) -> openai.OpenAI:
        def answer(_request: httpx2.Request) -> httpx2.Response:
            return httpx2.Response(status, headers={"content-type": content_type}, content=iter(pieces))

        http = httpx2.Client(transport=httpx2.MockTransport(answer))
        clients.append(openai.OpenAI(api_key="k", base_url="http://gateway.test/v1", http_client=http, max_retries=0))
        return clients[-1]

    yield make
    for client in clients:
        client.close()
