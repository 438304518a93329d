"""Pretrained files: from a filled cache first, then from the network, failing fast without one."""

from __future__ import annotations

import re
import socket
from pathlib import Path
from urllib.parse import urlparse
from urllib.request import getproxies

import torch.hub

from dreamkd.errors import ModelError
from dreamkd.events import Note, OnEvent, ignore

_SAFE_NAMES = {
    "": "model.safetensors",
    "open_clip_pytorch_model.bin": "open_clip_model.safetensors",
}
_CONNECT_SECONDS = 5.0


def from_url(url: str, wanted_by: str, *, on_event: OnEvent = ignore) -> Path:
    """A file of the torch hub: `TORCH_HOME/hub/checkpoints/NAME`, downloaded when missing.

    Args: on_event: told of a download.

    Raises:
        ModelError: it is not there and cannot be downloaded.
    """
    name = Path(urlparse(url).path).name
    path = Path(torch.hub.get_dir()) / "checkpoints" / name
    if path.exists():
        return path
    hint = f"put {name} into {path.parent} (TORCH_HOME)"
    digest = re.search(r"-([0-9a-f]{8,})\.", name)  # torch's own convention
    try:
        _require_connection(url)
        path.parent.mkdir(parents=True, exist_ok=True)
        on_event(Note(f"downloading {url}"))
        torch.hub.download_url_to_file(url, str(path), digest and digest[1], progress=False)
    except (OSError, RuntimeError) as error:  # RuntimeError: the file's hash is wrong
        raise _unavailable(wanted_by, url, hint, error) from error
    return path


def from_hub(repository: str, filename: str, wanted_by: str, *, on_event: OnEvent = ignore) -> Path:
    """A file of the Hugging Face hub, downloaded when its cache lacks it; safetensors preferred.

    Args: on_event: told of a download.

    Raises:
        ModelError: it is not there and cannot be downloaded.
    """
    import huggingface_hub
    from huggingface_hub import constants
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    repository, _, revision = repository.partition("@")
    preferred = [_SAFE_NAMES[filename]] if filename in _SAFE_NAMES else []
    names = [*preferred, filename or "pytorch_model.bin"]
    for name in names:
        cached = huggingface_hub.try_to_load_from_cache(repository, name, revision=revision or None)
        if isinstance(cached, str):
            return Path(cached)
    url = f"{constants.ENDPOINT}/{repository}"
    hint = f"fill the hub's cache {constants.HF_HUB_CACHE} (HF_HUB_CACHE)"
    failure: Exception = FileNotFoundError(f"{repository} holds none of {', '.join(names)}")
    for name in names:
        try:
            _require_connection(url)  # the hub's client retries for a minute before it gives up
            on_event(Note(f"downloading {url}"))
            return Path(
                huggingface_hub.hf_hub_download(repository, name, revision=revision or None)
            )
        except LocalEntryNotFoundError as error:
            raise _unavailable(wanted_by, url, hint, error) from error
        except EntryNotFoundError:
            continue
        except Exception as error:
            if not _is_network(error):
                raise
            raise _unavailable(wanted_by, url, hint, error) from error
    raise _unavailable(wanted_by, url, hint, failure)


def _require_connection(url: str) -> None:
    """Raise OSError at once when nothing answers; a proxy has to be tried to be known."""
    if getproxies():
        return
    parsed = urlparse(url)
    port = parsed.port or (443 if parsed.scheme == "https" else 80)
    socket.create_connection((parsed.hostname or "", port), timeout=_CONNECT_SECONDS).close()


def _is_network(error: Exception) -> bool:
    package = type(error).__module__.partition(".")[0]
    return isinstance(error, OSError) or package.startswith(("httpx", "httpcore", "huggingface"))


def _unavailable(wanted_by: str, url: str, hint: str, error: Exception) -> ModelError:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return ModelError(
        f"the weights of {wanted_by} cannot be downloaded from {url} ({reason}); pass a local file "
        f"instead of the name (FILE --arch {wanted_by}), or {hint}"
    )
