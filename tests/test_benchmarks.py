"""The speed benches: their sections of the docs, and drawing with both engines in small."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import torch

from benchmarks import common, generation
from benchmarks.common import (
    BenchError,
    finish,
    interleave,
    kept_figures,
    make_parser,
    p95,
    renew_section,
)
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


def test_both_engines_draw_the_same_faces(tmp_path: Path) -> None:
    torch.manual_seed(0)
    G = Generator(resolution=16, channels=(16, 16, 16), z_dim=16, w_dim=16)
    G.update_w_avg(256)
    G.save_pretrained(tmp_path)
    studio = Studio.open(tmp_path)
    exported = export(studio, tmp_path, weights="fp32")
    rows = generation.measure(studio, 1, exported, [1, 4], calls=3)
    assert {(r["engine"], r["batch"]) for r in rows} == {
        (engine, batch) for engine in (generation.OURS, "onnxruntime") for batch in (1, 4)
    }
    assert all(r["worst_of_255"] <= 1 and 0 < r["p50_ms"] <= r["p95_ms"] for r in rows)
    flops = generation.count_flops(studio.G)
    assert flops > 16 * 16 * 9 * 16**2 * 2  # the last level alone
    figures = {"machine": "a machine", "size": 16, "gflop": flops / 1e9, "start": {"x": 1.0}}
    text = generation.report(figures | {"rows": rows})
    assert text.count("| onnxruntime | 1 | ") == 2 and "x 1.00 s" in text


def test_a_fault_is_one_sentence_and_figures_are_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parser = make_parser("some", "Some bench.")
    options = parser.parse_args(["--results", str(tmp_path)])
    options.docs = tmp_path / "doc.md"

    def fail(_: object) -> str:
        raise BenchError("nothing to measure")

    assert finish("some", options, fail) == 2
    assert capsys.readouterr().err == "benchmarks.some: nothing to measure\n"
    assert not options.docs.exists() and kept_figures("some", options) == {}
    assert finish("some", options, lambda _: ("A table.", {"a": 1})) == 0
    assert "A table." in options.docs.read_text() and kept_figures("some", options) == {"a": 1}
    options.docs, options.quick = tmp_path / "other.md", True
    assert finish("some", options, lambda _: ("A table.", {"a": 2})) == 0
    assert not options.docs.exists()


def test_every_bench_explains_itself(capsys: pytest.CaptureFixture[str]) -> None:
    names = {path.stem for path in (common.ROOT / "benchmarks").glob("*.py")}
    for name in sorted(names - {"__init__", "common", "contestants", "peers", "worker"}):
        with pytest.raises(SystemExit, match="0"):
            importlib.import_module(f"benchmarks.{name}").main(["--help"])
        assert f"usage: python -m benchmarks.{name} " in capsys.readouterr().out
