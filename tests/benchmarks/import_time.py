"""Seconds that ``import microbudget`` takes in a fresh interpreter: median of ten.

python tests/benchmarks/import_time.py
"""

import statistics
import subprocess
import sys

CODE = "import time; t = time.perf_counter(); import microbudget; " + (
    "print(time.perf_counter() - t)"
)

if __name__ == "__main__":
    command = [sys.executable, "-c", CODE]
    seconds = [float(subprocess.check_output(command)) for _ in range(11)][1:]
    low, high = min(seconds), max(seconds)
    print(
        f"{statistics.median(seconds) * 1e3:.0f} ms ({low * 1e3:.0f}–{high * 1e3:.0f})"
    )
