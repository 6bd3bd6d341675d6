"""Who is told what happens to an approval: its rule's channels, as far as they want to hear of it."""

from collections.abc import Callable

from gateway.core.approval import Ticket
from gateway.core.decision import Approval
from gateway.core.rules import Bundle
from gateway.notify.channels import HasChannels
from gateway.notify.messages import notice_of
from gateway.store.approvals_protocol import Notice

EVERY = "*"  # in `Ticket.notify`: whatever channels there are


class Notices:
    """Makes notices under the settings that are in force. It writes none: they belong into the transaction of what they tell of.

    May be asked in any thread.
    """

    def __init__(self, snapshot: Callable[[], HasChannels]) -> None:
        self._snapshot = snapshot

    def of(self, ticket: Ticket, kind: str, now_ns: int) -> tuple[Notice, ...]:
        """What is told of an event (`opened`, `escalated`, `decided`, `expired`, `unknown`), now; where people are asked, with what
        reminds them later. Of an end that nobody knows, nothing, as long as the gateway can find it out.
        """
        snapshot = self._snapshot()
        tool = snapshot.tools.get(ticket.tool)
        if kind == "unknown" and tool is not None and tool.verify is not None:
            return ()
        due = [(kind, now_ns)]
        remind_s = _remind_s(snapshot.bundle, ticket) if kind in ("opened", "escalated") else None
        if remind_s is not None and now_ns + int(remind_s * 1e9) < ticket.expires_ns:
            due.append(("reminder", now_ns + int(remind_s * 1e9)))
        return _told(snapshot, ticket, due)

    def unsolved(self, ticket: Ticket, now_ns: int) -> tuple[Notice, ...]:
        """What is told where the gateway could not find out how an action ended."""
        return _told(self._snapshot(), ticket, [("unknown", now_ns)])


def _told(snapshot: HasChannels, ticket: Ticket, due: list[tuple[str, int]]) -> tuple[Notice, ...]:
    channels = [channel for channel in snapshot.channels.values() if EVERY in ticket.notify or channel.name in ticket.notify]
    return tuple(notice_of(ticket, kind, channel, due_ns) for channel in channels for kind, due_ns in due if kind in channel.events)


def _remind_s(bundle: Bundle, ticket: Ticket) -> float | None:
    """After how long people are reminded, by the rules that ask them; None for never."""
    asking = {demand.rule for demand in ticket.demands}
    asked = (rule.action for rule in bundle.rules if rule.id in asking)
    return min((each.remind_s for each in asked if isinstance(each, Approval) and each.remind_s is not None), default=None)
