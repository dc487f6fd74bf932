"""How a chat shows what low bits cost the model that is being talked with."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bench.compare.nearby import Loss
    from medlite.formats.artifact import Artifact

MINUS = "−"


def signed(points: float) -> str:
    """One decimal with its sign, and no sign for nothing."""
    text = f"{abs(points):.1f}"
    return text if text == "0.0" else f"{'+' if points > 0 else MINUS}{text}"


def short_loss(loss: "Loss") -> str:
    """For the status line."""
    return f"{signed(loss.points)} points on {loss.task}"


def full_loss(loss: "Loss") -> str:
    """For the banner."""
    return (
        f"accuracy {signed(loss.points)} points [{signed(loss.low)}, {signed(loss.high)}] against "
        f"{loss.baseline} ({loss.task}, n = {loss.n:,})"
    )


def loss_line(losses: "Sequence[Loss]", artifact: "Artifact") -> str:
    """What the banner says of the cost of the artifact's recipe."""
    from bench.compare.nearby import FULL_PRECISION

    if losses:
        return "Measured: " + "; ".join(map(full_loss, losses[:3]))
    if artifact.recipe in FULL_PRECISION:
        return ""
    return "What its bits cost was not measured here: medlite bench sweep"
