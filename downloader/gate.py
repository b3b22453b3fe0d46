"""The gate: the one place where connections of a download pass the fence.

Responsible for: bringing every answer of the DNS and the address of every socket before `downloader.fence`. It must
not decide by itself what may be reached.
"""

import socket

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult

from downloader.fence import Fence
from shared.errors import PermanentError


class Gate(AbstractResolver):
    """The way through the fence for the connections of one hop.

    It judges what the DNS answers, all of it, and again the address each socket is opened for: an address that is
    written in the URL is never resolved, and no answer can change between the check and the connection.
    A refusal is remembered, holds for every further address of the hop, and is told to aiohttp as an `OSError`, the
    one kind of failure that it handles everywhere.
    """

    def __init__(self, fence: Fence, scheme: str, resolver: AbstractResolver) -> None:
        self._fence = fence
        self._scheme = scheme
        self._resolver = resolver
        self.refusal: PermanentError | None = None

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Resolve, and refuse every answer where one of them is forbidden."""
        answers = await self._resolver.resolve(host, port, family)
        if not answers:
            raise socket.gaierror(socket.EAI_NONAME, "no address")
        for answer in answers:
            self._judge(answer["host"], answer["port"])
        return answers

    def open_socket(self, addr_info: aiohttp.AddrInfoType) -> socket.socket:
        """Make a socket for an address that may be reached."""
        family, kind, protocol, _, address = addr_info
        self._judge(str(address[0]), int(address[1]))
        return socket.socket(family, kind, protocol)

    async def close(self) -> None:
        """Do nothing: the resolver behind it belongs to the fetcher."""

    def _judge(self, address: str, port: int) -> None:
        try:
            self._fence.judge_address(address, port, scheme=self._scheme)
        except PermanentError as error:
            self.refusal = self.refusal or error
        if self.refusal is not None:
            raise PermissionError(self.refusal.detail)
