"""Random faults against real processes under load: `make faults-random SEED=… MINUTES=…`.

Responsible for: choosing faults and moments by a seed, injecting them one after the other while a vendor calls back,
lifting all, and judging. The oracle is `tests.faults.core`; it ends with 1 where that finds anything, and tells the
seed, so that the same walk can be gone again.
"""

import random
import secrets
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path

import click

from simulator.processes import ProcessEndedError
from simulator.rabbitmq_node import RabbitNode, private_node
from simulator.rabbitmq_server import NodeError
from tests.faults import report
from tests.faults.core import Verdict, judge, wait_for
from tests.faults.house import House

_SERVICES = ("ingress", "downloader", "notifier")
_READY_WITHIN_S = 120.0
_DRAIN_S = 600.0
_WATCHED = 0.5
"""Of a broker's restarts, the share after which nothing more is broken until every service is ready."""
_RECOVERS_WITHIN_S = 30.0
_LOAD = {"rate_per_s": 3.0, "size_bytes": 400_000, "copies": 2, "distinct_files": 8}


class Walk:
    """One walk through faults.

    Args:
        home: runs.
        node: its broker.
        rng: decides everything.

    Attributes:
        injected: how often each fault was.
        statuses: with which services left after a SIGTERM.
        recoveries_s: seconds from the broker's return until every service was ready, where nothing else was broken.
    """

    def __init__(self, home: House, node: RabbitNode, rng: random.Random) -> None:
        self._home = home
        self._node = node
        self._rng = rng
        self.injected: Counter[str] = Counter()
        self.statuses: Counter[int | None] = Counter()
        self.recoveries_s: list[float] = []
        self._faults: dict[str, Callable[[], None]] = {
            "kill of a service": self._kill,
            "kill of all services": self._kill_all,
            "SIGTERM of a service": self._terminate,
            "broker killed and restarted": self._kill_broker,
            "broker frozen": self._freeze_broker,
            "memory alarm": self._alarm,
            "all connections closed": self._close_connections,
            "webhook receiver fails": self._fail_webhook,
        }

    def step(self) -> None:
        """Wait a little, then inject one fault and lift it."""
        time.sleep(self._rng.uniform(0.2, 4.0))
        name = self._rng.choice(list(self._faults))
        click.echo(f"{time.strftime('%H:%M:%S')} {name}")
        self.injected[name] += 1
        self._faults[name]()

    def lift(self) -> None:
        """Start whatever does not run; a process that left by itself is started again, as a supervisor does."""
        deadline = time.monotonic() + _READY_WITHIN_S
        while time.monotonic() < deadline:
            for process in self._home.processes:
                if not process.running:
                    process.start()
            with suppress(ProcessEndedError):
                if all(process.ready() for process in self._home.processes):
                    return
            time.sleep(0.2)
        late = [process.name for process in self._home.processes if not process.running or not process.ready()]
        raise AssertionError(f"not ready {_READY_WITHIN_S:.0f} s after everything was lifted: {', '.join(late)}")

    def _kill(self) -> None:
        process = self._home.process(self._rng.choice(_SERVICES))
        process.kill()
        self._last(0.0, 3.0)
        process.start()

    def _kill_all(self) -> None:
        for process in self._home.processes:
            process.kill()
        self._last(0.0, 2.0)
        for process in self._home.processes:
            process.start()

    def _terminate(self) -> None:
        process = self._home.process(self._rng.choice(_SERVICES))
        if process.running:
            self.statuses[process.stop(within_s=60)] += 1
        process.start()

    def _kill_broker(self) -> None:
        self._node.kill()
        self._last(0.0, 8.0)
        self._node.start()
        if self._rng.random() < _WATCHED:
            back = time.monotonic()
            self.lift()
            self.recoveries_s.append(time.monotonic() - back)

    def _freeze_broker(self) -> None:
        self._node.freeze()
        try:
            self._last(5.0, 20.0)
        finally:
            self._node.thaw()

    def _alarm(self) -> None:
        self._node.ctl("set_vm_memory_high_watermark", "absolute", "1MB")
        try:
            self._last(3.0, 12.0)
        finally:
            self._node.ctl("set_vm_memory_high_watermark", "0.6")

    def _close_connections(self) -> None:
        with suppress(NodeError):  # one that ended meanwhile cannot be closed
            self._node.ctl("close_all_connections", "random walk")

    def _fail_webhook(self) -> None:
        times = self._rng.randint(1, 10)
        self._home.simulator.tell_webhook("hook", {"times": times, "status": self._rng.choice([500, 429, 410, 302])})

    def _last(self, least_s: float, most_s: float) -> None:
        time.sleep(self._rng.uniform(least_s, most_s))


def walk(folder: Path, rng: random.Random, *, minutes: float) -> tuple[Walk, Verdict]:
    """Go one walk of so many minutes, lift everything, drain, and judge.

    Returns:
        The walk as it was gone, and the verdict.
    """
    with ExitStack() as stack:
        node = stack.enter_context(private_node(settings={"quorum_tick_interval": 1_000}))
        home = stack.enter_context(House(folder, broker=node))
        going = Walk(home, node, rng)
        home.simulator.begin(_LOAD | {"seconds": minutes * 60})
        end = time.monotonic() + minutes * 60
        while time.monotonic() < end:
            going.step()
        home.simulator.tell_webhook("hook", {})
        lifted = time.monotonic()
        going.lift()
        wait_for(lambda: not home.simulator.pending()["conversions_to_make"], "the load is over")
        verdict = judge(home, within_s=_DRAIN_S, since=lifted)
        left = [f"left with {status} after SIGTERM" for status in going.statuses if status != 0]
        late = [
            f"ready {took_s:.1f} s after a broker's restart"
            for took_s in going.recoveries_s
            if took_s > _RECOVERS_WITHIN_S
        ]
        return going, replace(verdict, problems=(*verdict.problems, *left, *late))


@click.command()
@click.option("--seed", type=int, default=None, help="of a walk gone before")
@click.option("--minutes", type=float, default=10.0, show_default=True, help="of faults; draining comes on top")
def main(seed: int | None, minutes: float) -> None:
    """Inject random faults, then tell what was lost or doubled."""
    seed = secrets.randbelow(1_000_000) if seed is None else seed
    click.echo(f"seed {seed}, {minutes:g} minutes")
    folder = Path(tempfile.mkdtemp(prefix="wavekeep-faults-"))
    gone, verdict = walk(folder / "house", random.Random(seed), minutes=minutes)
    for name, times in sorted(gone.injected.items()):
        click.echo(f"{times:5} {name}")
    if gone.recoveries_s:
        click.echo(
            f"all services ready after {len(gone.recoveries_s)} restarts of the broker within"
            f" {max(gone.recoveries_s):.1f} s"
        )
    report.record("*", f"random walk, seed {seed}", gone.injected.total(), verdict)
    click.echo(report.table(report.rows()))
    for problem in verdict.problems[:50]:
        click.echo(problem, err=True)
    if verdict.problems:
        click.echo(f"seed {seed}; the logs are in {folder}", err=True)
        sys.exit(1)
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
