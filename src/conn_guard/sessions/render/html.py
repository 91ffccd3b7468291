"""Snapshots as one page of HTML that loads nothing and needs no script."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from html import escape

from conn_guard.sessions.groups import DEFAULT_BY, Field, Group, Snapshot, grouped
from conn_guard.sessions.meaning import Meaning
from conn_guard.sessions.report import Slots
from conn_guard.text import duration, one_line, printable

APPLICATIONS_SHOWN = 20
"""Bars in the picture; the sessions of the other applications share one."""

# The order of the states in a bar, each with the name of its colour.
_STATES = {
    "active": "active",
    "idle": "idle",
    "idle in transaction": "held",
    "idle in transaction (aborted)": "aborted",
}
_OTHER = "other"

# Colours pass WCAG AA as text, and differ in lightness for those who see no hue.
_STYLE = """
:root { color-scheme: light dark; --page: #f6f7f9; --card: #fff; --ink: #1b2330; --soft: #586274;
  --line: #d9dee6; --active: #2563eb; --idle: #e0a100; --held: #dc4a26; --aborted: #8b1a1a;
  --other: #8a94a6; --free: #e4e8ee; --alarm: #c2301a; --warning: #a86a00; --note: #3b6fb6;
  --code: #eef1f5; }
@media (prefers-color-scheme: dark) { :root { --page: #12161d; --card: #1b212b; --ink: #e7ebf2;
  --soft: #a3adbd; --line: #323b49; --active: #6c9bff; --idle: #f0bd3a; --held: #ff7d57;
  --aborted: #d65454; --other: #7f8a9c; --free: #2c3542; --alarm: #ff8068; --warning: #f0bd3a;
  --note: #86b4f5; --code: #12161d; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1rem 3rem; max-width: 64rem; background: var(--page);
  color: var(--ink); font: 1rem/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: 0 0 .25rem; overflow-wrap: anywhere; }
h2 { font-size: 1.05rem; margin: 0 0 .75rem; }
p { margin: 0; }
.soft { color: var(--soft); }
.card { background: var(--card); border: 1px solid var(--line); border-radius: .6rem;
  padding: 1rem 1.1rem; margin-top: 1rem; }
.figure { font-size: 2.2rem; font-weight: 650; line-height: 1.1; }
.figure small { display: inline-block; font-size: 1rem; font-weight: 400; color: var(--soft); }
svg { display: block; width: 100%; border-radius: .25rem; }
.slots { height: 1.4rem; margin: .6rem 0 .5rem; }
.active { fill: var(--active); } .idle { fill: var(--idle); } .held { fill: var(--held); }
.aborted { fill: var(--aborted); } .other { fill: var(--other); } .free { fill: var(--free); }
.bars { display: grid; grid-template-columns: minmax(6rem, 16rem) 1fr auto; gap: .45rem .75rem;
  align-items: center; margin: 0; }
.bars dt { overflow-wrap: anywhere; line-height: 1.25; }
.bars dd { margin: 0; } .bars svg { height: 1rem; }
.number { text-align: right; font-variant-numeric: tabular-nums; }
.legend { display: flex; flex-wrap: wrap; gap: .25rem 1rem; margin: .9rem 0 0; padding: 0;
  list-style: none; font-size: .875rem; }
.legend svg { display: inline-block; width: .8rem; height: .8rem; margin-right: .35rem; }
.meanings { list-style: none; margin: 0; padding: 0; display: grid; gap: .9rem; }
.meanings li { --level: var(--note); border-left: .25rem solid var(--level); padding-left: .8rem;
  overflow-wrap: anywhere; }
.meanings .alarm { --level: var(--alarm); } .meanings .warning { --level: var(--warning); }
.level { font-weight: 650; color: var(--level); }
pre { margin: .4rem 0 0; padding: .5rem .7rem; background: var(--code); border: 1px solid
  var(--line); border-radius: .4rem; white-space: pre-wrap; overflow-wrap: anywhere;
  font: .85rem/1.45 ui-monospace, monospace; }
table { width: 100%; border-collapse: collapse; font-size: .9rem; }
th { text-align: left; font-size: .75rem; letter-spacing: .04em; text-transform: uppercase;
  color: var(--soft); font-weight: 600; white-space: nowrap; }
th.number { text-align: right; }
th, td { padding: .4rem 1rem .4rem 0; border-bottom: 1px solid var(--line); vertical-align: top;
  overflow-wrap: anywhere; }
tbody tr:last-child td, tbody tr:last-child th { border-bottom: 0; }
.groups td { min-width: 4.5rem; }
.settings th { text-transform: none; letter-spacing: 0; font-size: .9rem; font-weight: 400; }
footer { margin-top: 1.5rem; font-size: .85rem; }
@media (max-width: 44rem) {
  .bars { grid-template-columns: 1fr auto; } .bars dt { grid-column: 1 / -1; }
  .groups thead { position: absolute; width: 1px; height: 1px; overflow: hidden;
    clip-path: inset(50%); }
  .groups tr { display: block; padding: .5rem 0; border-bottom: 1px solid var(--line); }
  .groups tr:last-child { border-bottom: 0; }
  .groups td { display: grid; grid-template-columns: 7.5rem 1fr; border: 0; padding: .1rem 0; }
  .groups td::before { content: attr(data-label); color: var(--soft); }
  .groups td.number { text-align: left; }
}
@media print { :root { color-scheme: light; --page: #fff; --card: #fff; --ink: #000; --soft: #444;
    --line: #bbb; --code: #fff; }
  body { max-width: none; padding: 0; font-size: 10pt; }
  svg { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  .card { break-inside: avoid; } .card.long { break-inside: auto; } tr { break-inside: avoid; } }
"""

# The page may load nothing, so nothing in it can tell that it was opened.
_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" \
content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main>
{body}
</main>
<footer class="soft">Made by conn_guard's <code>conn_report</code>, which ends no session.</footer>
</body>
</html>
"""


def render_html(
    looks: Sequence[tuple[Snapshot, Sequence[Meaning]]], *, by: Sequence[Field] = DEFAULT_BY
) -> str:
    """Return a page with each of *looks*, a snapshot and what it means; the same place once."""
    shown = [each for each in looks if each[0].mirror_of is None]
    title = "Connections: " + ", ".join(snapshot.alias for snapshot, _ in shown)
    body = "\n".join(line for snapshot, found in shown for line in _section(snapshot, found, by))
    return _PAGE.format(title=_text(title), style=_STYLE, body=body)


def _section(snapshot: Snapshot, meanings: Sequence[Meaning], by: Sequence[Field]) -> Iterator[str]:
    yield "<section>"
    yield f"<h1>{_text(snapshot.alias)} <span class='soft'>{_text(snapshot.address)}</span></h1>"
    if snapshot.failure is not None:
        yield '<div class="card"><h2>No report</h2>'
        yield f'<p class="alarm">{_text(one_line(snapshot.failure))}</p></div></section>'
        return
    when = snapshot.observed_at.strftime("%Y-%m-%d %H:%M:%S UTC") if snapshot.observed_at else ""
    yield f'<p class="soft">PostgreSQL {_text(snapshot.server_version)}, {when}</p>'
    yield from _slots(snapshot)
    yield from _meanings(meanings)
    yield from _applications(snapshot)
    yield from _groups(grouped(snapshot.rows, by), by)
    yield from _settings(snapshot)
    yield "</section>"


def _slots(snapshot: Snapshot) -> Iterator[str]:
    slots = snapshot.slots or Slots(0, 0, exact=True)
    bound = "" if slots.exact else "≤ "
    limit = {
        "server": "slots of the server",
        "role": "slots of the role's CONNECTION LIMIT",
        "database": "slots of the database's CONNECTION LIMIT",
    }[snapshot.slots_limit]
    figure = f"{bound}{slots.used} of {slots.total}"
    used = min(100.0, slots.percent)
    rest = f"{_count(len(snapshot.rows), 'session')}, of which idle_reaper would end"
    hidden = f", {snapshot.hidden} hidden from this role" if snapshot.hidden else ""
    yield '<div class="card"><h2>Slots</h2>'
    yield f'<p class="figure">{figure} <small>{limit} ({bound}{slots.percent:.0f}%)</small></p>'
    yield _svg("slots", f"{figure} {limit}", [(_fill(used), used), ("free", 100 - used)])
    yield f"<p>{rest} {snapshot.would_end} now{hidden}.</p></div>"


def _fill(percent: float) -> str:
    return "held" if percent >= 95 else "idle" if percent >= 80 else "active"


def _meanings(meanings: Sequence[Meaning]) -> Iterator[str]:
    if not meanings:
        return
    yield '<div class="card"><h2>What it means</h2><ul class="meanings">'
    for each in meanings:
        level = each.level.value
        command = f"<pre><code>{_text(each.command)}</code></pre>" if each.command else ""
        yield (
            f'<li class="{level}"><p><span class="level">{level.capitalize()}.</span>'
            f" {_text(each.sentence)}</p>{command}</li>"
        )
    yield "</ul></div>"


def _applications(snapshot: Snapshot) -> Iterator[str]:
    groups = grouped(snapshot.rows, (Field.APPLICATION,))
    if not groups:
        return
    bars = [
        (group.key[Field.APPLICATION] or "(no application_name)", group.rows)
        for group in groups[:APPLICATIONS_SHOWN]
    ]
    if rest := [row for group in groups[APPLICATIONS_SHOWN:] for row in group.rows]:
        bars.append((f"{len(groups) - APPLICATIONS_SHOWN} other applications", rest))
    most = max(len(rows) for _, rows in bars)
    seen: dict[str, str] = {}
    yield '<div class="card"><h2>Sessions by application and state</h2><dl class="bars">'
    for name, rows in bars:
        states = Counter(Field.STATE.of(row) or "hidden or unknown" for row in rows)
        order = [each for each in _STATES if each in states]
        order += sorted(each for each in states if each not in _STATES)
        seen |= {each: _STATES.get(each, _OTHER) for each in order}
        words = f"{name}: " + ", ".join(f"{states[each]} {each}" for each in order)
        parts = [(_STATES.get(each, _OTHER), 100 * states[each] / most) for each in order]
        yield f"<dt>{_text(name)}</dt><dd>{_svg('', words, parts)}</dd>"
        yield f'<dd class="number">{len(rows)}</dd>'
    yield '</dl><ul class="legend">'
    for state, colour in seen.items():
        square = f'<rect class="{colour}" width="1" height="1"/>'
        yield f'<li><svg viewBox="0 0 1 1" aria-hidden="true">{square}</svg>{_text(state)}</li>'
    yield "</ul></div>"


def _groups(groups: Sequence[Group], by: Sequence[Field]) -> Iterator[str]:
    last = [] if Field.LAST in by else ["Last"]
    header = [
        "Sessions",
        *(each.value.capitalize() for each in by),
        *last,
        "Longest",
        "Would end",
        "Spared",
    ]
    numbers = {"Sessions", "Longest", "Would end"}
    yield '<div class="card long"><h2>Groups</h2><table class="groups"><thead><tr>'
    yield "".join(f'<th{_number(each in numbers)} scope="col">{each}</th>' for each in header)
    yield "</tr></thead><tbody>"
    for group in groups:
        longest = (
            "-" if group.longest is None else duration(max(0.0, group.longest.total_seconds()))
        )
        reasons = ", ".join(f"{reason.replace('_', ' ')} {n}" for reason, n in group.spared.items())
        cells = [
            str(len(group)),
            *(group.key[each] or "-" for each in by),
            *([] if Field.LAST in by else [group.last or "-"]),
            longest,
            str(group.would_end),
            reasons or "-",
        ]
        row = "".join(
            f'<td{_number(name in numbers)} data-label="{name}">{_text(cell)}</td>'
            for name, cell in zip(header, cells, strict=True)
        )
        yield f"<tr>{row}</tr>"
    yield "</tbody></table></div>"


def _settings(snapshot: Snapshot) -> Iterator[str]:
    if snapshot.findings:
        yield '<div class="card"><h2>Unsafe settings</h2><ul class="meanings">'
        for each in snapshot.findings:
            yield (
                f'<li class="warning"><p><span class="level">{_text(each.id)}.</span>'
                f" {_text(each.message)}</p><p class='soft'>{_text(each.hint)}</p></li>"
            )
        yield "</ul></div>"
    if snapshot.settings:
        yield '<div class="card"><h2>Settings of the server</h2><table class="settings"><tbody>'
        for name, value in snapshot.settings.items():
            yield f'<tr><th scope="row">{_text(name)}</th><td>{_text(str(value))}</td></tr>'
        yield "</tbody></table></div>"


def _svg(kind: str, words: str, parts: Iterable[tuple[str, float]]) -> str:
    """Return a bar whose *parts*, a colour and a percentage each, stand side by side."""
    rects, x = [], 0.0
    for colour, width in parts:
        rects.append(f'<rect class="{colour}" x="{x:.3f}" width="{width:.3f}" height="10"/>')
        x += width
    name = f' class="{kind}"' if kind else ""
    return (
        f'<svg{name} viewBox="0 0 100 10" preserveAspectRatio="none" role="img"'
        f' aria-label="{_text(words)}">{"".join(rects)}</svg>'
    )


def _number(is_number: object) -> str:
    return ' class="number"' if is_number else ""


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _text(text: str) -> str:
    """Return *text* for HTML, with control and bidirectional characters in their escaped form."""
    return escape(printable(text))
