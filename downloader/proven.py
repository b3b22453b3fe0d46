"""What was proven of a whole file, for as long as it is on local disk and not in custody yet.

Responsible for: its record, by which a later attempt stores the file without fetching it again. Pure. It
must not hold a link's query: whoever reads the staging folder gets no key to a file.
"""

import msgspec

from shared.events import Evidence, Format


class Proven(msgspec.Struct, frozen=True, kw_only=True):
    """A whole file.

    Attributes:
        asked: digest of the identity of the link that was to be followed.
        claimed: that of the link that the report tells, which the vendor's own may differ from every time it is asked;
            empty in the note of an older version.
        link: that it came by, without its query; a fresh one where the other had expired.
        came_by: digest of that one's identity.
        sha256: in hex, computed over the bytes as they came.
        warnings: what is odd about it, and does not keep it out.
        evidence: what the proof rests on.
    """

    asked: str
    link: str
    came_by: str
    size_bytes: int
    sha256: str
    format: Format
    warnings: tuple[str, ...]
    evidence: Evidence
    claimed: str = ""
