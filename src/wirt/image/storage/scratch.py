"""A file without a name: it is gone when it is closed, also when its process is killed."""

from __future__ import annotations

import os
import tempfile

from wirt.image.storage.file import FileStorage, image_error


class Scratch(FileStorage):
    """Room for what need not outlive this process, on the file system of ``directory``.

    Raises ImageError where nothing can be written there.
    """

    def __init__(self, directory: str = "") -> None:
        directory = directory or os.environ.get("TMPDIR", "/var/tmp")  # noqa: S108 - the file has no name
        self.name = f"a temporary file in {directory}"
        self.read_only = False
        try:
            with tempfile.TemporaryFile(dir=directory) as file:
                self._fd = os.dup(file.fileno())
        except OSError as error:
            raise image_error(error, self.name) from error
