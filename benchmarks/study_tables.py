"""Owns the Markdown tables of the studies, from their records."""

from collections.abc import Sequence
from typing import Any

NAMES = {
    "miou": "mIoU",
    "macc": "mAcc",
    "ece": "ECE",
    "nll": "NLL",
    "accuracy_spread": "spread of class accuracies",
    "iou_spread": "spread of class IoU",
}
SHOWN = ("miou", "macc", "ece", "nll")
Record = dict[str, Any]


def tables(
    records: Sequence[Record], by: tuple[str, str], heading: str, difference: str, shown: Sequence[str] = SHOWN
) -> str:
    """A table for each pair of values of the two keys `by`, under `heading` with both filled in.

    `*` where the interval of the record's `difference` excludes 0. `shown` are keys of `NAMES`.
    """
    lines: list[str] = []
    for group in dict.fromkeys(tuple(one[key] for key in by) for one in records):
        lines += [f"### {heading.format(*group)}", "", f"| method |{''.join(f' {NAMES[key]} |' for key in shown)}"]
        lines += ["|---|" + "---|" * len(shown)]
        for one in records:
            if tuple(one[key] for key in by) == group:
                lines.append(f"| {one['method']} | {' | '.join(_cells(one, difference, shown))} |")
        lines.append("")
    return "\n".join(lines)


def class_tables(records: Sequence[Record], by: tuple[str, str], heading: str) -> str:
    """The IoU of each class, in percent, as `tables` does; records without them are left out."""
    lines: list[str] = []
    for group in dict.fromkeys(tuple(one[key] for key in by) for one in records if "class_iou" in one):
        rows = [one for one in records if "class_iou" in one and tuple(one[key] for key in by) == group]
        names = list(rows[0]["class_iou"])
        lines += [f"### {heading.format(*group)}", "", f"| method |{''.join(f' {name} |' for name in names)}"]
        lines += ["|---|" + "---|" * len(names)]
        for one in rows:
            cells = [one["class_iou"][name] for name in names]
            lines.append(f"| {one['method']} | {' | '.join('–' if c is None else f'{100 * c:.1f}' for c in cells)} |")
        lines.append("")
    return "\n".join(lines)


def _cells(record: Record, difference: str, shown: Sequence[str]) -> list[str]:
    return [f"failed: {record['failed']}"] if "failed" in record else [_cell(record, key, difference) for key in shown]


def _cell(record: Record, key: str, difference: str) -> str:
    if key not in record:
        return "–"
    low, high = record[f"{key}_95"]
    mark = "*" if record.get(difference, {}).get(key, {}).get("excludes_zero") else ""
    return f"{record[key]:.3f}{mark} ({low:.3f} to {high:.3f})"
