"""What a check of an artifact finds, and the comparison of its tensors with the checkpoint it was made from."""

import hashlib
import itertools
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medlite.errors import ArtifactError
from medlite.files import OnBytes
from quantize.source.checkpoint import Checkpoint, RowReader
from quantize.stream.plan import PlannedTensor
from quantize.stream.receipt import sqnr_db
from quantize.stream.slabs import SlabEncoder, places_of, slabs_of

READ_BYTES = 1 << 22

# A tensor further from its source than this is not a quantization of it. The worst honest type, IQ1_S, keeps about
# 5 dB on normal weights; a swapped or permuted tensor is below 0 dB.
WRONG_TENSOR_DB = 2.0


@dataclass(frozen=True)
class Comparison:
    """One tensor against the source. identical: equal to what medlite would write. sqnr_db: None for no loss."""

    name: str
    type: str
    identical: bool
    sqnr_db: float | None


@dataclass(frozen=True)
class Verification:
    """problems: what is wrong, one line each, empty for a sound artifact. checked: what was looked at."""

    path: Path
    checked: tuple[str, ...]
    problems: tuple[str, ...]
    comparisons: tuple[Comparison, ...] = ()

    @property
    def ok(self) -> bool:
        return not self.problems


def range_sha256(path: Path, start: int, n_bytes: int, on_bytes: OnBytes = lambda n: None) -> str:
    """SHA-256 of n_bytes of the file from byte `start`. Raises ArtifactError if the file ends early."""
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as handle:
        handle.seek(start)
        while n_bytes:
            block = handle.read(min(READ_BYTES, n_bytes))
            if not block:
                raise ArtifactError(f"{path}: ends {n_bytes} bytes early")
            digest.update(block)
            on_bytes(len(block))
            n_bytes -= len(block)
    return digest.hexdigest()


def compare_tensors(
    checkpoint: Checkpoint, tensors: Sequence[PlannedTensor], paths: Sequence[Path]
) -> Iterator[Comparison]:
    """Each tensor encoded again from the source, slab by slab, against its parts in `paths`."""
    with ExitStack() as stack:
        reader = stack.enter_context(RowReader())
        reader.open(checkpoint.tensors)
        files = [stack.enter_context(path.open("rb", buffering=0)) for path in paths]
        encoder = SlabEncoder(reader)
        for i, slabs in itertools.groupby(slabs_of(tensors), key=lambda slab: slab.tensor):
            tensor, identical, squared_weight, squared_error = tensors[i], True, 0.0, 0.0
            for slab in slabs:
                stored = []
                for place in places_of(slab, tensor):
                    files[place.file].seek(place.position)
                    stored.append(np.frombuffer(files[place.file].read(place.n_bytes), np.uint8))
                wanted = encoder.encode(slab, [tensor])[0]
                same = all(a.tobytes() == b.tobytes() for a, b in zip(stored, wanted.parts, strict=True))
                errors = wanted.errors if same else encoder.measure_slab(slab, tensor, stored)
                identical = identical and same
                squared_weight += errors.squared_weight
                squared_error += errors.squared_error
            yield Comparison(tensor.name, tensor.encoding.name, identical, sqnr_db(squared_weight, squared_error))


def wrong_tensors(path: Path, comparisons: Sequence[Comparison]) -> list[str]:
    """A line for each tensor that is no quantization of the source's."""
    return [
        f"{path}: {one.name} is not the source's tensor: SQNR {one.sqnr_db:.1f} dB"
        for one in comparisons
        if one.sqnr_db is not None and one.sqnr_db < WRONG_TENSOR_DB
    ]
