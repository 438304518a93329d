"""What a data set is before preprocessing: numbered pictures with labels."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from dreamkd.data.preprocessing import open_picture
from dreamkd.errors import DataError

#: Forms of a data specification, as error messages and the command line's help show them.
FORMS = (
    "FOLDER of class folders",
    "TAR of class folders",
    "WebDataset TAR (KEY.png|jpg|webp with KEY.cls)",
    "'GLOB*.tar' of either",
    "RUN folder of dreamkd",
    "torchvision:NAME:ROOT[:train|test]",
    "sklearn:digits[:train|test]",
)

#: Largest picture file in bytes.
MAX_BYTES = 2**28


class Pictures(ABC):
    """Numbered pictures with labels; reading is safe from several threads at once."""

    def __init__(
        self, *, source: str, class_names: Sequence[str] = (), synthesised: bool = False
    ) -> None:
        self.source = source  # one human line: what is read
        self.class_names = tuple(class_names)  # by label; empty if the data do not name them
        self.synthesised = synthesised  # by a run, at a network's own size: nothing to crop

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        """The decoded picture and its label."""

    def name(self, index: int) -> str:
        """How an error names picture `index`."""
        return f"picture {index} of {self.source}"


class Entry(NamedTuple):
    """A labelled picture as `size` bytes of a file from `offset` on."""

    path: Path
    offset: int
    size: int
    label: int
    member: str  # inside a tar; empty if the file is the picture


class PictureFiles(Pictures):
    """Pictures as picture files, loose or inside tars."""

    def __init__(
        self,
        entries: Sequence[Entry],
        *,
        source: str,
        class_names: Sequence[str],
        synthesised: bool = False,
    ):
        super().__init__(source=source, class_names=class_names, synthesised=synthesised)
        self.entries = entries

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        entry = self.entries[index]
        return open_picture(read(entry), name=self.name(index)), entry.label

    def name(self, index: int) -> str:
        """The path, and the member if the path is a tar's."""
        entry = self.entries[index]
        return f"{entry.path}: {entry.member}" if entry.member else str(entry.path)


def read(entry: Entry) -> bytes:
    """The bytes of an entry, through a file handle of its own.

    Raises:
        DataError: the file is gone, shorter than it was, or larger than `MAX_BYTES`.
    """
    if entry.size > MAX_BYTES:
        raise DataError(f"{entry.path}: {entry.member} has {entry.size} bytes, at most {MAX_BYTES}")
    try:
        with open(entry.path, "rb", buffering=0) as file:
            file.seek(entry.offset)
            data = file.read(entry.size)
    except OSError as error:
        raise DataError(f"cannot read {entry.path}: {error.strerror or error}") from error
    if len(data) != entry.size:
        raise DataError(f"{entry.path} is shorter than when it was opened")
    return data
