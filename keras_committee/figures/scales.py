"""Which numbers stand on an axis?"""

import math

from matplotlib.axis import Axis
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator


def round_numbers(axis: Axis, low: float, high: float) -> None:
    """Round numbers between `low` and `high`, written out, on a logarithmic axis."""
    few, some, many = (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 7), (1, 1.2, 1.4, 1.6, 1.8, 2, 2.5, 3, 3.5, 4, 5, 6, 7, 8, 9)
    digits = few if high / low > 12 else some if high / low > 2.5 else many
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [digit * 10.0**power for power in powers for digit in digits if low <= digit * 10.0**power <= high]
    axis.set_major_locator(FixedLocator(sorted(ticks)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))


def whole_numbers(axis: Axis, most: int) -> None:
    """A few whole numbers from 1 to `most`, though the axis may go on."""
    ticks = MaxNLocator(8, integer=True).tick_values(1, max(most, 2))
    axis.set_major_locator(FixedLocator([tick for tick in ticks if 1 <= tick <= most]))
