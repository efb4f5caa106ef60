"""MobileNetV2's weights -> ``model.safetensors`` with torchvision's names."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torchvision
from safetensors.torch import save_file

from ..folders import require_finite

_BATCH_NORM = {
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}


def keras_mobilenet_v2(raw: Path, ready: Path) -> None:
    """Keras' MobileNetV2 backbone (HDF5) -> torchvision's ``mobilenet_v2`` names.

    Kernels are transposed from (height, width, in, out) to (out, in, height, width);
    depthwise ones from (height, width, channels, 1) to (channels, 1, height, width).
    """
    import h5py

    (path,) = raw.rglob("*.h5")
    tensors = {}
    with h5py.File(path, "r") as file:
        group = file["model_weights"]["mobilenetv2_1.00_160"]
        for keras, target in _keras_layers():
            node = group[keras]
            if keras.endswith(("_BN", "_bn", "bn_Conv1")):
                for source, name in _BATCH_NORM.items():
                    tensors[f"{target}.{name}"] = torch.from_numpy(node[source][()])
                tensors[f"{target}.num_batches_tracked"] = torch.tensor(0)
            else:
                order = (2, 3, 0, 1) if keras.endswith("depthwise") else (3, 2, 0, 1)
                kernel = np.ascontiguousarray(node["kernel"][()].transpose(order))
                tensors[f"{target}.weight"] = torch.from_numpy(kernel)
    _save(tensors, ready)


def torchvision_mobilenet_v2(raw: Path, ready: Path) -> None:
    """torchvision's own checkpoint, without its 1,000-class head."""
    (path,) = raw.rglob("*.pth")
    state = torch.load(path, map_location="cpu", weights_only=True)
    tensors = {k: v for k, v in state.items() if not k.startswith("classifier.")}
    _save(tensors, ready)


def _save(tensors: dict[str, torch.Tensor], ready: Path) -> None:
    model = torchvision.models.mobilenet_v2()
    model.classifier = torch.nn.Identity()
    model.load_state_dict(tensors)  # strict: every tensor, of the right shape
    require_finite(model, "MobileNetV2")
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(tensors, ready / "model.safetensors")


def _keras_layers() -> Iterator[tuple[str, str]]:
    """(Keras layer, torchvision module) of every convolution and batch norm."""
    yield from (("Conv1", "features.0.0"), ("bn_Conv1", "features.0.1"))
    yield from (("Conv_1", "features.18.0"), ("Conv_1_bn", "features.18.1"))
    for i in range(17):
        name = f"block_{i}" if i else "expanded_conv"
        layers = ["expand", "depthwise"] if i else ["depthwise"]  # the first has none
        for k, layer in enumerate(layers):
            yield f"{name}_{layer}", f"features.{i + 1}.conv.{k}.0"
            yield f"{name}_{layer}_BN", f"features.{i + 1}.conv.{k}.1"
        yield f"{name}_project", f"features.{i + 1}.conv.{len(layers)}"
        yield f"{name}_project_BN", f"features.{i + 1}.conv.{len(layers) + 1}"
