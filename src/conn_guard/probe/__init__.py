"""Finds the URL that leaks: puts load on each URL and watches the server's sessions meanwhile.

``probe_urls()`` is what ``manage.py leak_probe`` runs, and may be called from Python.
"""

from __future__ import annotations

from conn_guard.probe.options import Mode, Options
from conn_guard.probe.rounds import probe_urls
from conn_guard.probe.targets import Target
from conn_guard.probe.verdict import UrlReport, Verdict

__all__ = ["Mode", "Options", "Target", "UrlReport", "Verdict", "probe_urls"]
