"""The disk: space for the database file, and a data folder that this user may write."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from worker.doctor.findings import DoctorFinding, error, not_checked, ok, warning
from worker.doctor.inputs import DoctorInputs

MEGABYTE: Final = 2**20
LOW_SPACE: Final = 1024 * MEGABYTE
NO_SPACE: Final = 100 * MEGABYTE


def check(inputs: DoctorInputs) -> list[DoctorFinding]:
    folders = {inputs.settings.data_dir}
    if inputs.sqlite_file is not None:
        folders.add(inputs.sqlite_file.parent)
    found = [finding for folder in sorted(folders) for finding in _folder_findings(folder)]
    return found if inputs.sqlite_file is None else [*found, *_readable_file(inputs.sqlite_file)]


def _folder_findings(folder: Path) -> list[DoctorFinding]:
    existing = next((each for each in (folder, *folder.absolute().parents) if each.exists()), Path("/"))
    if not existing.is_dir():
        advice = "choose another folder in DATA_DIR"
        return [error("data_folder_invalid", f"{existing} is a file, not a folder", "nothing can be stored", advice)]
    if not os.access(existing, os.W_OK | os.X_OK):
        advice = f"`chown -R $USER {existing}`, or another folder in DATA_DIR"
        return [error("data_folder_read_only", f"this user may not write {existing}", "nothing is stored", advice)]
    try:
        free = shutil.disk_usage(existing).free
    except OSError as failed:
        return [not_checked("disk_unread", f"{existing}: {failed.strerror}")]
    return [_space_finding(existing, free)]


def _readable_file(file: Path) -> Iterator[DoctorFinding]:
    if file.is_file() and file.stat().st_mode & (stat.S_IROTH | stat.S_IWOTH):
        yield warning(
            "database_file_readable",
            f"every user of this machine can read {file}",
            "it has the names and addresses of customers",
            f"`chmod 600 {file}*`",
        )


def _space_finding(folder: Path, free: int) -> DoctorFinding:
    message = f"{free // MEGABYTE:,} MB free in {folder}"
    if free < NO_SPACE:
        return error("disk_full", message, "changes are refused when it is full", f"free space: `du -sh {folder}/*`")
    if free < LOW_SPACE:
        return warning("disk_low", message, "changes are refused when it is full", f"free space: `du -sh {folder}/*`")
    return ok("disk", message)
