"""The secrets of the single process: made at the first start, kept under the data folder.

Responsible for: a token for every vendor that the environment gives no secret, the same at every start. The file is
readable by its owner alone. It must not print them: `standalone.app` does, on purpose.
"""

import fcntl
import json
import os
import secrets
import tomllib
import uuid
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path

from shared.errors import StartError
from shared.vendors import Vendor

FILE_NAME = "secrets.toml"


def keep_tokens(data_dir: Path) -> Mapping[Vendor, str]:
    """Return the callback token of each vendor; those that are missing are made and kept.

    Raises:
        StartError: the file cannot be read or written.
    """
    path = data_dir / FILE_NAME
    try:
        data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        with _alone(data_dir) as folder:
            known = _read(path)
            tokens = {vendor: known.get(vendor) or secrets.token_urlsafe(32) for vendor in Vendor}
            if tokens != known:
                _write(path, tokens)
                os.fsync(folder)
    except OSError as error:
        raise StartError(
            f"The data folder {data_dir} cannot be used ({error}). Check its rights and free space, or set"
            " WAVEKEEP_DATA_DIR."
        ) from error
    except ValueError as error:
        raise StartError(
            f"The secrets in {path} cannot be read ({error}). Restore the file, or remove it to have new ones made; the"
            " vendors then need the new callback URLs."
        ) from error
    return tokens


@contextmanager
def _alone(folder: Path) -> Generator[int, None, None]:
    """Hold a lock on the folder: of two processes that start at once, the second reads what the first has made."""
    file = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield file
    finally:
        os.close(file)


def _read(path: Path) -> dict[Vendor, str]:
    """Return the tokens that are there; ValueError where the file says anything else than it should."""
    try:
        document = tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return {}
    found = document.get("callback_tokens", {})
    if not isinstance(found, dict) or not all(isinstance(token, str) for token in found.values()):
        raise ValueError("[callback_tokens] must name a text for each vendor")
    return {vendor: found[vendor] for vendor in Vendor if vendor in found}


def _write(path: Path, tokens: Mapping[Vendor, str]) -> None:
    lines = ["# Made by Wavekeep at its first start. Whoever knows a token can send callbacks.", "[callback_tokens]"]
    lines += [f"{vendor} = {json.dumps(token, ensure_ascii=False)}" for vendor, token in tokens.items()]
    temporary = path.with_name(f".{uuid.uuid4().hex}")
    file = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(file, "w", encoding="utf-8") as stream:
            stream.write("\n".join(lines) + "\n")
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
