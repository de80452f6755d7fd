"""A video library's back end, as one would write it: publish a film, and do it once however often one is asked."""

from dataclasses import dataclass

from convertrilo import AsyncClient, JobFailedError, OnDemandEncodeRequest


@dataclass(frozen=True)
class Film:
    """A film on the shelf; `url` is where it can be watched, or None if it could not be encoded."""

    title: str
    url: str | None
    problem: str | None = None


class Library:
    """Publishes films.

    Args:
        client: for the encodes.
    """

    def __init__(self, client: AsyncClient) -> None:
        self._client = client
        self.shelf: dict[str, Film] = {}

    async def publish(self, title: str, source_url: str) -> Film:
        """Encode a film and put it on the shelf; its title is the name of what is to be done once."""
        request = OnDemandEncodeRequest(source_url=source_url, codec="av1", external_id=title)
        job = await self._client.on_demand_encode(request)
        try:
            done = await self._client.wait_for_on_demand(job.job_id, timeout=4 * 3600)
        except JobFailedError as error:
            self.shelf[title] = Film(title, None, str(error))
        else:
            self.shelf[title] = Film(title, done.download_url)
        return self.shelf[title]
