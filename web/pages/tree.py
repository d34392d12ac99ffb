"""A lineage drawn as an espalier: roots on the ground, level tiers above them.

Data and base models stand below the jobs that used them, those below what they made. The picture
is an SVG of plain boxes and lines; the same family is told as a list, for whom cannot see it and
where there is no room.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from scheduler.catalog.lineage import Family, Maker
from scheduler.catalog.registry import label
from scheduler.models import Version

#: Boxes of one tier that are drawn; the list has them all.
MOST = 5
#: Pixels: (width, height) by what a box is, and the room between them.
_BOXES = {"version": (196, 46), "hub": (196, 46), "job": (150, 28), "bend": (8, 28)}
_ACROSS, _UP = 18, 30
#: Letters that fit a box.
_LETTERS = {"version": 24, "hub": 24, "job": 18}


@dataclass(frozen=True, slots=True)
class Node:
    """A version, a job, a repository of another hub, or the bend of a long line.

    ``x`` and ``y`` are its top left corner, in pixels; ``title`` is told when it is pointed at.
    """

    key: str
    what: str
    kind: str
    name: str
    more: str
    title: str
    url: str | None = None
    is_current: bool = False
    size: int = 0
    x: float = 0
    y: float = 0

    @property
    def width(self) -> int:
        return _BOXES[self.what][0]

    @property
    def height(self) -> int:
        return _BOXES[self.what][1]

    @property
    def short(self) -> str:
        most = _LETTERS.get(self.what, 0)
        return self.name if len(self.name) <= most else f"{self.name[: most - 1]}…"


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the list: a version, how it was made, and from what."""

    node: Node
    maker: Maker | None
    parents: tuple[tuple[str, str], ...]  # role, reference


@dataclass(slots=True)
class Picture:
    """The boxes with their places, the paths between them, and the same as a list."""

    width: int
    height: int
    nodes: list[Node]
    paths: list[str]
    lines: list[Line]
    left_out: int


@dataclass(slots=True)
class _Graph:
    nodes: dict[str, Node] = field(default_factory=dict)
    edges: set[tuple[str, str]] = field(default_factory=set)  # (below, above)

    def parents(self, key: str) -> list[str]:
        return [below for below, above in self.edges if above == key]

    def children(self, key: str) -> list[str]:
        return [above for below, above in self.edges if below == key]


def picture(
    version: Version, family: Family, makers: Mapping[str, Maker], projects: Collection[str]
) -> Picture:
    """Return the drawing of a version's family, of the versions whose project id is given."""
    relatives = (*family.ancestors, *family.descendants)
    shown = {item.id: item for item in (version, *(r.version for r in relatives))}
    shown = {key: v for key, v in shown.items() if v.artifact.project_id in projects}
    steps = {(r.version.id, r.of, r.role) for r in family.ancestors}
    steps |= {(r.of, r.version.id, r.role) for r in family.descendants}
    steps = {step for step in steps if step[0] in shown and step[1] in shown}
    graph = _graph(version, shown, steps, makers)
    layers = _layers(graph)
    whole = len(graph.nodes)
    lines = _lines(version, shown, steps, makers, graph, layers)
    _thin(graph, layers)
    left_out = whole - len(graph.nodes)
    rows = _rows(graph, layers)
    _order(graph, rows)
    return _placed(graph, rows, lines, left_out)


# --- What is in it ------------------------------------------------------------------------


def _graph(
    current: Version,
    shown: Mapping[str, Version],
    steps: Iterable[tuple[str, str, str]],
    makers: Mapping[str, Maker],
) -> _Graph:
    graph = _Graph()
    for key, version in shown.items():
        graph.nodes[key] = _version_node(version, current)
        maker = makers.get(key)
        if maker is not None:
            graph.nodes[f"job:{maker.job}"] = _job_node(maker)
            graph.edges.add((f"job:{maker.job}", key))
        for name in _hub_names(version):
            graph.nodes[name] = Node(
                name, "hub", "model", name, "from another hub", f"{name}, of another hub"
            )
            graph.edges.add((name, _below(key, makers)))
    for parent, child, _ in steps:
        graph.edges.add((parent, _below(child, makers)))
    return graph


def _below(key: str, makers: Mapping[str, Maker]) -> str:
    """Return what stands under a version: the job that made it, or itself."""
    return f"job:{makers[key].job}" if key in makers else key


def _hub_names(version: Version) -> list[str]:
    told = version.meta.get("hub")
    entries: list[Any] = told if isinstance(told, list) else []
    repos = [e for e in entries if isinstance(e, dict) and isinstance(e.get("repo"), str)]
    return [f"hf:{e['repo']}@{str(e.get('revision') or 'main')[:12]}" for e in repos]


def _version_node(version: Version, current: Version) -> Node:
    artifact = version.artifact
    same = artifact.project_id == current.artifact.project_id
    name = artifact.name if same else f"{artifact.project.name}/{artifact.name}"
    gone = ", deleted" if version.deleted_at or artifact.deleted_at else ""
    return Node(
        key=version.id,
        what="version",
        kind=artifact.kind,
        name=name,
        more=f"{artifact.kind} v{version.number}{gone}",
        title=f"{label(version)}, commit {version.commit[:12]}",
        url=label(version),
        is_current=version is current,
        size=version.size,
    )


def _job_node(maker: Maker) -> Node:
    name = f"{maker.kind} · {maker.worker}" if maker.worker else maker.kind
    title = f"{maker.kind} {maker.name}, {maker.sentence()}"
    return Node(f"job:{maker.job}", "job", maker.kind, name, "", title, f"job:{maker.job}")


def _lines(
    current: Version,
    shown: Mapping[str, Version],
    steps: Iterable[tuple[str, str, str]],
    makers: Mapping[str, Maker],
    graph: _Graph,
    layers: Mapping[str, int],
) -> list[Line]:
    """Return the family from the newest tier down."""
    parents: dict[str, list[tuple[str, str]]] = {}
    for parent, child, role in sorted(steps):
        parents.setdefault(child, []).append((role, label(shown[parent])))
    found = []
    for key in sorted(shown, key=lambda key: (-layers[key], graph.nodes[key].name)):
        bases = [("from the hub", name) for name in _hub_names(shown[key])]
        node = replace(graph.nodes[key], name=label(shown[key]))
        found.append(Line(node, makers.get(key), (*parents.get(key, ()), *bases)))
    return found


# --- Where it stands ----------------------------------------------------------------------


def _layers(graph: _Graph) -> dict[str, int]:
    """Return each node's tier, from 0 at the ground: above everything it was made from."""
    parents: dict[str, list[str]] = {}
    for below, above in graph.edges:
        parents.setdefault(above, []).append(below)
    found: dict[str, int] = {}

    def height(key: str) -> int:
        if key not in found:
            found[key] = 0  # data that tells of a circle must not turn in it
            found[key] = 1 + max((height(below) for below in parents.get(key, ())), default=-1)
        return found[key]

    for key in sorted(graph.nodes):
        height(key)
    return found


def _thin(graph: _Graph, layers: Mapping[str, int]) -> None:
    """Leave out what does not fit a tier, and the jobs of which nothing is left."""
    tiers: dict[int, list[Node]] = {}
    for node in graph.nodes.values():
        if node.what != "job":
            tiers.setdefault(layers[node.key], []).append(node)
    for tier in tiers.values():
        for node in sorted(tier, key=lambda n: (not n.is_current, n.name))[MOST:]:
            _remove(graph, node.key)
    for key in [key for key in graph.nodes if key.startswith("job:")]:
        if not graph.children(key):
            _remove(graph, key)


def _remove(graph: _Graph, key: str) -> None:
    del graph.nodes[key]
    graph.edges = {edge for edge in graph.edges if key not in edge}


def _rows(graph: _Graph, layers: Mapping[str, int]) -> list[list[str]]:
    """Return the tiers from the ground up; a line over several of them bends in each."""
    used = sorted({layers[key] for key in graph.nodes})
    at = {key: used.index(layers[key]) for key in graph.nodes}
    rows: list[list[str]] = [[] for _ in used]
    for key in sorted(graph.nodes, key=lambda key: graph.nodes[key].name):
        rows[at[key]].append(key)
    for below, above in sorted(graph.edges):
        last = below
        for tier in range(at[below] + 1, at[above]):
            bend = f"bend:{below}:{tier}"  # lines that leave one box share their bends
            graph.edges.discard((below, above))
            if bend not in graph.nodes:
                graph.nodes[bend] = Node(bend, "bend", "", "", "", "")
                rows[tier].append(bend)
            graph.edges.add((last, bend))
            last = bend
        graph.edges.add((last, above))
    return rows


def _order(graph: _Graph, rows: list[list[str]]) -> None:
    """Order each tier by where the boxes stand that it is joined to: few lines cross."""
    for sweep in range(6):
        tiers = rows[1:] if sweep % 2 == 0 else rows[-2::-1]
        where = {key: i / max(1, len(row)) for row in rows for i, key in enumerate(row)}
        near = graph.parents if sweep % 2 == 0 else graph.children
        for row in tiers:
            means = {key: _mean([where[other] for other in near(key)], where[key]) for key in row}
            row.sort(key=lambda key: means[key])
            where |= {key: i / max(1, len(row)) for i, key in enumerate(row)}


def _mean(values: list[float], default: float) -> float:
    return sum(values) / len(values) if values else default


def _placed(graph: _Graph, rows: list[list[str]], lines: list[Line], left_out: int) -> Picture:
    centres = _centres(graph, rows)
    left = min(centres[key] - graph.nodes[key].width / 2 for key in centres) - 2
    y, placed = 2.0, {}
    for row in reversed(rows):
        tall = max(graph.nodes[key].height for key in row)
        for key in row:
            node = graph.nodes[key]
            x = round(centres[key] - node.width / 2 - left, 1)
            placed[key] = replace(node, x=x, y=y + (tall - node.height) / 2)
        y += tall + _UP
    width = max(node.x + node.width for node in placed.values()) + 2
    paths = [_path(placed[below], placed[above]) for below, above in sorted(graph.edges)]
    paths += [_through(node) for node in placed.values() if node.what == "bend"]
    boxes = [node for node in placed.values() if node.what != "bend"]
    return Picture(round(width), round(y - _UP + 2), boxes, paths, lines, left_out)


def _centres(graph: _Graph, rows: list[list[str]]) -> dict[str, float]:
    """Return where each box's middle is: near the middle of those it is joined to."""
    centres: dict[str, float] = {}
    for row in rows:
        _pack(graph, row, dict.fromkeys(row, 0.0), centres)
    for _ in range(8):
        for row in (*rows, *reversed(rows)):
            wanted = {}
            for key in row:
                near = [centres[other] for other in graph.parents(key) + graph.children(key)]
                wanted[key] = _mean(near, centres[key])
            _pack(graph, row, wanted, centres)
    for row in reversed(rows):  # jobs and long lines stand right under what they lead to
        wanted = {key: centres[key] for key in row}
        for key in row:
            if graph.nodes[key].what in ("job", "bend"):
                wanted[key] = _mean([centres[c] for c in graph.children(key)], centres[key])
        _pack(graph, row, wanted, centres)
    return centres


def _pack(
    graph: _Graph, row: list[str], wanted: Mapping[str, float], centres: dict[str, float]
) -> None:
    """Place a tier's boxes as near to where they are wanted as their order and widths allow."""
    places: list[float] = []
    for i, key in enumerate(row):
        least = wanted[key]
        if i:
            apart = (graph.nodes[row[i - 1]].width + graph.nodes[key].width) / 2 + _ACROSS
            least = max(least, places[-1] + apart)
        places.append(least)
    shift = _mean([wanted[key] - place for key, place in zip(row, places, strict=True)], 0.0)
    centres.update({key: place + shift for key, place in zip(row, places, strict=True)})


def _path(below: Node, above: Node) -> str:
    """Return the way up from one box to another: straight, level, straight, with round turns."""
    x1, y1 = below.x + below.width / 2, below.y
    x2, y2 = above.x + above.width / 2, above.y + above.height
    if abs(x1 - x2) < 1:
        return f"M{x1:.1f} {y1:.1f}V{y2:.1f}"
    middle = y2 + _UP / 2
    turn = min(8.0, abs(x1 - x2) / 2)
    side = turn if x2 > x1 else -turn
    return (
        f"M{x1:.1f} {y1:.1f}V{middle + turn:.1f}q0 {-turn:.1f} {side:.1f} {-turn:.1f}"
        f"H{x2 - side:.1f}q{side:.1f} 0 {side:.1f} {-turn:.1f}V{y2:.1f}"
    )


def _through(bend: Node) -> str:
    x = bend.x + bend.width / 2
    return f"M{x:.1f} {bend.y:.1f}V{bend.y + bend.height:.1f}"
