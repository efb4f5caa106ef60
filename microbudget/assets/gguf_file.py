"""What is in a GGUF file: header, metadata, and a table of tensors. Reads no weights.

Layout (version 3, little-endian): magic ``GGUF``, version, number of tensors, number of
key-value pairs; the pairs; for every tensor name, shape, type and offset; padding to
``general.alignment``; the tensors' data. Shapes are stored fastest dimension first.
"""

import os
import struct
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import gguf
import numpy as np

from ..core.errors import QuantizationError

_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?",
            10: "Q", 11: "q", 12: "d"}  # fmt: skip
_STRING, _ARRAY = 8, 9
_VERSIONS = (2, 3)
_MANY = 10_000_000  # more keys, tensors or array elements than any file has
_FRESH = "Delete it and make or fetch it again."


@dataclass(frozen=True)
class Tensor:
    """One tensor as the file stores it.

    Attributes:
        shape: as torch has it, (out, in) for a matrix.
        type: ``F16``, ``Q8_0``, ``Q4_K`` …
        offset: of its first byte in the file.
        size: bytes.
    """

    name: str
    shape: tuple[int, ...]
    type: str
    offset: int
    size: int

    @property
    def weights(self) -> int:
        return int(np.prod(self.shape))

    @property
    def bits(self) -> float:
        """Bits a weight, scales included."""
        return 8 * self.size / self.weights


@dataclass(frozen=True)
class GgufFile:
    """A file's contents, without the weights.

    Attributes:
        size: bytes on disk.
    """

    path: Path
    version: int
    metadata: dict[str, object]
    tensors: tuple[Tensor, ...]
    size: int

    @cached_property
    def weights(self) -> int:
        """All weights of the model, embeddings included."""
        return sum(tensor.weights for tensor in self.tensors)

    @property
    def bits(self) -> float:
        """Bits on disk for each weight: tensors, scales, tokenizer and header."""
        return 8 * self.size / max(1, self.weights)

    def types(self) -> Counter:
        """Tensor type -> how many tensors have it."""
        return Counter(tensor.type for tensor in self.tensors)

    def bytes_by_type(self) -> dict[str, int]:
        """Tensor type -> bytes, the largest first; the rest as ``header``."""
        found: Counter = Counter()
        for tensor in self.tensors:
            found[tensor.type] += tensor.size
        found["header"] = self.size - sum(found.values())
        return dict(found.most_common())

    def data(self, name: str) -> np.ndarray:
        """The raw bytes of one tensor, uint8 (size,).

        Raises:
            QuantizationError: there is no tensor of that name.
        """
        for tensor in self.tensors:
            if tensor.name == name:
                return np.fromfile(
                    self.path, np.uint8, count=tensor.size, offset=tensor.offset
                )
        raise QuantizationError(f"{self.path.name} has no tensor {name!r}.")


def read(path: str | os.PathLike) -> GgufFile:
    """Read a file's header, metadata and table of tensors, and check that it is whole.

    Raises:
        QuantizationError: no GGUF file, an unknown version or tensor type, or one that
            is truncated or damaged; the message says where.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            return _Reader(file, path, size).everything()
    except OSError as error:
        raise QuantizationError(f"{path} can't be read ({error.strerror}).") from error


class _Reader:
    def __init__(self, file, path: Path, size: int):
        self.file, self.path, self.size = file, path, size

    def everything(self) -> GgufFile:
        magic = self.file.read(4)
        if magic != b"GGUF":
            raise QuantizationError(
                f"{self.path.name} is no GGUF file: it begins with {magic!r}, not "
                "b'GGUF'."
            )
        version = self.number("I")
        if version not in _VERSIONS:
            raise QuantizationError(
                f"{self.path.name} is GGUF version {version}; versions 2 and 3 in "
                "little-endian order are known here."
            )
        tensors, pairs = self.count("tensors"), self.count("keys")
        metadata = {}
        for _ in range(pairs):
            key = self.string()
            metadata[key] = self.value(self.number("I"))
        entries = [self.entry() for _ in range(tensors)]
        alignment = metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 1:
            raise self.damaged(f"alignment {alignment!r}")
        start = -(-self.file.tell() // alignment) * alignment
        return GgufFile(
            self.path, version, metadata,
            tuple(self.placed(start, *entry) for entry in entries), self.size,
        )  # fmt: skip

    def entry(self) -> tuple:
        name = self.string()
        dimensions = self.number("I")
        if not 1 <= dimensions <= 4:
            raise self.damaged(f"tensor {name!r} has {dimensions} dimensions")
        shape = tuple(self.number("Q") for _ in range(dimensions))[::-1]
        return name, shape, self.number("I"), self.number("Q")

    def placed(self, start, name, shape, kind, offset) -> Tensor:
        try:
            kind = gguf.GGMLQuantizationType(kind)
        except ValueError as error:
            raise QuantizationError(
                f"{self.path.name}: tensor {name!r} has type {kind}, which the "
                "installed gguf package doesn't know: a newer program wrote it, or "
                "it is damaged."
            ) from error
        block, bytes_a_block = gguf.GGML_QUANT_SIZES[kind]
        if 0 in shape or shape[-1] % block:
            raise self.damaged(f"tensor {name!r} of shape {shape} in blocks of {block}")
        size = int(np.prod(shape, dtype=object)) // block * bytes_a_block
        end = start + offset + size
        if end > self.size:
            raise QuantizationError(
                f"{self.path.name} is truncated: it has {self.size:,} bytes, and "
                f"tensor {name!r} ends at {end:,}. {_FRESH}"
            )
        return Tensor(name, shape, kind.name, start + offset, size)

    def value(self, kind: int):
        if kind in _NUMBERS:
            return self.number(_NUMBERS[kind])
        if kind == _STRING:
            return self.string()
        if kind != _ARRAY:
            raise self.damaged(f"a value of type {kind}")
        inner, n = self.number("I"), self.count("elements")
        if inner == _ARRAY:
            raise self.damaged("an array of arrays")
        if inner in _NUMBERS:
            form = f"<{n}{_NUMBERS[inner]}"
            return list(struct.unpack(form, self.take(struct.calcsize(form))))
        return [self.value(inner) for _ in range(n)]

    def string(self) -> str:
        return self.take(self.count("characters")).decode("utf-8", errors="replace")

    def number(self, form: str):
        return struct.unpack(f"<{form}", self.take(struct.calcsize(f"<{form}")))[0]

    def count(self, what: str) -> int:
        n = self.number("Q")
        if n > _MANY:
            raise self.damaged(f"{n} {what}")
        return n

    def take(self, n: int) -> bytes:
        found = self.file.read(n)
        if len(found) < n:
            raise QuantizationError(
                f"{self.path.name} is truncated: it ends within its header, after "
                f"{self.size:,} bytes. {_FRESH}"
            )
        return found

    def damaged(self, what: str) -> QuantizationError:
        return QuantizationError(
            f"{self.path.name} is damaged: {what}, near byte {self.file.tell():,}. "
            f"{_FRESH}"
        )
