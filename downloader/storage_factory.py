"""The storage that the settings name.

Responsible for: choosing it, for services and command line alike. It must not open anything.
"""

from concurrent.futures import Executor

from downloader.settings import DownloaderSettings
from downloader.storage import Storage
from downloader.storage_folder import FolderStorage

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
    measuring_s = settings.quality_timeout_s if settings.quality or settings.waveform else 0.0
    spare_s = settings.ack_timeout_s - settings.download_attempt_timeout_s - measuring_s
    return ObjectStorage(
        open_store(address),
        address,
        executor=executor,
        single_writer=settings.storage_single_writer,
        transfer_timeout_s=_SHARE_OF_A_TRANSFER * spare_s,
    )
