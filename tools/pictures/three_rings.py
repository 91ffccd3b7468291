"""The three rings: what lives in the Django process, and what lives on the server."""

from __future__ import annotations

from collections.abc import Iterator

from tools.pictures import svg

WIDTH, HEIGHT = 860, 506
OWNERS = ("a request", "a thread that ends", "a worker that lives on", "connection.copy(), dropped")
RINGS = {
    "1": (
        "Ring 1: app and middleware",
        "closes a connection when its request",
        "ends, or its thread or async context.",
        "INSTALLED_APPS, MIDDLEWARE",
    ),
    "2": (
        "Ring 2: engine",
        "also closes what a living thread leaves",
        "unused; replaces what the server ended.",
        "ENGINE in DATABASES",
    ),
    "3": (
        "Ring 3: reaper",
        "ends idle sessions on the server,",
        "also those of crashed hosts.",
        "manage.py idle_reaper in cron",
    ),
}


def draw() -> str:
    """Return the picture."""
    what = (
        "Ring 1 surrounds the connections of requests and of threads that end. Ring 2 surrounds"
        " every connection of the Django process. Ring 3 surrounds every session on the server."
    )
    return svg.picture(WIDTH, HEIGHT, what, _body(), light=".head{font-size:15px;font-weight:600}")


def _body() -> Iterator[str]:
    yield svg.text(24, 38, "A Django process holds connections", "head")
    yield svg.text(590, 38, "PostgreSQL holds sessions", "head")
    yield svg.box(24, 54, 440, 270, "ring2", round_by=22)
    yield svg.box(40, 70, 408, 122, "ring1", round_by=16)
    for number, owner in enumerate(OWNERS):
        y = 84 + 58 * number + (14 if number > 1 else 0)
        yield svg.box(56, y, 220, 36, "box")
        yield svg.text(70, y + 23, owner)
        yield from _link(y + 18)
        yield svg.box(612, y, 208, 36, "box")
        yield svg.text(626, y + 23, "session")
    yield svg.box(590, 54, 246, 344, "ring3", round_by=22)
    y = 84 + 58 * 4 + 28
    yield svg.box(56, y, 220, 36, "box")
    yield svg.text(70, y + 23, "a host that crashed", "soft")
    yield svg.text(330, y + 23, "connection lost", "soft")
    yield svg.box(612, y, 208, 36, "box")
    yield svg.text(626, y + 23, "session, still there")
    for number, ring in enumerate(RINGS):
        x = (24, 310, 590)[number]
        title, *words = RINGS[ring]
        yield svg.text(x, 430, title, f"name{ring}")
        yield svg.lines(x, 449, words, "soft")


def _link(y: float) -> Iterator[str]:
    yield f'<path class="line" d="M276 {y:g}H612" stroke-width="2"/>'
    yield f'<circle class="tip" cx="300" cy="{y:g}" r="5"/>'
    yield svg.text(312, y - 6, "connection", "soft")
