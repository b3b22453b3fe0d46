"""A receiver of Wavekeep's webhooks: verify, take each event once, answer at once.

Run it with `python examples/subscriber.py --secret-file FILE`; it needs the packages `aiohttp` and `standardwebhooks`.
It prints one line for each new event. Work that takes longer than a moment belongs behind a queue of yours: an answer
that comes too late is a failed delivery, and the event comes again.
"""  # noqa: INP001 - a program on its own, in no package

import argparse
import asyncio
import sys
from pathlib import Path

from aiohttp import web
from standardwebhooks import Webhook, WebhookVerificationError


class Subscriber:
    """Takes deliveries.

    Args:
        secret: shared with Wavekeep, as `whsec_…`.
    """

    def __init__(self, secret: str) -> None:
        self._webhook = Webhook(secret)
        self._seen: set[str] = set()  # keep it where your data is, so that a restart does not forget

    async def take(self, request: web.Request) -> web.Response:
        """Take one delivery: 401 unless it is Wavekeep's, 204 if it is, the first time and every time."""
        body = await request.read()
        try:
            event = self._webhook.verify(body, dict(request.headers))
        except (WebhookVerificationError, ValueError):
            return web.Response(status=401)
        if event["id"] not in self._seen:
            sys.stdout.write(f"{event['type']} {event['subject']} {event['data'].get('uri', '')}\n")
            sys.stdout.flush()
            self._seen.add(event["id"])
        return web.Response(status=204)


async def main() -> None:
    """Serve until interrupted."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--secret-file", type=Path, required=True)
    parser.add_argument("--port", type=int, default=8000, help="0 takes a free one")
    options = parser.parse_args()
    subscriber = Subscriber(options.secret_file.read_text().strip())
    app = web.Application()
    app.router.add_post("/hook", subscriber.take)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", options.port).start()
    sys.stdout.write(f"listening on http://127.0.0.1:{runner.addresses[0][1]}/hook\n")
    sys.stdout.flush()
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
