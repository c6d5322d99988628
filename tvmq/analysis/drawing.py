"""Shapes on a sheet, written as SVG or as PNG."""

from __future__ import annotations

from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import IO

from tvmq.errors import UsageError
from tvmq.new_file import write_atomically

SIZE = 11  # of text, in pixels
INK, PAPER, FAINT = "#222222", "#ffffff", "#d8d8d8"
PNG_SCALE = 2  # pixels of a PNG for one of the sheet


@dataclass(frozen=True, slots=True)
class Bar:
    """A filled rectangle."""

    left: float
    top: float
    width: float
    height: float
    colour: str


@dataclass(frozen=True, slots=True)
class Line:
    """A line through points."""

    points: tuple[tuple[float, float], ...]
    colour: str = FAINT


@dataclass(frozen=True, slots=True)
class Dot:
    """A filled circle; what it is shows where a reader points at it (SVG)."""

    x: float
    y: float
    radius: float
    colour: str
    title: str = ""


@dataclass(frozen=True, slots=True)
class Label:
    """A line of text whose middle is at height y; x is its start, or its end."""

    x: float
    y: float
    text: str
    colour: str = INK
    end: bool = False


Shape = Bar | Line | Dot | Label


@dataclass(slots=True)
class Drawing:
    """Shapes from the back to the front; units are pixels, y grows downwards."""

    width: float
    height: float
    shapes: list[Shape] = field(default_factory=list)

    def svg(self) -> str:
        """Return an SVG element that needs nothing else."""
        inside = "".join(_svg(shape) for shape in self.shapes)
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width:g} {self.height:g}" '
            f'width="{self.width:g}" font-family="sans-serif" font-size="{SIZE}">'
            f'<rect width="100%" height="100%" fill="{PAPER}"/>{inside}</svg>'
        )

    def save(self, path: str | Path) -> None:
        """Write a .png or .svg; UsageError for another suffix."""
        where = Path(path)
        if where.suffix not in (".png", ".svg"):
            raise UsageError(f"{where}: a picture ends in .png, .svg or .html; name it so")

        def write(file: IO[bytes]) -> None:
            if where.suffix == ".svg":
                file.write(self.svg().encode("utf-8"))
            else:
                self._write_png(file)

        write_atomically(where, write)

    def _write_png(self, file: IO[bytes]) -> None:
        from PIL import Image, ImageDraw, ImageFont

        size = (round(PNG_SCALE * self.width), round(PNG_SCALE * self.height))
        image = Image.new("RGB", size, PAPER)
        draw, font = ImageDraw.Draw(image), ImageFont.load_default(PNG_SCALE * SIZE)
        s = PNG_SCALE
        for shape in self.shapes:
            match shape:
                case Bar(left, top, width, height, colour):
                    draw.rectangle((s * left, s * top, s * (left + width), s * (top + height)), fill=colour)
                case Line(points, colour):
                    draw.line([(s * x, s * y) for x, y in points], fill=colour, width=s)
                case Dot(x, y, radius, colour):
                    box = (s * (x - radius), s * (y - radius), s * (x + radius), s * (y + radius))
                    draw.ellipse(box, fill=colour)
                case Label(x, y, text, colour, end):
                    draw.text((s * x, s * y), text, fill=colour, font=font, anchor="rm" if end else "lm")
        image.save(file, "PNG")


def _svg(shape: Shape) -> str:
    match shape:
        case Bar(left, top, width, height, colour):
            return (
                f'<rect x="{left:.1f}" y="{top:.1f}" width="{width:.1f}" height="{height:.1f}" '
                f'fill="{colour}"/>'
            )
        case Line(points, colour):
            line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
            return f'<polyline points="{line}" fill="none" stroke="{colour}"/>'
        case Dot(x, y, radius, colour, title):
            said = f"<title>{escape(title)}</title>" if title else ""
            return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}" fill="{colour}">{said}</circle>'
        case Label(x, y, text, colour, end):
            anchor = ' text-anchor="end"' if end else ""
            return (
                f'<text x="{x:.1f}" y="{y:.1f}" dominant-baseline="middle" fill="{colour}"{anchor}>'
                f"{escape(text)}</text>"
            )
