"""notebooks/train.ipynb, from top to bottom in a fresh interpreter, with tiny settings."""

import json
import os
import re
import subprocess
import sys

import pytest
from conftest import ROOT

from model import Generator

NOTEBOOK = ROOT / "notebooks" / "train.ipynb"
# What a notebook's front end does: it shows pictures and text, and replaces them when told to.
FRONT_END = """
import itertools, json, sys
ids = itertools.count()

class Handle:
    def __init__(self, what):
        self.id = next(ids)
        self.update(what)

    def update(self, what):
        shown = getattr(what, "size", what)
        print("SHOWN", json.dumps([self.id, shown]), flush=True)

def display(what, display_id=False):
    handle = Handle(what)
    return handle if display_id else None

for number, cell in enumerate(json.load(open(sys.argv[1]))):
    print("CELL", number, flush=True)
    exec(compile(cell, f"cell {number}", "exec"))
"""
TINY = [
    "--resolution", "16", "--channel-base", "256", "--channel-max", "16", "--z-dim", "16",
    "--w-dim", "16", "--total-kimg", "1", "--tick-kimg", "0.25", "--snapshot-ticks", "1",
    "--metric-samples", "0", "--workers", "1",
]  # fmt: skip


def cells():
    """Return the notebook's code cells, and check that it was saved without what it printed."""
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert (notebook["nbformat"], notebook["metadata"]["accelerator"]) == (4, "GPU")
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
    assert len({cell["id"] for cell in notebook["cells"]}) == len(notebook["cells"])
    return code


@pytest.fixture
def execute(faces_zip, tmp_path):
    """Execute the cells with other settings; returns the process and what it printed."""

    def run(**settings):
        code = ["".join(cell["source"]) for cell in cells()]
        place = next(
            i for i, c in enumerate(cells()) if "parameters" in c["metadata"].get("tags", [])
        )
        names = set(re.findall(r"(?m)^([A-Z]+) = ", code[place]))
        assert settings.keys() <= names
        code[place] += "\n" + "\n".join(f"{k} = {v!r}" for k, v in settings.items())
        (tmp_path / "cells.json").write_text(json.dumps(code))
        (tmp_path / "front_end.py").write_text(FRONT_END)
        env = os.environ | {
            "KAOGAN_CACHE": str(tmp_path / "cache"), "ACCELERATE_USE_CPU": "true",
            "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1",
        }  # fmt: skip
        return subprocess.run(
            [sys.executable, str(tmp_path / "front_end.py"), str(tmp_path / "cells.json")],
            cwd=NOTEBOOK.parent, env=env, capture_output=True, text=True, timeout=900,
        )  # fmt: skip

    settings = {"DATA": str(faces_zip), "OUT": str(tmp_path / "run"), "PRESET": "tiny",
                "FLAGS": TINY, "SLIDERS": False, "SHARE": False}  # fmt: skip
    return lambda **more: run(**settings | more)


def test_it_trains_shows_and_opens_the_page(execute, tmp_path):
    done = execute()
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("CELL") == len(cells())
    assert "installed: nothing, all is there" in done.stdout
    shown = [json.loads(line[6:]) for line in done.stdout.splitlines() if line.startswith("SHOWN")]
    words, grids = ([what for at, what in shown if at == k] for k in (0, 1))
    assert words[-1].startswith("1.0 kimg, ") and grids[-1] == [128, 128]
    assert shown[-1][1] == [128, 64]  # 32 faces of 16 px
    assert "total-kimg reached: 1 kimg" in done.stdout
    assert "Nothing is pushed: REPO is empty." in done.stdout
    assert re.search(r"200 http://127\.0\.0\.1:\d+", done.stdout)
    assert done.stdout.endswith("closed\n")
    assert Generator.from_pretrained(tmp_path / "run" / "generator").resolution == 16


def test_a_run_that_fails_is_told(execute):
    done = execute(FLAGS=[*TINY, "--resolution", "20"])
    assert done.returncode != 0
    assert "train.py: resolution must be 3, 4 or 6 times a power of two" in done.stdout
    assert "The run ended with status" in done.stderr
    assert "Traceback" not in done.stderr
