"""Webhook verifications per second, against their lower bound: an HMAC of the body and a comparison."""

import hmac

from convertrilo.webhooks import sign, verify

from .harness import Bench, in_turns, rate, ratios, repeated, typical

_SECRET = "whsec_6f1d0c5ab37e4c1b9a551f2e3d4c5b6a"
_SIZES = {"1 KiB": 1 << 10, "1 MiB": 1 << 20}


async def run(bench: Bench) -> None:
    """Print a row for each body size."""
    page = bench.page
    page.table("webhooks: verifications a second", ["body", "bare hmac", "verify", "times bare hmac"])
    for name, size in _SIZES.items():
        body = b"x" * size
        signature, key = sign(body, _SECRET), _SECRET.encode()

        def bare(body: bytes = body, signature: str = signature, key: bytes = key) -> bool:
            return hmac.compare_digest(hmac.new(key, body, "sha256").hexdigest(), signature)

        def ours(body: bytes = body, signature: str = signature) -> bool:
            return verify(body, signature, _SECRET)

        assert bare()
        assert ours()
        seconds = bench.scale.seconds(0.1)
        rounds = await in_turns(
            {"bare": repeated(bare, seconds), "ours": repeated(ours, seconds)}, bench.scale.rounds(15)
        )
        times = ratios(rounds, "bare", "ours", "cpu")
        cells = [rate(typical(rounds, contestant, "cpu")) for contestant in rounds]
        page.row(name, *cells, page.against(name, times, at_least=0.7))
