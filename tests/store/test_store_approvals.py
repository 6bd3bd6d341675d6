"""Approvals: both stores keep the same promises; on SQLite they hold between processes and over restarts."""

import asyncio
import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from gateway.core.approval import OPEN, State
from gateway.errors import StoreError
from gateway.store.approvals_protocol import TicketFilter
from gateway.store.memory import MemoryStore
from gateway.store.protocol import Admitted, Store
from gateway.store.sqlite import SqliteStore


def _load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"store_{name}", Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_suite, some = _load("approval_conformance"), _load("approval_samples")


class TestSqliteApprovals(_suite.ApprovalConformance):  # type: ignore[misc, name-defined] # loaded by path
    """On the `store` fixture of this folder."""


class TestMemoryApprovals(_suite.ApprovalConformance):  # type: ignore[misc, name-defined] # loaded by path
    """In memory."""

    @pytest.fixture
    def store(self) -> Store:
        return MemoryStore("one")
