"""The methods of the at-a-glance table, and the chart that leads to them.

A method names rows of the run records: its figures are what the last run measured.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Method:
    """A line of the table.

    Attributes:
        key: of the decision chart. notebook: the name's first digits.
        row, base: rows of the run record: what the method made, and from what.
        needs: the data that it is trained or calibrated on.
        made: rows whose work it took, if not its own alone; "07:a row" is one of
            another notebook.
        carrier: row with its bytes and latency, where another holds them.
        on_base: the bytes are of what was trained alone, and come on top of the base.
    """

    key: str
    name: str
    notebook: str
    row: str
    base: str
    needs: str
    made: tuple[str, ...] = ()
    carrier: str = ""
    on_base: bool = False


METHODS = (
    Method(
        "transfer", "transfer: frozen MobileNetV2, linear head", "01",
        "three stages, regularised, mirrored, 3 seeds", "from scratch: small CNN",
        "a few labelled images per class",
        (
            "features, once an image", "features at three stages, mirrored",
            "three stages, regularised, mirrored, 3 seeds",
        ),
        "saved classifier",
    ),
    Method(
        "distil-speech", "distillation: Whisper, half of the decoder", "02",
        "student, all clips", "teacher, all clips", "speech, the teacher's transcripts",
        ("the teacher's targets", "the student's training"),
    ),
    *(
        Method(
            key, name, "03", f"{key}, seeds 1 and 2", "full, seeds 1 and 2",
            "labelled sentences", on_base=True,
        )
        for key, name in (
            ("bitfit", "BitFit: biases alone"),
            ("ia3", "(IA)³: scales alone"),
            ("bottleneck", "adapters in every layer"),
            ("lora", "LoRA, rank 8"),
            ("qlora", "QLoRA: LoRA on 4 bits"),
        )
    ),
    Method("gptq", "GPTQ, 4 bits", "04", "GPTQ 4", "original", "some text"),
    Method(
        "gguf", "GGUF, Q4_K_M, by llama.cpp", "04", "Q4_K_M evaluated", "F16 evaluated",
        "nothing", ("GGUF files written",),
    ),
    Method("nf4", "NF4 while loading", "04", "NF4", "original", "nothing"),
    Method(
        "int8", "int8, our own, static", "05", "MobileNetV2, int8",
        "MobileNetV2, float", "unlabelled images",
        ("MobileNetV2, static int8, fake-quantized",),
    ),
    Method(
        "distil", "distillation: two layers of six", "06",
        "two_layers: 2 layers, soft + unlabelled", "the teacher",
        "a few labels, more sentences without",
        ("teacher's answers, computed", "two_layers: 2 layers, soft + unlabelled"),
    ),
    Method(
        "distil-lstm", "distillation: into a BiLSTM", "06",
        "bilstm: soft + unlabelled", "the teacher",
        "a few labels, more sentences without",
        ("teacher's answers, computed", "bilstm: soft + unlabelled"),
    ),
    Method(
        "channels", "pruning: channels removed, fine-tuned", "07",
        "flowers: smaller, fine-tuned", "flowers: whole, fine-tuned",
        "labelled images",
        ("flowers: importance of channels",
         "flowers: channels removed and reconstructed",
         "flowers: smaller, fine-tuned"),
    ),
    Method(
        "heads", "pruning: heads and neurons removed", "07",
        "sentiment, heads and neurons removed", "sentiment, whole",
        "a few labelled sentences",
        ("encoder: importance of heads and neurons",
         "encoder: neurons that others can replace",
         "sentiment, heads and neurons removed"),
    ),
    Method(
        "low-rank", "low rank, chosen by loss", "08", "low rank, by loss, budget of 32",
        "low rank: the whole network", "a few labelled sentences",
        ("moments of all inputs", "moments of all gradients",
         "SVD of every linear layer, by loss"),
    ),
    Method(
        "engine", "another engine, in floats: OpenVINO", "09", "classifier, openvino",
        "classifier, torch", "nothing", ("making classifier",),
    ),
    Method(
        "engine-int8", "another engine, in int8: ONNX Runtime", "09",
        "classifier, onnxruntime int8 dynamic", "classifier, torch", "nothing",
        ("making classifier", "making onnxruntime int8 dynamic"),
    ),
    Method(
        "detector", "a detector in int8, its sensitive parts in floats", "10",
        "detector, int8, sensitive parts in float", "detector, float32",
        "pages with boxes",
        ("detector, int8 everywhere", "detector, a part at a time",
         "detector, int8, sensitive parts in float"),
    ),
    Method(
        "stacked", "stacked: distilled, pruned, ONNX Runtime int8", "11",
        "sentences: distilled, pruned, onnxruntime int8", "sentences: whole, torch",
        "labels, more sentences without",
        ("sentences: distilled", "sentences: distilled, pruned",
         "sentences: distilled, pruned, exported and quantized"),
    ),
    Method(
        "stacked-images", "stacked: channels removed, ONNX Runtime int8", "11",
        "flowers: pruned, onnxruntime int8", "flowers: whole, torch",
        "labelled images",
        ("07:flowers: importance of channels",
         "07:flowers: channels removed and reconstructed",
         "07:flowers: smaller, fine-tuned",
         "flowers: pruned, exported and quantized"),
    ),
)  # fmt: skip

# question -> answer -> another question, or the keys of methods
CHART = {
    "What is the problem?": {
        "there is no model for my task yet": {
            "What may change?": {
                "nothing but a new head": ("transfer",),
                "a few weights, for many tasks side by side": ("lora", "ia3"),
            }
        },
        "it doesn't fit into memory or on the disk": {
            "What is it?": {
                "a language model, on a CPU": ("gguf",),
                "a language model, on a GPU": ("gptq", "nf4"),
                "a network for images": ("int8", "detector"),
            }
        },
        "it is too slow": {
            "Can it be trained again?": {
                "no": ("engine", "engine-int8"),
                "a little": ("channels", "heads", "low-rank"),
                "yes, and there are examples without labels": ("distil", "distil-lstm"),
            }
        },
        "all of that": ("stacked", "stacked-images"),
    }
}
