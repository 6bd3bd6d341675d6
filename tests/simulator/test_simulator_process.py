"""`lockgate simulate` as a process: ready, served, ended by a signal; and what it says when it cannot start."""

import json
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

READY = re.compile(r"simulator ready on (http://127\.0\.0\.1:(\d+)/v1)\n")


@contextmanager
def simulate(*arguments: object) -> Iterator[tuple[subprocess.Popen[str], str]]:
    command = [sys.executable, "-m", "gateway.cli", "simulate", "--port", "0", *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            ready = READY.fullmatch(process.stdout.readline())
            assert ready, process.communicate()[1]
            yield process, ready[1]
        finally:
            process.kill()


def fetch(url: str, body: object = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"authorization": "Bearer sk-1"})  # noqa: S310 - our own address
    with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310 - as above
        return json.load(answer)


def refused(*arguments: object) -> tuple[int, str]:
    command = [sys.executable, "-m", "gateway.cli", "simulate", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    return done.returncode, done.stderr


def test_it_says_when_it_is_ready_serves_and_ends_with_the_signal(tmp_path):
    log = tmp_path / "requests.jsonl"
    scenario = tmp_path / "scenario.toml"
    scenario.write_text('[[fault]]\nmatch = { model = "slow" }\nhang = true\n')
    with simulate("--log", log, "--scenario", scenario, "--api-key", "sk-1") as (process, url):
        answer = fetch(f"{url}/chat/completions", {"model": "sim-model", "messages": [{"role": "user", "content": "say hi"}]})
        assert answer["choices"][0]["message"]["content"] == "hi"
        hanging = subprocess.Popen([sys.executable, "-c", f"""
import urllib.request
urllib.request.urlopen(urllib.request.Request({url!r} + "/chat/completions", b'{{"model": "slow"}}'))
"""], stderr=subprocess.DEVNULL)
        assert fetch(url.removesuffix("/v1") + "/sim/log/wait?count=1&timeout=20")["reached"]
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=10) == 0
        assert process.stderr
        assert process.stderr.read() == ""
        hanging.wait(timeout=10)
    first, *others = [json.loads(line) for line in log.read_text().splitlines()]
    assert (first["end"], first["body"]["model"], first["usage"]["completion_tokens"]) == ("completed", "sim-model", 1)
    assert "sk-1" not in log.read_text()
    assert [entry["end"] for entry in others] in ([], ["cut"])  # the second client may not have been read yet


def test_a_port_in_use_is_one_clear_line_and_exit_code_1():
    with simulate() as (_process, url):
        port = url.split(":")[2].removesuffix("/v1")
        code, error = refused("--port", port)
    assert code == 1
    assert error == f"error: port {port} on 127.0.0.1 is in use: stop what listens there or choose another with --port\n"


@pytest.mark.parametrize(("text", "words"), [("[[fault]]\nstatis = 500\n", "did you mean 'status'"), (None, "cannot be read")])
def test_a_scenario_that_cannot_be_used_is_said_before_it_listens(tmp_path, text, words):
    path = tmp_path / "scenario.toml"
    if text is not None:
        path.write_text(text)
    code, error = refused("--port", "0", "--scenario", path)
    assert code == 1
    assert error.startswith(f"error: {path}:")
    assert words in error
