"""The storage that the settings name, and what sweeps behind it.

Responsible for: choosing them, for services and command line alike. It must not open anything.
"""

from concurrent.futures import Executor

from downloader.settings import DownloaderSettings
from downloader.storage import Storage, Uploads
from downloader.storage_folder import FolderStorage
from shared.clock import Clock

_SHARE_OF_A_TRANSFER = 0.4
"""Of what an attempt leaves of the acknowledgement time-out: a file is put, read again, and its records are written."""


def build_storage(settings: DownloaderSettings, *, executor: Executor) -> Storage:
    """Return it, not started.

    Raises:
        StartError: the environment of an object store says something that cannot be.
    """
    if settings.object_store is None:
        return FolderStorage(settings.storage_folder, executor=executor, single_writer=settings.storage_single_writer)
    # the library is large, and of no use beside a folder
    from downloader.storage_object import ObjectStorage  # noqa: PLC0415 - imported only where it is used
    from downloader.storage_store import open_store  # noqa: PLC0415 - so is this

    address = settings.object_store.rstrip("/")
    return ObjectStorage(
        open_store(address),
        address,
        executor=executor,
        single_writer=settings.storage_single_writer,
        transfer_timeout_s=_transfer_timeout_s(settings),
    )


def build_uploads(settings: DownloaderSettings, *, executor: Executor, clock: Clock) -> Uploads | None:
    """Return what ends uploads that nobody will end; None where the storage has none that anybody can list."""
    if settings.object_store is None or not settings.object_store.startswith("s3://"):
        return None
    from downloader.storage_uploads import ForgottenUploads  # noqa: PLC0415 - its library is large too

    return ForgottenUploads(
        settings.object_store, executor=executor, transfer_timeout_s=_transfer_timeout_s(settings), clock=clock
    )


def _transfer_timeout_s(settings: DownloaderSettings) -> float:
    measuring_s = settings.quality_timeout_s if settings.quality or settings.waveform else 0.0
    return _SHARE_OF_A_TRANSFER * (settings.ack_timeout_s - settings.download_attempt_timeout_s - measuring_s)
