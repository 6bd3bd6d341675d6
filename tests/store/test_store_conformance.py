"""Both stores pass the same suites: of the journal and keys, and of money and rates."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from gateway.store.memory import MemoryStore
from gateway.store.protocol import Store


def _load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"store_{name}", Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_conformance = _load("conformance")
_money = _load("money_conformance")


class TestSqliteStore(_conformance.StoreConformance):  # type: ignore[misc, name-defined] # loaded by path
    """On the `store` fixture of this folder."""


class TestSqliteMoney(_money.MoneyConformance):  # type: ignore[misc, name-defined] # loaded by path
    """On the `store` fixture of this folder."""


class TestMemoryStore(_conformance.StoreConformance):  # type: ignore[misc, name-defined] # loaded by path
    """In memory."""

    @pytest.fixture
    def store(self) -> Store:
        return MemoryStore("one")


class TestMemoryMoney(_money.MoneyConformance):  # type: ignore[misc, name-defined] # loaded by path
    """In memory."""

    @pytest.fixture
    def store(self) -> Store:
        return MemoryStore("one")
