"""A snapshot as one line of JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence

from conn_guard.sessions.groups import DEFAULT_BY, Field, Group, Snapshot, grouped
from conn_guard.sessions.meaning import Meaning
from conn_guard.text import one_line


def render_report_json(
    snapshot: Snapshot, meanings: Sequence[Meaning], *, by: Sequence[Field] = DEFAULT_BY
) -> list[str]:
    """Return *snapshot* as one line, or its failure; no line for the same place once more."""
    if snapshot.mirror_of is not None:
        return []
    if snapshot.failure is not None:
        event: dict[str, object] = {
            "event": "error",
            "alias": snapshot.alias,
            "exit": int(snapshot.exit_code),
            "message": one_line(snapshot.failure),
        }
        return [json.dumps(event)]
    slots = snapshot.slots
    event = {
        "event": "report",
        "alias": snapshot.alias,
        "address": snapshot.address,
        "server_version": snapshot.server_version,
        "observed_at": snapshot.observed_at.isoformat() if snapshot.observed_at else None,
        "slots_used": slots.used if slots else None,
        "slots_total": slots.total if slots else None,
        "slots_exact": slots.exact if slots else None,
        "slots_limit": snapshot.slots_limit,
        "sessions": len(snapshot.rows),
        "hidden": snapshot.hidden,
        "groups": [_group(each) for each in grouped(snapshot.rows, by)],
        "would_end": snapshot.would_end,
        "spared": snapshot.spared,
        "settings": {name: str(value) for name, value in (snapshot.settings or {}).items()},
        "findings": [
            {"id": each.id, "message": one_line(each.message), "hint": one_line(each.hint)}
            for each in snapshot.findings
        ],
        "meanings": [
            {
                "kind": each.kind,
                "level": each.level.value,
                "message": each.sentence,
                "command": each.command,
            }
            for each in meanings
        ],
        "exit": int(snapshot.exit_code),
    }
    return [json.dumps(event)]


def _group(group: Group) -> dict[str, object]:
    longest = group.longest
    return {
        **{field.value: value for field, value in group.key.items()},
        "sessions": len(group),
        "longest_seconds": None if longest is None else round(longest.total_seconds(), 3),
        "last": group.last or None,
        "would_end": group.would_end,
        "spared": group.spared,
    }
