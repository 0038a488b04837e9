"""How fast work goes, for people."""

import time


class ProgressRate:
    """Tells the rate of a piece of work, and the time left, from what is reported of it.

        pace = ProgressRate("images")
        pace(done, total)  # "1,234 images/s, 3 min left"

    What was done before the first report, as by an earlier run, does not count.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._began: tuple[int, float] | None = None

    def __call__(self, done: int, total: int) -> str:
        """Empty until there is something to tell."""
        now = time.monotonic()
        if self._began is None:
            self._began = done, now
        before, began = self._began
        if done <= before or now <= began:
            return ""
        rate = (done - before) / (now - began)
        return f"{rate:,.0f} {self._what}/s, {format_duration((total - done) / rate)} left"


def format_duration(seconds: float) -> str:
    """12 s, 3 min, 2.5 h."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
