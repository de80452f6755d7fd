"""A local Convertrilo: an ASGI app with state that keeps the contract and really encodes.

async with Sandbox() as sandbox, sandbox.client() as client:    # in process: no socket, no network
    job = await client.on_demand_encode({"sourceUrl": "https://example.com/in.mp4"})

async with Sandbox(encoder="ffmpeg") as sandbox, serve(sandbox, port=8080) as base_url:    # over a port
    ...
"""

# Imported first, so that its message about a missing extra is the error that users see.
import convertrilo.sandbox.extra  # noqa: F401  # pyright: ignore[reportUnusedImport]
from convertrilo.sandbox.outside.drive_standin import DriveStandIn, StoredFile
from convertrilo.sandbox.sandbox import Sandbox
from convertrilo.sandbox.server import SandboxServer, serve, serve_in_thread, serve_until_stopped
from convertrilo.sandbox.state.clock import VirtualClock
from convertrilo.sandbox.state.faults import Faults
from convertrilo.sandbox.state.inspect import Delivery
from convertrilo.sandbox.state.records import Account, Job, RequestRecord, Tokens
from convertrilo.sandbox.state.rules import Rules

__all__ = [
    "Account",
    "Delivery",
    "DriveStandIn",
    "Faults",
    "Job",
    "RequestRecord",
    "Rules",
    "Sandbox",
    "SandboxServer",
    "StoredFile",
    "Tokens",
    "VirtualClock",
    "serve",
    "serve_in_thread",
    "serve_until_stopped",
]
