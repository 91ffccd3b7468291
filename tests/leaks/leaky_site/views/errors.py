"""Error pages that query."""

from django.http import Http404, HttpResponse

from tests.leaks.leaky_site.views.base import query, view


@view
def error_page_404(request):
    raise Http404


@view
def error_page_500(request):
    raise ValueError("The view failed.")


@view
async def async_error_page_500(request):
    raise ValueError("The view failed.")


@view
def drf_exception(request):
    # Imported here, since the other views work without it.
    from rest_framework.exceptions import NotFound
    from rest_framework.views import APIView

    class Absent(APIView):
        def get(self, request):
            raise NotFound

        def get_exception_handler(self):
            return drf_exception_handler

    return Absent.as_view()(request)


def drf_exception_handler(error, context):
    from rest_framework.views import exception_handler

    query()
    return exception_handler(error, context)


def page_not_found(request, exception):
    query()
    return HttpResponse("absent", status=404)


def server_error(request):
    if "error_page" in request.path:
        query()
    return HttpResponse("failed", status=500)
