"""``python -m tools.pictures`` draws them into docs/images."""

from __future__ import annotations

from pathlib import Path

from tools.pictures import leak_matrix, three_rings, which_ring

DOCS = Path(__file__).resolve().parents[2] / "docs"


def drawn() -> dict[Path, str]:
    """Return the text of each picture by its path."""
    table = (DOCS / "reference" / "leak-matrix.md").read_text(encoding="utf-8")
    pictures = {
        "leak-matrix": leak_matrix.draw(table),
        "three-rings": three_rings.draw(),
        "which-ring": which_ring.draw(),
    }
    return {DOCS / "images" / f"{name}.svg": text for name, text in pictures.items()}


if __name__ == "__main__":
    for path, text in drawn().items():
        path.write_text(text, encoding="utf-8")
