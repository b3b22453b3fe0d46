"""`python -m shared.health`: the health check of a container, which has neither a shell nor curl.

Responsible for: asking this machine's operations server whether its process is alive; status 0 where one is. It must
not judge readiness: a process that waits for its broker is not to be restarted.
"""

import http.client
import os
import sys

PORTS = (9100, 9101, 9102, 9103)
"""Of standalone, ingress, downloader and notifier."""


def alive(port: int) -> bool:
    """Tell whether an operations server on this port says that its process lives."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=1)
    try:
        connection.request("GET", "/livez")
        return connection.getresponse().status == http.client.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


if __name__ == "__main__":
    told = os.environ.get("WAVEKEEP_OPS_PORT")
    sys.exit(0 if any(alive(port) for port in ([int(told)] if told else PORTS)) else 1)
