"""The S3 stand-in, moto's server, without one flaw of its own: `python -m tests.s3_stand_in --host H --port P`.

Responsible for: nothing of S3. Moto computes an ETag by moving the very buffer that another request may be reading at
that moment, which then reads nothing of an object that is whole. Here both take the object's lock.
"""

from moto.s3.models import FakeKey
from moto.server import main

_etag = FakeKey.__dict__["etag"]


def _etag_under_lock(key: FakeKey) -> str:
    with key.lock:
        return str(_etag.__get__(key))


if __name__ == "__main__":
    setattr(FakeKey, "etag", property(_etag_under_lock))  # noqa: B010 - a property, which no type checker lets pass
    main()
