"""`lockgate policy`: cases with a report that CI reads, explanations that outlive the files, recorded traffic under other rules."""

import importlib.util
import json
import re
import xml.etree.ElementTree as ET
from collections.abc import AsyncIterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from click.testing import CliRunner, Result

from gateway.call import Origin
from gateway.case_config import CaseConfig
from gateway.cases import CaseResult
from gateway.cli.check import check
from gateway.cli.junit import write_junit
from gateway.cli.policy import policy
from gateway.clock import SystemClock
from gateway.deployment import read_deployment
from gateway.errors import ConfigError
from gateway.snapshot import compile_rules
from gateway.store.sqlite import SqliteStore

RULES = """
[[rule]]
id = "no-large"
match = { teams = ["blue"] }
when = 'route == "large" || request.max_tokens > 100'
effect = "deny"
message = "Too large."

[[rule]]
id = "seen"
when = "request.stream"
effect = "log"
"""
CASES = """
[[case]]
name = "blue may not use large"
facts.principal.team = "blue"
facts.route = "large"
expect = { effect = "deny", rule = "no-large" }

[[case]]
name = "others may"
facts.route = "large"
expect = { effect = "allow" }
"""
FAILING = """
[[case]]
name = "not <so> & 'quoted' é"
facts.route = "large"
expect = { effect = "deny" }

[[case]]
name = "of a recorded call"
call = "call_00000000000000000000000001"
expect = { effect = "allow" }
"""


@pytest.fixture(scope="module")
def samples() -> ModuleType:
    spec = importlib.util.spec_from_file_location("samples", Path(__file__).parents[1] / "store" / "samples.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("policies", "routes", "adapters"):
        (tmp_path / name).mkdir()
    (tmp_path / "config.toml").write_text('[store]\npath = "data.db"\n[auth]\nrequired = false\n')
    (tmp_path / "policies/rules.toml").write_text(RULES)
    (tmp_path / "policies/rules.cases.toml").write_text(CASES)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
async def store(folder: Path, samples: ModuleType) -> AsyncIterator[SqliteStore]:
    opened = SqliteStore(folder / "data.db", "one")
    await opened.start(now_ns=samples.NOW_NS)
    yield opened
    await opened.close()


@pytest.fixture
async def history(folder: Path, store: SqliteStore, samples: ModuleType, monkeypatch: pytest.MonkeyPatch) -> str:
    """A call that was denied, one that passed, one that was never judged, and one of a session; the digest of the rules."""
    monkeypatch.setattr(SystemClock, "now_ns", lambda _: samples.NOW_NS + 60 * 10**9)
    bundle = compile_rules(read_deployment(folder / "config.toml"))
    await store.bundles.keep(bundle.digest, bundle.content, now_ns=samples.NOW_NS)
    reason = {"rule": "no-large", "effect": "deny", "verdict": "matched", "source": "policies/rules.toml:2", "message": "Too large.",
              "values": {"route": "large", "request.max_tokens": 5}}
    plain: dict[str, Any] = {"origin": Origin(), "rule": "", "labels": (), "reasons": (), "bundle": bundle.digest}
    await store.journal.refuse(samples.refused(1, **{**plain, "route": "large", "rule": "no-large", "reasons": (reason,)}),
                               request=b'{"model":"large","max_tokens":5}')
    await store.journal.begin(samples.intent(2, request=b'{"model":"fast","max_tokens":50}', **plain))
    await store.journal.finish(samples.completed(2, **plain), response=b'{"choices":[]}')
    await store.journal.refuse(samples.refused(3, **{**plain, "decision": "", "code": "unknown_route"}), request=None)
    await store.journal.begin(samples.intent(4, request=None, **{**plain, "origin": Origin(session="s")}))
    return bundle.digest


def run(*arguments: str) -> Result:
    return CliRunner().invoke(policy, [*arguments])


@pytest.mark.usefixtures("folder")
class TestTesting:
    """`lockgate policy test`."""

    def test_it_says_what_is_covered_and_what_is_not(self) -> None:
        done = run("test")
        assert (done.exit_code, done.stderr) == (0, "")
        *table, last = done.stdout.splitlines()
        assert [line.split() for line in table] == [
            ["rule", "phase", "matched", "not_matched", "uncovered"], ["no-large", "request", "1", "0", "not", "matched"],
            ["seen", "request", "0", "2", "matched"], []]
        assert last == "ok: 2 cases, 50.0 % of the branches of 2 rules covered"

    def test_a_failing_case_is_an_error_with_its_place(self, folder: Path) -> None:
        (folder / "policies/z.cases.toml").write_text(FAILING)
        done = run("test", "-v")
        assert done.exit_code == 1
        assert done.stderr.startswith("error: policies/z.cases.toml:5:case[0].expect.effect: expected deny, and it is allow by default (case")
        skipped = "skipped policies/z.cases.toml:7: of a recorded call: is about a recorded call, and there is no database here"
        assert skipped in done.stdout
        assert run("test").stdout.startswith(f"{skipped}\n\nrule ")
        assert "passed  policies/rules.cases.toml:2: blue may not use large" in done.stdout
        assert done.stdout.splitlines()[-1].startswith("failed: 4 cases, 1 failed, 1 skipped, ")
        assert not [character for character in done.stdout if not character.isprintable() and character != "\n"]

    def test_json_says_the_same(self, folder: Path) -> None:
        said = json.loads(run("test", "--json").stdout)
        assert (said["ok"], said["coverage"], said["problems"]) == (True, 50.0, [])
        assert said["cases"][0] == {"name": "blue may not use large", "source": "policies/rules.cases.toml:2", "phase": "request",
                                    "status": "passed", "effects": {"deny": ["no-large"]}, "skipped": ""}
        assert said["rules"][1] == {"rule": "seen", "phase": "request", "source": "policies/rules.toml:9", "matched": 0, "not_matched": 2,
                                    "uncovered": ["matched"]}
        (folder / "policies/z.cases.toml").write_text(FAILING)
        failed = run("test", "--json")
        said = json.loads(failed.stdout)
        assert (failed.exit_code, said["ok"], said["problems"][0]["line"]) == (1, False, 5)
        (folder / "policies/z.cases.toml").write_text("[[cas]]")
        failed = run("test", "--json")
        said = json.loads(failed.stdout)
        assert (failed.exit_code, said["ok"], said["coverage"], said["cases"], said["rules"]) == (1, False, 0.0, [], [])
        assert said["problems"] == [{"file": "policies/z.cases.toml", "line": 1, "key": "cas", "message": "unknown key",
                                     "hint": 'did you mean "case"?'}]

    def test_ci_reads_the_results_whatever_a_case_is_called(self, folder: Path) -> None:
        (folder / "policies/z.cases.toml").write_text(FAILING)
        assert run("test", "--junit", "report.xml").exit_code == 1
        root = ET.parse(folder / "report.xml").getroot()  # noqa: S314 - our own file
        assert (root.tag, root.attrib) == (
            "testsuites", {"tests": "4", "failures": "1", "errors": "0", "skipped": "1", "name": "lockgate policy test"})
        assert [(suite.get("name"), suite.get("tests")) for suite in root] == [
            ("policies/rules.cases.toml", "2"), ("policies/z.cases.toml", "2")]
        failed, skipped = root[1]
        assert failed.attrib == {"classname": "policies/z.cases.toml", "name": "not <so> & 'quoted' é", "file": "policies/z.cases.toml",
                                 "line": "2", "time": "0"}
        assert failed[0].tag == "failure"
        assert (failed[0].get("message") or "").startswith("expected deny, and it is allow by default")
        assert (failed[0].text or "").startswith("policies/z.cases.toml:5:case[0].expect.effect: ")
        assert [each.tag for each in skipped] == ["skipped"]
        assert [len(case) for case in root[0]] == [0, 0]

    def test_what_xml_cannot_hold_is_replaced(self, folder: Path) -> None:
        case = CaseConfig.model_validate({"name": "x", "expect": {"effect": "allow"}, "source": "policies/x.cases.toml:1"})
        write_junit(folder / "report.xml", [CaseResult(case, skipped="\x00\ufffe\x1b[31m\U0001f600")])
        assert [each.get("message") for each in ET.parse(folder / "report.xml").iter("skipped")] == ["���[31m\U0001f600"]  # noqa: S314 - ours

    def test_a_report_that_cannot_be_written_is_told(self) -> None:
        done = run("test", "--junit", "nowhere/report.xml")
        assert done.exit_code == 1
        assert "nowhere/report.xml cannot be written: No such file or directory" in done.stderr

    @pytest.mark.parametrize(("least", "code"), [("50", 0), ("50.1", 1), ("100", 1)])
    def test_too_little_coverage_fails(self, least: str, code: int) -> None:
        done = run("test", "--min-coverage", least)
        assert done.exit_code == code
        assert ("error: 50.0 % of branches are covered" in done.stderr) is bool(code)
        assert json.loads(run("test", "--min-coverage", least, "--json").stdout)["ok"] is not bool(code)

    def test_one_file_of_cases_can_be_run(self, folder: Path) -> None:
        (folder / "policies/z.cases.toml").write_text(FAILING)
        assert run("test", "policies/rules.cases.toml").exit_code == 0
        assert run("test", "policies/z.cases.toml").exit_code == 1
        done = run("test", "policies/rules.toml")
        assert done.exit_code == 1
        assert "policies/rules.toml has no cases; a file of cases is named *.cases.toml" in done.stderr

    def test_a_folder_of_rules_can_be_tested_without_a_deployment(self, folder: Path) -> None:
        (folder / "config.toml").unlink()
        assert run("test", "policies").exit_code == 0
        assert run("test", "policies/rules.cases.toml").exit_code == 0
        (folder / "policies/rules.cases.toml").write_text("[[cas]]")
        done = run("test", "policies")
        assert isinstance(done.exception, ConfigError)
        assert str(done.exception.problems[0]).startswith("policies/rules.cases.toml:1:cas: unknown key")
        assert isinstance(run("test").exception, ConfigError)

    def test_other_rules_can_be_tested_under_the_settings_of_a_deployment(self, folder: Path) -> None:
        (folder / "other").mkdir()
        (folder / "other/x.toml").write_text('[[rule]]\nid = "eu"\nwhen = "env[\\"region\\"] == \\"eu\\""\neffect = "deny"\nmessage = "no"\n')
        (folder / "other/x.cases.toml").write_text('[[case]]\nname = "here"\nexpect = { effect = "deny", rule = "eu", message = "no" }\n')
        (folder / "config.toml").write_text('[policy]\nenv = { region = "eu" }\n')
        assert run("test", "other").exit_code == 0

    def test_without_rules_there_is_nothing_to_cover(self, folder: Path) -> None:
        (folder / "policies/rules.toml").write_text("")
        (folder / "policies/rules.cases.toml").write_text("")
        assert run("test").stdout == "ok: 0 cases, 100.0 % of the branches of 0 rules covered\n"

    def test_a_check_runs_the_cases_too(self, folder: Path) -> None:
        assert ", 2 cases, " in CliRunner().invoke(check, []).stdout
        (folder / "policies/z.cases.toml").write_text(FAILING)
        done = CliRunner().invoke(check, [])
        assert done.exit_code == 1
        assert done.stderr.startswith("error: policies/z.cases.toml:5:case[0].expect.effect: expected deny")


class TestRecorded:
    """With a denied call, one that passed, one that was never judged, and one of a session on record."""

    async def test_a_case_can_be_about_a_recorded_call(self, folder: Path, history: str, samples: ModuleType) -> None:
        _ = history
        text = "".join(f'[[case]]\nname = "{n}"\ncall = "{samples.call_id(n)}"\nexpect = {{ effect = "{effect}" }}\n'
                       for n, effect in ((1, "deny"), (2, "allow"), (3, "allow"), (4, "allow"), (9, "deny")))
        (folder / "policies/z.cases.toml").write_text(text)
        done = run("test", "policies/z.cases.toml", "--json")
        said = json.loads(done.stdout)
        assert [case["status"] for case in said["cases"]] == ["passed", "passed", "failed", "failed", "failed"]
        assert [problem["message"] for problem in said["problems"]] == [
            f'{samples.call_id(3)} was judged 0 times in phase request, not once (case "3")',
            f'{samples.call_id(4)} cannot be decided again: a rule reads `request.max_tokens`: it was not kept (case "4")',
            f'there is no call {samples.call_id(9)} on record (case "9")']

    async def test_a_call_is_explained_after_the_rules_have_changed(self, folder: Path, history: str, samples: ModuleType) -> None:
        (folder / "policies/rules.toml").write_text("")
        (folder / "policies/rules.cases.toml").unlink()
        (folder / "policies/broken.toml").write_text("[[rulez]]")
        done = run("explain", samples.call_id(1))
        assert (done.exit_code, done.stderr) == (0, "")
        lines = done.stdout.splitlines()
        assert re.fullmatch(r"call_0+1: chat of large by key000000001 of team blue, 2026-\d\d-\d\d \d\d:\d\d:\d\d UTC", lines[0])
        assert lines[1:] == [
            "outcome: refused, forbidden", f"rules: {history}", "", "the call was denied by no-large: no",
            "  deny no-large (policies/rules.toml:2) matched", "    match: teams blue",
            '    when route == "large"   [true]', "    or   request.max_tokens > 100   [false]",
            '    route was "large"', "    request.max_tokens was 5", "  what would have to change:",
            '    - For rule no-large not to match, `route == "large"` (route was "large") would have to be false, or the call would have to be outside of its match (teams blue).']

    async def test_json_is_what_the_endpoint_says(self, history: str, samples: ModuleType) -> None:
        told = json.loads(run("explain", samples.call_id(1), "--json").stdout)
        assert (told["decision"], told["rule"], told["bundle"]) == ("deny", "no-large", {"digest": history, "known": True})
        assert told["rules"][0]["decisive"] is True

    async def test_any_call_can_be_explained(self, history: str, samples: ModuleType) -> None:
        _ = history
        never = run("explain", samples.call_id(3)).stdout
        assert "the call was not judged" in never
        assert "- The call ended before the rules were asked." in never
        assert "the call was allowed" in run("explain", samples.call_id(2)).stdout
        unknown = run("explain", "call_\x1b[31m")
        assert unknown.exit_code == 1
        assert "there is no call 'call_\\x1b[31m' on record" in unknown.stderr

    async def test_a_story_tells_what_came_back_too(self, store: SqliteStore, samples: ModuleType) -> None:
        failed = {"rule": "late", "effect": "deny", "verdict": "error", "source": "a.toml:2", "message": "policy_error: no such key",
                  "phase": "tool_call", "subject": "bank.pay"}
        verdict = {"phase": "tool_call", "subject": "bank.pay", "decision": "deny", "rule": "late", "message": "Not now.",
                   "bundle": "sha256:abc", "reasons": [failed]}
        reasons = ({**failed, "rule": "dark", "verdict": "matched", "shadow": True}, {**failed, "rule": "hidden", "offered": False},
                   {**failed, "rule": "arguments", "verdict": "matched", "source": ""})
        await store.journal.begin(samples.intent(5))
        await store.journal.finish(samples.completed(5, verdicts=(verdict,), answer_labels=("checked", "late")), response=None)
        await store.journal.refuse(samples.refused(6, reasons=reasons, rule="default"), request=None)
        lines = run("explain", samples.call_id(5)).stdout.splitlines()
        assert lines[1:] == [
            "outcome: completed", "rules: sha256:abc (its content is not on record)", "", "the call was allowed by office-hours",
            "  allow office-hours (a.toml:3) matched", "  labels: checked, late", "",
            "+0 ms  attempt 1, first: alpha/small-1, succeeded after 3000 ms, 0.0000015 USD", "",
            "the tool call bank.pay was denied by late: Not now.", "  deny late (a.toml:2) could not be evaluated on bank.pay",
            "    policy_error: no such key", "  what would have to change:",
            "    - Rule late would have to be evaluated, which failed (policy_error: no such key); then it would have to be false.",
            "    - The rules that were in force are not on record any more, so it cannot be said what they look at.", "",
            "+3000 ms  the client got the whole answer (200)"]
        await store.journal.refuse(samples.refused(7, decision="", rule="", reasons=(), bundle="", code="invalid_request"), request=None)
        assert "rules: none were asked" in run("explain", samples.call_id(7)).stdout.splitlines()
        lines = run("explain", samples.call_id(6)).stdout.splitlines()
        assert "  deny dark (a.toml:2) matched on bank.pay in shadow mode, without effect" in lines
        assert "  deny arguments matched on bank.pay" in lines
        assert "  deny hidden (a.toml:2) could not be evaluated on bank.pay for a tool that was not offered" in lines

    async def test_recorded_traffic_is_decided_again_under_other_rules(self, folder: Path, history: str) -> None:
        _ = history
        (folder / "new").mkdir()
        (folder / "new/rules.toml").write_text(RULES.replace('route == "large" || request.max_tokens > 100', "request.max_tokens > 10"))
        said = json.loads(run("replay", "--bundle", "new", "--json").stdout)
        assert {key: said[key] for key in ("calls", "decided", "flipped")} == {"calls": 3, "decided": 3, "flipped": 2}
        assert [(flip["rule"], flip["before"], flip["after"], flip["count"], flip["cost_nusd"]) for flip in said["flips"]] == [
            ("no-large", "allow", "deny", 1, 1500), ("no-large", "deny", "allow", 1, 0)]
        assert said["undecided"] == {"a rule reads `request.max_tokens`: it was not kept": 1}
        shown = run("replay", "--bundle", "new").stdout.splitlines()
        assert shown[0].startswith("3 calls looked at under sha256:")
        assert shown[0].endswith(": 3 decisions taken again, 2 would change")
        assert shown[2].split() == ["count", "rule", "phase", "before", "after", "cost_usd", "example"]
        assert shown[3].split()[:6] == ["1", "no-large", "request", "allow", "deny", "0.0000015"]
        assert shown[-1] == "1      a rule reads `request.max_tokens`: it was not kept"

    async def test_under_the_rules_of_then_nothing_flips(self, history: str) -> None:
        said = json.loads(run("replay", "--json").stdout)
        assert (said["bundle"], said["flipped"], said["flips"]) == (history, 0, [])
        assert "would change" in run("replay").stdout

    async def test_what_is_looked_at_is_bounded(self, history: str) -> None:
        _ = history
        assert json.loads(run("replay", "--limit", "1", "--json").stdout)["calls"] == 1
        assert "there may be more calls: raise --limit to look further" in run("replay", "--limit", "1").stdout
        assert json.loads(run("replay", "--since", "1s", "--json").stdout)["calls"] == 0
        wrong = run("replay", "--since", "yesterday")
        assert wrong.exit_code == 2
        assert "a duration is a string of a number and a unit" in wrong.stderr
