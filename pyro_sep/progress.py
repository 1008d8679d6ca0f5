"""How far a long run is, how long it still takes, and how it goes on after an interrupt."""

import sys
import time as clock
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from tqdm import tqdm

from pyro_sep.checks.names import printable

LINE_SECONDS = 30.0  # between lines


def duration(seconds: float) -> str:
    """Seconds in words, such as ``40 s``, ``12 min`` or ``3.5 h``.

    >>> duration(40), duration(720), duration(12600)
    ('40 s', '12 min', '3.5 h')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


@contextmanager
def resumable(checkpoint: Path) -> Iterator[None]:
    """Say on standard error how a run goes on that is interrupted inside the context."""
    try:
        yield
    except KeyboardInterrupt:
        known = checkpoint.exists()
        kept = f"goes on from {checkpoint}" if known else "begins again, nothing was kept yet"
        print(f"\n{printable(f'the same command {kept}')}", file=sys.stderr)
        raise


class Progress:
    """Progress of a run on standard error: a bar in a terminal, elsewhere a line now and then.

    Args:
        show: whether to say anything.
        total: what is to be done, in any unit; more may turn out to be.
    """

    def __init__(self, show: bool, total: float = 1.0) -> None:
        self.show, self.total, self.done = show, total, 0.0
        self._bar = tqdm(
            total=100,
            disable=not (show and sys.stderr.isatty()),
            bar_format="{l_bar}{bar}| {elapsed}, {remaining} left{postfix}",
        )
        self._resumed, self._note = 0.0, ""
        self._started = self._said = clock.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.close()

    def resume(self, done: float) -> None:
        """Go on from where an earlier run was."""
        self.done = self._resumed = done
        self._bar.initial = self._bar.n = self._percent

    @property
    def _percent(self) -> int:
        return min(99, int(100 * self.done / self.total))

    def note(self, text: str) -> None:
        """Say more beside the bar, or in the lines."""
        self._note = f", {text}"
        self._bar.set_postfix_str(text, refresh=False)

    def advance(self, amount: float) -> None:
        """Note what was done."""
        self.done += amount
        if not self.show:
            return
        if not self._bar.disable:
            self._bar.update(self._percent - self._bar.n)
            return
        now = clock.monotonic()
        if now - self._said >= LINE_SECONDS:
            self._said = now
            share = (self.done - self._resumed) / (max(self.total, self.done) - self._resumed)
            left = (now - self._started) * max(1 / share - 1, 0.0)
            line = f"{self._percent} %, {duration(left)} left{self._note}"
            print(line, file=sys.stderr, flush=True)

    def finish(self) -> None:
        """All is done."""
        self.done = self.total
        if not self._bar.disable:
            self._bar.update(100 - self._bar.n)
