"""The speed benches: their sections of the docs, and drawing with every engine in small."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks import generation
from benchmarks.common import interleave, p95, renew_section
from model import Generator
from studio.export import export
from studio.faces import Studio


def test_a_section_is_replaced_where_it_stands(tmp_path: Path) -> None:
    doc = tmp_path / "doc.md"
    doc.write_text("# Head\n")
    renew_section(doc, "one", "first")
    renew_section(doc, "two", "second")
    doc.write_text(doc.read_text() + "\nTail by hand.\n")
    renew_section(doc, "one", "renewed")
    text = doc.read_text()
    assert text.startswith("# Head\n") and text.endswith("Tail by hand.\n")
    assert "first" not in text and text.index("renewed") < text.index("second")
    doc.write_text(text.replace("<!-- end one -->", ""))
    with pytest.raises(ValueError, match="lacks the line <!-- end one -->"):
        renew_section(doc, "one", "again")


def test_cases_take_turns() -> None:
    calls: list[str] = []
    seconds = interleave({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 3)
    assert calls == ["a", "b"] + ["a", "b"] * 3
    assert {name: len(values) for name, values in seconds.items()} == {"a": 3, "b": 3}
    assert p95(range(101)) == 95


def test_every_engine_draws_the_same_faces(tmp_path: Path) -> None:
    torch.manual_seed(0)
    G = Generator(resolution=16, channels=(16, 16, 16), z_dim=16, w_dim=16)
    G.update_w_avg(256)
    G.save_pretrained(tmp_path)
    studio = Studio.open(tmp_path)
    files = {"fp32": export(studio, tmp_path, weights="fp32")}
    rows = generation.measure(tmp_path, 1, files, [1, 4], calls=3)
    torches = {"studio (torch)", "torch, not frozen", "torch, not channels_last"}
    names = torches | {"onnxruntime", "openvino"}
    assert {r["engine"] for r in rows} == names and {r["batch"] for r in rows} == {1, 4}
    assert all(r["worst_of_255"] <= 1 and 0 < r["p50_ms"] <= r["p95_ms"] for r in rows)
    assert generation.count_flops(studio.G) > 16 * 16 * 9 * 16**2 * 2  # the last level alone
