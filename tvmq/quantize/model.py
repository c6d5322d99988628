"""What the stages after statistics work on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import tvm

from tvmq.calibrate.collect import images
from tvmq.plan.formats import Formats, swallowed
from tvmq.plan.nodes import MULTIPLYING, Node, Nodes
from tvmq.progress import Progress
from tvmq.quantize.lockstep import Lockstep, evenly, samples_within
from tvmq.quantize.units import Unit, units


@dataclass(frozen=True, slots=True, eq=False)
class Model:
    """A balanced canonical module, what it holds, and what it is calibrated on."""

    mod: tvm.IRModule
    nodes: Nodes
    formats: Formats
    batches: Sequence[Sequence[torch.Tensor]]

    def sites(self) -> dict[str, Node]:
        """Return the sites that multiply in integers."""
        return {
            name: node
            for name, node in self.nodes.by_name.items()
            if node.kind in MULTIPLYING and name in self.formats.integer
        }

    def units(self) -> tuple[Unit, ...]:
        """Return the units of sites that are rounded together."""
        goes_on = swallowed(self.nodes, self.formats.integer)
        return units(
            self.mod["main"],
            self.sites().__contains__,
            goes_on.__contains__,
            self.formats.values.__contains__,
        )

    def images(self) -> frozenset[str]:
        """Return the values laid out [N, C, H, W]."""
        return images(self.mod)

    def walked(self) -> Sequence[Sequence[torch.Tensor]]:
        """Return as many batches as fit in memory, from all over the data."""
        return evenly(self.batches, samples_within(self.mod["main"]))

    def lockstep(self, progress: Progress, stage: str) -> Lockstep:
        """Return a walk over these."""
        stored, readers = self.formats.values.__contains__, self.formats.uint8_readers.__contains__
        return Lockstep(
            self.mod,
            self.nodes,
            self.walked(),
            stored=stored,
            reads_copy=readers,
            progress=lambda done, total: progress(stage, done, total),
        )
