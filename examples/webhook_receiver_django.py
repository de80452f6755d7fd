"""Receive webhooks in a Django view, without async: `webhooks.parse` verifies, Django's cache remembers what was done.

    pip install -e . django
    export CONVERTRILO_WEBHOOK_SECRET=...    # shown once, when the webhook was created
    python examples/webhook_receiver_django.py

Then the webhook's URL is https://YOUR-HOST/webhooks/convertrilo. A project of your own needs the view, its path, and
a cache that all processes share (Redis, Memcached, the database).

See it at work, with a sandbox that sends it something:

    python examples/webhook_demo.py webhook_receiver_django.py
"""

import logging
import os
from wsgiref.simple_server import make_server

from django.conf import settings
from django.core.cache import cache
from django.core.wsgi import get_wsgi_application
from django.http import HttpRequest, HttpResponse
from django.urls import path
from django.views.decorators.csrf import csrf_exempt

from convertrilo import DecodeError, SignatureError, WebhookEvent, webhooks

DAY = 86_400
CLAIM = 50  # seconds: longer than handling takes, shorter than until the service comes again


def handle(event: WebhookEvent) -> None:
    """Do what is to be done once for each event, in less than 15 seconds; hand longer work to your task queue."""
    print(event.event, event.job_id, event.status, event.external_id, flush=True)


def receive(request: HttpRequest) -> HttpResponse:
    """Verify a delivery, handle its event once, and answer."""
    if request.method != "POST":
        return HttpResponse(status=405)
    try:
        # request.body is the bytes as they were received, and those are what is signed.
        event = webhooks.parse(request.body, request.headers, os.environ["CONVERTRILO_WEBHOOK_SECRET"])
    except SignatureError:
        return HttpResponse(status=401)
    except DecodeError:
        return HttpResponse(status=400)
    key = f"convertrilo:{event.job_id or event.timestamp.isoformat()}:{event.event}"
    if not cache.add(key, "at work", CLAIM):
        return HttpResponse(status=204 if cache.get(key) == "done" else 503)
    try:
        handle(event)
    except Exception:
        cache.delete(key)
        raise  # Django answers 500, and the service sends the event again
    cache.set(key, "done", DAY)
    return HttpResponse(status=204)


urlpatterns = [path("webhooks/convertrilo", csrf_exempt(receive))]

if __name__ == "__main__":
    logging.basicConfig()  # what is refused, and why
    settings.configure(
        ROOT_URLCONF=__name__,
        ALLOWED_HOSTS=["*"],
        CACHES={"default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}},
    )
    with make_server("127.0.0.1", int(os.environ.get("PORT", "8000")), get_wsgi_application()) as server:
        print(f"Running on http://127.0.0.1:{server.server_port}", flush=True)
        server.serve_forever()
