"""Draw a flow as SVG: columns from left to right, every node behind what it waits for.

Longest-path layers, ordered by the mean place of their parents (Sugiyama's method, two sweeps).
Many like siblings, as a fan-out makes them, are drawn as one box that counts their states.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from markupsafe import Markup

from runner.dashboard.asked import address
from runner.dashboard.texts import cut, number

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from runner.workflow import NodeInfo

MOST_BOXES = 250
ALIKE = 6
"""So many like siblings, or more, are one box."""

BOX_WIDTH, BOX_HEIGHT = 176, 46
GATE = 14
GAP_X, GAP_Y, EDGE = 56, 14, 8
MOST_NAME = 23
TIMES = "\N{MULTIPLICATION SIGN}"


@dataclass(slots=True)
class Box:
    """One node, or many alike.

    Attributes:
        nodes: what it stands for.
        parents: the boxes that it waits for, by their keys.
        dashed: the box that it is a fallback of, "" for most.
    """

    key: str
    nodes: list[NodeInfo]
    parents: list[str] = field(default_factory=list)
    dashed: str = ""
    column: int = 0
    x: float = 0
    y: float = 0

    @property
    def is_gate(self) -> bool:
        """Whether it is a join."""
        return self.nodes[0].is_gate

    @property
    def width(self) -> int:
        """Its width in pixels."""
        return GATE if self.is_gate else BOX_WIDTH

    @property
    def state(self) -> str:
        """The state that matters most to whoever looks at it."""
        states = {node.state.value for node in self.nodes}
        order = ("failed", "queued", "committing", "waiting", "cancelled", "skipped")
        return next((state for state in order if state in states), "succeeded")


def draw(nodes: Sequence[NodeInfo], *, root: str, queue: str) -> Markup | None:
    """Return the picture of a flow; None where there are too many nodes to make sense of."""
    boxes = boxes_of(nodes)
    if len(boxes) > MOST_BOXES:
        return None
    width, height = arrange(boxes)
    parts = [
        Markup(
            '<svg class="flow" width="{0}" height="{1}" viewBox="0 0 {0} {1}" role="group" '
            'aria-label="The workflow as a graph; the table below says the same">'
        ).format(width, height)
    ]
    parts += [_edge(boxes[parent], box) for box in boxes.values() for parent in box.parents]
    parts += [_edge(boxes[b.dashed], b, kind="dashed") for b in boxes.values() if b.dashed]
    parts += [_box(box, root, queue) for box in boxes.values()]
    return Markup("").join([*parts, Markup("</svg>")])


def boxes_of(nodes: Sequence[NodeInfo]) -> dict[str, Box]:
    """Gather like siblings, and say what waits for what."""
    children: dict[str, list[str]] = defaultdict(list)
    for node in nodes:
        for parent in node.after:
            children[parent].append(node.name)
    replaced = {node.fallback_of for node in nodes if node.fallback_of}
    alike: dict[object, list[NodeInfo]] = defaultdict(list)
    for node in nodes:
        is_alone = node.is_gate or node.when or node.fallback_of or node.name in replaced
        same = (node.task, node.after, tuple(children[node.name]))
        alike[node.name if is_alone else same].append(node)
    boxes: dict[str, Box] = {}
    box_of: dict[str, str] = {}
    for each in alike.values():
        groups = [each] if len(each) >= ALIKE else [[node] for node in each]
        for group in groups:
            key = group[0].name
            boxes[key] = Box(key, group)
            box_of |= {node.name: key for node in group}
    for box in boxes.values():
        node = box.nodes[0]
        # A parent may be kept no more.
        known = (box_of[parent] for parent in node.after if parent in box_of)
        box.parents = list(dict.fromkeys(known))
        box.dashed = box_of.get(node.fallback_of, "")
    return boxes


def arrange(boxes: Mapping[str, Box]) -> tuple[int, int]:
    """Give each box its place; return width and height of the picture."""
    columns = _ordered(_columns(boxes), boxes)
    heights = [sum(_height(box) + GAP_Y for box in column) - GAP_Y for column in columns]
    tallest = max(heights, default=0)
    x = float(EDGE)
    for column, height in zip(columns, heights, strict=True):
        y = EDGE + (tallest - height) / 2
        widest = max(box.width for box in column)
        for box in column:
            box.x, box.y = x, y
            y += _height(box) + GAP_Y
        x += widest + GAP_X
    return round(x - GAP_X + EDGE), round(tallest + 2 * EDGE)


def _columns(boxes: Mapping[str, Box]) -> list[list[Box]]:
    """Put each box behind its parents; callbacks last."""
    waits = {key: len(box.parents) + bool(box.dashed) for key, box in boxes.items()}
    behind: dict[str, list[str]] = defaultdict(list)
    for key, box in boxes.items():
        for parent in (*box.parents, *([box.dashed] if box.dashed else [])):
            behind[parent].append(key)
    ready = [key for key, count in waits.items() if not count]
    while ready:
        key = ready.pop()
        for child in behind[key]:
            boxes[child].column = max(boxes[child].column, boxes[key].column + 1)
            waits[child] -= 1
            if not waits[child]:
                ready.append(child)
    last = max((box.column for box in boxes.values() if not box.nodes[0].when), default=0)
    columns: dict[int, list[Box]] = defaultdict(list)
    for box in boxes.values():
        if box.nodes[0].when:
            box.column = last + 1
        columns[box.column].append(box)
    return [columns[index] for index in sorted(columns)]


def _ordered(columns: list[list[Box]], boxes: Mapping[str, Box]) -> list[list[Box]]:
    """Order each column by the mean place of what its boxes wait for."""
    place: dict[str, float] = {}

    def mean(box: Box) -> float:
        near = [place[parent] for parent in (*box.parents, box.dashed) if parent in place]
        return sum(near) / len(near) if near else place.get(box.key, 0.0)

    for _ in range(2):
        for column in columns:
            for index, box in enumerate(column):
                place.setdefault(box.key, index / max(len(column), 1))
            column.sort(key=mean)
            place |= {box.key: (i + 0.5) / len(column) for i, box in enumerate(column)}
    assert len(boxes) == sum(map(len, columns))
    return columns


def _height(box: Box) -> int:
    return GATE if box.is_gate else BOX_HEIGHT


def _edge(parent: Box, child: Box, *, kind: str = "") -> Markup:
    x1, y1 = parent.x + parent.width, parent.y + _height(parent) / 2
    x2, y2 = child.x, child.y + _height(child) / 2
    bend = max((x2 - x1) / 2, GAP_X / 2)
    return Markup(
        '<path class="edge {}" d="M{:.0f},{:.0f} C{:.0f},{:.0f} {:.0f},{:.0f} {:.0f},{:.0f}"/>'
    ).format(kind, x1, y1, x1 + bend, y1, x2 - bend, y2, x2, y2)


def _box(box: Box, root: str, queue: str) -> Markup:
    node = box.nodes[0]
    if box.is_gate:
        return Markup(
            '<circle class="node {}" cx="{:.0f}" cy="{:.0f}" r="{}"><title>{}</title></circle>'
        ).format(box.state, box.x + GATE / 2, box.y + GATE / 2, GATE // 2, f"join {node.name}")
    name, said = _words(box)
    drawn = Markup(
        '<g class="node {0}"><title>{1}</title>'
        '<rect x="{2:.0f}" y="{3:.0f}" width="{4}" height="{5}" rx="7"/>'
        '<rect class="mark" x="{2:.0f}" y="{3:.0f}" width="4" height="{5}" rx="2"/>'
        '<text x="{6:.0f}" y="{7:.0f}">{8}</text>'
        '<text class="said" x="{6:.0f}" y="{9:.0f}">{10}</text></g>'
    ).format(
        *(box.state, f"{node.name}: {said}", box.x, box.y, BOX_WIDTH, BOX_HEIGHT),
        *(box.x + 14, box.y + 19, cut(name, MOST_NAME), box.y + 36, cut(said, MOST_NAME + 5)),
    )
    if len(box.nodes) > 1:
        return drawn
    link = address(root, "/job", id=node.job_id, queue=queue)
    return Markup('<a href="{}">{}</a>').format(link, drawn)


def _words(box: Box) -> tuple[str, str]:
    node = box.nodes[0]
    if len(box.nodes) == 1:
        before = f"on {node.when}: " if node.when else "instead: " if node.fallback_of else ""
        return node.name, f"{before}{node.state.value}"
    return f"{node.task} {TIMES}{number(len(box.nodes))}", _counts(
        node.state.value for node in box.nodes
    )


def _counts(states: Iterable[str]) -> str:
    return ", ".join(f"{number(count)} {state}" for state, count in Counter(states).most_common())


__all__ = ["Box", "arrange", "boxes_of", "draw"]
