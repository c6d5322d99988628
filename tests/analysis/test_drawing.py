from pathlib import Path
from xml.etree import ElementTree

import pytest
from PIL import Image

from tvmq.analysis.drawing import Bar, Dot, Drawing, Label, Line
from tvmq.errors import UsageError

SHEET = Drawing(
    60,
    40,
    [
        Bar(5, 5, 20, 10, "#ff0000"),
        Line(((30, 5), (55, 5)), "#00ff00"),
        Dot(45, 25, 5, "#0000ff", "a < b & c"),
        Label(5, 30, "<text>"),
    ],
)


def test_a_drawing_is_the_same_as_svg_and_as_png(tmp_path: Path):
    SHEET.save(tmp_path / "a.png")
    image = Image.open(tmp_path / "a.png")
    assert image.size == (120, 80)
    assert [image.getpixel(at) for at in ((30, 20), (84, 10), (90, 50), (2, 2))] == [
        (255, 0, 0),
        (0, 255, 0),
        (0, 0, 255),
        (255, 255, 255),
    ]
    SHEET.save(tmp_path / "a.svg")
    root = ElementTree.parse(tmp_path / "a.svg").getroot()
    assert [child.tag.rpartition("}")[2] for child in root] == ["rect", "rect", "polyline", "circle", "text"]
    assert root[4].text == "<text>"
    assert root[3][0].text == "a < b & c"


def test_other_suffixes_are_refused(tmp_path: Path):
    with pytest.raises(UsageError, match=r"a.gif: a picture ends in .png, .svg or .html"):
        SHEET.save(tmp_path / "a.gif")
