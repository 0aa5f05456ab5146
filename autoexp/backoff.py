"""Back-off: the wait before a retry, longer after each failure, up to a bound.

Whoever waits does not repeat a call, as `tenacity` and `stamina` do: a step that failed may be
replaced by another one before its time has come, and a query asks about other jobs then. So all
that is needed is a number of seconds.
"""

import random


def delay_s(failures: int, first_s: float, longest_s: float, jitter: float = 0.2) -> float:
    """Seconds to wait after `failures` failures in a row.

    `first_s` after the first, twice as long after each further one, never above `longest_s`; drawn
    at random within ± `jitter` of that, so that what failed together is not tried again together.
    For any number of failures it is finite and between 0 and longest_s * (1 + jitter).
    """
    # The exponent is bounded before the power is taken: 2.0 ** 1024 raises OverflowError.
    doubled = first_s * 2.0 ** min(max(failures - 1, 0), 60)
    return max(0.0, min(doubled, longest_s) * random.uniform(1 - jitter, 1 + jitter))
