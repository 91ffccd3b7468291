"""A stack in a report always has a line, and of libraries none where the project has one."""

from __future__ import annotations

import gc
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

from conn_guard.stacks import callers, own_stack, where_is


def test_libraries_between_the_projects_own_lines_are_left_out():
    with ThreadPoolExecutor(1) as executor:
        stack = executor.submit(lambda: ask()).result()
    assert [frame.name for frame in stack] == ["<lambda>"]


def ask():
    return own_stack(callers())


def test_a_stack_without_a_line_of_the_project_is_kept_whole():
    frames = []
    thread = threading.Thread(target=threading.Event().wait, args=[0])
    thread.run = lambda: note(frames)
    thread.start()
    thread.join()
    of_libraries = [frame for frame in frames if frame.f_globals["__name__"] == "threading"]
    assert of_libraries
    assert len(own_stack(of_libraries)) == len(of_libraries)


def note(frames):
    frames.extend(callers())


def test_a_stack_holds_no_variable_of_its_frames():
    class Held:
        pass

    def hold():
        held = Held()
        held.stack = ask()
        assert where_is(threading.get_ident())
        return weakref.ref(held)

    gc.disable()
    try:
        assert hold()() is None
    finally:
        gc.enable()


def test_a_thread_that_ended_is_said_to_have_ended():
    thread = threading.Thread(target=int)
    thread.start()
    thread.join()
    assert where_is(thread.ident) == "That thread has ended.\n"
    assert "test_a_thread_that_ended" in where_is(threading.get_ident())
