"""Where torch's compiler keeps what it has compiled: a folder that can be written.

torch makes the folder when `torch._dynamo` is imported, which timm, torchvision and `torch.optim`
do, and none of them can be imported where that fails, whether something is compiled or not.
"""

from __future__ import annotations

import atexit
import getpass
import os
import re
import shutil
import tempfile

from dreamkd.errors import RunError
from dreamkd.events import Hint, OnEvent

_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"


def settle_compiler_cache(on_event: OnEvent, *, needed: bool = True) -> None:
    """Where neither the folder that is asked for nor torch's own can be used, give it another.

    A folder of ours in the user's cache; else one that is removed when the process ends.

    Args: needed: whether nothing can be done without; else it is left to torch.
    Raises: RunError: it is needed, and no folder can be written.
    """
    asked = os.environ.get(_VARIABLE)
    if asked is not None:
        if _usable(asked):
            return
        del os.environ[_VARIABLE]
        on_event(Hint(f"{_VARIABLE} {asked} cannot be written; the default is used"))
    default = _default()
    if default and _usable(default):
        return
    folder = _of_the_user() or (_passing() if default else "")
    if folder:
        os.environ[_VARIABLE] = folder
        if not default:
            os.environ["TMPDIR"] = folder  # the compiler writes temporary files as well
        on_event(Hint(f"compiled code is kept in {folder}: {default or '/tmp'} cannot be written"))
    elif needed:
        raise RunError(
            f"no folder for compiled code can be written ({default or '/tmp'}, ~/.cache); "
            f"set {_VARIABLE} and TMPDIR to one that can"
        )


def _default() -> str:
    """The place that `default_cache_dir` of `torch._inductor` finds; none without a TMPDIR."""
    try:
        user = getpass.getuser()
    except (KeyError, ModuleNotFoundError, OSError):  # a container's user may have no name
        user = f"uid_{os.getuid()}" if hasattr(os, "getuid") else "unknown_user"
    try:
        root = tempfile.gettempdir()
    except FileNotFoundError:
        return ""
    return os.path.join(root, "torchinductor_" + re.sub(r'[\\/:*?"<>|]', "_", user))


def _of_the_user() -> str:
    root = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    folder = os.path.join(root, "dreamkd", "inductor")
    return folder if os.path.isabs(folder) and _usable(folder) else ""  # "~": has no home


def _passing() -> str:
    try:
        folder = tempfile.mkdtemp(prefix="dreamkd-inductor-")
    except OSError:
        return ""
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _usable(folder: str) -> bool:
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK | os.X_OK)
