"""Who is told of the progress of a member, and how is a member run?"""

import dataclasses
from typing import Any, Protocol


class Report(Protocol):
    """What a member tells while it trains; `index` is that of the member."""

    def resumed(self, index: int, step: int) -> None:
        """It goes on at `step`, counted over all epochs."""
        ...

    def steps_ended(self, index: int, steps: int = 1) -> None:
        """It has been trained on so many more global batches."""
        ...

    def epoch_ended(self, index: int, row: dict[str, Any]) -> None:
        """It has ended an epoch with this row of its history; its votes are on the disk."""
        ...

    def event(self, index: int, name: str, text: str, **fields: Any) -> None:
        """Something that belongs into the journal, and the sentence that tells it to the user."""
        ...

    def note(self, text: str) -> None:
        """A line for the user."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """How members are run and kept safe; what comes out is the recipe's affair.

    Args:
        deterministic: Whether equal runs on equal machines give equal bits, at a price in speed (README).
        save_seconds: Seconds between two checkpoints within an epoch.
        rollbacks: How often a diverged member goes back to its last checkpoint before it is given up.
        retries: How often a worker that died is started again before its member is given up.
        stall_seconds: Seconds without a word from a worker after which it is killed and counts as dead. The first step
            of a deep network is traced for minutes. Under `multiworker`: seconds without a step.
        peer_seconds: Under `multiworker`, seconds after which another host that does not answer is given up.
        start_seconds: Under `multiworker`, seconds to wait until all hosts have come.
        profile: The first and the last step that is profiled of each member, as `profiling` counts them, or None.
    """

    deterministic: bool = False
    save_seconds: float = 300.0
    rollbacks: int = 3
    retries: int = 2
    stall_seconds: float = 1800.0
    peer_seconds: float = 60.0
    start_seconds: float = 600.0
    profile: tuple[int, int] | None = None
