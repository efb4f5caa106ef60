"""A torch module as an ONNX file: its graph, caught by ``torch.export``.

``torch.export`` runs the module once with stand-ins for tensors and writes down every
operator; what Python decides on the way (an ``if`` on a shape) is decided for good.
Axes whose size may change are named: these are dynamic. torch then translates its
operators to ONNX's, and the file is compared with the module before anybody gets it.
"""

import copy
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import nn

from ..core.errors import EngineError
from ..core.files import atomic_path
from . import packages, sessions

Axes = Mapping[str, Mapping[int, str]]  # input -> axis -> its name
TOLERANCE = 1e-4  # of the largest output: float32 sums in another order


class WhisperEncoder(nn.Module):
    """Whisper's encoder as ``whisper_forward.encode`` computes it, for any window.

    (batch, mel bands, 2·frames) -> (batch, frames, d).
    """

    def __init__(self, encoder: nn.Module):
        super().__init__()
        self.encoder = encoder

    def forward(self, mel: torch.Tensor) -> torch.Tensor:
        from ..models import whisper_forward

        return whisper_forward.encode(self.encoder, mel)


def export_image_classifier(
    model: nn.Module, path: str | os.PathLike, size: int, **options
) -> Path:
    """Write an image classifier: images (batch, 3, size, size) -> logits."""
    example = {"images": torch.rand(2, 3, size, size)}
    return export_module(model, path, example, {"images": {0: "batch"}}, **options)


def export_text_classifier(
    model: nn.Module, path: str | os.PathLike, **options
) -> Path:
    """Write a sentence classifier: ids, mask int64 (batch, tokens) -> logits."""
    mask = torch.ones(2, 16, dtype=torch.long)
    mask[1, 9:] = 0
    axes = {0: "batch", 1: "tokens"}
    example = {"ids": mask * 3, "mask": mask}
    return export_module(model, path, example, {"ids": axes, "mask": axes}, **options)


def export_whisper_encoder(
    encoder: nn.Module, path: str | os.PathLike, **options
) -> Path:
    """Write Whisper's encoder: mel (batch, bands, 2·frames) -> states."""
    generator = torch.Generator().manual_seed(0)
    example = torch.randn(2, encoder.conv1.in_channels, 200, generator=generator)
    return export_module(
        WhisperEncoder(encoder), path, {"mel": example},
        {"mel": {0: "batch", 2: "frames"}}, output="states", **options,
    )  # fmt: skip


def export_module(
    model: nn.Module,
    path: str | os.PathLike,
    example: Mapping[str, torch.Tensor],
    dynamic_axes: Axes,
    *,
    output: str = "logits",
    keep_steps: bool = False,
) -> Path:
    """Export a copy of a module, in eval mode and on the CPU, and compare the file.

    Args:
        example: a name for each of ``forward``'s inputs, in their order, with a tensor
            of at least two along every dynamic axis.
        dynamic_axes: input -> axis -> its name; the other axes are fixed for good.
        output: name of what ``forward`` gives, one tensor.
        keep_steps: also write the graph before torch simplifies it (``.raw.onnx``
            instead of ``.onnx``) and torch's own graph, an ``ExportedProgram``
            (``.pt2``).

    Raises:
        EngineError: a package is missing, the module can't be exported with these
            dynamic axes, or the file computes something else. An older file at
            ``path`` is then untouched.
    """
    packages.load("onnxscript")
    path = Path(path)
    model = copy.deepcopy(model).cpu().eval()
    for module in model.modules():
        if getattr(module, "inplace", False):
            # written in place, a ReLU6 takes the exporter ten times as long
            module.inplace = False
    program = trace(model, example, dynamic_axes)
    name = type(model).__name__
    with packages.explained(f"{name} can't be exported"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's and onnxscript's own insides
        translated = torch.onnx.export(
            program, dynamo=True, optimize=False, verbose=False,
            input_names=list(example), output_names=[output],
            dynamic_shapes=[dynamic_axes.get(given, {}) for given in example],
        )  # fmt: skip
        if keep_steps:
            with atomic_path(path.with_suffix(".raw.onnx")) as raw:
                translated.save(raw)
            # to an open file: torch would want the temporary name to end in .pt2
            with atomic_path(path.with_suffix(".pt2")) as own, own.open("wb") as file:
                torch.export.save(program, file)
        translated.optimize()
    with atomic_path(path) as written:
        translated.save(written)
        _check(model, written, example, dynamic_axes)
    return path


def trace(
    model: nn.Module, example: Mapping[str, torch.Tensor], dynamic_axes: Axes
) -> torch.export.ExportedProgram:
    """The module's graph.

    Raises:
        EngineError: what the module does depends on a dynamic axis's size, or on the
            data.
    """
    if unknown := sorted(set(dynamic_axes) - set(example)):
        raise EngineError(
            f"dynamic_axes names {unknown}; the inputs are {sorted(example)}."
        )
    dynamic = torch.export.Dim.DYNAMIC
    shapes = tuple(dict.fromkeys(dynamic_axes.get(n, {}), dynamic) for n in example)
    names = {name: list(axes.values()) for name, axes in dynamic_axes.items()}
    with (
        packages.explained(
            f"{type(model).__name__} can't be exported with the dynamic axes {names}",
            "Fix an axis, or write that part without depending on its size.",
        ),
        warnings.catch_warnings(),
        torch.no_grad(),
    ):
        warnings.simplefilter("ignore")
        return torch.export.export(
            model, tuple(example.values()), dynamic_shapes=shapes
        )


def relative_difference(model: nn.Module, session, batches: Sequence[tuple]) -> float:
    """The largest |torch − engine|, relative to torch's largest output; NaN if any is.

    Args:
        session: of ``load_session``.
        batches: tuples of input tensors, in the module's order.
    """
    gaps, outputs = [], []
    for inputs in batches:
        with torch.inference_mode():
            expected = model(*inputs).float().cpu()
        given = torch.as_tensor(session(*inputs))
        assert given.shape == expected.shape
        gaps.append((given - expected).abs().max())
        outputs.append(expected.abs().max())
    # torch's max, unlike Python's, keeps a NaN
    return float(torch.stack(gaps).max() / torch.stack(outputs).max().clamp(min=1e-12))


def _check(model, path: Path, example, dynamic_axes: Axes) -> None:
    """Compare the file with the module, on the example and on one row of it."""
    one_row = tuple(
        value[:1] if 0 in dynamic_axes.get(name, {}) else value
        for name, value in example.items()
    )
    batches = [tuple(example.values()), one_row]
    found = relative_difference(model, sessions.load_session(path), batches)
    if not found <= TOLERANCE:  # nor if it is NaN
        raise EngineError(
            f"The ONNX file differs from torch by {found:.1e} of the largest output; "
            f"{TOLERANCE:.0e} is allowed. Nothing was written."
        )
