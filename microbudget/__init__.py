"""microbudget: a course on making machine-learning models small and cheap.

``import microbudget as mb`` loads nothing heavy. ``mb.start("01_…")`` begins a
notebook; ``mb.flowers``, ``mb.training`` … are modules, loaded when first used.
"""

from importlib import import_module

from . import settings

__version__ = "0.1.0"

settings.go_quiet_and_offline()

# name in `mb.` -> module, or "module:attribute"
_LAZY = {
    "assets": "assets",
    "flowers": "data.flowers",
    "images": "data.images",
    "speech": "data.speech",
    "audio": "data.audio",
    "text": "data.text",
    "dialogue": "data.dialogue",
    "prose": "data.prose",
    "mobilenet": "models.mobilenet",
    "efficientnet": "models.efficientnet",
    "vision": "models.vision",
    "encoder": "models.encoder",
    "llm": "models.llm",
    "four_bit": "models.four_bit",
    "whisper": "models.whisper",
    "whisper_forward": "models.whisper_forward",
    "batching": "batching",
    "features": "features",
    "precision": "precision",
    "training": "training",
    "timers": "evaluation.timers",
    "sizes": "evaluation.sizes",
    "memory": "evaluation.memory",
    "metrics": "evaluation.metrics",
    "pareto": "evaluation.pareto",
    "wer": "evaluation.speech",
    "language": "evaluation.language",
    "transfer": "transfer",
    "tail_tuning": "tail_tuning",
    "decoding": "decoding",
    "transcription": "transcription",
    "distillation": "distillation",
    "whisper_distillation": "whisper_distillation",
    "students": "students",
    "teacher_outputs": "teacher_outputs",
    "classifier_distillation": "classifier_distillation",
    "mutual_learning": "mutual_learning",
    "sequence_distillation": "sequence_distillation",
    "speculation": "speculation",
    "adapters": "adapters",
    "finetuning": "finetuning",
    "finetuned": "finetuned",
    "classification": "classification",
    "languages": "languages",
    "errors": "errors",
    "instruction": "instruction",
    "lessons": "lessons",
    "training_memory": "evaluation.training_memory",
    "number_formats": "quantization.number_formats",
    "mapping": "quantization.mapping",
    "ranges": "quantization.ranges",
    "integer": "quantization.integer",
    "simulated": "quantization.simulated",
    "int8_kernels": "quantization.int8_kernels",
    "int8_file": "quantization.int8_file",
    "mixed": "quantization.mixed",
    "affine": "quantization.affine",
    "gptq": "quantization.gptq",
    "layerwise": "quantization.layerwise",
    "packing": "quantization.packing",
    "packed": "quantization.packed",
    "checkpoint": "quantization.checkpoint",
    "native": "quantization.native",
    "sensitivity": "quantization.sensitivity",
    "generation": "evaluation.generation",
    "roofline": "evaluation.roofline",
    "hotspots": "evaluation.hotspots",
    "gguf_file": "quantization.gguf_file",
    "gguf_blocks": "quantization.gguf_blocks",
    "gguf_convert": "quantization.gguf_convert",
    "engines": "engines",
    "onnx_file": "export.onnx_file",
    "runtimes": "export.runtimes",
    "int8": "export.int8",
    "graphs": "export.graphs",
    "footprint": "export.footprint",
    "llama_cpp": "engines.llama_cpp",
    "ollama": "engines.ollama",
    "factorization": "factorization",
    "rank_budget": "rank_budget",
    "moments": "moments",
    "activation_svd": "activation_svd",
    "conv_factorization": "conv_factorization",
    "factored_files": "factored_files",
    "doctor": "doctor",
    "ledger": "ledger",
    "report": "report",
    "plots": "plots",
    "transcripts": "transcripts",
    "pruning": "pruning",
    "masking": "masking",
    "lottery": "lottery",
    "reconstruction": "reconstruction",
    "channels": "channels",
    "mending": "mending",
    "shrinking": "shrinking",
    "shrinking_encoder": "shrinking_encoder",
    "heads_and_neurons": "heads_and_neurons",
    "semi_structured": "semi_structured",
    "boxes": "detection.boxes",
    "coco": "detection.coco",
    "detector": "detection.detector",
    "drawing": "detection.drawing",
    "mixed_int8": "detection.mixed",
    "pages": "detection.pages",
    "picodet": "detection.picodet",
    "start": "ledger:start",
}

__all__ = ["settings", *_LAZY]


def __getattr__(name: str):
    if name not in _LAZY:
        raise AttributeError(f"module 'microbudget' has no attribute {name!r}")
    module, _, attribute = _LAZY[name].partition(":")
    value = import_module(f".{module}", __name__)
    value = getattr(value, attribute) if attribute else value
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])
