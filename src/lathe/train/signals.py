"""Turn signals that ask a process to end into a flag that the loop reads between steps."""

from __future__ import annotations

import signal
import threading
from types import FrameType

ASKS = (signal.SIGTERM, signal.SIGINT)


class Signals:
    """Catch SIGTERM and SIGINT while the context lasts: `caught` names the first, a second SIGINT interrupts."""

    def __init__(self) -> None:
        self.caught: str | None = None
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():  # elsewhere Python allows no handlers
            self._before = {ask: signal.signal(ask, self._catch) for ask in ASKS}
        return self

    def __exit__(self, *exception: object) -> None:
        for ask, handler in self._before.items():
            signal.signal(ask, handler)  # pyright: ignore[reportArgumentType]

    def _catch(self, number: int, frame: FrameType | None) -> None:
        if self.caught is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.caught = self.caught or signal.Signals(number).name
