"""A sliding window over a file of any length."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from core.predecessor.files.grammar import MAX_RECORD_BYTES
from core.predecessor.files.records import FilePosition, OnBytes, UnreadableFileError

READ_CHUNK_BYTES = 1024 * 1024


class FileWindow:
    """A part of the file as text. It contains one whole record after ``search_end``, unless the file has ended."""

    def __init__(self, file: BinaryIO, path: Path, on_bytes: OnBytes | None) -> None:
        self.text = ""
        self.cursor = 0
        self.ended = False
        self._file, self._path, self._on_bytes = file, path, on_bytes
        self._name = path.name
        self._start = 0
        self._line, self._counted_to = 1, 0

    @property
    def search_end(self) -> int:
        """A record that begins before this index is whole in the window."""
        return len(self.text) if self.ended else len(self.text) - MAX_RECORD_BYTES

    def fill(self) -> None:
        while not self.ended and self.cursor >= self.search_end:
            self.read_more()

    def read_more(self) -> None:
        try:
            chunk = self._file.read(READ_CHUNK_BYTES)
        except OSError as error:
            raise UnreadableFileError(read_error_message(self._path, error)) from error
        self.position(self.cursor)
        self._start += self.cursor
        self.text = self.text[self.cursor :] + chunk.decode("latin-1")
        self.cursor = self._counted_to = 0
        self.ended = not chunk
        if chunk and self._on_bytes is not None:
            self._on_bytes(len(chunk))

    def position(self, index: int) -> FilePosition:
        if index >= self._counted_to:
            self._line += self.text.count("\n", self._counted_to, index)
        else:
            self._line -= self.text.count("\n", index, self._counted_to)
        self._counted_to = index
        return FilePosition(self._name, self._line, self._start + index)

    def find_cut(self) -> int:
        """The index up to which text without a record may be dropped; inside a key only if it cannot be avoided."""
        if self.ended:
            return len(self.text)
        boundary = max(
            self.text.rfind("\n", self.cursor, self.search_end), self.text.rfind(",", self.cursor, self.search_end)
        )
        return boundary + 1 if boundary >= self.cursor else self.search_end


@contextmanager
def open_file(path: Path) -> Iterator[BinaryIO]:
    try:
        if path.exists() and not path.is_file():
            reason = f"{path} is not a file: pass the path of the JSON file itself."
            raise UnreadableFileError(reason)
        file = path.open("rb")
    except OSError as error:
        raise UnreadableFileError(read_error_message(path, error)) from error
    with file:
        yield file


def read_error_message(path: Path, error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return f"{path} does not exist: check the path."
    if isinstance(error, PermissionError):
        return f"{path} is not readable for this user: change its permissions or copy it."
    return f"{path} cannot be read ({error.strerror or error}): copy it to a disk that works."
