#!/usr/bin/env python3
"""Accuracy by steps of runs of the paper's tasks, as an SVG.

python3 examples/paper/curves.py OUT.svg NAME=LOG...     LOG: the JSON lines that a task printed
"""

import json
import pathlib
import sys
from xml.sax.saxutils import escape

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 720, 320, 52, 190, 14, 40
COLORS = ["#0b6bcb", "#c2410c", "#15803d", "#7e22ce", "#be123c", "#0f766e", "#a16207", "#475569", "#db2777"]


def points(path: str) -> list[tuple[float, float]]:
    """(steps, accuracy) of a log."""
    found = {}
    for line in pathlib.Path(path).read_text().splitlines():
        if line.startswith("{"):
            value = json.loads(line)
            if value.get("step") is not None and value.get("accuracy") is not None:
                found[value["step"]] = value["accuracy"]
    return sorted(found.items())


def main() -> None:
    out, *named = sys.argv[1:]
    runs = [(name, points(path)) for name, path in (pair.split("=", 1) for pair in named)]
    most = max(steps for _, run in runs for steps, _ in run)
    plot_width, plot_height = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def at(steps: float, accuracy: float) -> str:
        return f"{LEFT + plot_width * steps / most:.1f},{TOP + plot_height * (1 - accuracy):.1f}"

    svg = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>',
    ]
    for part in range(5):
        y, steps = TOP + plot_height * (1 - part / 4), most * part / 4
        svg.append(f'<path d="M{LEFT} {y:.1f}h{plot_width}" stroke="#e2e8f0"/>')
        svg.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{25 * part} %</text>')
        x, y = LEFT + plot_width * part / 4, HEIGHT - BOTTOM + 16
        svg.append(f'<text x="{x:.1f}" y="{y}" text-anchor="middle">{steps:,.0f}</text>')
    svg.append(f'<text x="{LEFT + plot_width / 2}" y="{HEIGHT - 8}" text-anchor="middle">steps</text>')
    for i, (name, run) in enumerate(runs):
        color, y = COLORS[i % len(COLORS)], TOP + 12 + 18 * i
        line = " ".join(at(steps, accuracy) for steps, accuracy in run)
        svg.append(f'<polyline points="{line}" fill="none" stroke="{color}" stroke-width="2"/>')
        svg.append(f'<path d="M{WIDTH - RIGHT + 12} {y - 4}h18" stroke="{color}" stroke-width="2"/>')
        svg.append(f'<text x="{WIDTH - RIGHT + 36}" y="{y}">{escape(name)}</text>')
    pathlib.Path(out).write_text("\n".join([*svg, "</svg>"]) + "\n")


if __name__ == "__main__":
    main()
