"""What a process has used of memory; ru_maxrss would count that of the process that started it, too."""

from __future__ import annotations


def peak_mb() -> float:
    """Return the most memory that this process has held so far, in 10**6 bytes."""
    with open("/proc/self/status", encoding="ascii") as status:
        (peak,) = (int(line.split()[1]) for line in status if line.startswith("VmHWM:"))
    return 1024 * peak / 1e6
