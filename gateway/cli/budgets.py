"""`lockgate budgets`: what is spent, and who may spend how much. What it changes counts from the next call of every gateway."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, get_args

import click

from gateway.budget_changes import Catalogue, Stamp, check_author, raise_limit, remove, set_budget, set_limits, shown
from gateway.cli.author import stamped, user
from gateway.cli.budget_reports import a_moment, an_account, configured, costs, history, refused, show, suspects
from gateway.cli.deployment import on_store
from gateway.cli.output import config_option, emit_json, emit_problem, json_option, printable
from gateway.clock import SystemClock, time_text
from gateway.config import BudgetConfig
from gateway.core.accounts import SCOPES, UNDER_KEY, Change, OnShort, Scope
from gateway.core.money import usd
from gateway.deployment import read_settings
from gateway.money_reports import account_row, change_row, settings_of
from gateway.store.protocol import AccountFilter, Standing, StoredKey
from gateway.store.sqlite import SqliteStore
from gateway.toml_source import Source
from gateway.units import parse_duration, parse_money
from gateway.validation import nearest, validated

_OF_A_BUDGET: Final = ("scope", "of", "window", "timezone", "on_short", "least_output")  # options that mean a whole budget
_MOST_TOLD: Final = 10
_NS: Final = 10**9


class Usd(click.ParamType[int]):
    """An amount of USD as a decimal number, in nano-USD."""

    name = "USD"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            return parse_money(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def budgets() -> None:
    """See what is spent, set and raise limits, settle what a crash left open."""


for _command in (show, history, suspects, costs):
    budgets.add_command(_command)


@budgets.command("set", short_help="Make a budget, or give one of its accounts its own limit.")
@click.argument("name")
@click.argument("subject", default="")
@click.option("--limit", type=Usd(), help="What may be spent in a window.")
@click.option("--soft", type=Usd(), help="What may be spent before there are warnings.")
@click.option("--scope", type=click.Choice(SCOPES), help="What has an account of its own; needed for a new budget.")
@click.option("--of", multiple=True, help="A glob of the subjects that it binds; may be given several times. Default: all.")
@click.option("--window", help="When money comes back: hour, day, week, month, a duration for a rolling window, or none (the default).")
@click.option("--timezone", help="The time zone of days, weeks and months: Europe/Berlin. Default: UTC.")
@click.option("--on-short", type=click.Choice(get_args(OnShort)), help="Whether calls are shortened to what is left, or refused.")
@click.option("--least-output", type=int, help="The shortest answer that is worth a call, in tokens.")
@stamped
def set_(*, name: str, subject: str, author: str, note: str, config_path: str, as_json: bool, **given: Any) -> None:
    """Make a budget, change one that was made so, or with SUBJECT give one account limits of its own.

    What is not given stays as it is. Budgets of config.toml are changed there; limits for their accounts, or for all of them, can be set.
    """
    name, subject = an_account(name, subject)
    settings = {option: value for option, value in given.items() if value not in (None, ())}
    whole = [option for option in _OF_A_BUDGET if option in settings]
    if subject and whole:
        raise click.UsageError(f"--{whole[0].replace('_', '-')} belongs to a budget, and {name}/{shown(subject)} is one account of it")

    def change(known: Catalogue, stamp: Stamp) -> Change:
        if name not in known.budgets and "scope" not in settings and not subject:
            hint = nearest(name, known.budgets)
            raise click.ClickException(f"there is no budget {shown(name)!r}{f' ({hint})' if hint else ''}; a new one needs --scope")
        if whole:
            return set_budget(known, name, _budget_config(known, name, settings), stamp)
        return set_limits(known, name, subject, (settings.get("limit"), settings.get("soft")), stamp)

    _change(change, Stamp(author, SystemClock().now_ns(), note), config_path, as_json=as_json)


@budgets.command("raise", short_help="Raise a limit for a while.")
@click.argument("name")
@click.argument("subject", default="")
@click.option("--by", type=Usd(), required=True, help="How much more may be spent.")
@click.option("--for", "lasting", metavar="DURATION", help="For how long: 24h.")
@click.option("--until", metavar="TIME", help="Until when: a date or time (UTC unless it says otherwise).")
@stamped
def raise_(  # noqa: PLR0913 - one parameter an option
    *, name: str, subject: str, by: int, lasting: str | None, until: str | None, author: str, note: str, config_path: str, as_json: bool,
) -> None:
    """Raise the limit of one account, or without SUBJECT of every account of a budget, for a while. It ends by itself."""
    name, subject = an_account(name, subject)
    if (lasting is None) == (until is None):
        raise click.UsageError("say how long: either --for or --until")
    now_ns = SystemClock().now_ns()
    until_ns = now_ns + _duration_ns(lasting) if lasting is not None else a_moment("--until", until or "", now_ns, back=False)
    _change(lambda known, stamp: raise_limit(known, name, subject, (by, until_ns), stamp), Stamp(author, now_ns, note), config_path,
            as_json=as_json)


@budgets.command("remove", short_help="Take back what was set or raised.")
@click.argument("name")
@click.argument("subject", default="")
@stamped
def remove_(*, name: str, subject: str, author: str, note: str, config_path: str, as_json: bool) -> None:
    """Take back what was set and raised for one account, or without SUBJECT for a budget and all of its accounts.

    What was spent stays on record.
    """
    name, subject = an_account(name, subject)
    _change(lambda known, stamp: remove(known, name, subject, stamp), Stamp(author, SystemClock().now_ns(), note), config_path,
            as_json=as_json)


@budgets.command(short_help="Book what a suspect really cost.")
@click.argument("call_id")
@click.option("--cost", type=Usd(), help="What it really cost.")
@click.option("--as-booked", is_flag=True, help="What was booked is right.")
@click.option("--author", default=user, show_default="the user of this system", help="Who says so.")
@config_option
@json_option
def resolve(*, call_id: str, cost: int | None, as_booked: bool, author: str, config_path: str, as_json: bool) -> None:
    """Book what a call really cost whose process died (`lockgate budgets suspects`); the ledger gets a line with the difference."""
    if (cost is None) != as_booked:
        raise click.UsageError("say what it cost: either --cost or --as-booked")
    with refused():
        check_author(author)

    async def work(store: SqliteStore) -> None:
        if not await store.budgets.resolve(call_id, cost, author=author, now_ns=SystemClock().now_ns()):
            known = await store.journal.call(call_id)
            why = f"there is no call {shown(call_id)!r} on record" if known is None else f"nothing is in doubt about the call {call_id}"
            raise click.ClickException(f"{why}; `lockgate budgets suspects` lists those that are to be resolved")

    on_store(read_settings(Path(config_path)), "budgets", work)
    if as_json:
        emit_json({"call": call_id, "cost_usd": None if cost is None else usd(cost), "as_booked": as_booked, "resolved": True})
    else:
        click.echo(f"Call {call_id} is resolved: {'what was booked is right' if cost is None else f'it cost {usd(cost)} USD'}.")


def _change(change: Callable[[Catalogue, Stamp], Change], stamp: Stamp, config_path: str, *, as_json: bool) -> None:
    """Put a change on record and tell what it comes to."""
    deployment = read_settings(Path(config_path))
    book = configured(deployment)

    async def work(store: SqliteStore) -> tuple[Catalogue, Change, Sequence[Standing], Sequence[StoredKey]]:
        before = await store.budgets.changes()
        with refused():
            wanted = change(Catalogue.of(book, before), stamp)
        kept = await store.budgets.change(wanted)
        standings = await store.budgets.accounts(book, AccountFilter(kept.name, kept.subject or None), now_ns=stamp.now_ns)
        return Catalogue.of(book, [*before, kept]), kept, standings, (await store.keys.all())[1]

    known, kept, standings, keys = on_store(deployment, "budgets", work)
    over = [each for each in standings if _is_over(each)]
    warnings = [*_of_exceptions(known, kept), *_of_spent(kept, over)]
    if kept.subject and kept.kind != "remove" and deployment.config.auth.required:
        warnings += _of_subject(known.budget(kept.name).scope, kept.subject, keys)
    for warning in warnings:
        emit_problem(warning, "warning")
    if as_json:
        emit_json({"change": change_row(known, kept), "accounts": [account_row(each) for each in standings],
                   "over": [each.account.name for each in over]})
        return
    click.echo(printable(f"{_done(kept)}. This counts from the next call."))


def _done(kept: Change) -> str:
    where = kept.name + (f"/{kept.subject}" if kept.subject else "")
    if kept.kind == "raise":
        return f"{where} may use {usd(kept.limit_nusd or 0)} USD more until {time_text(kept.until_ns)}"
    return f"{where} is set" if kept.kind == "set" else f"What was set for {where} is taken back"


def _budget_config(known: Catalogue, name: str, settings: dict[str, Any]) -> BudgetConfig:
    """A budget's settings, with those that it has where they are not given."""
    before = settings_of(known.budgets[name]) if name in known.budgets else {}
    given = {option: usd(value) if option in ("limit", "soft") else value for option, value in settings.items()}
    data = {option: value for option, value in {**before, **given}.items() if value is not None}
    made, problems = validated(BudgetConfig, Source("", data))
    if made is None:
        option = problems[0].key.partition("[")[0].replace("_", "-")
        raise click.BadParameter(problems[0].message, param_hint=f"--{option}")
    return made


def _duration_ns(text: str) -> int:
    try:
        return int(parse_duration(text) * _NS)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--for") from error


def _is_over(standing: Standing) -> bool:
    limit, counted = standing.account.limit_nusd, standing.counted
    return limit is not None and counted.posted + counted.pending > limit


def _of_exceptions(known: Catalogue, kept: Change) -> Iterator[str]:
    """What holds beside a limit that was set: who stops an account should know."""
    raises = known.raises(kept.name, kept.at_ns) if kept.kind == "set" else []
    own = known.with_own_limits(kept.name) if kept.kind == "set" and not kept.subject else []
    if own:
        more = f" and {len(own) - _MOST_TOLD} more" if len(own) > _MOST_TOLD else ""
        yield f"{', '.join(own[:_MOST_TOLD])}{more} of {kept.name} have limits of their own, which stay as they are"
    for subject, by, until_ns in [each for each in raises if not kept.subject or each[0] in ("", kept.subject)][:_MOST_TOLD]:
        where = kept.name + (f"/{subject}" if subject else "")
        yield (f"{where} is raised, and may use {usd(by)} USD beside its limit until {time_text(until_ns)}; "
               f"`lockgate budgets remove` takes back the raise, and what was set")


def _of_spent(kept: Change, over: Sequence[Standing]) -> Iterator[str]:
    """Which accounts have used what they may not use any more."""
    for row in map(account_row, over[:_MOST_TOLD]):
        until = f"until {row['resets_at']}" if row["resets_at"] else "until it is raised"
        yield (f"{row['account']} has used {row['used_usd']} USD, with {row['reserved_usd']} set aside, and may use {row['limit_usd']}: "
               f"nothing that costs goes out {until}")
    if len(over) > _MOST_TOLD:
        yield f"that is so of {len(over) - _MOST_TOLD} more accounts; `lockgate budgets show {kept.name}` lists them"


def _of_subject(scope: Scope, subject: str, keys: Sequence[StoredKey]) -> Iterator[str]:
    """Whether a subject that has to do with keys is one that no key has: most likely a slip."""
    if scope in ("team", "org"):
        name, known = subject, {getattr(each, scope) for each in keys} - {""}
    elif scope == "key" or scope in UNDER_KEY:
        scope, name, known = "key", subject.partition("/")[0], {each.id for each in keys}
    else:
        return
    if name not in known:
        hint = nearest(name, known)
        yield f"there is no {scope} {name!r} yet" + (f" ({hint})" if hint else "")
