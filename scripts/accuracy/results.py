"""The results: one row per bed and cell; the file they are kept in, and the tables made of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from beds import RECIPES, SMOKE
from cells import BEST, FAST, FIXED_POINT, NNCF, ORT, PRECISIONS, TVMQ, cells_of
from rows_file import load_rows, save_rows

from tvmq.evaluation import Comparison
from tvmq.record import Record

TITLES = {name: recipe.title for name, recipe in (RECIPES | SMOKE).items()}
COLUMNS = (TVMQ, BEST, FAST, FIXED_POINT, NNCF, ORT)
ABLATION = "ablation"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row(Record):
    """One cell on one bed; what could not be measured is None, and reason says why."""

    bed: str
    column: str
    precision: str
    setting: str
    key: str  # of all that the numbers depend on: a row with the same one is not measured again
    options: str  # JSON
    images: int
    reason: str | None = None
    comparison: Comparison | None = None
    seconds: float | None = None  # of quantization; tvmq: of the whole compilation
    peak_mb: float | None = None  # of the process until then
    integer_share: float | None = None  # of the multiplications; only known of tvmq
    float_sites: tuple[str, ...] = ()
    versions: Mapping[str, str]
    cpu: str

    @property
    def place(self) -> tuple[str, str, str, str]:
        """Return what a later measurement replaces."""
        return self.bed, self.column, self.precision, self.setting


def load(path: Path) -> list[Row]:
    """Return the rows in a file, none if there is no file; UsageError for a file that holds anything else."""
    return load_rows(path, Row)


def save(path: Path, new: Iterable[Row]) -> list[Row]:
    """Write the new rows and those of the file that they do not replace; return all, in the tables' order.

    Rows of beds and cells that are no more are dropped.
    """
    merged = {row.place: row for row in (*load(path), *new) if known(row)}
    beds = list(TITLES)
    columns = ["float", *COLUMNS, ABLATION]
    rows = sorted(
        merged.values(), key=lambda r: (beds.index(r.bed), columns.index(r.column), r.precision, r.setting)
    )
    save_rows(path, rows)
    return rows


def known(row: Row) -> bool:
    """Tell whether a row's bed and cell are still in the tables."""
    recipe = (RECIPES | SMOKE).get(row.bed)
    cells = cells_of(recipe.transformer) if recipe else []
    return any((c.column, c.precision, c.setting) == row.place[1:] for c in cells)


def best(rows: Iterable[Row]) -> Row | None:
    """Return the row with the smallest drop; of equal ones that which agrees more with float."""
    measured = [(row.comparison.drop, -row.comparison.agreement, row) for row in rows if row.comparison]
    return min(measured, key=lambda item: item[:2])[2] if measured else None


def columns_of(rows: Sequence[Row]) -> list[str]:
    """Return the columns that have any row."""
    return [column for column in COLUMNS if any(row.column == column for row in rows)]


def drop_table(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Return the head and the lines: a line per bed and precision, in each cell the best of its settings."""
    columns = columns_of(rows)
    head = ["drop in points [95 %], agreement with float", "float", *columns]
    lines = []
    for bed in dict.fromkeys(row.bed for row in rows):
        mine = [row for row in rows if row.bed == bed]
        exact = best(row for row in mine if row.column == "float")
        for precision in PRECISIONS:
            if any(row.precision == precision and row.column in columns for row in mine):
                cells = [cell(mine, column, precision) for column in columns]
                score = f"{exact.comparison.accuracy:.2f}" if exact and exact.comparison else "-"
                lines.append([f"{TITLES[bed]}, {precision}", score, *cells])
    return head, lines


def cell(rows: Sequence[Row], column: str, precision: str) -> str:
    """Return what the table says of one column."""
    mine = [row for row in rows if (row.column, row.precision) == (column, precision)]
    row = best(mine)
    if row and row.comparison:
        c = row.comparison
        # Adding 0 makes a negative zero a zero.
        low, drop, high = (round(value, 2) + 0 for value in (c.low, c.drop, c.high))
        return f"{drop:.2f} [{low:.2f}, {high:.2f}], {c.agreement:.1f} %"
    if mine:
        return "failed"
    offers = {(c.column, c.precision) for c in cells_of((RECIPES | SMOKE)[rows[0].bed].transformer)}
    return "-" if column not in (NNCF, ORT) or (column, precision) in offers else "not offered"


def settings_table(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Return every setting that was measured, with its cost."""
    head = ["bed", "", "setting", "accuracy", "drop [95 %]", "agreement", "cosine", "seconds", "peak MB"]
    return head, [settings_line(row) for row in rows]


def settings_line(row: Row) -> list[str]:
    """Return one line of that table."""
    name = [TITLES[row.bed], f"{row.column} {row.precision}".strip(), row.setting]
    c = row.comparison
    if c is None:
        return [*name, row.reason or "failed", *["-"] * 5]
    drop = f"{c.drop:.2f} [{c.low:.2f}, {c.high:.2f}]"
    cost = [f"{row.seconds or 0:.0f}", f"{row.peak_mb or 0:.0f}"]
    return [*name, f"{c.accuracy:.2f}", drop, f"{c.agreement:.2f}", f"{c.cosine:.5f}", *cost]


def notes(rows: Sequence[Row]) -> list[str]:
    """Return the sentences under the table: inputs, machine, versions, chosen settings, what stayed float."""
    versions = {name: value for row in rows for name, value in row.versions.items()}
    counts = {TITLES[row.bed]: row.images for row in rows}
    found = [
        "Test inputs: " + ", ".join(f"{title} {count:,}" for title, count in counts.items()) + ".",
        f"{rows[-1].cpu}; {', '.join(f'{n} {v}' for n, v in sorted(versions.items()))}.",
    ]
    for bed in dict.fromkeys(row.bed for row in rows):
        chosen = []
        for column, precision in ((c, p) for c in (NNCF, ORT) for p in PRECISIONS):
            row = best(r for r in rows if (r.bed, r.column, r.precision) == (bed, column, precision))
            chosen += [f"{column} {precision}: {row.setting}"] if row else []
        floats = {site for r in rows if r.bed == bed for site in r.float_sites}
        found += [f"{TITLES[bed]}: {'; '.join(chosen)}."] if chosen else []
        found += [f"{TITLES[bed]}: tvmq leaves {len(floats)} sites in float."] if floats else []
    return found


def markdown(rows: Sequence[Row]) -> str:
    """Return the table for README.md."""
    return f"{table(*drop_table(rows))}\n\n" + "\n".join(notes(rows))


def table(head: Sequence[str], lines: Iterable[Sequence[Any]]) -> str:
    """Return a table in markdown, its first column text and the others numbers."""
    ruled = [head, ["---", *["---:"] * (len(head) - 1)], *lines]
    return "\n".join(f"| {' | '.join(map(str, cells))} |" for cells in ruled)
