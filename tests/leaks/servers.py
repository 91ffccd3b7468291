"""The command that starts each web server, in one process unless said otherwise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

ASGI_APPLICATION = "tests.leaks.leaky_site.asgi:application"
WSGI_APPLICATION = "tests.leaks.leaky_site.wsgi:application"


@dataclass(frozen=True)
class Server:
    """One web server. *arguments* follow ``python -m module``; ``{port}`` is filled in."""

    name: str
    module: str
    arguments: str
    needs: tuple[str, ...] = ()
    """The modules that have to be installed besides *module*."""
    processes: int = 1
    shared_socket: bool = False
    """Whether all processes accept on one UNIX socket, handed to each as its standard input."""
    environ: Mapping[str, str] = field(default_factory=dict)

    def command(self, python: str, port: int) -> list[str]:
        return [python, "-m", self.module, *self.arguments.format(port=port).split()]


_GUNICORN = "--bind 127.0.0.1:{port} --workers 1 --no-control-socket "

_TABLE = [
    Server(
        "uvicorn", "uvicorn", f"--port {{port}} --no-access-log --lifespan on {ASGI_APPLICATION}"
    ),
    Server("daphne", "daphne", f"-b 127.0.0.1 -p {{port}} {ASGI_APPLICATION}"),
    Server("hypercorn", "hypercorn", f"-b 127.0.0.1:{{port}} {ASGI_APPLICATION}"),
    Server("granian", "granian", f"--interface asgi --port {{port}} {ASGI_APPLICATION}"),
    Server(
        "gunicorn-uvicorn",
        "gunicorn",
        f"{_GUNICORN} --worker-class uvicorn_worker.UvicornWorker {ASGI_APPLICATION}",
        needs=("uvicorn_worker",),
    ),
    # As CVAT runs it: supervisord hands one socket to two processes, and a sync-only middleware
    # puts Django in sync mode.
    Server(
        "cvat",
        "uvicorn",
        f"--fd 0 --no-access-log {ASGI_APPLICATION}",
        processes=2,
        shared_socket=True,
        environ={"LEAKS_SYNC_MIDDLEWARE": "1"},
    ),
    Server("gunicorn-sync", "gunicorn", f"{_GUNICORN} --worker-class sync {WSGI_APPLICATION}"),
    Server(
        "gunicorn-gthread",
        "gunicorn",
        f"{_GUNICORN} --worker-class gthread --threads 8 {WSGI_APPLICATION}",
    ),
    Server(
        "gunicorn-gevent",
        "gunicorn",
        f"{_GUNICORN} --worker-class gevent {WSGI_APPLICATION}",
        needs=("gevent",),
    ),
    Server(
        "granian-wsgi",
        "granian",
        f"--interface wsgi --blocking-threads 8 --port {{port}} {WSGI_APPLICATION}",
    ),
    Server("runserver", "django", "runserver --noreload 127.0.0.1:{port}"),
]

SERVERS = {each.name: each for each in _TABLE}
ASGI = tuple(name for name, each in SERVERS.items() if ASGI_APPLICATION in each.arguments)
WSGI = tuple(name for name in SERVERS if name not in ASGI)
