"""Google Drive as a client sees it: the calls of its API, version 3, that list a folder, read a file and write one."""

from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast
from urllib.parse import quote

import anyio
import attrs
import httpx

from convertrilo.sandbox.encoding.probe import MediaError
from convertrilo.sandbox.outside.network import save
from convertrilo.sandbox.state.problem import Problem

_CHUNK_BYTES = 1 << 18
_FOLDER = "application/vnd.google-apps.folder"


@attrs.frozen
class DriveFile:
    """One file of a folder: `size` in bytes."""

    id: str
    name: str
    size: int


class Drive:
    """Talks to Google Drive; a place is given in the wire's shape, as `sourceGoogleDrive` or `outputGoogleDrive`.

    Args:
        base_url: where the API is.
        transport: makes what it is reached through.
    """

    def __init__(self, base_url: str, transport: Callable[[], httpx.AsyncBaseTransport]) -> None:
        self._base_url = base_url
        self._transport = transport

    async def files(self, place: Mapping[str, Any]) -> AsyncGenerator[DriveFile]:
        """List the files in the place's folder, by name.

        Raises:
            Problem: 401 `google_drive_not_connected`: there is no valid token.
            MediaError: Drive refuses.
        """
        folder = place["folderId"].replace("\\", "\\\\").replace("'", "\\'")
        params = {
            "q": f"'{folder}' in parents and trashed = false",
            "fields": "nextPageToken, files(id, name, mimeType, size)",
            "orderBy": "name",
            "pageSize": "1000",
        }
        while True:
            async with self._connected(place) as client:
                response = _accepted(await client.get("/drive/v3/files", params=params))
            listing: dict[str, Any] = response.json()
            for each in listing["files"]:
                if each["mimeType"] != _FOLDER:
                    yield DriveFile(each["id"], each["name"], int(each.get("size", 0)))
            if "nextPageToken" not in listing:
                return
            params["pageToken"] = listing["nextPageToken"]

    async def check(self, place: Mapping[str, Any]) -> None:
        """See that the token is valid.

        Raises:
            Problem: 401 `google_drive_not_connected`.
        """
        async with self._connected(place):
            pass

    async def fetch(self, place: Mapping[str, Any], target: Path, *, limit: int) -> None:
        """Bring the file at the place's `fileId` to a file of ours.

        Raises:
            MediaError: Drive refuses, or the file is too big.
        """
        path, params = f"/drive/v3/files/{quote(place['fileId'], safe='')}", {"alt": "media"}
        async with (
            _told(),
            self._connected(place) as client,
            client.stream("GET", path, params=params) as response,
        ):
            await save(_accepted(response), target, limit=limit)

    async def store(self, place: Mapping[str, Any], source: Path, media_type: str) -> None:
        """Write a file of ours to the place's folder, as its `fileName`.

        Raises:
            MediaError: Drive refuses.
        """
        size = (await anyio.Path(source).stat()).st_size
        metadata = {"name": place["fileName"], "parents": [place["folderId"]], "mimeType": media_type}
        headers = {"x-upload-content-type": media_type, "x-upload-content-length": str(size)}
        async with _told(), self._connected(place) as client:
            path, params = "/upload/drive/v3/files", {"uploadType": "resumable"}
            begun = _accepted(await client.post(path, params=params, headers=headers, json=metadata))
            url, length = begun.headers["location"], {"content-length": str(size)}
            _accepted(await client.put(url, headers=length, content=_chunks(source)))

    @asynccontextmanager
    async def _connected(self, place: Mapping[str, Any]) -> AsyncGenerator[httpx.AsyncClient]:
        """Yield a client with an access token: the place's own while it is valid, else one for its refresh token."""
        transport = self._transport()
        async with httpx.AsyncClient(base_url=self._base_url, transport=transport, trust_env=False) as client:
            token = place.get("accessToken")
            if token is None or not await _is_valid(client, token):
                token = await _refreshed(client, place.get("refreshToken"))
            client.headers["authorization"] = f"Bearer {token}"
            yield client


async def _is_valid(client: httpx.AsyncClient, token: str) -> bool:
    params, headers = {"fields": "user"}, {b"authorization": f"Bearer {token}".encode()}  # whatever it is made of
    return (await client.get("/drive/v3/about", params=params, headers=headers)).status_code != 401


async def _refreshed(client: httpx.AsyncClient, token: str | None) -> str:
    if token is not None:
        answer = await client.post("/token", data={"grant_type": "refresh_token", "refresh_token": token})
        if answer.is_success:
            return cast("str", answer.json()["access_token"])
    raise Problem(401, "google_drive_not_connected", "There is no valid Google Drive token.")


def _accepted(response: httpx.Response) -> httpx.Response:
    if not response.is_success:
        raise MediaError(f"Google Drive answers {response.status_code}")
    return response


@asynccontextmanager
async def _told() -> AsyncGenerator[None]:
    """Turn what goes wrong into words for the job's owner."""
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
