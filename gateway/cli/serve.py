"""`lockgate serve`: one gateway process, or several that share the port and the database."""

import asyncio
import signal
import socket
import sys
from pathlib import Path

import click

from gateway.cli.output import config_option
from gateway.cli.process import allow_descriptors, run_loop, say_no_reload, settle_memory
from gateway.cli.supervisor import Supervisor
from gateway.config import read_deployment
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

    Prints `lockgate ready on http://HOST:PORT` on standard output when it accepts connections; the log goes to standard error.
    """
    deployment = read_deployment(Path(config_path))
    if listen_fd is not None:
        handed = socket.socket(fileno=listen_fd)
        run_loop(_run(Gateway(deployment, sock=handed, write=fd_writer(2)), supervisor_fd=supervisor_fd))
        return
    server = deployment.config.server
    allow_descriptors(2 * server.max_in_flight + 100)  # a call has two connections, and workers inherit the limit
    sock = listen(host or server.host, server.port if port is None else port, deployment)
    if workers == 1:
        run_loop(_run(Gateway(deployment, sock=sock, write=fd_writer(2)), supervisor_fd=None))
        return
    if deployment.config.store.path == ":memory:":
        raise SetupError("Several workers share a database file: set `store.path` to a file, or run one worker.")
    require_safe_for_several_writers()
    sys.exit(run_loop(Supervisor(sock, Path(config_path), workers, drain_s=server.drain_timeout).run()))


async def _run(gateway: Gateway, *, supervisor_fd: int | None) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    loop.add_signal_handler(signal.SIGHUP, say_no_reload)
    async with gateway:
        settle_memory()
        if supervisor_fd is None:
            click.echo(f"lockgate ready on {gateway.url}")
            await stop.wait()
        else:
            await _serve_under_supervision(socket.socket(fileno=supervisor_fd), stop)


async def _serve_under_supervision(tie: socket.socket, stop: asyncio.Event) -> None:
    """Tell the supervisor that this worker is ready, then wait for a signal, or for the supervisor to be gone."""
    reader, writer = await asyncio.open_connection(sock=tie)
    writer.write(b"ready")
    gone = asyncio.create_task(reader.read())
    told = asyncio.create_task(stop.wait())
    await asyncio.wait({gone, told}, return_when=asyncio.FIRST_COMPLETED)
    gone.cancel()
    told.cancel()
    writer.close()
