"""Teaching an encoder: strict settings, exact resuming, an encoder that knows its generator."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest
import torch
from courses import interrupted_after
from edits import save_generator
from PIL import Image

from fitting import course
from fitting import encode as fitting
from model import Encoder, ModelError
from studio.faces import Studio
from studio.match import match

SMALL = ["--faces", "64", "--batch-size", "4", "--kimg", "0.032"]


def test_an_encoder_learns_resumes_and_is_found_beside_its_generator(
    tmp_path, capsys, monkeypatch, faces_zip
):
    save_generator(tmp_path / "generator")
    monkeypatch.setattr(course, "SAVE_EVERY", 0.0)
    (tmp_path / "twice" / "checkpoints").mkdir(parents=True)  # of a run, which stay as they are
    (tmp_path / "twice" / "checkpoints" / "kimg-000001.000.safetensors").write_bytes(b"run")
    monkeypatch.setattr(fitting, "HELD_OUT", 2)
    command = ["--model", str(tmp_path / "generator"), "--data", str(faces_zip), *SMALL]
    assert fitting.main([*command, "--out", str(tmp_path / "once")]) == 0
    scores = json.loads(capsys.readouterr().out.splitlines()[-1].split(": ", 1)[1])
    assert scores["drawn_rmse"] > 0 and scores["picture_rmse"] > 0
    with interrupted_after(3, fitting.Encoding):
        fitting.main([*command, "--out", str(tmp_path / "twice")])
    assert fitting.main([*command, "--out", str(tmp_path / "twice")]) == 0
    files = [tmp_path / name / "encoder" / "model.safetensors" for name in ("once", "twice")]
    assert files[0].read_bytes() == files[1].read_bytes()
    weights = (tmp_path / "generator" / "model.safetensors").read_bytes()
    assert Encoder.from_pretrained(files[0].parent).generator == hashlib.sha256(weights).hexdigest()
    assert "a picture to latents" in (files[0].parent / "README.md").read_text()
    files[0].parent.rename(tmp_path / "encoder")
    studio = Studio.open(tmp_path / "generator")
    assert studio.encoder is not None
    first = []
    match(studio, Image.fromarray(studio.draw([3])[0].squeeze()), seconds=1, found=first.append)
    assert first[0].w
    capsys.readouterr()
    assert fitting.main([*command, "--lr", "1", "--out", str(tmp_path / "twice")]) == 2
    assert "was started with other settings" in capsys.readouterr().err


def test_the_linear_map_tells_latents_of_faces_that_it_was_not_fitted_to():
    G, _ = fitting.open_generator(fitting.BUNDLED)
    E = Encoder(G.num_ws, G.w_dim)
    fitting.fit_head(E, G, 192, bf16=False)
    ws = fitting.sample_latents(G, fitting.TEST_SEED, 32)
    found = E.eval()(fitting.draw(G, ws, bf16=False))
    own, other = ((found - w).norm(dim=2).mean() for w in (ws, ws.roll(1, 0)))
    assert own < 0.95 * other


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (["--kimg", "0"], "must be at least 4, --kimg and --lr above 0"),
        (["--faces", "8"], "--faces must be at least 64"),
        (["--model", "none"], "none"),
        (["--data", "none"], "none does not exist"),
    ],
)
def test_what_cannot_be_is_one_sentence(tmp_path, capsys, changes, says):
    assert fitting.main(["--out", str(tmp_path / "out"), *changes]) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1


def test_settings_that_were_cut_are_refused_and_kept(tmp_path):
    settings = fitting.Settings("", "", 1.0, 64, 4, 1e-3, False, 0)
    course.begin(tmp_path, settings)
    course.begin(tmp_path, settings)
    cut = (tmp_path / "settings.json").read_text()[:20]
    (tmp_path / "settings.json").write_text(cut)
    with pytest.raises(course.FittingError, match="use another --out"):
        course.begin(tmp_path, settings)
    assert (tmp_path / "settings.json").read_text() == cut


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"rank": 0}, "rank must be a whole number from 1 to 4096"),
        ({"widths": [8, 8]}, "widths must be 4 whole numbers"),
        ({"generator": "x"}, "a SHA-256 of 64 hex digits"),
    ],
)
def test_what_a_strangers_config_may_not_ask_for(tmp_path, config, says):
    Encoder(3, 4, widths=(4, 4, 4, 4), rank=4, hidden=4).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    with pytest.raises(ModelError, match=says):
        Encoder.from_pretrained(tmp_path)


def test_pictures_of_any_size_and_grey_ones_are_encoded():
    torch.manual_seed(0)
    E = Encoder(3, 4, widths=(4, 4, 4, 4), rank=4, hidden=4).freeze()
    for size, channels in ((16, 3), (128, 1), (200, 3)):
        images = torch.from_numpy(np.random.RandomState(0).rand(2, channels, size, size)).float()
        both = E(images * 2 - 1)
        assert both.shape == (2, 3, 4)
        assert torch.allclose(both[:1], E(images[:1] * 2 - 1), atol=1e-5)
