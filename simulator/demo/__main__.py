"""`python -m simulator.demo`: everything started, a dozen conversions, everything ended.

Responsible for: the command line, the order of things, and the exit status: 0 when every conversion ended as it must, 1
when one did not or a process did not start. It must not know what is played, or how it is judged.
"""

import base64
import fcntl
import json
import secrets
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType

import click
from rich.console import Console

from simulator.demo.result import as_data, show_result
from simulator.demo.screen import WIDTH, Screen, screen_for
from simulator.demo.script import Act, script
from simulator.demo.verdict import problems
from simulator.demo.watch import LOG, WEBHOOK, View, read_log, views
from simulator.deployment import Deployment, NotReadyError
from simulator.processes import ProcessEndedError
from simulator.rabbitmq_node import private_node
from simulator.rabbitmq_server import NodeError

FOLDER = Path("data", "demo")

_MARKER = ".made-by-the-demo"
_LONGEST_S = 90.0
_POLL_S = 0.2
_RETRY_SCALE = "0.001"
"""The vendor's retries after 1, 5 and 15 minutes come after 60, 300 and 900 ms."""


@click.command()
@click.option("--broker", type=click.Choice(["embedded", "rabbitmq"]), default="embedded", show_default=True,
              help="All services in one process, or three processes and a RabbitMQ of their own.")  # fmt: skip
@click.option("--keep/--no-keep", default=True, show_default=True,
              help=f"Leave files and logs in ./{FOLDER}, where the next demo replaces them.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON; progress goes to standard error.")
def main(*, broker: str, keep: bool, as_json: bool) -> None:
    """Show Wavekeep at work: start it and a simulated vendor on loopback, and watch a dozen conversions.

    Good files, repeated and contradicting callbacks, a vendor that fails, files that are broken or come late, and a
    forgery. Everything is ended afterwards.
    """
    signal.signal(signal.SIGTERM, _leave)
    signal.signal(signal.SIGHUP, _leave)
    console = Console(stderr=as_json, highlight=False)
    if not console.is_terminal:
        console.width = WIDTH
    began = time.monotonic()
    acts = script()
    try:
        with ExitStack() as stack:
            folder = stack.enter_context(_folder(keep=keep))
            seen = _play(acts, folder, broker, screen_for(console))
            found = problems(seen, folder / "files")
            if as_json:
                data = as_data(seen, found, broker=broker, seconds=time.monotonic() - began)
                click.echo(json.dumps(data, indent=2))
            else:
                show_result(console, seen, found, folder=folder, kept=keep)
    except (NotReadyError, ProcessEndedError, NodeError) as error:
        raise click.ClickException(str(error)) from error
    sys.exit(1 if found else 0)


def _play(acts: Sequence[Act], folder: Path, broker: str, screen: Screen) -> tuple[View, ...]:
    """Start everything, play, wait until all is over or time is up, end everything; return what was seen."""
    key = secrets.token_bytes(32)
    with ExitStack() as stack:
        stack.enter_context(screen)
        broker_url = None
        if broker == "rabbitmq":
            screen.say("Starting a RabbitMQ of our own …")
            broker_url = stack.enter_context(private_node()).amqp_url
        screen.say(
            "Starting ingress, downloader, notifier and a simulated vendor; new queues take ten seconds to be safe …"
            if broker_url
            else "Starting Wavekeep in one process, and a simulated vendor …"
        )
        deployment = Deployment(
            folder,
            broker_url=broker_url,
            destinations=lambda receivers: _destinations(receivers, key),
            hmac_key=secrets.token_urlsafe(24),
            simulator={"SIMULATOR_RETRY_SCALE": _RETRY_SCALE},
        )
        stack.enter_context(deployment)
        deployment.simulator.convert([act.plan for act in acts])
        log = deployment.logs / ("notifier.log" if broker_url else "standalone.log")
        began = time.monotonic()
        while True:
            elapsed_s = time.monotonic() - began
            seen = views(acts, deployment.simulator.ledger(digests="no"), read_log(log), key)
            screen.show(seen, len(acts), elapsed_s)
            if all(view.complete for view in seen) or elapsed_s > _LONGEST_S:
                return views(acts, deployment.simulator.ledger(), read_log(log), key)
            time.sleep(_POLL_S)


def _destinations(receivers: str, key: bytes) -> str:
    secret = "whsec_" + base64.b64encode(key).decode()
    return (
        f'[[destination]]\nname = "{LOG}"\ntype = "log"\n\n'
        f'[[destination]]\nname = "{WEBHOOK}"\ntype = "webhook"\nurl = "{receivers}/{WEBHOOK}"\nsecret = "{secret}"\n'
    )


@contextmanager
def _folder(*, keep: bool) -> Generator[Path, None, None]:
    """Lend an empty folder of our own: one that stays until the next demo, or one that is gone afterwards."""
    if not keep:
        with tempfile.TemporaryDirectory(prefix="wavekeep-demo-") as temporary:
            yield Path(temporary)
        return
    folder = FOLDER.absolute()
    marker = folder / _MARKER
    if folder.exists() and any(folder.iterdir()) and not marker.exists():
        raise click.ClickException(f"{folder} is not a folder of the demo's: move it away, or use --no-keep.")
    folder.mkdir(parents=True, exist_ok=True)
    with marker.open("w") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise click.ClickException("Another demo is running here: wait for it, or use --no-keep.") from None
        for path in folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path != marker:
                path.unlink()
        yield folder


def _leave(number: int, _frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


if __name__ == "__main__":
    main()
