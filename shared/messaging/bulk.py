"""Doing one thing with many messages: several at once, and none left half done.

Responsible for: the width of an operator's bulk work, and for what a failure in its midst leaves. It must not know
what is done, nor to what.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

T = TypeVar("T")

AT_ONCE = 100
"""Messages worked on at once: wide enough that confirmations and fsyncs are shared."""


async def each(items: Sequence[T], action: Callable[[T], Awaitable[object]]) -> tuple[list[T], BaseException | None]:
    """Run the action on all items at once, and each to its end whatever becomes of the others.

    Returns:
        The items whose action returned, and the first error of the others.
    """
    outcomes = await asyncio.gather(*(action(item) for item in items), return_exceptions=True)
    errors = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
    done = [item for item, outcome in zip(items, outcomes, strict=True) if not isinstance(outcome, BaseException)]
    return done, errors[0] if errors else None
