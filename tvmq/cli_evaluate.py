"""The evaluate command."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import tvmq
from tvmq import report
from tvmq.cli_artifact import photo_preprocessing
from tvmq.cli_output import StageDisplay, show
from tvmq.evaluation import Evaluation, evaluate
from tvmq.model_file import open_model
from tvmq.progress import step
from tvmq.spec import Array, TensorSpec


def evaluate_artifact(
    path: Path,
    images: Path,
    labels: Path | None,
    float_model: Path | None,
    scaling: tuple[str, str],
    threads: int | None,
    *,
    as_json: bool,
) -> int:
    """Tell how many photos an artifact names right, and how far from float it is if that model is given."""
    model = tvmq.load(path, threads=threads)
    preprocessing = photo_preprocessing(model, scaling)
    with StageDisplay() as display:
        with step(display, "import"):
            exact = float_function(float_model, model.inputs) if float_model else None
        found = evaluate(
            model, images, labels=labels, exact=exact, preprocessing=preprocessing, progress=display
        )
    show(found.to_json(), report.facts(str(path), described(found)), as_json=as_json)
    return 0


def float_function(path: Path, inputs: tuple[TensorSpec, ...]) -> Callable[[Array], Array]:
    """Return a float model as a function of one batch shaped like the artifact's input."""
    import numpy as np
    import torch

    from tvmq import reference
    from tvmq.quantizer import canonical

    opened = open_model(path)
    mod = canonical(opened.model, tuple(np.zeros(spec.shape, spec.dtype) for spec in inputs))
    reference.require_operators(mod)

    def run(batch: Array) -> Array:
        scores: Array = reference.run(mod, [torch.from_numpy(batch)])[0].numpy()
        return scores

    return run


def described(found: Evaluation) -> dict[str, str]:
    """Return the lines of the table."""
    labels = f" of {found.classes:,} classes" if found.classes else ", not labelled"
    lines = {"photos": f"{found.photos:,}{labels}"}
    if found.top1 is not None:
        lines["top-1"] = f"{found.top1:.2f} %"
    if found.top5 is not None:
        lines["top-5"] = f"{found.top5:.2f} %"
    c = found.comparison
    if c is not None:
        if c.drop is not None:
            lines |= {
                "float top-1": f"{found.float_top1:.2f} %",
                "drop, 95 % interval": f"{c.drop:.2f} points, {c.low:.2f} to {c.high:.2f}",
            }
        lines |= {
            "same class as float": f"{c.agreement:.2f} %",
            "cosine to float's scores": f"{c.cosine:.5f}",
        }
    return lines
