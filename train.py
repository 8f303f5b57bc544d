"""Train a generator of faces.

    accelerate launch train.py                                        # bundled faces, see it work
    accelerate launch train.py --data FOLDER_OR_ZIP --out runs/mine   # your own
    accelerate launch train.py --preset kaogan-128 --data FOLDER_OR_ZIP --max-minutes 25
    accelerate launch train.py --data FOLDER_OR_ZIP --out runs/mine --resume latest
    accelerate launch train.py --data FOLDER_OR_ZIP --push-to-hub owner/name  # with HF_TOKEN set

A run's folder then holds config.json, stats.jsonl, grids/, checkpoints/ (to resume) and
generator/ + discriminator/ (config.json and model.safetensors, to use and to publish).
"""

from __future__ import annotations

import copy
import errno
import json
import math
import os
import re
import shutil
import signal
import sys
import time
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import (
    DistributedDataParallelKwargs,
    GradientAccumulationPlugin,
    broadcast_object_list,
    gather_object,
)
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor, nn
from tqdm import tqdm

from model import (
    ArticleDiscriminator,
    ArticleGenerator,
    Discriminator,
    Generator,
    ModelError,
    count_parameters,
    default_channels,
    keep_freed_memory,
    latents_from_seeds,
)
from training.augment import augment
from training.checkpoint import (
    CheckpointError,
    find_checkpoint,
    list_checkpoints,
    load_checkpoint,
    lock_folder,
    save_checkpoint,
)
from training.config import BUNDLED_FACES, ConfigError, TrainConfig, parse_arguments
from training.data import Batches, DataError, Faces, pack
from training.evaluate import score
from training.losses import OBJECTIVES, d_loss, g_loss
from training.metrics import MetricsError, build_extractor
from training.publish import Publisher, PublishError, kimg_text, make_card, take_snapshot

GRID_SIDE = 8  # faces along each side of a sample grid
LOST_PEER = r"(?i)\bpeer\b|gloo|nccl"  # in what the two ways of exchanging gradients raise
AGREE_STEPS = 10  # steps between two agreements of several processes on whether to stop

# Streams of random numbers; each draw is a function of (seed, stream, images seen).
D_LATENTS, G_LATENTS, REAL_AUGMENT, FAKE_AUGMENT, G_AUGMENT, PAIR_AUGMENT = range(6)


class TrainingError(RuntimeError):
    """A run that cannot start or must not go on."""


FAULTS = (
    ConfigError, DataError, CheckpointError, ModelError, MetricsError, PublishError, TrainingError,
)  # fmt: skip


@dataclass
class Run:
    """Everything that one training run holds."""

    config: TrainConfig
    accelerator: Accelerator
    folder: Path
    faces: Faces
    batches: Batches
    G: nn.Module  # prepared: wrapped for several processes
    D: nn.Module
    G_raw: nn.Module  # the same networks, bare
    D_raw: nn.Module
    G_ema: nn.Module
    G_opt: Any
    D_opt: Any
    nimg: int = 0  # images seen, over all processes
    lock: IO[str] | None = None  # on the main process: what keeps a second run out of the folder
    seconds: float = 0.0  # of training before this launch
    started: float = field(default_factory=time.monotonic)
    sums: dict[str, Tensor] = field(default_factory=dict)  # of losses since the last tick
    steps: dict[str, int] = field(default_factory=dict)
    tick_nimg: int = 0
    tick_started: float = field(default_factory=time.monotonic)
    stop_signal: str = ""
    publisher: Publisher | None = None  # on the main process, with --push-to-hub

    @property
    def networks(self) -> dict[str, nn.Module]:
        """The networks that a checkpoint holds, by name."""
        return {"G": self.G_raw, "D": self.D_raw, "G_ema": self.G_ema}

    @property
    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """The optimizers that a checkpoint holds, by name."""
        return {"G_opt": self.G_opt.optimizer, "D_opt": self.D_opt.optimizer}


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
    restore = catch_signals(run)
    try:
        with tqdm(
            total=round(config.total_kimg, 3),
            initial=run.nimg / 1000,
            unit="kimg",
            disable=not run.accelerator.is_main_process,
            bar_format="{l_bar}{bar}| {n:.1f}/{total:g} kimg [{elapsed}<{remaining}{postfix}]",
        ) as bar:
            tick(run, bar) if run.nimg == 0 else None
            while not (reason := stop_reason(run)):
                d_step(run)
                g_step(run)
                run.nimg += config.batch_size
                update_ema(run)
                bar.update(config.batch_size / 1000)
                if tick_due(run):
                    tick(run, bar)
        finish(run, reason)
    except (OSError, SafetensorError) as error:
        raise TrainingError(
            f"{error}: free space in {run.folder}, then --resume latest goes on from the last "
            f"checkpoint"
        ) from error
    finally:
        restore()
        run.accelerator.end_training()
        if run.publisher:
            run.publisher.close()
        if run.lock:
            run.lock.close()
    return run.folder


def d_step(run: Run) -> None:
    """Teach D one batch of real and generated pictures."""
    config = run.config
    penalised = (run.nimg // config.batch_size) % config.penalty_interval == 0
    scale = config.penalty_interval if penalised else 0  # lazy: rarer and stronger by as much
    set_lr(run.D_opt, config.d_lr, run)
    for part in range(config.gradient_accumulation):
        with run.accelerator.accumulate(run.D):
            real = augmented(run, real_batch(run, part), REAL_AUGMENT, part)
            with torch.no_grad(), run.accelerator.autocast():
                fake = run.G_raw(latents(run, D_LATENTS, part))
            fake = augmented(run, fake.float(), FAKE_AUGMENT, part)
            with run.accelerator.autocast():
                loss, stats = d_loss(
                    run.D,
                    real,
                    fake,
                    config.objective,
                    real_label=config.real_label,
                    r1_gamma=config.r1_gamma * scale,
                    r2_gamma=config.r2_gamma * scale,
                )
            run.accelerator.backward(loss)
            run.D_opt.step()
            run.D_opt.zero_grad()
        note(run, stats)


def g_step(run: Run) -> None:
    """Teach G one batch of fresh latents."""
    config = run.config
    set_lr(run.G_opt, config.g_lr, run)
    # The bare D: its gradients are not wanted here, so neither is their exchange.
    run.D_raw.requires_grad_(False)
    for part in range(config.gradient_accumulation):
        with run.accelerator.accumulate(run.G):
            with run.accelerator.autocast():
                fake = run.G(latents(run, G_LATENTS, part))
                fake = augmented(run, fake.float(), G_AUGMENT, part)
                real = None
                if OBJECTIVES[config.objective].paired:
                    real = augmented(run, real_batch(run, part), PAIR_AUGMENT, part)
                loss, stats = g_loss(run.D_raw, fake, config.objective, real=real)
            run.accelerator.backward(loss)
            run.G_opt.step()
            run.G_opt.zero_grad()
        note(run, stats)
    run.D_raw.requires_grad_(True)


@torch.no_grad()
def update_ema(run: Run) -> None:
    """Move G_ema towards G, with a half-life in images that starts short."""
    config = run.config
    half_life = min(config.ema_kimg * 1000, config.ema_rampup * run.nimg)
    decay = 0.5 ** (config.batch_size / half_life) if half_life > 0 else 0.0
    averaged, current = list(run.G_ema.parameters()), list(run.G_raw.parameters())
    torch._foreach_lerp_(averaged, current, 1 - decay)
    for kept, new in zip(run.G_ema.buffers(), run.G_raw.buffers(), strict=True):
        kept.copy_(new)


def set_lr(optimizer: Any, lr: float, run: Run) -> None:
    """Set the step size for the images seen so far."""
    config = run.config
    if config.anneal_kimg:
        done = min(1.0, run.nimg / (config.anneal_kimg * 1000))
        cosine = (1 + math.cos(math.pi * done)) / 2
        lr *= config.anneal_to + (1 - config.anneal_to) * cosine
    for group in optimizer.param_groups:
        group["lr"] = lr


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


def augmented(run: Run, images: Tensor, stream: int, part: int) -> Tensor:
    """Augment as the configuration and its ramp say."""
    config = run.config
    if not config.augment:
        return images
    ramp = config.augment_ramp_kimg * 1000
    strength = config.augment_strength * (min(1.0, run.nimg / ramp) if ramp else 1.0)
    place, places = shard(run, part)
    rng = generator_for(run, stream)
    return augment(
        images, config.augment, strength=strength, rng=rng, rank=place, world_size=places
    )


# ------------------------------------------------------------------------------------------
# Building


def build(config: TrainConfig) -> Run:
    """Make networks, optimizers and data, and restore a checkpoint if asked."""
    keep_freed_memory()
    accelerator = make_accelerator(config)
    per_process = split_batch(config, accelerator.num_processes)
    folder = Path(config.out)
    lock, checkpoint = prepare_folder(config, folder, accelerator)
    publisher = open_publisher(config, accelerator)
    if config.metric_samples:
        build_extractor(config.metric_features)  # fail now rather than after hours
    faces = pack_faces(config, accelerator)
    torch.manual_seed(config.seed)
    G, D = NETWORKS[config.networks](config)
    G, D = (n.to(accelerator.device, memory_format=torch.channels_last) for n in (G, D))
    G_ema = copy.deepcopy(G).requires_grad_(False).eval()
    betas = (float(config.beta1), float(config.beta2))
    G_opt = torch.optim.Adam(G.parameters(), config.g_lr, betas)
    D_opt = torch.optim.Adam(D.parameters(), config.d_lr, betas)
    prepared = accelerator.prepare(G, D, G_opt, D_opt)
    batches = Batches(
        faces,
        batch_size_per_process=per_process,
        seed=config.seed,
        xflip=config.xflip,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
        device=accelerator.device,
    )
    run = Run(
        config, accelerator, folder, faces, batches, *prepared[:2], G, D, G_ema, *prepared[2:]
    )
    run.publisher, run.lock = publisher, lock
    greet(run)
    if checkpoint:
        go_on_from(run, checkpoint)
    forget_later(run)
    note_facts(run)
    return run


def make_accelerator(config: TrainConfig) -> Accelerator:
    """Set up processes, devices and precision; a CPU always computes in fp32.

    What `accelerate launch` says of accumulation, precision and compilation is not asked: the
    flags of this script decide, so that a run does not depend on who launched it.
    """
    for kind in ("DEEPSPEED", "FSDP", "MEGATRON_LM", "PARALLELISM_CONFIG"):
        if os.environ.get(f"ACCELERATE_USE_{kind}", "").lower() in ("1", "true"):
            raise TrainingError(
                f"the launcher asks for {kind}, but a GAN's two networks train here under plain "
                f"data parallelism; choose multi-GPU without it in accelerate config"
            )
    # Emulated bf16 (before compute capability 8.0) would be slower than fp32.
    has_bf16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    wanted = has_bf16 if config.mixed_precision == "auto" else config.mixed_precision == "bf16"
    accelerator = Accelerator(
        mixed_precision="bf16" if wanted and torch.cuda.is_available() else "no",
        gradient_accumulation_plugin=GradientAccumulationPlugin(
            num_steps=config.gradient_accumulation
        ),
        dynamo_backend="no",  # penalties differentiate D twice, which compiled code refuses
        log_with=config.log_with or None,
        project_dir=config.out,
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
    )
    # The first names an argument that older versions need; the second is about speed, of layers
    # that take none of it.
    for text in (".*broadcast_buffers.*deprecated", "Grad strides do not match bucket view"):
        warnings.filterwarnings("ignore", message=text)
    if accelerator.device.type == "cuda":
        torch.backends.cudnn.benchmark = True
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    if config.log_with:
        accelerator.init_trackers("kaogan", config={k: str(v) for k, v in config.public().items()})
    return accelerator


def split_batch(config: TrainConfig, processes: int) -> int:
    """Return the images of one part of one process's batch."""
    parts = processes * config.gradient_accumulation
    group = config.group_size if config.networks == "kaogan" else 1
    size, rest = divmod(config.batch_size, parts)
    if rest or size == 0 or size % group:
        raise ConfigError(
            f"--batch-size {config.batch_size} must be a multiple of {parts * group}: "
            f"{processes} processes, {config.gradient_accumulation} parts, groups of {group}"
        )
    return size


def prepare_folder(
    config: TrainConfig, folder: Path, accelerator: Accelerator
) -> tuple[IO[str] | None, Path | None]:
    """Claim the run's folder, refusing to mix two runs; return its lock and the checkpoint."""
    lock = None
    if accelerator.is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
        lock = lock_folder(folder)
    accelerator.wait_for_everyone()
    checkpoint = find_checkpoint(config.resume, folder / "checkpoints") if config.resume else None
    if not config.resume and list_checkpoints(folder / "checkpoints"):
        raise TrainingError(
            f"{folder} already holds a run; give --resume latest to go on, or another --out"
        )
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        (folder / "grids").mkdir(exist_ok=True)
        config.save(folder / "config.json")
    return lock, checkpoint


def pack_faces(config: TrainConfig, accelerator: Accelerator) -> Faces:
    """Pack the data once on each machine, and see that all processes have the same pictures."""
    with accelerator.local_main_process_first():
        faces = pack(
            config.data,
            config.resolution,
            channels=config.img_channels,
            workers=config.workers or None,
            progress=accelerator.is_local_main_process,
        )
    counts = gather_object([len(faces)])
    if len(set(counts)) > 1:
        raise DataError(f"the processes see {counts} pictures: give each machine the same data")
    return faces


def go_on_from(run: Run, checkpoint: Path) -> None:
    """Restore a run from its checkpoint."""
    state = load_checkpoint(checkpoint, run.networks, run.optimizers)
    run.nimg = run.tick_nimg = state["nimg"]
    run.seconds = float(state["seconds"])
    say = run.accelerator.print
    say(f"Going on from {checkpoint} at {run.nimg / 1000:g} kimg.")
    if state.get("data", run.faces.key) != run.faces.key:
        say("The pictures changed since then, so this is not the run that it would have been.")


def forget_later(run: Run) -> None:
    """Drop what was logged after this point by a run that was killed."""
    stats = run.folder / "stats.jsonl"
    if run.accelerator.is_main_process and stats.exists():
        lines = stats.read_text().splitlines(True) if run.nimg else []
        part = stats.with_suffix(".part")
        part.write_text("".join(line for line in lines if logged(line) <= run.nimg))
        part.replace(stats)


def logged(line: str) -> float:
    """Return the images seen when a line was logged; infinity for one that was cut short."""
    try:
        return round(json.loads(line)["kimg"] * 1000)
    except (ValueError, KeyError, TypeError):
        return math.inf


def open_publisher(config: TrainConfig, accelerator: Accelerator) -> Publisher | None:
    """Make or find the repository to push to; where that fails, on every process alike."""
    publisher, fault = None, [""]
    if config.push_to_hub and accelerator.is_main_process:
        try:
            publisher = Publisher(
                config.push_to_hub, token=config.hub_token, private=config.private, say=tqdm.write
            )
        except PublishError as error:
            fault = [str(error)]
    if config.push_to_hub and accelerator.num_processes > 1:
        broadcast_object_list(fault)
    if fault[0]:
        raise PublishError(fault[0])
    return publisher


def kaogan_networks(config: TrainConfig) -> tuple[Generator, Discriminator]:
    """Make the style-based generator and the residual critic."""
    widths = default_channels(config.resolution, config.channel_base, config.channel_max)
    G = Generator(
        resolution=config.resolution,
        channels=widths,
        z_dim=config.z_dim,
        w_dim=config.w_dim,
        mapping_layers=config.mapping_layers,
        img_channels=config.img_channels,
    )
    D = Discriminator(
        resolution=config.resolution,
        channels=widths,
        img_channels=config.img_channels,
        group_size=config.group_size,
    )
    return G, D


def article_networks(config: TrainConfig) -> tuple[ArticleGenerator, ArticleDiscriminator]:
    """Make the tutorial's networks, which are of one size."""
    if (config.resolution, config.img_channels) != (96, 3):
        raise ConfigError("--networks article draws 96 px RGB only; add --resolution 96")
    return ArticleGenerator(z_dim=config.z_dim), ArticleDiscriminator()


NETWORKS = {"kaogan": kaogan_networks, "article": article_networks}


def greet(run: Run) -> None:
    """Say what is about to happen."""
    config, say = run.config, run.accelerator.print
    if config.data == (str(BUNDLED_FACES),):
        say("Training on the bundled faces, which are few; point --data at a folder of your own.")
    skipped = sum(run.faces.skipped.values())
    say(
        f"{len(run.faces):,} pictures at {config.resolution} px"
        + (f" ({skipped:,} skipped, listed in {run.faces.path / 'skipped.csv'})" if skipped else "")
        + f"; G {count_parameters(run.G_raw):,} and D {count_parameters(run.D_raw):,} parameters; "
        f"{run.accelerator.num_processes} x {run.accelerator.device}, "
        f"precision {run.accelerator.mixed_precision}"
    )


def note_facts(run: Run) -> None:
    """Write down what the model card tells of this run and its settings do not."""
    if run.accelerator.is_main_process:
        device = run.accelerator.device
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        facts = {
            "hardware": f"{run.accelerator.num_processes} × {name}",
            "pictures": f"{len(run.faces):,}",
            "parameters": f"G {count_parameters(run.G_raw):,}, D {count_parameters(run.D_raw):,}",
            "torch": torch.__version__,
        }
        text = json.dumps(facts, indent=2, ensure_ascii=False) + "\n"
        (run.folder / "facts.json").write_text(text, encoding="utf-8")


# ------------------------------------------------------------------------------------------
# Stopping


def catch_signals(run: Run) -> Any:
    """Let Ctrl-C and SIGTERM end the run in good order; return what undoes that."""

    def ask(number: int, _frame: Any) -> None:
        run.stop_signal = signal.Signals(number).name

    old = {s: signal.signal(s, ask) for s in (signal.SIGINT, signal.SIGTERM)}
    return lambda: [signal.signal(s, handler) for s, handler in old.items()]


def stop_reason(run: Run) -> str:
    """Return why the run ends now, or an empty text; the same on every process."""
    if run.nimg >= run.config.total_kimg * 1000:
        return "total-kimg reached"
    several = run.accelerator.num_processes > 1
    if several and (run.nimg // run.config.batch_size) % AGREE_STEPS:
        return ""
    reason = f"stopped by {run.stop_signal}" if run.stop_signal else ""
    if run.config.max_minutes and minutes(run) >= run.config.max_minutes:
        reason = reason or "max-minutes reached"
    if several:  # the first that any of them has
        reason = next(filter(None, gather_object([reason])), "")
    return reason


def minutes(run: Run) -> float:
    """Return the minutes of this launch."""
    return (time.monotonic() - run.started) / 60


# ------------------------------------------------------------------------------------------
# Ticks: everything that looks at the run from outside


def note(run: Run, stats: dict[str, Tensor]) -> None:
    """Add up losses on the device, so that no step waits for the host."""
    for name, value in stats.items():
        run.sums[name] = run.sums[name] + value if name in run.sums else value
        run.steps[name] = run.steps.get(name, 0) + 1


def tick_due(run: Run) -> bool:
    """Tell whether another tick of images has gone by."""
    size = run.config.tick_kimg * 1000
    return run.nimg // size != (run.nimg - run.config.batch_size) // size


def tick(run: Run, bar: tqdm) -> None:
    """Log, check that losses are numbers, draw the grid, save when due."""
    stats = read_stats(run)
    require_finite(run, [k for k, v in stats.items() if not math.isfinite(v)])
    now = time.monotonic()
    speed = (run.nimg - run.tick_nimg) / max(now - run.tick_started, 1e-9)
    fakes = sample(run, psi=1.0)
    line = {
        "kimg": run.nimg / 1000,
        "minutes": round(run.seconds / 60 + minutes(run), 3),
        "images_per_s": round(speed, 2),
        "diversity": round(fakes.std(0).mean().item(), 5),  # over faces; 0: all are one
        **{k: round(v, 6) for k, v in stats.items()},
    }
    if run.accelerator.is_main_process:
        with (run.folder / "stats.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        save_grid(fakes, run.folder / "grids" / f"kimg-{run.nimg / 1000:09.3f}.png")
    run.accelerator.log(line, step=run.nimg)
    shown = {k: f"{v:.3f}" for k, v in stats.items() if k in ("d_loss", "g_loss", "r1")}
    bar.set_postfix({"img/s": f"{speed:.0f}", **shown})
    ticks = round(run.nimg / (run.config.tick_kimg * 1000))
    if ticks and ticks % run.config.snapshot_ticks == 0:
        save(run)
        push(run)
    run.tick_nimg, run.tick_started = run.nimg, time.monotonic()


def require_finite(run: Run, bad: list[str]) -> None:
    """Stop the run where something of it is no number any more."""
    if bad:
        raise TrainingError(
            f"{', '.join(bad)} stopped being a finite number before {run.nimg / 1000:g} kimg; the "
            f"last checkpoint is intact: resume from it with a lower --g-lr and --d-lr or a higher "
            f"--r1-gamma"
        )


def read_stats(run: Run) -> dict[str, float]:
    """Return the mean of each noted number since the last tick, over all processes."""
    if not run.sums:
        return {}
    names = sorted(run.sums)
    means = torch.stack([run.sums[k].float() / run.steps[k] for k in names])
    means = run.accelerator.reduce(means, reduction="mean")
    run.sums, run.steps = {}, {}
    return dict(zip(names, means.tolist(), strict=True))


@torch.no_grad()
def sample(run: Run, psi: float) -> Tensor:
    """Draw the grid's fixed seeds with G_ema, `[64, C, H, W]` on the CPU."""
    if hasattr(run.G_ema, "update_w_avg"):
        run.G_ema.update_w_avg()
    z = latents_from_seeds(range(GRID_SIDE**2), run.config.z_dim).to(run.accelerator.device)
    return torch.cat([run.G_ema(part, psi).float().cpu() for part in z.split(16)])


def save_grid(images: Tensor, path: Path) -> None:
    """Write pictures `[n², C, H, W]` in [-1, 1] as one sheet."""
    count, channels, height, width = images.shape
    side = math.isqrt(count)
    sheet = ((images.clamp(-1, 1) + 1) * 127.5).round().byte()
    sheet = sheet.reshape(side, side, channels, height, width).permute(0, 3, 1, 4, 2)
    pixels = sheet.reshape(side * height, side * width, channels).squeeze(2).numpy()
    Image.fromarray(pixels).save(path)


def save(run: Run) -> None:
    """Write the checkpoint to resume from and the networks to use."""
    run.accelerator.wait_for_everyone()
    sound = {k: all(t.isfinite().all() for t in n.parameters()) for k, n in run.networks.items()}
    require_finite(run, [f"a weight of {name}" for name, good in sound.items() if not good])
    if run.accelerator.is_main_process:
        seconds = run.seconds + minutes(run) * 60
        state = {"nimg": run.nimg, "seconds": seconds, "data": run.faces.key}
        folder = run.folder / "checkpoints"
        save_checkpoint(folder, run.networks, run.optimizers, state, keep=run.config.keep)
        save_network(run.G_ema, run.folder / "generator")
        save_network(run.D_raw, run.folder / "discriminator")


def save_network(network: nn.Module, folder: Path) -> None:
    """Write a network beside its place and move its files in, so that none is ever half there."""
    part = folder.with_suffix(".part")
    shutil.rmtree(part, ignore_errors=True)  # left by a process that was killed
    network.save_pretrained(part)
    folder.mkdir(exist_ok=True)
    for file in sorted(part.iterdir()):
        if file.name != "README.md" or not (folder / file.name).exists():
            file.replace(folder / file.name)
    shutil.rmtree(part)


def push(run: Run, tag: str = "") -> None:
    """Have what `save` wrote pushed in the background."""
    if run.publisher:
        repo, kimg = run.publisher.repo, run.nimg / 1000
        run.publisher.submit(take_snapshot(run.folder, run.config, kimg=kimg, repo=repo, tag=tag))


def finish(run: Run, reason: str) -> None:
    """Save, draw the last grids, and say where everything lies."""
    require_finite(run, [k for k, v in read_stats(run).items() if not math.isfinite(v)])
    for psi in (1.0, 0.7):
        fakes = sample(run, psi)
        if run.accelerator.is_main_process:
            save_grid(fakes, run.folder / f"grid-psi{psi:g}.png")
    save(run)
    measure(run)
    write_card(run)
    push(run, tag=f"kimg-{kimg_text(run.nimg / 1000)}")
    run.accelerator.print(
        f"{reason}: {run.nimg / 1000:g} kimg after "
        f"{run.seconds / 60 + minutes(run):.1f} minutes; {run.folder / 'generator'} draws faces "
        f"(python -m studio --model {run.folder / 'generator'}), --resume latest goes on."
    )


def measure(run: Run) -> None:
    """Print and keep the metrics of G_ema at psi 1."""
    config = run.config
    if config.metric_samples and run.accelerator.is_main_process:
        scores = score(
            run.G_ema,
            run.faces,
            samples=config.metric_samples,
            features=config.metric_features,
            device=run.accelerator.device,
        )
        figures = {"kimg": run.nimg / 1000, "psi": 1.0, **scores.to_dict()}
        (run.folder / "metrics.json").write_text(json.dumps(figures, indent=2) + "\n")
        print(scores.line())
    run.accelerator.wait_for_everyone()


def write_card(run: Run) -> None:
    """Write the model card beside the generator."""
    if run.accelerator.is_main_process:
        kimg = run.nimg / 1000
        card = make_card(run.folder, run.config, kimg=kimg, picture="../grid-psi0.7.png")
        (run.folder / "generator" / "README.md").write_text(card, encoding="utf-8")


def explain(error: Exception, config: TrainConfig | None) -> str:
    """Word a fault that the command line shows as one sentence; "" for a bug, which it does not."""
    if isinstance(error, FAULTS):
        return str(error)
    if isinstance(error, OSError):
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        return f"{error}: free space in {config.out}" if full and config else str(error)
    rank, world = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
    if world != "1" and re.search(LOST_PEER, str(error)):
        why = str(error).splitlines()[0].rpartition("] ")[2].split(". ")[0]
        return (
            f"process {rank} of {world} lost another one, which died ({why:.200}); --resume latest "
            f"goes on from the last checkpoint"
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
        print(f"train.py: {sentence}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
