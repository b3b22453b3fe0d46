"""A line that stops at a chosen moment, so that a process can be killed exactly then.

Responsible for: passing bytes between whoever connects and one or several targets in turn, and for holding one line
back from the first bytes that match. It must not kill anything, and knows no protocol: it is told what to look for.
"""

import contextlib
import itertools
import socket
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Literal, Self

Direction = Literal["there", "back"]

REPORT_PUBLISHED = b"report.succeeded"
STORED_PUBLISHED = b"conversion.stored"
ACKNOWLEDGED = b"\x00\x00\x00\x0d\x00\x3c\x00\x50"
"""Size, class and method of `basic.ack`: a consumer's acknowledgement on the way there, a confirm on the way back."""

_LOOPBACK = "127.0.0.1"
_PIECE_BYTES = 65_536


@dataclass
class _Trap:
    stages: list[tuple[Direction, bytes]]
    tripped: threading.Event = field(default_factory=threading.Event)
    lifted: threading.Event = field(default_factory=threading.Event)


class Tripwire:
    """A proxy on loopback: `with Tripwire(PORT) as wire:`; connections take the targets in turn.

    Attributes:
        port: where it listens, outside the range of outgoing connections.
    """

    def __init__(self, port: int, *targets: int) -> None:
        self.port = port
        self._targets: Sequence[int] = targets
        self._turn = itertools.cycle(targets)
        self._trap: _Trap | None = None
        self._lock = threading.Lock()
        self._lines: list[socket.socket] = []
        self._listener: socket.socket | None = None

    def __enter__(self) -> Self:
        self._listener = socket.create_server((_LOOPBACK, self.port), backlog=128)
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._listener is not None:
            _hang_up(self._listener)
        self.lift()
        with self._lock:
            for line in self._lines:
                _hang_up(line)

    def arm(self, *stages: tuple[Direction, bytes]) -> threading.Event:
        """Hold a line at the last of these stages, each bytes in a direction; the event is set once it is held.

        Those before pass: they only say after what the next one is looked for.
        """
        trap = _Trap(list(stages))
        with self._lock:
            self._trap = trap
        return trap.tripped

    def lift(self) -> None:
        """Let lines pass again. What was held back is dropped together with its line."""
        with self._lock:
            trap, self._trap = self._trap, None
        if trap is not None:
            trap.lifted.set()

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = listener.accept()
                try:
                    far = socket.create_connection((_LOOPBACK, next(self._turn)), timeout=5)
                except OSError:
                    _hang_up(near)
                    continue
                far.settimeout(None)
                with self._lock:
                    self._lines += [near, far]
                directions: tuple[tuple[Direction, socket.socket, socket.socket], ...]
                directions = (("there", near, far), ("back", far, near))
                for direction, source, sink in directions:
                    threading.Thread(target=self._pass, args=(direction, source, sink), daemon=True).start()

    def _pass(self, direction: Direction, source: socket.socket, sink: socket.socket) -> None:
        seen = b""
        try:
            while piece := source.recv(_PIECE_BYTES):
                seen = seen[-64:] + piece
                trap, seen = self._look(direction, seen)
                if trap is not None:
                    trap.lifted.wait()
                    break
                sink.sendall(piece)
        except OSError:
            pass
        finally:
            _hang_up(source)
            _hang_up(sink)

    def _look(self, direction: Direction, seen: bytes) -> tuple[_Trap | None, bytes]:
        """Return the trap that springs here, and what the next stage may still be found in."""
        with self._lock:
            trap = self._trap
            while trap is not None and not trap.tripped.is_set():
                wanted, pattern = trap.stages[0]
                if wanted != direction or pattern not in seen:
                    break
                seen = seen.partition(pattern)[2]
                if len(trap.stages) == 1:
                    trap.tripped.set()
                    return trap, seen
                del trap.stages[0]
        return None, seen


def _hang_up(line: socket.socket) -> None:
    """End a line in both directions, also while another thread reads from it."""
    with contextlib.suppress(OSError):
        line.shutdown(socket.SHUT_RDWR)
    line.close()
