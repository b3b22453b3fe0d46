"""What a manifest's evidence means, in words.

Responsible for: the sentences that `wavekeep show` says to a person. Pure. The words themselves are explained in
`docs/events.md`.
"""

from shared.events import Evidence

_TRUST = {
    "token": "the callback came with its secret token",
    "signature": "the callback was signed, in time",
    "stale": "the callback was signed, but long before it came",
    "none": "the callback proved nothing about its sender",
    "vendor_confirmed": "the vendor itself named the link when asked",
    "operator": "a person with access to the storage brought it",
}
_TRANSPORT = {
    "content_length": "its length was told beforehand, and it came in full",
    "chunked": "its last chunk said that it was the last",
    "close_delimited": "nothing but the end of the connection told its end",
    "content_range": "the download broke off and was resumed, and its last range fitted",
    "local_file": "it was read from a file",
}


def in_words(evidence: Evidence) -> list[str]:
    """Return what the proof rests on, a sentence a line."""
    sentences = [_TRUST.get(word, word) for word in evidence.trust]
    sentences.append(_TRANSPORT[evidence.transport])
    sentences.append("its structure is whole")
    if evidence.matched:
        sentences.append(f"digests that the server sent matched: {', '.join(evidence.matched)}")
    if evidence.differs:
        sentences.append(
            f"digests that the server sent did NOT match, however often it was fetched: {', '.join(evidence.differs)};"
            " the SHA-256 is our own"
        )
    elif not evidence.matched:
        sentences.append("nobody sent a digest: the SHA-256 is our own")
    if evidence.reread:
        sentences.append("it was read again once stored, and was the same")
    return sentences
