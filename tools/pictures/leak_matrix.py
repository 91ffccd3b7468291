"""The heat map of the leak matrix, from the table of its page."""

from __future__ import annotations

import re
from collections.abc import Iterator

from tools.pictures import svg

ASGI = ("uvicorn", "daphne", "hypercorn", "granian", "gunicorn-uvicorn", "cvat")
WSGI = ("gunicorn-sync", "gunicorn-gthread", "gunicorn-gevent", "granian-wsgi", "runserver")
TITLES = ("Django alone", "app", "ring 1", "rings 1, 2")
HEATS = (
    (0, "no session", "#dff3e4", "#12351f"),
    (5, "1 to 5", "#fde3b3", "#5a4109"),
    (20, "6 to 20", "#f7a86c", "#8a3d08"),
    (1000, "more than 20", "#e8705f", "#a3241c"),
)
"""The most sessions of each heat, its name, and its colour on a light and on a dark page."""
SETTINGS = {
    "0": "CONN_MAX_AGE = 0",
    "60": "CONN_MAX_AGE = 60",
    "None": "CONN_MAX_AGE = None",
    "pool": 'OPTIONS["pool"]',
}
SUBTITLE = (
    "The worst web server and environment counts. Ring 1 is app and middleware, ring 2 the engine."
)
WIDTH, LEFT, CELL, STEP = 860, 400, 54, 19
Cells = list[str]


def draw(page: str) -> str:
    """Return the heat map of the table in *page*."""
    worst = _worst(page)
    body = [
        svg.text(20, 34, "Sessions left after 50 requests", "head"),
        svg.text(20, 56, SUBTITLE, "soft"),
        *_legend(20, 70),
    ]
    y = 150
    for setting, title in SETTINGS.items():
        body += [svg.text(20, y, title, "head"), *_titles(y)]
        y += 14
        for mechanism in dict.fromkeys(name for name, of in worst if of == setting):
            body.append(svg.text(20, y + 13, _short(mechanism), "small"))
            body += _row(worst[mechanism, setting], y)
            y += STEP
        y += 56
    light = ".head{font-size:15px;font-weight:600}.small{font-size:12px}.n{font-size:11px}"
    light += "".join(f".heat{heat}{{fill:{colour}}}" for heat, _, colour, _ in HEATS)
    dark = "".join(f".heat{heat}{{fill:{colour}}}" for heat, _, _, colour in HEATS)
    what = (
        "The leak matrix as a heat map: the sessions that are left by Django alone, with the app,"
        " with ring 1, and with rings 1 and 2. The table on the page has the same figures."
    )
    return svg.picture(WIDTH, y - 36, what, body, light=light, dark=dark)


def rows(page: str) -> Iterator[tuple[str, str, str, Cells]]:
    """Yield server, mechanism, setting and cells of each row of the table in *page*."""
    table = page.partition("\n## The cells\n")[2].partition("\n## ")[0]
    for line in table.splitlines():
        cells = [cell.strip(" *|") for cell in line.split(" | ")]
        if len(cells) == 3 + len(TITLES) and cells[0] != "server":
            yield cells[0], cells[1], cells[2], cells[3:]


def left(cell: str) -> int:
    """Return the most sessions that *cell* tells of."""
    return max(map(int, re.findall(r"\d+", re.split(r"[/![]", cell)[0])))


def _worst(page: str) -> dict[tuple[str, str], list[Cells]]:
    """Return, by mechanism and setting, the cells of all ASGI and of all WSGI servers.

    Raises ValueError for a server of unknown kind.
    """
    worst: dict[tuple[str, str], list[Cells]] = {}
    for server, mechanism, setting, cells in rows(page):
        if server not in ASGI + WSGI:
            raise ValueError(f"Is {server} an ASGI or a WSGI server? Add it to {__name__}.")
        first = len(TITLES) * (server in WSGI)
        columns = worst.setdefault((mechanism, setting), [[] for _ in TITLES * 2])
        for number, cell in enumerate(cells):
            columns[first + number].append(cell)
    return worst


def _row(columns: list[Cells], y: int) -> Iterator[str]:
    for number, cells in enumerate(columns):
        if not cells:
            continue
        x = _x(number)
        most = max(map(left, cells))
        heat = next(heat for heat, *_ in HEATS if most <= heat)
        notes = sorted({int(each) for cell in cells for each in re.findall(r"\[(\d+)\]", cell)})
        words = f"{most}{'!' if any('err' in cell for cell in cells) else ''}"
        words += "".join(f" [{note}]" for note in notes[:1]) + ("…" if notes[1:] else "")
        yield svg.box(x, y, CELL - 2, STEP - 2, f"heat{heat}", round_by=2)
        yield svg.text(x + CELL / 2 - 1, y + 13, words, "n", anchor="middle")


def _titles(y: int) -> Iterator[str]:
    for kind, server in enumerate(("ASGI", "WSGI")):
        yield svg.text(_x(kind * len(TITLES)), y - 22, f"{server} servers", "small")
        for number, title in enumerate(TITLES):
            x = _x(kind * len(TITLES) + number)
            first, _, second = title.rpartition(" ") if title == TITLES[0] else ("", "", title)
            yield svg.text(x, y - 6, first, "soft n")
            yield svg.text(x, y + 6, second, "soft n")


def _legend(x: int, y: int) -> Iterator[str]:
    for heat, name, _, _ in HEATS:
        yield svg.box(x, y, 24, 14, f"heat{heat}", round_by=2)
        yield svg.text(x + 30, y + 12, name, "small")
        x += 44 + 7 * len(name)
    yield svg.text(x, y + 12, "! some answers were errors; [n] the reason below the table", "small")


def _x(number: int) -> int:
    return LEFT + number * CELL + 14 * (number >= len(TITLES))


def _short(mechanism: str) -> str:
    return mechanism if len(mechanism) <= 54 else f"{mechanism[:53].rstrip(' ,')}…"
