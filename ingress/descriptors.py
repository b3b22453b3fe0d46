"""The limit of open files, of which every connection takes one.

Responsible for: raising it as far as the system allows, and telling how many connections it can bear. It must not open
anything.
"""

import resource
from contextlib import suppress

import structlog

log = structlog.get_logger()

RESERVED_FILES = 2_560
"""For all but callers: queues, logs, downloads beside us, and a whole backlog taken before others are closed for it."""


def affordable(connections: int) -> int:
    """Raise the limit of open files where it is too low; return how many of the connections wanted fit under it."""
    needed = connections + RESERVED_FILES
    limit, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for goal in (hard, needed):  # not every system takes "unlimited"
        if limit != resource.RLIM_INFINITY and limit < needed:
            with suppress(OSError, ValueError):
                resource.setrlimit(resource.RLIMIT_NOFILE, (goal, hard))
            limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY or limit >= needed:
        return connections
    fitting = min(connections, max(limit - RESERVED_FILES, limit // 2))
    log.warning(
        "connections.limited",
        wanted=connections,
        most=fitting,
        open_files=limit,
        detail="raise the limit of open files (ulimit -n, LimitNOFILE=), or lower WAVEKEEP_INGRESS_MAX_CONNECTIONS",
    )
    return fitting
