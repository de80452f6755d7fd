"""The web pages: a live list of jobs, and a form for every API operation. They load nothing from other hosts."""

import importlib.resources
from collections.abc import Awaitable, Callable, Mapping
from functools import cache
from typing import Any

import anyio.to_thread
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from convertrilo._json import dumps
from convertrilo._openapi import openapi, openapi_yaml
from convertrilo.codec import to_wire
from convertrilo.operations import JOB_STATUS
from convertrilo.sandbox.api import authentication, jobs
from convertrilo.sandbox.api.backend import Backend
from convertrilo.sandbox.api.call import ApiCall
from convertrilo.sandbox.state.problem import Problem
from convertrilo.sandbox.state.store import Tx

_LISTED = 100
_ASSETS = ("style.css", "key.js", "jobs.js", "api.js")
_TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css"}
_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}


def routes(backend: Backend) -> list[Route]:
    """Return the routes of the pages."""

    async def listing(request: Request) -> Response:
        try:
            return JSONResponse(await backend.store.transaction(lambda tx: _jobs(backend, request, tx)))
        except Problem as problem:
            return JSONResponse(problem.wire, problem.status)

    return [
        Route("/", _serve_file("jobs.html"), methods=["GET"]),
        Route("/docs", _serve_file("api.html"), methods=["GET"]),
        Route("/openapi.yaml", _openapi_yaml, methods=["GET"]),
        Route("/openapi.json", _openapi_json, methods=["GET"]),
        Route("/pages/jobs", listing, methods=["GET"]),
        *(Route(f"/pages/{name}", _serve_file(name), methods=["GET"]) for name in _ASSETS),
    ]


def _jobs(backend: Backend, request: Request, tx: Tx) -> Mapping[str, Any]:
    """Return the account's latest jobs, newest first."""
    caller = authentication.authenticate(tx, JOB_STATUS, request.headers)
    assert caller is not None
    call = ApiCall(
        backend=backend,
        operation=JOB_STATUS,
        origin=f"{request.url.scheme}://{request.url.netloc}",
        path={},
        query={},
        idempotency_key=None,
        chunks=request.stream,
        account_id=caller.account,
    )
    found = tx.jobs("WHERE account = ? ORDER BY n DESC LIMIT ?", caller.account, _LISTED)
    total = tx.row("SELECT count(*) FROM jobs WHERE account = ?", caller.account)
    return {"total": total and total[0], "jobs": [to_wire(jobs.status(call, tx, job)) for job in found]}


def _serve_file(name: str) -> Callable[[Request], Awaitable[Response]]:
    async def serve(_request: Request) -> Response:
        file = importlib.resources.files("convertrilo.sandbox.web") / "pages" / name
        content = await anyio.to_thread.run_sync(file.read_bytes)
        return Response(content, headers=_HEADERS, media_type=_TYPES[f".{name.rpartition('.')[2]}"])

    return serve


@cache
def _openapi_as_json() -> bytes:
    return dumps(openapi())


async def _openapi_yaml(_request: Request) -> Response:
    content = await anyio.to_thread.run_sync(openapi_yaml)
    return Response(content, headers=_HEADERS, media_type="application/yaml")


async def _openapi_json(_request: Request) -> Response:
    content = await anyio.to_thread.run_sync(_openapi_as_json)
    return Response(content, headers=_HEADERS, media_type="application/json")
