"""Reads a deployment's files into a `Deployment`: config.toml, routes, rules and lists. Owns where they stand and what a team may say."""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final

from gateway.case_config import CasesFile
from gateway.config import Config, Deployment, PathsConfig, RoutesFile
from gateway.errors import ConfigError, Problem
from gateway.rule_config import DefaultsConfig, PolicyFile, RuleConfig
from gateway.smallfile import read_small
from gateway.toml_source import KeyPath, Source, read_source
from gateway.validation import Model, validated

# The arrays whose tables are told where they stand, with the keys of their tables that the loader alone sets.
_ENTRIES: Final[Mapping[str, tuple[str, ...]]] = {
    "route": ("source",), "tool": ("source",), "rule": ("source", "team"), "case": ("source",)}
_CASES: Final = ".cases.toml"
_LISTS: Final = "lists"  # the folder of lists, in that of the rules
_LIBRARY: Final = "library"  # the folder of bundles to take rules from, there too; it is not read
_LISTS_BYTES: Final = 10 * 1024 * 1024  # of all lists together
_LIST_LINES: Final = 100_000  # to sort more at a stretch would hold up the calls that run during a reload
_COMMENT: Final = re.compile(r"(?:^|\s)#.*")  # after a blank, so that "C#" can be an item


def read_deployment(config_path: Path, *, policies: Path | None = None, paths: PathsConfig | None = None) -> Deployment:
    """Read config.toml and the folders that it names, strictly. No environment, no secret, no adapter is looked at.

    `policies` is a folder of rules to read instead of the one that is named there, `paths` are all folders to read instead.

    Raises:
        ConfigError: with every problem of every file.
    """
    reading = _Reading(config_path.absolute().parent)
    config = reading.config(config_path.name)
    main = reading.sources[config_path.name]
    if config is None and not main.data:  # nobody knows which folders it would have named
        raise ConfigError(reading.problems)
    paths = paths or (config.paths if config else PathsConfig())
    routes = reading.folder(paths.routes, RoutesFile, partial(main.problem, ("paths", "routes")))
    read = reading.policies(str(policies.absolute()) if policies else paths.policies, partial(main.problem, ("paths", "policies")))
    if config is None or reading.problems:
        raise ConfigError(reading.problems)
    return replace(read, config=config, routes=tuple(entry for file in routes.values() for entry in file.route),
                   tools=tuple(entry for file in routes.values() for entry in file.tool), file=config_path.name)


def read_settings(config_path: Path) -> Deployment:
    """Read config.toml alone, as a deployment without routes and rules: a slip in a rule keeps nobody from revoking a key.

    Raises:
        ConfigError: with every problem of that file.
    """
    reading = _Reading(config_path.absolute().parent)
    config = reading.config(config_path.name)
    if config is None:
        raise ConfigError(reading.problems)
    return Deployment(reading.root, config, sources=reading.sources, file=config_path.name)


def read_policies(folder: Path) -> Deployment:
    """Read a folder of rules alone, as a deployment with the usual settings and no routes.

    Raises:
        ConfigError: with every problem of every file.
    """
    reading = _Reading(folder.absolute().parent)
    read = reading.policies(folder.absolute().name, partial(Problem, str(folder), None, ""))
    if reading.problems:
        raise ConfigError(reading.problems)
    return read


class _Reading:
    """The files read so far and the problems found in them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.sources: dict[str, Source] = {}
        self.problems: list[Problem] = []
        self.unread: list[str] = []
        self._list_bytes = 0

    def file(self, name: str, model: type[Model]) -> Model | None:
        """One file as a model; None where it cannot be used."""
        source, problems = read_source(self.root / name, name)
        self.sources[name] = source
        made = None
        if not problems:
            data, problems = _placed(source)
            made, found = validated(model, replace(source, data=data))
            problems += found
        self.problems += problems
        return made

    def config(self, name: str) -> Config | None:
        """config.toml. Where there is none, most likely another folder was meant."""
        made = self.file(name, Config)
        if made is None and not (self.root / name).exists():
            self.problems = [replace(self.problems[-1], hint="`lockgate init DIR` makes one, and --config names another")]
        return made

    def policies(self, name: str, problem: Callable[[str, str], Problem]) -> Deployment:
        """A folder of rules with its lists and cases, as a deployment of nothing else."""
        files = self.folder(name, PolicyFile, problem)
        lists = self.lists(f"{name}/{_LISTS}")
        cases = tuple(case for file in self.cases(name) for case in file.case)
        defaults = self.defaults(files)
        rules = tuple(rule for found, file in files.items() for rule in self.rules(found, file))
        return Deployment(self.root, Config(), rules=rules, defaults=defaults, lists=lists, cases=cases, sources=self.sources,
                          unread=tuple(self.unread))

    def folder(self, name: str, model: type[Model], problem: Callable[[str, str], Problem]) -> dict[str, Model]:
        """Every TOML file of a folder by name, but for cases (they are tests) and hidden files (an editor's).

        `problem` makes one of the setting that names the folder.
        """
        names = self._names(name)
        if isinstance(names, OSError):
            self.problems.append(problem(f"the folder {name} cannot be read: {names.strerror}",
                                         "make it, even if it stays empty: what is missing by accident must not go unnoticed"))
            return {}
        skipped = {_LISTS, _LIBRARY} if model is PolicyFile else set()
        self.unread += [f"{name}/{found}" for found in names if not found.endswith(".toml") and found not in skipped]
        chosen = [f"{name}/{found}" for found in names if found.endswith(".toml") and not found.endswith(_CASES)]
        made = {found: self.file(found, model) for found in chosen}
        return {found: file for found, file in made.items() if file is not None}

    def lists(self, name: str) -> dict[str, frozenset[str]]:
        """Every list of a folder by its name, which is its file's without `.txt`; none where there is no folder."""
        names = self._names(name)
        if isinstance(names, FileNotFoundError):
            return {}
        if isinstance(names, OSError):
            self.problems.append(Problem(name, None, "", f"cannot be read: {names.strerror}", "make it a folder of lists, or remove it"))
            return {}
        self.unread += [f"{name}/{found}" for found in names if not found.endswith(".txt")]
        return {found.removesuffix(".txt"): self._list(f"{name}/{found}") for found in names if found.endswith(".txt")}

    def cases(self, name: str) -> list[CasesFile]:
        """Every file of cases in a folder of rules; none where the folder cannot be read, which is said elsewhere."""
        names = self._names(name)
        chosen = [] if isinstance(names, OSError) else [found for found in names if found.endswith(_CASES)]
        made = [self.file(f"{name}/{found}", CasesFile) for found in chosen]
        return [file for file in made if file is not None]

    def defaults(self, policies: Mapping[str, PolicyFile]) -> DefaultsConfig:
        """What holds where no rule says anything: of the one file that says it."""
        said = {name: file.defaults for name, file in policies.items() if file.defaults is not None and file.bundle.team is None}
        first, *others = said or [""]
        self.problems += [self.sources[name].problem(("defaults",), "is given twice", f"first at {self._place(first, ('defaults',))}")
                          for name in others]
        return said.get(first) or DefaultsConfig()

    def rules(self, name: str, file: PolicyFile) -> Iterator[RuleConfig]:
        """The rules of a file. Those of a team's are for that team alone, and can take away but not give."""
        team = file.bundle.team
        if team is None:
            yield from file.rule
            return
        if file.defaults is not None:
            self._widens(name, ("defaults",), "is the organisation's to say")
        for number, rule in enumerate(file.rule):
            for path, what in _widening(rule):
                self._widens(name, ("rule", number, *path), f'{what} (rule "{rule.id}")')
            yield rule.model_copy(update={"team": team})

    def _widens(self, name: str, path: KeyPath, what: str) -> None:
        self.problems.append(self.sources[name].problem(
            path, f"{what}: a team's rules can only narrow", "take it out, or move it to a file without `[bundle] team`"))

    def _list(self, name: str) -> frozenset[str]:
        try:
            data = read_small(self.root / name, limit=_LISTS_BYTES - self._list_bytes)
            lines = data.decode("utf-8-sig").split("\n")
        except UnicodeDecodeError as error:
            self.problems.append(Problem(name, None, "", f"not UTF-8 text: byte {error.start} cannot be read"))
            return frozenset()
        except ValueError as error:
            self.problems.append(Problem(name, None, "", str(error), f"all lists together may have {_LISTS_BYTES} bytes"))
            return frozenset()
        self._list_bytes += len(data)
        if len(lines) > _LIST_LINES:
            self.problems.append(Problem(name, None, "", f"has {len(lines)} lines, and a list has {_LIST_LINES} at most"))
        items = (_COMMENT.sub("", line).strip() for line in lines)
        return frozenset(filter(None, items))

    def _names(self, name: str) -> list[str] | OSError:
        """What stands in a folder, without hidden files; or why that is not known."""
        try:
            return sorted(path.name for path in (self.root / name).iterdir() if not path.name.startswith("."))
        except OSError as error:
            return error

    def _place(self, name: str, path: KeyPath) -> str:
        return f"{name}:{self.sources[name].line(path) or 0}"


def _widening(rule: RuleConfig) -> Iterator[tuple[KeyPath, str]]:
    """What a rule says that could let its team do more than the organisation's rules allow, and where it says so."""
    if rule.effect == "allow":
        yield ("effect",), "`allow` lets calls through"
    if rule.match.teams:
        yield ("match", "teams"), "`[bundle] team` says whose calls they are"
    if rule.route is not None and rule.route.to is not None:
        yield ("route", "to"), "another route may be one that the caller may not use"
    if rule.redact is not None and rule.redact.fields and rule.phase == "request":
        yield ("redact", "fields"), "a field may be one that the organisation has set"
    if rule.set is None:
        return
    if rule.set.values:
        yield ("set", "values"), "a value that is written may be more than was asked for"
    for field, clamp in rule.set.clamp.items():
        if clamp.min is not None:
            yield ("set", "clamp", field, "min"), "a lower bound may be more than was asked for"
    if rule.set.system_mode == "replace":
        yield ("set", "system_mode"), '"replace" takes out what the organisation has added'


def _placed(source: Source) -> tuple[Mapping[str, Any], list[Problem]]:
    """The data with `source` set in every entry, which nobody else may set."""
    placed: dict[str, Any] = dict(source.data)
    problems: list[Problem] = []
    for key, ours in _ENTRIES.items():
        tables = source.data.get(key)
        if not isinstance(tables, list):
            continue
        problems += [source.problem((key, number, name), "unknown key")
                     for number, table in enumerate(tables) if isinstance(table, dict) for name in ours if name in table]
        placed[key] = [{**table, "source": f"{source.file}:{source.line((key, number)) or 0}"} if isinstance(table, dict) else table
                       for number, table in enumerate(tables)]
    return placed, problems
