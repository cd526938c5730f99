"""Which numbers stand on an axis?"""

import math

from matplotlib.axis import Axis
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator


def round_numbers(axis: Axis, low: float, high: float) -> None:
    """Round numbers between `low` and `high`, written out, on a logarithmic axis."""
    digits = (1, 2, 5) if high / low > 12 else (1, 1.5, 2, 3, 4, 5, 7)
    digits = digits if high / low > 2.5 else tuple(range(1, 10)) + (1.2, 1.4, 1.6, 1.8, 2.5, 3.5)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [digit * 10.0**power for power in powers for digit in digits if low <= digit * 10.0**power <= high]
    axis.set_major_locator(FixedLocator(sorted(ticks)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))


def whole_numbers(axis: Axis, most: int) -> None:
    """A few whole numbers from 1 to `most`, though the axis may go on."""
    ticks = MaxNLocator(8, integer=True).tick_values(1, max(most, 2))
    axis.set_major_locator(FixedLocator([tick for tick in ticks if 1 <= tick <= most]))
