"""The pictures of the seed data: street scenes whose shapes the boxes fit."""

from collections.abc import Iterator
from typing import NamedTuple

WIDTH, HEIGHT = 640, 360
SHAPES = {
    "car": (110, 46, "#d1495b", 22),
    "bus": (170, 84, "#edae49", 8),
    "bicycle": (52, 40, "#00798c", 20),
    "person": (22, 58, "#5b3f8c", 11),
}


class Box(NamedTuple):
    label: str
    left: int
    top: int
    width: int
    height: int


def boxes(scene: int, frame: int) -> Iterator[Box]:
    """Yield the boxes of one frame; each moves from frame to frame at a speed of its own."""
    for number, (label, (width, height, _, _)) in enumerate(SHAPES.items()):
        for lane in range(1 + (scene + number) % 2):
            speed = 9 + 5 * number + 3 * lane
            left = (97 * scene + 149 * number + 230 * lane + speed * frame) % (WIDTH - width)
            yield Box(label, left, 180 + 34 * number + 12 * lane - height // 2, width, height)


def svg(scene: int, frame: int) -> str:
    """Return one frame as a picture."""
    shapes = "".join(
        f'<rect x="{box.left}" y="{box.top}" width="{box.width}" height="{box.height}" '
        f'rx="{SHAPES[box.label][3]}" fill="{SHAPES[box.label][2]}"/>'
        for box in boxes(scene, frame)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}"><rect'
        f' width="{WIDTH}" height="{HEIGHT}" fill="#cfe3ee"/><rect y="140" width="{WIDTH}"'
        f' height="220" fill="#8d99a6"/><path d="M0 250H{WIDTH}" stroke="#fff" stroke-width="4"'
        f' stroke-dasharray="28 22"/>{shapes}</svg>\n'
    )
