"""A request to stop, as it goes round among workers none of whom waits for another."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.distributed import Store  # type: ignore[attr-defined]  # exported

#: Where it is rung, and seconds between two looks.
_KEY, _LOOK = "stop", 1.0


class StopBell:
    """Whoever is asked to stop rings it, and the others hear it within a second.

    A thread of its own looks into the store that connected processes share: whoever holds that may
    be gone, or hang, and then no look comes to an end.
    """

    def __init__(self, store: Store) -> None:
        """Begin to listen; `store` belongs to one connection of the processes."""
        self._store = store
        self._ringing = self._heard = self._closed = False
        self._gone: RuntimeError | None = None
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def ring(self) -> None:
        """Tell the others, as soon as the store is reached."""
        self._ringing = True
        self._wake.set()

    def heard(self) -> bool:
        """Whether any process has rung it.

        Raises: RuntimeError: the store is not reached any more.
        """
        if self._gone is not None:
            raise self._gone
        return self._heard or self._ringing

    def close(self) -> None:
        """Listen no more; what was rung has been told, unless the store hangs."""
        self._closed = True
        self._wake.set()
        self._thread.join(_LOOK)

    def _listen(self) -> None:
        while True:
            closed = self._closed
            try:
                if self._ringing:
                    self._store.set(_KEY, "")
                self._heard = self._heard or self._store.check([_KEY])
            except RuntimeError as error:  # whatever torch says of a connection
                self._gone = error
                return
            if closed:
                return
            self._wake.wait(_LOOK)
            self._wake.clear()
