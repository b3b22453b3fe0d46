"""What is on the screen while the demo runs.

Responsible for: one table that moves, on a terminal; one line a change, anywhere else. It must not ask anybody
anything: it shows what it is handed.
"""

from collections.abc import Sequence
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from simulator.demo.watch import View
from simulator.demo.words import BUSY, FAINT, answered, megabytes, state

WIDTH = 100
_BAR_WIDTH = 10


class Screen(Protocol):
    """Whatever shows the run."""

    def __enter__(self) -> Self:
        """Begin."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End, and leave the terminal as it was."""

    def say(self, sentence: str) -> None:
        """Tell what is being done, before there is anything to watch."""

    def show(self, views: Sequence[View], planned: int, elapsed_s: float) -> None:
        """Show how far it has come."""


def screen_for(console: Console) -> Screen:
    """Return what suits the place we print to."""
    return MovingScreen(console) if console.is_terminal else LineScreen(console)


class MovingScreen:
    """A table that is drawn anew as things move, and gone at the end."""

    def __init__(self, console: Console) -> None:
        self._live = Live(console=console, refresh_per_second=10, transient=True)
        self._console = console

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def say(self, sentence: str) -> None:
        """See the protocol."""
        self._live.update(Spinner("dots", Text(f" {sentence}"), style=BUSY))

    def show(self, views: Sequence[View], planned: int, elapsed_s: float) -> None:
        """See the protocol."""
        table = Table(box=None, padding=(0, 2, 0, 0), width=min(WIDTH, self._console.width), header_style=FAINT)
        table.add_column("vendor", width=7)
        table.add_column("task", width=18, no_wrap=True)
        table.add_column("callbacks", width=17, no_wrap=True)
        table.add_column("file, MB", width=_BAR_WIDTH + 10, no_wrap=True)
        table.add_column("", no_wrap=True, ratio=1)
        for view in begun(views):
            words, style = state(view)
            table.add_row(
                Text(view.entry["vendor"], FAINT),
                view.entry["task_id"],
                answered(view),
                _file(view),
                Text(words, style),
            )
        self._live.update(Group(_title(views, planned, elapsed_s), "", table))


class LineScreen:
    """A line for each change, for logs and pipes."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._shown: dict[str, str] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def say(self, sentence: str) -> None:
        """See the protocol."""
        self._console.print(sentence, highlight=False)

    def show(self, views: Sequence[View], planned: int, elapsed_s: float) -> None:
        """See the protocol."""
        for view in begun(views):
            words, _ = state(view)
            name = f"{view.entry['vendor']}/{view.entry['task_id']}"
            if self._shown.get(name) != words:
                self._shown[name] = words
                line = f"{elapsed_s:5.1f} s  {name:<27} {answered(view):<19} {words}"
                self._console.print(line.rstrip(), highlight=False, soft_wrap=True)


def begun(views: Sequence[View]) -> list[View]:
    """Return the conversions whose first callback was sent."""
    return [view for view in views if view.callbacks]


def _title(views: Sequence[View], planned: int, elapsed_s: float) -> Text:
    over = sum(view.complete for view in views)
    fetched = megabytes(sum(view.fetched_bytes for view in views))
    return Text(f"{over} of {planned} conversions over, {fetched} MB fetched, {elapsed_s:.0f} s", "bold")


def _file(view: View) -> Table | str:
    if not view.fetches:
        return ""
    done = min(view.fetched_bytes, view.size_bytes)
    cell = Table.grid(padding=(0, 1))
    cell.add_column(width=_BAR_WIDTH)
    cell.add_column(justify="right", width=9)
    bar = ProgressBar(total=view.size_bytes, completed=done, width=_BAR_WIDTH, complete_style=BUSY)
    cell.add_row(bar, f"{megabytes(done)}/{megabytes(view.size_bytes)}")
    return cell
