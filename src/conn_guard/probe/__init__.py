"""Finds the URL that leaks: puts load on each URL and watches the server's sessions meanwhile.

``probe_urls()`` is what ``manage.py leak_probe`` runs, and may be called from Python.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from conn_guard.probe.options import Mode, Options
from conn_guard.probe.targets import Target, TargetError
from conn_guard.probe.verdict import UrlReport, Verdict

if TYPE_CHECKING:
    from conn_guard.probe.rounds import LostProbeError, probe_urls

__all__ = [
    "LostProbeError",
    "Mode",
    "Options",
    "Target",
    "TargetError",
    "UrlReport",
    "Verdict",
    "probe_urls",
]


def __getattr__(name: str) -> Any:
    # Lazy, so that the pure modules can be imported without Django.
    if name in __all__:
        from conn_guard.probe import rounds

        return getattr(rounds, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
