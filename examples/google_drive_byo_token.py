"""A folder in Google Drive, encoded into another one, with OAuth tokens of your own.

    pip install -e ".[sandbox]"
    python examples/google_drive_byo_token.py

It shows a folder encoded; the same call again (the same jobs, because `external_id_prefix` names what is wanted once);
the same call with a renewed token, of which the service says that it is another request under the old key, so the first
one stands; and what a token says that is no longer valid. The service is a sandbox that really encodes, and Drive its
stand-in for it. With CONVERTRILO_API_KEY set, `encode` is all you need, with `AsyncClient()` and the tokens that your
OAuth flow got.
"""

from pathlib import Path
from typing import Any

import anyio

from convertrilo import (
    AsyncClient,
    AuthenticationError,
    GoogleDriveFolderSource,
    GoogleDriveOutput,
    IdempotencyConflictError,
    OnDemandFolderIngestRequest,
)
from convertrilo.sandbox import Sandbox

CLIP = (Path(__file__).parent / "media" / "big-buck-bunny-5s.mp4").read_bytes()


async def encode(client: AsyncClient, name: str, folders: tuple[str, str], tokens: dict[str, Any]) -> list[str]:
    """Have every video of a folder encoded into another folder, wait, and return the jobs' ids."""
    source, target = folders
    request = OnDemandFolderIngestRequest(
        external_id_prefix=name,
        codec="h264",
        resolution="480p",
        fps=12,
        source_google_drive=GoogleDriveFolderSource(folder_id=source, **tokens),  # the tokens are sent, and never shown
        output_destination="google-drive",
        output_google_drive=GoogleDriveOutput(folder_id=target, **tokens),
    )
    ingested = await client.on_demand_ingest_folder(request)
    jobs = {each.job_id: each.file_name for each in ingested.jobs or () if each.job_id}
    for job_id, file_name in jobs.items():  # they are encoded side by side all the same
        done = await client.wait_for_on_demand(job_id, timeout=600)
        print(f"{file_name}: {done.status}")
    return list(jobs)


async def main() -> None:
    """Do it in a sandbox, with tokens that are the same, renewed and expired."""
    async with Sandbox(encoder="ffmpeg") as sandbox, sandbox.client() as client:
        drive = sandbox.drive
        for name in ("beach.mp4", "dinner.mp4", "notes.txt"):
            await drive.add("the-folder", name, CLIP)
        folders = ("the-folder", "the-output")
        tokens = {"access_token": drive.access_token, "refresh_token": drive.refresh_token}
        first = await encode(client, "holiday", folders, tokens)
        again = await encode(client, "holiday", folders, tokens)
        print("the same jobs again" if first == again else "other jobs")
        try:
            await encode(client, "holiday", folders, {**tokens, "access_token": "ya29.renewed"})
        except IdempotencyConflictError as error:
            print(f"with a renewed token: {error.code}, and the first call stands")
        for file in drive.in_folder("the-output"):
            print(f"in Drive: {file.name}, {file.size} bytes")
        try:
            await encode(client, "another holiday", folders, {"access_token": "ya29.expired"})
        except AuthenticationError as error:
            print(f"with an expired token: {error.code}")


if __name__ == "__main__":
    anyio.run(main)
