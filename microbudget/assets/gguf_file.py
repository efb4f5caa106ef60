"""What is in a GGUF file: metadata and a table of tensors, by gguf's own reader.

Layout (version 3): magic ``GGUF``, version, number of tensors, number of key-value
pairs; the pairs; for every tensor name, shape, type and offset; padding; the tensors'
data. Shapes are stored fastest dimension first. No weights are read here.
"""

import math
import os
import struct
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import gguf

from ..core.errors import QuantizationError


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
        """How many it holds."""
        return math.prod(self.shape)

    @property
    def bits(self) -> float:
        """Bits per weight, scales included."""
        return 8 * self.size / self.weights


@dataclass(frozen=True)
class GgufFile:
    """A file's contents, without the weights.

    Attributes:
        size: bytes on disk.
    """

    path: Path
    metadata: dict[str, object]
    tensors: tuple[Tensor, ...]
    size: int

    @property
    def weights(self) -> int:
        """All weights of the model, embeddings included."""
        return sum(tensor.weights for tensor in self.tensors)

    @property
    def bits(self) -> float:
        """Bits on disk for each weight: tensors, scales, tokenizer and header."""
        return 8 * self.size / self.weights

    def types(self) -> Counter:
        """Tensor type -> how many tensors have it."""
        return Counter(tensor.type for tensor in self.tensors)


def read_gguf(path: str | os.PathLike) -> GgufFile:
    """Read a file's metadata and its table of tensors, and check that it is whole.

    Raises:
        QuantizationError: it isn't there, is no GGUF file, or is damaged or cut short.
    """
    path = Path(path)
    try:
        reader = _FastReader(path)
        metadata = {name: field.contents() for name, field in reader.fields.items()}
        tensors = tuple(
            Tensor(
                found.name,
                tuple(found.shape[::-1].tolist()),
                found.tensor_type.name,
                int(found.data_offset),
                int(found.n_bytes),
            )
            for found in reader.tensors
        )
        return GgufFile(path, metadata, tensors, path.stat().st_size)
    except OSError as error:
        raise QuantizationError(f"{path} can't be read ({error.strerror}).") from error
    except Exception as error:  # the reader and numpy raise all kinds of their own
        raise QuantizationError(
            f"{path.name} is no GGUF file, or it is damaged or cut short "
            f"({type(error).__name__}: {error}). Delete it and make or fetch it again."
        ) from error


class _FastReader(gguf.GGUFReader):
    """gguf's reader, but a vocabulary of a hundred thousand tokens don't take seconds.

    GGUFReader (0.19) makes several numpy arrays for each element of an array: 1.9 s for
    a file of SmolLM2's. Here an array of numbers is one numpy array, and one of
    strings is walked over through Python's own view of the bytes: 0.1 s.
    """

    def _get_field_parts(self, orig_offs: int, raw_type: int) -> tuple:
        if raw_type != gguf.GGUFValueType.ARRAY:
            return super()._get_field_parts(orig_offs, raw_type)
        view = memoryview(self.data)
        kind, count = struct.unpack_from("<IQ", view, orig_offs)
        kind, start = gguf.GGUFValueType(kind), orig_offs + 12
        types = [gguf.GGUFValueType.ARRAY, kind]
        if kind != gguf.GGUFValueType.STRING:
            numbers = self._get(start, self.gguf_scalar_to_np[kind], count)
            if len(numbers) != count:
                raise ValueError("an array ends behind the end of the file")
            return 12 + numbers.nbytes, [numbers], [0], types
        strings, offset = [], start
        for _ in range(count):
            (length,) = struct.unpack_from("<Q", view, offset)
            offset += 8 + length
            strings.append(view[offset - length : offset])
        return offset - orig_offs, strings, range(count), types
