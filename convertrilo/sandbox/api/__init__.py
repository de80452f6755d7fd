"""The sandbox's HTTP API: the ASGI app and one module of handlers per subject."""
