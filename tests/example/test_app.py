"""The answers of the annotation server under uvicorn and under runserver."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import httpx
import pytest


@pytest.fixture(scope="module")
def server(stage):
    with stage.serve("middleware") as request:
        yield request


@pytest.fixture
def client(server, client_of):
    with client_of(server) as opened:
        yield opened


@pytest.fixture
def stranger(server):
    with httpx.Client(base_url=server.url, timeout=30, trust_env=False) as opened:
        yield opened


def ids(client: httpx.Client, path: str) -> list[int]:
    return [row["id"] for row in client.get(path).raise_for_status().json()["results"]]


def head_of(client: httpx.Client, path: str) -> httpx.Response:
    """Return the head of an answer whose body breaks off, as nginx reads it."""
    with client.stream("GET", path) as response, pytest.raises(httpx.RemoteProtocolError):
        response.read()
    return response


def test_health_needs_no_log_in(stranger):
    assert stranger.get("/health").text == "ok\n"


@pytest.mark.parametrize("path", ["/api/projects", "/api/tasks", "/api/assets"])
def test_the_api_is_closed_to_strangers(stranger, path):
    assert stranger.get(path).status_code == 401
    assert stranger.get(path, headers={"Authorization": "Token guessed"}).status_code == 401


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ("{", 400),
        ("[]", 400),
        ("{}", 400),
        ('{"username": "annotator", "password": "guessed"}', 401),
    ],
)
def test_a_wrong_log_in_gets_no_token(stranger, body, status):
    response = stranger.post("/api/login", content=body)
    assert response.status_code == status
    assert "token" not in response.json()


def test_lists(client):
    projects = client.get("/api/projects").json()
    assert [row["name"] for row in projects["results"]] == ["Bus station", "Crossroads"]
    assert [row["assets_count"] for row in client.get("/api/tasks").json()["results"]] == [
        12,
        12,
        12,
    ]
    assert client.get("/api/assets").json()["count"] == 36
    assert client.get("/api/assets?page=nonsense").json()["page"] == 1
    assert client.post("/api/tasks").status_code in (403, 405)


def test_a_download_promises_a_length_and_leaves_the_body_to_nginx(client, stage):
    path = f"/api/assets/{ids(client, '/api/assets')[0]}/download"
    head = head_of(client, path)
    assert head.status_code == 200
    file = Path(stage.environment["MEDIA_ROOT"]) / head.headers["X-Accel-Redirect"].removeprefix(
        "/protected/"
    )
    assert int(head.headers["Content-Length"]) == file.stat().st_size > 0
    assert re.search(
        "(shorter than|Too little data for declared) Content-Length", stage.log_of("middleware")
    )


def test_a_chunk_holds_the_frames_of_its_segment(client):
    task = ids(client, "/api/tasks")[0]
    assert (
        head_of(client, f"/api/tasks/{task}/chunks/2").headers["Content-Type"] == "application/zip"
    )
    assert client.get(f"/api/tasks/{task}/chunks/3").status_code == 404


def test_the_simple_backend_sends_the_file_itself(stage, client_of):
    simple = replace(stage, environment={**stage.environment, "SENDFILE_BACKEND": "simple"})
    with simple.serve("app") as request, client_of(request) as client:
        response = client.get(f"/api/assets/{ids(client, '/api/assets')[0]}/download")
        assert response.text.startswith("<svg ")
        assert len(response.content) == client.get("/api/assets").json()["results"][0]["size"]


def test_the_export_streams_one_annotation_a_line(client):
    task = ids(client, "/api/tasks")[0]
    with client.stream("GET", f"/api/tasks/{task}/export") as response:
        rows = [json.loads(line) for line in response.iter_lines()]
    assert "Content-Length" not in response.headers
    counted = client.get(f"/api/tasks/{task}/statistics").json()
    assert counted["segments"] == 3
    assert len(rows) == sum(counted["labels"].values()) > 0
    assert {row["label"] for row in rows} == set(counted["labels"])


def test_the_pages_take_a_log_in_by_session(stranger, stage):
    assert stranger.get("/").headers["Location"].startswith("/accounts/login/")
    stranger.get("/accounts/login/")
    form = {
        "username": "annotator",
        "password": stage.environment["SEED_PASSWORD"],
        "csrfmiddlewaretoken": stranger.cookies["csrftoken"],
    }
    assert stranger.post("/accounts/login/", data=form).headers["Location"] == "/"
    projects = stranger.get("/").text
    task = re.search(r'href="(/tasks/\d+/)"', projects)
    assert task
    assert stranger.get(task[1]).text.count("<figure>") == 12
    assert "Annotations" in stranger.get("/admin/").text
    assert stranger.get("/admin/annotations/segment/").status_code == 200


def test_sessions_carry_the_name_of_what_opened_them(stage):
    code = (
        "from django.db import connection as c; k = c.cursor(); k.execute('SHOW application_name');"
        " print(k.fetchone()[0])"
    )
    assert stage.manage("shell", "-v0", "-c", code).stdout.strip() == "example:server"
    worker = {
        name: value for name, value in stage.environment.items() if name != "APPLICATION_NAME"
    }
    assert (
        replace(stage, environment=worker).manage("shell", "-v0", "-c", code).stdout.strip()
        == "example:worker"
    )


def test_models_and_migrations_agree(stage):
    done = stage.manage("makemigrations", "--check", "--dry-run")
    assert done.returncode == 0, done.stdout


def test_it_just_runs(manage, tmp_path, until):
    """Without any setting the example runs on SQLite, with DEBUG, under runserver (WSGI)."""
    plain = {
        "DATABASE_URL": f"sqlite:///{tmp_path / 'example.sqlite3'}",
        "MEDIA_ROOT": str(tmp_path / "media"),
    }
    for command in (["migrate", "-v0"], ["seed"]):
        process = manage(*command, **plain, SEED_PASSWORD="for this test")
        assert process.communicate(timeout=60) == ("", "")
    again = manage("seed", **plain)
    assert "nothing was changed" in again.communicate(timeout=60)[1]
    assert again.returncode == 1
    from tests.support.programs import free_port

    address = f"http://127.0.0.1:{free_port()}"
    manage("runserver", "--noreload", address.removeprefix("http://"), **plain)
    with httpx.Client(base_url=address, timeout=30, trust_env=False) as client:

        def answers() -> bool:
            try:
                return client.get("/health").status_code == 200
            except httpx.ConnectError:
                return False

        until(answers, timeout=30)
        token = client.post(
            "/api/login", json={"username": "annotator", "password": "for this test"}
        ).json()["token"]
        client.headers["Authorization"] = f"Token {token}"
        asset, task = ids(client, "/api/assets")[0], ids(client, "/api/tasks")[0]
        assert client.get(f"/api/assets/{asset}/download").text.startswith("<svg ")
        assert len(client.get(f"/api/tasks/{task}/export").text.splitlines()) > 12
