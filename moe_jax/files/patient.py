"""A file to append to that a full disk does not break: what cannot be written yet waits in memory."""

import contextlib
import os
from pathlib import Path

from absl import logging

MAX_WAITING = 64 << 20  # bytes; beyond them the newest are dropped


class PatientFile:
    """Appends bytes. Where the system refuses them (no space, a network mount that is away), it warns once, keeps them
    and tries again with the next ones, so that no record is torn and training goes on.
    """

    def __init__(self, path: Path):
        """Opens or makes the file. Raises OSError where that fails."""
        self._path = path
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        self._waiting = bytearray()
        self._refused = False

    def write(self, data: bytes) -> None:
        """Takes `data`, to be written by the next `flush`."""
        if len(self._waiting) + len(data) <= MAX_WAITING:
            self._waiting += data

    def flush(self) -> None:
        """Writes what waits, as far as the system takes it."""
        try:
            while self._waiting:
                written = os.write(self._file, self._waiting)
                del self._waiting[:written]
        except OSError as error:
            if not self._refused:
                logging.warning("%s cannot be written (%s): its lines wait in memory", self._path, error.strerror)
            self._refused = True
        else:
            if self._refused:
                logging.info("%s can be written again", self._path)
            self._refused = False

    def close(self) -> None:
        """Writes what waits, warns of what is lost, and closes the file."""
        self.flush()
        if self._waiting:
            logging.warning("%s lacks its last %d bytes, which could not be written", self._path, len(self._waiting))
        with contextlib.suppress(OSError):
            os.close(self._file)
