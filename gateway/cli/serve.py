"""`lockgate serve`: one gateway process, or several that share the port and the database."""

import asyncio
import signal
import socket
import sys
from functools import partial
from pathlib import Path

import click

from gateway.app import App
from gateway.cli.output import config_option
from gateway.cli.process import Signalled, allow_descriptors, run_loop, settle_memory
from gateway.cli.supervisor import Supervisor
from gateway.cli.tie import Tie
from gateway.cli.worker import Worker
from gateway.config import Deployment
from gateway.deployment import read_deployment
from gateway.embed import Gateway, listen
from gateway.errors import SetupError
from gateway.store.sqlite import require_safe_for_several_writers
from gateway.telemetry import fd_writer


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@config_option
@click.option("--host", help="The address to listen on instead of `server.host`.")
@click.option("--port", type=click.IntRange(0, 65535), help="The port instead of `server.port`; 0 takes a free one.")
@click.option("--workers", type=click.IntRange(1, 256), default=1, show_default=True, help="Processes behind the one port.")
@click.option("--listen-fd", type=int, hidden=True, help="A listening socket handed down by the supervisor.")
@click.option("--supervisor-fd", type=int, hidden=True, help="What ties a worker to its supervisor.")
def serve(
    *, config_path: str, host: str | None, port: int | None, workers: int, listen_fd: int | None, supervisor_fd: int | None,
) -> None:
    """Run the gateway until SIGTERM or SIGINT: then it stops accepting, finishes what runs, and ends.

    SIGUSR2 replaces the processes of --workers one after another by new ones, which read all settings and all code anew.

    SIGHUP, `POST /-/reload` and, unless `policy.watch` is false, a changed file make it reload: calls in flight go on as they began.

    Prints `lockgate ready on http://HOST:PORT` on standard output when it accepts connections; the log goes to standard error.
    """
    deployment = read_deployment(Path(config_path))
    if listen_fd is not None:
        _require_shared_store(deployment)  # the files may say something else than when the supervisor started
        handed = socket.socket(fileno=listen_fd)
        run_loop(_run(Gateway(deployment, sock=handed, write=fd_writer(2)), supervisor_fd=supervisor_fd))
        return
    server = deployment.config.server
    held = deployment.config.approvals.max_held
    allow_descriptors(2 * server.max_in_flight + server.queue + held + 100)  # a call inside has two connections; workers inherit the limit
    sock = listen(host or server.host, server.port if port is None else port, deployment)
    if workers == 1:
        watch = deployment.config.policy.watch
        run_loop(_run(Gateway(deployment, sock=sock, write=fd_writer(2), watch=watch), supervisor_fd=None))
        return
    _require_shared_store(deployment)
    sys.exit(run_loop(Supervisor(sock, deployment, workers).run()))


def _require_shared_store(deployment: Deployment) -> None:
    if deployment.config.store.path == ":memory:":
        raise SetupError("Several workers share a database file: set `store.path` to a file, or run one worker.")
    require_safe_for_several_writers()


async def _run(gateway: Gateway, *, supervisor_fd: int | None) -> None:
    stop, hang_up, restart = asyncio.Event(), Signalled(signal.SIGHUP), Signalled(signal.SIGUSR2)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    hang_up.listen()
    restart.listen()
    async with gateway:
        settle_memory()
        app = gateway.running
        app.background.whenever(restart.asked(), partial(_refuse_restart, app), name="restart")
        if supervisor_fd is None:
            app.background.whenever(hang_up.asked(), app.reloader.report, name="hang-up")
            click.echo(f"lockgate ready on {gateway.url}")
            await stop.wait()
        else:
            await _serve_under_supervision(app, await Tie.hold(socket.socket(fileno=supervisor_fd)), hang_up, stop)


async def _refuse_restart(app: App) -> None:
    app.telemetry.event("warning", "restart_refused", why="SIGUSR2 is for the process that `lockgate serve --workers N` was started as")


async def _serve_under_supervision(app: App, tie: Tie, hang_up: Signalled, stop: asyncio.Event) -> None:
    """Serve until a signal comes, or the supervisor is gone. Whoever asks for a reload here asks for it everywhere."""
    worker = Worker(tie, app.reloader.report, drain_s=app.snapshot.config.server.drain_timeout)
    worker.greet()  # before anything can ask for a reload: a SIGHUP may have come while this started
    app.control.everywhere = worker.everywhere
    app.background.whenever(hang_up.asked(), worker.everywhere, name="hang-up")
    gone = asyncio.create_task(worker.serve())
    told = asyncio.create_task(stop.wait())
    await asyncio.wait({gone, told}, return_when=asyncio.FIRST_COMPLETED)
    gone.cancel()
    told.cancel()
    tie.cut()
