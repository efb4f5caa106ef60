"""Which weights may move: ways to prepare a model for fine-tuning.

Each is one call that prepares a model in place: ``full``, ``top_layers``,
``head_only``, ``bitfit``, ``ia3``, ``bottlenecks``, ``lora``; QLoRA is ``lora`` on a
model whose weights are stored in four bits. The active head (of a module called
``heads``) always learns. LoRA and (IA)³ are peft's. No data set is known here.
"""

import json
import os
import re
import warnings
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from . import adapters
from .errors import TrainingError
from .files import atomic_path

HEADS = "heads"
# names of a layer's linear maps, from the architectures' own modules
_BERT = {"q": ["query"], "k": ["key"], "v": ["value"], "o": ["attention.output.dense"],
         "f": ["intermediate.dense", r"layer\.\d+\.output\.dense"]}  # fmt: skip
_LLAMA = {"q": ["q_proj"], "k": ["k_proj"], "v": ["v_proj"], "o": ["o_proj"],
          "f": ["gate_proj", "up_proj", "down_proj"]}  # fmt: skip
LINEARS = {"bert": _BERT, "roberta": _BERT, "llama": _LLAMA}


def _method(prepare: Callable) -> Callable:
    """Freeze all but the active head, prepare, and note on the model what was done."""

    @wraps(prepare)
    def call(model: nn.Module, **options) -> nn.Module:
        for name, parameter in model.named_parameters():
            free = parameter.is_floating_point() and not parameter.is_inference()
            parameter.requires_grad_(free and is_active_head(model, name))
        prepare(model, **options)
        model.recipe = {"method": prepare.__name__, **options}
        return model

    return call


@_method
def full(model: nn.Module) -> None:
    """All weights learn."""
    if is_four_bit(model):
        raise TrainingError("Weights stored in four bits can't be trained: use lora.")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not is_head(name) or is_active_head(model, name))


@_method
def head_only(model: nn.Module) -> None:
    """Nothing but the head learns."""


@_method
def top_layers(model: nn.Module, layers: int = 2) -> None:
    """The last ``layers`` layers learn."""
    stack = _layers(model)
    if not 1 <= layers <= len(stack):
        raise TrainingError(f"layers={layers}: this model has {len(stack)}.")
    for layer in stack[-layers:]:
        layer.requires_grad_(True)


@_method
def bitfit(model: nn.Module) -> None:
    """The bias vectors learn (Ben Zaken et al. 2021, BitFit, arXiv:2106.10199)."""
    named = [(n, p) for n, p in model.named_parameters() if not is_head(n)]
    biases = [p for n, p in named if n.endswith(".bias")]
    if not biases:
        raise TrainingError("This model has no biases: BitFit has nothing to train.")
    for bias in biases:
        bias.requires_grad_(True)


@_method
def ia3(model: nn.Module, name: str = "task") -> None:
    """Learned scales of keys, values and the feed-forward's inner activations.

    Liu et al. 2022, (IA)³, arXiv:2205.05638, section 3.3; peft's implementation.
    """
    from .compat import peft

    linears = _linears(model)
    inner = linears["f"][-1]
    targets = f".*({'|'.join([*linears['k'], *linears['v'], inner])})"
    config = peft.IA3Config(target_modules=targets, feedforward_modules=f".*{inner}")
    _inject(config, model, name)


@_method
def bottlenecks(model: nn.Module, width: int = 32, name: str = "task") -> None:
    """Houlsby's adapters: see ``adapters.add``."""
    adapters.add(model, name, width)
    for path, parameter in model.named_parameters():
        if f".adapters.{name}." in path:
            parameter.requires_grad_(True)


@_method
def lora(
    model: nn.Module,
    rank: int = 8,
    targets: str | Sequence[str] = "qv",
    alpha: float | None = None,
    name: str = "task",
) -> None:
    """Low-rank updates W + (α/r)·BA of linear maps.

    Hu et al. 2021, LoRA, arXiv:2106.09685, equation 3; peft's implementation. On a
    model in four bits this is QLoRA (Dettmers et al. 2023, arXiv:2305.14314).

    Args:
        rank: r. A is (r, in), drawn at random; B is (out, r), zero at the start.
        targets: letters: q, k, v, o (attention), f (feed-forward), such as ``"qkvof"``;
            or endings of modules' names.
        alpha: default 16·√(r/8): 16 at rank 8, and about the same size of update at
            every rank (Kalajdzievski 2023, rsLoRA, arXiv:2312.03732).

    Raises:
        TrainingError: a rank below 1, or a target that isn't there.
    """
    from .compat import peft

    if rank < 1:
        raise TrainingError(f"rank={rank}: a low-rank update needs at least rank 1.")
    if isinstance(targets, str):
        known = _linears(model)
        if not targets or (strange := set(targets) - set(known)):
            raise TrainingError(
                f"targets={targets!r}: use letters of {''.join(known)!r}, or a list of "
                f"names, not {sorted(strange) if targets else 'nothing'}."
            )
        targets = [ending for letter in targets for ending in known[letter]]
    pattern = rf"(.*\.)?({'|'.join(targets)})"
    config = peft.LoraConfig(
        r=rank, lora_alpha=16 * (rank / 8) ** 0.5 if alpha is None else alpha,
        target_modules=pattern, lora_dropout=0.0,
    )  # fmt: skip
    names = [n for n, m in model.named_modules() if isinstance(m, nn.Linear)]
    for ending in targets:
        if not any(re.fullmatch(rf"(.*\.)?{ending}(\.base_layer)?", n) for n in names):
            there = sorted({n.rpartition(".")[2] for n in names if not is_head(n)})
            raise TrainingError(
                f"No linear layer's name ends in {ending!r}. There are: "
                f"{', '.join(there)}."
            )
    _inject(config, model, name)


# the methods of the course's table, by name; QLoRA is lora on a model in four bits
METHODS: dict[str, Callable] = {
    method.__name__: method
    for method in (full, top_layers, head_only, bitfit, ia3, bottlenecks, lora)
}


def activate(model: nn.Module, name: str) -> None:
    """Switch to the adapter and the head of a task.

    Raises:
        TrainingError: neither of them is there.
    """
    from .compat import peft

    known = peft_names(model) | adapters.names(model) | set(getattr(model, HEADS, {}))
    if name not in known:
        raise TrainingError(f"There is nothing called {name!r}, only {sorted(known)}.")
    if name in peft_names(model):
        peft.functional.set_adapter(model, name)
    if adapters.names(model):
        adapters.activate(model, [name] if name in adapters.names(model) else [])
    if name in getattr(model, HEADS, {}):
        model.task = name


def merge(model: nn.Module) -> nn.Module:
    """Add the active LoRA or (IA)³ into the weights: no extra work is left.

    Raises:
        TrainingError: there is none, or the weights are in four bits.
    """
    layers = [(n, m) for n, m in model.named_modules() if _is_peft(m)]
    if not layers:
        raise TrainingError("There is no LoRA or (IA)³ to merge.")
    if is_four_bit(model):
        raise TrainingError(
            "Merging into four bits would round the update away: load the model in "
            "full precision, then the adapter, then merge."
        )
    for path, layer in layers:
        layer.merge()
        parent, _, last = path.rpartition(".")
        setattr(model.get_submodule(parent), last, layer.get_base_layer())
    return model


def save(model: nn.Module, path: str | os.PathLike, **card) -> Path:
    """Write what has been trained, and nothing else, as one safetensors file.

    Args:
        card: notes of your own that ``load`` gives back, such as the classes' names.

    Raises:
        TrainingError: no method has been applied, or a weight isn't finite.
    """
    if not getattr(model, "recipe", None):
        raise TrainingError("Nothing to save: apply a method (lora, bitfit, …) first.")
    trained = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    state = {name: parameter.detach().cpu() for name, parameter in trained}
    bad = [name for name, tensor in state.items() if not torch.isfinite(tensor).all()]
    if bad:
        raise TrainingError(f"{bad[0]} holds NaN or infinity: this run has diverged.")
    base = getattr(model, "base_id", "")
    notes = {"recipe": model.recipe, "base": base, "card": card}
    notes["heads"] = {
        name: head.out_features
        for name, head in getattr(model, HEADS, {}).items()
        if f"{HEADS}.{name}.weight" in state
    }
    path = Path(path)
    with atomic_path(path, TrainingError) as temporary:
        save_file(
            {name: tensor.contiguous() for name, tensor in state.items()},
            temporary, metadata={"microbudget": json.dumps(notes)},
        )  # fmt: skip
    return path


def load(model: nn.Module, path: str | os.PathLike) -> dict:
    """Put what ``save`` wrote on its base: the adapter, the head, active both.

    Args:
        model: the base as it was, or one that holds adapters of the same method.

    Returns:
        The card.

    Raises:
        TrainingError: no such file, not one of ours, another base, another method.
    """
    path = Path(path)
    if not path.is_file():
        raise TrainingError(f"There is no {path}: save a trained model first.")
    try:
        with safe_open(path, "pt") as file:
            notes = json.loads((file.metadata() or {})["microbudget"])
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except Exception as error:  # safetensors raises errors of its own
        raise TrainingError(
            f"{path} is not a checkpoint of finetuning.save ({type(error).__name__})."
        ) from error
    recipe, base = dict(notes["recipe"]), getattr(model, "base_id", "")
    if notes["base"] != base:
        raise TrainingError(
            f"{path.name} was trained on {notes['base'] or 'another model'}, this is "
            f"{base or 'something else'}: an adapter fits its own base only."
        )
    before = getattr(model, "recipe", recipe)
    if before["method"] != recipe["method"]:
        raise TrainingError(
            f"{path.name} holds {recipe['method']}, but this model was prepared for "
            f"{before['method']}. Load it into a fresh copy of the base."
        )
    for name, classes in notes["heads"].items():
        if name not in model.heads:
            model.add_head(name, classes)
    if getattr(model, "recipe", None) != recipe:  # else it is prepared already
        METHODS[recipe.pop("method")](model, **recipe)
    own = dict(model.named_parameters())
    wrong = [n for n, t in state.items() if n not in own or own[n].shape != t.shape]
    if wrong:
        raise TrainingError(f"{path.name} doesn't fit this model: {wrong[0]}.")
    with torch.no_grad():
        for name, tensor in state.items():
            own[name].copy_(tensor)
    if notes["heads"]:
        activate(model, next(iter(notes["heads"])))
    model.eval()
    return notes["card"]


def is_head(name: str) -> bool:
    """Whether a parameter or module of this name belongs to a head."""
    return name == HEADS or name.startswith(f"{HEADS}.") or f".{HEADS}." in name


def is_active_head(model: nn.Module, name: str) -> bool:
    """Whether a parameter belongs to the head of the task that ``model`` is at."""
    return name.startswith(f"{HEADS}.{getattr(model, 'task', '')}.")


def is_four_bit(model: nn.Module) -> bool:
    return any(type(m).__name__ == "Linear4bit" for m in model.modules())


def peft_names(model: nn.Module) -> set[str]:
    """The LoRA and (IA)³ adapters that a model holds."""
    found: set[str] = set()
    for module in model.modules():
        if _is_peft(module):
            for kind in module.adapter_layer_names:
                found |= set(getattr(module, kind))
    return found


def _is_peft(module: nn.Module) -> bool:
    from .compat import peft

    return isinstance(module, peft.tuners.tuners_utils.BaseTunerLayer)


def _inject(config, model: nn.Module, name: str) -> None:
    from .compat import peft

    if not name or "." in name or name in peft_names(model):
        raise TrainingError(
            f"name={name!r}: an adapter needs a name of its own, without dots."
        )
    heads = [p for n, p in model.named_parameters() if is_active_head(model, n)]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Already found a `peft_config`")  # on purpose
        peft.functional.inject_adapter_in_model(config, model, adapter_name=name)
    peft.functional.cast_adapter_dtype(model, name)  # learn in float32, always
    peft.functional.set_adapter(model, name)
    for parameter in heads:
        parameter.requires_grad_(True)


def _linears(model: nn.Module) -> dict[str, list[str]]:
    kind = adapters.config_of(model).model_type
    if kind not in LINEARS:
        raise TrainingError(
            f"The linear maps of a {kind} aren't known here: give targets as a list of "
            "module names (see model.named_modules())."
        )
    return LINEARS[kind]


def _layers(model: nn.Module) -> nn.ModuleList:
    found = [m for m in model.modules() if isinstance(m, nn.ModuleList)]
    if not found:
        raise TrainingError("This model has no list of layers.")
    return max(found, key=len)
