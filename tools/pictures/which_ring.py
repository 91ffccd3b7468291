"""The questions that lead to the ring that a project needs."""

from __future__ import annotations

from collections.abc import Iterator

from tools.pictures import svg

WIDTH, TOP, STEP = 860, 74, 86
CSS = ".head{font-size:15px;font-weight:600}.bold{font-weight:600}"
QUESTIONS = (
    (
        ("Do sessions pile up under an ASGI server,", "or while threads of yours end?"),
        "1",
        ("Ring 1: app and middleware", "two settings: INSTALLED_APPS, MIDDLEWARE"),
    ),
    (
        (
            "Do executors or workers keep connections",
            "unused, or do requests fail after a restart",
            "of PostgreSQL?",
        ),
        "2",
        ("Ring 2: engine", "one line in DATABASES: ENGINE"),
    ),
    (
        ("Do sessions of crashed hosts, of other", "programs or from before stay?"),
        "3",
        ("Ring 3: reaper", "manage.py idle_reaper in cron"),
    ),
    (
        ("Do jobs, threads or commands of your own", "open connections?"),
        "",
        ("closing_connections", "or one import for Celery or RQ"),
    ),
    (
        ("Is every slot busy, and none idle?",),
        "",
        ("A pooler, such as PgBouncer", "many clients share few slots"),
    ),
)


def draw() -> str:
    """Return the picture."""
    what = " ".join(
        f"{' '.join(question)} Then: {answer[0]}, {answer[1]}." for question, _, answer in QUESTIONS
    )
    height = TOP + STEP * len(QUESTIONS) + 44
    return svg.picture(WIDTH, height, what, _body(), light=CSS)


def _body() -> Iterator[str]:
    yield svg.text(24, 36, "Which ring do I need? Ask each question; the rings add up.", "head")
    for number, (question, ring, answer) in enumerate(QUESTIONS):
        y = TOP + STEP * number
        middle = y + 31
        yield svg.box(24, y, 340, 62, "box")
        yield svg.lines(40, middle + 5 - 9 * (len(question) - 1), question)
        yield svg.arrow(364, middle, 470, middle)
        yield svg.text(402, middle - 8, "yes")
        yield svg.box(470, y, 366, 62, f"ring{ring}" if ring else "box")
        yield svg.text(486, middle - 4, answer[0], f"name{ring}" if ring else "bold")
        yield svg.text(486, middle + 15, answer[1], "soft")
        yield svg.arrow(80, y + 62, 80, y + STEP)
    end = TOP + STEP * len(QUESTIONS) + 20
    yield svg.text(40, end, "None of these: you don't need conn_guard.")
