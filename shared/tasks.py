"""Tasks of the event loop.

Responsible for: ending them for sure. It must not start any, nor judge how one ended.
"""

import asyncio
from collections.abc import Coroutine
from typing import Any, Final, TypeVar

T = TypeVar("T")

_AGAIN_AFTER_S: Final = 1.0


async def end(*tasks: asyncio.Future[Any]) -> None:
    """Cancel tasks until they have ended, however often that is swallowed.

    `asyncio.wait_for` of Python 3.11 drops a cancellation that comes in the moment in which what it waits for is done,
    and clients of brokers and stores are built on it: a task that goes round in a loop then goes round for ever.
    """
    left = {task for task in tasks if not task.done()}
    while left:
        for task in left:
            task.cancel()
        _, left = await asyncio.wait(left, timeout=_AGAIN_AFTER_S)


async def finish(work: Coroutine[Any, Any, T]) -> T:
    """Do what must not be cut short, however often this task is cancelled meanwhile; its cancellation comes after that.

    For clean-up that works in threads, which nobody can cancel: whoever goes on meanwhile would meet what they hold.
    """
    working = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not working.done():
        try:
            await asyncio.wait({working})
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled
    return working.result()
