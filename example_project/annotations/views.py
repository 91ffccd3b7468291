"""The views of the annotation server: pages for people, JSON and files for programs."""

import json
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import wraps
from pathlib import Path

from django.contrib.auth.decorators import login_required
from django.core.handlers.asgi import ASGIRequest
from django.core.paginator import Paginator
from django.db.models import Count, QuerySet
from django.http import HttpRequest, HttpResponse, JsonResponse, StreamingHttpResponse
from django.http.response import HttpResponseBase
from django.shortcuts import get_object_or_404, render
from django.views.decorators.http import require_safe

from annotations.models import Annotation, Asset, Project, Segment, Task
from annotations.sendfile import sendfile

PAGE_SIZE = 50
ANNOTATION_FIELDS = ("segment_id", "frame", "label", "left", "top", "width", "height")


def health(request: HttpRequest) -> HttpResponse:
    """Answer without a query, so that a full PostgreSQL doesn't fail the health check."""
    return HttpResponse("ok\n", content_type="text/plain")


# Pages


@require_safe
@login_required
def projects(request: HttpRequest) -> HttpResponse:
    found = Project.objects.select_related("owner").prefetch_related("tasks")
    return render(request, "annotations/projects.html", {"projects": found})


@require_safe
@login_required
def task(request: HttpRequest, pk: int) -> HttpResponse:
    found = get_object_or_404(Task.objects.select_related("project"), pk=pk)
    frames = {asset.frame: (asset, []) for asset in found.assets.all()}
    for annotation in Annotation.objects.filter(segment__task=found):
        frames[annotation.frame][1].append(annotation)
    return render(request, "annotations/task.html", {"task": found, "frames": frames.values()})


# The API


def api(view: Callable[..., HttpResponseBase]) -> Callable[..., HttpResponseBase]:
    """Let *view* answer GET and HEAD of an authenticated user, by session or by token."""

    @require_safe
    @wraps(view)
    def guarded(request: HttpRequest, *args: object, **kwargs: object) -> HttpResponseBase:
        if not request.user.is_authenticated:
            return JsonResponse(
                {"error": "Log in, or send Authorization: Token <key>."}, status=401
            )
        return view(request, *args, **kwargs)

    return guarded


def page(request: HttpRequest, rows: QuerySet) -> JsonResponse:
    found = Paginator(rows, PAGE_SIZE).get_page(request.GET.get("page"))
    return JsonResponse(
        {"count": found.paginator.count, "page": found.number, "results": list(found)}
    )


@api
def list_projects(request: HttpRequest) -> JsonResponse:
    return page(request, Project.objects.values("id", "name", "owner__username"))


@api
def list_tasks(request: HttpRequest) -> JsonResponse:
    return page(
        request,
        Task.objects.annotate(assets_count=Count("assets")).values(
            "id", "name", "project_id", "assets_count"
        ),
    )


@api
def list_assets(request: HttpRequest) -> JsonResponse:
    return page(request, Asset.objects.values("id", "task_id", "frame", "size"))


@api
def download_asset(request: HttpRequest, pk: int) -> HttpResponseBase:
    asset = get_object_or_404(Asset, pk=pk)
    return sendfile(Path(asset.file.path), content_type="image/svg+xml")


@api
def download_chunk(request: HttpRequest, pk: int, number: int) -> HttpResponseBase:
    """Send one segment's frames, packed; chunks are numbered from 0."""
    segment = Segment.objects.filter(task_id=pk)[number : number + 1].first()
    if segment is None:
        return JsonResponse({"error": f"Task {pk} has no chunk {number}."}, status=404)
    return sendfile(Path(segment.chunk.path), content_type="application/zip")


@api
def statistics(request: HttpRequest, pk: int) -> JsonResponse:
    """Count a task's labels, one thread for each segment; each thread opens a connection."""
    segments = list(get_object_or_404(Task, pk=pk).segments.values_list("pk", flat=True))
    with ThreadPoolExecutor(max_workers=4) as pool:
        counts = list(pool.map(_count_labels, segments))
    return JsonResponse({"segments": len(segments), "labels": sum(counts, Counter())})


def _count_labels(segment: int) -> Counter:
    return Counter(Annotation.objects.filter(segment=segment).values_list("label", flat=True))


@api
def export(request: HttpRequest, pk: int) -> StreamingHttpResponse:
    """Stream a task's annotations, one JSON object a line, without loading all of them."""
    rows = Annotation.objects.filter(segment__task=get_object_or_404(Task, pk=pk)).values(
        *ANNOTATION_FIELDS
    )
    # Django streams an iterator of the other kind only after it has read it to the end.
    lines = _alines(rows) if isinstance(request, ASGIRequest) else _lines(rows)
    return StreamingHttpResponse(lines, content_type="application/x-ndjson")


def _lines(rows: QuerySet) -> Iterator[str]:
    for row in rows.iterator(chunk_size=500):
        yield json.dumps(row) + "\n"


async def _alines(rows: QuerySet) -> AsyncIterator[str]:
    async for row in rows.aiterator(chunk_size=500):
        yield json.dumps(row) + "\n"
