"""llama.cpp in this process, by the prebuilt wheel ``cyllama``: run and quantize."""

import os
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import cache
from importlib.metadata import version as package_version
from pathlib import Path

import numpy as np
import torch
from tokenizers.decoders import ByteLevel

from ...assets.gguf_file import GgufFile, read_gguf
from ...core import settings
from ...core.errors import EngineError, QuantizationError
from ...core.files import atomic_path
from ...evaluation.generation import Speed

# llama.cpp's numbers for what a whole file is quantized to (llama.h, llama_ftype)
KINDS = {"F16": 1, "Q4_0": 2, "Q8_0": 7, "Q2_K": 10, "Q3_K_M": 12, "Q4_K_M": 15,
         "Q5_K_M": 17, "Q6_K": 18}  # fmt: skip
_EMBEDDINGS = {"F16": 1, "Q8_0": 8}  # of one tensor (ggml.h, ggml_type)
CONTEXT = 1024  # tokens of prompt and answer together, at most


def version() -> str:
    """The wheel's version.

    Raises:
        EngineError: it isn't installed.
    """
    _library()
    return f"cyllama {package_version('cyllama')}"


def quantize_gguf(
    source: str | os.PathLike,
    target: str | os.PathLike,
    kind: str,
    embeddings: str | None = None,
) -> GgufFile:
    """llama.cpp's own quantizer: a GGUF file -> another with fewer bits.

    Tensors whose rows aren't whole blocks of 256 get another type than asked for; the
    returned table of tensors shows which.

    Args:
        kind: one of ``KINDS``, such as ``"Q4_K_M"``.
        embeddings: ``"Q8_0"`` or ``"F16"``, the type of the embeddings and the head;
            default: what llama.cpp chooses for this kind.

    Raises:
        QuantizationError: an unknown kind or type, no whole GGUF file, one that is
            quantized already, or llama.cpp failed. Nothing half-written is left.
        EngineError: llama.cpp isn't installed.
    """
    if kind not in KINDS:
        raise QuantizationError(f"kind={kind!r}: use one of {', '.join(KINDS)}.")
    if embeddings not in (None, *_EMBEDDINGS):
        raise QuantizationError(f"embeddings={embeddings!r}: use 'Q8_0' or 'F16'.")
    library, before = _library(), read_gguf(source)
    if strange := set(before.types()) - {"F16", "F32", "BF16"}:
        raise QuantizationError(
            f"{before.path.name} is quantized already ({', '.join(sorted(strange))}): "
            "start from float16, a second rounding adds to the first."
        )
    options = library.LlamaModelQuantizeParams()
    options.ftype = KINDS[kind]
    options.nthread = settings.load().threads
    if embeddings:
        options.token_embedding_type = _EMBEDDINGS[embeddings]
        options.output_tensor_type = _EMBEDDINGS[embeddings]
    target = Path(target)
    with atomic_path(target, QuantizationError) as temporary:
        try:
            library.model_quantize(str(before.path), str(temporary), options)
        except RuntimeError as error:
            raise QuantizationError(
                f"llama.cpp could not quantize {before.path.name} to {kind}. Are there "
                f"weights that aren't finite, and is the disk full? ({error})"
            ) from error
        written = read_gguf(temporary)
    return replace(written, path=target)


class Model(AbstractContextManager):
    """A GGUF file, loaded.

    Attributes:
        file: its metadata and table of tensors.
        speed: of the last answer.
    """

    engine = "llama.cpp in process"

    def __init__(self, path: str | os.PathLike):
        """Load a file.

        Raises:
            QuantizationError: no whole GGUF file.
            EngineError: llama.cpp isn't installed, or can't load it.
        """
        self.file = read_gguf(path)  # llama.cpp says little about broken files
        self.speed = None
        self._library = _library()
        options = self._library.LlamaContextParams()
        options.n_ctx = options.n_batch = options.n_ubatch = CONTEXT
        options.n_threads = options.n_threads_batch = settings.load().threads
        try:
            self._model = _model_type()(str(self.file.path))
            self._context = self._library.LlamaContext(self._model, options)
        except (ValueError, RuntimeError, MemoryError) as error:
            raise EngineError(
                f"llama.cpp can't load {self.file.path.name}: is it a model of a kind "
                f"that it knows, and is there memory for it? ({error})"
            ) from error
        self._vocabulary = self._model.get_vocab()

    def stream(self, prompt: str, max_tokens: int = 64) -> Iterator[str]:
        """Generate an answer greedily; ``speed`` says how fast it was.

        Args:
            prompt: with the model's chat template around it already.

        Yields:
            Pieces of text, none of them with half a character.

        Raises:
            EngineError: an empty prompt, or one that leaves no room in the context.
        """
        self._require_open()
        self.speed = None
        if not prompt.strip():
            raise EngineError("The prompt is empty.")
        ids = self._vocabulary.tokenize(prompt, True, True)  # as the file's notes say
        if len(ids) + max_tokens > CONTEXT:
            raise EngineError(
                f"{len(ids)} tokens of prompt and {max_tokens} of answer are more than "
                f"the context of {CONTEXT}: ask for less."
            )
        sampler = self._library.LlamaSampler(self._library.LlamaSamplerChainParams())
        sampler.add_greedy()
        self._context.kv_cache_clear()
        written, shown, seconds = [], "", []  # seconds of every pass
        batch, position = ids, 0
        while len(written) < max_tokens:
            started = time.perf_counter()
            self._context.decode(self._library.llama_batch_get_one(batch, position))
            token = sampler.sample(self._context, -1)
            seconds.append(time.perf_counter() - started)
            if self._vocabulary.is_eog(token):
                break
            written.append(token)
            text = self._text(written)
            if not text.endswith("�"):  # else: half a character
                yield text[len(shown) :]
                shown = text
            position += len(batch)
            batch = [token]
        self.speed = Speed(len(ids), seconds[0], len(seconds) - 1, sum(seconds[1:]))

    def _text(self, tokens: list[int]) -> str:
        """Tokens as text; llama.cpp's own detokenizer would eat byte-level spaces."""
        if self.file.metadata.get("tokenizer.ggml.model") != "gpt2":
            return self._vocabulary.detokenize(tokens)
        return ByteLevel().decode([self._vocabulary.get_text(t) for t in tokens])

    def scorer(self, ids: torch.Tensor) -> torch.Tensor:
        """Logits (batch, tokens, vocabulary) of token ids (batch, tokens)."""
        self._require_open()
        if ids.shape[1] > CONTEXT:
            raise EngineError(f"{ids.shape[1]} tokens, but a context of {CONTEXT}.")
        return torch.stack([self._logits(row.tolist()) for row in ids])

    def _logits(self, ids: list[int]) -> torch.Tensor:  # (tokens, vocabulary)
        self._context.kv_cache_clear()
        batch = self._library.LlamaBatch(n_tokens=len(ids), embd=0, n_seq_max=1)
        for position, token in enumerate(ids):
            batch.add(token, position, [0], True)
        self._context.decode(batch)
        logits = np.empty((len(ids), self._vocabulary.n_vocab), np.float32)
        for position in range(len(ids)):  # cyllama gives lists: one row at a time
            logits[position] = self._context.get_logits_ith(position)
        batch.close()
        return torch.from_numpy(logits)

    def close(self) -> None:
        """Free the memory."""
        if self._model is not None:
            self._context.close()
            self._model.close()
            self._model = self._context = None

    def _require_open(self) -> None:
        if self._model is None:  # llama.cpp would end the whole process
            raise EngineError(f"{self.file.path.name} is closed: load it again.")

    def __exit__(self, *exception) -> None:
        self.close()


def generation_call(path: str, prompt_tokens: int, new_tokens: int):
    """A call that reads a prompt and writes an answer, for the course's timers.

    Args:
        path: of a GGUF file.
        new_tokens: 1 times the reading alone.
    """
    model = Model(path)
    ids = [10 + i % 100 for i in range(prompt_tokens)]  # any tokens cost the same

    def call() -> None:
        model._context.kv_cache_clear()
        batch, position = ids, 0
        for _ in range(new_tokens):
            model._context.decode(model._library.llama_batch_get_one(batch, position))
            position, batch = position + len(batch), ids[:1]

    return call


@cache
def _library():
    try:
        from cyllama.llama import llama_cpp
    except ImportError as error:
        raise EngineError(
            "llama.cpp isn't installed: `pip install cyllama` (there are wheels for "
            "macOS, Windows and Linux on x86-64; elsewhere it is compiled)."
        ) from error
    llama_cpp.disable_logging()
    llama_cpp.ggml_backend_load_all()
    return llama_cpp


@cache
def _model_type():
    """cyllama 0.2.18's context asks its model for ``n_vocab``, which that lacks."""

    class WithVocabularySize(_library().LlamaModel):
        @property
        def n_vocab(self) -> int:
            return self.get_vocab().n_vocab

    return WithVocabularySize
