"""Foreign weight files and tables -> the files that the course reads.

A converter is a function ``(raw folder, ready folder) -> None``. What it gets has been
verified against the catalog's digests. It reads HDF5 with h5py and ``.pth`` with
``weights_only=True``: no pickled code is ever run.
"""

from ...core.lazy import attach

__getattr__, __dir__ = attach(
    __name__,
    {
        "keras_mobilenet_v2": "vision",
        "torchvision_mobilenet_v2": "vision",
        "llm_from_gguf": "gguf",
        "whisper_from_ctranslate2": "whisper",
        "rated_snippets": "text",
        "glue_tables": "text",
        "wikitext": "text",
    },
)
