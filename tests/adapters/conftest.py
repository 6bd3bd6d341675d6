"""The shipped OpenAI adapter and dialect, loaded by path as the gateway loads them, and calls to give them."""

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

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
    return lambda name, folder: load_module(name, folder).ADAPTER


@pytest.fixture(scope="session")
def adapter() -> Adapter:
    return load_module("openai", ADAPTERS).ADAPTER


@pytest.fixture(scope="session")
def dialect() -> Dialect:
    return load_module("openai", ADAPTERS).DIALECT


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
