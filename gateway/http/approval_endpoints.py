"""Puts together everything under `/-/approvals`, `/-/grants`, `/-/tickets` and `/-/notices`."""

from collections.abc import Mapping

from gateway.approvals.deciding import Deciding
from gateway.approvals.editing import Editing
from gateway.asking import Asking
from gateway.clock import Ids
from gateway.http.approvals_desk import ApprovalsDesk
from gateway.http.control import Control
from gateway.http.data import Handler
from gateway.http.grants_desk import GrantsDesk
from gateway.http.tickets_desk import TicketsDesk
from gateway.notify.notices import Notices
from gateway.proxy import Proxy
from gateway.schemas import SchemaCache
from gateway.snapshot import Snapshot
from gateway.store.scrub import Scrubber
from gateway.turns import Turns


def approval_endpoints(proxy: Proxy, control: Control, ids: Ids) -> Mapping[tuple[str, str], Handler]:
    """The handlers by method and path."""
    deciding = _deciding(proxy, control, ids)
    return {**ApprovalsDesk(proxy, control, deciding).endpoints, **GrantsDesk(control.store.approvals, control).endpoints,
            **TicketsDesk(proxy, control, deciding).endpoints}


def _deciding(proxy: Proxy, control: Control, ids: Ids) -> Deciding:
    store, clock = control.store, control.clock

    def current() -> Snapshot:
        return proxy.snapshot

    def scrub(data: bytes) -> bytes:
        return Scrubber(proxy.snapshot.secrets).bytes(data)  # as they are by now

    def scrub_text(text: str) -> str:
        return Scrubber(proxy.snapshot.secrets).text(text)

    asking = Asking(Turns(store.sessions, clock), store.budgets, clock, scrub_text)
    editing = Editing(store.approvals, asking, proxy.holding.conditions, SchemaCache(), ids, scrub)
    return Deciding(store.approvals, proxy.holding, editing, current, Notices(current).of, clock, ids, control.telemetry)
