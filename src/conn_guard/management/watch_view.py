"""The full-screen view of ``conn_report --watch``; the only module that imports Textual."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from typing import ClassVar

from rich.segment import Segment
from rich.style import Style
from rich.text import Text
from textual import events
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.geometry import Size
from textual.message import Message
from textual.screen import ModalScreen
from textual.scroll_view import ScrollView
from textual.strip import Strip
from textual.widgets import Footer, Input, Static

from conn_guard.sessions.groups import Field, Snapshot
from conn_guard.sessions.look import Observer
from conn_guard.sessions.meaning import Level, meanings
from conn_guard.sessions.reaper import end_chosen
from conn_guard.sessions.render.report_text import cut, render_slots
from conn_guard.sessions.report import Exit, Outcome, RunError
from conn_guard.sessions.stop import Stop
from conn_guard.sessions.watch import History, Key, Line, Table, View, table, told
from conn_guard.text import one_line, printable

GROWTH_SECONDS = 60
"""Growth is told over one to two times this long."""
GRAPH_HEIGHT = 3
COLOURS = {Level.ALARM: "bold red", Level.WARNING: "yellow", Level.NOTE: ""}
HELP = """\
↑ ↓ PgUp PgDn  select a line      Enter  list the sessions of a group
b  group by the next field        Esc    go back; end the filter
s  sort by the next column        /      show sessions with a text only
r  reverse the order              a      show the next alias
p  pause, and go on               m      show the next sentence below
?  show these keys                q      quit

t  terminate the selected session, or those of the selected group.
   Only sessions that idle_reaper with the same options would end now
   are signalled. Each is judged again first; one that moved on is
   spared.

A click on a title sorts by its column.
"""


class Lines(ScrollView, can_focus=True):
    """A table whose lines are drawn only where they are visible."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up", "select(-1)", show=False),
        Binding("down", "select(1)", show=False),
        Binding("pageup", "select(-10)", show=False),
        Binding("pagedown", "select(10)", show=False),
        Binding("home", "select(-1000000)", show=False),
        Binding("end", "select(1000000)", show=False),
    ]

    class Selected(Message):
        """Another line was selected."""

    class Sorted(Message):
        """A click on the title of a column."""

        def __init__(self, column: int) -> None:
            super().__init__()
            self.column = column

    def __init__(self) -> None:
        super().__init__()
        self._table = Table([], (), [])
        self._widths: list[int] = []
        self._at = 0

    @property
    def selected(self) -> Line | None:
        """The selected line; None in an empty table."""
        return self._table.lines[self._at] if self._table.lines else None

    def show(self, shown: Table, *, select: Key | None = None) -> None:
        """Show another table; *select* is the line to select, else the selection stays."""
        key = select or (self.selected.key if self.selected else None)
        is_other = shown.titles != self._table.titles
        at = next(
            (at for at, line in enumerate(shown.lines) if line.key == key),
            0 if is_other else self._at,
        )
        self._table = shown
        self._at = max(0, min(at, len(shown.lines) - 1))
        self._fit()

    def render_line(self, y: int) -> Strip:
        """Return the line *y* of what is visible: the titles, or a line of the table."""
        width, base = self.size.width, self.rich_style
        if y == 0:
            return _strip(self._joined(self._table.titles), base + Style(bold=True), width)
        at = self.scroll_offset.y + y - 1
        if at >= len(self._table.lines):
            return Strip.blank(width, base)
        line = self._table.lines[at]
        style = base + Style(bold=bool(line.would_end), reverse=at == self._at)
        return _strip(self._joined(line.cells), style, width)

    def action_select(self, by: int) -> None:
        """Select the line that is *by* lines further down."""
        self._at = max(0, min(self._at + by, len(self._table.lines) - 1))
        top, room = self.scroll_offset.y, max(1, self.size.height - 1)
        self.scroll_to(y=min(max(top, self._at - room + 1), self._at), animate=False)
        self.post_message(self.Selected())
        self.refresh()

    def on_resize(self) -> None:
        """Fit the columns to the new width."""
        self._fit()

    def on_click(self, event: events.Click) -> None:
        """Select the line, or sort by the column, that was clicked."""
        if event.y:
            self._at = 0
            self.action_select(self.scroll_offset.y + event.y - 1)
            return
        end = 0
        for column, width in enumerate(self._widths):
            end += width + 2
            if event.x < end:
                self.post_message(self.Sorted(column))
                return

    def _fit(self) -> None:
        self._widths = self._table.widths(self.size.width - 1) if self._table.titles else []
        self.virtual_size = Size(self.size.width, len(self._table.lines) + 1)
        self.refresh()

    def _joined(self, cells: Sequence[str]) -> str:
        parts = []
        for column, (cell, width) in enumerate(zip(cells, self._widths, strict=True)):
            words = cut(cell, width)
            parts.append(words.rjust(width) if column in self._table.right else words.ljust(width))
        return "  ".join(parts)


class Question(ModalScreen[bool]):
    """A question that y answers with yes, and any other of its keys with no."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("y", "dismiss(True)", "Yes"),
        Binding("n,escape,q,enter", "dismiss(False)", "No"),
    ]

    def __init__(self, words: str) -> None:
        super().__init__()
        self._words = words

    def compose(self) -> ComposeResult:
        """Show the question and its keys."""
        yield Vertical(Static(Text(self._words)), Static(Text("\ny yes   n no")), id="dialog")


class Help(ModalScreen[None]):
    """The keys; any of its own keys leaves."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,q,enter,question_mark", "dismiss")]

    def compose(self) -> ComposeResult:
        """Show the keys."""
        yield Vertical(Static(Text(HELP)), id="dialog")


class WatchApp(App[Sequence[Snapshot] | Exception]):
    """The view; its result is None, or the snapshots or the error that it could not go on with."""

    TITLE = "conn_report --watch"
    ENABLE_COMMAND_PALETTE = False
    CSS = """
    #address, #slots, #detail, #said { height: 1; }
    #history { height: 3; color: $accent; }
    #meaning { height: 3; }
    #detail { color: $text-muted; }
    #filter { height: 1; border: none; padding: 0; display: none; }
    #dialog { width: 78; max-width: 100%; height: auto; padding: 1 1; background: $panel; }
    Lines { height: 1fr; overflow-x: hidden; background: $background; }
    Question, Help { align: center middle; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("b", "by", "Group"),
        Binding("s", "sort", "Sort"),
        Binding("r", "reverse", "Reverse"),
        Binding("slash", "filter", "Filter", key_display="/"),
        Binding("enter", "open", "Open", show=False),
        Binding("escape", "return", "Back", show=False),
        Binding("a", "alias", "Alias", show=False),
        Binding("m", "meaning", "Meaning", show=False),
        Binding("p", "pause", "Pause"),
        Binding("t", "terminate", "Terminate"),
        Binding("question_mark", "help", "Help", key_display="?"),
        Binding("q", "leave", "Quit"),
    ]

    def __init__(
        self,
        observers: Sequence[Observer],
        look: Callable[[], list[Snapshot]],
        *,
        every: timedelta,
        by: Sequence[Field],
        command: str,
        stop: Stop,
    ) -> None:
        """*look* returns a snapshot for each of *observers*; both are used in one other thread.

        *command* is how idle_reaper is typed. *stop* is set when the view is left, so that a login
        that is tried again ends.
        """
        super().__init__()
        self._observers = {each.alias: each for each in observers}
        self._look = look
        self._every = every
        self._by = by
        self._command = command
        self._stop = stop
        self._view = View(by=by)
        self._latest: dict[str, Snapshot] = {}
        self._failures: dict[str, str] = {}
        self._history: dict[str, History] = {}
        self._earlier: dict[str, tuple[Snapshot, Snapshot]] = {}
        self._alias = ""
        self._is_paused = False
        self._meaning = 0
        self._table = Table([], (), [])
        self._texts: dict[str, Text] = {}
        self._wake = asyncio.Event()
        self._on_loop: asyncio.AbstractEventLoop | None = None
        self._thread = ThreadPoolExecutor(1, "conn_guard-watch")

    def compose(self) -> ComposeResult:
        """Return the widgets from the top down."""
        for name in ("address", "slots", "history"):
            yield Static(id=name)
        yield Lines()
        yield Input(id="filter", placeholder="text in a name, an address or a statement's shape")
        for name in ("detail", "meaning", "said"):
            yield Static(id=name)
        yield Footer(show_command_palette=False)

    async def on_mount(self) -> None:
        """Begin to look."""
        self.query_one(Lines).focus()
        self._put("slots", "Looking at the server …")
        self._on_loop = loop = asyncio.get_running_loop()
        with suppress(RuntimeError, ValueError):  # only the main thread may
            for signum in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(signum, self.action_leave)
        self.run_worker(self._look_on())

    def close(self) -> None:
        """End the sessions of the observers, in their own thread; a second call does nothing."""
        while self._observers:
            _, observer = self._observers.popitem()
            self._thread.submit(observer.close)
        self._thread.shutdown()

    def tell(self, line: str) -> None:
        """Show *line*; may be called from any thread."""
        with suppress(RuntimeError):  # the view has been left
            if self._on_loop is not None:
                self._on_loop.call_soon_threadsafe(self._say, line)

    # What keys do

    def action_by(self) -> None:
        """Group by the next field."""
        self._show(self._view.next_by(self._by))

    def action_sort(self) -> None:
        """Sort by the next column."""
        self._show(self._view.sorted_by_next(len(self._table.titles)))

    def action_reverse(self) -> None:
        """Reverse the order."""
        self._show(replace(self._view, is_reversed=not self._view.is_reversed))

    def on_lines_selected(self) -> None:
        """Say what would happen to the selected line."""
        self._put("detail", self._detail(self.query_one(Lines).selected))

    def on_lines_sorted(self, message: Lines.Sorted) -> None:
        """Sort by the column that was clicked."""
        self._show(self._view.sorted_by(message.column))

    def action_filter(self) -> None:
        """Ask for the text of the filter."""
        filtered = self.query_one(Input)
        filtered.display = True
        filtered.focus()

    def on_input_changed(self, event: Input.Changed) -> None:
        """Show the sessions with the text that is being typed."""
        self._show(replace(self._view, wanted=event.value))

    def on_input_submitted(self) -> None:
        """Return to the table."""
        self.query_one(Lines).focus()

    def action_open(self) -> None:
        """List the sessions of the selected group."""
        line = self.query_one(Lines).selected
        if line and self._view.opened is None:
            opened = dict(zip(self._view.by, line.key[1:], strict=True))
            self._show(replace(self._view, opened=opened, column=None, is_reversed=False))

    def action_return(self) -> None:
        """End the filter, or close the opened group."""
        filtered = self.query_one(Input)
        if filtered.display:
            filtered.value = ""
            filtered.display = False
            self.query_one(Lines).focus()
        elif self._view.opened is not None:
            group = ("group", *self._view.opened.values())
            view = replace(self._view, opened=None, column=None, is_reversed=False)
            self._show(view, select=group)

    def action_alias(self) -> None:
        """Show the next alias."""
        if names := list(self._latest):
            self._alias = names[(names.index(self._alias) + 1) % len(names)]
            self._show(replace(self._view, opened=None))

    def action_meaning(self) -> None:
        """Show the next sentence on what the sessions mean."""
        self._meaning += 1
        self._show(self._view)

    def action_pause(self) -> None:
        """Look no more, or look again."""
        self._is_paused = not self._is_paused
        self._wake.set()
        self._show(self._view)

    def action_help(self) -> None:
        """Show the keys."""
        self.push_screen(Help())

    def action_leave(self) -> None:
        """Leave the view."""
        self._stop.signum = self._stop.signum or signal.SIGTERM
        self.exit()

    def action_terminate(self) -> None:
        """Ask whether to end the sessions of the selected line that the judge would not spare."""
        line, snapshot = self.query_one(Lines).selected, self._latest.get(self._alias)
        if line is None or snapshot is None:
            return
        if snapshot.refusal:
            role = snapshot.policy.login_role
            self._say(f"No session is signalled: role {role} {snapshot.refusal}. {snapshot.grant}")
            return
        count, name = len(line.rows), printable(line.name)
        if not line.would_end:
            self._say(f"{name}: none of {count} would be ended ({line.others}).")
            return
        rest = f"\nNot ended: {line.others}." if line.others else ""
        words = f"Terminate {line.would_end} of {count} sessions of {name}?{rest}"

        def answered(is_yes: bool | None) -> None:  # noqa: FBT001
            if is_yes:
                self.run_worker(self._end(line, snapshot))

        self.push_screen(Question(words), answered)

    # What happens beside

    async def _look_on(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while True:
                if not self._is_paused:
                    self._receive(await loop.run_in_executor(self._thread, self._look))
                self._wake.clear()
                with suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(self._wake.wait(), self._every.total_seconds())
        except Exception as error:  # noqa: BLE001 - the command tells it on one line
            self.exit(error)

    async def _end(self, line: Line, snapshot: Snapshot) -> None:
        loop = asyncio.get_running_loop()
        outcomes: list[Outcome] = []

        def end() -> None:
            server = self._observers[snapshot.alias].server()
            for outcome in end_chosen(server, snapshot.alias, snapshot.policy, line.chosen):
                outcomes.append(outcome)

        try:
            await loop.run_in_executor(self._thread, end)
        except RunError as error:
            self._say(str(error))
        except Exception as error:  # noqa: BLE001 - the view goes on, and looks again
            done = told(outcomes, len(outcomes)) if outcomes else "the sessions could not be ended"
            self._say(f"{type(error).__name__}: {done}; look again.")
        else:
            self._say(f"{line.name}: {told(outcomes, len(line.chosen))}.")
        self._wake.set()

    def _receive(self, snapshots: Sequence[Snapshot]) -> None:
        is_first = not self._latest and not self._failures
        if is_first and any(each.exit_code == Exit.USAGE for each in snapshots):
            self.exit(snapshots)
            return
        for each in snapshots:
            if each.mirror_of is not None:
                continue
            history = self._history.setdefault(each.alias, History())
            history.add(time.monotonic(), each.slots if each.failure is None else None)
            self._alias = self._alias or each.alias
            if each.failure is not None:
                self._failures[each.alias] = each.failure
                continue
            if self._failures.pop(each.alias, None):
                self._put("said", "")  # it told of the login that failed
            self._latest[each.alias] = each
            old, new = self._earlier.get(each.alias, (each, each))
            if _seconds_between(new, each) > GROWTH_SECONDS:
                old, new = new, each
            self._earlier[each.alias] = (old, new)
        self._show(self._view)

    def _show(self, view: View, *, select: Key | None = None) -> None:
        """Show *view* of the latest snapshot; what did not change is not drawn again."""
        self._view = view
        failure, snapshot = self._failures.get(self._alias), self._latest.get(self._alias)
        if snapshot is None:
            if failure:
                self._put("slots", one_line(failure), "bold red")
            return
        self._table = table(snapshot, view)
        self.query_one(Lines).show(self._table, select=select)
        width = self.size.width
        address, slots = render_slots(snapshot, width=width)
        self._put("address", address)
        percent = snapshot.slots.percent if snapshot.slots else 0
        colour = "bold red" if percent >= 95 else "yellow" if percent >= 80 else "green"
        if failure:
            self._put("slots", f"No answer, waiting: {one_line(failure)}", "bold red")
        else:
            self._put("slots", f"{'PAUSED  ' if self._is_paused else ''}{slots}", colour)
        history = self._history[self._alias]
        words = history.words(width - 24)
        graph = history.graph(width - 24, GRAPH_HEIGHT)
        filtered = f"filter: {view.wanted}" if view.wanted else ""
        notes = [words, f"order: {self._table.order}", printable(filtered)]
        self._put("history", "\n".join(f"{a} {b[:23]}" for a, b in zip(graph, notes, strict=True)))
        selected = self.query_one(Lines).selected
        self._put("detail", self._detail(selected))
        self._put_meaning(snapshot)

    def _detail(self, line: Line | None) -> str:
        if line is None:
            return "No session matches." if self._view.wanted else ""
        ends = f"ends {line.would_end}; " if line.would_end else ""
        return f"{printable(line.name)}: {ends}{line.others}".rstrip("; ")

    def _put_meaning(self, snapshot: Snapshot) -> None:
        earlier = self._earlier[snapshot.alias][0]
        found = meanings(snapshot, None if earlier is snapshot else earlier, command=self._command)
        self._meaning %= len(found)
        first = found[self._meaning]
        more = f"{self._meaning + 1}/{len(found)} " if len(found) > 1 else ""
        # Two lines for the sentence: a word that does not fit wastes the end of the first.
        room = 2 * self.size.width - 16
        words = f"{_start(more + first.sentence, room)}\n{_start(first.command, self.size.width)}"
        self._put("meaning", words, COLOURS[first.level])

    def _say(self, line: str) -> None:
        self._put("said", one_line(line), "reverse")

    def _put(self, name: str, words: str, style: str = "") -> None:
        text = Text(words, style)
        if self._texts.get(name) != text:
            self._texts[name] = text
            self.query_one(f"#{name}", Static).update(text, layout=False)


def watch(app: WatchApp) -> Sequence[Snapshot] | None:
    """Run *app* until it is left; return the snapshots that it could not go on with, or None.

    Raises what the looks raised.
    """
    try:
        result = app.run()
    finally:
        app.close()
    if isinstance(result, Exception):
        raise result
    return result


def _seconds_between(earlier: Snapshot, later: Snapshot) -> float:
    if earlier.observed_at is None or later.observed_at is None:
        return 0.0
    return (later.observed_at - earlier.observed_at).total_seconds()


def _start(words: str, width: int) -> str:
    return words if len(words) <= width else f"{words[: width - 1]}…"


def _strip(words: str, style: Style, width: int) -> Strip:
    return Strip([Segment(words, style)]).adjust_cell_length(width, style)
