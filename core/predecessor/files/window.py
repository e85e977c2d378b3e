"""A file of any length, looked at through a part of it that always holds one whole record beyond its border."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from core.predecessor.files.grammar import LONGEST_RECORD
from core.predecessor.files.records import OnBytes, Place, UnreadableFileError

READ = 1024 * 1024


class Window:
    """A part of the file as text; always holds one whole record beyond ``reach`` unless the file ended."""

    def __init__(self, file: BinaryIO, path: Path, on_bytes: OnBytes | None) -> None:
        self.text = ""
        self.at = 0
        self.ended = False
        self._file, self._path, self._on_bytes = file, path, on_bytes
        self._name = path.name
        self._start = 0
        self._line, self._counted = 1, 0

    @property
    def reach(self) -> int:
        """Before this index a record may begin and be seen whole."""
        return len(self.text) if self.ended else len(self.text) - LONGEST_RECORD

    def fill(self) -> None:
        while not self.ended and self.at >= self.reach:
            self.read_on()

    def read_on(self) -> None:
        try:
            chunk = self._file.read(READ)
        except OSError as error:
            raise UnreadableFileError(cannot_read(self._path, error)) from error
        self.place(self.at)
        self._start += self.at
        self.text = self.text[self.at :] + chunk.decode("latin-1")
        self.at = self._counted = 0
        self.ended = not chunk
        if chunk and self._on_bytes is not None:
            self._on_bytes(len(chunk))

    def place(self, index: int) -> Place:
        if index >= self._counted:
            self._line += self.text.count("\n", self._counted, index)
        else:
            self._line -= self.text.count("\n", index, self._counted)
        self._counted = index
        return Place(self._name, self._line, self._start + index)

    def cut(self) -> int:
        """Up to where text without a record may be put aside; not inside a key if that can be helped."""
        if self.ended:
            return len(self.text)
        border = max(self.text.rfind("\n", self.at, self.reach), self.text.rfind(",", self.at, self.reach))
        return border + 1 if border >= self.at else self.reach


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    try:
        if path.exists() and not path.is_file():
            reason = f"{path} is not a file: give the path of the JSON file itself."
            raise UnreadableFileError(reason)
        file = path.open("rb")
    except OSError as error:
        raise UnreadableFileError(cannot_read(path, error)) from error
    with file:
        yield file


def cannot_read(path: Path, error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return f"{path} is not there: check the path."
    if isinstance(error, PermissionError):
        return f"{path} may not be read by this user: change its permissions or copy it."
    return f"{path} cannot be read ({error.strerror or error}): copy it to a disk that works."
