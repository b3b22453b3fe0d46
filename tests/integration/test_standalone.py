"""`python -m standalone`, as a person starts it: it greets, works, refuses a second one, and ends."""

import asyncio
import contextlib
import json
import os
import shlex
import signal
import stat
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from pathlib import Path

from aiohttp import ClientSession

from downloader.fence import Fence
from shared.errors import PermanentError
from standalone.sample import HOST, make_sample, sample_file
from tests.contract.storages import files
from tests.integration.embedded_house import DEADLINE_S, until

ROOT = Path(__file__).parents[2]
LAST_LINE = "Ctrl-C ends it"


class Run:
    """One process and what it has printed."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.printed = ""
        self.logged_so_far = ""

    async def greeting(self) -> str:
        """Return the banner, once it is complete."""
        assert self.process.stdout is not None
        async with asyncio.timeout(DEADLINE_S):
            while LAST_LINE not in self.printed:
                line = await self.process.stdout.readline()
                assert line, "it ended before it was up"
                self.printed += line.decode()
        return self.printed

    async def logged(self, words: str) -> None:
        """Return once its log says these words."""
        assert self.process.stderr is not None
        async with asyncio.timeout(DEADLINE_S):
            while words not in self.logged_so_far:
                line = await self.process.stderr.readline()
                assert line, "it ended before it said so"
                self.logged_so_far += line.decode()

    async def end(self) -> tuple[int, str]:
        """Ask it to end; return its status and what it wrote to standard error."""
        if self.process.returncode is None:
            self.process.send_signal(signal.SIGTERM)
        return await self.ended()

    async def ended(self) -> tuple[int, str]:
        """Wait for its end; return its status and what it wrote to standard error."""
        async with asyncio.timeout(DEADLINE_S):
            _, told = await self.process.communicate()
        assert self.process.returncode is not None
        return self.process.returncode, self.logged_so_far + told.decode()


@contextlib.asynccontextmanager
async def started(data_dir: Path, umask: int = -1, /, **settings: str) -> AsyncIterator[Run]:
    """Start the single process on free ports, with this process's umask unless told otherwise; gone afterwards."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WAVEKEEP_")}
    environment |= {"WAVEKEEP_DATA_DIR": str(data_dir), "WAVEKEEP_INGRESS_PORT": "0", "WAVEKEEP_OPS_PORT": "0"}
    environment |= {f"WAVEKEEP_{name.upper()}": value for name, value in settings.items()}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "standalone", cwd=ROOT, env=environment, umask=umask, stdout=PIPE, stderr=PIPE
    )
    try:
        yield Run(process)
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


def line_to_try(greeting: str) -> tuple[str, str]:
    """Return the URL and the body of the `curl` line."""
    (line,) = [line for line in greeting.splitlines() if line.strip().startswith("curl")]
    words = shlex.split(line)
    return words[2], words[-1]


async def test_the_printed_line_works(tmp_path: Path) -> None:
    """Whoever pastes the line after the first start has a file in custody a moment later, and no secret in the log."""
    async with started(tmp_path) as run:
        url, body = line_to_try(await run.greeting())
        async with (
            ClientSession() as session,
            session.post(url, data=body, headers={"Content-Type": "application/json"}) as answer,
        ):
            assert (answer.status, await answer.json()) == (200, {"status": "received"})
        await run.logged("event.told")
        status, log = await run.end()
    assert status == 0, log
    (audio,) = [name for name in files(tmp_path / "files") if name.endswith(".wav")]
    assert (tmp_path / "files" / audio).read_bytes() == make_sample()
    token = url.partition("token=")[2]
    assert token not in log
    assert json.loads(body)["data"]["task_id"] in log


def open_to_others(folder: Path) -> dict[str, str]:
    """Return what there is under a folder that is not for its owner alone, with its mode."""
    found = {}
    for path in [folder, *folder.rglob("*")]:
        with contextlib.suppress(FileNotFoundError):  # gone meanwhile
            mode = path.stat().st_mode
            if stat.S_IMODE(mode) != (0o700 if stat.S_ISDIR(mode) else 0o600):
                found[str(path.relative_to(folder))] = oct(mode)
    return found


async def test_files_are_for_the_owner_alone(tmp_path: Path) -> None:
    """Whatever the umask, even 0: no file or folder of ours is anybody else's business, while it runs and after."""
    data = tmp_path / "data"
    async with started(data, 0) as run:
        url, body = line_to_try(await run.greeting())
        async with (
            ClientSession() as session,
            session.post(url, data=body, headers={"Content-Type": "application/json"}) as answer,
        ):
            assert answer.status == 200
        await until(lambda: [name for name in files(data / "files") if name.endswith(".announced")])
        while_running = open_to_others(data)
        kept = {path.relative_to(data).parts[0] for path in data.rglob("*")}
        assert (await run.end())[0] == 0
    assert {"queue.sqlite3", "secrets.toml", "staging", "files"} <= kept
    assert while_running == {}
    assert open_to_others(data) == {}


async def test_urls_stay_the_same(tmp_path: Path) -> None:
    """What was handed to a vendor is still right after a restart; a secret of the environment goes before it."""
    tokens = []
    for settings in ({}, {}, {"apibox_callback_tokens": "mine"}):
        async with started(tmp_path, sample_file="false", **settings) as run:
            greeting = await run.greeting()
            tokens.append([word.partition("token=")[2] for word in greeting.split() if "/callbacks/" in word])
            assert (await run.end())[0] == 0
    first, second, third = tokens
    assert first == second
    assert third == ["mine", *first[1:]]


async def test_a_second_process_is_refused(tmp_path: Path) -> None:
    """Two processes never share a queue file: the second says who holds it and what to do, and ends with 2."""
    async with started(tmp_path) as first:
        await first.greeting()
        async with started(tmp_path) as second:
            status, told = await second.ended()
        assert status == 2
        assert f"Another Wavekeep process (id {first.process.pid}) uses the queue" in told
        assert "WAVEKEEP_DATA_DIR" in told
        assert "Traceback" not in told
        assert (await first.end())[0] == 0


async def test_a_damaged_secrets_file_ends_the_start(tmp_path: Path) -> None:
    """The sentence comes alone, without a traceback, and the status says that the surroundings must be mended."""
    (tmp_path / "secrets.toml").write_text("not toml")
    async with started(tmp_path) as run:
        status, told = await run.ended()
    assert status == 2
    assert told.startswith("The secrets in ")
    assert "Traceback" not in told


async def test_without_the_sample_nothing_is_opened(tmp_path: Path) -> None:
    """WAVEKEEP_SAMPLE_FILE=false serves no file, opens no address and prints no line to try."""
    async with started(tmp_path, sample_file="false") as run:
        greeting = await run.greeting()
        _, log = await run.end()
    assert "curl" not in greeting
    assert "fence.opened" not in log


async def test_the_sample_is_opened_exactly() -> None:
    """One address, one port: no other service of this machine can be reached through the sample's opening."""
    async with sample_file() as (link, opening):
        port = int(link.removeprefix(f"http://{HOST}:").partition("/")[0])
        assert (str(opening.network), opening.port) == (f"{HOST}/32", port)
        assert open_at(Fence((opening,)), HOST, port)
        for address, other in ((HOST, port - 1), (HOST, 80), ("127.0.0.2", port), ("::1", port), ("10.0.0.1", port)):
            assert not open_at(Fence((opening,)), address, other)


def open_at(fence: Fence, address: str, port: int) -> bool:
    """Tell whether a fence lets a socket be made."""
    try:
        fence.judge_address(address, port, scheme="http")
    except PermanentError:
        return False
    return True
