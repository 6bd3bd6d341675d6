"""Where spans go. Apart from `spans.py`, which is imported only where they are wanted."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from gateway.secret import Secret


@dataclass(frozen=True, slots=True)
class OtlpSettings:
    """Where spans go: an OTLP/HTTP traces URL, and the headers sent with them."""

    endpoint: str
    headers: Mapping[str, Secret] = field(default_factory=dict)
