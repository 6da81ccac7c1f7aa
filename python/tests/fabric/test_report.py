"""The picture: whole in one file, worst first, honest about what was not tested."""

from __future__ import annotations

import io
import re
from pathlib import Path

from rich.console import Console

from splitrail.fabric.mesh_checks import judge
from splitrail.fabric.mesh_data import Result, Settings
from splitrail.fabric.report import PAGE, draw, page, show

from .test_mesh_checks import ROWS, mesh, reading


def bad_mesh() -> Result:
    result = mesh("abc", rails=2)
    reading(result, "a", "b", 1).gbps = 12.5
    one = reading(result, "c", "a", 0)
    one.gbps, one.us, one.error = None, None, "bandwidth: <b>Failed</b> status 12"
    for there in (reading(result, "b", "c", 1), reading(result, "c", "b", 1)):
        there.gbps = there.us = None
        there.skipped = "rail1 of c: fabric.link"
    return result


def html(result: Result) -> str:
    return page(result, judge(result, ROWS), ROWS)


def text_of(whole: str) -> str:
    return re.sub(r"<script.*?</script>", "", whole, flags=re.DOTALL)


def test_it_needs_nothing_else() -> None:
    assert not re.findall(r"<(?:script|link|img)[^>]+(?:src|href)=", html(mesh()))
    assert len(html(mesh())) > 1_000_000  # the library is inside


def test_the_worst_links_come_first() -> None:
    told = text_of(html(bad_mesh()))
    assert "the mesh is not proven" in told
    links = re.findall(r"<td>(rail\d, \w -&gt; \w)</td><td>fabric", told)
    assert links == ["rail0, c -&gt; a", "rail1, a -&gt; b"]
    assert "&lt;b&gt;Failed" in told
    assert "<b>Failed" not in told


def test_what_was_not_tested_and_the_basis_are_said() -> None:
    told = text_of(html(bad_mesh()))
    assert "2 ways: rail1 of c: fabric.link." in told
    assert "convention: 360 of 400 Gb/s" in told
    assert "Every rail was tested" in text_of(html(mesh()))


def test_a_sample_is_not_drawn_as_a_whole() -> None:
    result = mesh("abcd")
    result.settings = Settings(mesh="sample", sample=1)
    kept = {frozenset(pair) for pair in result.settings.plan("abcd")[0]}
    result.readings = [r for r in result.readings if r.pair in kept]
    assert "2 pairs were planned, 4 were not tested" in text_of(html(result))


def test_a_map_for_each_rail_with_both_quantities() -> None:
    whole = html(mesh("abc", rails=3))
    assert [f'id="rail{rail}"' in whole for rail in range(4)] == [True, True, True, False]
    assert whole.count('"label":"latency"') == 3


def test_drawn_again_from_the_record_it_is_the_same(tmp_path: Path) -> None:
    result = bad_mesh()
    result.save(tmp_path)
    first = draw(tmp_path, result, judge(result, ROWS), ROWS).read_text()
    again = Result.load(tmp_path)
    assert again == result
    assert draw(tmp_path, again, judge(again, ROWS), ROWS).read_text() == first
    assert (tmp_path / PAGE).exists()


def test_the_terminal_shows_the_same() -> None:
    stream = io.StringIO()
    result = bad_mesh()
    show(result, judge(result, ROWS), Console(file=stream, width=160))
    told = stream.getvalue()
    assert told.index("rail0, c -> a") < told.index("rail1, a -> b")
    assert "12.5 Gb/s" in told
    assert "not tested: 2 ways: rail1 of c: fabric.link." in told
