"""Whole models, quantized while calibration text flows through; checkpoints."""

import copy
import errno
import json
from functools import cache

import pytest
import tokenizers
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn

from microbudget.core.errors import AssetError, MicrobudgetError, QuantizationError
from microbudget.llm import calibrate, checkpoint
from microbudget.llm.gptq import gptq_layer, hessian
from microbudget.llm.packed import PackedLinear
from microbudget.models.smollm import Llm
from microbudget.quantization.affine import BITS, QuantConfig

COMMON = {"vocab_size": 96, "hidden_size": 64, "num_hidden_layers": 2,
          "num_attention_heads": 2, "max_position_embeddings": 64,
          "initializer_range": 0.2}  # fmt: skip
THREE, FOUR = QuantConfig(3, 32), QuantConfig(4, 32)


def llama(**options):
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**{
        **COMMON, "intermediate_size": 96, "num_key_value_heads": 1,
        "tie_word_embeddings": True, **options,
    }))  # fmt: skip


def mistral():
    return transformers.MistralForCausalLM(transformers.MistralConfig(
        **COMMON, intermediate_size=96, num_key_value_heads=1, sliding_window=4,
    ))  # fmt: skip


def bert():
    config = transformers.BertConfig(**COMMON, intermediate_size=96)
    return transformers.BertModel(config, add_pooling_layer=False)


def neox():
    config = transformers.GPTNeoXConfig(**COMMON, intermediate_size=96)
    return transformers.GPTNeoXForCausalLM(config)


MAKERS = {"llama": (llama, 14), "mistral": (mistral, 14), "bert": (bert, 12),
          "neox": (neox, 8)}  # fmt: skip


def in_halves(model):
    """Weights that float16, in which checkpoints are, can hold."""
    model.eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.copy_(parameter.half())
    return model


@cache
def _made(kind: str):
    torch.manual_seed(0)
    return in_halves(MAKERS[kind][0]())


def tiny(kind: str = "llama"):
    return copy.deepcopy(_made(kind))


def calibration(sequences: int = 16, tokens: int = 20) -> torch.Tensor:
    generator = torch.Generator().manual_seed(7)
    return torch.randint(0, 96, (sequences, tokens), generator=generator)


def outputs(model) -> torch.Tensor:
    """(layers, sequences, tokens, hidden): what each layer makes of calibration."""
    with torch.inference_mode():
        found = model(calibration(), output_hidden_states=True, use_cache=False)
    return torch.stack(found.hidden_states[1:])


def same(a: dict, b: dict) -> bool:
    parts = ("codes", "scales", "zero_points", "groups")
    return a.keys() == b.keys() and all(
        torch.equal(getattr(a[n], part), getattr(b[n], part))
        for n in a
        for part in parts
    )


@pytest.mark.parametrize("config", [THREE, QuantConfig(4, None, True, True)], ids=str)
@pytest.mark.parametrize("kind", MAKERS)
def test_only_the_layers_linear_layers_change(kind, config):
    model = tiny(kind)
    before = copy.deepcopy(model.state_dict())
    found = calibrate.quantize_(model, calibration(), config)
    assert len(found) == MAKERS[kind][1]
    for name, tensor in model.state_dict().items():
        linear, _, part = name.rpartition(".")
        if part == "weight" and linear in found:
            assert torch.equal(tensor, found[linear].dequantize()), name
        else:
            assert torch.equal(tensor, before[name]), name


@pytest.mark.parametrize("kind", MAKERS)
def test_every_layer_is_gptq_on_its_own_inputs(kind):
    """One Hessian for queries, keys and values is what each alone would get."""
    model, inputs = tiny(kind), {}
    before = copy.deepcopy(model.state_dict())
    found = calibrate.quantize_(model, calibration(), THREE)
    for name in found:  # all layers before one are rounded when it is its turn
        model.get_submodule(name).register_forward_pre_hook(
            lambda _, given, name=name: inputs.update({name: given[0]})
        )
    outputs(model)
    for name, matrix in found.items():
        alone = gptq_layer(before[f"{name}.weight"], hessian(inputs[name]), THREE)
        agree = torch.isclose(alone.dequantize(), matrix.dequantize())
        assert agree.double().mean() > 0.98, name  # sums in another order


@pytest.mark.parametrize("kind", MAKERS)
def test_outputs_stay_nearer_than_with_rounding(kind):
    plain, calibrated, rounded = tiny(kind), tiny(kind), tiny(kind)
    calibrate.quantize_(calibrated, calibration(), THREE)
    assert len(calibrate.round_model_(rounded, THREE)) == MAKERS[kind][1]
    errors = [
        (outputs(m) - outputs(plain)).square().mean() for m in (calibrated, rounded)
    ]
    assert errors[0] < 0.9 * errors[1]


def test_a_layer_that_is_never_used_is_named():
    model = tiny()
    model.model.spare = nn.Linear(64, 64)
    with pytest.raises(QuantizationError, match=r"spare isn't used exactly once"):
        calibrate.quantize_(model, calibration(), THREE)


def test_what_cant_be_quantized(tmp_path):
    saved(tmp_path)
    packed = checkpoint.load(tmp_path).model
    with pytest.raises(MicrobudgetError, match="no plain linear layer of its own"):
        calibrate.round_model_(packed, THREE)
    with pytest.raises(QuantizationError, match=r"at least 192 tokens.*got 60"):
        calibrate.quantize_(tiny(), calibration(3), THREE)
    with pytest.raises(QuantizationError, match=r"q_proj: 64 inputs are fewer"):
        calibrate.quantize_(tiny(), calibration(), QuantConfig(group_size=128))


@pytest.mark.parametrize(
    "act", [lambda m: calibrate.quantize_(m, calibration(), THREE),
            lambda m: calibrate.round_model_(m, THREE)]
)  # fmt: skip
def test_the_damaged_layer_is_named(act):
    model = tiny()
    model.model.layers[1].mlp.up_proj.weight[3, 5] = float("nan")
    with pytest.raises(QuantizationError, match=r"layers\.1\.mlp\.up_proj: NaN"):
        act(model)


def tokenizer():
    words = {f"w{i}": i for i in range(96)}
    own = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="w0"))
    own.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=own, unk_token="w0", eos_token="w1"
    )


def saved(folder, config=FOUR, model=None):
    """(model with rounded weights, its quantized weights), and the folder written."""
    model = model or tiny()
    quantized = calibrate.round_model_(model, config)
    checkpoint.save(Llm("tiny", model, tokenizer()), folder, quantized, config)
    return model, quantized


def logits(model) -> torch.Tensor:
    with torch.inference_mode():
        return model(calibration()).logits


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_a_checkpoint_brings_the_model_back(tmp_path, bits, symmetric):
    model, quantized = saved(tmp_path / "m", QuantConfig(bits, 32, symmetric))
    found = checkpoint.load(tmp_path / "m")
    assert torch.equal(logits(found.model), logits(model))
    assert found.name == "m"
    assert not found.model.training
    assert found.tokenizer("w5 w95")["input_ids"] == [5, 95]
    packed = {n: m.weight() for n, m in found.model.named_modules()
              if isinstance(m, PackedLinear)}  # fmt: skip
    assert same(packed, quantized)


def test_the_files_follow_the_format(tmp_path):
    """q, z and s read from the words by hand, as GPTQModel's documentation has them."""
    _, quantized = saved(tmp_path, QuantConfig(4, None))
    config = json.loads((tmp_path / "config.json").read_text())
    notes = config["quantization_config"]
    assert notes == json.loads((tmp_path / "quantize_config.json").read_text())
    assert notes["quant_method"] == "gptq"
    assert notes["checkpoint_format"] == "gptq_v2"
    assert (notes["bits"], notes["group_size"], notes["sym"]) == (4, -1, False)
    assert notes["desc_act"] is notes["lm_head"] is False
    assert (config["model_type"], config["dtype"]) == ("llama", "float16")
    state = load_file(tmp_path / "model.safetensors")
    assert "lm_head.weight" not in state  # tied
    for name, matrix in quantized.items():
        shifts, zeros = range(0, 32, 4), state[f"{name}.qzeros"]
        codes = torch.stack([state[f"{name}.qweight"] >> s & 15 for s in shifts], 1)
        zeros = torch.stack([zeros >> s & 15 for s in shifts], 2).flatten(1)
        groups, scales = state[f"{name}.g_idx"].long(), state[f"{name}.scales"].float()
        w = scales[groups] * (codes.flatten(0, 1) - zeros[groups])
        assert torch.equal(w.T, matrix.dequantize()), name


def test_the_older_format_stores_zero_points_minus_one(tmp_path):
    model, _ = saved(tmp_path, QuantConfig(4, 32, symmetric=True))
    path, config = tmp_path / "model.safetensors", tmp_path / "config.json"
    state = load_file(path)
    for key in state:
        if key.endswith(".qzeros"):
            assert (state[key] == -0x77777778).all()  # 8, eight times
            state[key].fill_(0x77777777)
    save_file(state, path, {"format": "pt"})
    config.write_text(config.read_text().replace("gptq_v2", "gptq"))
    assert torch.equal(logits(checkpoint.load(tmp_path).model), logits(model))


def test_calibrated_and_in_bfloat16(tmp_path):
    """The whole way: GPTQ, saved, loaded in half."""
    model, config = tiny(), QuantConfig(4, 32, act_order=True)
    quantized = calibrate.quantize_(model, calibration(), config)
    expected = logits(model)
    checkpoint.save(Llm("tiny", model, tokenizer()), tmp_path / "m", quantized, config)
    assert torch.equal(logits(checkpoint.load(tmp_path / "m").model), expected)
    half = checkpoint.load(tmp_path / "m", torch.bfloat16).model
    assert half.model.embed_tokens.weight.dtype == torch.bfloat16
    assert (logits(half).float() - expected).square().mean() < 0.01 * expected.var()


@pytest.mark.parametrize("tied", [False, True])
def test_biases_and_a_head_of_its_own(tmp_path, tied):
    torch.manual_seed(0)
    model = llama(attention_bias=True, mlp_bias=True, tie_word_embeddings=tied)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter)
    model, _ = saved(tmp_path / "m", model=in_halves(model))
    assert torch.equal(logits(checkpoint.load(tmp_path / "m").model), logits(model))


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_missing_file_is_named(tmp_path, file):
    saved(tmp_path)
    (tmp_path / file).unlink()
    with pytest.raises(AssetError, match=f"holds no {file}: it is no GPTQ checkpoint"):
        checkpoint.load(tmp_path)


def test_folders_that_wont_do(tmp_path):
    saved(tmp_path / "m")
    path = tmp_path / "m" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(AssetError, match=r"m can't be loaded .*Delete the"):
        checkpoint.load(tmp_path / "m")
    path = tmp_path / "m" / "config.json"
    config = path.read_text()
    for old, new in (("gptq_v2", "marlin"), ("quantization_config", "other")):
        path.write_text(config.replace(f'"{old}"', f'"{new}"'))
        with pytest.raises(QuantizationError, match="m is no GPTQ checkpoint of a"):
            checkpoint.load(tmp_path / "m")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").touch()
    with pytest.raises(QuantizationError, match="it would be replaced"):
        saved(tmp_path / "mine")


def test_a_full_disk_leaves_what_was_there(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    saved(tmp_path / "old")
    before = (tmp_path / "old" / "model.safetensors").read_bytes()
    monkeypatch.setattr(checkpoint, "save_file", full)
    for name in ("old", "new"):
        with pytest.raises(QuantizationError, match="The disk is full"):
            saved(tmp_path / name)
    assert [p.name for p in tmp_path.iterdir()] == ["old"]
    assert (tmp_path / "old" / "model.safetensors").read_bytes() == before


def test_models_that_cant_be_saved(tmp_path):
    model = tiny()
    model.model.embed_tokens.weight[0, 0] = 1e6  # infinite in float16
    model.model.norm.weight[0] = float("inf")
    with pytest.raises(QuantizationError, match=r"model\.\w+.*not finite"):
        saved(tmp_path / "m", model=model)
    for bits in set(BITS) - {2, 3, 4, 8}:
        with pytest.raises(QuantizationError, match=f"{bits} bits can't be packed"):
            saved(tmp_path / "m", QuantConfig(bits, 32))
    assert not list(tmp_path.iterdir())
