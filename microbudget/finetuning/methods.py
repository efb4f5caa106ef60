"""Which parameters are trained: ways to prepare a model for fine-tuning.

``apply_(model, config)`` takes one of the configs below or one of peft's: LoRA and
(IA)³ are peft's own; QLoRA is LoRA on a model whose weights are stored in four bits.
The active head (of a module called ``heads``) is trained as well.

A model that was prepared carries ``model.applied``: name -> ``Applied``. Methods whose
parameters lie beside the base's can be applied several times, by different names.
"""

import copy
import hashlib
import re
import warnings
from dataclasses import dataclass

import peft
import peft.functional
from torch import nn

from ..core.errors import TrainingError
from ..core.modules import of_its_own, pick, replace_layer
from ..models.bitsandbytes import is_quantized
from . import bottleneck


@dataclass(frozen=True)
class FullConfig:
    """All parameters are trained."""

    def select(self, model: nn.Module, name: str) -> list[nn.Parameter]:
        named = model.named_parameters()
        return [p for path, p in named if not path.startswith("heads.")]


@dataclass(frozen=True)
class TopLayersConfig:
    """The last ``layers`` layers are trained."""

    layers: int = 2

    def select(self, model: nn.Module, name: str) -> list[nn.Parameter]:
        lists = [m for m in model.modules() if isinstance(m, nn.ModuleList)]
        stack = max(lists, key=len, default=[])
        if not 1 <= self.layers <= len(stack):
            raise TrainingError(f"layers={self.layers}: this model has {len(stack)}.")
        return list(stack[-self.layers :].parameters())


@dataclass(frozen=True)
class HeadOnlyConfig:
    """Nothing but the head is trained."""

    def select(self, model: nn.Module, name: str) -> list[nn.Parameter]:
        return []


@dataclass(frozen=True)
class BitFitConfig:
    """The biases are trained (Ben Zaken et al. 2021, BitFit, arXiv:2106.10199)."""

    def select(self, model: nn.Module, name: str) -> list[nn.Parameter]:
        named = model.named_parameters()
        return [p for path, p in named if re.search(r"^(?!heads\.).*\.bias$", path)]


@dataclass(frozen=True)
class BottleneckConfig:
    """Houlsby's adapters, see ``bottleneck``; the layer norms stay frozen.

    Houlsby et al. train the norms too; frozen, adapters can be switched and stacked
    (as Pfeiffer et al. 2020 do).
    """

    width: int = 32

    def select(self, model: nn.Module, name: str) -> list[nn.Parameter]:
        bottleneck.insert_(model, name, self.width)
        named = model.named_parameters()
        return [p for path, p in named if f".adapters.{name}." in path]


Config = (
    FullConfig | TopLayersConfig | HeadOnlyConfig | BitFitConfig | BottleneckConfig
    | peft.PeftConfig
)  # fmt: skip


@dataclass(frozen=True)
class Applied:
    """What has been applied to a model.

    Attributes:
        head: the head that is trained with it; empty if there is none.
        parameters: names of those that are trained.
    """

    config: Config
    head: str
    parameters: tuple[str, ...]


def apply_(
    model: nn.Module, config: Config, name: str = "task", *, with_head: bool = True
) -> nn.Module:
    """Freeze all but the parameters that a method trains; add them, if they are new.

    Args:
        config: one of this module's configs, ``peft.LoraConfig`` or ``peft.IA3Config``.
        name: what it is called in ``model.applied``, to switch and save it.
        with_head: whether the active head is trained as well.

    Returns:
        The model itself.

    Raises:
        TrainingError: the method doesn't fit the model, or would mix with one that has
            been applied before. The model is then as it was.
    """
    require_room(model, config, name)
    if isinstance(config, FullConfig | TopLayersConfig) and is_quantized(model):
        raise TrainingError(
            "Weights stored in four or eight bits can't be trained: use LoRA."
        )
    if isinstance(config, peft.PeftConfig):
        _inject_(model, config, name)
    else:
        selected = config.select(model, name)
        model.requires_grad_(False)
        for parameter in selected:
            parameter.requires_grad_(True)
    head = model.task if with_head and hasattr(model, "heads") else ""
    if head:
        model.heads[head].requires_grad_(True)
    trained = tuple(path for path, p in model.named_parameters() if p.requires_grad)
    model.applied = {**applied(model), name: Applied(config, head, trained)}
    model.active_name = name
    return model


def _inject_(model: nn.Module, config: peft.PeftConfig, name: str) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Already found a `peft_config`")  # on purpose
        try:
            # peft fills in what the config leaves open: the caller's stays untouched
            peft.functional.inject_adapter_in_model(copy.copy(config), model, name)
        except ValueError as error:
            raise TrainingError(f"peft can't apply this config: {error}") from error
    # The base may be stored in 4 or 16 bits; the adapter is trained in float32.
    peft.functional.cast_adapter_dtype(model, name)
    model.requires_grad_(False)
    peft.functional.set_adapter(model, name)  # which makes this adapter trainable


def activate_(model: nn.Module, *names: str) -> None:
    """Switch to what was applied by these names, and to its head; freeze the rest.

    Args:
        names: one; or several bottleneck adapters, to be stacked in this order. All of
            them are then trainable, and ``save`` writes the last.

    Raises:
        MicrobudgetError: nothing was applied by that name.
    """
    assert names, "name what to activate"
    chosen = [pick(applied(model), name) for name in names]
    if isinstance(chosen[0].config, BottleneckConfig):
        bottleneck.activate_(model, names)
    elif isinstance(chosen[0].config, peft.PeftConfig):
        peft.functional.set_adapter(model, list(names))
    for one in chosen:
        if one.head:
            model.task = one.head
    trained = {path for one in chosen for path in one.parameters}
    for path, parameter in model.named_parameters():
        parameter.requires_grad_(path in trained)
    model.active_name = names[-1]


def merge_(model: nn.Module) -> nn.Module:
    """Add the LoRA or (IA)³ into the weights: no extra work is left, and no adapter.

    Raises:
        TrainingError: there is none or more than one, or the weights are quantized.
    """
    tuner_layer = peft.tuners.tuners_utils.BaseTunerLayer
    layers = [(n, m) for n, m in model.named_modules() if isinstance(m, tuner_layer)]
    if not layers:
        raise TrainingError("There is no LoRA or (IA)³ to merge.")
    if is_quantized(model):
        raise TrainingError(
            "Merging into four or eight bits would round the update away: load the "
            "model in full precision, then the adapter, then merge."
        )
    if len(applied(model)) > 1:
        raise TrainingError(
            f"This model holds {sorted(applied(model))}, and merging keeps one only: "
            "load that one into a fresh copy of the base."
        )
    adapter = hashlib.sha256()  # tells models apart that merged different adapters
    for one in applied(model).values():
        for path in one.parameters:
            values = model.get_parameter(path).detach().float().cpu().numpy()
            adapter.update(values.tobytes())
    # as peft's merge_and_unload, which works only on peft's own wrapper of a model
    for path, layer in layers:
        base = layer.get_base_layer()
        layer.base_layer = of_its_own(model, base)  # not the embedding it is tied to
        layer.merge()
        replace_layer(model, path, layer.get_base_layer())
    model.applied, model.active_name = {}, ""
    merged = adapter.hexdigest()[:12]
    model.base_id = f"{getattr(model, 'base_id', '')} with adapter {merged} merged"
    return model


def applied(model: nn.Module) -> dict[str, Applied]:
    """What has been applied to a model, by name."""
    return getattr(model, "applied", {})


def require_room(model: nn.Module, config: Config, name: str) -> None:
    """Raise a TrainingError if a method can't be applied to the model by this name.

    Several adapters of one kind can lie beside each other on a base; methods that train
    the base's own weights can't.
    """
    beside = isinstance(config, BottleneckConfig | peft.PeftConfig)
    for before in applied(model).values():
        if type(before.config) is not type(config) or not beside:
            raise TrainingError(
                f"{type(before.config).__name__} was applied to this model already, "
                f"and {type(config).__name__} can't be applied beside it: take a fresh "
                "copy of the base."
            )
    if name in applied(model):
        raise TrainingError(
            f"This model holds something called {name!r} already. Give the new one a "
            "name of its own (name=…), or take a fresh copy of the base."
        )
