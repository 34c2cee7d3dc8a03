"""The errors a user can act on: each message is one sentence with what failed, where, and what to change."""


class FusionError(Exception):
    """Root of every error Fuseline raises on purpose; the command line prints its message and exits with 2."""


class ConfigError(FusionError):
    """A recipe, an option or an environment variable is wrong."""


class DialogueError(FusionError):
    """A data file, or too large a share of its dialogues, cannot be used."""


class DialogueRefusedError(FusionError):
    """One dialogue cannot be encoded by one tokenizer; the caller counts it and goes on."""


class ModelError(FusionError):
    """A model folder or hub model cannot be loaded, or computes NaN or infinite values."""


class TokenizerError(FusionError):
    """A tokenizer or its chat template cannot be used."""


class ShardError(FusionError):
    """A shard is broken, of another schema version, or holds something else than asked for."""


class AlignmentError(FusionError):
    """Two tokenizations or vocabularies cannot be aligned."""


class TrainingError(FusionError):
    """Training diverged or ran out of memory."""


class TrainingInterruptedError(TrainingError):
    """Training was asked to stop and has written a checkpoint to go on from."""


class MergeError(FusionError):
    """Checkpoints cannot be merged."""


class StoreError(FusionError):
    """The object store cannot be reached, read or written, or an object in it is not what its manifest says."""


class EvaluationError(FusionError):
    """A model cannot be scored."""


class EndpointError(EvaluationError):
    """An endpoint that serves a model, such as a judge, does not answer, or not us."""


class TrackingError(FusionError):
    """MLflow cannot be reached or refuses what was sent."""


def first_line(error: BaseException) -> str:
    """Return the first line of another library's message, or the error's type where it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
