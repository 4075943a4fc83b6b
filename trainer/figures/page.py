"""A page to draw a figure on: pictures, words, dots, curves, with soft edges and nothing random.

Positions and sizes are pixels of the finished page, from its upper left corner; the page is drawn
several times as large and reduced at the end. The font comes with Pillow, so a page looks alike on
every machine.
"""

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Colour = tuple[int, int, int]
Point = tuple[float, float]

INK: Colour = (32, 33, 36)
GREY: Colour = (112, 117, 122)
HAIRLINE: Colour = (208, 211, 215)
PAPER: Colour = (255, 255, 255)

MARGIN = 24
GAP = 12
LINE = 20
"""From one line of words to the next."""

OVERSAMPLING = 3
"""How much larger the page is drawn."""

_CURVE_STEPS = 48


class Page:
    """A page under work."""

    def __init__(self, width: float, height: float) -> None:
        """Take a white page of so many pixels."""
        size = (round(width) * OVERSAMPLING, round(height) * OVERSAMPLING)
        self._image = Image.new("RGB", size, PAPER)
        self._draw = ImageDraw.Draw(self._image)

    def picture(self, image: Image.Image, corner: Point, side: float) -> None:
        """Put a square picture's upper left corner somewhere, with round corners and a hairline."""
        size = (_scaled(side), _scaled(side))
        large = image.resize(size, Image.Resampling.BICUBIC)
        mask = Image.new("L", size, 0)
        box = (0, 0, size[0] - 1, size[1] - 1)
        ImageDraw.Draw(mask).rounded_rectangle(box, radius=_scaled(5), fill=255)
        at = (_scaled(corner[0]), _scaled(corner[1]))
        self._image.paste(large, at, mask)
        edge = (at[0], at[1], at[0] + size[0] - 1, at[1] + size[1] - 1)
        self._draw.rounded_rectangle(edge, radius=_scaled(5), outline=HAIRLINE, width=2)

    def text(
        self, at: Point, words: str, *, size: float = 13, colour: Colour = INK, anchor: str = "lt"
    ) -> None:
        """Write a line; `anchor` is Pillow's: l, m or r and t, m or b."""
        self._draw.text(_scaled_point(at), words, fill=colour, font=_font(size), anchor=anchor)

    def dot(self, at: Point, radius: float, colour: Colour) -> None:
        """Draw a dot with a white rim."""
        x, y = _scaled_point(at)
        for grown, fill in ((radius + 1.6, PAPER), (radius, colour)):
            r = grown * OVERSAMPLING
            self._draw.ellipse((x - r, y - r, x + r, y + r), fill=fill)

    def curve(self, start: Point, end: Point, *, bow: float, colour: Colour) -> None:
        """Draw a curve over a white rim; in its middle it hangs so many pixels below the chord."""
        points = [_scaled_point((x, y)) for x, y in _hanging_curve(start, end, bow)]
        for grown, fill in ((3.8, PAPER), (2, colour)):
            self._draw.line(points, fill=fill, width=_scaled(grown), joint="curve")

    def bar(self, corner: Point, size: Point, colours: NDArray[np.uint8]) -> None:
        """Draw a bar whose colours (N, 3) run from left to right."""
        line = Image.fromarray(colours[None])
        scaled = (_scaled(size[0]), _scaled(size[1]))
        at = (_scaled(corner[0]), _scaled(corner[1]))
        self._image.paste(line.resize(scaled, Image.Resampling.BILINEAR), at)

    def finish(self) -> Image.Image:
        """Give the page at its own size."""
        return self._image.reduce(OVERSAMPLING)


def wrap(words: str, width: float, *, size: float = 13) -> list[str]:
    """Part words into lines of at most so many pixels; a longer word has a line of its own."""
    font = _font(size)
    lines: list[str] = []
    for word in words.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(longer) <= width * OVERSAMPLING:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def _hanging_curve(start: Point, end: Point, bow: float) -> NDArray[np.float64]:
    """Give points (N, 2) of a cubic curve that leaves and arrives nearly level."""
    t = np.linspace(0.0, 1.0, _CURVE_STEPS)
    reach, below = (end[0] - start[0]) * 0.4, bow * 4 / 3
    corners = np.array(
        [start, (start[0] + reach, start[1] + below), (end[0] - reach, end[1] + below), end]
    )
    weights = np.stack([(1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3], axis=-1)
    points: NDArray[np.float64] = weights @ corners
    return points


def _font(size: float) -> ImageFont.FreeTypeFont:
    """Give Pillow's own font, set letter by letter on every machine."""
    font = ImageFont.load_default(size * OVERSAMPLING)
    assert isinstance(font, ImageFont.FreeTypeFont)
    return font.font_variant(layout_engine=ImageFont.Layout.BASIC)


def _scaled(length: float) -> int:
    """Give a length on the page as it is drawn."""
    return round(length * OVERSAMPLING)


def _scaled_point(point: Point) -> Point:
    """Give a position on the page as it is drawn."""
    return point[0] * OVERSAMPLING, point[1] * OVERSAMPLING
