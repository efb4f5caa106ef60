"""Perplexity of the small LLM at 8, 4 and 3 bits: rounding, our GPTQ, and GPTQModel.

    python tests/benchmarks/llm_quantization.py [--tokens 8192] [--seeds 0 1 2]

The same calibration tokens, held-out windows, groups, grid and damping for all; every
model is evaluated by the same code. GPTQModel takes part where it is installed (an
environment of its own: `pip install -e .[gptq]`); its checkpoint is read by our loader.
A seed moves the places that calibration text is taken from. Perplexities with their
standard error for the choice of text; ratios to the original are paired.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")

import torch

import microbudget as mb
from microbudget.llm import QuantConfig

SETTINGS = {
    "8 bits": QuantConfig(8, 64),
    "4 bits": QuantConfig(4, 64),
    "4 bits, act-order": QuantConfig(4, 64, act_order=True),
    "4 bits, symmetric, act-order": QuantConfig(4, 64, symmetric=True, act_order=True),
    "3 bits": QuantConfig(3, 64),
    "3 bits, act-order": QuantConfig(3, 64, act_order=True),
}


def calibration(tokenizer, text, tokens, seed, length=256):
    """Token ids (sequences, length) from random places of a text."""
    ids = mb.data.prose.token_ids(tokenizer, text)
    generator = torch.Generator().manual_seed(seed)
    places = torch.randint(len(ids) - length, (tokens // length,), generator=generator)
    return torch.stack([ids[place : place + length] for place in places])


def ours(llm, ids, config):
    started = time.perf_counter()
    mb.llm.quantize_(llm.model, ids, config)
    return llm, time.perf_counter() - started


def quantize_with_gptqmodel(name, ids, config, reordered_groups=False):
    """The same by GPTQModel; None where it isn't installed.

    Args:
        reordered_groups: with act-order, GPTQModel's default: a group is of columns
            that are neighbours in the new order. Ours are neighbours in the matrix.
    """
    try:
        from gptqmodel import GPTQModel, QuantizeConfig
    except ImportError:
        return None
    theirs = QuantizeConfig(
        bits=config.bits, group_size=config.group_size, sym=config.symmetric,
        desc_act=config.act_order, damp_percent=config.damping,
        act_group_aware=False, static_groups=config.act_order and not reordered_groups,
    )  # fmt: skip
    model = GPTQModel.load(str(mb.assets.fetch(name)), theirs)
    rows = [
        {"input_ids": row.tolist(), "attention_mask": [1] * len(row)} for row in ids
    ]
    started = time.perf_counter()
    model.quantize(rows, batch_size=4)
    took = time.perf_counter() - started
    with tempfile.TemporaryDirectory() as folder:
        model.save(folder)
        return mb.llm.load(Path(folder)), took


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=mb.models.smollm.DEFAULT)
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--windows", type=int, nargs=2, default=(8, 512))
    parser.add_argument("--seeds", type=int, nargs="+", default=(0, 1, 2))
    parser.add_argument("--only", nargs="+", default=tuple(SETTINGS))
    parser.add_argument("--reordered-groups", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(mb.core.settings.load().threads)
    llm, prose = (
        mb.models.smollm.load(options.model, dtype=torch.float32),
        mb.data.prose.load(),
    )
    windows = mb.data.prose.windows(llm.tokenizer, prose.held_out, *options.windows)
    weights = {name: w.clone() for name, w in llm.model.state_dict().items()}

    def evaluate(label, model, took):
        result = mb.evaluation.evaluate_perplexity(
            lambda ids: model(ids.to(model.device)).logits, windows, batch_size=1
        )
        ratio, error = mb.evaluation.perplexity_ratio(result, base or result)
        print(
            f"{label:44} perplexity {result.perplexity:7.3f} ± {result.error:.3f}, "
            f"× {ratio:.4f} ± {error:.4f}, {took:6.1f} s",
            flush=True,
        )
        return result

    base = None
    base = evaluate("original", llm.model, 0.0)
    for name in options.only:
        config = SETTINGS[name]
        llm.model.load_state_dict(weights)
        started = time.perf_counter()
        mb.llm.round_model_(llm.model, config)
        evaluate(f"RTN, {name}", llm.model, time.perf_counter() - started)
        for seed in options.seeds:
            ids = calibration(llm.tokenizer, prose.calibration, options.tokens, seed)
            llm.model.load_state_dict(weights)
            _, took = ours(llm, ids, config)
            evaluate(f"ours, {name}, seed {seed}", llm.model, took)
            settings = options.model, ids, config, options.reordered_groups
            if theirs := quantize_with_gptqmodel(*settings):
                evaluate(f"GPTQModel, {name}, seed {seed}", theirs[0].model, theirs[1])


if __name__ == "__main__":
    main()
