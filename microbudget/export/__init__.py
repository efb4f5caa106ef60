"""Notebook 09: other engines, ONNX Runtime and OpenVINO."""

from ..core.lazy import attach

__getattr__, __dir__ = attach(
    __name__,
    {
        "available_engines": "sessions",
        "missing_engines": "sessions",
        # a module as a file
        "trace": "onnx",
        "WhisperEncoder": "onnx",
        "export_text_classifier": "onnx",
        "export_image_classifier": "onnx",
        "export_whisper_encoder": "onnx",
        "export_module": "onnx",
        # the file in an engine
        "load_session": "sessions",
        "relative_difference": "onnx",
        "TOLERANCE": "onnx",
        "count_operators": "inspect",
        "optimize_graph": "inspect",
        "compiled_operators": "inspect",
        "operator_precisions": "inspect",
        # int8
        "quantize_dynamic": "quantize",
        "quantize_static": "quantize",
        "StaticConfig": "quantize",
        "quantize_openvino": "quantize",
        "needs_reduced_range": "quantize",
        "first_nodes": "quantize",
        # a process of its own
        "measure_footprint": "footprint",
    },
)
