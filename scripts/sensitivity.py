"""Compare the measures that predict what a group of sites loses: python scripts/sensitivity.py MODEL DATA

For every measure: seconds, and its rank correlation (Spearman) with the divergence of the model's output on
samples that no measure has seen, over all groups and precisions, and of the 4-bit ones alone. DATA is what
`tvmq compile --calibration` takes; a quarter of it is kept for the comparison.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path

import rich
from scipy.stats import spearmanr

from tvmq.automatic import CANDIDATES
from tvmq.calibrate.batches import as_batches, input_specs
from tvmq.images import load_calibration
from tvmq.model_file import open_model
from tvmq.plan.assign import assign_precisions
from tvmq.plan.cost_table import precision_name
from tvmq.plan.groups import site_groups
from tvmq.plan.problem import EIGHT
from tvmq.plan.sensitivity import MEASURES, Losses, Subject, sensitivities
from tvmq.prepared import Settings, prepare, uniform_numbers
from tvmq.quantizer import canonical
from tvmq.report import comparison


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("data")
    parser.add_argument("--samples", type=int, default=32)
    given = parser.parse_args()
    subject, held = subjects(given.model, given.data, given.samples)
    truth = sensitivities(replace(subject, batches=held), "output")
    rows = []
    for measure in MEASURES:
        began = time.perf_counter()
        found = sensitivities(subject, measure)
        seconds = time.perf_counter() - began
        four = {at: loss for at, loss in truth.items() if at[1] == precision_name(CANDIDATES[0])}
        rows.append([measure, f"{seconds:.1f}", *(f"{rank(found, wanted):.3f}" for wanted in (truth, four))])
        print(measure, rows[-1][1:], flush=True)
    title = f"{len(subject.groups)} groups, {len(subject.batches)} batches seen, {len(held)} held out"
    rich.print(comparison(title, ["measure", "seconds", "rank correlation", "of w4a8 alone"], rows))


def subjects(model: str, data: str, samples: int) -> tuple[Subject, list[object]]:
    """Return the subject, and the batches that it does not hold."""
    opened = open_model(Path(model))
    mod = canonical(opened.model, opened.examples())
    loaded = load_calibration(data, opened.inputs, preprocessing=None, limit=samples)
    settings = Settings(ignored=(), requantize="pot", observer="mse", seed=0, strict=False)
    prepared = prepare(mod, list(as_batches(loaded, input_specs(mod))), settings, keep=True)
    names = [EIGHT, *map(precision_name, CANDIDATES)]
    numbers = {name: uniform_numbers(prepared, name) for name in names}
    plan = assign_precisions(prepared.nodes, prepared.hash)
    groups = site_groups(prepared.nodes, plan, CANDIDATES)
    return Subject(prepared.mod, prepared.nodes, groups, numbers, prepared.fitted), list(prepared.held)


def rank(found: Losses, wanted: Losses) -> float:
    """Return Spearman's correlation."""
    return float(spearmanr([found[at] for at in wanted], list(wanted.values())).statistic)


if __name__ == "__main__":
    main()
