"""Checkpoints: exact, atomic, bounded in number, and refused when they are not ours."""

import hashlib
import os
import resource

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from training.checkpoint import (
    CheckpointError,
    find_checkpoint,
    is_whole,
    list_checkpoints,
    load_checkpoint,
    lock_folder,
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
    for nimg in (999, 9000, 10000, 100000):
        save_checkpoint(tmp_path, networks, optimizers, {"nimg": nimg}, keep=3)
    names = [p.name for p in list_checkpoints(tmp_path)]
    assert names == [f"kimg-000{k}.000.safetensors" for k in ("009", "010", "100")]
    assert find_checkpoint("latest", tmp_path).name == names[-1]


def test_going_back_sets_the_newer_ones_aside(tmp_path):
    """Else the next save would drop itself as the oldest, or latest be of the run left behind."""
    networks, optimizers = make()
    for nimg in (1000, 2000, 3000):
        save_checkpoint(tmp_path, networks, optimizers, {"nimg": nimg}, keep=3)
    path = save_checkpoint(tmp_path, networks, optimizers, {"nimg": 1500}, keep=1)
    assert list_checkpoints(tmp_path) == [path]
    assert find_checkpoint("latest", tmp_path) == path
    aside = sorted(p.name for p in tmp_path.glob("*.aside"))
    assert aside == [f"kimg-00000{k}.000.safetensors.aside" for k in (2, 3)]
    assert load_checkpoint(tmp_path / aside[-1], *make())["nimg"] == 3000


def test_a_failed_save_leaves_the_older_ones(tmp_path):
    networks, optimizers = make()
    path = save_checkpoint(tmp_path, networks, optimizers, {"nimg": 1000}, keep=1)
    whole = path.read_bytes()
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit in (len(whole) - 1, 100, 0):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, old[1]))
        try:
            with pytest.raises(OSError, match="File too large.*older checkpoints are intact"):
                save_checkpoint(tmp_path, networks, optimizers, {"nimg": 2000}, keep=1)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, old)
        assert [p.name for p in tmp_path.iterdir()] == [path.name]
        assert path.read_bytes() == whole


def test_what_a_killed_save_left_is_cleared(tmp_path):
    networks, optimizers = make()
    (tmp_path / "kimg-000000.500.part").write_bytes(b"half")
    path = save_checkpoint(tmp_path, networks, optimizers, {"nimg": 1000}, keep=1)
    assert list(tmp_path.iterdir()) == [path]


def test_the_digest_is_that_of_the_file_with_zeros_in_its_place(tmp_path):
    """So that any other program can check a checkpoint too."""
    path = save_checkpoint(tmp_path, *make(), {"nimg": 1000}, keep=1)
    with safe_open(path, framework="pt") as file:
        digest = file.metadata()["sha256"]
    content = path.read_bytes()
    assert content.count(digest.encode()) == 1
    blank = content.replace(digest.encode(), b"0" * 64)
    assert hashlib.sha256(blank).hexdigest() == digest
    assert is_whole(path)


def test_any_flipped_bit_and_any_cut_is_refused(tmp_path):
    networks, optimizers = make()
    steps(networks, optimizers, 1, seed=1)
    older = save_checkpoint(tmp_path, networks, optimizers, {"nimg": 1000}, keep=2)
    path = save_checkpoint(tmp_path, networks, optimizers, {"nimg": 2000}, keep=2)
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    flips = [*range(0, header), *range(header, len(whole), 97), len(whole) - 1]
    for number, place in enumerate(flips):  # all of the header, padding too
        changed = bytearray(whole)
        changed[place] ^= 1 << number % 8
        path.write_bytes(changed)
        with pytest.raises(CheckpointError) as caught:
            load_checkpoint(path, *make())
        assert str(path) in str(caught.value)
        assert f"resume from the one before with --resume {older}" in str(caught.value)
    for size in (0, 7, 8, header - 1, header, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match="resume from the one before"):
            load_checkpoint(path, *make())
    path.write_bytes(whole + b"\0")
    with pytest.raises(CheckpointError):
        load_checkpoint(path, *make())


def test_only_a_whole_one_is_offered(tmp_path):
    networks, optimizers = make()
    paths = [
        save_checkpoint(tmp_path, networks, optimizers, {"nimg": n}, keep=9)
        for n in (1000, 2000, 3000)
    ]
    for path in paths[1:]:
        damage_truncate(path)
    with pytest.raises(CheckpointError, match=f"--resume {paths[0]}"):
        load_checkpoint(paths[2], *make())
    damage_truncate(paths[0])
    with pytest.raises(CheckpointError, match="no whole one is left before it, so start anew"):
        load_checkpoint(paths[2], *make())


def test_checkpoints_from_before_digests_are_read(tmp_path):
    networks, optimizers = make()
    steps(networks, optimizers, 2, seed=1)
    path = save_checkpoint(tmp_path, networks, optimizers, {"nimg": 1000, "seconds": 2.5}, keep=1)
    old = {"format": "kaogan-checkpoint-1", "state": '{"nimg": 1000}', "groups": "{}"}
    with safe_open(path, framework="pt") as file:
        tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
    save_file(tensors, path, metadata=old)
    others, their_optimizers = make(seed=9)
    assert load_checkpoint(path, others, their_optimizers) == {"nimg": 1000}
    for ours, theirs in ((networks, others), (optimizers, their_optimizers)):
        for name in ours:
            a, b = ours[name].state_dict(), theirs[name].state_dict()
            torch.testing.assert_close(a.get("state", a), b.get("state", b), rtol=0, atol=0)


def test_step_sizes_are_those_of_the_optimizer(tmp_path):
    """A flag given on resuming counts, whatever the run had before."""
    networks, optimizers = make()
    steps(networks, optimizers, 1, seed=1)
    path = save_checkpoint(tmp_path, networks, optimizers, {"nimg": 1000}, keep=1)
    others, their_optimizers = make()
    their_optimizers["opt"].param_groups[0] |= {"lr": 0.5, "betas": (0.5, 0.9)}
    load_checkpoint(path, others, their_optimizers)
    group = their_optimizers["opt"].param_groups[0]
    assert (group["lr"], group["betas"]) == (0.5, (0.5, 0.9))


def test_a_folder_is_locked_until_its_holder_lets_go(tmp_path):
    first = lock_folder(tmp_path)
    with pytest.raises(CheckpointError, match=rf"still going \(process {os.getpid()} on "):
        lock_folder(tmp_path)
    first.close()
    lock_folder(tmp_path).close()


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
