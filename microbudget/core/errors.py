"""One family of exceptions whose message says what happened, where, what to do."""


class MicrobudgetError(Exception):
    """Base of every error that a reader of the course can cause and can fix."""

    def _render_traceback_(self) -> list[str]:
        # IPython shows these lines instead of a traceback three libraries deep.
        return [f"{type(self).__name__}: {self}"]


class SettingsError(MicrobudgetError):
    """A setting (environment variable) that has no meaning."""


class AssetError(MicrobudgetError):
    """A model or data set that can't be found, fetched, verified or converted."""


class DataError(MicrobudgetError):
    """Data that can't be read or don't fit together."""


class TrainingError(MicrobudgetError):
    """A training run that can't start or has gone wrong."""


class EvaluationError(MicrobudgetError):
    """A measurement that would be meaningless."""


class QuantizationError(MicrobudgetError):
    """Weights or a file that can't be quantized, packed, read or run."""


class EngineError(MicrobudgetError):
    """An engine that runs models (Ollama, llama.cpp) is absent, too old, or failed."""
