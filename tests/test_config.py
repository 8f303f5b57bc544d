"""The command line, presets and configuration files."""

import dataclasses
import json
import math

import pytest

from training.config import (
    PRESETS,
    RENAMED,
    ConfigError,
    TrainConfig,
    flag,
    make_config,
    make_parser,
    parse_arguments,
    read_config_file,
    renamed,
)


def test_every_setting_has_a_flag_with_its_meaning():
    text = make_parser().format_help()
    for spec in dataclasses.fields(TrainConfig):
        assert "--" + spec.name.replace("_", "-") in text
        assert spec.metadata["help"]


def test_every_preset_is_usable():
    for name in PRESETS:
        assert parse_arguments(["--preset", name]) == make_config(PRESETS[name])


def test_flags():
    config = parse_arguments(
        ["--data", "a", "b.zip", "--batch-size", "8", "--no-xflip", "--g-lr", "1e-4"]
    )
    assert config.data == ("a", "b.zip")
    assert (config.batch_size, config.xflip, config.g_lr) == (8, False, 1e-4)


def test_flag_beats_file_beats_preset(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("batch-size: 8\nresolution: 48\n")
    config = parse_arguments(["--preset", "tiny", "--config", str(path), "--resolution", "96"])
    assert (config.batch_size, config.resolution) == (8, 96)
    assert config.channel_base == PRESETS["tiny"]["channel_base"]


@pytest.mark.parametrize("suffix", [".json", ".yaml"])
def test_saved_configuration_comes_back(tmp_path, suffix):
    config = make_config({"batch_size": 12, "data": ["x", "y"], "augment": "cutout"})
    path = tmp_path / f"config{suffix}"  # JSON is YAML too
    config.save(path)
    assert make_config(read_config_file(path)) == config


@pytest.mark.parametrize(
    "flags", [["--batch", "8"], ["--frobnicate"], ["--batch-size", "many"], ["--objective", "x"]]
)
def test_unknown_flags_are_refused(flags, capsys):
    with pytest.raises(SystemExit) as exit_:
        parse_arguments(flags)
    assert exit_.value.code == 2
    assert "error:" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"batchsize": 8}, "unknown setting batchsize"),
        ({"batch_size": "8"}, "--batch-size takes a whole number"),
        ({"batch_size": True}, "--batch-size takes a whole number"),
        ({"batch_size": 0}, "--batch-size must be at least 1"),
        ({"batch_size": -4}, "--batch-size must not be negative"),
        ({"g_lr": math.nan}, "--g-lr takes a finite number"),
        ({"g_lr": 0}, "--g-lr must be above 0"),
        ({"xflip": 1}, "--xflip takes true or false"),
        ({"objective": "wasserstein"}, "--objective must be one of"),
        ({"beta1": 1.5}, "--beta1 must lie in 0 to 1"),
        ({"data": []}, "--data names no source"),
        ({"data": [3]}, "--data takes names"),
        ({"augment": "sparkle"}, "sparkle"),
        ({"aid_lr": 1e-4}, "aid_lr is now called projected_lr"),
        ({"projected_weight": 1.0, "critic": "projected"}, "--projected-weight needs"),
        (
            {"projected_resolution": 96, "resolution": 64},
            "--projected-resolution must be 0, or 64 to",
        ),
        ({"projected_resolution": 32}, "--projected-resolution must be 0, or 64 to"),
        ({"augment_target": 0.6}, "--augment-target needs --augment"),
        (
            {"augment_target": 0.6, "augment": "cutout", "objective": "relativistic"},
            "an objective that judges each picture alone",
        ),
        ({"augment_target": 1.5, "augment": "cutout"}, "--augment-target must lie in 0 to 1"),
        ({"held_out": 0.6}, "--held-out must lie in 0 to 0.5"),
    ],
)
def test_unusable_values_get_a_sentence(values, words):
    with pytest.raises(ConfigError, match=words):
        make_config(values)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("c.toml", "a = 1", "must end in .json"),
        ("c.json", '{"seed": 1,\n "xflip" 2}', "cannot be read: line 2: Expecting ':'"),
        ("c.yaml", "seed: 1\na: [\n b: c\n", "cannot be read: line 4: expected ',' or ']'"),
        ("c.yaml", "seed: 1\n\tlr: 3", "cannot be read: line 2: found character '.t'"),
        ("c.yaml", "!!python/object/apply:os.system ['true']", "cannot be read"),
        ("c.yaml", "- 1", "must hold names and values"),
        ("c.json", None, "No such file"),
    ],
)
def test_unusable_files_get_a_sentence(tmp_path, name, text, words):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=words):
        read_config_file(tmp_path / name)


@pytest.mark.parametrize("old", RENAMED)
def test_old_names_are_refused_with_the_new_one(old):
    with pytest.raises(ConfigError, match=f"{flag(old)} is now called {flag(RENAMED[old])}"):
        parse_arguments([f"{flag(old)}=0.5"])
    assert renamed({old: 3, "seed": 1}) == {RENAMED[old]: 3, "seed": 1}


def test_settings_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        make_config().seed = 3


def test_saved_file_is_plain_json(tmp_path):
    make_config().save(tmp_path / "c.json")
    assert json.loads((tmp_path / "c.json").read_text())["resolution"] == 64
