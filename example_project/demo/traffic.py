"""The client of the demo, which counts every answer."""

import asyncio
from collections import Counter
from collections.abc import Iterator

import httpx

CONCURRENCY = 12


def asset_paths(server: httpx.Request) -> list[str]:
    """Return the paths of the assets' downloads."""
    with httpx.Client(**_settings(server)) as client:
        answer = client.get("/api/assets").raise_for_status()
    return [f"/api/assets/{row['id']}/download" for row in answer.json()["results"]]


def ask(server: httpx.Request, paths: Iterator[str], statuses: Counter[int]) -> None:
    """Request *paths*, a few at a time, and count the answers in *statuses*; 0 is no answer.

    It reads as nginx does: it takes the head, and accepts a body that breaks off.
    """

    async def ask_on(client: httpx.AsyncClient) -> None:
        for path in paths:
            status = 0
            try:
                async with client.stream("GET", path) as answer:
                    status = answer.status_code
                    await answer.aread()
            except httpx.TransportError:
                pass
            statuses[status] += 1

    async def ask_side_by_side() -> None:
        async with httpx.AsyncClient(**_settings(server)) as client:
            await asyncio.gather(*(ask_on(client) for _ in range(CONCURRENCY)))

    asyncio.run(ask_side_by_side())


def _settings(server: httpx.Request) -> dict[str, object]:
    return {"base_url": server.url, "headers": server.headers, "timeout": 30, "trust_env": False}
