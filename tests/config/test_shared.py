"""The file of class names."""

from pathlib import Path

import pytest

from dreamkd.config import InspectConfig
from dreamkd.errors import ConfigError


@pytest.fixture
def names(tmp_path: Path) -> Path:
    return tmp_path / "names"


@pytest.mark.parametrize(
    ("content", "read"),
    [
        (b"cat\ndog\n", ("cat", "dog")),
        (b"cat\ndog", ("cat", "dog")),
        (b"cat\r\ndog\r\n", ("cat", "dog")),
        (b"\xef\xbb\xbfcat\ndog\n", ("cat", "dog")),
        ("a\u0085b\nc\u2028d\ne\x0cf\n".encode(), ("a\u0085b", "c\u2028d", "e\x0cf")),
    ],
    ids=["lines", "no last newline", "Windows", "byte-order mark", "letters that split lines"],
)
def test_every_line_is_a_name(content: bytes, read: tuple[str, ...], names: Path) -> None:
    names.write_bytes(content)
    config = InspectConfig(model="m", class_names=str(names))
    assert config.load_arguments()["class_names"] == read


@pytest.mark.parametrize("content", [b"", b"\n", b"\xef\xbb\xbf", b" \r\n\r\n"])
def test_a_file_without_names_is_refused(content: bytes, names: Path) -> None:
    names.write_bytes(content)
    with pytest.raises(ConfigError, match=r"^--class-names .*names: holds no names$"):
        InspectConfig(model="m", class_names=str(names)).load_arguments()


def test_an_empty_line_is_no_name(names: Path) -> None:
    names.write_bytes(b"cat\n\n")
    with pytest.raises(ConfigError, match=r"line 2 is empty$"):
        InspectConfig(model="m", class_names=str(names)).load_arguments()
