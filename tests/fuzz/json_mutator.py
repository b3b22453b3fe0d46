"""Changes JSON as JSON: what changes bytes alone hardly ever makes another document that can be read.

Responsible for: one small change of a document's shape or values, decided by a seed. It must not know what a document
means: the words that do are handed in.
"""

import copy
import json
import random
from collections.abc import Iterator, Sequence
from typing import Any

_DEEPEST = 30
_LEAVES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 200, 404, 500, "200", " 501 ", 10**9, -(10**9), 2**63, 2**64, 10**400, 1.5, 1e308),
    *(1_794_900_000_000, 10**13, 10**14, -(10**13), "", " ", "t", ".", "..", "a/b", "a\\b", "\0", "\ud800", "\u2028"),
    *(
        "é" * 300,
        "x" * 257,
        "x" * 600,
        "\N{FULLWIDTH DIGIT TWO}\N{SUPERSCRIPT TWO}",
        "https://x/a b.wav?Signature=s&x=y#f",
        "HTTP://X",
        "http://[",
        "http://u:p@x",
    ),
    *("https://x\n/", "//x", "ftp://x/", "2026-11-21 12:00:00", '{"resultUrls": ["https://x/"]}', "[" * 2_000),
)


def mutate(data: bytes, max_size: int, seed: int, words: Sequence[bytes]) -> bytes | None:
    """Return a changed document; None where that is none or too long.

    Args:
        data: a document, or not.
        max_size: of what is returned.
        seed: decides the change.
        words: those in double quotes stand for keys and texts, the others for texts.
    """
    rng = random.Random(seed)
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        return None
    texts = [word.strip(b'"').decode(errors="replace") for word in words]
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        document = _changed(document, rng, texts)
    try:
        encoded = json.dumps(document, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")
    except (RecursionError, ValueError):
        return None
    return encoded if len(encoded) <= max_size else None


def _changed(document: Any, rng: random.Random, texts: Sequence[str]) -> Any:
    """Return the document with one change."""
    root = {"": document}
    places = list(_places(root))
    holder, key = rng.choice(places[1:] or places)  # the document itself only where nothing is in it
    value = holder[key]
    change = rng.randrange(8)
    if change == 0 and holder is not root:
        del holder[key]
    elif change == 1:
        other_holder, other_key = rng.choice(places)
        holder[key] = copy.deepcopy(other_holder[other_key])
    elif change == 2:
        holder[key] = rng.choice(([value], {rng.choice(texts): value}, [value, value]))
    elif change == 3:
        holder[key] = json.dumps(value)
    elif change == 4 and isinstance(value, dict):
        value[rng.choice(texts)] = rng.choice(_LEAVES)
    elif change == 5 and isinstance(holder, dict) and holder is not root:
        holder[rng.choice(texts)] = holder.pop(key)
    elif change == 6:
        holder[key] = rng.choice(texts)
    else:
        holder[key] = rng.choice(_LEAVES)
    return root[""]


def _places(holder: Any, depth: int = 0) -> Iterator[tuple[Any, Any]]:
    """Return every place of a value, to a sensible depth."""
    keys = list(holder) if isinstance(holder, dict) else range(len(holder))
    for key in keys:
        yield holder, key
        if isinstance(holder[key], dict | list) and depth < _DEEPEST:
            yield from _places(holder[key], depth + 1)
