"""`lockgate policy`: runs the rules' cases, explains what was decided on a call, decides recorded traffic again under other rules."""

import contextlib
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final

import click

from gateway.call import JsonObject
from gateway.case_config import CaseConfig
from gateway.cases import CaseResult, CasesResult, Recorded, run_cases
from gateway.cli.check import placed
from gateway.cli.deployment import database_of, open_deployment
from gateway.cli.explain import tell_call
from gateway.cli.junit import write_junit
from gateway.cli.output import config_option, count, emit_json, emit_problem, emit_rows, json_option, printable
from gateway.clock import SystemClock
from gateway.config import Deployment
from gateway.core.money import usd
from gateway.deployment import read_deployment, read_policies
from gateway.errors import ConfigError, Problem
from gateway.recorded import Judgement, effects_of, judgements
from gateway.replay import Replayed
from gateway.replay import replay as replayed
from gateway.snapshot import compile_rules
from gateway.store.database import Connection, open_readonly
from gateway.store.protocol import CallFilter, DecidedCall
from gateway.store.reads import decided_calls, list_calls, one_call
from gateway.supposed import World, world_of
from gateway.units import parse_duration

_BRANCH_COLUMNS: Final = ("rule", "phase", "matched", "not_matched", "uncovered")
_FLIP_COLUMNS: Final = ("count", "rule", "phase", "before", "after", "cost_usd", "example")
_PAGE: Final = 500
_DEFAULT_CONFIG: Final = "config.toml"


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def policy() -> None:
    """Run the rules' cases, explain a call, decide recorded traffic again."""


@policy.command()
@click.argument("path", required=False, type=click.Path(exists=True, path_type=Path))
@config_option
@click.option("--junit", "junit_path", type=click.Path(dir_okay=False, path_type=Path), help="Also write the results as JUnit XML here.")
@click.option("--min-coverage", type=click.FloatRange(0, 100), default=0.0, help="Fail below this share of covered branches, in percent.")
@click.option("-v", "--verbose", is_flag=True, help="Show every case, not only those that fail or are skipped.")
@json_option
def test(
    *, path: Path | None, config_path: str, junit_path: Path | None, min_coverage: float, verbose: bool, as_json: bool,
) -> None:
    """Run the cases of the rules. Exit code 1 if one fails, or if less of the rules is covered than is asked for.

    PATH is a folder of rules, or one of its files of cases; without it, the folder that the deployment's config.toml names. A branch is
    a rule that matches, or one that is asked and does not.
    """
    folder = path.parent if path is not None and path.is_file() else path
    alone = folder is not None and config_path == _DEFAULT_CONFIG and not Path(config_path).exists()
    root = folder.absolute().parent if alone and folder else Path(config_path).parent
    try:
        deployment = read_policies(folder) if alone and folder else read_deployment(Path(config_path), policies=folder)
        bundle = compile_rules(deployment)
    except ConfigError as error:
        problems = [placed(problem, root) for problem in error.problems]
        if not as_json:
            raise ConfigError(problems) from error
        emit_json({**_result_json(CasesResult((), ()), problems, ok=False), "coverage": 0.0})
        sys.exit(1)
    if path != folder:
        deployment = replace(deployment, cases=_cases_of(deployment, path))
    result = run_cases(deployment, bundle, recorded=None if alone else _recorded(deployment))
    failures = [placed(problem, deployment.folder) for problem in result.failures]
    if junit_path is not None:
        try:
            write_junit(junit_path, result.results)
        except OSError as error:
            raise click.ClickException(f"{junit_path} cannot be written: {error.strerror}") from error
    covered = result.coverage >= min_coverage
    if as_json:
        emit_json(_result_json(result, failures, ok=covered and not failures))
    else:
        _show(result, failures, verbose=verbose)
        if not covered:
            click.echo(f"error: {result.coverage:.1f} % of branches are covered, and {min_coverage:g} % are asked for", err=True)
    if failures or not covered:
        sys.exit(1)


@policy.command(short_help="Say why a call was decided so.")
@click.argument("call_id")
@config_option
@json_option
def explain(*, call_id: str, config_path: str, as_json: bool) -> None:
    """Say why a call was decided as it was, and what would have to change: the same as `lockgate explain`."""
    tell_call(call_id, config_path, as_json=as_json)


@policy.command(short_help="Decide recorded calls under other rules.")
@click.option("--since", default="7d", show_default=True, help="How far back: a duration such as 12h or 7d.")
@click.option("--bundle", "folder", type=click.Path(exists=True, file_okay=False, path_type=Path),
              help="The folder of rules to decide under; without it, the deployment's own as its files are now.")
@click.option("--limit", type=click.IntRange(1), default=10_000, show_default=True, help="The most calls to look at, the oldest first.")
@config_option
@json_option
def replay(*, since: str, folder: Path | None, limit: int, config_path: str, as_json: bool) -> None:
    """Decide recorded calls again, and list what would come out differently, by rule.

    What cannot be decided again, because the journal does not hold what a rule reads, is counted by its reason.
    """
    try:
        since_ns = SystemClock().now_ns() - round(parse_duration(since) * 1e9)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--since") from error
    deployment = read_deployment(Path(config_path), policies=folder)
    bundle = compile_rules(deployment)
    _path, opened = open_deployment(config_path)
    with contextlib.closing(opened) as connection:
        found = replayed(bundle, _calls(connection, since_ns, limit), world_of(deployment))
    if as_json:
        emit_json({"bundle": bundle.digest, **found.as_json()})
    else:
        _show_replay(found, bundle.digest, limited=found.calls == limit)


def _cases_of(deployment: Deployment, path: Path | None) -> tuple[CaseConfig, ...]:
    """The cases of one file."""
    cases = tuple(case for case in deployment.cases if path and Path(case.source.rpartition(":")[0]).name == path.name)
    if not cases:
        raise click.ClickException(f"{path} has no cases; a file of cases is named *.cases.toml")
    return cases


def _recorded(deployment: Deployment) -> Recorded | None:
    """The recorded calls of a deployment; None where it has no database."""
    if deployment.config.store.path == ":memory:" or not database_of(deployment).exists():
        return None
    world = world_of(deployment)

    def look_up(call_id: str) -> list[Judgement] | None:
        with contextlib.closing(open_readonly(database_of(deployment))) as connection:
            return _judgements_of(connection, call_id, world)

    return look_up


def _judgements_of(connection: Connection, call_id: str, world: World) -> list[Judgement] | None:
    detail = one_call(connection, call_id)
    if detail is None:
        return None
    before = list_calls(connection, CallFilter(limit=1, before=call_id))
    judged = decided_calls(connection, 0, before[0]["id"] if before else None, 1)
    return list(judgements(judged[0], detail, world)) if judged and judged[0].id == call_id else []


def _calls(connection: Connection, since_ns: int, limit: int) -> Iterator[tuple[DecidedCall, JsonObject]]:
    """Every judged call since then with its detail, in order."""
    after = None
    while limit > 0 and (page := decided_calls(connection, since_ns, after, min(_PAGE, limit))):
        for call in page:
            yield call, one_call(connection, call.id) or {}
        after, limit = page[-1].id, limit - len(page)


def _status(result: CaseResult) -> str:
    return "failed" if result.problems else "skipped" if result.skipped else "passed"


def _result_json(result: CasesResult, failures: list[Problem], *, ok: bool) -> dict[str, Any]:
    return {
        "ok": ok, "coverage": round(result.coverage, 1), "problems": [asdict(problem) for problem in failures],
        "cases": [{"name": each.case.name, "source": each.case.source, "phase": each.case.phase, "status": _status(each),
                   "effects": effects_of(each.decision) if each.decision else {}, "skipped": each.skipped} for each in result.results],
        "rules": [{**asdict(each), "uncovered": each.uncovered} for each in result.branches],
    }


def _show(result: CasesResult, failures: list[Problem], *, verbose: bool) -> None:
    shown = [each for each in result.results if verbose or each.skipped]  # a case that was not run proves nothing
    for each in shown:
        why = f": {each.skipped}" if each.skipped else ""
        click.echo(printable(f"{_status(each):7} {each.case.source}: {each.case.name}{why}"))
    if shown:
        click.echo()
    if result.branches:
        emit_rows([{**asdict(each), "uncovered": each.uncovered} for each in result.branches], _BRANCH_COLUMNS, as_json=False)
        click.echo()
    for problem in failures:
        emit_problem(problem)
    counts: Mapping[str, int] = {name: sum(_status(each) == name for each in result.results) for name in ("failed", "skipped")}
    told = [count(len(result.results), "case"), *(f"{number} {name}" for name, number in counts.items() if number),
            f"{result.coverage:.1f} % of the branches of {count(len(result.branches), 'rule')} covered"]
    click.echo(f"{'failed' if failures else 'ok'}: {', '.join(told)}")


def _show_replay(found: Replayed, digest: str, *, limited: bool) -> None:
    told = found.as_json()
    click.echo(f"{count(found.calls, 'call')} looked at under {digest}: {count(found.decided, 'decision')} taken again, "
               f"{told['flipped']} would change")
    if limited:
        click.echo("there may be more calls: raise --limit to look further")
    rows = [{**flip, "cost_usd": _cost(flip), "example": flip["calls"][0]} for flip in told["flips"]]
    if rows:
        click.echo()
        emit_rows(rows, _FLIP_COLUMNS, as_json=False)
    if told["undecided"]:
        click.echo("\nnot decided again")
        emit_rows([{"count": number, "reason": why} for why, number in told["undecided"].items()], ("count", "reason"), as_json=False)


def _cost(flip: Mapping[str, Any]) -> str:
    return usd(flip["cost_nusd"]) + (f" and {flip['unpriced']} unknown" if flip["unpriced"] else "")
