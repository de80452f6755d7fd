"""A local stand-in for Google Drive, with the calls of its API, version 3, that the sandbox makes.

The calls list a folder, read a file, upload a file (resumable, in one piece), and refresh an access token.
"""

import hashlib
import hmac
import json
import re
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import parse_qsl

import attrs
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from convertrilo.sandbox.state.files import Files
from convertrilo.sandbox.state.problem import Problem
from convertrilo.sandbox.state.store import Store, Tx
from convertrilo.sandbox.state.streams import read_stream, write_stream

_IN_PARENTS = re.compile(r"'((?:[^'\\]|\\.)*)' in parents")
_MAX_PAGE = 1_000
_MAX_METADATA = 65_536

_Endpoint = Callable[[Request], Awaitable[Response]]


@attrs.frozen
class StoredFile:
    """One file in the stand-in; `size` is in bytes."""

    id: str
    folder_id: str
    name: str
    size: int


class DriveStandIn:
    """Folders and files behind Google Drive's API, for clients with a token.

    Args:
        store: keeps the list of files.
        files: keeps the content of files.
        limit: the maximum size of a file, in bytes.
        secret: the secret that the tokens are derived from.
    """

    def __init__(self, store: Store, files: Files, *, limit: int, secret: bytes) -> None:
        self._store = store
        self._files = files
        self._limit = limit
        self.access_token: str = f"ya29.{_token(secret, 'access')}"
        """The only valid access token."""
        self.refresh_token: str = f"1//{_token(secret, 'refresh')}"
        """The only valid refresh token."""

    # ---- for tests

    async def add(self, folder_id: str, name: str, content: bytes) -> StoredFile:
        """Add a file to a folder."""
        file = await self._store.transaction(lambda tx: _add(tx, folder_id, name))
        self._files.drive(file.id).parent.mkdir(parents=True, exist_ok=True)
        self._files.drive(file.id).write_bytes(content)
        return await self._store.transaction(lambda tx: _finish(tx, file, len(content)))

    def content(self, file_id: str) -> bytes:
        """Return the content of a file."""
        return self._files.drive(file_id).read_bytes()

    def in_folder(self, folder_id: str) -> list[StoredFile]:
        """Return the files in a folder, ordered by name."""
        return self._store.read(lambda tx: _list(tx, folder_id, "", _MAX_PAGE))

    # ---- the API

    def routes(self) -> list[Route]:
        """Return the routes of Drive's API."""
        return [
            Route("/token", _with_drive_errors(self._refresh), methods=["POST"]),
            Route("/drive/v3/about", self._authorized(self._about), methods=["GET"]),
            Route("/drive/v3/files", self._authorized(self._list), methods=["GET"]),
            Route("/drive/v3/files/{id}", self._authorized(self._get), methods=["GET"]),
            Route("/upload/drive/v3/files", self._authorized(self._begin), methods=["POST"]),
            Route("/upload/drive/v3/files", self._authorized(self._upload), methods=["PUT"]),
        ]

    def _authorized(self, inner: _Endpoint) -> _Endpoint:
        async def endpoint(request: Request) -> Response:
            _, _, token = request.headers.get("authorization", "").partition(" ")
            if not hmac.compare_digest(token.encode(), self.access_token.encode()):
                return _error(401, "Invalid Credentials")
            return await _with_drive_errors(inner)(request)

        return endpoint

    async def _refresh(self, request: Request) -> Response:
        form = (await read_stream(request.stream(), _MAX_METADATA)).decode(errors="replace")
        token = dict(parse_qsl(form)).get("refresh_token", "")
        if not hmac.compare_digest(token.encode(), self.refresh_token.encode()):
            return JSONResponse({"error": "invalid_grant"}, 400)
        return JSONResponse({"access_token": self.access_token, "expires_in": 3599, "token_type": "Bearer"})

    async def _about(self, _request: Request) -> Response:
        return JSONResponse({"user": {"kind": "drive#user", "displayName": "Sandbox"}})

    async def _list(self, request: Request) -> Response:
        found = _IN_PARENTS.search(request.query_params.get("q", ""))
        if found is None:
            return _error(400, "Only the files of one folder can be listed: q must be 'FOLDER' in parents")
        folder, after = re.sub(r"\\(.)", r"\1", found[1]), request.query_params.get("pageToken", "")
        size = request.query_params.get("pageSize", "100")
        count = min(_MAX_PAGE, max(1, int(size))) if size.isascii() and size.isdigit() else 100
        files = await self._store.transaction(lambda tx: _list(tx, folder, after, count + 1))
        page: dict[str, Any] = {"kind": "drive#fileList", "files": [_wire(file) for file in files[:count]]}
        if len(files) > count:
            page["nextPageToken"] = _page_token(files[count - 1])
        return JSONResponse(page)

    async def _get(self, request: Request) -> Response:
        file = await self._store.transaction(lambda tx: _file(tx, request.path_params["id"]))
        if file is None:
            return _error(404, "File not found")
        if request.query_params.get("alt") != "media":
            return JSONResponse(_wire(file))
        return FileResponse(self._files.drive(file.id), media_type="application/octet-stream")

    async def _begin(self, request: Request) -> Response:
        if request.query_params.get("uploadType") != "resumable":
            return _error(400, "Only resumable uploads are taken")
        content = await read_stream(request.stream(), _MAX_METADATA)
        try:
            metadata = json.loads(content)
            folder, name = str(metadata["parents"][0]), str(metadata["name"])
            (folder + name).encode()
        except (ValueError, LookupError, TypeError, RecursionError):
            return _error(400, "The metadata needs a name and parents")
        file = await self._store.transaction(lambda tx: _add(tx, folder, name))
        url = request.url.replace(query=f"uploadType=resumable&upload_id={file.id}")
        return Response(headers={"location": str(url)})

    async def _upload(self, request: Request) -> Response:
        upload = request.query_params.get("upload_id", "")
        file = await self._store.transaction(lambda tx: _file(tx, upload, is_complete=False))
        if file is None:
            return _error(404, "No such upload")
        written = await write_stream(request.stream(), self._files.drive(file.id), limit=self._limit)
        done = await self._store.transaction(lambda tx: _finish(tx, file, written.size))
        return JSONResponse(_wire(done))


def _with_drive_errors(inner: _Endpoint) -> _Endpoint:
    """Turn exceptions into error responses as Drive sends them."""

    async def endpoint(request: Request) -> Response:
        try:
            return await inner(request)
        except Problem as problem:
            return _error(problem.status, problem.message)
        except ClientDisconnect:
            return Response(status_code=400)  # the client is gone and does not read it

    return endpoint


def _token(secret: bytes, purpose: str) -> str:
    return hmac.new(secret, f"drive {purpose}".encode(), hashlib.sha256).hexdigest()


def _error(status: int, message: str) -> Response:
    return JSONResponse({"error": {"code": status, "message": message}}, status)


def _wire(file: StoredFile) -> dict[str, Any]:
    size = str(file.size)  # Drive's JSON has 64-bit numbers as strings
    return {
        "kind": "drive#file",
        "id": file.id,
        "name": file.name,
        "mimeType": "application/octet-stream",
        "size": size,
    }


def _add(tx: Tx, folder: str, name: str) -> StoredFile:
    file = StoredFile(tx.ids.uuid(), folder, name, 0)
    tx.run("INSERT INTO drive_files VALUES (?, ?, ?, NULL)", file.id, folder, name)
    return file


def _finish(tx: Tx, file: StoredFile, size: int) -> StoredFile:
    tx.run("UPDATE drive_files SET size = ? WHERE id = ?", size, file.id)
    return attrs.evolve(file, size=size)


def _file(tx: Tx, file_id: str, *, is_complete: bool = True) -> StoredFile | None:
    row = tx.row("SELECT id, folder, name, size FROM drive_files WHERE id = ?", file_id)
    if row is None or (row[3] is None) == is_complete:
        return None
    return StoredFile(row[0], row[1], row[2], row[3] or 0)


def _page_token(last: StoredFile) -> str:
    return f"{last.name}\0{last.id}".encode().hex()


def _list(tx: Tx, folder: str, after: str, count: int) -> list[StoredFile]:
    try:
        name, _, file_id = bytes.fromhex(after).decode().rpartition("\0")
    except ValueError:
        raise Problem(400, "invalid_request", "The page token is not valid.") from None
    rows = tx.rows(
        "SELECT id, folder, name, size FROM drive_files WHERE folder = ? AND size IS NOT NULL AND (name, id) > (?, ?)"
        " ORDER BY name, id LIMIT ?",
        *(folder, name, file_id, count),
    )
    return [StoredFile(*row) for row in rows]
