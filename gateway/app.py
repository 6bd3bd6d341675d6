"""The composition root: the one place that knows every part. `serve`, the embedded gateway and the tests all start here."""

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from aiohttp import web

from gateway.approvals.sweeping import Sweeper, Upkeep
from gateway.approvals.verifying import Verifier
from gateway.background import Background
from gateway.breakers import Breakers
from gateway.clock import Clock, Ids, SystemClock, SystemIds
from gateway.health import HealthChecks
from gateway.http.control import Control
from gateway.http.doors import Doorkeeper, OwnNames
from gateway.http.server import Listener, Surface
from gateway.identity.identities import Given, Identities
from gateway.keyring import KeyRing
from gateway.notify.deliverer import Books, Deliverer
from gateway.notify.mail import Mailer
from gateway.notify.notices import Notices
from gateway.notify.senders import Senders
from gateway.proxy import Proxy
from gateway.reload import Loaded, Reloader
from gateway.secret import Secret
from gateway.snapshot import Snapshot
from gateway.store.memory import MemoryStore
from gateway.store.protocol import Store
from gateway.store.scrub import Scrubber
from gateway.store.sqlite import SqliteStore
from gateway.telemetry import OtlpSettings, Telemetry
from gateway.upstream.aiohttp_transport import AiohttpTransport
from gateway.upstream.lean_transport import LeanTransport
from gateway.upstream.protocol import Transport
from gateway.watch import Watch

_TRANSPORTS: Final[Mapping[str, Callable[..., Transport]]] = {"lean": LeanTransport, "aiohttp": AiohttpTransport}
_LEASE_NS: Final = 10_000_000_000  # how long after its last sign of life a process is taken for dead
_HEARTBEAT_S: Final = 2.0
_CUT_S: Final = 5.0  # for what is cut short at the end of the drain: an outcome, an error to the client
_FLUSH_S: Final = 0.2  # for bytes of answers that are done; calls themselves were waited for before
_BREAKERS_S: Final = 0.25  # what another worker has found out about a target is known so soon
_SESSIONS_S: Final = 0.25  # and which sessions an operator has stopped
_APPROVALS_S: Final = 0.2  # what somebody has decided at another worker is known so soon
_CATCH_UP_S: Final = 15.0  # between two tries to make an approved call that could not be begun
_SWEEP_S: Final = 1.0  # what nobody has decided in time ends so soon
KEYS_S: Final = 0.5  # a changed key is seen by every worker within a second


@dataclass(frozen=True, slots=True)
class Parts:
    """What a host or a test may bring itself; None: made from the configuration."""

    store: Store | None = None
    transport: Transport | None = None
    clock: Clock | None = None
    ids: Ids | None = None


class App:
    """One gateway: its parts, and their start and stop in the right order."""

    def __init__(self, loaded: Loaded, *, write: Callable[[bytes], None], parts: Parts, watch: Watch | None = None) -> None:
        snapshot = loaded.snapshot
        config = snapshot.config
        self.clock = parts.clock or SystemClock()
        self.ids = parts.ids or SystemIds(self.clock)
        self.store = parts.store or _make_store(snapshot, self.ids)
        self.transport = parts.transport or _TRANSPORTS[config.upstream.transport](connections_per_origin=config.server.max_in_flight)
        self._scrubber = Scrubber(snapshot.secrets)
        self.telemetry = Telemetry(
            log_format=config.log.format, log_level=config.log.level, write=write, scrub=self._scrubber.text, clock=self.clock,
            otlp=_otlp(snapshot), resource={"service.instance.id": str(os.getpid())},
        )
        self.identities = Identities.of(Given(
            config, snapshot.folder, snapshot.pepper, snapshot.admin_token, snapshot.oidc_secret, self.store.people, self.transport,
            self.clock, self.ids, self.telemetry))
        self.keyring = KeyRing(snapshot.pepper, self.clock, self.identities.tokens) if snapshot.pepper is not None else None
        self.breakers = Breakers(self.store.breakers, self.clock, self.ids, self.telemetry)
        self.proxy = Proxy(
            snapshot, keyring=self.keyring, journal=self.store.journal, sessions=self.store.sessions, budgets=self.store.budgets,
            breakers=self.breakers, approvals=self.store.approvals, session_desk=self.store.session_desk, transport=self.transport,
            telemetry=self.telemetry, clock=self.clock, ids=self.ids, notify=(notices := Notices(lambda: self.snapshot)).of)
        self.store.approvals.tell(notices.of)
        self.deliverer = Deliverer(
            lambda: self.snapshot, Books(self.store.outbox, self.store.approvals),
            Senders(self.transport, Mailer(), self.telemetry, self.clock), telemetry=self.telemetry, clock=self.clock, ids=self.ids,
            scrub=self._scrubber.text)
        self.verifier = Verifier(lambda: self.snapshot, self.store.approvals, self.proxy.errands, self.telemetry, self.clock, self.ids)
        self.sweeper = Sweeper(
            lambda: self.snapshot, Upkeep(self.store.approvals, self.store.outbox, notices, self.verifier, self.proxy.holding.refresh),
            self.telemetry, self.clock)
        self.reloader = Reloader(loaded, self._swap, bundles=self.store.bundles, telemetry=self.telemetry, clock=self.clock)
        self.control = Control(
            self.store, self.telemetry, self.keyring, Doorkeeper(self.identities.logins, OwnNames.of(config)), self.identities.oidc,
            self.clock, self._in_flight, self.reloader, self.breakers)
        self.surface = Surface(self.proxy, self.control, self.telemetry, self.ids)
        self.background = Background(self.clock, self.telemetry)
        self.health = HealthChecks(self.transport, self.breakers, self.background, self.telemetry, self.ids)
        self._watch = watch
        self._listener = Listener(self.surface, max_body=config.server.max_body)
        self._runner: web.ServerRunner | None = None

    async def start(self, sock: socket.socket) -> None:
        """Open the store, learn the keys, then open the doors: nothing is accepted before it can be judged and recorded."""
        await self.store.start(now_ns=self.clock.now_ns())
        bundle = self.snapshot.bundle
        await self.store.bundles.keep(bundle.digest, bundle.content, now_ns=self.clock.now_ns())  # before a call is decided under it
        await self._heartbeat()
        if self.keyring is not None:
            await self.keyring.load(self.store.keys)
            self.background.every(KEYS_S, self.keyring.refresh, name="keys")
        self.telemetry.serving(bundle=bundle.digest, routes=_names(self.snapshot))
        await self.telemetry.start()
        self.background.every(_HEARTBEAT_S, self._heartbeat, name="heartbeat")
        self.breakers.serve(self.snapshot.targets)
        await self.breakers.refresh()  # what was found out before the start
        self.background.every(_BREAKERS_S, self.breakers.refresh, name="breakers")
        await self.proxy.frozen.refresh()  # before a call of one that is frozen could come
        self.background.every(_SESSIONS_S, self.proxy.frozen.refresh, name="sessions")
        self.health.follow(self.snapshot)
        await self.proxy.holding.start()
        self.background.every(_APPROVALS_S, self.proxy.holding.refresh, name="approvals")
        self.background.every(_CATCH_UP_S, self.proxy.holding.performing.catch_up, name="approved")
        self.background.every(_SWEEP_S, self.sweeper.sweep, name="sweep")
        self.background.every(self.deliverer.pause_s, self.deliverer.round, name="notices")
        self._runner = web.ServerRunner(self._listener, handle_signals=False, shutdown_timeout=_FLUSH_S)
        await self._runner.setup()
        await web.SockSite(self._runner, sock).start()
        self.telemetry.event("info", "started", routes=len(self.snapshot.models), rules=bundle.digest)
        if self._watch is not None:
            self.background.whenever(self._watch.changes(), self.reloader.report, name="watch")

    async def stop(self) -> None:
        """Stop accepting, let what runs end (bounded by `server.drain_timeout`), write every record, close. Safe after a failed start.

        Connections that are open are answered as ever, each for a last time: so no caller who knows of nothing is turned away.
        """
        server = self.snapshot.config.server
        self.control.draining = True
        self.telemetry.event("info", "draining", in_flight=self.proxy.in_flight)
        self.proxy.holding.waiting.stop()  # whoever waits for people and can come back is told so
        if self._runner is not None:
            for site in list(self._runner.sites):
                await site.stop()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(server.drain_timeout):
                    await self._listener.retire(server.grace)
                    await self.proxy.idle(server.drain_timeout)  # calls whose client is gone are still being written down
            await self.proxy.cut(_CUT_S)
            await self._runner.cleanup()
        await self.verifier.close()
        await self.proxy.errands.close(_CUT_S, _CUT_S)
        await self.proxy.holding.performing.close(_CUT_S)
        await self.proxy.keep_alive.close()
        await self.proxy.settler.drained()
        await self.background.stop()
        await self.deliverer.close(_CUT_S)
        await self.breakers.close()
        await self.reloader.reload.close()
        await self.identities.close()
        await self.transport.close()
        await self.store.close()
        self.telemetry.event("info", "stopped")
        await self.telemetry.close()

    @property
    def snapshot(self) -> Snapshot:
        """What new calls are handled under."""
        return self.proxy.snapshot

    def _swap(self, snapshot: Snapshot) -> None:
        self._scrubber.learn(snapshot.secrets)
        self.proxy.swap(snapshot)
        self.breakers.serve(snapshot.targets)
        if not self.control.draining:  # what looks after tasks may have stopped already
            self.health.follow(snapshot)
        self.telemetry.serving(bundle=snapshot.bundle.digest, routes=_names(snapshot))

    def _in_flight(self) -> int:
        return self.proxy.in_flight

    async def _heartbeat(self) -> None:
        self.telemetry.in_flight(self.proxy.in_flight)
        interrupted = await self.store.heartbeat(now_ns=self.clock.now_ns(), lease_ns=_LEASE_NS)
        if interrupted:
            self.telemetry.event("warning", "calls_interrupted", calls=interrupted)


def _names(snapshot: Snapshot) -> Mapping[str, str]:
    """What a route may be called, each with the route's own name."""
    return {name: route.name for name, route in snapshot.routes.items()}


def _make_store(snapshot: Snapshot, ids: Ids) -> Store:
    settings = snapshot.config.store
    owner = f"{socket.gethostname()}:{os.getpid()}:{ids.token(8)}"
    if settings.path == ":memory:":
        return MemoryStore(owner)
    return SqliteStore(snapshot.folder / settings.path, owner, synchronous=settings.synchronous, busy_timeout_s=settings.busy_timeout)


def _otlp(snapshot: Snapshot) -> OtlpSettings | None:
    endpoint = snapshot.config.otlp.endpoint
    headers = {name: Secret(value) for name, value in snapshot.otlp_headers.items()}
    return OtlpSettings(endpoint, headers) if endpoint else None
