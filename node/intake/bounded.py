"""A file of which a parser may read so much and no more: a data set of tiny elements takes forty times its size in memory."""

from io import SEEK_SET, BufferedReader, FileIO, RawIOBase


def bounded(file: FileIO, longest_bytes: int) -> BufferedReader:
    """Answers a file that ends when so many bytes of it were read; what is skipped does not count."""
    return BufferedReader(_Bounded(file, longest_bytes))


class _Bounded(RawIOBase):
    def __init__(self, file: FileIO, longest_bytes: int) -> None:
        self._file = file
        self._left_bytes = longest_bytes
        self.name = file.name  # pydicom asks for it

    def readable(self) -> bool:
        """It is there to be read."""
        return True

    def seekable(self) -> bool:
        """A parser goes back and forth in it."""
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Fills a buffer as far as it may."""
        received = self._file.readinto(memoryview(buffer)[: self._left_bytes]) or 0
        self._left_bytes -= received
        return received

    def seek(self, offset: int, whence: int = SEEK_SET) -> int:
        """Goes to a place of the file."""
        return self._file.seek(offset, whence)
