"""`/-/rules`: the rules that are in force, and how often each has matched. What a single call met is `/-/calls/{id}/explain`'s."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from aiohttp import web

from gateway.core.rules import Bundle, Rule
from gateway.http.client import HttpClient
from gateway.http.control import Control
from gateway.http.data import Handler
from gateway.http.desk import query_of
from gateway.proxy import Proxy
from gateway.telemetry import RuleCounts
from gateway.wire.strict_json import dumps

_RULES: Final = "/-/rules"
_NONE: Final[Mapping[str, int]] = {}
_COUNTED: Final = "calls and verdicts that each rule contributed to since this gateway started, over all its workers"


@dataclass(frozen=True, slots=True)
class RulesDesk:
    """The endpoint. `proxy` knows the rules that are in force, `control` who may ask and what was counted."""

    proxy: Proxy
    control: Control

    @property
    def endpoints(self) -> Mapping[tuple[str, str], Handler]:
        """The handlers by method and path."""
        return {("GET", _RULES): self.rules}

    async def rules(self, request: web.BaseRequest, client: HttpClient) -> None:
        """`GET /-/rules`: every rule in declared order with where it stands, what it does, and its counts."""
        await self.control.authorise(request, "view")
        query_of(request)
        bundle = self.proxy.snapshot.bundle
        counts = await self.control.telemetry.rule_counts()
        await client.answer(200, {}, dumps({
            "bundle": bundle.digest, "counted": _COUNTED, "stale": self.control.reloader.stale or None,
            "defaults": bundle.defaults.model_dump(mode="json"), "rules": list(_rows(bundle, counts))}))


def _rows(bundle: Bundle, counts: RuleCounts) -> list[dict[str, Any]]:
    """The rules of a bundle. Its content holds, in the same order, what was configured."""
    configured = json.loads(bundle.content)["rules"]
    return [_row(rule, given, counts) for rule, given in zip(bundle.rules, configured, strict=True)]


def _row(rule: Rule, given: Mapping[str, Any], counts: RuleCounts) -> dict[str, Any]:
    enforced, shadowed = counts.get((rule.id, "enforce"), _NONE), counts.get((rule.id, "shadow"), _NONE)
    return {
        "rule": rule.id, "phase": given.get("phase", "request"), "effect": rule.effect, "mode": given.get("mode", "enforce"),
        "team": given.get("team"), "source": rule.matched.source, "message": rule.message, "remedy": rule.remedy,
        "match": given.get("match", {}), "when": given.get("when"), "reads": sorted(rule.reads),
        "approvers": given.get("approvers", []), "quorum": given.get("quorum", 1), "approval": given.get("approval"),
        "matched": enforced.get("matched", 0), "failed": enforced.get("error", 0),
        "shadow_matched": shadowed.get("matched", 0), "shadow_failed": shadowed.get("error", 0),
    }
