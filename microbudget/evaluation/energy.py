"""Energy, where the machine has a counter; otherwise it is 'not measured'.

The GPU's counter is read through NVML when the package nvidia-ml-py is installed.
"""

import sys
from pathlib import Path

_RAPL = Path("/sys/class/powercap")


class EnergyMeter:
    """Joules since ``start``, from the CPU package's and the GPU's own counters.

    Attributes:
        method: what was read, or ``"not measured"``.
    """

    def __init__(self, powercap: Path = _RAPL):
        self._counters = [
            zone
            for zone in sorted(powercap.glob("intel-rapl:*"))
            if zone.name.count(":") == 1 and _read(zone / "energy_uj") is not None
        ]
        self._gpu = _nvml_handle()
        methods = ["RAPL (CPU package)"] * bool(self._counters)
        methods += ["NVML (GPU)"] * bool(self._gpu)
        self.method = " + ".join(methods) or "not measured"
        self._start = self._look()

    def joules(self) -> float | None:
        """Joules since the meter was made; None when nothing can be read."""
        if self.method == "not measured":
            return None
        total = 0.0
        for before, after, wrap in zip(
            self._start, self._look(), self._wraps(), strict=True
        ):
            total += (after - before) % wrap if wrap else after - before
        return total * 1e-6

    def _look(self) -> list[float]:
        """Microjoules of every counter."""
        values = [_read(zone / "energy_uj") or 0 for zone in self._counters]
        if self._gpu:
            nvml, handle = self._gpu
            values.append(nvml.nvmlDeviceGetTotalEnergyConsumption(handle) * 1e3)
        return values

    def _wraps(self) -> list[int]:
        """Where each counter starts again from zero (0: never)."""
        wraps = [_read(zone / "max_energy_range_uj") or 0 for zone in self._counters]
        return wraps + [0] * bool(self._gpu)


def _read(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None  # absent, or readable by root alone


def _nvml_handle():
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return None
    try:
        import pynvml

        pynvml.nvmlInit()
        # by identity: NVML counts cards that CUDA_VISIBLE_DEVICES hides
        card = torch.cuda.get_device_properties(torch.cuda.current_device())
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{card.uuid}")
        pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except Exception:  # no pynvml, no permission, or a card without a counter
        return None
    return pynvml, handle
