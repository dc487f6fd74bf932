"""Every error that medlite raises on purpose.

MedliteError
├── CheckpointError        a Hugging Face folder cannot be read or understood
│   ├── TokenizerError     its tokenizer cannot be carried over exactly
│   └── NotFiniteError     a weight is NaN or infinite
├── RecipeError            an unknown recipe or tensor type, or one that the model's shape cannot take
├── ArtifactError          a quantized model on disk is malformed, cut short or of an unknown kind
├── OutputError            the result cannot be written: it exists, the disk is full, the folder is missing
├── EngineError            a runtime could not load or run a model
│   ├── DeviceError        the asked-for device is not there or not usable
│   ├── MemoryShortError   loading would exhaust memory
│   ├── ContextError       a prompt does not fit the context
│   └── ServerError        a server cannot be reached, or is not what it must be
│       └── RefusedError   it refuses one request, or does not tell one probability; others may succeed
├── TaskError              a question set is missing, malformed or ambiguous
├── RecordError            a run record is malformed, or two records cannot be compared
└── MissingExtraError      an optional dependency is not installed
"""


class MedliteError(Exception):
    """An error with a message for a person: where, what was found, what was expected; `hint` says what to do."""

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


# fmt: off
class CheckpointError(MedliteError): ...
class TokenizerError(CheckpointError): ...
class RecipeError(MedliteError): ...
class ArtifactError(MedliteError): ...
class OutputError(MedliteError): ...
class EngineError(MedliteError): ...
class DeviceError(EngineError): ...
class MemoryShortError(EngineError): ...
class ContextError(EngineError): ...
class ServerError(EngineError): ...
class RefusedError(ServerError): ...
class TaskError(MedliteError): ...
class RecordError(MedliteError): ...
# fmt: on


class NotFiniteError(CheckpointError):
    """Raised where rows are encoded; `row` counts from the rows given. The caller knows the tensor's name."""

    def __init__(self, row: int) -> None:
        super().__init__(
            f"row {row} holds an infinite weight or NaN; every weight must be finite",
            hint="the checkpoint is damaged: download it again, or report it to whoever made it",
        )
        self.row = row


class MissingExtraError(MedliteError):
    """Raised where an optional dependency is first needed; the hint names the extra that brings it."""

    def __init__(self, module: str, extra: str) -> None:
        super().__init__(f"{module} is not installed", hint=f"pip install 'medlite[{extra}]'")
