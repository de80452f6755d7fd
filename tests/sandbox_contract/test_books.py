"""The books balance after any sequence of requests: a state machine over all operations."""

import asyncio
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from typing import Any, ClassVar

import httpx
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule

from convertrilo.operations import OPERATIONS, Auth
from convertrilo.sandbox import Sandbox, VirtualClock
from convertrilo.sandbox.encoding.sample import SAMPLE_MP4

GRANTED = 40  # few enough to run out
SOURCE = "https://media.example/holiday.mov"
KINDS = st.fixed_dictionaries(
    {"codec": st.sampled_from(["h264", "av1"]), "resolution": st.sampled_from(["480p", "2160p"]), "fps": st.just(30)}
)
KEYS = st.sampled_from([None, "one", "two"])
AMOUNTS = st.integers(1, 12)
LIVE = ("queued", "running")


async def settle() -> None:
    """Let the sandbox's own tasks run until they wait for the clock."""
    for _ in range(20):
        await asyncio.sleep(0)


class Books(RuleBasedStateMachine):
    """One account with few tokens, jobs in every state, encodes of a minute, and lost responses."""

    asked: ClassVar[set[str]] = set()
    """The operations that were requested, in all runs together."""

    jobs = Bundle("jobs")
    on_demand = Bundle("on_demand")
    uploads = Bundle("uploads")
    public = Bundle("public")
    webhooks = Bundle("webhooks")
    api_keys = Bundle("api_keys")

    @initialize()
    def open(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.clock = VirtualClock()
        self.run(self._open())

    async def _open(self) -> None:
        # One task enters and leaves the sandbox, as task groups require.
        ready, self.leave = asyncio.Event(), asyncio.Event()

        async def live() -> None:
            async with AsyncExitStack() as stack:
                sandbox = Sandbox(
                    clock=self.clock,
                    seed=1,
                    tokens=GRANTED,
                    max_encodes=2,
                    encode_seconds=60,
                    webhook_transport=httpx.MockTransport(lambda _: httpx.Response(500)),
                )
                self.sandbox = await stack.enter_async_context(sandbox)
                for name in ("a.mp4", "b.mov"):
                    await sandbox.drive.add("folder", name, SAMPLE_MP4)
                http = httpx.AsyncClient(transport=sandbox.transport(), base_url=sandbox.base_url)
                self.http = await stack.enter_async_context(http)
                ready.set()
                await self.leave.wait()

        self.life = self.loop.create_task(live())
        await ready.wait()
        body = {"email": self.sandbox.email, "password": self.sandbox.password}
        self.bearer = (await self._ask("login", body=body)).json()["accessToken"]

    def teardown(self) -> None:
        if hasattr(self, "loop"):
            self.leave.set()
            self.run(self.life)
            self.loop.close()

    def run(self, work: Coroutine[Any, Any, Any] | asyncio.Task[None]) -> Any:
        return self.loop.run_until_complete(work)

    # ---- requests

    async def _ask(self, name: str, *, body: Any = None, key: str | None = None, **path: str) -> httpx.Response:
        row = OPERATIONS[name]
        self.asked.add(name)
        query = {each: path.pop(each) for each in row.query}
        bearer = row.auth is Auth.BEARER
        headers = {"authorization": f"Bearer {self.bearer}"} if bearer else {"x-api-key": self.sandbox.api_key}
        if key is not None:
            headers["idempotency-key"] = key
        content = {"content": body} if isinstance(body, bytes) else {"json": body}
        url = row.path.format(**path)
        return await self.http.request(row.method, url, params=query, headers=headers, **content)

    def ask(self, name: str, **given: Any) -> Any:
        """Return the response to an operation; None if it is refused or its response is lost."""

        async def ask() -> httpx.Response | None:
            try:
                return await self._ask(name, **given)
            except httpx.TransportError:
                return None
            finally:
                await settle()

        answer = self.run(ask())
        assert answer is None or answer.status_code < 500, answer.text
        return answer.json() if answer is not None and answer.is_success and answer.content else None

    # ---- rules

    @rule(times=st.integers(1, 2))
    def lose_answers(self, times: int) -> None:
        self.sandbox.faults.lose_response(times=times)

    @rule(seconds=st.sampled_from([1.0, 60.0, 300.0, 90_000.0]))
    def let_time_pass(self, seconds: float) -> None:
        async def pass_time() -> None:
            self.clock.advance(seconds)
            await settle()

        self.run(pass_time())
        if seconds > 3600:  # the session has ended
            self.sandbox.faults.clear()
            body = {"email": self.sandbox.email, "password": self.sandbox.password}
            self.bearer = self.ask("login", body=body)["accessToken"]

    @rule()
    def fail_the_next_job(self) -> None:
        self.sandbox.fail_jobs("no such luck")

    @rule(target=jobs, kind=KINDS, key=KEYS, from_url=st.booleans(), confirm=st.booleans())
    def create_job(self, kind: Any, key: str | None, from_url: bool, confirm: bool) -> Any:
        body = {**kind, "sourceUrl": SOURCE, "confirm": confirm} if from_url else kind
        made = self.ask("createJob", body=body, key=key)
        return made["jobId"] if made else multiple()

    @rule(target=jobs, kinds=st.lists(KINDS, min_size=1, max_size=3), key=KEYS, fail_fast=st.booleans())
    def create_jobs(self, kinds: list[Any], key: str | None, fail_fast: bool) -> Any:
        settings = {"confirm": True, "failFast": fail_fast}
        body = {"jobs": [{**kind, "sourceUrl": SOURCE} for kind in kinds], "settings": settings}
        made = self.ask("createJobsBulk", body=body, key=key)
        return multiple(*(each["jobId"] for each in made["jobs"] if each.get("jobId")) if made else ())

    @rule(job=jobs)
    def upload(self, job: str) -> None:
        self.ask("initStream", id=job)
        self.ask("uploadChunk", id=job, index="1", body=SAMPLE_MP4)
        self.ask("finalizeStream", id=job)

    @rule(job=jobs)
    def begin_an_upload_and_give_up(self, job: str) -> None:
        self.ask("initStream", id=job)
        self.ask("abortStream", id=job)

    @rule(job=jobs)
    def probe(self, job: str) -> None:
        self.ask("probeDuration", id=job)

    @rule(job=jobs, kind=KINDS)
    def approve(self, job: str, kind: Any) -> None:
        self.ask("approveUnified", id=job, body=kind)

    @rule(job=jobs)
    def confirm(self, job: str) -> None:
        self.ask("confirmJob", id=job)

    @rule(one=jobs, other=jobs)
    def confirm_two(self, one: str, other: str) -> None:
        self.ask("bulkConfirm", body={"jobIds": [one, other]})
        self.ask("bulkStatus", ids=f"{one},{other}")

    @rule(job=st.one_of(jobs, on_demand))
    def cancel(self, job: str) -> None:
        self.ask("cancelJob", id=job)
        self.ask("jobStatus", id=job)

    @rule(target=on_demand, kind=KINDS, key=KEYS, priority=st.sampled_from(["normal", "high"]))
    def encode_on_demand(self, kind: Any, key: str | None, priority: str) -> Any:
        body = {"codec": kind["codec"], "resolution": kind["resolution"], "sourceUrl": SOURCE, "priority": priority}
        made = self.ask("onDemandEncode", body=body, key=key)
        return made["jobId"] if made else multiple()

    @rule(target=on_demand, key=KEYS)
    def ingest_a_folder(self, key: str | None) -> Any:
        folder = {"folderId": "folder", "accessToken": self.sandbox.drive.access_token}
        body = {"sourceGoogleDrive": folder, "resolution": "480p"}
        made = self.ask("onDemandIngestFolder", body=body, key=key)
        return multiple(*(each["jobId"] for each in made["jobs"] if each.get("jobId")) if made else ())

    @rule(job=on_demand)
    def cancel_on_demand(self, job: str) -> None:
        before = {each.id: each.reserved for each in self.sandbox.jobs}[job]
        answer = self.ask("onDemandCancel", jobId=job)
        assert answer is None or answer["released"] == before
        self.ask("onDemandStatus", jobId=job)

    @rule(job=st.one_of(jobs, on_demand), amount=AMOUNTS)
    def reserve(self, job: str, amount: int) -> None:
        self.ask("reserveTokens", body={"jobId": job, "amount": amount})

    @rule(job=st.one_of(jobs, on_demand), amount=AMOUNTS)
    def release(self, job: str, amount: int) -> None:
        self.ask("releaseTokens", body={"jobId": job, "amount": amount})

    @rule(job=st.one_of(jobs, on_demand), amount=AMOUNTS)
    def deduct(self, job: str, amount: int) -> None:
        self.ask("deductTokens", body={"jobId": job, "amount": amount})

    @rule(target=public, kind=KINDS)
    def create_a_public_job(self, kind: Any) -> Any:
        made = self.ask("createPublicJob", body={**kind, "sourceUrl": SOURCE})
        return (made["jobId"], made["token"]) if made else multiple()

    @rule(job=public)
    def confirm_a_public_job(self, job: tuple[str, str]) -> None:
        self.ask("probePublicDuration", id=job[0])
        self.ask("confirmPublicJob", id=job[0])
        self.ask("publicJobStatus", id=job[0], token=job[1])

    @rule(target=webhooks)
    def subscribe(self) -> Any:
        made = self.ask("createWebhook", body={"url": "https://app.example/hook", "events": ["job.completed"]})
        return made["id"] if made else multiple()

    @rule(webhook=webhooks)
    def try_the_webhook(self, webhook: str) -> None:
        self.ask("testWebhook", id=webhook)
        self.ask("getWebhookDeliveries", id=webhook)
        self.ask("updateWebhook", id=webhook, body={"isActive": True})
        self.ask("getWebhooks")

    @rule(webhook=consumes(webhooks))
    def unsubscribe(self, webhook: str) -> None:
        self.ask("deleteWebhook", id=webhook)

    @rule(target=api_keys)
    def make_a_key(self) -> Any:
        made = self.ask("createApiKey", body={"name": "another"})
        self.ask("getApiKeys")
        return made["id"] if made else multiple()

    @rule(key=consumes(api_keys))
    def revoke_a_key(self, key: str) -> None:
        self.ask("revokeApiKey", id=key)

    # ---- invariants

    @invariant()
    def the_books_balance(self) -> None:
        books, jobs = self.sandbox.tokens, self.sandbox.jobs
        assert books.available + books.reserved + books.spent == GRANTED
        assert min(books.available, books.reserved, books.spent) >= 0
        assert books.reserved == sum(job.reserved for job in jobs)
        assert books.spent == sum(job.spent for job in jobs)

    @invariant()
    def what_the_account_is_told_is_what_is_booked(self) -> None:
        told = self.ask("getBalance")
        books = self.sandbox.tokens
        assert told is None or (told["available"], told["reserved"]) == (books.available, books.reserved)

    @invariant()
    def a_job_that_is_worked_on_has_its_reservation_and_one_that_has_ended_has_none(self) -> None:
        for job in self.sandbox.jobs:
            if job.status in LIVE and job.account is not None:
                assert job.price is not None
                assert job.reserved + job.spent >= job.price
            if job.ended or job.account is None:
                assert job.reserved == 0


def test_the_books_always_balance() -> None:
    Books.TestCase.settings = settings(max_examples=60, stateful_step_count=40)
    Books.TestCase("runTest").runTest()
    assert Books.asked == OPERATIONS.keys()
