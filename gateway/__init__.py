"""Lockgate: an embedded, policy-first gateway proxy for AI traffic."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gateway.embed import Gateway

__version__ = "0.1.0"
__all__ = ["Gateway", "__version__"]


def __getattr__(name: str) -> Any:
    """Load `Gateway` on first use: the command line starts without aiohttp, and `import gateway` stays cheap."""
    if name == "Gateway":
        return import_module("gateway.embed").Gateway
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
