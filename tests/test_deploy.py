"""The examples under `deploy/` say only what works."""

import re
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from gateway.cli import COMMANDS, cli
from gateway.deployment import read_deployment
from gateway.snapshot import compile_snapshot

DEPLOY = Path(__file__).parents[1] / "deploy"


def test_the_sidecars_configuration_compiles(tmp_path):
    """As it is mounted: a map's key cannot have a slash in it, so its files are placed by the pod."""
    configuration, pod = yaml.safe_load_all((DEPLOY / "kubernetes-sidecar.yaml").read_text())
    volumes = {volume["name"]: volume for volume in pod["spec"]["volumes"]}
    for item in volumes["configuration"]["configMap"]["items"]:
        path = tmp_path / item["path"]
        path.parent.mkdir(exist_ok=True)
        path.write_text(configuration["data"][item["key"]])
    [sidecar] = pod["spec"]["initContainers"]
    given = {variable["name"]: "a value" for variable in sidecar["env"]}
    snapshot = compile_snapshot(read_deployment(tmp_path / "config.toml"), given)
    assert list(snapshot.routes) == ["assistant"]


def test_the_containers_run_without_root_and_without_privileges():
    _configuration, pod = yaml.safe_load_all((DEPLOY / "kubernetes-sidecar.yaml").read_text())
    assert pod["spec"]["securityContext"]["runAsNonRoot"]
    for container in pod["spec"]["initContainers"] + pod["spec"]["containers"]:
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    [service] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"].values()
    assert (service["read_only"], service["cap_drop"]) == (True, ["ALL"])
    assert "\nUSER 10001:10001\n" in (DEPLOY / "Dockerfile").read_text()


def test_a_stop_leaves_more_time_than_calls_in_flight_may_take():
    [service] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"].values()
    _configuration, pod = yaml.safe_load_all((DEPLOY / "kubernetes-sidecar.yaml").read_text())
    unit = (DEPLOY / "lockgate.service").read_text()
    stops = [service["stop_grace_period"], f"{pod['spec']['terminationGracePeriodSeconds']}s", *re.findall(r"TimeoutStopSec=(\S+)", unit)]
    assert stops == ["80s"] * 3


def commands() -> list[list[str]]:
    """Every `lockgate` command line in the examples, without the program's own name."""
    lines = [re.split(r"[#\n]", found)[0].split() for name in ("compose.yaml", "lockgate.service")
             for found in re.findall(r"(?:/bin/lockgate|run --rm lockgate) (.*)", (DEPLOY / name).read_text())]
    _configuration, pod = yaml.safe_load_all((DEPLOY / "kubernetes-sidecar.yaml").read_text())
    dockerfile = re.search(r"^CMD (\[.*\])$", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)
    assert dockerfile is not None
    return [*lines, pod["spec"]["initContainers"][0]["args"], yaml.safe_load(dockerfile[1])]


@pytest.mark.parametrize("command", commands(), ids=" ".join)
def test_every_command_and_option_exists(command):
    assert command[0] in COMMANDS
    words = [word for word in command if not word.startswith("-")]
    path = words[:2] if command[0] == "keys" else words[:1]
    shown = CliRunner().invoke(cli, [*path, "--help"])
    assert shown.exit_code == 0
    for option in (word for word in command if word.startswith("--")):
        assert option in shown.output
