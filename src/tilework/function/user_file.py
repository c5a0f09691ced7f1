"""A file of the user as a module of its own name, in every process that calls a function of it."""

from __future__ import annotations

import hashlib
import importlib.util
import re
import sys
from dataclasses import dataclass
from importlib.abc import SourceLoader
from pathlib import Path
from types import ModuleType

from tilework.function.guard import Guard

__all__ = ["UserFile"]


class _Loader(SourceLoader):
    """Loads a module from a text, so that no process reads another version of the file."""

    def __init__(self, file: UserFile) -> None:
        self._file = file

    def get_filename(self, fullname: str) -> str:
        """Return the path of the file, which need not exist here."""
        return self._file.path

    def get_data(self, path: str) -> bytes:
        """Return the text."""
        return self._file.text


@dataclass(frozen=True, slots=True)
class UserFile:
    """A Python file that is loaded by its path, whatever other modules are called.

    The name of its module says which file it is, with which content, because functions are sent to other
    processes by the name of their module. A process that gets such a function must have the module already.
    """

    path: str
    """Absolute path."""
    text: bytes
    """Content."""

    @classmethod
    def read(cls, path: str | Path) -> UserFile:
        """Read a file."""
        found = Path(path).resolve()
        return cls(str(found), found.read_bytes())

    @property
    def name(self) -> str:
        """Name of the module."""
        digest = hashlib.blake2b(self.path.encode() + b"\0" + self.text, digest_size=8).hexdigest()
        stem = re.sub(r"\W", "_", Path(self.path).stem)
        return f"{stem}_of_file_{digest}"

    def load(self) -> ModuleType:
        """Return the module; execute the file if this process has not.

        Modules beside the file can be imported by it, unless an installed one has the same name.
        """
        found = sys.modules.get(self.name)
        if found is not None:
            return found
        if (folder := str(Path(self.path).parent)) not in sys.path:
            sys.path.append(folder)
        spec = importlib.util.spec_from_file_location(self.name, self.path, loader=_Loader(self))
        assert spec is not None
        assert spec.loader is not None
        module = sys.modules[self.name] = importlib.util.module_from_spec(spec)
        try:
            with Guard(lambda: f"raised while loading {self.path}"):
                spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[self.name]
            raise
        return module
