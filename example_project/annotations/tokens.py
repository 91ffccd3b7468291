"""Authentication by token, beside Django's by session."""

import json
from collections.abc import Callable

from django.contrib.auth import authenticate
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_POST

from annotations.models import Token


class TokenMiddleware:
    """Authenticate a request that has the header `Authorization: Token <key>`."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        scheme, _, key = request.headers.get("Authorization", "").partition(" ")
        if scheme == "Token":
            token = (
                Token.objects.select_related("user")
                .filter(digest=Token.digest_of(key), user__is_active=True)
                .first()
            )
            if token is None:
                return JsonResponse({"error": "This token is unknown."}, status=401)
            request.user = token.user
        return self.get_response(request)


@csrf_exempt  # No cookie logs in here, so there is nothing to forge.
@require_POST
def login(request: HttpRequest) -> JsonResponse:
    """Answer a name and a password with a new token."""
    try:
        given = json.loads(request.body)
        user = authenticate(
            request, username=str(given["username"]), password=str(given["password"])
        )
    except (ValueError, KeyError, TypeError):
        return JsonResponse({"error": 'Send {"username": "...", "password": "..."}.'}, status=400)
    if user is None:
        return JsonResponse({"error": "The name or the password is wrong."}, status=401)
    return JsonResponse({"token": Token.issue(user)})
