"""Lockgate inside a host process: it takes nothing that is the host's, and leaves nothing behind."""

import asyncio
import gc
import logging
import signal
import subprocess
import sys

import openai
import pytest

from gateway import Gateway
from gateway.errors import SetupError


async def test_two_gateways_in_one_process_keep_to_themselves(house, messages, tmp_path_factory):
    await house.open()
    other = type(house)(tmp_path_factory.mktemp("other"), house.one, house.two, house.stack)
    await other.open()
    answer = await other.client().chat.completions.create(model="fast", messages=messages("say other"))
    assert answer.choices[0].message.content == "other"
    assert (len(await house.calls()), len(await other.calls())) == (0, 1)
    with pytest.raises(openai.AuthenticationError):
        await house.client(other.key).chat.completions.create(model="fast", messages=messages("hi"))
    for each, calls in ((house, 0), (other, 1)):
        session = await each.http()
        async with session.get("/metrics") as metrics:
            text = await metrics.text()
        counted = [line for line in text.splitlines() if line.startswith("lockgate_calls_total{") and 'outcome="completed"' in line]
        assert len(counted) == calls


async def test_no_signal_handler_no_logging_and_no_task_is_left_behind(house, messages):
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    root = list(logging.getLogger().handlers)
    before = asyncio.all_tasks()
    await house.open()
    await house.client().chat.completions.create(model="fast", messages=messages("hi"))
    assert {number: signal.getsignal(number) for number in handlers} == handlers
    assert logging.getLogger().handlers == root
    await house.stack.aclose()
    gc.collect()
    assert asyncio.all_tasks() <= before


async def test_a_gateway_that_does_not_run_has_no_address(house):
    house.write("config.toml", "[auth]\nrequired = false\n")
    for folder in ("routes", "policies"):
        (house.folder / folder).mkdir()
    with pytest.raises(SetupError, match="async with"):
        _ = Gateway(house.folder / "config.toml", port=0).url


async def test_without_authentication_only_this_machines_programs_get_in(house, messages):
    """DNS rebinding: a page in a browser here resolves its own name to 127.0.0.1 and calls the gateway."""
    house.write("config.toml", f'[auth]\nrequired = false\n[store]\npath = ":memory:"\n[providers.one]\nadapter = "openai"\nbase_url = "{house.one.url}"\n')
    house.write("routes/r.toml", '[[route]]\nname = "fast"\n[[route.targets]]\nprovider = "one"\nmodel = "m"\n')
    (house.folder / "policies").mkdir()
    house.gateway = Gateway(house.folder / "config.toml", port=0)
    await house.stack.enter_async_context(house.gateway)
    answer = await house.client("whatever").chat.completions.create(model="fast", messages=messages("say in"))
    assert answer.choices[0].message.content == "in"
    session = await house.http()
    for headers in ({"Host": "evil.example"}, {"Host": "evil.example:8080"}, {"Origin": "https://evil.example"}):
        async with session.post("/v1/chat/completions", json={"model": "fast", "messages": messages("hi")}, headers=headers) as refused:
            assert refused.status == 400
        async with session.get("/v1/models", headers=headers) as refused:
            assert refused.status == 400
    assert len(house.one.requests) == 1


def test_importing_gateway_loads_no_adapter_no_command_line_and_no_server():
    loaded = subprocess.run(
        [sys.executable, "-c", "import sys, gateway; print(*sys.modules)"], capture_output=True, text=True, check=True, timeout=60).stdout.split()
    assert not [name for name in loaded if name.startswith(("adapters", "gateway.cli", "lockgate_plugin", "aiohttp", "openai", "click"))]


def test_the_engine_loads_no_command_line_and_no_adapter():
    loaded = subprocess.run(
        [sys.executable, "-c", "import sys; from gateway import Gateway; print(*sys.modules)"], capture_output=True, text=True, check=True, timeout=60,
    ).stdout.split()
    assert not [name for name in loaded if name.startswith(("adapters", "gateway.cli", "gateway.simulator", "openai", "rich", "opentelemetry.exporter"))]
