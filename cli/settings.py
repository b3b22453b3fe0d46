"""The command line's settings: what it must know to find the broker and the files, and to do again what a service does.

Responsible for: reading the same environment as the services do.
"""

from downloader.settings import DownloaderSettings
from ingress.settings import IngressSettings
from notifier.settings import NotifierSettings


class CliSettings(DownloaderSettings, IngressSettings, NotifierSettings):
    """What an operator's command needs to know. It listens nowhere, and needs no secret of a vendor's.

    The downloader comes first: of the vendors' API keys its word counts.
    """
