"""Train a generator of faces.

    accelerate launch train.py                                        # bundled faces, see it work
    accelerate launch train.py --data FOLDER_OR_ZIP --out runs/mine   # your own
    accelerate launch train.py --preset kaogan-128 --data FOLDER_OR_ZIP --max-minutes 10  # a GPU
    accelerate launch train.py --data FOLDER_OR_ZIP --out runs/mine --resume latest
    accelerate launch train.py --data FOLDER_OR_ZIP --push-to-hub owner/name  # with HF_TOKEN set

A run's folder then holds config.json, stats.jsonl, grids/, checkpoints/ (to resume) and
generator/ + discriminator/ (config.json and model.safetensors, to use and to publish), with
--projected-weight also projected/, with several --ema-kimg also averages/; with --init-from also
start/, the generator as it began, for training.combine.
"""

from __future__ import annotations

import errno
import json
import math
import os
import re
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import broadcast_object_list, gather_object
from safetensors import SafetensorError
from torch import Tensor
from tqdm import tqdm

from model import ModelError
from training.augment import augment
from training.checkpoint import CheckpointError
from training.compiling import compile_faults, first_line
from training.config import ConfigError, TrainConfig, parse_arguments
from training.data import DataError
from training.heldout import suggest
from training.hub.card import format_kimg
from training.hub.errors import PublishError
from training.losses import OBJECTIVES, d_loss, g_loss
from training.measuring import measure, plan
from training.metrics import MetricsError
from training.run import Run, TrainingError, build, minutes, training_minutes
from training.schedule import fit, step_size
from training.snapshot import push, require_finite, sample, save, save_grid, write_card

FULL_DISK = r"(?i)no space left|quota|too large"  # in what Python and safetensors raise there
LOST_PEER = r"(?i)\bpeer\b|gloo|nccl"  # in what the two ways of exchanging gradients raise
STOPPED = "stopped by"  # how the reason begins where a signal ended the run
AGREE_STEPS = 10  # steps between two agreements of several processes on whether to stop

# Streams of random numbers; each draw is a function of (seed, stream, images seen).
D_LATENTS, G_LATENTS, REAL_AUGMENT, FAKE_AUGMENT, G_AUGMENT, PAIR_AUGMENT = range(6)
PROJECTED_REAL, PROJECTED_FAKE, PROJECTED_G, PROJECTED_PAIR = range(6, 10)
HELD_OUT_AUGMENT, HELD_OUT_LATENTS = 10, 11
PROJECTED_POLICY = "translation,cutout"  # without it the projected discriminator soon wins

FAULTS = (
    ConfigError, DataError, CheckpointError, ModelError, MetricsError, PublishError, TrainingError,
)  # fmt: skip


# ------------------------------------------------------------------------------------------
# The algorithm


def train(config: TrainConfig) -> Path:
    """Train as `config` says and return the folder of the run.

    Raises:
        TrainingError: the run cannot start, or a loss stopped being a number.
        PublishError: the repository cannot be written.
        ConfigError, DataError, CheckpointError, ModelError: input that cannot be used.
    """
    run = build(config)
    run.samples, run.reals = plan(run)
    restore = catch_signals(run)
    try:
        with tqdm(
            total=shown_total(run),
            initial=run.nimg / 1000,
            unit="kimg",
            disable=not run.accelerator.is_main_process,
            bar_format="{l_bar}{bar}| {n:.1f}/{total_fmt} kimg [{elapsed}<{remaining}{postfix}]",
        ) as bar:
            tick(run, bar) if run.nimg == 0 else None
            while not (reason := stop_reason(run)):
                step(run)
                fit_schedule(run)
                bar.total = shown_total(run)
                bar.update(min(run.nimg / 1000, bar.total or math.inf) - bar.n)  # at most whole
                if tick_due(run):
                    tick(run, bar)
                if measure_due(run):
                    measure(run)
        finish(run, reason)
    except (OSError, SafetensorError) as error:
        mend = "free space in" if re.search(FULL_DISK, str(error)) else "allow writing to"
        raise TrainingError(
            f"{error}; {mend} {run.folder}, then --resume latest resumes from the last checkpoint"
        ) from error
    finally:
        restore()
        run.accelerator.end_training()
        if run.publisher:
            run.publisher.close()
        if run.lock:
            run.lock.close()
    return run.folder


def step(run: Run) -> None:
    """Show both networks one batch: D learns, then G, then the average of G follows."""
    run.compiler.begin_step()
    d_step(run)
    g_step(run)
    run.nimg += run.config.batch_size
    update_ema(run)


def d_step(run: Run) -> None:
    """Teach D, and a projected discriminator beside it, a batch of real and generated pictures."""
    config = run.config
    due = (run.nimg // config.batch_size) % config.penalty_interval == 0
    penalised = due and bool(config.r1_gamma or config.r2_gamma)
    scale = config.penalty_interval if penalised else 0  # lazy: rarer and stronger by as much
    set_lr(run.D_opt, config.d_lr, run)
    for part in range(config.gradient_accumulation):
        with run.accelerator.accumulate(*filter(None, (run.D, run.P))):
            real = real_batch(run, part)
            with torch.no_grad(), run.precision.autocast():
                fake = run.G_raw(latents(run, D_LATENTS, part))
            fake = fake.float()
            with run.precision.autocast(), run.compiler.off(penalised):
                loss, stats = d_loss(
                    run.D,
                    augmented(run, real, REAL_AUGMENT, part),
                    augmented(run, fake, FAKE_AUGMENT, part),
                    config.objective,
                    real_label=config.real_label,
                    r1_gamma=config.r1_gamma * scale,
                    r2_gamma=config.r2_gamma * scale,
                )
            descend(run, loss, "D")
            if run.strength:
                run.strength.accumulate(stats["d_real_sign"])
            if projecting(run):
                stats |= teach_projected(run, real, fake, part)
        accumulate(run, stats)
    adapt_strength(run)


def adapt_strength(run: Run) -> None:
    """Let the augmentation's strength follow D, every few steps, where --augment-target asks."""
    steps = run.nimg // run.config.batch_size + 1
    if run.strength and steps % run.strength.INTERVAL == 0:
        images = run.strength.INTERVAL * run.config.batch_size
        run.strength.adjust(images, lambda sign: run.accelerator.reduce(sign, reduction="mean"))


def teach_projected(run: Run, real: Tensor, fake: Tensor, part: int) -> dict[str, Tensor]:
    """Teach the projected discriminator what D was taught; return its numbers for the log."""
    assert run.P is not None
    set_lr(run.P_opt, run.config.projected_lr, run)
    real = augmented(run, real, PROJECTED_REAL, part, PROJECTED_POLICY)
    fake = augmented(run, fake, PROJECTED_FAKE, part, PROJECTED_POLICY)
    with run.precision.autocast():
        loss, stats = d_loss(run.P, real, fake, run.config.objective)
    descend(run, loss, "P")
    return {f"projected_{name}": value for name, value in stats.items()}


def g_step(run: Run) -> None:
    """Teach G one batch of fresh latents."""
    config = run.config
    set_lr(run.G_opt, config.g_lr, run)
    # The bare critics: their gradients are not wanted here, so neither is their exchange.
    critics = [run.D_raw, run.P_raw] if projecting(run) else [run.D_raw]
    for critic in critics:
        critic.requires_grad_(False)
    for part in range(config.gradient_accumulation):
        with run.accelerator.accumulate(run.G):
            with run.precision.autocast():
                fake = run.G(latents(run, G_LATENTS, part))
                loss, stats = adversarial_loss(
                    run, run.D_raw, fake, part, (G_AUGMENT, PAIR_AUGMENT)
                )
                if projecting(run):
                    streams = (PROJECTED_G, PROJECTED_PAIR)
                    second, more = adversarial_loss(
                        run, run.P_raw, fake, part, streams, PROJECTED_POLICY
                    )
                    loss = loss + config.projected_weight * second
                    stats |= {f"projected_{name}": value for name, value in more.items()}
            if (length := descend(run, loss, "G", config.gradient_norm)) is not None:
                stats["g_gradient"] = length
        accumulate(run, stats)
    for critic in critics:
        critic.requires_grad_(True)


def descend(run: Run, loss: Tensor, name: str, measure: bool = False) -> Tensor | None:
    """Take the step of G, D or P down a loss, once the gradient is that of the whole batch.

    Returns the length of that gradient, a scalar, where it is to be measured.
    """
    optimizer, whole, length = getattr(run, f"{name}_opt"), run.accelerator.sync_gradients, None
    run.accelerator.backward(run.precision.scale(loss, name))
    if measure and whole:
        run.precision.unscale(optimizer, name)
        length = gradient_norm(getattr(run, f"{name}_raw"))
    run.precision.step(optimizer, name, whole)
    optimizer.zero_grad()
    return length


def adversarial_loss(
    run: Run,
    critic: torch.nn.Module,
    fake: Tensor,
    part: int,
    streams: tuple[int, int],
    policy: str | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return G's loss before one critic, and its numbers for the log."""
    fake = augmented(run, fake.float(), streams[0], part, policy)
    real = None
    if OBJECTIVES[run.config.objective].paired:
        real = augmented(run, real_batch(run, part), streams[1], part, policy)
    return g_loss(critic, fake, run.config.objective, real=real)


def gradient_norm(network: torch.nn.Module) -> Tensor:
    """Return the length of a network's whole gradient, a scalar."""
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    return torch.stack(torch._foreach_norm(gradients)).norm()


@torch.no_grad()
def update_ema(run: Run) -> None:
    """Move each average towards G, with a half-life in images that starts short.

    While it grows with the images seen, the average has the shape of a power function (Karras et
    al. 2024, arXiv 2312.02696). Longer averages grow faster in proportion, so that they differ.
    """
    config = run.config
    if not config.averaged:
        return  # it is G
    current: list[Tensor] = list(run.G_raw.parameters())
    buffers = list(run.G_raw.buffers())
    for length, average in run.averages.items():
        ramp = config.ema_rampup * length / config.ema_kimg[0]
        half_life = min(length * 1000, ramp * run.nimg)
        decay = 0.5 ** (config.batch_size / half_life) if half_life > 0 else 0.0
        torch._foreach_lerp_(list(average.parameters()), current, 1 - decay)
        for kept, new in zip(average.buffers(), buffers, strict=True):
            kept.copy_(new)


def set_lr(optimizer: Any, lr: float, run: Run) -> None:
    """Set the step size for the images seen so far."""
    lr *= step_size(run.config, run.schedule, run.nimg)
    for group in optimizer.param_groups:
        group["lr"] = lr


def projecting(run: Run) -> bool:
    """Tell whether a projected discriminator takes part in this step."""
    return run.P is not None and 0 <= run.schedule.projected_from <= run.nimg


# ------------------------------------------------------------------------------------------
# Batches: functions of the seed and the images seen, alike for any number of processes


def part_size(run: Run) -> int:
    """Return how many images this process handles in one part of a step."""
    config = run.config
    return config.batch_size // (run.accelerator.num_processes * config.gradient_accumulation)


def shard(run: Run, part: int) -> tuple[int, int]:
    """Return this process's place in the batch and the number of places, in parts."""
    world = run.accelerator.num_processes
    return part * world + run.accelerator.process_index, world * run.config.gradient_accumulation


def generator_for(run: Run, stream: int) -> torch.Generator:
    """Return the random numbers of one stream at this point of the run."""
    words = np.random.SeedSequence([run.config.seed, stream, run.nimg]).generate_state(2)
    seed = int(words[0]) << 31 ^ int(words[1])
    return torch.Generator(run.accelerator.device).manual_seed(seed)


def latents(run: Run, stream: int, part: int) -> Tensor:
    """Return this process's z `[N, z_dim]` out of the whole batch's."""
    size, (place, _) = part_size(run), shard(run, part)
    z = torch.randn(
        run.config.batch_size,
        run.config.z_dim,
        generator=generator_for(run, stream),
        device=run.accelerator.device,
    )
    return z[place * size : (place + 1) * size]


def real_batch(run: Run, part: int) -> Tensor:
    """Return this process's real pictures `[N, C, H, W]` in [-1, 1]."""
    world = run.accelerator.num_processes
    return run.batches.batch(run.nimg + part * world * part_size(run))


def augmented(
    run: Run, images: Tensor, stream: int, part: int, policy: str | None = None
) -> Tensor:
    """Augment as the configuration and its ramp say, or by another policy of the same strength."""
    own = policy is None
    policy = run.config.augment if own else policy
    if not policy:
        return images
    strength = run.strength.strength if own and run.strength else planned_strength(run)
    place, places = shard(run, part)
    rng = generator_for(run, stream)
    return augment(images, policy, strength=strength, rng=rng, rank=place, world_size=places)


def planned_strength(run: Run) -> float:
    """Return the augmentation's strength by the images seen."""
    config = run.config
    ramp = 0.0 if config.augment_target else config.augment_ramp_kimg * 1000
    return config.augment_strength * (min(1.0, run.nimg / ramp) if ramp else 1.0)


# ------------------------------------------------------------------------------------------
# Stopping


def catch_signals(run: Run) -> Any:
    """Let Ctrl-C and SIGTERM end the run in good order; return what undoes that."""

    def ask(number: int, _frame: Any) -> None:
        run.stop_signal = signal.Signals(number).name

    old = {s: signal.signal(s, ask) for s in (signal.SIGINT, signal.SIGTERM)}
    return lambda: [signal.signal(s, handler) for s, handler in old.items()]


def fit_schedule(run: Run) -> None:
    """Fix the end of a run that is to fit its time, once its speed is known; on all processes."""
    several = run.accelerator.num_processes > 1
    if run.schedule.end or (several and (run.nimg // run.config.batch_size) % AGREE_STEPS):
        return
    settle = torch.cuda.synchronize if run.accelerator.device.type == "cuda" else lambda: None
    times = (60 * minutes(run), 60 * training_minutes(run))
    said = fit(run.schedule, run.config, run.nimg, *times, settle)
    if several:  # the first one's clock decides
        marks = broadcast_object_list([run.schedule.end, run.schedule.projected_from])
        run.schedule.end, run.schedule.projected_from = marks
    if said and run.accelerator.is_main_process:
        tqdm.write(said)


def shown_total(run: Run) -> float | None:
    """Return the thousand images of the whole run for the bar, or None while they are unknown."""
    return float(f"{run.schedule.end / 1000:.3f}") or None


def stop_reason(run: Run) -> str:
    """Return why the run ends now, or an empty text; the same on every process."""
    if run.schedule.end and run.nimg >= run.schedule.end:
        fitted = "all images of its time seen (--total-kimg adds some)"
        return fitted if run.schedule.fitted else "total-kimg reached"
    several = run.accelerator.num_processes > 1
    if several and (run.nimg // run.config.batch_size) % AGREE_STEPS:
        return ""
    reason = f"{STOPPED} {run.stop_signal}" if run.stop_signal else ""
    if run.config.max_minutes and minutes(run) >= training_minutes(run):
        reason = reason or "max-minutes reached"
    if several:  # the first that any of them has
        reason = next(filter(None, gather_object([reason])), "")
    return reason


# ------------------------------------------------------------------------------------------
# Ticks: everything that looks at the run from outside


def accumulate(run: Run, stats: dict[str, Tensor]) -> None:
    """Add up losses on the device, so that no step waits for the host."""
    for name, value in stats.items():
        run.sums[name] = run.sums[name] + value if name in run.sums else value
        run.steps[name] = run.steps.get(name, 0) + 1


def tick_due(run: Run) -> bool:
    """Tell whether another tick of images has gone by."""
    size = run.config.tick_kimg * 1000
    return run.nimg // size != (run.nimg - run.config.batch_size) // size


def measure_due(run: Run) -> bool:
    """Tell whether the last batch went past a mark of --metric-at; the end measures by itself."""
    before = run.nimg - run.config.batch_size
    marks = [1000 * mark for mark in run.config.metric_marks()]
    return not run.nimg >= run.schedule.end > 0 and any(before < m <= run.nimg for m in marks)


def tick(run: Run, bar: tqdm) -> None:
    """Log, check that losses are numbers, draw the grid, save when due."""
    stats = read_stats(run)
    if run.held_out and run.nimg:
        stats |= judge_held_out(run)
    if run.strength:
        stats["augment_strength"] = run.strength.strength.item()
    require_finite(run, [k for k, v in stats.items() if not math.isfinite(v)])
    now = time.monotonic()
    speed = (run.nimg - run.tick_nimg) / max(now - run.tick_started, 1e-9)
    line = {
        "kimg": run.nimg / 1000,
        "minutes": round(run.seconds / 60 + minutes(run), 3),
        "images_per_s": round(speed, 2),
        **({"total_kimg": run.schedule.end / 1000} if run.schedule.end else {}),
        **{k: float(f"{v:.6g}") for k, v in stats.items()},
        **skipped_steps(run),
    }
    ticks = round(run.nimg / (run.config.tick_kimg * 1000))
    if ticks % run.config.grid_ticks == 0:
        fakes = sample(run, psi=1.0)
        line["diversity"] = round(fakes.std(0).mean().item(), 5)  # over faces; 0: all are one
        if run.accelerator.is_main_process:
            save_grid(fakes, run.folder / "grids" / f"kimg-{run.nimg / 1000:09.3f}.png")
    if run.accelerator.is_main_process:
        with (run.folder / "stats.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
    run.accelerator.log(line, step=run.nimg)
    shown = {k: f"{v:.3f}" for k, v in stats.items() if k in ("d_loss", "g_loss", "r1")}
    bar.set_postfix({"img/s": f"{speed:.0f}", **shown})
    if ticks and ticks % run.config.snapshot_ticks == 0:
        save(run)
        push(run)
    run.tick_nimg, run.tick_started = run.nimg, time.monotonic()


def skipped_steps(run: Run) -> dict[str, int]:
    """Return the steps that overflowing gradients left out since the last tick, for the log."""
    skipped = run.precision.skipped({"G": run.G_opt, "D": run.D_opt, "P": run.P_opt})
    names = {"G": "g_skipped", "D": "d_skipped", "P": "projected_skipped"}
    return {names[name]: count for name, count in skipped.items()}


def judge_held_out(run: Run) -> dict[str, float]:
    """Return how D judges pictures that it learned from and others; say once where it overfits."""
    assert run.held_out is not None
    config, rng = run.config, generator_for(run, HELD_OUT_LATENTS)
    z = torch.randn(run.held_out.count, config.z_dim, generator=rng, device=rng.device)

    def show(images: Tensor) -> Tensor:
        """Augment as D's pictures are, alike on every process."""
        rng = generator_for(run, HELD_OUT_AUGMENT)
        strength = run.strength.strength if run.strength else planned_strength(run)
        return augment(images, config.augment, strength=strength, rng=rng)

    with run.precision.autocast():
        judged = run.held_out.judge(run.D_raw, run.G_raw, run.nimg, z, show)
    advice = "" if run.warned else suggest(run.held_out.parted(judged), config)
    run.warned |= bool(advice)
    if advice and run.accelerator.is_main_process:
        tqdm.write(advice)
    return judged


def read_stats(run: Run) -> dict[str, float]:
    """Return the mean of each noted number since the last tick, over all processes."""
    if not run.sums:
        return {}
    names = sorted(run.sums)
    means = torch.stack([run.sums[k].float() / run.steps[k] for k in names])
    means = run.accelerator.reduce(means, reduction="mean")
    run.sums, run.steps = {}, {}
    return dict(zip(names, means.tolist(), strict=True))


def finish(run: Run, reason: str) -> None:
    """Save, draw the last grids, and say where everything lies."""
    require_finite(run, [k for k, v in read_stats(run).items() if not math.isfinite(v)])
    for psi in (1.0, 0.7):
        fakes = sample(run, psi)
        if run.accelerator.is_main_process:
            save_grid(fakes, run.folder / f"grid-psi{psi:g}.png")
    save(run)
    # Whoever stops a run is not kept waiting; where another average is published, it is written.
    if not reason.startswith(STOPPED) and measure(run):
        save(run)
    write_card(run)
    push(run, tag=f"kimg-{format_kimg(run.nimg / 1000)}")
    run.accelerator.print(
        f"{reason}: {run.nimg / 1000:g} kimg after "
        f"{run.seconds / 60 + minutes(run):.1f} minutes; {run.folder / 'generator'} draws faces "
        f"(python -m studio --model {run.folder / 'generator'}), --resume latest resumes the run."
    )


def explain(error: Exception, config: TrainConfig | None) -> str:
    """Word a fault that the command line shows as one sentence; "" for a bug, which it does not."""
    if isinstance(error, FAULTS):
        return str(error)
    if isinstance(error, OSError):
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        what = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        return f"{what}; free space in {config.out}" if full and config else what
    if "torch._dynamo" in sys.modules and isinstance(error, compile_faults()):
        return f"the networks cannot be compiled: {first_line(error)}; --compile no does without"
    rank, world = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
    if world != "1" and re.search(LOST_PEER, str(error)):
        why = str(error).splitlines()[0].rpartition("] ")[2].split(". ")[0]
        return (
            f"process {rank} of {world} lost another one, which died ({why:.200}); --resume latest "
            f"resumes from the last checkpoint"
        )
    return ""


def main() -> int:
    """Run from the command line; a fault is one sentence and status 2."""
    config = None
    try:
        config = parse_arguments()
        train(config)
    except (*FAULTS, OSError, RuntimeError) as error:
        sentence = explain(error, config)
        if not sentence:
            raise
        # In one write, or the lines of two processes may run into each other.
        sys.stderr.write(f"train.py: {sentence}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
