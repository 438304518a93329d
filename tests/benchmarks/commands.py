"""`dreamkd` as its users start it, with its result and its time kept."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from dreamkd import config, models
from dreamkd.config import InspectConfig
from dreamkd.errors import ConfigError
from dreamkd.examples import Examples, read_labelled
from dreamkd.models import Classifier


def load(model: str, options: str) -> Classifier:
    """A model as `dreamkd` loads it with `options`, such as `--mean .5,.5,.5`.

    Raises: ConfigError: there is no such option, or a value is not legal.
    """
    flags = {field.flag: field for field in config.options(InspectConfig)}
    given: dict[str, Any] = {"model": model}
    words = iter(shlex.split(options))
    for word in words:
        if word not in flags:
            raise ConfigError(f"no option {word}")
        field = flags[word]
        given[field.name] = True if field.is_flag else next(words, "")
    settings = config.merge(InspectConfig, given)
    return models.load(settings.model, **settings.load_arguments())


def labelled(spec: str, teacher: Classifier) -> Examples:
    """Every image of a data set, as the teacher wants and numbers them."""
    found = read_labelled(spec, teacher)
    assert found is not None
    return found.examples


def run(command: str, out: Path) -> tuple[dict[str, Any], float]:
    """The result of a `dreamkd` command, and its wall seconds; NaN if it was interrupted.

    Raises: SystemExit: the command failed and has said why.
    """
    timing, whole = out / "wall-seconds.json", not out.exists()
    began = time.perf_counter()
    words = [sys.executable, "-m", "dreamkd.cli", *shlex.split(command)]
    done = subprocess.run(
        [*words, "--out", str(out), "--json", "--quiet"],
        stdout=subprocess.PIPE,
        check=False,
        text=True,
    )
    if done.returncode:
        raise SystemExit(f"exit code {done.returncode} of dreamkd {command}")
    if whole:
        timing.write_text(json.dumps(time.perf_counter() - began))
    seconds = json.loads(timing.read_text()) if timing.exists() else float("nan")
    return json.loads(done.stdout), seconds
