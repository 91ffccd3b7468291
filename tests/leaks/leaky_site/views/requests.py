"""Views of ordinary requests, the baseline of the matrix."""

from django.http import FileResponse

from tests.leaks.leaky_site.views.base import aquery, ok, query, view


@view
def nothing(request):
    return ok()


@view
def sync_query(request):
    query()
    return ok()


@view
async def async_query(request):
    await aquery()
    return ok()


@view
async def sync_middleware(request):
    await aquery()
    return ok()


@view
def two_aliases(request):
    query()
    query("second")
    return ok()


@view
def view_raises(request):
    query()
    raise ValueError("The view failed.")


@view
def atomic_requests(request):
    query()
    return ok()


@view
def file_response(request):
    query()
    return FileResponse(open(__file__, "rb"))
