"""Finished layers of a long quantization, kept so that it can be interrupted."""

import contextlib
from dataclasses import fields
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ..core.errors import QuantizationError
from ..core.files import atomic_path
from ..quantization.affine import Quantized

_TENSORS = [f.name for f in fields(Quantized) if f.name != "bits"]


class Kept:
    """A folder with one file a layer, or nothing at all when there is no folder."""

    def __init__(self, folder: str | Path | None, run_id: str):
        self.folder = Path(folder) if folder else None
        self.run_id = run_id

    def write(self, layer: int, found: dict[str, Quantized]) -> None:
        if self.folder is None or not found:
            return
        tensors = {
            f"{name}|{part}": getattr(matrix, part).cpu().contiguous()
            for name, matrix in found.items()
            for part in _TENSORS
        }
        bits = next(iter(found.values())).bits
        with atomic_path(self._path(layer), QuantizationError) as temporary:
            save_file(tensors, temporary, {"run": self.run_id, "bits": str(bits)})

    def read(self, layer: int, device) -> dict[str, Quantized] | None:
        """A finished layer, or None.

        Raises:
            QuantizationError: it is another run's, or damaged.
        """
        if self.folder is None or not self._path(layer).is_file():
            return None
        parts: dict[str, dict[str, torch.Tensor]] = {}
        try:
            with safe_open(self._path(layer), "pt") as file:
                notes = file.metadata() or {}
                for key in file.keys():  # noqa: SIM118 - not a dict
                    name, _, part = key.rpartition("|")
                    tensor = file.get_tensor(key).to(device)
                    parts.setdefault(name, {})[part] = tensor
        except (SafetensorError, OSError) as error:
            raise QuantizationError(
                f"{self._path(layer)} is damaged ({error}). Delete {self.folder} to "
                "start anew."
            ) from error
        if notes.get("run") != self.run_id:
            raise QuantizationError(
                f"{self.folder} holds layers of another run (other weights, "
                "calibration or settings). Delete it to start anew, or give this run a "
                "folder of its own."
            )
        bits = int(notes["bits"])
        return {name: Quantized(**own, bits=bits) for name, own in parts.items()}

    def clear(self) -> None:
        """Remove the layers, and the folder unless something else is in it."""
        if self.folder is None:
            return
        for path in self.folder.glob("layer-*.safetensors"):
            path.unlink()
        with contextlib.suppress(OSError):  # not empty, or never made
            self.folder.rmdir()

    def _path(self, layer: int) -> Path:
        return self.folder / f"layer-{layer:03d}.safetensors"
