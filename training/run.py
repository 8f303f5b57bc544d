"""What a training run is made of, and how it is put together.

    run = build(config)          # processes, folder, data, networks, optimizers, checkpoint

Only here and in train.py are devices, processes and the run's folder known.
"""

from __future__ import annotations

import copy
import importlib.util
import json
import math
import os
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
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
from torch import Tensor, nn
from tqdm import tqdm

from model import (
    ArticleDeconvGenerator,
    ArticleDiscriminator,
    ArticleGenerator,
    DenseDiscriminator,
    DenseGenerator,
    Discriminator,
    Generator,
    KaoganModel,
    ModelError,
    count_parameters,
    default_channels,
    keep_freed_memory,
    last_level,
)
from training.augment import AdaptiveStrength
from training.averages import names_of, restore_averages, stored_averages
from training.checkpoint import (
    CheckpointError,
    find_checkpoint,
    glance,
    list_checkpoints,
    load_checkpoint,
    lock_folder,
)
from training.compiling import Compiler, make_compiler
from training.config import BUNDLED_FACES, ConfigError, TrainConfig
from training.data import Batches, DataError, Faces, pack, split
from training.forecast import forecast
from training.heldout import HeldOut, count_held
from training.hub.errors import PublishError
from training.hub.publisher import Publisher
from training.metrics import build_extractor
from training.precision import Precision, choose_precision
from training.projected import ProjectedDiscriminator
from training.schedule import MEASURED_SHARE, Schedule, make_schedule
from training.transfer import init_from, init_heads

ADAPTED_KIMG = 500.0  # in which --augment-target may bring the strength from none to full


class TrainingError(RuntimeError):
    """A run that cannot start or must not go on."""


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
    G_raw: KaoganModel  # the same networks, bare
    D_raw: KaoganModel
    averages: dict[float, KaoganModel]  # of G, by half-life in thousand images; 0: G itself
    G_opt: Any
    D_opt: Any
    precision: Precision
    schedule: Schedule
    compiler: Compiler
    P: nn.Module | None = None  # projected discriminator beside D, with --projected-weight
    P_opt: Any = None
    held_out: HeldOut | None = None  # where pictures are kept apart
    strength: AdaptiveStrength | None = None  # of the augmentation, with --augment-target
    nimg: int = 0  # images seen, over all processes
    first_nimg: int = 0  # of them, before this launch
    samples: int = 0  # faces that the metrics draw, of each average; 0: no metrics
    reals: int | None = None  # real pictures that they are compared with; None: all
    measured: float = 0.0  # minutes of this launch that went into metrics at marks
    lock: IO[str] | None = None  # on the main process: what keeps a second run out of the folder
    seconds: float = 0.0  # of training before this launch
    started: float = field(default_factory=time.monotonic)
    sums: dict[str, Tensor] = field(default_factory=dict)  # of losses since the last tick
    steps: dict[str, int] = field(default_factory=dict)
    tick_nimg: int = 0
    tick_started: float = field(default_factory=time.monotonic)
    stop_signal: str = ""
    published: float = 0.0  # half-life of the average that is the run's generator
    warned: bool = False  # that D overfits
    publisher: Publisher | None = None  # on the main process, with --push-to-hub

    @property
    def networks(self) -> dict[str, nn.Module]:
        """The networks that a checkpoint holds, by name; no average where there is none."""
        networks: dict[str, nn.Module] = {"G": self.G_raw, "D": self.D_raw}
        if self.P:
            networks["projected"] = self.P_raw
        if self.strength:
            networks["strength"] = self.strength
        if self.config.averaged:
            names = names_of(self.config.ema_kimg)
            networks |= {names[length]: G for length, G in self.averages.items()}
        return networks

    @property
    def G_ema(self) -> KaoganModel:
        """The first average, which grids show; G itself where there is none."""
        return next(iter(self.averages.values()))

    @property
    def P_raw(self) -> KaoganModel:
        """The projected discriminator beside D, bare."""
        return self.accelerator.unwrap_model(self.P)

    @property
    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """The optimizers that a checkpoint holds, by name."""
        optimizers = {"G_opt": self.G_opt.optimizer, "D_opt": self.D_opt.optimizer}
        if self.P:
            optimizers["projected_opt"] = self.P_opt.optimizer
        return optimizers


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
    for network in (G, D):
        network.to(accelerator.device).to(memory_format=torch.channels_last)
    if config.init_from and not checkpoint:
        init_from(config.init_from, G, D, accelerator.print)
        if accelerator.is_main_process:
            G.save_pretrained(folder / "start")
    averages = {length: make_average(G, config) for length in config.ema_kimg}
    G_opt, D_opt = make_adam(G, config.g_lr, config), make_adam(D, config.d_lr, config)
    ready_G, ready_D, G_opt, D_opt = accelerator.prepare(G, D, G_opt, D_opt)
    learned, held = keep_apart(config, faces, checkpoint, accelerator.print)
    batches = Batches(
        faces,
        batch_size_per_process=per_process,
        seed=config.seed,
        xflip=config.xflip,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
        device=accelerator.device,
        rows=learned if len(held) else None,
    )
    precision = choose_precision(config.mixed_precision, accelerator.device)
    run = Run(
        config, accelerator, folder, faces, batches, ready_G, ready_D, G, D, averages,
        G_opt, D_opt, precision, make_schedule(config),
        make_compiler(config.compile, accelerator.device, accelerator.print),
    )  # fmt: skip
    for network in (G, D):
        make_fast(run, network)
    run.published = config.ema_kimg[0]
    run.publisher, run.lock = publisher, lock
    if config.projected_weight:
        add_projected(run, "" if checkpoint else config.init_from)
    watch_overfitting(run, learned, held)
    log_start(run)
    if checkpoint:
        resume_from(run, checkpoint)
    if accelerator.is_main_process and (said := forecast(run)):
        accelerator.print(said)
    truncate_logs(run)
    write_facts(run)
    return run


def make_adam(network: nn.Module, lr: float, config: TrainConfig) -> torch.optim.Adam:
    """Return the optimizer of one network."""
    betas = (float(config.beta1), float(config.beta2))
    return torch.optim.Adam(network.parameters(), lr, betas, fused=True)


def make_average(G: KaoganModel, config: TrainConfig) -> KaoganModel:
    """Return the G that is shown and kept: an average of its own or, for --ema-kimg 0, G itself.

    G itself means the same tensors in modules of their own, which stay in evaluation mode while
    those of G train: with batch norms that is another function.
    """
    if config.averaged:
        return copy.deepcopy(G).requires_grad_(False).eval()
    tensors = [*G.parameters(), *G.buffers()]
    return copy.deepcopy(G, {id(tensor): tensor for tensor in tensors}).eval()


def add_projected(run: Run, source: str) -> None:
    """Give a run a projected discriminator beside D, with the heads of `source` where it has some.

    It sees what D, learning from nothing, does not yet (Kumari et al. 2022, arXiv 2112.09130).
    """
    config, device = run.config, run.accelerator.device
    size = config.projected_resolution or config.resolution
    P = ProjectedDiscriminator(size, config.img_channels)
    if source:
        init_heads(source, P, run.accelerator.print)
    P = P.to(device).to(memory_format=torch.channels_last)
    optimizer = make_adam(P, config.projected_lr, config)
    run.P, run.P_opt = run.accelerator.prepare(P, optimizer)
    make_fast(run, P)


def watch_overfitting(run: Run, learned: np.ndarray, held: np.ndarray) -> None:
    """Give a run what judges pictures kept apart, and the strength that follows D, where wanted."""
    config, device = run.config, run.accelerator.device
    if len(held):
        run.held_out = HeldOut(run.faces, learned, held, config, device)
    if config.augment_target:
        ramp = config.augment_ramp_kimg or ADAPTED_KIMG
        strength = AdaptiveStrength(config.augment_target, ramp, config.augment_strength)
        run.strength = strength.to(device)


def make_fast(run: Run, network: nn.Module) -> None:
    """Have a network compiled when it is first called, if the run compiles."""
    if isinstance(network, ProjectedDiscriminator):  # nothing is made while it is being compiled
        network.frozen(run.accelerator.device)
    run.compiler.compile(network)


def make_accelerator(config: TrainConfig) -> Accelerator:
    """Set up processes and devices.

    What `accelerate launch` says of accumulation, precision and compilation is not asked: the
    flags of this script decide, so that a run does not depend on who launched it.
    """
    for kind in ("DEEPSPEED", "FSDP", "MEGATRON_LM", "PARALLELISM_CONFIG"):
        if os.environ.get(f"ACCELERATE_USE_{kind}", "").lower() in ("1", "true"):
            raise TrainingError(
                f"the launcher asks for {kind}, but a GAN's two networks train here under plain "
                f"data parallelism; choose multi-GPU without it in accelerate config"
            )
    if config.log_with and importlib.util.find_spec(config.log_with) is None:
        raise ConfigError(
            f"--log-with {config.log_with} needs its package: pip install {config.log_with}"
        )
    accelerator = Accelerator(
        mixed_precision="no",  # training.precision says why
        gradient_accumulation_plugin=GradientAccumulationPlugin(
            num_steps=config.gradient_accumulation
        ),
        dynamo_backend="no",  # training.compiling does it, but not where D is differentiated twice
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
            f"{folder} already holds a run; give --resume latest to resume it, or another --out"
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


def keep_apart(
    config: TrainConfig, faces: Faces, checkpoint: Path | None, say: Callable[[str], None]
) -> tuple[np.ndarray, np.ndarray]:
    """Return which pictures D learns from and which it never sees.

    A resumed run keeps as many apart as it did from its start: D has seen the others.
    """
    held = wanted = count_held(len(faces), config.held_out)
    if checkpoint:
        kept = glance(checkpoint)[0].get("held_out", 0)
        held = min(kept, len(faces) // 2) if isinstance(kept, int) else 0
    if held != wanted:
        say(f"This run has kept {held} pictures apart from its start on, so --held-out is ignored.")
    return split(len(faces), held)


def resume_from(run: Run, checkpoint: Path) -> None:
    """Restore a run from its checkpoint."""
    counters, held = glance(checkpoint)
    networks = dict(run.networks)
    if "strength" not in held:
        networks.pop("strength", None)  # the run had a fixed one until now
    if run.config.averaged:
        ours = names_of(run.config.ema_kimg).values()
        networks = {name: net for name, net in networks.items() if name not in ours}
        state = restore_averages(
            run.averages,
            stored_averages(counters, held),
            lambda averages: load_checkpoint(checkpoint, networks | averages, run.optimizers),
            run.accelerator.print,
        )
    else:
        state = load_checkpoint(checkpoint, networks, run.optimizers)
    if state.get("published") in run.averages:
        run.published = state["published"]
    run.nimg = run.first_nimg = run.tick_nimg = state["nimg"]
    run.seconds = float(state["seconds"])
    try:
        run.schedule.restore(state)
        run.precision.restore(state)
    except (ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{checkpoint} holds no schedule or loss scales to resume with: {error!s:.200}"
        ) from error
    say = run.accelerator.print
    say(f"Resuming from {checkpoint} at {run.nimg / 1000:g} kimg.")
    if state.get("data", run.faces.key) != run.faces.key:
        say("The pictures changed since then, so this is not the run that it would have been.")


def truncate_logs(run: Run) -> None:
    """Drop what was logged after this point by a run that was killed."""
    if not run.accelerator.is_main_process:
        return
    for path in (run.folder / "stats.jsonl", run.folder / "metrics.jsonl"):
        if path.exists():
            lines = path.read_text().splitlines(True) if run.nimg else []
            part = path.with_suffix(".part")
            part.write_text("".join(line for line in lines if logged(line) <= run.nimg))
            part.replace(path)


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


def kaogan_networks(config: TrainConfig) -> tuple[Generator, KaoganModel]:
    """Make the style-based generator and its critic."""
    try:
        level = last_level(config.resolution, config.patch)
    except ModelError as error:
        raise ConfigError(f"--resolution and --patch: {error}") from error
    widths = default_channels(level, config.channel_base, config.channel_max)
    G = Generator(
        resolution=config.resolution,
        channels=[max(width, config.g_channel_min) for width in widths],
        z_dim=config.z_dim,
        w_dim=config.w_dim,
        mapping_layers=config.mapping_layers,
        img_channels=config.img_channels,
        patch=config.patch,
    )
    return G, make_critic(config, widths)


def make_critic(config: TrainConfig, widths: Sequence[int]) -> KaoganModel:
    """Make the critic that the configuration names."""
    if config.critic == "projected":
        return ProjectedDiscriminator(config.resolution, config.img_channels)
    return Discriminator(
        resolution=config.resolution,
        channels=widths,
        img_channels=config.img_channels,
        group_size=config.group_size,
        patch=config.patch,
    )


def fixed_networks(
    G_kind: type[KaoganModel], D_kind: type[KaoganModel], config: TrainConfig
) -> tuple[KaoganModel, KaoganModel]:
    """Make networks of the tutorial, which are of one size."""
    size, channels = G_kind.resolution, G_kind.img_channels
    if (config.resolution, config.img_channels) != (size, channels):
        raise ConfigError(
            f"--networks {config.networks} draws {size} px {'RGB' if channels == 3 else 'grey'} "
            f"only; add --resolution {size} --img-channels {channels}"
        )
    return G_kind(z_dim=config.z_dim), D_kind()


NETWORKS: dict[str, Callable[[TrainConfig], tuple[KaoganModel, KaoganModel]]] = {
    "kaogan": kaogan_networks,
    "article": partial(fixed_networks, ArticleGenerator, ArticleDiscriminator),
    "article-deconv": partial(fixed_networks, ArticleDeconvGenerator, ArticleDiscriminator),
    "dense": partial(fixed_networks, DenseGenerator, DenseDiscriminator),
}


def log_start(run: Run) -> None:
    """Say what is about to happen."""
    config, say = run.config, run.accelerator.print
    if config.data == (str(BUNDLED_FACES),):
        say("Training on the bundled faces, which are few; point --data at a folder of your own.")
    skipped = sum(run.faces.skipped.values())
    held = len(run.held_out.held.rows) if run.held_out else 0
    say(
        f"{len(run.faces):,} pictures at {config.resolution} px"
        + (f", {held} of them kept apart" if held else "")
        + (f" ({skipped:,} skipped, listed in {run.faces.path / 'skipped.csv'})" if skipped else "")
        + f"; G {count_parameters(run.G_raw):,} and D {count_parameters(run.D_raw):,} parameters; "
        f"{run.accelerator.num_processes} x {run.accelerator.device}, "
        f"precision {run.precision.name}{run.precision.hint}"
    )


def write_facts(run: Run) -> None:
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


def minutes(run: Run) -> float:
    """Return the minutes of this launch."""
    return (time.monotonic() - run.started) / 60


def training_minutes(run: Run) -> float:
    """Return the minutes after which this launch stops to train; 0: no limit.

    The rest of --max-minutes is for the metrics, at marks and at the end, where there are any.
    """
    most = run.config.max_minutes
    return min(most, most * (1 - MEASURED_SHARE) + run.measured) if run.samples else most
