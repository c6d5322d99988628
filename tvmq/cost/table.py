"""The costs of a model's sites: from a store, measured here, learned from a store, or from a profile."""

from __future__ import annotations

import hashlib
import json
import os
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tvmq.cost.measure import Timer, Times
from tvmq.cost.model_works import Collector, Conversions, ModelWorks, Subject
from tvmq.cost.predict import Predictor, features_of, predicted_by_others
from tvmq.cost.roofline import CALL_US, RUN_US, constants_from, roofline_us
from tvmq.cost.store import Measured, Store, default_store
from tvmq.cost.works import Parts, Work
from tvmq.environment import cpu_features
from tvmq.errors import BusyMachineWarning
from tvmq.neighbours import Neighbours
from tvmq.plan.assign import assign_precisions
from tvmq.plan.cost_table import (
    FLOAT,
    MEASURED,
    PREDICTED,
    ROOFLINE,
    SOURCES,
    CostTable,
    SiteCost,
    precision_name,
)
from tvmq.plan.values import Value
from tvmq.progress import Progress, silent
from tvmq.runtime import use_threads
from tvmq.schedule.kernel_table import NO_DECISIONS
from tvmq.schedule.space import Decisions
from tvmq.spec import W8A8, Precision
from tvmq.target import TargetProfile
from tvmq.tune.database import Setting, setting_of
from tvmq.tune.options import make_default_folder
from tvmq.tune.tuner import require_machine

GROUP = 6  # kernels that are timed in turns
# Times the roofline, which TVM's loops miss by up to 20 by themselves: float attention does.
INCREDIBLE, INCREDIBLE_OF_LOOPS = 30, 300
DOUBTED = 1.5  # times what kernels like it promise
LOOK_SECONDS = 0.3  # for whether other programs have the cores
NAME = precision_name(W8A8)


@dataclass(frozen=True, slots=True)
class _Found:
    us: float
    spread: float
    source: str


def measurable(profile: TargetProfile) -> bool:
    """Tell whether this machine can time the profile's kernels; those of GPUs are not timed one by one."""
    return profile.capability is None and not profile.missing(cpu_features())


def open_store(
    path: str | os.PathLike[str] | None, profile: TargetProfile, threads: int, *, measure: bool
) -> Store:
    """Return the store at path, None for the default one, once all that measuring needs is there.

    Raises UsageError for a file that cannot be read or written, and for a machine that cannot run the
    profile's code or so many threads.
    """
    store = Store(Path(path) if path else default_store(), setting_of(profile, threads))
    if measure:
        require_machine(profile, "cost")
        use_threads(threads)
        if not path:
            make_default_folder()
        store.require_writable()
    return store


def cost_table(
    subject: Subject,
    profile: TargetProfile,
    precisions: Iterable[Precision],
    store: Store,
    *,
    threads: int,
    measure: bool = True,
    decisions: Mapping[str, Decisions] = NO_DECISIONS,
    progress: Progress = silent,
    neighbours: Callable[[], Neighbours] = Neighbours,
) -> CostTable:
    """Return what each site costs in float, in W8A8 and in each of the precisions that it may take.

    measure: time on this machine what the store does not hold. Without, what is missing is predicted where
    the store holds enough kernels of its kind, else it is the roofline of the profile.
    decisions: by kernel, what tuning found. store, threads: open_store makes the one for these threads.
    """
    works = _collected(
        subject, profile, list(dict.fromkeys([W8A8, *precisions])), threads, decisions, progress
    )
    levels = _levels(works, profile)
    times = _Times(profile, store, threads, neighbours)
    if measure:
        times.measure(_all(works, levels), progress)
    sites = tuple(
        _site_cost(site, name, found, works.weight_bytes[site, name], times, levels[name], measure=measure)
        for (site, name), found in works.options.items()
    )
    near = levels[NAME]
    sources = {cost.source for cost in sites}
    return CostTable(
        module_hash=subject.module_hash,
        target=profile.name,
        device=fingerprint(store.setting) if MEASURED in sources or PREDICTED in sources else "",
        threads=threads,
        sites=sites,
        values=tuple(_priced(each, times, levels[NAME]) for each in works.conversions),
        fixed_ms=times.ms(works.rest.rest, near) + 1e-3 * (RUN_US + CALL_US * works.rest.calls),
        fixed_bytes=works.rest.rest_bytes,
        activation_bytes=works.activation_bytes,
    )


def fingerprint(setting: Setting) -> str:
    """Return a short name of the machine and the versions that numbers are true of."""
    text = json.dumps(setting.to_json(), sort_keys=True)
    return f"{setting.cpu} {hashlib.sha256(text.encode()).hexdigest()[:12]}"


def _collected(
    subject: Subject,
    profile: TargetProfile,
    precisions: Sequence[Precision],
    threads: int,
    decisions: Mapping[str, Decisions],
    progress: Progress,
) -> ModelWorks:
    steps = len(precisions) + 1
    progress("take apart", 0, steps)
    collector = Collector(subject, Parts(profile, threads, decisions), profile)
    for number, precision in enumerate(precisions):
        collector.add(precision)
        progress("take apart", number + 1, steps)
    names = [s.site for s in assign_precisions(subject.nodes, subject.module_hash).sites]
    collector.add_float(names)
    progress("take apart", steps, steps)
    return collector.finish()


def _levels(works: ModelWorks, profile: TargetProfile) -> dict[str, str]:
    """Return for each precision's name where its kernels' constants come from, by a uniform plan's size.

    Float sites stand in a model of integers: theirs come from where the 8-bit ones do.
    """
    plain = {site: size for (site, name), size in works.weight_bytes.items() if name == NAME}
    found = {}
    for name in dict.fromkeys(name for _, name in works.options):
        own = {site: size for (site, other), size in works.weight_bytes.items() if other == name}
        total = sum((plain if name == FLOAT else plain | own).values())
        found[name] = constants_from(total, profile.machine)
    return found


def _all(works: ModelWorks, levels: Mapping[str, str]) -> list[tuple[Work, str]]:
    """Return every work with where its constants come from."""
    near = levels[NAME]
    found = [(work, levels[name]) for (_, name), each in works.options.items() for work in each]
    found += [(work, near) for work in works.rest.rest]
    several = (each for c in works.conversions for each in (c.to_integer, *c.to_float))
    return found + [(work, near) for each in several for work in each]


class _Times:
    """The times of works on one machine."""

    def __init__(
        self, profile: TargetProfile, store: Store, threads: int, neighbours: Callable[[], Neighbours]
    ) -> None:
        self._profile, self._store, self._threads = profile, store, threads
        self._neighbours = neighbours
        self._predictor: Predictor | None = None

    def measure(self, works: Iterable[tuple[Work, str]], progress: Progress) -> None:
        """Time what the store lacks; with the cores to itself, also what others disturbed before."""
        asked = {_key(work, level): (work, level) for work, level in works}
        known = {key: self._store[key] for key in asked if key in self._store}
        again = {key for key, line in known.items() if line.crowded}
        if again and self._crowded_now():
            again = set()
        todo = [each for key, each in asked.items() if key not in known or key in again]
        for work, level, times, crowded in self._timed(todo, "measure", progress):
            self._append(work, level, times, crowded=crowded)
        if todo:
            self._measure_doubted(asked, progress)
        disturbed = sum(self._store[key].crowded for key in asked)
        if disturbed:
            warnings.warn(BusyMachineWarning(_what_was_disturbed(disturbed, len(asked))), stacklevel=3)

    def _measure_doubted(self, asked: Mapping[str, tuple[Work, str]], progress: Progress) -> None:
        """Time once more what took far longer than kernels like it promise; of both times the less counts.

        A core that is taken away for a moment is not always seen.
        """
        known = predicted_by_others(self._store.lines, self._profile)
        doubted = [line.cost for line, us in known if line.us > DOUBTED * us and line.cost in asked]
        again = [asked[key] for key in doubted]
        for work, level, times, crowded in self._timed(again, "measure again", progress):
            self._append(work, level, times, crowded=crowded)

    def _timed(
        self, works: Sequence[tuple[Work, str]], stage: str, progress: Progress
    ) -> Iterator[tuple[Work, str, Times, bool]]:
        """Yield each work with its times, and whether other programs had the cores meanwhile."""
        done = 0
        for level in ("l3", "dram"):
            own = [work for work, where in works if where == level]
            timer = Timer(self._profile, level) if own else None
            for first in range(0, len(own), GROUP):
                assert timer is not None
                progress(stage, done, len(works))
                with self._neighbours() as watch:
                    found = timer.times(own[first : first + GROUP])
                crowded = watch.crowd(self._threads)
                for work, times in zip(own[first : first + GROUP], found, strict=True):
                    yield work, level, times, crowded
                done += len(found)
                progress(stage, done, len(works))

    def _crowded_now(self) -> bool:
        with self._neighbours() as watch:
            time.sleep(LOOK_SECONDS)
        return watch.crowd(self._threads)

    def _append(self, work: Work, level: str, times: Times, *, crowded: bool) -> None:
        found = features_of(work, self._threads, level)
        key, setting = _key(work, level), self._store.setting
        self._store.append(
            Measured(key, setting, work.family, times.us, times.spread, times.runs, found, crowded)
        )

    def of(self, work: Work, level: str) -> _Found:
        """Return the time of one call: measured, else predicted, else the roofline.

        What others disturbed counts as measured only where it may be true: a thread that waited for its core
        makes milliseconds of microseconds, and would turn a plan over.
        """
        key, found = _key(work, level), features_of(work, self._threads, level)
        least = roofline_us(found, self._profile, level)
        if key in self._store:
            line = self._store[key]
            incredible = INCREDIBLE if work.use.kernel.packing else INCREDIBLE_OF_LOOPS
            if not line.crowded or line.us <= incredible * least:
                return _Found(line.us, line.spread, MEASURED)
        if self._predictor is None:
            calm = [line for line in self._store.lines if not line.crowded]
            self._predictor = Predictor(calm, self._profile)
        us = self._predictor.us(work.family, found)
        return _Found(least, 0.0, ROOFLINE) if us is None else _Found(us, 0.0, PREDICTED)

    def ms(self, works: Iterable[Work], level: str) -> float:
        """Return the time of several works."""
        return 1e-3 * sum(self.of(work, level).us for work in works)


def _site_cost(
    site: str, name: str, works: Sequence[Work], size: int, times: _Times, level: str, *, measure: bool
) -> SiteCost:
    found = [times.of(work, level) for work in works]
    us = sum(each.us for each in found)
    spread = sum(each.us * each.spread for each in found) / us if us else 0.0
    nothing = MEASURED if measure else ROOFLINE  # a site that is a part of another's kernel
    source = max((each.source for each in found), key=SOURCES.index, default=nothing)
    return SiteCost(site, name, 1e-3 * us, spread, size, source)


def _priced(found: Conversions, times: _Times, level: str) -> Value:
    """Return a value with what its conversions cost."""
    pairs = zip(found.value.readings, found.to_float, strict=True)
    readings = tuple(replace(reading, to_float=times.ms(works, level)) for reading, works in pairs)
    return replace(found.value, readings=readings, from_float=times.ms(found.to_integer, level))


def _what_was_disturbed(disturbed: int, all_kernels: int) -> str:
    return (
        f"cost: other programs had the cores while {disturbed} of {all_kernels} kernels were timed, and "
        "these may look slower than they are; on an idle machine, the same call times these again"
    )


def _key(work: Work, level: str) -> str:
    return f"{work.key} constants from {level}"
