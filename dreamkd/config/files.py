"""Settings in a file."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Container
from pathlib import Path
from typing import Any

from dreamkd.errors import ConfigError

#: Bytes that a file of settings has at most.
_FILE_LIMIT = 2**24


def read_file(path: Path, *, known: Container[str]) -> dict[str, Any]:
    """The settings in a TOML or JSON file, or in a run's `resolved.json` (its `config`).

    Args: known: the names of options; with a table `config` none may stand outside of it.
    Raises: ConfigError: missing, unreadable, or not a table of settings.
    """
    try:
        with path.open("rb") as file:
            content = file.read(_FILE_LIMIT + 1)
        if len(content) > _FILE_LIMIT:
            raise ConfigError(f"--config {path}: larger than 16 MiB, so not a file of settings")
        text = content.decode("utf-8-sig")  # editors may begin it with a mark
        values = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--config {path}: cannot be read ({error})") from None
    except (ValueError, RecursionError) as error:  # ValueError: also a number of 5,000 digits
        raise ConfigError(f"--config {path}: not valid TOML or JSON ({error})") from None
    if isinstance(values, dict) and isinstance(values.get("config"), dict):
        # What a run records beside them, such as its teacher, may have the name of an option.
        outside = () if "requested" in values else values
        if key := next((key for key in outside if key.replace("-", "_") in known), None):
            raise ConfigError(
                f"--config {path}: {key} is given beside the table 'config'; "
                "put all settings into that table, or none"
            )
        values = values["config"]
    if not isinstance(values, dict):
        raise ConfigError(f"--config {path}: expected a table of settings")
    return values
