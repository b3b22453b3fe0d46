"""Tasks end when they are told to."""

import asyncio

import pytest

from shared.tasks import end, finish


async def test_a_task_that_swallows_its_cancellation_ends_all_the_same() -> None:
    """A client's library may drop the first cancellation; whoever ends the task does not wait for ever."""
    swallowed = 0
    begun = asyncio.Event()

    async def again_and_again() -> None:
        nonlocal swallowed
        while swallowed < 2:
            try:
                begun.set()
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                swallowed += 1
        await asyncio.sleep(60)

    task = asyncio.create_task(again_and_again())
    await begun.wait()
    async with asyncio.timeout(20):
        await end(task)
    assert task.cancelled()
    assert swallowed == 2


async def test_what_has_ended_is_left_as_it_is() -> None:
    """Ending twice is harmless, and so is ending nothing."""
    task = asyncio.create_task(asyncio.sleep(0, "done"))
    assert await task == "done"
    await end(task)
    await end()
    assert task.result() == "done"


async def test_what_must_not_be_cut_short_is_done_before_a_cancellation_counts() -> None:
    """However often it is cancelled, the clean-up ends first; then the cancellation is heeded."""
    begun, go_on = asyncio.Event(), asyncio.Event()
    done: list[str] = []

    async def clean_up() -> None:
        begun.set()
        await go_on.wait()
        done.append("clean")

    task = asyncio.create_task(finish(clean_up()))
    await begun.wait()
    for _ in range(3):
        task.cancel()
        await asyncio.sleep(0)
    assert not task.done()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert done == ["clean"]
