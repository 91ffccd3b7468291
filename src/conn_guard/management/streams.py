"""Writes a command's output: to a file in one move, or to a reader that may have gone."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conn_guard.management import arguments
from conn_guard.sessions.stop import Stop


def output_path(path: object, option: str) -> Path | None:
    """Return *path* if it can be written, None if none is given; raise CommandError otherwise."""
    if path is None:
        return None
    file = Path(str(path))
    if not _is_special(file):
        # A symbolic link is followed: the move must replace the file, not the link.
        file = file.resolve()
    is_writable = os.access(file, os.W_OK) if _is_special(file) else os.access(file.parent, os.W_OK)
    if file.is_dir() or not is_writable:
        raise arguments.wrong(
            f"{option}: {str(path)!r} can't be written: its folder has to exist and be writable."
        )
    return file


def write_file(file: Path, text: str) -> None:
    """Replace *file* by *text* in one move, with mode 0644; raise OSError.

    A device or a pipe is written to: a move would replace it.
    """
    if _is_special(file):
        with file.open("w", encoding="utf-8") as stream:
            stream.write(text)
        return
    descriptor, name = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            stream.write(text)
        os.chmod(name, 0o644)  # readers run as other users
        os.replace(name, file)
    except BaseException:
        with suppress(OSError):
            os.unlink(name)
        raise


@dataclass
class Reader:
    """The reader of a stream."""

    is_gone: bool = False


@contextmanager
def reader_may_leave(stream: Any) -> Iterator[Reader]:
    """End the block quietly if the reader of *stream* has closed its end, as ``head`` does."""
    reader = Reader()
    try:
        yield reader
        stream.flush()
    except BrokenPipeError:
        reader.is_gone = True
        _forget(stream)
    except OSError:
        _forget(stream)
        raise


def _forget(stream: Any) -> None:
    """Let Python write what is left of *stream* to nowhere: at exit it would fail once more."""
    with suppress(OSError, ValueError, AttributeError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)


@contextmanager
def stopped_by_signals(stop: Stop) -> Iterator[None]:
    """Let the first SIGTERM or SIGINT set *stop*; the second acts as it did before the block."""
    earlier: dict[int, Any] = {}

    def ask(signum: int, frame: object) -> None:
        stop.signum = signum
        signal.signal(signum, earlier[signum])

    # Only the main thread may set handlers; call_command may run in another.
    with suppress(ValueError):
        for asked in (signal.SIGTERM, signal.SIGINT):
            earlier[asked] = signal.signal(asked, ask)
    try:
        yield
    finally:
        for signum, handler in earlier.items():
            signal.signal(signum, handler)


def _is_special(file: Path) -> bool:
    return file.exists() and not file.is_file() and not file.is_dir()
