"""Tune an integer module on this machine, or on boards."""

from __future__ import annotations

from collections.abc import Mapping

import tvm

from tvmq.device import Device
from tvmq.environment import allow_amx_tiles, cpu_features
from tvmq.errors import UsageError
from tvmq.gpu import fitting, is_gpu_feature, lacking, these_gpus
from tvmq.machine import this_machine
from tvmq.neighbours import Neighbours
from tvmq.progress import Progress, silent
from tvmq.runtime import use_threads
from tvmq.schedule.dispatch import DispatchKernels
from tvmq.schedule.float_dispatch import DispatchFloats
from tvmq.schedule.kernel_table import Use
from tvmq.target import TargetProfile
from tvmq.tune.cost_model import require_xgboost
from tvmq.tune.database import Database, setting_of
from tvmq.tune.here import ThisMachine
from tvmq.tune.measure import Bench, KernelBench
from tvmq.tune.options import Tune, make_default_folder
from tvmq.tune.remote import BoardBench, Elsewhere
from tvmq.tune.results import TunedKernel
from tvmq.tune.session import Session

BOARD = "give a board of that kind, which runs `tvmq serve`, as --device"


def tune(
    mod: tvm.IRModule,
    profile: TargetProfile,
    options: Tune,
    *,
    threads: int = 1,
    progress: Progress = silent,
    device: Device | None = None,
) -> tuple[TunedKernel, ...]:
    """Return what was found for each kernel of an integer-level module, on this machine or on boards.

    Raises DeviceError where no board is left, what prepare does, and TuningInterrupted on Ctrl-C.
    """
    database = prepare(profile, options, threads, device)
    uses = kernels_of(mod, profile, threads)
    there = device or (ThisMachine() if profile.capability is not None else None)

    def bench(use: Use) -> Bench:
        return BoardBench(use, profile, there, threads) if there else KernelBench(use, profile)

    beside = Elsewhere if there else Neighbours
    return Session(uses, options, database, bench, progress, threads=threads, neighbours=beside).run()


def prepare(profile: TargetProfile, options: Tune, threads: int, device: Device | None = None) -> Database:
    """Return the database of this setting, once all that tuning needs is found to be there.

    Raises UsageError for a database that cannot be read or written and for a machine that cannot run the
    profile's code or so many threads, EnvironmentMismatchError without xgboost, DeviceError without a board.
    """
    cpu = device.require(profile).processor(profile) if device else None
    database = Database(options.path, setting_of(profile, threads, cpu))
    if options.trials:
        require_xgboost()
        if not device:
            require_machine(profile, "tune")
            if profile.capability is None:
                use_threads(threads)
        if options.database is None:
            make_default_folder()
        database.require_writable()
    return database


def kernels_of(mod: tvm.IRModule, profile: TargetProfile, threads: int) -> Mapping[str, Use]:
    """Return the distinct kernels of a module with constants in the graph, in order of first use."""
    dispatch = (DispatchKernels(profile, threads), DispatchFloats(profile, threads))
    tvm.transform.Sequential(list(dispatch))(mod)
    return {**dispatch[0].uses, **dispatch[1].uses}


def require_machine(profile: TargetProfile, who: str) -> None:
    """Raise UsageError, in the name of `who`, where this machine cannot run the profile's code."""
    if profile.capability is not None:
        _require_gpu(profile, who)
    missing = sorted(feature for feature in profile.missing(cpu_features()) if not is_gpu_feature(feature))
    if missing or profile.architecture != this_machine():
        wanted = ", ".join(missing) or f"a CPU of {profile.architecture}"
        raise UsageError(
            f"{who}: this machine lacks {wanted}, which {profile.name!r} needs, and {who} measures here; "
            f"run it on such a machine, {BOARD}, or go on without measuring"
        )
    if "amx_tile" in profile.features and not allow_amx_tiles():
        raise UsageError(f"{who}: Linux does not let this process use AMX tiles; 5.16 or later does")


def _require_gpu(profile: TargetProfile, who: str) -> None:
    gpus = these_gpus().found
    if fitting(profile.features, gpus) is None:
        first = gpus[0] if gpus else None
        raise UsageError(
            f"{who}: {profile.name!r} needs {lacking(profile.features, first)}, and {who} measures here; "
            f"{BOARD}, or go on without measuring: tiles are then chosen by a model of the GPU"
        )
