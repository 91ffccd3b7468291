"""Elements of SVG in the colours of a light and of a dark page."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

RINGS = {"1": ("#1a7f4b", "#4cc38a"), "2": ("#00728f", "#4db8d6"), "3": ("#9a5b00", "#f0b040")}
"""The colour of each ring on a light and on a dark page."""

_LIGHT = (
    "text{font-family:system-ui,'DejaVu Sans',sans-serif;fill:#1f2328;font-size:13px}"
    ".ground{fill:#fff;stroke:#d0d7de}.soft{fill:#59636e}.rule{stroke:#d8dee4}"
    ".box{fill:#f6f8fa;stroke:#8c959f}.line{fill:none;stroke:#59636e}.tip{fill:#59636e}"
)
_DARK = (
    "text{fill:#e6edf3}.ground{fill:#0d1117;stroke:#30363d}.soft{fill:#9198a1}.rule{stroke:#2b3138}"
    ".box{fill:#161b22;stroke:#6e7681}.line{stroke:#9198a1}.tip{fill:#9198a1}"
)


def picture(
    width: int,
    height: int,
    what: str,
    body: Iterable[str],
    *,
    light: str = "",
    dark: str = "",
) -> str:
    """Return a picture that says *what* to a screen reader; *light* and *dark* are its own CSS."""
    for number, (on_light, on_dark) in RINGS.items():
        shape = f".ring{number}{{fill:none;stroke-width:3;stroke:"
        name = f".name{number}{{font-weight:600;fill:"
        light += f"{shape}{on_light}}}{name}{on_light}}}"
        dark += f".ring{number}{{stroke:{on_dark}}}.name{number}{{fill:{on_dark}}}"
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}"'
        f' height="{height}" role="img" aria-labelledby="title">',
        f'<title id="title">{escape(what)}</title>',
        f"<style>{_LIGHT}{light}@media(prefers-color-scheme:dark){{{_DARK}{dark}}}</style>",
        box(0.5, 0.5, width - 1, height - 1, "ground", round_by=10),
        *body,
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def box(x: float, y: float, width: float, height: float, kind: str, *, round_by: float = 6) -> str:
    """Return a rectangle of the CSS class *kind*."""
    return (
        f'<rect class="{kind}" x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}"'
        f' rx="{round_by:g}"/>'
    )


def text(x: float, y: float, words: str, kind: str = "", *, anchor: str = "start") -> str:
    """Return a line of text of the CSS class *kind*."""
    of_class = f' class="{kind}"' if kind else ""
    where = "" if anchor == "start" else f' text-anchor="{anchor}"'
    return f'<text x="{x:g}" y="{y:g}"{of_class}{where}>{escape(words, quote=False)}</text>'


def lines(x: float, y: float, words: Iterable[str], kind: str = "", *, step: float = 18) -> str:
    """Return lines of text, each *step* below the one before."""
    return "\n".join(text(x, y + step * number, each, kind) for number, each in enumerate(words))


def arrow(x: float, y: float, to_x: float, to_y: float) -> str:
    """Return a straight arrow to the right or down."""
    tip = "l-8 -4v8z" if to_y == y else "l-4 -8h8z"
    return (
        f'<path class="line" d="M{x:g} {y:g}L{to_x:g} {to_y:g}"/>'
        f'<path class="tip" d="M{to_x:g} {to_y:g}{tip}"/>'
    )
