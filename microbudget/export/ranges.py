"""What calibration measures, kept in a file: one pass over the data serves many tries.

The file is ONNX Runtime's own, JSON with every tensor's least and largest value, signed
with the network and the method that it belongs to.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

from ..core.errors import QuantizationError
from ..core.files import atomic_path


@contextlib.contextmanager
def kept(
    path: str | os.PathLike, network: str | os.PathLike, method: str
) -> Iterator[tuple[Path, bool]]:
    """The file to hand over, and whether it holds ranges already.

    Where it doesn't, what is written to it appears at ``path`` when all went well.

    Args:
        network: .onnx file whose tensors they are. method: of finding ranges.

    Raises:
        QuantizationError: another network's ranges, or another method's.
    """
    path = Path(path)
    with open(network, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    mark = {"network": digest, "method": method}
    if path.is_file():
        _require(path, mark)
        yield path, True
        return
    with atomic_path(path, QuantizationError) as draft:
        draft.unlink()  # an empty file would be read
        yield draft, False
        whole = json.loads(draft.read_text(encoding="utf-8"))
        draft.write_text(json.dumps(whole | mark), encoding="utf-8")


def _require(path: Path, mark: dict[str, str]) -> None:
    try:
        whole = json.loads(path.read_text(encoding="utf-8"))
        same = all(whole.get(key) == value for key, value in mark.items())
    except (ValueError, AttributeError):  # cut short, or no table at all
        same = False
    if not same:
        raise QuantizationError(
            f"{path.name} was not measured in this network by {mark['method']!r}: "
            "delete it, and give calibration data."
        )
