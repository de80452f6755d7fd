"""A client of Google Drive's API, version 3: list a folder, read a file, write a file."""

from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast
from urllib.parse import quote

import anyio
import attrs
import httpx

from convertrilo.sandbox.outside.network import save
from convertrilo.sandbox.state.problem import MediaError, Problem

_CHUNK_BYTES = 1 << 18
_FOLDER = "application/vnd.google-apps.folder"


@attrs.frozen
class DriveFile:
    """One file in a folder; `size` is in bytes."""

    id: str
    name: str
    size: int


class Drive:
    """Calls Google Drive. A `place` has the wire's shape of `sourceGoogleDrive` or `outputGoogleDrive`.

    Args:
        base_url: the base URL of the API.
        transport: returns a new transport for each operation.
    """

    def __init__(self, base_url: str, transport: Callable[[], httpx.AsyncBaseTransport]) -> None:
        self._base_url = base_url
        self._transport = transport

    async def files(self, place: Mapping[str, Any]) -> AsyncGenerator[DriveFile]:
        """Yield the files in the place's folder, ordered by name.

        Raises:
            Problem: 401 `google_drive_not_connected`: the place has no valid token.
            MediaError: Drive returns an error.
        """
        folder = place["folderId"].replace("\\", "\\\\").replace("'", "\\'")
        params = {
            "q": f"'{folder}' in parents and trashed = false",
            "fields": "nextPageToken, files(id, name, mimeType, size)",
            "orderBy": "name",
            "pageSize": "1000",
        }
        while True:
            async with self._client(place) as client:
                response = _checked(await client.get("/drive/v3/files", params=params))
            listing: dict[str, Any] = response.json()
            for each in listing["files"]:
                if each["mimeType"] != _FOLDER:
                    yield DriveFile(each["id"], each["name"], int(each.get("size", 0)))
            if "nextPageToken" not in listing:
                return
            params["pageToken"] = listing["nextPageToken"]

    async def check(self, place: Mapping[str, Any]) -> None:
        """Check that the place has a valid token.

        Raises:
            Problem: 401 `google_drive_not_connected`.
        """
        async with self._client(place):
            pass

    async def fetch(self, place: Mapping[str, Any], target: Path, *, limit: int) -> None:
        """Fetch the file with the place's `fileId` into `target`.

        Raises:
            MediaError: Drive returns an error, or the file has more than `limit` bytes.
        """
        path, params = f"/drive/v3/files/{quote(place['fileId'], safe='')}", {"alt": "media"}
        async with (
            _as_media_errors(),
            self._client(place) as client,
            client.stream("GET", path, params=params) as response,
        ):
            await save(_checked(response), target, limit=limit)

    async def store(self, place: Mapping[str, Any], source: Path, media_type: str) -> None:
        """Upload a local file to the place's folder, under its `fileName`.

        Raises:
            MediaError: Drive returns an error.
        """
        size = (await anyio.Path(source).stat()).st_size
        metadata = {"name": place["fileName"], "parents": [place["folderId"]], "mimeType": media_type}
        headers = {"x-upload-content-type": media_type, "x-upload-content-length": str(size)}
        async with _as_media_errors(), self._client(place) as client:
            path, params = "/upload/drive/v3/files", {"uploadType": "resumable"}
            begun = _checked(await client.post(path, params=params, headers=headers, json=metadata))
            url, length = begun.headers["location"], {"content-length": str(size)}
            _checked(await client.put(url, headers=length, content=_chunks(source)))

    @asynccontextmanager
    async def _client(self, place: Mapping[str, Any]) -> AsyncGenerator[httpx.AsyncClient]:
        """Yield a client with an access token: the place's own if it is valid, or one from its refresh token."""
        transport = self._transport()
        async with httpx.AsyncClient(base_url=self._base_url, transport=transport, trust_env=False) as client:
            token = place.get("accessToken")
            if token is None or not await _is_valid(client, token):
                token = await _refresh(client, place.get("refreshToken"))
            client.headers["authorization"] = f"Bearer {token}"
            yield client


async def _is_valid(client: httpx.AsyncClient, token: str) -> bool:
    headers = {b"authorization": f"Bearer {token}".encode()}  # as bytes: a token need not be ASCII
    params = {"fields": "user"}
    return (await client.get("/drive/v3/about", params=params, headers=headers)).status_code != 401


async def _refresh(client: httpx.AsyncClient, token: str | None) -> str:
    if token is not None:
        answer = await client.post("/token", data={"grant_type": "refresh_token", "refresh_token": token})
        if answer.is_success:
            return cast("str", answer.json()["access_token"])
    raise Problem(401, "google_drive_not_connected", "There is no valid Google Drive token.")


def _checked(response: httpx.Response) -> httpx.Response:
    if not response.is_success:
        raise MediaError(f"Google Drive answers {response.status_code}")
    return response


@asynccontextmanager
async def _as_media_errors() -> AsyncGenerator[None]:
    """Turn errors of the block into errors for the job's owner."""
    try:
        yield
    except Problem as problem:
        raise MediaError(problem.message.rstrip(".")) from None
    except httpx.HTTPError as error:
        raise MediaError(f"Google Drive does not answer ({type(error).__name__})") from None


async def _chunks(source: Path) -> AsyncGenerator[bytes]:
    async with await anyio.open_file(source, "rb") as file:
        while chunk := await file.read(_CHUNK_BYTES):
            yield chunk
