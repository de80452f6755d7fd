"""The assertions print what is wrong, and the requests behind the failure."""

import pytest

from convertrilo import AsyncClient
from convertrilo.sandbox import Rules, Sandbox, VirtualClock

JOB = {"codec": "h264", "resolution": "720p", "fps": 30, "externalId": "clip-1"}


async def test_what_was_made_once_is_returned(convertrilo_sandbox: Sandbox, convertrilo_client: AsyncClient) -> None:
    convertrilo_sandbox.faults.lose_response("createJob", times=2)
    made = await convertrilo_client.create_job(JOB)
    await convertrilo_client.create_job({**JOB, "externalId": "clip-2"})
    assert convertrilo_sandbox.assert_created_once(external_id="clip-1").id == made.job_id
    convertrilo_sandbox.assert_no_duplicates()


async def test_a_job_that_was_made_twice_is_shown_with_its_requests(
    convertrilo_sandbox: Sandbox, convertrilo_client: AsyncClient
) -> None:
    convertrilo_sandbox.faults.lose_response("createJob", times=1)
    first = await convertrilo_client.create_job(JOB, idempotency_key="one")
    second = await convertrilo_client.create_job(JOB, idempotency_key="two")
    await convertrilo_client.create_job({**JOB, "externalId": "clip-2"}, idempotency_key="another")
    await convertrilo_client.get_balance()
    with pytest.raises(AssertionError) as caught:
        convertrilo_sandbox.assert_created_once(external_id="clip-1")
    lines = str(caught.value).splitlines()
    start = "2026-01-01T00:00:00.000Z"
    assert lines[:4] == [
        "2 jobs have the external id 'clip-1', not one:",
        f"  {first.job_id}  {start}  created  clip-1",
        f"  {second.job_id}  {lines[2].split()[1]}  created  clip-1",
        "The requests that led to this:",
    ]
    assert lines[4] == f"  {start}  createJob  key one  200  fault: lose_response"
    assert [line.split(maxsplit=1)[1] for line in lines[5:]] == [
        "createJob  key one  200  replayed",
        "createJob  key two  200",
    ]
    with pytest.raises(AssertionError, match=r"2 jobs share an external id with another job:(?s:.*)key two"):
        convertrilo_sandbox.assert_no_duplicates()


async def test_a_job_that_was_not_made_is_shown_with_what_was_asked_instead(
    convertrilo_sandbox: Sandbox, convertrilo_client: AsyncClient
) -> None:
    with pytest.raises(
        AssertionError,
        match=r"(?s)No job has the external id 'x'\. Number of jobs: 0; external ids: none\..*this:\n  none$",
    ):
        convertrilo_sandbox.assert_created_once(external_id="x")
    convertrilo_sandbox.faults.reset("createJob")
    await convertrilo_client.create_job(JOB, idempotency_key="k")
    with pytest.raises(AssertionError) as caught:
        convertrilo_sandbox.assert_created_once(external_id="clip-2")
    assert "Number of jobs: 1; external ids: 'clip-1'." in str(caught.value)
    assert "createJob  key k  no answer  fault: reset" in str(caught.value)


@pytest.mark.convertrilo(rules=Rules(key_lifetime=60))
async def test_a_key_that_was_forgotten_in_between_is_a_duplicate(
    convertrilo_sandbox: Sandbox, convertrilo_client: AsyncClient
) -> None:
    nameless = {name: value for name, value in JOB.items() if name != "externalId"}
    assert isinstance(convertrilo_sandbox.clock, VirtualClock)
    await convertrilo_client.create_job(nameless, idempotency_key="k")
    convertrilo_sandbox.clock.advance(61)
    await convertrilo_client.create_job(nameless, idempotency_key="k")
    with pytest.raises(AssertionError, match="2 requests were processed again") as caught:
        convertrilo_sandbox.assert_no_duplicates()
    assert str(caught.value).count("createJob  key k  200") == 2


async def test_two_accounts_may_use_the_same_external_id(
    convertrilo_sandbox: Sandbox, convertrilo_client: AsyncClient
) -> None:
    await convertrilo_client.create_job(JOB)
    _, key = await convertrilo_sandbox.add_account("other@example.com", "another-password")
    await convertrilo_sandbox.client(api_key=key).create_job(JOB)
    convertrilo_sandbox.assert_no_duplicates()


async def test_long_histories_are_shown_by_their_end_and_no_credential_is(
    convertrilo_sandbox: Sandbox, convertrilo_client: AsyncClient
) -> None:
    for number in range(60):
        await convertrilo_client.create_job(JOB, idempotency_key=f"key-{number}")
    with pytest.raises(AssertionError) as caught:
        convertrilo_sandbox.assert_no_duplicates()
    text = str(caught.value)
    assert "(10 earlier ones)" in text
    assert "key key-59 " in text
    assert "key key-9 " not in text
    assert convertrilo_sandbox.api_key not in text


async def test_a_delivery_hides_what_may_be_secret(
    convertrilo_sandbox: Sandbox, convertrilo_client: AsyncClient
) -> None:
    await convertrilo_client.on_demand_encode(
        {"sourceUrl": "https://media.example/a.mp4", "webhook": "https://app.example/hook?token=s3cret"}
    )
    await convertrilo_sandbox.wait_until_idle()
    [delivery] = convertrilo_sandbox.webhooks
    assert (delivery.webhook, delivery.event, delivery.status) == (None, "job.completed", "success")
    assert delivery.url.endswith("?token=s3cret")
    assert "s3cret" not in repr(delivery)
