"""What depends on what: between ciphertexts, by the transformer, and within them, by the RNS.

A ciphertext is two polynomials with a limb per prime. An operation couples

* *limbs* ("rns") if a limb of its result needs all limbs of an operand: key switching (ModUp reads
  every limb of a digit), rescaling and other divisions by primes, raising the modulus;
* *ciphertexts* ("application") if a ciphertext of its result needs others than its own: sums over
  features, products with matrices, keys and values of other tokens.

What is coupled by limbs belongs on one device: a ciphertext's modulus chain is taken apart only
where nothing couples it (`Component`, *modulus-coherent*). Values between which every ciphertext
needs its own only may be divided along their rows, alike (`Cluster`, *token-coherent* where a
program keeps tokens in rows). What then remains to be sent are the edges between clusters, and the
program is what asks for them.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import networkx as nx

from aegis_dask.errors import ProgramError
from aegis_dask.program.graph import Program
from aegis_dask.program.symbolic import Analysis

Rows = Literal["own", "all", "sum"]
"""Which ciphertexts of an operand one of the result needs: its own; all; or it is a sum of them."""
_COUPLING = ("key_switches", "rescales", "bootstraps")


@dataclass(frozen=True)
class Edge:
    """An operand of an operation.

    Attributes
    ----------
    source, target
        Nodes of the program.
    rows
        Coupling of ciphertexts.
    rns
        Whether limbs are coupled.
    size
        Bytes of the operand.
    """

    source: int
    target: int
    rows: Rows
    rns: bool
    size: int

    @property
    def kind(self) -> str:
        """``"application"`` if it couples ciphertexts, else ``"rns"`` or ``"local"``."""
        if self.rows != "own":
            return "application"
        return "rns" if self.rns else "local"


@dataclass(frozen=True)
class Cluster:
    """Values whose ciphertexts need their own only, row by row: they can be divided alike.

    Attributes
    ----------
    index
        Number of the cluster.
    nodes
        Its values.
    rows
        Length of their leading axis; 1 for a single ciphertext.
    seconds
        Work, on one thread.
    stages
        Names of the stages that it is in.
    """

    index: int
    nodes: tuple[int, ...]
    rows: int
    seconds: float
    stages: tuple[str, ...]


@dataclass(frozen=True)
class Component:
    """Operations on limbs that nothing couples, from one coupling to the next.

    Attributes
    ----------
    nodes
        Their values: the limbs of each may be on different devices.
    seconds
        Work, on one thread.
    """

    nodes: tuple[int, ...]
    seconds: float


@dataclass(frozen=True, eq=False)
class Dependencies:
    """The dependencies of a program.

    Attributes
    ----------
    program
        The program.
    edges
        Operands of all operations.
    clusters
        Values by what can be divided alike; every node is in one.
    separable
        Phases in which limbs are independent.
    seconds
        Work of the program, on one thread.
    """

    program: Program
    edges: tuple[Edge, ...]
    clusters: tuple[Cluster, ...]
    separable: tuple[Component, ...]
    seconds: float

    @property
    def separable_share(self) -> float:
        """Share of the work in which limbs are independent: the most that sharding them saves."""
        return sum(c.seconds for c in self.separable) / self.seconds if self.seconds else 0.0

    @property
    def bytes_by_kind(self) -> dict[str, int]:
        """Kind of edge -> bytes of operands."""
        out: Counter[str] = Counter()
        for e in self.edges:
            out[e.kind] += e.size
        return dict(out)

    def between(self) -> dict[tuple[int, int], int]:
        """Return (cluster, cluster) -> bytes of the values of the first that the second needs.

        A value that several operations of a cluster need counts once.
        """
        cluster = self.cluster_of()
        needed = {(e.source, cluster[e.target]): e.size for e in self.edges}
        out: Counter[tuple[int, int]] = Counter()
        for (source, target), size in needed.items():
            if cluster[source] != target:
                out[cluster[source], target] += size
        return dict(out)

    def cluster_of(self) -> list[int]:
        """Return the cluster of every node."""
        out = [0] * len(self.program.nodes)
        for c in self.clusters:
            for i in c.nodes:
                out[i] = c.index
        return out

    def graph(self) -> nx.DiGraph:
        """Return clusters as nodes, with what they take from each other as edges."""
        g = nx.DiGraph()
        for c in self.clusters:
            attributes = {"rows": c.rows, "seconds": c.seconds, "operations": len(c.nodes)}
            g.add_node(c.index, stages=", ".join(c.stages), **attributes)
        for (a, b), size in self.between().items():
            g.add_edge(a, b, bytes=size)
        return g

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready data."""
        nodes = self.program.nodes
        return {
            "operations": [
                {"id": n.id, "name": n.op.name, "stage": self.program.stages[n.stage].name}
                for n in nodes
            ],
            "edges": [{**asdict(e), "kind": e.kind} for e in self.edges],
            "clusters": [asdict(c) for c in self.clusters],
            "between_clusters": [
                {"from": a, "to": b, "bytes": size} for (a, b), size in self.between().items()
            ],
            "bytes_by_kind": self.bytes_by_kind,
            "separable_share": self.separable_share,
        }

    def write(self, path: Path) -> None:
        """Write clusters as GraphML, or everything as JSON, by the name of the file.

        Raises
        ------
        ProgramError
            If the name ends in neither.
        """
        check_name(path)
        if path.suffix == ".graphml":
            nx.write_graphml(self.graph(), path)
        else:
            path.write_text(json.dumps(self.to_dict(), indent=1) + "\n", encoding="utf-8")


def check_name(path: Path) -> None:
    """Raise `ProgramError` unless `Dependencies.write` can tell a format from the name."""
    if path.suffix not in (".graphml", ".json"):
        raise ProgramError(f"{path} must end in .graphml or .json")


def dependencies(analysis: Analysis) -> Dependencies:
    """Find the dependencies of a program at the levels that it has."""
    program = analysis.program
    edges = []
    for node in program.nodes:
        for k, j in enumerate(node.inputs):
            edges.append(
                Edge(
                    j,
                    node.id,
                    _rows(program, node.id, k),
                    _couples_limbs(analysis, node.id, j),
                    analysis.node_bytes[j],
                )
            )
    clusters = []
    own = [(e.source, e.target) for e in edges if e.rows == "own"]
    for index, members in enumerate(_joined(len(program.nodes), own)):
        stages = dict.fromkeys(program.stages[program.nodes[i].stage].name for i in members)
        clusters.append(
            Cluster(
                index,
                tuple(members),
                max(_leading(program, i) for i in members),
                sum(analysis.node_cost[i].seconds for i in members),
                tuple(stages),
            )
        )
    coupled = {e.target for e in edges if e.rns}
    loose = [(e.source, e.target) for e in edges if not coupled & {e.source, e.target}]
    separable = [
        Component(tuple(members), sum(analysis.node_cost[i].seconds for i in members))
        for members in _joined(len(program.nodes), loose)
        if not coupled & set(members) and any(program.nodes[i].inputs for i in members)
    ]
    return Dependencies(
        program, tuple(edges), tuple(clusters), tuple(separable), analysis.total.seconds
    )


def _leading(program: Program, node: int) -> int:
    shape = program.nodes[node].shape
    return shape[0] if shape else 1


def _rows(program: Program, node: int, operand: int) -> Rows:
    """Return which ciphertexts of an operand each row of the result needs."""
    op, inputs = program.nodes[node].op, program.nodes[node].inputs
    shapes = [program.nodes[i].shape for i in inputs]
    if op.reduces:
        return "sum"
    if operand in op.whole or not op.splits(*shapes):
        # Operations on single ciphertexts have one row, which is their own.
        single = not shapes[operand] and not program.nodes[node].shape
        return "own" if single else "all"
    return "own" if shapes[operand] else "all"


def _couples_limbs(analysis: Analysis, node: int, operand: int) -> bool:
    counts = analysis.node_cost[node].counts
    return any(counts.get(what, 0) for what in _COUPLING) or (
        analysis.levels[node] != analysis.levels[operand]
    )


def _joined(count: int, pairs: Sequence[tuple[int, int]]) -> list[list[int]]:
    """Return connected sets of ``range(count)``, in the order of their first elements."""
    g = nx.Graph()
    g.add_nodes_from(range(count))
    g.add_edges_from(pairs)
    return sorted((sorted(c) for c in nx.connected_components(g)), key=lambda c: c[0])
