"""Reports of parts: as text, and added up."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, fields
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any
from uuid import UUID

from ..load import LoadReport, ReferenceCount, Reject

#: What is added up.
_COUNTS = ("rows", "created", "updated", "unchanged", "skipped", "rejected", "kept")


def add(report: LoadReport, part: LoadReport) -> None:
    """Add the counts of a part to a report; what it took is not added up."""
    for name in _COUNTS:
        setattr(report, name, getattr(report, name) + getattr(part, name))
    for entity, count in part.references.items():
        _add_count(report.count_of(entity), count)
    report.reasons.update(part.reasons)
    report.guesses += [each for each in part.guesses if each not in report.guesses]
    rejects = sorted(
        report.rejects + part.rejects, key=lambda each: each.line_of_all or each.line
    )
    report.rejects = rejects[: report.MOST_REJECTS]


def _add_count(count: ReferenceCount, other: ReferenceCount) -> None:
    count.resolved += other.resolved
    count.missing += other.missing
    count.created += other.created
    keys = count.missing_keys
    for key, times in other.missing_keys.items():
        if key in keys or len(keys) < count.MOST_KEYS:
            keys[key] += times


#: What JSON does not know, and a key may have.
_TYPES: dict[str, Callable[[str], Any]] = {
    "date": date.fromisoformat,
    "datetime": datetime.fromisoformat,
    "time": time.fromisoformat,
    "Decimal": Decimal,
    "UUID": UUID,
    "bytes": bytes.fromhex,
}


def _tagged(value: Any) -> Any:
    """Return a value of a key as JSON that says its type."""
    name = type(value).__name__
    if name not in _TYPES:
        return value
    return {name: value.hex() if isinstance(value, bytes) else str(value)}


def _untagged(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    [(name, text)] = value.items()
    return _TYPES[name](text)


def text_of(report: LoadReport) -> str:
    """Return a report as text."""
    found = {each.name: getattr(report, each.name) for each in fields(report)}
    found["references"] = {
        name: {
            "resolved": count.resolved,
            "missing": count.missing,
            "created": count.created,
            "missing_keys": [
                [[*map(_tagged, key)], times]
                for key, times in count.missing_keys.items()
            ],
        }
        for name, count in report.references.items()
    }
    found["rejects"] = [asdict(reject) for reject in report.rejects]
    return json.dumps(found, default=str)


def report_of(text: str) -> LoadReport:
    """Return the report of a text."""
    found = json.loads(text)
    found["references"] = {
        name: ReferenceCount(
            count["resolved"],
            count["missing"],
            count["created"],
            Counter(
                {
                    tuple(map(_untagged, key)): times
                    for key, times in count["missing_keys"]
                }
            ),
        )
        for name, count in found["references"].items()
    }
    found["reasons"] = Counter(found["reasons"])
    found["rejects"] = [
        Reject(**{**each, "more": tuple(map(tuple, each["more"]))})
        for each in found["rejects"]
    ]
    return LoadReport(**found)
