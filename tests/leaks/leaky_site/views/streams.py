"""Views that query while their body is sent."""

import asyncio
import time
from itertools import islice

from django.db import transaction
from django.http import StreamingHttpResponse

from tests.leaks.leaky_site import control
from tests.leaks.leaky_site.models import Parameter
from tests.leaks.leaky_site.views.base import CHUNK, PACE, aquery, query, view


@view
def stream_queries(request):
    def body():
        with control.work():
            query()
            yield CHUNK
            query()

    return StreamingHttpResponse(body())


@view
async def async_stream_queries(request):
    async def body():
        await aquery()
        yield CHUNK
        await aquery()

    return StreamingHttpResponse(body())


@view
def stream_raises(request):
    def body():
        with control.work():
            query()
            yield CHUNK
            query()
            raise ValueError("The stream failed.")

    return StreamingHttpResponse(body())


@view
async def async_stream_raises(request):
    async def body():
        await aquery()
        yield CHUNK
        await aquery()
        raise ValueError("The stream failed.")

    return StreamingHttpResponse(body())


@view
def stream_in_atomic_left(request):
    def body():
        with control.work(), transaction.atomic():
            query()
            for _ in range(40):
                time.sleep(PACE)
                yield CHUNK

    return StreamingHttpResponse(body())


@view
def stream_of_iterator_left(request):
    def body():
        with control.work():
            for _ in islice(Parameter.objects.iterator(chunk_size=10), 40):
                time.sleep(PACE)
                yield CHUNK

    return StreamingHttpResponse(body())


@view
async def async_stream_left(request):
    async def body():
        for _ in range(40):
            await aquery()
            yield CHUNK
            await asyncio.sleep(PACE)

    return StreamingHttpResponse(body())


@view
async def async_stream_of_iterator_left(request):
    async def body():
        async for _ in Parameter.objects.aiterator(chunk_size=10):
            yield CHUNK

    return StreamingHttpResponse(body())
