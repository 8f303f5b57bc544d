"""Checkpoints: exact, atomic, bounded in number, and refused when they are not ours."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from training.checkpoint import (
    CheckpointError,
    find_checkpoint,
    list_checkpoints,
    load_checkpoint,
    save_checkpoint,
)


def make(seed=0):
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 1))
    optimizer = torch.optim.Adam(network.parameters(), 0.01, (0.0, 0.99))
    return {"G": network}, {"opt": optimizer}


def steps(networks, optimizers, count, seed):
    torch.manual_seed(seed)
    for _ in range(count):
        optimizers["opt"].zero_grad()
        networks["G"](torch.randn(6, 4)).square().mean().backward()
        optimizers["opt"].step()


def test_going_on_is_exact(tmp_path):
    networks, optimizers = make()
    steps(networks, optimizers, 3, seed=1)
    state = {"nimg": 12500, "seconds": 3.5}
    path = save_checkpoint(tmp_path, networks, optimizers, state, keep=2)
    steps(networks, optimizers, 3, seed=2)

    others, their_optimizers = make(seed=9)
    assert load_checkpoint(path, others, their_optimizers) == state
    steps(others, their_optimizers, 3, seed=2)
    for key, tensor in networks["G"].state_dict().items():
        assert torch.equal(tensor, others["G"].state_dict()[key]), key


def test_only_the_newest_are_kept_in_order_of_age(tmp_path):
    networks, optimizers = make()
    for nimg in (9000, 10000, 999, 100000):
        save_checkpoint(tmp_path, networks, optimizers, {"nimg": nimg}, keep=3)
    names = [p.name for p in list_checkpoints(tmp_path)]
    assert names == [f"kimg-0000{k}.000.safetensors" for k in ("09", "10")] + [
        "kimg-000100.000.safetensors"
    ]
    assert find_checkpoint("latest", tmp_path).name == names[-1]


def test_a_failed_save_leaves_the_older_ones(tmp_path, monkeypatch):
    networks, optimizers = make()
    path = save_checkpoint(tmp_path, networks, optimizers, {"nimg": 1000}, keep=1)
    whole = path.read_bytes()

    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("training.checkpoint._flush", full)
    with pytest.raises(OSError, match="No space left.*older checkpoints are intact"):
        save_checkpoint(tmp_path, networks, optimizers, {"nimg": 2000}, keep=1)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    assert path.read_bytes() == whole


def damage_truncate(path):
    path.write_bytes(path.read_bytes()[:-10])


def damage_foreign(path):
    save_file({"x": torch.zeros(2)}, path)


def damage_pickle(path):
    torch.save({"G": {}}, path)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (damage_truncate, "cannot be read"),
        (damage_pickle, "cannot be read"),
        (damage_foreign, "no checkpoint of a training run of ours"),
    ],
)
def test_damaged_ones_are_refused(tmp_path, damage, words):
    path = save_checkpoint(tmp_path, *make(), {"nimg": 1000}, keep=1)
    damage(path)
    with pytest.raises(CheckpointError, match=words):
        load_checkpoint(path, *make())


def test_other_networks_are_refused(tmp_path):
    path = save_checkpoint(tmp_path, *make(), {"nimg": 1000}, keep=1)
    other = nn.Linear(4, 9)
    with pytest.raises(CheckpointError, match="belongs to other networks"):
        load_checkpoint(path, {"G": other}, {})
    with pytest.raises(CheckpointError, match="belongs to other networks"):
        load_checkpoint(path, {"D": other}, {})


def test_nothing_to_resume(tmp_path):
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        find_checkpoint("latest", tmp_path)
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        find_checkpoint(str(tmp_path / "none.safetensors"), tmp_path)
