"""Image folders: loose PNGs by class, for whoever reads torchvision's ImageFolder.

    images/CLASS/KEY.png          the images
    records/batch-NNNNNN.jsonl    batch N: one line per image, the record that a shard holds as
                                  KEY.json, and "file" (CLASS/KEY.png) and "file_sha256" beside

The record file holds the hash of every PNG, so that its own SHA-256, which the manifest records,
vouches for the whole batch; `sha256sum` can check both. It is written first and the PNGs after it:
whatever a killed process leaves in `images/` is named by a record file, and a batch counts only
when its manifest line is there. Only this file knows what lies in a record. Reading treats all of
it as hostile: no name leads out of `images/`, every size is bounded.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from dreamkd import manifest
from dreamkd.errors import DataError, said
from dreamkd.files import (
    is_file,
    make_folders,
    remove,
    sha256_file,
    write_all,
    write_atomically,
)
from dreamkd.manifest import Shard
from dreamkd.samples import (
    KEY,
    LABEL_DIGITS,
    PNG_LIMIT,
    Sample,
    check_batch,
    check_png,
    difference,
    dump_record,
    encode,
    parse_record,
    pixels_sha256,
)

#: Largest record file in bytes: 65,536 images with 4 KiB of records each.
RECORDS_LIMIT = 2**28

_CLASS = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}")
_LONGEST_NAME = 80  # of a class in a folder's name


def folder_names(class_names: Sequence[str]) -> list[str]:
    """Names of the class folders, by label: file-safe, unique, in alphabetical order.

    Loaders number class folders alphabetically, so this order must be that of the labels. Names
    that keep it stay as they are (`bird`, `cat`); otherwise every name gets its label in front,
    with leading zeros (`003_cat`). All but ASCII letters, digits, dots, dashes and underscores
    becomes `_`; names that differ only in case count as equal.
    """
    safe = [re.sub(r"[^A-Za-z0-9._-]+", "_", name).strip("._-") for name in class_names]
    safe = [name[:_LONGEST_NAME] for name in safe]
    if all(safe) and safe == sorted(safe) and len({name.lower() for name in safe}) == len(safe):
        return safe
    digits = len(str(len(safe) - 1))
    return [f"{label:0{digits}d}_{name}".rstrip("_") for label, name in enumerate(safe)]


@dataclass(frozen=True)
class Picture:
    """One line of a record file."""

    path: Path
    sha256: str
    key: str
    label: int
    record: dict[str, Any]


class Folders:
    """`--format folder`: the batches of a run as class folders of PNGs."""

    names = re.compile(r"batch-([0-9]{6,9})\.jsonl")

    def __init__(self, run: Path, folders: Sequence[str] = ()) -> None:
        """`folders`: the class folders' names by label; to read, none are needed."""
        self.images = run / manifest.IMAGES
        self.records = run / manifest.RECORDS
        self._folders = folders

    def prepare(self) -> None:
        """Make the folders.

        Raises: RunError: they cannot be made.
        """
        make_folders(self.images, self.records)

    def path(self, k: int) -> Path:
        """The record file of batch `k`."""
        return self.records / f"batch-{k:06d}.jsonl"

    def write(
        self, k: int, images: Tensor, labels: Sequence[int], records: Sequence[Mapping[str, Any]]
    ) -> Shard:
        """Write batch `k`, durably; the same arguments give the same bytes.

        Another batch `k` that was never finished is removed before: else its PNGs would stay.

        Args:
            images: uint8 (N, C, H, W), C = 1 (grey) or 3 (RGB).
            labels: N class indices.
            records: N mappings of JSON values; "key" names the image and is unique in the run.
        Returns: the batch as its manifest line describes it.

        Raises:
            RunError: a file cannot be written.
            ValueError: the arguments are not of this form.
        """
        check_batch(images, labels, records)
        files, lines = {}, []
        for image, label, record in zip(images, labels, records, strict=True):
            png, name = encode(image), f"{self._folders[label]}/{record['key']}.png"
            digest = hashlib.sha256(png).hexdigest()
            lines.append(dump_record(record, label=int(label), file=name, file_sha256=digest))
            files[self.images / name] = png
        data = b"".join(line + b"\n" for line in lines)
        write_atomically(self.path(k), data)
        make_folders(*dict.fromkeys(path.parent for path in files))
        write_all(files)
        digest = hashlib.sha256(data).hexdigest()
        return Shard(self.path(k).name, len(images), digest, pixels_sha256(images, labels))

    def verify(self, k: int, shard: Shard) -> None:
        """Check the files of batch `k` against its manifest line.

        Raises:
            DataError: a file is missing, cannot be read, or its bytes are not those recorded; the
                message names it.
        """
        path = self.path(k)
        if sha256_file(path) != shard.sha256:
            raise difference(path.name, self.read(k), shard)
        pictures = self.pictures(k)
        missing = [picture for picture in pictures if not is_file(picture.path)]
        if missing:
            others = f", as are {len(missing) - 1} more" if missing[1:] else ""
            raise DataError(f"{missing[0].path} of {path.name} is missing{others}")
        for picture in pictures:
            png = _read(picture.path, limit=PNG_LIMIT)
            if hashlib.sha256(png).hexdigest() != picture.sha256:
                raise difference(self._name(picture), self.read(k), shard)

    def read(self, k: int) -> Iterator[Sample]:
        """Yield the samples of batch `k` in order, one at a time.

        Raises:
            DataError: a file is missing, damaged, or nothing that `write` writes.
        """
        for picture in self.pictures(k):
            png, name = _read(picture.path, limit=PNG_LIMIT), self._name(picture)
            check_png(png, name=name)
            yield Sample(picture.key, png, picture.label, picture.record)

    def remove(self, k: int) -> None:
        """Remove the PNGs of batch `k`, as far as they were written, and then what names them.

        Those that another batch names are its own: keys count images, and in a run of another
        length the same image may be of another batch.
        """
        for path in self._only_named(k):
            remove(path)
        remove(self.path(k))

    def pictures(self, k: int) -> list[Picture]:
        """What the record file of batch `k` lists; the PNGs themselves are not read.

        Raises:
            DataError: the file is missing, too large or nothing that `write` writes.
        """
        path = self.path(k)
        lines = _read(path, limit=RECORDS_LIMIT).splitlines()
        pictures = [
            self._picture(line, name=f"{path.name}: line {number}")
            for number, line in enumerate(lines, start=1)
        ]
        if not pictures:
            raise DataError(f"{path.name} holds no images")
        if len({picture.key for picture in pictures}) < len(pictures):
            raise DataError(f"{path.name} holds an image twice")
        return pictures

    def _picture(self, line: bytes, *, name: str) -> Picture:
        record = parse_record(line, name=name)
        file, digest = record.pop("file", None), record.pop("file_sha256", None)
        key, label = record.get("key"), record.get("label")
        if not isinstance(key, str) or not KEY.fullmatch(key):
            raise DataError(f'{name} has no "key" of letters, digits, - and _')
        if type(label) is not int or not 0 <= label < 10**LABEL_DIGITS:
            raise DataError(f'{name} has no class index as its "label"')
        folder = file.removesuffix(f"/{key}.png") if isinstance(file, str) else ""
        if file != f"{folder}/{key}.png" or not _CLASS.fullmatch(folder):
            raise DataError(f'{name} has no CLASS/{key}.png as its "file"')
        if not isinstance(digest, str):
            raise DataError(f'{name} has no "file_sha256"')
        return Picture(self.images / file, digest, key, label, record)

    def _named(self, k: int) -> set[Path]:
        """The PNGs that a record file of batch `k`, if there is one, names."""
        try:
            return {picture.path for picture in self.pictures(k)}
        except DataError:  # none, or damaged: then nothing is known to be ours
            return set()

    def _only_named(self, k: int) -> set[Path]:
        """Of those the PNGs that no other batch names."""
        named = self._named(k)
        for path in self.records.iterdir() if named else ():
            found = self.names.fullmatch(path.name)
            if found and int(found[1]) != k:
                named -= self._named(int(found[1]))
        return named

    def _name(self, picture: Picture) -> str:
        return f"{self.images.name}/{picture.path.parent.name}/{picture.path.name}"


def _read(path: Path, *, limit: int) -> bytes:
    try:
        with open(path, "rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise DataError(f"cannot read {path}: {said(error)}") from error
    if len(data) > limit:
        raise DataError(f"{path} has more than {limit} bytes")
    return data
