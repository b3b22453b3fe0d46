"""What is found out about a whole file before it is kept, and never stands in its way.

Responsible for: having a file measured where the settings ask for it, and for picture and peaks beside it. It must not
measure (`downloader.quality_worker` does), and never fails: a run without a result is one too.
"""

from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from downloader.metrics import DownloaderMetrics
from downloader.quality import Quality, WaveformPaths
from downloader.quality_run import QualityRunner
from shared.events import Format


@dataclass(frozen=True, slots=True)
class Inspection:
    """What was found out.

    Attributes:
        quality: null where nobody asked.
        waveform, peaks: to be kept beside the file; gone once the inspection is left.
    """

    quality: Quality | None = None
    waveform: Path | None = None
    peaks: Path | None = None


class Inspector(Protocol):
    """Looks at whole files."""

    def inspect(self, path: Path, format_: Format) -> AbstractAsyncContextManager[Inspection]:
        """Look at a file on local disk. Raises nothing but cancellation."""


class NoInspector:
    """Looks at nothing."""

    @asynccontextmanager
    async def inspect(self, _path: Path, _format: Format) -> AsyncGenerator[Inspection, None]:
        """Find nothing."""
        yield Inspection()


class QualityInspector:
    """Has files measured by a runner.

    Args:
        quality: tell the figures.
        waveform: draw picture and peaks.
    """

    def __init__(
        self, runner: QualityRunner, *, timeout_s: float, quality: bool, waveform: bool, metrics: DownloaderMetrics
    ) -> None:
        self._runner = runner
        self._timeout_s = timeout_s
        self._quality = quality
        self._waveform = waveform
        self._metrics = metrics

    @asynccontextmanager
    async def inspect(self, path: Path, format_: Format) -> AsyncGenerator[Inspection, None]:
        """See the protocol."""
        png, peaks = path.with_suffix(".png"), path.with_suffix(".json")
        paths = WaveformPaths(png=str(png.absolute()), peaks=str(peaks.absolute())) if self._waveform else None
        try:
            found = await self._runner.judge(path, format_, timeout_s=self._timeout_s, waveform=paths)
            self._metrics.inspected(found)
            drawn = found.waveform
            yield Inspection(found if self._quality else None, png if drawn else None, peaks if drawn else None)
        finally:
            if self._waveform:
                png.unlink(missing_ok=True)
                peaks.unlink(missing_ok=True)
