"""The works of every site of a canonical model in every precision, and of conversions between sites."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import tvm

from tvmq.calibrate.calibration import Calibration
from tvmq.cost.works import Parts, Work, Works, peak_bytes
from tvmq.formats import Quantization
from tvmq.passes.constants import array_of
from tvmq.passes.insert_qdq import InsertQdq
from tvmq.passes.lower_integer import LowerInteger
from tvmq.passes.rebuild import bindings, operands
from tvmq.plan.assign import achieved, assign_precisions, coverage_of
from tvmq.plan.cost_table import FLOAT, precision_name
from tvmq.plan.formats import Formats, value_formats
from tvmq.plan.hardware import offered
from tvmq.plan.nodes import MULTIPLYING, Node, Nodes
from tvmq.plan.values import Value, values_of
from tvmq.quantize.choose import choose
from tvmq.sites import sites
from tvmq.spec import W8A8, Plan, Precision
from tvmq.target import TargetProfile

Options = Mapping[tuple[str, str], tuple[Work, ...]]  # by site and precision's name


@dataclass(frozen=True, slots=True)
class Subject:
    """What costs are asked of: a canonical (balanced) module and what calibration saw of it."""

    mod: tvm.IRModule
    nodes: Nodes
    seen: Calibration
    module_hash: str  # of the module that plans are bound to
    ignored: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Conversions:
    """What converts a value between sites."""

    value: Value
    to_integer: tuple[Work, ...]
    to_float: tuple[tuple[Work, ...], ...]  # by reading


@dataclass(frozen=True, slots=True)
class ModelWorks:
    """A model taken apart in all precisions."""

    options: Options
    weight_bytes: Mapping[tuple[str, str], int]
    conversions: tuple[Conversions, ...]
    rest: Works  # that of the 8-bit module; only what is of no site
    activation_bytes: Mapping[str, int]


def uniform(subject: Subject, precision: Precision) -> tuple[Plan, Formats, tvm.IRModule]:
    """Return the plan of one precision, how it stores values, and the integer module."""
    plan = assign_precisions(subject.nodes, subject.module_hash, ignored=subject.ignored, bits=precision)
    planned = {site.site: site.precision for site in plan.sites if site.precision is not None}
    formats = value_formats(subject.nodes, planned.__contains__, planned)
    # No time depends on what the weights are: each is rounded by itself.
    numbers: Quantization = choose(subject.nodes, formats, replace(subject.seen, linear_inputs={}))
    return plan, formats, tvm.transform.Sequential([InsertQdq(numbers), LowerInteger()])(subject.mod)


class Collector:
    """Takes one model apart; call `add` for W8A8 first."""

    def __init__(self, subject: Subject, parts: Parts, profile: TargetProfile) -> None:
        self._subject, self._parts, self._profile = subject, parts, profile
        self._macs = {site.id: site.macs for site in sites(subject.mod)}
        self._options: dict[tuple[str, str], tuple[Work, ...]] = {}
        self._bytes: dict[tuple[str, str], int] = {}
        self._activations = {FLOAT: peak_bytes(subject.mod["main"])}
        self._values = {str(b.var.name): b for b in bindings(subject.mod["main"])}
        self._formats: Formats | None = None
        self._rest: Works | None = None

    def add(self, precision: Precision) -> None:
        """Take in the sites of a uniform plan that have this precision (with W8A8: all that are integer)."""
        plan, formats, mod = uniform(self._subject, precision)
        rows = achieved(coverage_of(self._subject.mod, plan, formats.integer), mod).rows
        names = {row.site: row.macs for row in rows}
        left = {row.site for row in rows if not row.integer}
        nodes = self._subject.nodes.by_name
        left_bindings = {b for site in left for b in nodes[site].bindings}
        works = self._parts.integer(mod, names, left_bindings)
        constants = {str(b.var.name): _constant_bytes(b.value) for b in bindings(mod["main"])}
        for site in plan.sites:
            if site.site in left or site.precision != precision:
                continue
            if not self._offers(nodes[site.site], precision):
                continue
            at = site.site, precision_name(precision)
            self._options[at] = works.sites.get(site.site, ())
            self._bytes[at] = sum(w.stored_bytes for w in self._options[at]) or constants.get(site.site, 0)
        self._activations[precision_name(precision)] = peak_bytes(mod["main"])
        if precision == W8A8:
            self._formats, self._rest = formats, works

    def add_float(self, plan_sites: Sequence[str]) -> None:
        """Take in all sites as float operations."""
        nodes = self._subject.nodes
        for site in plan_sites:
            node = nodes.by_name[site]
            names = [*node.bindings]
            follower = nodes.sole_consumer(site)
            if follower is not None and follower.kind == "bias":
                names.append(follower.name)
            works = self._parts.floats(self._subject.mod, names, self._macs.get(site, 0))
            self._options[site, FLOAT] = works
            self._bytes[site, FLOAT] = sum(_constant_bytes(self._values[name].value) for name in names)

    def finish(self) -> ModelWorks:
        """Return what was collected."""
        assert self._formats is not None
        assert self._rest is not None
        params = self._subject.mod["main"].params
        shapes = {str(p.name): tuple(int(d) for d in p.ty.shape) for p in params}
        between = tuple(map(self._conversions, values_of(self._subject.nodes, shapes)))
        return ModelWorks(self._options, self._bytes, between, self._rest, self._activations)

    def _offers(self, node: Node, precision: Precision) -> bool:
        inputs = 1
        if node.kind in MULTIPLYING:
            weight = [int(d) for d in node.call.args[1].ty.shape]
            outputs = node.shape[-1 if node.kind == "linear" else 1]
            inputs = math.prod(weight) // outputs
        return precision in offered(node.kind, inputs, self._profile, [precision])

    def _conversions(self, value: Value) -> Conversions:
        assert self._formats is not None
        stored = self._formats.values.get(value.name)
        dtype = "uint8" if stored is None else stored.dtype
        back = (self._parts.conversion(each.shape, dtype, to_float=True) for each in value.readings)
        return Conversions(value, self._parts.conversion(value.shape, dtype, to_float=False), tuple(back))


def _constant_bytes(value: object) -> int:
    arrays = (array_of(leaf) for leaf in operands(value))
    return sum(array.nbytes for array in arrays if array is not None)
