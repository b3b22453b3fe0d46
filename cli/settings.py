"""The command line's settings: what it must know to find the broker and the files.

Responsible for: reading the same environment as the services do.
"""

from downloader.settings import DownloaderSettings
from notifier.settings import NotifierSettings


class CliSettings(DownloaderSettings, NotifierSettings):
    """What an operator's command needs to know. It listens nowhere."""
