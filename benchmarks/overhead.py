"""What one governed call costs, next to nginx's `proxy_pass` in the same run: CPU of the gateway's process per request, and latency.

Everything is on: a key is checked, 100 rules are loaded of which 10 apply, money is set aside and settled on three accounts (all,
team, key), the journal is durable before the answer (bodies included), metrics and the log are written. Upstream of both is one nginx
that answers a fixed chat completion. Needs nginx and wrk from the system's packages; says so and ends with code 0 where they are absent.

With --no-budgets a gateway without budgets is measured in the same rounds, and what budgets add is printed as a ratio.

The two are measured in turn, round by round, and a round's ratio is its own: on a machine whose speed drifts the ratio holds
where the times do not. The table shows medians, and the smallest and largest ratio.

    python benchmarks/overhead.py [--rounds 5] [--seconds 3] [--no-budgets] [--json] [--profile FILE]
"""

import argparse
import json
import os
import re
import selectors
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

LOCKGATE = [sys.executable, "-m", "gateway.cli"]
CONNECTIONS = (64, 4)
NGINX, GOVERNED, PLAIN = "nginx proxy_pass", "lockgate", "lockgate, no budgets"
BUDGETS = "".join(f'[budgets.each-{scope}]\nscope = "{scope}"\nlimit = "1000000"\nwindow = "month"\n' for scope in ("all", "team", "key"))
ANSWER = json.dumps({
    "id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "static",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hello to the whole world, and be well. " * 4}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 24, "completion_tokens": 36, "total_tokens": 60},
})
BODY = json.dumps({
    "model": "static", "temperature": 0.2, "max_tokens": 64,
    "messages": [{"role": "system", "content": "You are kind and brief."}, {"role": "user", "content": "Say hello to the world, please, and be kind."}],
})


@dataclass(frozen=True)
class Figure:
    """One run: CPU in µs a request of the process under test and its ratio to nginx in that round, requests a second, latency in ms."""

    what: str
    connections: int
    requests: int
    cpu_us: float
    ratio: float
    rate: float
    p50_ms: float
    p99_ms: float


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rounds", type=int, default=5, help="runs of each")
    options.add_argument("--seconds", type=int, default=3, help="length of each run")
    options.add_argument("--no-budgets", action="store_true", help="measure a gateway without budgets as well")
    options.add_argument("--json", action="store_true", help="print the figures as JSON")
    options.add_argument("--profile", metavar="FILE", help="profile the gateway at 64 connections with py-spy, if installed, into FILE (speedscope)")
    chosen = options.parse_args()
    absent = [tool for tool in ("nginx", "wrk") if shutil.which(tool) is None]
    if absent:
        print(f"not measured: {' and '.join(absent)} not installed (the system's packages have them: apt-get install nginx wrk)")
        return
    with tempfile.TemporaryDirectory(prefix="lockgate-bench-") as folder, ExitStack() as stack:
        figures = measure(Path(folder), stack, chosen)
    if chosen.json:
        print(json.dumps([asdict(figure) for figure in figures], indent=2))
    else:
        table(figures)


def measure(folder: Path, stack: ExitStack, chosen: argparse.Namespace) -> list[Figure]:
    upstream = stack.enter_context(nginx(folder / "upstream", f"return 200 '{ANSWER}';", "default_type application/json;"))
    proxied = stack.enter_context(nginx(
        folder / "proxy", "proxy_pass http://up; proxy_http_version 1.1; proxy_set_header Connection '';",
        f"upstream up {{ server 127.0.0.1:{upstream.port}; keepalive 128; }}"))
    gateways = {GOVERNED: stack.enter_context(lockgate(folder / "gateway", upstream.port, BUDGETS))}
    if chosen.no_budgets:
        gateways[PLAIN] = stack.enter_context(lockgate(folder / "plain", upstream.port, ""))
    proxied.write_script(folder / "proxied.lua", "none")
    figures = []
    for connections in CONNECTIONS:
        for server in (proxied, *gateways.values()):
            load(server, connections, 1)  # warm
        for _ in range(chosen.rounds):
            yardstick = load_and_count(NGINX, proxied, connections, chosen.seconds)
            ours = [load_and_count(what, gateway, connections, chosen.seconds) for what, gateway in gateways.items()]
            figures += [yardstick, *(replace(each, ratio=each.cpu_us / yardstick.cpu_us) for each in ours)]
    if chosen.profile:
        gateway = gateways[GOVERNED]
        with profiled(gateway.pids[0], chosen.profile, chosen.seconds):
            load(gateway, CONNECTIONS[0], chosen.seconds + 1)
    return figures


@dataclass
class Server:
    port: int
    pids: list[int]
    script: Path = Path()  # what wrk sends

    def write_script(self, script: Path, key: str) -> None:
        self.script = script
        script.write_text(f"wrk.method='POST'; wrk.headers['Content-Type']='application/json'; wrk.headers['Authorization']='Bearer {key}'\nwrk.body=[[{BODY}]]\n")

    def cpu_s(self) -> float:
        ticks = 0
        for pid in self.pids:
            fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
            ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")


def load_and_count(what: str, server: Server, connections: int, seconds: int) -> Figure:
    before = server.cpu_s()
    said = load(server, connections, seconds)
    used = server.cpu_s() - before
    requests = int(number(r"(\d+) requests in", said))
    if re.search(r"Non-2xx or 3xx responses|Socket errors", said):
        raise SystemExit(f"{what}: not every answer was a 200:\n{said}")
    return Figure(what, connections, requests, used / requests * 1e6, 1.0, number(r"Requests/sec:\s+([\d.]+)", said),
                  latency(said, "50%"), latency(said, "99%"))


def load(server: Server, connections: int, seconds: int) -> str:
    return subprocess.run(
        ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency", "-s", str(server.script), f"http://127.0.0.1:{server.port}/v1/chat/completions"],
        check=True, capture_output=True, text=True, timeout=seconds + 30).stdout


def number(pattern: str, text: str) -> float:
    found = re.search(pattern, text)
    if found is None:
        raise SystemExit(f"wrk did not say {pattern!r}:\n{text}")
    return float(found[1])


def latency(text: str, percentile: str) -> float:
    found = re.search(rf"{percentile}\s+([\d.]+)(us|ms|s)", text)
    return float(found[1]) * {"us": 0.001, "ms": 1.0, "s": 1000.0}[found[2]] if found else float("nan")


@contextmanager
def nginx(folder: Path, location: str, top: str) -> Iterator[Server]:
    folder.mkdir()
    port = free_port()
    http_top, inside = (top, "") if top.startswith("upstream") else ("", top)
    (folder / "nginx.conf").write_text(f"""
daemon off; master_process off; pid {folder}/pid; error_log {folder}/error.log; worker_processes 1;
events {{ worker_connections 1024; }}
http {{ access_log off; client_body_temp_path {folder}/b; proxy_temp_path {folder}/p; fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u;
  scgi_temp_path {folder}/s; keepalive_requests 100000000; {http_top}
  server {{ listen 127.0.0.1:{port}; location / {{ {inside} {location} }} }} }}
""")
    process = subprocess.Popen(["nginx", "-c", str(folder / "nginx.conf"), "-p", str(folder)], stderr=subprocess.DEVNULL)
    try:
        wait_for(port)
        yield Server(port, [process.pid])
    finally:
        process.terminate()
        process.wait(10)


@contextmanager
def lockgate(folder: Path, upstream: int, budgets: str) -> Iterator[Server]:
    subprocess.run([*LOCKGATE, "init", str(folder)], check=True, capture_output=True)
    for shipped in (*folder.glob("policies/*.toml"), *folder.glob("routes/*.toml")):
        shipped.unlink()
    (folder / "config.toml").write_text(f"""
[auth]
pepper = "file:secrets/pepper"
[providers.up]
adapter = "openai"
base_url = "http://127.0.0.1:{upstream}/v1"
[prices."up/static"]
input = "1.00"
output = "2.00"
{budgets}""")
    (folder / "routes/static.toml").write_text('[[route]]\nname = "static"\n[[route.targets]]\nprovider = "up"\nmodel = "static"\n')
    (folder / "policies/rules.toml").write_text("".join(rule(n) for n in range(100)))
    made = subprocess.run([*LOCKGATE, "keys", "create", "--name", "bench", "--team", "team-0", "--json"], cwd=folder, check=True, capture_output=True)
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([*LOCKGATE, "serve", "--port", "0"], cwd=folder, stdout=subprocess.PIPE, stderr=log)
    assert process.stdout is not None
    try:
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            line = process.stdout.readline().decode() if selector.select(30) else ""
        if "ready on" not in line:
            raise SystemExit(f"lockgate did not start: {(folder / 'log').read_text()}")
        server = Server(int(line.rsplit(":", 1)[1]), [process.pid])
        server.write_script(folder / "call.lua", json.loads(made.stdout)["key"])
        yield server
    finally:
        process.terminate()
        process.wait(40)


def rule(n: int) -> str:
    """Ten rules for the caller's team, ninety for others; none of the ten denies, so all ten are evaluated."""
    return (f'[[rule]]\nid = "rule-{n}"\nmatch = {{ teams = ["team-{n % 10}"] }}\n'
            f"when = '''request.size > {100_000 + n} && request.model.startsWith(\"x{n}\")'''\neffect = \"deny\"\nmessage = \"no\"\n")


@contextmanager
def profiled(pid: int, file: str, seconds: int) -> Iterator[None]:
    if shutil.which("py-spy") is None:
        print("not profiled: py-spy is not installed", file=sys.stderr)
        yield
        return
    process = subprocess.Popen(["py-spy", "record", "-p", str(pid), "-d", str(seconds), "-f", "speedscope", "-o", file], stdout=subprocess.DEVNULL)
    yield
    process.wait(seconds + 30)


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def wait_for(port: int) -> None:
    end = time.monotonic() + 10
    while time.monotonic() < end:
        with socket.socket() as sock:
            if sock.connect_ex(("127.0.0.1", port)) == 0:
                return
    raise SystemExit(f"nothing listens on port {port}")


def table(figures: list[Figure]) -> None:
    print(f"{'median of the rounds':<22}{'conns':>6}{'requests':>10}{'CPU µs/req':>12}{'× nginx':>9}{'(min–max)':>13}{'req/s':>8}{'p50 ms':>8}{'p99 ms':>8}")
    for connections in CONNECTIONS:
        for what in dict.fromkeys(figure.what for figure in figures):
            runs = runs_of(figures, what, connections)
            ratios = [run.ratio for run in runs]
            print(f"{what:<22}{connections:>6}{sum(run.requests for run in runs):>10}{median(runs, 'cpu_us'):>12.1f}{statistics.median(ratios):>9.1f}"
                  f"{f'({min(ratios):.1f}–{max(ratios):.1f})':>13}{median(runs, 'rate'):>8.0f}{median(runs, 'p50_ms'):>8.2f}{median(runs, 'p99_ms'):>8.2f}")
        if plain := runs_of(figures, PLAIN, connections):
            added = [run.cpu_us / without.cpu_us for run, without in zip(runs_of(figures, GOVERNED, connections), plain, strict=True)]
            print(f"  what budgets add: × {statistics.median(added):.2f} ({min(added):.2f}–{max(added):.2f})")
    print(f"\nPython {sys.version.split()[0]}, {os.cpu_count()} processors shared by load, upstream and the process under test; CPU is of that process alone.")


def runs_of(figures: list[Figure], what: str, connections: int) -> list[Figure]:
    return [figure for figure in figures if (figure.what, figure.connections) == (what, connections)]


def median(runs: list[Figure], field: str) -> float:
    return float(statistics.median(getattr(run, field) for run in runs))


if __name__ == "__main__":
    main()
