"""How things are said to the person who watches: states, answers, sizes.

Responsible for: short texts and their colours. Pure. It must not print.
"""

from collections import Counter

from simulator.demo.script import CONFLICTING, REJECTED, STORED, UNRECOGNISED
from simulator.demo.watch import View

GOOD, BAD, BUSY, FAINT = "green", "yellow", "cyan", "dim"


def state(view: View) -> tuple[str, str]:
    """Return where a conversion stands, and the style to show it in."""
    if view.heard(STORED):
        return ("stored, contradicted later" if view.heard(CONFLICTING) else "stored"), GOOD
    if rejected := view.heard(REJECTED):
        return f"rejected: {rejected.data['reason']}", BAD
    if view.heard(UNRECOGNISED):
        return "kept for replay", BAD
    answers = [callback["status"] for callback in view.callbacks]
    if 200 not in answers:
        return ("refused", BAD) if any(answers) else ("called back", FAINT)
    if view.refused_fetches and view.refused_fetches == view.fetches:
        return "refused, tries again in 5 s", BUSY
    return ("fetching", BUSY) if view.fetches else ("answered", BUSY)


def answered(view: View) -> str:
    """Return how the callbacks were answered, for example `200` or `3 x 200`, and in how many ms at most."""
    counts = Counter(callback["status"] for callback in view.callbacks if callback["status"] is not None)
    if not counts:
        return ""
    slowest_ms = max(callback["answered_ms"] or 0.0 for callback in view.callbacks)
    statuses = ", ".join(f"{count} x {status}" if count > 1 else str(status) for status, count in counts.items())
    return f"{statuses} in {slowest_ms:.0f} ms"


def megabytes(size_bytes: int) -> str:
    """Return a size in MB, as 5.3 or 64.0."""
    return f"{size_bytes / 1_000_000:.1f}"


def short(kind: str) -> str:
    """Return an event's kind without its family."""
    return kind.partition(".")[2]
