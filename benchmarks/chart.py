"""A line chart as SVG, for the README: few points, readable on light and dark pages."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

WIDTH, HEIGHT = 680, 320
LEFT, RIGHT, TOP, BOTTOM = 60, 200, 50, 50
GRID_LINES = 5
COLOURS = ("#2f6fde", "#d9822b", "#3d9970", "#a05195")
TEXT_COLOUR = "#808080"

Points = Sequence[tuple[float, float]]


def line_chart(title: str, across: str, up: str, series: Mapping[str, Points], labels: Mapping[float, str]) -> str:
    """``series`` is by name. ``labels`` are the marks of the x axis, evenly spaced in their order."""
    places = {mark: number for number, mark in enumerate(labels)}
    top = GRID_LINES * _round_step(max(value for points in series.values() for _, value in points) / GRID_LINES)
    drawn = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif">',
        _text(LEFT, 18, title),
        _text(LEFT + _wide() / 2, HEIGHT - 10, across, anchor="middle"),
        _text(8, TOP - 14, up),
    ]
    for grid in range(GRID_LINES + 1):
        value = top * grid / GRID_LINES
        y = _y(value, top)
        drawn.append(
            f'<line x1="{LEFT}" y1="{y:.1f}" x2="{LEFT + _wide()}" y2="{y:.1f}" stroke="{TEXT_COLOUR}" opacity="0.3"/>'
        )
        drawn.append(_text(LEFT - 8, y + 4, f"{value:,.4g}", anchor="end"))
    drawn += [
        _text(_x(places[mark], len(places)), HEIGHT - 30, label, anchor="middle") for mark, label in labels.items()
    ]
    for number, (name, points) in enumerate(series.items()):
        drawn += _line(name, [(_x(places[at], len(places)), _y(value, top)) for at, value in points], number)
    return "\n".join([*drawn, "</svg>", ""])


def _round_step(least: float) -> float:
    power = 10.0 ** math.floor(math.log10(least))
    return next(power * times for times in (1, 2, 2.5, 5, 10) if power * times >= least)


def _line(name: str, points: Points, number: int) -> list[str]:
    colour = COLOURS[number % len(COLOURS)]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    dots = [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{colour}"/>' for x, y in points]
    beside = _text(LEFT + _wide() + 10, TOP + 10 + 18 * number, name, colour=colour)
    return [f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>', *dots, beside]


def _wide() -> float:
    return WIDTH - LEFT - RIGHT


def _x(place: int, places: int) -> float:
    return LEFT + _wide() * (place + 0.5) / places


def _y(value: float, top: float) -> float:
    return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * value / top


def _text(x: float, y: float, text: str, *, anchor: str = "start", colour: str = TEXT_COLOUR) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="12" fill="{colour}">{escape(text)}</text>'
