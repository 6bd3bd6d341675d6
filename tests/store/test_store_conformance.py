"""Both stores pass the same suite."""

import importlib.util
from pathlib import Path

import pytest

from gateway.store.memory import MemoryStore
from gateway.store.protocol import Store

_spec = importlib.util.spec_from_file_location("store_conformance", Path(__file__).with_name("conformance.py"))
assert _spec is not None
assert _spec.loader is not None
_conformance = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_conformance)


class TestSqliteStore(_conformance.StoreConformance):  # type: ignore[misc, name-defined] # loaded by path
    """On the `store` fixture of this folder."""


class TestMemoryStore(_conformance.StoreConformance):  # type: ignore[misc, name-defined] # loaded by path
    """In memory."""

    @pytest.fixture
    def store(self) -> Store:
        return MemoryStore("one")
