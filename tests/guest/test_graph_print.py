"""cuGraphDebugDotPrint writes the program's file, not one on the host."""

from __future__ import annotations

from pathlib import Path

from tests.conftest import Host
from tests.guest.graph_program import NODES
from tests.guest.stream_program import PRELUDE


def test_printed_graphs(host: Host, transport: str, tmp_path: Path) -> None:
    host.run_python(
        transport,
        PRELUDE
        + NODES
        + """
where = os.environ["PRINTED"]
graph, a = new_graph(), alloc(4)
last = add_memset(graph, [], a, 0)
for _ in range(2000): last = add_kernel(graph, [last], a, 1)
ok(driver.cuGraphDebugDotPrint(graph, where.encode(), 0))
text = open(where).read()
assert text.lstrip().startswith("digraph") and text.rstrip().endswith("}"), text[:100]
assert text.count("->") >= 2000, text.count("->")
small = new_graph(); add_memset(small, [], a, 0)
ok(driver.cuGraphDebugDotPrint(small, where.encode(), 1))  # replaces what was there
assert len(open(where).read()) < 5000
same(driver.cuGraphDebugDotPrint(small, b"/nowhere/graph.dot", 0), 304)
same(driver.cuGraphDebugDotPrint(small, None, 0), INVALID_VALUE)
""",
        PRINTED=str(tmp_path / "graph.dot"),
    )
