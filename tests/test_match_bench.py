"""The bench of matching: its table, its sheet, its section of a document, its faults."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from conftest import draw_face
from PIL import Image

from benchmarks.match import Result, main, row, save_sheet
from model import Generator


def test_pictures_and_seeds_are_measured_in_workers(tmp_path, faces_zip, capsys):
    torch.manual_seed(0)
    G = Generator(16, (16, 16, 16), z_dim=8, w_dim=8).eval()
    G.update_w_avg()
    G.save_pretrained(tmp_path / "generator")
    docs, sheet = tmp_path / "match.md", tmp_path / "sheet.png"
    asked = f"--model {tmp_path / 'generator'} --seeds 2 --psi 1 --data {faces_zip} --count 2"
    asked += f" --seconds 2 --workers 2 --docs {docs} --sheet {sheet}"
    assert main(asked.split()) == 0
    text = docs.read_text()
    assert text.splitlines()[1:-1] == capsys.readouterr().out.splitlines()
    seeds, faces = re.findall(r"^\| (?:seeds, psi 1|real faces) \| 2 \| (.+) \|$", text, re.M)
    error, _, _, first = (float(cell.rstrip("%")) for cell in seeds.split(" | ")[:4])
    assert error < first
    assert float(faces.split(" | ")[0]) > error
    assert Image.open(sheet).size == (6 * 16 * 2, 2 * 16 * 2)


def test_a_row_and_a_sheet_of_known_pictures(tmp_path):
    picture, other = (np.asarray(draw_face(seed, 32, 32)) for seed in (1, 2))
    same = [Result(p, p, 0.0, 0.1, 1.0) for p in (picture, other)]
    cells = dict(enumerate(row("same", same)))
    assert [cells[k] for k in (1, 2, 4, 7, 8, 10)] == ["2", "0.00", "100%", "0.0", "0.00", "1.0"]
    swapped = [Result(picture, other, 9.0, 0.1, 1.0), Result(other, picture, 9.0, 0.1, 3.0)]
    assert row("swapped", swapped)[8:] == ("1.00", "0.10", "2.0", "3.0")
    assert swapped[0].error > 20
    save_sheet(swapped, tmp_path / "sheet.png")
    sheet = np.asarray(
        Image.open(tmp_path / "sheet.png").resize((6 * 32, 64), Image.Resampling.BOX)
    )
    assert np.abs(sheet[:32, :32].astype(int) - picture).mean() < 12
    assert np.abs(sheet[32:, :32].astype(int) - other).mean() < 12


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        (["--data", "{empty}", "--seeds", "1"], "holds no pictures"),  # before the seed is matched
        (["--model", "{empty}", "--seeds", "1"], "config.json"),
        (["--data", "{empty}/none.zip", "--seeds", "0"], "No such file"),
    ],
)
def test_what_cannot_be_measured_is_one_sentence(tmp_path, capsys, asked, says):
    (tmp_path / "empty").mkdir()
    assert main([part.format(empty=tmp_path / "empty") for part in asked]) == 2
    out, err = capsys.readouterr()
    assert says in err
    assert err.count("\n") == 1
    assert not out
