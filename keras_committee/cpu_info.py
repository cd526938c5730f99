"""What Linux reports of the CPU."""

from pathlib import Path

_CPU_INFO = Path("/proc/cpuinfo")


def cpu_info(*names: str, file: Path = _CPU_INFO) -> str:
    """Return the value of the first line with one of these names, `"model name"` or `"flags"`; "" if there is none."""
    try:
        lines = file.read_text(errors="replace").splitlines()
    except OSError:
        return ""
    fields = (line.partition(":") for line in lines)
    return next((value.strip() for name, _, value in fields if name.strip() in names), "")
