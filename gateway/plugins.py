"""Loads adapters, dialects and detectors by name, from the configured folder first and the shipped one second. The engine imports none.

A plugin is `NAME.py` or `NAME/__init__.py` and exports `ADAPTER`, `DIALECT`, `DETECTORS` or several of them. One file is one module in
a process, however many gateways load it: changed code needs a new process.
"""

import hashlib
import importlib.util
import inspect
import re
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Final, cast

from gateway.core.detectors import Detector
from gateway.errors import ConfigError, Problem
from gateway.route_config import OPERATIONS
from gateway.validation import nearest
from gateway.wire.protocol import Adapter, Dialect

_NAME: Final = re.compile(r"[a-z][a-z0-9_-]{0,63}")
_DETECTOR: Final = re.compile(r"[a-z][a-z0-9_]{0,63}")
_PREFIX: Final = "lockgate_plugin_"


def shipped(kind: str) -> Path:
    """What ships under this name (`policies`, `routes`, `adapters`, `config.example.toml`): inside a wheel, else beside `gateway/`."""
    package = Path(__file__).resolve().parent
    within = package / "_shipped" / kind
    return within if within.exists() else package.parent / kind


def load_adapter(name: str, folders: Sequence[Path]) -> Adapter:
    """The `ADAPTER` of a plugin.

    Raises:
        ConfigError: there is no such plugin (then the problem names no file), it cannot be imported, or it lacks something.
    """
    return cast("Adapter", _load(name, folders, "ADAPTER", Adapter))


def load_dialect(name: str, folders: Sequence[Path]) -> Dialect:
    """The `DIALECT` of a plugin. Raises as `load_adapter` does."""
    return cast("Dialect", _load(name, folders, "DIALECT", Dialect))


def load_detectors(name: str, folders: Sequence[Path]) -> tuple[Detector, ...]:
    """The `DETECTORS` of a plugin: a tuple of detectors. Raises as `load_adapter` does."""
    path = _find(name, folders)
    if path is None:
        raise ConfigError([Problem("", None, name, f"there is no plugin named {name!r}", nearest(name, _names(folders)))])
    made = getattr(_module(name, path), "DETECTORS", None)
    if not isinstance(made, tuple) or not made:
        raise ConfigError([Problem(str(path), None, "DETECTORS", f"the plugin {name!r} exports no DETECTORS, a tuple of detectors",
                                   "DETECTORS = (MyDetector(),)")])
    wrong = [f"DETECTORS[{number}] {what}" for number, each in enumerate(made) for what in _shortcomings_of_detector(each)]
    if wrong:
        raise ConfigError([Problem(str(path), None, "DETECTORS", what, "see docs/detectors.md") for what in wrong])
    return made


def _load(name: str, folders: Sequence[Path], constant: str, protocol: type) -> object:
    path = _find(name, folders)
    if path is None:
        raise ConfigError([Problem("", None, name, f"there is no adapter named {name!r}", nearest(name, _names(folders)))])
    made = getattr(_module(name, path), constant, None)
    if made is None:
        raise ConfigError([Problem(str(path), None, constant, f"the adapter {name!r} exports no {constant}")])
    wrong = _shortcomings(made, protocol) or _inconsistencies(made, name)
    if wrong:
        raise ConfigError([Problem(str(path), None, constant, f"{constant} of {name!r} {what}",
                                   f"see {protocol.__name__} in gateway.wire") for what in wrong])
    return cast("object", made)


def _find(name: str, folders: Sequence[Path]) -> Path | None:
    if _NAME.fullmatch(name) is None:  # a name is never a path
        return None
    candidates = (path for folder in folders for path in (folder / name / "__init__.py", folder / f"{name}.py"))
    return next((path.resolve() for path in candidates if path.is_file()), None)


def _names(folders: Sequence[Path]) -> list[str]:
    found = {path.stem if path.is_file() else path.name
             for folder in folders if folder.is_dir() for path in folder.iterdir()
             if path.suffix == ".py" or (path / "__init__.py").is_file()}
    return sorted(name for name in found if _NAME.fullmatch(name))


def _module(name: str, path: Path) -> ModuleType:
    """The module of one file. Its name in the interpreter is made of its path, so that no two files can clash."""
    unique = f"{_PREFIX}{name.replace('-', '_')}_{hashlib.sha256(str(path).encode()).hexdigest()[:16]}"
    known = sys.modules.get(unique)
    if known is not None:
        return known
    within = [str(path.parent)] if path.name == "__init__.py" else None
    spec = importlib.util.spec_from_file_location(unique, path, submodule_search_locations=within)
    assert spec is not None  # noqa: S101 - Python has a loader for every file that ends in .py
    assert spec.loader is not None  # noqa: S101 - the same
    module = importlib.util.module_from_spec(spec)
    sys.modules[unique] = module  # before it runs: relative imports and dataclasses look it up
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        for part in [part for part in sys.modules if part == unique or part.startswith(f"{unique}.")]:
            del sys.modules[part]
        raise ConfigError([_failure(name, path, error)]) from error
    return module


def _failure(name: str, path: Path, error: BaseException) -> Problem:
    """Where in the plugin's own files the import failed: the innermost of their lines."""
    root = path.parent if path.name == "__init__.py" else path
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename).is_relative_to(root)]
    file, line = (frames[-1].filename, frames[-1].lineno) if frames else (str(path), None)
    if isinstance(error, SyntaxError) and error.filename:
        file, line = error.filename, error.lineno
    return Problem(file, line, "", f"the plugin {name!r} cannot be imported: {type(error).__name__}: {error}")


def _shortcomings(made: Any, protocol: type) -> list[str]:
    if isinstance(made, type):
        return [f"is a class; export an instance of it: {made.__name__}()"]
    values = [name for name in protocol.__annotations__ if not name.startswith("_")]
    methods = [name for name, member in vars(protocol).items() if callable(member) and not name.startswith("_")]
    return [*(f"has no `{name}`" for name in values if not hasattr(made, name)),
            *(f"has no method `{name}`" for name in methods if not callable(getattr(made, name, None)))]


def _inconsistencies(made: Any, name: str) -> list[str]:
    """What is there and says something that cannot be right."""
    wrong = [] if made.name == name else [f"has the `name` {made.name!r}, which is not the name of its file"]
    operations: object = getattr(made, "operations", frozenset())  # a dialect has none
    if not isinstance(operations, set | frozenset):
        return [*wrong, "has `operations` that are not a set"]
    unknown = sorted(str(operation) for operation in operations - set(OPERATIONS))
    if unknown:
        wrong.append(f"has `operations` that do not exist: {', '.join(unknown)}; there is {', '.join(OPERATIONS)}")
    return wrong


def _shortcomings_of_detector(made: Any) -> list[str]:
    if isinstance(made, type):
        return [f"is a class; export an instance of it: {made.__name__}()"]
    wrong = []
    if not isinstance(getattr(made, "name", None), str) or _DETECTOR.fullmatch(made.name) is None:
        wrong.append("has no `name` of small letters, digits and `_`")
    longest = getattr(made, "longest", 0)
    if longest is not None and (type(longest) is not int or longest < 1):
        wrong.append("has no `longest`: how many characters a finding can have at most, or None where there is no end")
    try:
        inspect.signature(made.find).bind("", 0)
    except (AttributeError, TypeError, ValueError):
        wrong.append("has no method `find(text, start=0)`")
    return wrong
