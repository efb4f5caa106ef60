"""llama.cpp in this process, by the prebuilt wheel ``cyllama``: run and quantize."""

import os
import time
from collections.abc import Iterator
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
_CONTEXT = 1024


def version() -> str:
    """The wheel's version.

    Raises:
        EngineError: it isn't installed.
    """
    _library()
    return f"cyllama {package_version('cyllama')}"


def quantize_gguf(
    source: str | os.PathLike, target: str | os.PathLike, kind: str
) -> GgufFile:
    """llama.cpp's own quantizer: a GGUF file -> another with fewer bits.

    Tensors whose rows aren't whole blocks of 256 get another type than asked for; the
    returned table of tensors shows which.

    Args:
        kind: one of ``KINDS``, such as ``"Q4_K_M"``.

    Raises:
        QuantizationError: an unknown kind, no whole GGUF file, one that is quantized
            already, or llama.cpp failed. Nothing half-written is left.
        EngineError: llama.cpp isn't installed.
    """
    if kind not in KINDS:
        raise QuantizationError(f"kind={kind!r}: use one of {', '.join(KINDS)}.")
    library, before = _library(), read_gguf(source)
    if strange := set(before.types()) - {"F16", "F32", "BF16"}:
        raise QuantizationError(
            f"{before.path.name} is quantized already ({', '.join(sorted(strange))}): "
            "start from float16, a second rounding adds to the first."
        )
    options = library.LlamaModelQuantizeParams()
    options.ftype = KINDS[kind]
    options.nthread = settings.load().threads
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


class Model:
    """A GGUF file, loaded.

    Attributes:
        file: its metadata and table of tensors.
        speed: of the last answer.
    """

    engine = "llama.cpp in process"

    def __init__(self, path: str | os.PathLike, context: int = _CONTEXT):
        """Load a file.

        Args:
            context: tokens of prompt and answer together, at most.

        Raises:
            QuantizationError: no whole GGUF file. EngineError: llama.cpp isn't
                installed, or can't load it.
        """
        self.file = read_gguf(path)  # llama.cpp says little about broken files
        self.speed, self.context = None, context
        self._is_bpe = self.file.metadata.get("tokenizer.ggml.model") == "gpt2"
        self._library = _library()
        options = self._library.LlamaContextParams()
        options.n_ctx = options.n_batch = options.n_ubatch = context
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

    def stream(
        self, prompt: str, max_tokens: int = 64, temperature: float = 0.0, seed: int = 0
    ) -> Iterator[str]:
        """Write an answer, piece by piece; ``speed`` says afterwards how fast.

        Args:
            prompt: with the model's chat template around it already.
            temperature: 0: always the likeliest token.

        Raises:
            EngineError: an empty prompt, or one that leaves no room in the context.
        """
        self._require_open()
        self.speed = None
        ids = self._prompt_ids(prompt)
        if len(ids) + max_tokens > self.context:
            raise EngineError(
                f"{len(ids)} tokens of prompt and {max_tokens} of answer are more than "
                f"the context of {self.context}: load it with a larger context."
            )
        sampler = self._sampler(temperature, seed)
        self._context.kv_cache_clear()
        token, prefill_s = self._next(sampler, ids)
        written, shown, decode_s = [], "", 0.0
        while not self._vocabulary.is_eog(token) and len(written) < max_tokens:
            written.append(token)
            text = self._text(written)
            if not text.endswith("�"):  # else: half a character
                yield text[len(shown) :]
                shown = text
            if len(written) < max_tokens:
                token, seconds = self._next(
                    sampler, [token], len(ids) + len(written) - 1
                )
                decode_s += seconds
        ended = len(written) < max_tokens  # then the last pass gave the end
        self.speed = Speed(len(ids), prefill_s, len(written) - (not ended), decode_s)

    def _prompt_ids(self, prompt: str) -> list[int]:
        default = not self._is_bpe  # as llama.cpp has it
        begin = self.file.metadata.get("tokenizer.ggml.add_bos_token", default)
        ids = self._vocabulary.tokenize(prompt, begin, True)
        if not ids or not prompt.strip():
            raise EngineError("The prompt is empty.")
        return ids

    def _next(self, sampler, ids: list[int], position: int = 0) -> tuple[int, float]:
        """Read tokens, choose the next one; seconds that it took."""
        self._require_open()  # somebody may close it while an answer is streamed
        started = time.perf_counter()
        self._context.decode(self._library.llama_batch_get_one(ids, position))
        token = sampler.sample(self._context, -1)
        return token, time.perf_counter() - started

    def _text(self, tokens: list[int]) -> str:
        """Tokens as text; llama.cpp's own detokenizer would eat byte-level spaces."""
        if not self._is_bpe:
            return self._vocabulary.detokenize(tokens)
        return ByteLevel().decode([self._vocabulary.get_text(t) for t in tokens])

    def scorer(self, ids: torch.Tensor) -> torch.Tensor:
        """Logits (batch, tokens, vocabulary) of token ids (batch, tokens)."""
        self._require_open()
        if ids.shape[1] > self.context:
            raise EngineError(
                f"{ids.shape[1]} tokens, but a context of {self.context}."
            )
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

    def _sampler(self, temperature: float, seed: int):
        sampler = self._library.LlamaSampler(self._library.LlamaSamplerChainParams())
        if temperature > 0:
            sampler.add_temp(temperature)
            sampler.add_dist(seed)
        else:
            sampler.add_greedy()
        return sampler

    def close(self) -> None:
        """Free the memory."""
        if self._model is not None:
            self._context.close()
            self._model.close()
            self._model = self._context = None

    def _require_open(self) -> None:
        if self._model is None:  # llama.cpp would end the whole process
            raise EngineError(f"{self.file.path.name} is closed: load it again.")

    def __enter__(self) -> "Model":
        return self

    def __exit__(self, *exception) -> None:
        self.close()


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
