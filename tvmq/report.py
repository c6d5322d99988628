"""Results as tables for a terminal; data in, rich renderables out, nothing is measured or printed here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from tvmq.doctor import Diagnosis, State
from tvmq.spec import Coverage, CoverageRow, Plan, Scale
from tvmq.target import TargetProfile
from tvmq.tune.results import TunedKernel, written

if TYPE_CHECKING:
    from tvmq.breakdown import Benchmark, Breakdown, Part
    from tvmq.verification import Difference, Verification

BAR_WIDTH = 24
SMALL_US = 10  # times under it are shown with two digits after the point
KERNEL_WIDTH = 28  # columns; names of fused operations are long
EIGHTHS = " ▏▎▍▌▋▊▉"
STATE_STYLE = {State.OK: "green", State.NO_PHOTOS: "yellow", State.NO_COMPILE: "yellow", State.NO_RUN: "red"}


def facts(title: str, values: Mapping[str, object]) -> Table:
    """Return a table of names and values."""
    table = Table("", "", title=title, title_justify="left", show_header=False)
    for name, value in values.items():
        table.add_row(name, Text(str(value)))
    return table


def comparison(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Table:
    """Return a table whose first column names what is compared and whose other columns are numbers."""
    table = Table(title=title, title_justify="left")
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 else "right")
    for row in rows:
        table.add_row(*(Text(str(cell)) for cell in row))
    return table


def coverage_summary(coverage: Coverage) -> RenderableType:
    """Return what is integer and what stayed float and why, one line per kind of site and reason."""

    def key(row: CoverageRow) -> tuple[bool, str, str]:
        return (not row.integer, row.kind, "" if row.integer else row.reason)

    total = sum(row.macs for row in coverage.rows)
    table = Table(title="Coverage", title_justify="left")
    for column in ("kind", "sites", "computed in", "MACs", "why float"):
        table.add_column(column, justify="right" if column in ("sites", "MACs") else "left")
    for (is_float, kind, reason), group in groupby(sorted(coverage.rows, key=key), key):
        rows = list(group)
        computed = Text("float", "yellow") if is_float else Text("integer", "green")
        macs = percent(sum(row.macs for row in rows), total)
        table.add_row(kind, str(len(rows)), computed, macs, Text(reason))
    integer = sum(row.integer for row in coverage.rows)
    share = f"{100 * coverage.macs_integer_fraction:.1f} %"
    return Group(
        table,
        Text(f"{integer} of {len(coverage.rows)} sites and {share} of the multiplications are integer."),
    )


def coverage_sites(coverage: Coverage, plan: Plan, weights: Mapping[str, str]) -> Table:
    """Return one line per site, with the bits of those in integers; weights: by site, how they are stored."""
    bits = {site.site: str(site.precision) for site in plan.sites}
    total = sum(row.macs for row in coverage.rows)
    table = Table(title="Sites", title_justify="left")
    for column in ("site", "kind", "computed in", "bits", "weights", "MACs", "why"):
        table.add_column(column, justify="right" if column == "MACs" else "left", overflow="fold")
    for row in coverage.rows:
        computed = Text("integer", "green") if row.integer else Text("float", "yellow")
        own = bits.get(row.site, "") if row.integer else ""
        numbers = (own, weights.get(row.site, ""), percent(row.macs, total))
        table.add_row(Text(row.site), row.kind, computed, *numbers, Text(row.reason))
    return table


def scales(rows: Iterable[Scale]) -> Table:
    """Return how each tensor is stored, one line per tensor."""
    table = Table(title="Scales: real = scale * (code - zero point)", title_justify="left")
    for column in ("tensor", "role", "stored as", "zero point", "scale"):
        right = column in ("zero point", "scale")
        table.add_column(column, justify="right" if right else "left", overflow="fold")
    for row in rows:
        several = row.smallest != row.largest
        scale = f"{row.smallest:.4g}" + (f" to {row.largest:.4g}" if several else "")
        table.add_row(Text(row.tensor), row.role, row.dtype, str(row.zero_point), scale)
    return table


def stages(seconds: Mapping[str, float]) -> Table:
    """Return where the time of a compile went."""
    total = sum(seconds.values())
    rows = [
        (name, f"{spent:.1f}", Text(bar(spent / total if total else 0))) for name, spent in seconds.items()
    ]
    table = Table("stage", title="Time", title_justify="left", show_footer=True)
    table.columns[0].footer = "total"
    table.add_column("s", justify="right", footer=f"{total:.1f}")
    table.add_column("")
    for row in rows:
        table.add_row(*row)
    return table


def benchmark(result: Benchmark) -> Table:
    """Return latency and its spread."""
    return facts(
        "Latency",
        {
            "median": f"{result.median_ms:.3f} ms",
            "10 % of runs under": f"{result.p10_ms:.3f} ms",
            "90 % of runs under": f"{result.p90_ms:.3f} ms",
            "runs": result.runs,
            **_where(result),
        },
    )


def _where(result: Benchmark) -> dict[str, object]:
    if result.gpu_ms is None:
        return {"threads": result.threads}
    return {"without copies to and from the GPU": f"{result.gpu_ms:.3f} ms"}


def verification(result: Verification, most: int = 10) -> RenderableType:
    """Return the verdict of the bit-exact check, and the first sites that differ."""
    compared = f"{result.sites} sites and {result.outputs} outputs compared with the {result.against}"
    close = [Text(f"Decided by float operations: {inexact(each)}.") for each in result.inexact]
    if result.ok:
        return Group(Text(f"Bit-exact: {compared}, all equal.", "green"), *close)
    table = Table("differs", title="Not bit-exact", title_justify="left")
    for name in result.mismatches[:most]:
        table.add_row(Text(name, "red"))
    return Group(table, Text(f"{compared}, {len(result.mismatches)} differ.", "red"), *close)


def inexact(difference: Difference) -> str:
    """Return how close a tensor is that float operations make inexact."""
    after = (
        f" after float {', '.join(difference.float_ops)}" if difference.float_ops else " after float layers"
    )
    if difference.largest is None:
        return f"{difference.name}{after}: other bits than on the machine that compiled it"
    found = f"differs by {difference.largest:.2g} at most, {difference.allowed:.2g} is allowed"
    return f"{difference.name}{after}: {found}"


def breakdown(found: Breakdown, most: int = 25) -> RenderableType:
    """Return the slowest kernels, one line for all the others, one for what is outside of kernels."""
    table = Table(title="Where the time of the fastest call goes", title_justify="left")
    table.add_column("computes", overflow="fold")
    table.add_column("kernel", overflow="ellipsis", no_wrap=True, max_width=KERNEL_WIDTH)
    for name in ("us", "share", "GMAC/s", "of peak"):
        table.add_column(name, justify="right")
    table.add_column("")
    ordered = sorted(found.parts, key=lambda part: -part.us)
    for part in ordered[:most]:
        site = "(no site)" if part.name.startswith(f"{part.kernel}.") else part.name
        table.add_row(Text(site), Text(part.kernel), *_spent(part.us, part.share, part.macs, part))
    rest, whole = ordered[most:], found.whole_us or 1.0
    if rest:
        spent = sum(part.us for part in rest)
        table.add_row(f"{len(rest)} others", "", *_spent(spent, spent / whole, sum(p.macs for p in rest)))
    table.add_row("outside of kernels", "", *_spent(found.outside_us, found.outside_us / whole))
    macs = sum(part.macs for part in found.parts)
    percent = f"{0.1 * macs / whole / found.peak_gmacs:.0f} %"
    said = f"The whole call reaches {percent} of {found.peak_gmacs:.0f} GMAC/s ({found.peak_source})."
    return Group(table, Text(said))


def _spent(us: float, share: float, macs: int = 0, part: Part | None = None) -> list[str]:
    rate = f"{macs / us / 1e3:.0f}" if macs and us else ""
    peak = f"{part.percent_of_peak:.0f} %" if part and part.percent_of_peak else ""
    return [f"{us:.1f}", f"{100 * share:.1f} %", rate, peak, bar(share / 2)]


def tuning(tuned: Sequence[TunedKernel]) -> RenderableType:
    """Return what tuning won, kernel by kernel, the most first, and over the whole model."""
    table = Table(title="Tuning", title_justify="left")
    for column in ("kernel", "calls", "default us", "best us", "gain", "trials"):
        table.add_column(column, justify="left" if column == "kernel" else "right")
    table.add_column("decisions", overflow="fold")
    measured = [(kernel, kernel.default_us, kernel.us) for kernel in tuned if kernel.default_us and kernel.us]
    for kernel, default_us, us in sorted(measured, key=lambda m: -m[0].calls * (m[1] - m[2])):
        gain = f"{100 * (1 - us / default_us):.1f} %"
        times = [f"{each:.2f}" if each < SMALL_US else f"{each:.1f}" for each in (default_us, us)]
        numbers = (str(kernel.calls), *times, gain, str(kernel.trials))
        decisions = written(kernel.decisions) if kernel.decisions else "default"
        table.add_row(Text(kernel.name), *numbers, decisions)
    before = sum(kernel.calls * default_us for kernel, default_us, _ in measured)
    after = sum(kernel.calls * us for kernel, _, us in measured)
    said = f"{len(measured)} of {len(tuned)} kernels were measured"
    if before:
        said += f"; together they take {after:,.1f} us, by default {before:,.1f} us"
    elif tuned:
        said += (
            ": their last comparison with the default wants cores that no other program uses; what was tried "
            "is kept, so the same call on an idle machine ends soon"
        )
    return Group(table, Text(f"{said}."))


def targets(profiles: Iterable[TargetProfile], native: str | None) -> Table:
    """Return the built-in profiles; the one that "native" means is marked."""
    table = Table(title="Targets", title_justify="left")
    for column in ("name", "also called", "machine", "multiplies", "needs"):
        table.add_column(column, overflow="fold")
    for profile in profiles:
        names = ["native"] * (profile.name == native) + list(profile.aliases)
        products = "\n".join(
            f"{activation} x {', '.join(dict.fromkeys(k.weight for k in kernels))}"
            for activation, kernels in groupby(profile.kernels, lambda k: k.activation)
        )
        attributes = profile.tvm_target.get("mattr", ())
        needs = " ".join([str(profile.tvm_target.get("mcpu", "")), *map(str, attributes)])  # type: ignore[arg-type]
        style = "green" if profile.name == native else ""
        table.add_row(Text(profile.name, style), ", ".join(names), profile.summary, products, needs)
    return table


def diagnosis(found: Diagnosis) -> RenderableType:
    """Return every finding, and in one sentence what they come to."""
    table = Table("what", "found", "", "way out", title="Environment", title_justify="left")
    for check in found.checks:
        state = Text(check.state.value, STATE_STYLE[check.state])
        table.add_row(check.name, Text(check.found), state, Text(check.way_out))
    return Group(table, Text(verdict(found)))


def verdict(found: Diagnosis) -> str:
    """Return what can be done here, in one sentence."""
    if not found.can_run:
        return "tvmq does not work here; see the lines marked 'no run'."
    if not found.can_compile:
        return "Artifacts run here, models cannot be compiled; see the lines marked 'no compile'."
    if any(check.state is State.NO_PHOTOS for check in found.checks):
        return "Models compile and run here, but photos cannot be read; see the line marked 'no photos'."
    return "Everything that tvmq needs is here."


def bar(share: float) -> str:
    """Return a bar BAR_WIDTH characters long for a share of 1, in steps of an eighth of a character."""
    eighths = round(min(max(share, 0.0), 1.0) * BAR_WIDTH * 8)
    return "█" * (eighths // 8) + EIGHTHS[eighths % 8].strip()


def percent(part: float, whole: float) -> str:
    """Return part of whole as "12.3 %", or "-" of nothing."""
    return f"{100 * part / whole:.1f} %" if whole else "-"


def size(nbytes: int) -> str:
    """Return a file size as "22.4 MB" (1 MB = 10**6 bytes)."""
    return f"{nbytes / 1e6:.1f} MB" if nbytes >= 100_000 else f"{nbytes / 1e3:.1f} kB"
