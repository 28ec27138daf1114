"""Owns `calseg data check`: every split of every domain, looked at and counted."""

from dataclasses import dataclass, field
from typing import Any

from calseg_cli.config import Resolved
from calseg_cli.data.check import CheckReport, check_items
from calseg_cli.engine.progress import Progress
from calseg_cli.errors import ConfigError, DataError
from calseg_cli.stages.domains import DomainData, open_domain

Table = tuple[str, list[str], list[list[str]]]
ROLES = ("train", "val", "test")


@dataclass
class Checked:
    """What was found, as tables for the terminal and documents for JSON."""

    documents: dict[str, Any] = field(default_factory=dict)
    tables: list[Table] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    problems: int = 0

    @property
    def ok(self) -> bool:
        """True when nothing is wrong."""
        return self.problems == 0


def check_domains(resolved: Resolved, *, domain: str | None, split: str | None, progress: Progress) -> Checked:
    """Check the configured domains, or one of them, or one split; labels are looked at where there are any.

    Raises ConfigError when no domain is configured and DataError when nothing can be checked.
    """
    names = [name for name in ("source", "target") if getattr(resolved.config, name) is not None]
    if domain is not None:
        if domain not in ("source", "target"):
            raise ConfigError(f"--domain: there is no domain {domain!r}", "it is source or target")
        names = [domain]
    if not names:
        raise ConfigError("no domain is configured", "add `source:` and `target:`; `calseg init` shows how")
    checked, frequencies = Checked(), {}
    for name in names:
        data = open_domain(resolved, name)
        for role in [split] if split else ROLES:
            try:
                found = _check(data, role, progress)
            except DataError as error:
                if split is not None:
                    raise
                progress.note(f"{name} {role}: {error.message}")
                continue
            checked.documents[f"{name}-{role}"] = found.to_dict()
            checked.problems += len(found.problems)
            checked.lines += [f"{name} {role}: {text}" for text in found.problems]
            checked.lines += [f"{name} {role}: {text} (not a problem here)" for text in found.remarks]
            frequencies[f"{name} {role}"] = found
    if not checked.documents:
        raise DataError("none of the splits was found", "check root and splits of the domains")
    checked.tables = [_problem_table(frequencies), *_frequency_table(frequencies)]
    return checked


def _check(data: DomainData, role: str, progress: Progress) -> CheckReport:
    begun = False

    def tell(done: int, total: int) -> None:
        nonlocal begun
        if not begun:
            progress.start(f"checking {data.role} {role}", total)
            begun = True
        progress.advance()

    found = check_items(data.layout, data.root, role, progress=tell)
    if begun:
        progress.finish()
    return found


def _problem_table(reports: dict[str, CheckReport]) -> Table:
    headers = ["split", "images", "labelled", "sizes", "problems"]
    rows = [
        [
            name,
            str(found.images),
            str(found.labelled),
            _sizes(found),
            str(len(found.problems)),
        ]
        for name, found in reports.items()
    ]
    return "splits", headers, rows


def _sizes(found: CheckReport) -> str:
    sizes = sorted(found.sizes)
    return f"{len(sizes)} sizes" if len(sizes) > 2 else ", ".join(f"{h}x{w}" for h, w in sizes)


def _frequency_table(reports: dict[str, CheckReport]) -> list[Table]:
    """Share of labelled pixels by class, one column a labelled split."""
    tables: list[Table] = []
    labelled = {name: found for name, found in reports.items() if found.labelled}
    for names in _same_classes(labelled):
        columns = [labelled[name] for name in names]
        rows = [
            [label, *(_share(found.class_pixels[number], sum(found.class_pixels)) for found in columns)]
            for number, label in enumerate(columns[0].class_names)
        ]
        tables.append(("share of labelled pixels", ["class", *names], rows))
    return tables


def _same_classes(reports: dict[str, CheckReport]) -> list[list[str]]:
    groups: dict[tuple[str, ...], list[str]] = {}
    for name, found in reports.items():
        groups.setdefault(tuple(found.class_names), []).append(name)
    return list(groups.values())


def _share(pixels: int, total: int) -> str:
    return f"{100 * pixels / total:.2f} %" if total else "n/a"
