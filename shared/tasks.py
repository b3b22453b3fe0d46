"""Tasks of the event loop.

Responsible for: ending them for sure. It must not start any, nor judge how one ended.
"""

import asyncio
from typing import Any, Final

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
