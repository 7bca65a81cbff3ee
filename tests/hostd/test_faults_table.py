"""The table of faults in docs/security.md names tests that there are."""

from __future__ import annotations

import re

from tests.tree import ROOT


def test_every_test_that_the_table_names_is_there() -> None:
    text = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
    table = text.partition("### Faults of virtual machines")[2].partition("\n\n")[0]
    rows = [line for line in table.splitlines() if line.startswith("| ")][1:]
    assert len(rows) > 15
    for row in rows:
        path, named = "", 0
        for file, test in re.findall(r"`([\w/]*(?:\.py)?)::(\w+)`", row):
            path = file or path
            source = (ROOT / path).read_text(encoding="utf-8")
            assert f"def {test}(" in source, f"{path} has no {test}"
            named += 1
        assert named, f"no test is named: {row}"
