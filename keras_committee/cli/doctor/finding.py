"""What is a finding of `doctor`, and how is it told?"""

import dataclasses
from typing import Literal

State = Literal["ok", "missing", "wrong"]


@dataclasses.dataclass(frozen=True)
class Finding:
    """One line of `doctor`.

    Args:
        part: What was looked at.
        state: Whether it is as it should be.
        text: What was found.
        mend: The command, or the act, that mends it; empty where nothing needs mending.
        needed: Whether `train` cannot work while it is not ok.
    """

    part: str
    state: State
    text: str
    mend: str = ""
    needed: bool = False

    def __str__(self) -> str:
        lines = [f"{self.state:<8} {self.part}: {self.text}", *([f"         {self.mend}"] if self.mend else [])]
        return "\n".join(lines)
