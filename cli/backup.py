"""`wavekeep backup`: a consistent copy of what only Wavekeep can copy while it is in use.

Responsible for: the SQLite files and the secrets of one data folder. Files and manifests are copied by whatever copies
files best; in which order, and how to restore, is in `docs/operations.md`.
"""

import os
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import click

from cli.output import as_json, print_json, print_table
from cli.session import settings
from downloader.storage_folder import sync_folder

_SECRETS = "secrets.toml"


@click.command()
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@as_json
def backup(folder: Path, *, json_output: bool) -> None:
    """Copy queue, spool and secrets of this data folder into FOLDER, while the services run.

    Each copy is of one moment, checked, and for this user alone. What is in FOLDER already is never written over.
    """
    found = settings()
    databases = [path for path in (found.embedded_path, found.spool_path) if path is not None and path.is_file()]
    secrets = [path for path in (found.data_dir / _SECRETS,) if path.is_file()]
    if not databases and not secrets:
        raise click.ClickException(
            f"There is nothing to back up in {found.data_dir}. Set WAVEKEEP_DATA_DIR as the services have it."
        )
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        copied = [_copy(path, folder / path.name) for path in (*databases, *secrets)]
        sync_folder(folder)
    except FileExistsError as error:
        raise click.ClickException(f"{error.filename} is there already; name a new folder.") from error
    except (OSError, sqlite3.Error) as error:
        raise click.ClickException(f"The backup failed ({error}); what is in {folder} is no backup.") from error
    if json_output:
        print_json([{"path": path, "size_bytes": size_bytes} for path, size_bytes in copied])
    else:
        print_table(("copy", "bytes"), copied, empty="")


def _copy(path: Path, target: Path) -> tuple[Path, int]:
    """Copy one file, durably; return the copy and its size in bytes.

    Raises:
        FileExistsError: there is one already.
        OSError, sqlite3.Error: it cannot be copied, or the copy is not sound.
    """
    file = os.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        if path.suffix == ".sqlite3":
            _copy_database(path, target)
        else:
            shutil.copyfile(path, target)
        os.fsync(file)
    finally:
        os.close(file)
    return target, target.stat().st_size


def _copy_database(path: Path, target: Path) -> None:
    """Copy an SQLite file by its own backup, which sees one committed state although others write meanwhile."""
    with closing(sqlite3.connect(path)) as source, closing(sqlite3.connect(target)) as copy:
        source.backup(copy)
        # one file to be copied on: without a log beside it
        copy.execute("PRAGMA journal_mode = DELETE").close()
        (verdict,) = copy.execute("PRAGMA integrity_check").fetchone()
        if verdict != "ok":
            raise sqlite3.DatabaseError(f"the copy of {path.name} is not sound: {verdict}")
