"""Progress on stderr: a line that grows in a terminal or notebook, a few lines elsewhere."""

from __future__ import annotations

import sys
import time


class Progress:
    """Counts up to `total`. Silent if not `shown`."""

    def __init__(self, what: str, total: int, shown: bool) -> None:
        # programs without a console have no stderr
        self.what, self.total, self.done, self.shown = what, max(total, 1), 0, shown and sys.stderr is not None
        terminal = getattr(sys.stderr, "isatty", None)
        self.live = (terminal is not None and terminal()) or "ipykernel" in sys.modules
        self.told, self.start = 0.0, time.monotonic()

    def __call__(self, more: int) -> None:
        """Adds what was done since."""
        self.done += more
        now = time.monotonic()
        if self.shown and self.live and now - self.told > 0.1:
            self.told = now
            self._line("\r", "")

    def finish(self) -> None:
        self.done = self.total
        if self.shown:
            self._line("\r" if self.live else "", "\n")

    def _line(self, before: str, after: str) -> None:
        share = min(self.done / self.total, 1.0)
        bar = "█" * round(share * 24) + "·" * (24 - round(share * 24))
        seconds = time.monotonic() - self.start
        sys.stderr.write(f"{before}{self.what} {bar} {share:4.0%} {seconds:5.1f} s{after}")
        sys.stderr.flush()
