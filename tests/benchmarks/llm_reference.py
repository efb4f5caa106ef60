"""The recorded run of notebook 04: one small LLM, every way to fewer bits.

    MICROBUDGET_DATA=FOLDER python tests/benchmarks/llm_reference.py methods
    MICROBUDGET_DATA=FOLDER python tests/benchmarks/llm_reference.py gptqmodel
    MICROBUDGET_DATA=FOLDER python tests/benchmarks/llm_reference.py fair

``methods`` evaluates rounding, our GPTQ, llama.cpp's types and bitsandbytes; ``fair``
does it with embeddings in eight bits and groups of 32 for all;
``gptqmodel`` the reference implementation of GPTQ, at equal settings and on equal
calibration text (an environment of its own: ``pip install -e .[gptq]``); its
checkpoints are read by our loader, so that one code evaluates all. Each can be stopped
and started again: what is in ``data/reference`` already isn't computed twice.
"""

import argparse
import os
import tempfile
import time
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")

import numpy as np
import torch

import microbudget as mb
from microbudget.course import reference
from microbudget.llm import QuantConfig
from microbudget.llm.calibrate import linear_layers
from microbudget.llm.packed import PackedLinear

WINDOWS, CALIBRATION, SEEDS = (8, 520), (24, 256), range(5)
BLOCK = 64  # neighbouring tokens whose means are recorded together
FOUR, THREE = QuantConfig(4, 64), QuantConfig(3, 64)
SEEDED = {  # compared with GPTQModel, five seeds each
    "4 bits, act-order": replace(FOUR, act_order=True),
    "4 bits": FOUR,
    "3 bits, act-order": replace(THREE, act_order=True),
}
SEARCHED = {  # ours only
    "4 bits, act-order, searched scales": replace(
        FOUR, act_order=True, search_scales=True
    ),
    "3 bits, act-order, searched scales": replace(
        THREE, act_order=True, search_scales=True
    ),
}
ONCE = {  # one seed
    "8 bits": QuantConfig(8, 64),
    "4 bits, group 32, act-order": QuantConfig(4, 32, act_order=True),
    "4 bits, group 128, act-order": QuantConfig(4, 128, act_order=True),
    "2 bits, act-order": QuantConfig(2, 64, act_order=True),
}
ROUNDED = {
    "8 bits": QuantConfig(8, 64),
    "4 bits, group 32": QuantConfig(4, 32),
    "4 bits": FOUR,
    "4 bits, group 128": QuantConfig(4, 128),
    "3 bits": THREE,
    "2 bits": QuantConfig(2, 64),
}
FILES = ("Q8_0", "Q6_K", "Q4_K_M", "Q4_0", "Q3_K_M", "Q2_K")
WORDS = 200  # passages whose last word is asked for


def calibration(tokenizer, text: str, seed: int) -> torch.Tensor:
    """Token ids (sequences, length) from random places of a text."""
    (rows, length), ids = CALIBRATION, mb.data.prose.token_ids(tokenizer, text)
    generator = torch.Generator().manual_seed(seed)
    places = torch.randint(len(ids) - length, (rows,), generator=generator)
    return torch.stack([ids[place : place + length] for place in places])


class Bench:
    """The model, its text, and what is recorded of one variant after the other."""

    def __init__(self, name: str):
        self.name = name
        self.llm = mb.models.smollm.load(dtype=torch.float32)
        self.prose = mb.data.prose.load()
        tokenizer = self.llm.tokenizer
        self.windows = mb.data.prose.windows(tokenizer, self.prose.held_out, *WINDOWS)
        self.source, self.passages = mb.data.prose.last_words(WORDS)
        self.weights = {k: w.clone() for k, w in self.llm.model.state_dict().items()}
        model = self.llm.model
        self.original = mb.evaluation.log_probabilities(self.of(model), self.windows)
        try:
            self.result = reference.load(name)["result"]
        except mb.core.errors.MicrobudgetError:
            tokens = self.windows.numel() - len(self.windows)
            self.result = {"tokens": tokens, "block": BLOCK, "methods": {}}

    @staticmethod
    def of(model):
        return lambda ids: model(ids.to(model.device)).logits

    def fresh(self):
        self.llm.model.load_state_dict(self.weights)
        return self.llm.model

    def calibration(self, seed: int) -> torch.Tensor:
        return calibration(self.llm.tokenizer, self.prose.calibration, seed)

    def has(self, label: str, seed: int = 0) -> bool:
        found = self.result["methods"].get(label, {"runs": []})
        return any(run["seed"] == seed for run in found["runs"])

    def add(self, label: str, scorer, seed: int = 0, words: bool = False, **more):
        """Evaluate, and record at once."""
        found = mb.evaluation.evaluate_perplexity(
            scorer, self.windows, self.original, batch_size=2
        )
        run = {"seed": seed, "perplexity": found.perplexity, "kl": found.kl}
        run |= {"loss": _blocks(found.losses), "divergence": _blocks(found.divergence)}
        if words:
            hits, _ = mb.evaluation.last_words(
                scorer, self.llm.tokenizer, self.passages
            )
            run["words"] = reference.pack(hits)
        method = self.result["methods"].setdefault(label, {"runs": []})
        method["runs"].append(run | more)
        print(f"{label}, seed {seed}: {found}", flush=True)
        self.save()

    def save(self):
        self.result["last words"] = {"source": self.source, "items": len(self.passages)}
        what, data = {
            "llm-quantization": (
                "SmolLM2-135M-Instruct in fewer bits, every method on the same text; "
                f"GPTQ is calibrated on {CALIBRATION[0]} × {CALIBRATION[1]} tokens.",
                "methods",
            ),
            "llm-gptqmodel": (
                "GPTQModel on the same calibration text and settings as the course's "
                "GPTQ.",
                "gptqmodel",
            ),
            "llm-fair": (
                "SmolLM2-135M-Instruct in fewer bits: embeddings in 8 bits and scales "
                "for groups of 32 weights in every arm (NF4 too).",
                "fair",
            ),
        }[self.name]
        command = f"python tests/benchmarks/llm_reference.py {data}"
        reference.record(self.name, what, command, self.prose.name, self.result)


def _blocks(values: torch.Tensor) -> list[float]:
    """Means over blocks of neighbouring tokens."""
    whole = values[: len(values) // BLOCK * BLOCK].double().view(-1, BLOCK)
    return [round(x, 5) for x in whole.mean(1).tolist()]


def rounded(bench: Bench) -> None:
    if not bench.has("original"):
        bench.add("original", bench.of(bench.fresh()), words=True)
    for name, config in ROUNDED.items():
        if not bench.has(f"rounding, {name}"):
            mb.llm.round_model_(bench.fresh(), config)
            words = name in ("4 bits", "3 bits")
            bench.add(f"rounding, {name}", bench.of(bench.llm.model), words=words)


def gptq(bench: Bench, configs: dict, seeds) -> None:
    for seed in seeds:
        for name, config in configs.items():
            if bench.has(f"GPTQ, {name}", seed):
                continue
            started = time.perf_counter()
            mb.llm.quantize_(bench.fresh(), bench.calibration(seed), config)
            took = round(time.perf_counter() - started, 1)
            words = seed == 0 and "act-order" in name
            scorer = bench.of(bench.llm.model)
            bench.add(f"GPTQ, {name}", scorer, seed, words, seconds=took)


def files(bench: Bench) -> None:
    bench.fresh()
    with tempfile.TemporaryDirectory() as folder:
        whole = mb.llm.write_gguf(bench.llm, Path(folder) / "F16.gguf")
        for kind in FILES:
            if bench.has(kind):
                continue
            file = mb.llm.quantize_gguf(whole, Path(folder) / f"{kind}.gguf", kind)
            with mb.llm.engines.llama_cpp.Model(file.path) as model:
                bench.add(kind, model.scorer, words=kind == "Q4_K_M", bytes=file.size)


def loaded(bench: Bench) -> None:
    for name, options in (("int8", {"eight_bit": True}), ("NF4", {"four_bit": True})):
        if not bench.has(f"bitsandbytes {name}"):
            model = mb.models.smollm.load(dtype=torch.float32, **options).model
            size = mb.evaluation.stored_bytes(model)
            bench.add(f"bitsandbytes {name}", bench.of(model), bytes=size)


def gptqmodel(bench: Bench) -> None:
    from gptqmodel import GPTQModel, QuantizeConfig

    for seed in SEEDS:
        for name, config in SEEDED.items():
            if bench.has(f"GPTQModel, {name}", seed):
                continue
            # with act-order its default groups are of reordered columns: static_groups
            # makes them neighbours in the matrix, as ours are
            theirs = QuantizeConfig(
                bits=config.bits, group_size=config.group_size, sym=config.symmetric,
                desc_act=config.act_order, damp_percent=config.damping,
                act_group_aware=False, static_groups=config.act_order,
            )  # fmt: skip
            folder = mb.assets.fetch(mb.models.smollm.DEFAULT)
            model = GPTQModel.load(str(folder), theirs)
            rows = bench.calibration(seed).tolist()
            rows = [{"input_ids": r, "attention_mask": [1] * len(r)} for r in rows]
            started = time.perf_counter()
            model.quantize(rows, batch_size=4)
            took = round(time.perf_counter() - started, 1)
            with tempfile.TemporaryDirectory() as written:
                model.save(written)
                packed = mb.llm.load(Path(written)).model
            weights = {n: m.weight() for n, m in packed.named_modules()
                       if isinstance(m, PackedLinear)}  # fmt: skip
            mb.llm.set_weights_(bench.fresh(), weights)
            scorer = bench.of(bench.llm.model)
            bench.add(f"GPTQModel, {name}", scorer, seed, seconds=took)


EMBEDDINGS = QuantConfig(8, 32)
FAIR_SEEDS = range(3)
ASKED = (
    "original",
    "rounding, 4 bits",
    "Q8_0",
    "Q4_K_M",
    "Q2_K",
    "NF4",
    "GPTQ, 4 bits",
)


def fair(bench: Bench) -> None:
    """Embeddings in eight bits for all, and scales for groups of 32 weights."""
    model = bench.fresh()
    table = model.get_input_embeddings().weight
    rounded_table = mb.llm.round_to_nearest(table, EMBEDDINGS)
    total = mb.evaluation.count_parameters(model).total
    inside = sum(m.weight.numel() for m in linear_layers(model).values())

    def bits(of_layers: float) -> float:
        """Of the whole model, when the layers have so many."""
        rest = table.numel() * mb.llm.bits_per_weight([rounded_table])
        vectors = 16 * (total - inside - table.numel())
        return (inside * of_layers + rest + vectors) / total

    def fresh():
        mb.llm.set_weights_(bench.fresh(), {"model.embed_tokens": rounded_table})
        return bench.llm.model

    if not bench.has("original"):
        bench.add("original", bench.of(bench.fresh()), words=True, bits=16)
    for b in (8, 4, 3, 2):
        if not bench.has(f"rounding, {b} bits"):
            found = mb.llm.round_model_(fresh(), QuantConfig(b, 32))
            size = bits(mb.llm.bits_per_weight(list(found.values())))
            name = f"rounding, {b} bits"
            bench.add(name, bench.of(bench.llm.model), words=name in ASKED, bits=size)
    bench.fresh()
    with tempfile.TemporaryDirectory() as folder:
        whole = mb.llm.write_gguf(bench.llm, Path(folder) / "F16.gguf")
        for kind in FILES:
            if bench.has(kind):
                continue
            target = Path(folder) / f"{kind}.gguf"
            file = mb.llm.quantize_gguf(whole, target, kind, "Q8_0")
            size = 8 * sum(t.size for t in file.tensors) / file.weights
            with mb.llm.engines.llama_cpp.Model(file.path) as model:
                bench.add(kind, model.scorer, words=kind in ASKED, bits=size)
    if not bench.has("NF4"):
        from bitsandbytes import functional as bnb

        model = fresh()
        with torch.no_grad():
            for linear in linear_layers(model).values():
                packed, state = bnb.quantize_4bit(
                    linear.weight.data, blocksize=32, quant_type="nf4",
                    compress_statistics=True,
                )  # fmt: skip
                linear.weight.copy_(bnb.dequantize_4bit(packed, state))
        # a scale in 8 bits for 32 weights, one in 32 bits for 256 of those
        size = bits(4 + 8 / 32 + 32 / (32 * 256))
        bench.add("NF4", bench.of(model), words=True, bits=size)
    if not bench.has("int8"):
        model = mb.models.smollm.load(dtype=torch.float32, eight_bit=True).model
        with torch.no_grad():
            model.get_input_embeddings().weight.copy_(rounded_table.dequantize())
        bench.add("int8", bench.of(model), bits=bits(8 + 32 / 576))
    for seed in FAIR_SEEDS:
        for b in (4, 3):
            for search in (False, True):
                name = f"GPTQ, {b} bits" + ", searched scales" * search
                if bench.has(name, seed):
                    continue
                config = QuantConfig(b, 32, act_order=True, search_scales=search)
                found = mb.llm.quantize_(fresh(), bench.calibration(seed), config)
                size = bits(mb.llm.bits_per_weight(list(found.values())))
                scorer = bench.of(bench.llm.model)
                words = seed == 0 and name in ASKED
                bench.add(name, scorer, seed, words, bits=size)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("methods", "gptqmodel", "fair"))
    parser.add_argument("--seeds", type=int, default=len(SEEDS))
    options = parser.parse_args()
    torch.set_num_threads(mb.core.settings.load().threads)
    if options.what == "gptqmodel":
        return gptqmodel(Bench("llm-gptqmodel"))
    if options.what == "fair":
        return fair(Bench("llm-fair"))
    bench = Bench("llm-quantization")
    rounded(bench)
    files(bench)
    loaded(bench)
    gptq(bench, SEEDED | ONCE | SEARCHED, range(1))
    gptq(bench, SEEDED | SEARCHED, range(1, options.seeds))
    best = {n: np.mean([r["kl"] for r in m["runs"]])
            for n, m in bench.result["methods"].items()}  # fmt: skip
    print(*sorted(best.items(), key=lambda item: item[1]), sep="\n")


if __name__ == "__main__":
    main()
