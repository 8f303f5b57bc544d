"""Every hyperparameter once, with its unit; presets; and the command line made from them.

    config = parse_arguments(["--preset", "kaogan-64", "--batch-size", "64"])

A value comes from the dataclass, then the preset, then `--config FILE`, then the flag.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import math
import re
import reprlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from model import PATCHES
from training.augment import parse_policy
from training.losses import OBJECTIVES
from training.metrics import FEATURES
from training.projected import MIN_PX

MAX_AVERAGES = 8  # of G, each a copy of it
MAX_FILE_BYTES = 64 * 1024  # of a file of settings
SECRETS = ("hub_token",)  # never written to a file nor shown
# What settings were called once; runs of then are still published and resumed.
RENAMED = {
    "aid_weight": "projected_weight",
    "aid_lr": "projected_lr",
    "aid_resolution": "projected_resolution",
}
BUNDLED_FACES = Path(__file__).resolve().parent.parent / "assets" / "faces.zip"


class ConfigError(ValueError):
    """A setting that cannot be used."""


def setting(default: Any, about: str, choices: tuple = (), bare: Any = None) -> Any:
    """Declare one hyperparameter: its default, what it means in which unit, its choices.

    `bare` is what its flag means without a value.
    """
    return field(default=default, metadata={"help": about, "choices": choices, "bare": bare})


@dataclass(frozen=True, repr=False)
class TrainConfig:
    """What a training run depends on. Counts of images are over all processes."""

    # Data
    data: tuple[str, ...] = setting(
        (str(BUNDLED_FACES),), "folders, .zip files, globs or hf://owner/name with pictures"
    )
    resolution: int = setting(64, "height and width in px: 3, 4 or 6 times a power of two")
    img_channels: int = setting(3, "3 for RGB, 1 for grey", (1, 3))
    xflip: bool = setting(True, "mirror half of the pictures")
    held_out: float = setting(
        0.02, "share of the pictures that D never sees, at most 500, to tell when it overfits; "
        "none of a set under 2,000",
    )  # fmt: skip
    workers: int = setting(0, "processes that pack the data; 0: one for each core")

    # Networks
    networks: str = setting(
        "kaogan", "family of G and D", ("kaogan", "article", "article-deconv", "dense")
    )
    critic: str = setting(
        "residual",
        "D of kaogan: residual, or projected (heads on frozen features; try hinge, --r1-gamma 0)",
        ("residual", "projected"),
    )
    projected_weight: float = setting(
        0.0, "weight in G's loss of a projected discriminator beside a residual D; 0: none"
    )
    projected_resolution: int = setting(
        0, "px at which that discriminator looks, the pictures reduced; 0: as they are"
    )
    projected_from: float = setting(
        0.0, "share of the run from which that discriminator takes part"
    )
    channel_base: int = setting(1536, "channels of a level of r px: channel-base / r …")
    channel_max: int = setting(192, "… but at most this many")
    g_channel_min: int = setting(16, "… and in G at least this many; D has 16 or more")
    z_dim: int = setting(128, "length of z")
    w_dim: int = setting(128, "length of w")
    mapping_layers: int = setting(2, "depth of the mapping network")
    group_size: int = setting(4, "pictures whose statistics D sees together")
    patch: int = setting(1, "px of a side that one place of G's last level paints", PATCHES)
    init_from: str = setting(
        "",
        "folder or Hub repository; its generator/, discriminator/, projected/ give first weights",
    )

    # Objective
    objective: str = setting("bce", "loss of G and D", tuple(OBJECTIVES))
    real_label: float = setting(1.0, "target of real pictures under bce; 0.9: one-sided smoothing")
    r1_gamma: float = setting(1.0, "weight of the gradient penalty at real pictures; 0: none")
    r2_gamma: float = setting(0.0, "weight of the gradient penalty at fake pictures; 0: none")
    penalty_interval: int = setting(16, "steps from one penalty to the next; 1: every step")
    augment: str = setting("", "comma list of translation, cutout, colour; empty: none")
    augment_strength: float = setting(1.0, "strength of the augmentation, 0 to 1")
    augment_ramp_kimg: float = setting(0.0, "thousand images until full augmentation; 0: at once")
    augment_target: float = setting(
        0.0,
        "let the strength follow the mean sign of D's logits on real pictures up to this, such as "
        "0.6; full within --augment-ramp-kimg (0: 500) at the soonest; 0: fixed strength",
    )

    # Optimisation
    batch_size: int = setting(32, "images a step, over all processes and accumulation")
    gradient_accumulation: int = setting(1, "parts into which a process splits its batch")
    g_lr: float = setting(2e-3, "Adam's step size for G")
    d_lr: float = setting(2e-3, "Adam's step size for D")
    projected_lr: float = setting(1e-4, "Adam's step size for the projected discriminator")
    beta1: float = setting(0.0, "Adam's decay of the mean")
    beta2: float = setting(0.99, "Adam's decay of the square")
    warmup_kimg: float = setting(0.0, "thousand images over which step sizes rise; 0: at once")
    anneal_kimg: float = setting(0.0, "thousand images over which step sizes fall; 0: constant")
    anneal_from: float = setting(
        0.0, "share of the run from which step sizes fall; 1: never; 0: never, but from 0.5 on "
        "where --max-minutes decides the run's length",
    )  # fmt: skip
    anneal_to: float = setting(0.03, "step sizes at the end of the fall, as a share")
    ema_kimg: tuple[float, ...] = setting(
        (10.0,), "half-lives of averages of G, thousand images; the first is in the grids; 0: none"
    )
    ema_rampup: float = setting(
        0.05, "the first half-life is at most this share of the images seen, others in proportion"
    )
    mixed_precision: str = setting(
        "auto",
        "auto: bf16 on GPUs that have it, else no; fp16: with scaled losses, for GPUs without "
        "bf16; a CPU always computes in fp32",
        ("auto", "no", "bf16", "fp16"),
    )
    compile: str = setting(
        "auto",
        "torch.compile for the networks: auto: on a GPU; reduce-overhead: with CUDA graphs, "
        "not run on a GPU yet",
        ("auto", "no", "yes", "reduce-overhead"),
        bare="yes",
    )

    # The run
    out: str = setting("runs/kaogan", "folder of the run")
    resume: str = setting("", "latest, or the path of a checkpoint to resume from")
    total_kimg: float = setting(
        0.0, "thousand images after which the run ends; 0: what --max-minutes has time for, "
        "without it 1000",
    )  # fmt: skip
    max_minutes: float = setting(
        0.0, "minutes for this launch, a tenth of them for the metrics; 0: no limit"
    )
    tick_kimg: float = setting(4.0, "thousand images from one line and grid to the next")
    grid_ticks: int = setting(1, "ticks from one sample grid to the next")
    snapshot_ticks: int = setting(4, "ticks from one checkpoint to the next")
    keep: int = setting(2, "newest checkpoints to keep")
    metric_samples: int = setting(5000, "faces to draw for the metrics at the end; 0: no metrics")
    metric_at: str = setting("", "comma list of thousand images at which to measure as well")
    metric_features: str = setting(
        "efficientnet-lite0", "features that the metrics compare", tuple(FEATURES)
    )
    gradient_norm: bool = setting(False, "log the length of G's gradient at every step")
    log_with: str = setting(
        "", "also log to this, where installed", ("", "tensorboard", "trackio", "wandb")
    )
    seed: int = setting(0, "of weights, data order, latents and augmentation")

    # Publishing
    push_to_hub: str = setting("", "owner/name of a Hub repository that gets every snapshot")
    private: bool = setting(False, "make that repository private")
    hub_token: str = setting("", "with write access; other users see flags, so rather set HF_TOKEN")
    data_name: str = setting("", "what the model card calls the pictures; owner/name is linked")
    license: str = setting("mit", "of the weights, for the model card, such as mit or cc-by-4.0")

    def __post_init__(self) -> None:
        """Refuse what cannot run, each fault with one sentence."""
        for spec in dataclasses.fields(self):
            _check(spec.name, getattr(self, spec.name), spec.metadata["choices"])
        self._check_ranges()
        try:
            parse_policy(self.augment)
        except ValueError as error:
            raise ConfigError(f"--augment: {error}") from error
        if self.augment_target and (not self.augment or OBJECTIVES[self.objective].paired):
            raise ConfigError(
                "--augment-target needs --augment, and an objective that judges each picture alone"
            )
        self.metric_marks()
        self._check_averages()
        self._check_projected()
        self._check_schedule()
        if not self.data:
            raise ConfigError("--data names no source; give a folder, a .zip or hf://owner/name")
        if not re.fullmatch(r"[a-z0-9.-]{1,40}", self.license):
            raise ConfigError("--license takes an identifier of the Hub, such as mit or cc-by-4.0")
        if len(self.data_name) > 100 or not self.data_name.isprintable():
            raise ConfigError("--data-name takes one line of at most 100 characters")

    @property
    def averaged(self) -> bool:
        """Whether there is an average of G."""
        return any(self.ema_kimg)

    def _check_averages(self) -> None:
        """Refuse half-lives that make no set of averages."""
        lengths = self.ema_kimg
        if not 1 <= len(set(lengths)) == len(lengths) <= MAX_AVERAGES:
            raise ConfigError(f"--ema-kimg takes 1 to {MAX_AVERAGES} lengths, each once")
        if len(lengths) > 1 and not all(lengths):
            raise ConfigError("--ema-kimg 0 means no average, so it takes no other length")

    def _check_projected(self) -> None:
        """Refuse a projected discriminator that cannot be."""
        if self.projected_weight and (self.networks, self.critic) != ("kaogan", "residual"):
            raise ConfigError("--projected-weight needs --networks kaogan and --critic residual")
        if self.projected_resolution and not MIN_PX <= self.projected_resolution <= self.resolution:
            raise ConfigError(
                f"--projected-resolution must be 0, or {MIN_PX} to --resolution "
                f"({self.resolution}), not {self.projected_resolution}"
            )

    def _check_schedule(self) -> None:
        """Refuse two ways of annealing, and marks that a run cannot set by the time that it has."""
        if self.anneal_kimg and self.anneal_from:
            raise ConfigError("--anneal-kimg and --anneal-from are two ways to say one thing")
        late = self.projected_from > 0.3 or 0 < self.anneal_from < self.projected_from + 0.2
        if self.max_minutes and not self.total_kimg and late:
            raise ConfigError(
                "--max-minutes without --total-kimg measures the speed with all that takes part, "
                "before step sizes fall: --projected-from must be at most 0.3, and --anneal-from "
                "at least 0.2 more"
            )

    def _check_ranges(self) -> None:
        """Refuse numbers outside their range."""
        above_0 = ("tick_kimg", "g_lr", "d_lr", "projected_lr")
        at_least_1 = (
            "batch_size", "gradient_accumulation", "penalty_interval", "snapshot_ticks", "keep",
            "grid_ticks",
            "z_dim", "w_dim", "mapping_layers", "group_size", "g_channel_min",
        )  # fmt: skip
        shares = (
            "beta1", "beta2", "augment_strength", "augment_target", "anneal_from", "projected_from",
        )  # fmt: skip
        for names, wanted, fits in (
            (above_0, "be above 0", lambda v: v > 0),
            (at_least_1, "be at least 1", lambda v: v >= 1),
            (shares, "lie in 0 to 1", lambda v: 0 <= v <= 1),
            (("held_out",), "lie in 0 to 0.5", lambda v: 0 <= v <= 0.5),
        ):
            for name in names:
                if not fits(getattr(self, name)):
                    raise ConfigError(f"{flag(name)} must {wanted}, not {getattr(self, name)}")

    def metric_marks(self) -> list[float]:
        """Return the thousand images at which to measure, besides the end.

        Raises:
            ConfigError: no comma list of numbers above 0.
        """
        try:
            marks = [float(part) for part in self.metric_at.split(",") if part.strip()]
        except ValueError:
            marks = [math.nan]
        if not all(0 < mark < math.inf for mark in marks):
            raise ConfigError(
                f"--metric-at takes numbers like 31,62,155, not {self.metric_at!r:.60}"
            )
        return marks

    def save(self, path: Path) -> None:
        """Write every setting but secrets as JSON, which `--config` reads back."""
        path.write_text(json.dumps(self.public(), indent=2) + "\n", encoding="utf-8")

    def public(self) -> dict[str, Any]:
        """Return every setting that may be written down, by name."""
        return {k: v for k, v in dataclasses.asdict(self).items() if k not in SECRETS}

    def __repr__(self) -> str:
        return f"TrainConfig({self.public()})"


# The tutorial that this project starts from: its networks, its Adam, one step of D and one of G on
# fresh latents; no average of G, no penalty, no augmentation, not even mirrored pictures.
ARTICLE: dict[str, Any] = {
    "networks": "article", "resolution": 96, "z_dim": 100, "xflip": False,
    "objective": "bce", "r1_gamma": 0.0, "ema_kimg": 0.0, "batch_size": 32,
    "g_lr": 2e-4, "d_lr": 2e-4, "beta1": 0.9, "beta2": 0.999,
    "total_kimg": 310.0, "tick_kimg": 3.1, "grid_ticks": 10, "snapshot_ticks": 10,  # ten epochs
    "gradient_norm": True,
}  # fmt: skip

PRESETS: dict[str, dict[str, Any]] = {
    # One CPU core, about 30 images/s at 64 px on a 2025 server core.
    "kaogan-64": {},
    # Faces within ten minutes of one CPU core, of few poses: many small steps. What it comes to in
    # hours was not measured.
    "quick-64": {
        "patch": 2, "batch_size": 8, "g_lr": 4e-3, "d_lr": 4e-3, "r1_gamma": 0.1, "tick_kimg": 1.0,
    },
    # Ten minutes of a GPU (--max-minutes 10). By hand-written code of the same settings, an NVIDIA
    # H200 with torch 2.11 trained 416 kimg of 29,000 portraits in 558 s, with G and D compiled and
    # the projected discriminator not: Fréchet distance 83.8 by EfficientNet-lite0, 0.797 by HOG.
    # That is the first part of the bundled weights; docs/recipes.md has the second. This preset
    # itself has not been run on a GPU.
    "kaogan-128": {
        "resolution": 128, "channel_base": 6144, "channel_max": 384, "z_dim": 128, "w_dim": 256,
        "projected_weight": 0.5, "projected_from": 0.2, "batch_size": 64, "ema_kimg": 15.0,
        "warmup_kimg": 12.8, "anneal_from": 0.5, "tick_kimg": 25.0, "metric_samples": 10000,
    },
    # Two minutes of one CPU core, to see the whole road: from noise to small faces with eyes.
    "tiny": {
        "resolution": 32, "channel_base": 512, "channel_max": 64, "z_dim": 64, "w_dim": 64,
        "batch_size": 8, "g_lr": 4e-3, "d_lr": 4e-3, "r1_gamma": 0.1,
        "total_kimg": 8.0, "tick_kimg": 1.0, "metric_samples": 500,
    },
    # The objective of Goodfellow's paper, as the paper has it and as the tutorial spells it; then
    # cross-entropy, and cross-entropy with transposed convolutions.
    "article-minimax": ARTICLE | {"objective": "minimax"},
    "article-logsum": ARTICLE | {"objective": "minimax-logsum"},
    "article-bce": ARTICLE,
    "article-deconv": ARTICLE | {"networks": "article-deconv"},
    # The dense GAN for 28 px grey pictures in a comment below the tutorial.
    "dense": ARTICLE | {
        "networks": "dense", "resolution": 28, "img_channels": 1, "real_label": 0.9,
        "batch_size": 100, "g_lr": 1e-3, "d_lr": 1e-3,
    },
}  # fmt: skip


def flag(name: str) -> str:
    """Return the flag of a setting: `batch_size` → `--batch-size`."""
    return "--" + name.replace("_", "-")


@functools.cache
def _types() -> dict[str, Any]:
    """Return each setting's type; asked anew for each of them, that was 0.15 s of every start."""
    return get_type_hints(TrainConfig)


def _check(name: str, value: Any, choices: tuple) -> None:
    """Check one value's type against the annotation, and its choices."""
    shown = "that" if name in SECRETS else reprlib.repr(value)[:80]  # YAML may nest without end
    expected = _types()[name]
    plain = get_origin(expected) or expected
    fits = isinstance(value, plain) and not (isinstance(value, bool) and plain is not bool)
    if plain is float and type(value) is int:
        fits = True
    if not fits or (plain is float and not math.isfinite(value)):
        raise ConfigError(f"{flag(name)} takes {_kind(plain)}, not {shown}")
    _check_items(name, value if plain is tuple else (), shown)
    if plain in (int, float) and not 0 <= value < 2**63:
        raise ConfigError(f"{flag(name)} must not be negative or huge, not {shown}")
    if choices and value not in choices:
        options = ", ".join(repr(c) for c in choices)
        raise ConfigError(f"{flag(name)} must be one of {options}, not {shown}")


def _check_items(name: str, items: tuple, shown: str) -> None:
    """Check the values of a list: texts, or finite numbers from 0 on."""
    for item in items:
        if get_args(_types()[name])[0] is str:
            if not isinstance(item, str):
                raise ConfigError(f"{flag(name)} takes names, not {shown}")
        elif type(item) not in (int, float) or not 0 <= item < 2**63:
            raise ConfigError(f"{flag(name)} takes numbers from 0 on, not {shown}")


def _kind(plain: type) -> str:
    """Name a type for people."""
    names = {int: "a whole number", float: "a finite number", bool: "true or false", str: "a text"}
    return names.get(plain, "a list")


def make_config(*layers: dict[str, Any]) -> TrainConfig:
    """Build a configuration from dictionaries, the later ones winning.

    Raises:
        ConfigError: an unknown name or an unusable value.
    """
    merged: dict[str, Any] = {}
    for layer in layers:
        merged |= layer
    for old, new in RENAMED.items():
        if old in merged:
            raise ConfigError(f"{old} is now called {new}; rename it")
    known = {f.name for f in dataclasses.fields(TrainConfig)}
    if unknown := sorted(str(k) for k in set(merged) - known):
        raise ConfigError(f"unknown setting {', '.join(unknown)[:200]}; --help lists all")
    for name, value in merged.items():
        if get_origin(_types()[name]) is tuple:  # one alone need not stand in a list
            merged[name] = tuple(value) if isinstance(value, list | tuple) else (value,)
    return TrainConfig(**merged)


def renamed(values: dict[str, Any]) -> dict[str, Any]:
    """Return the settings that a run wrote down, by the names that they have today."""
    return {RENAMED.get(name, name): value for name, value in values.items()}


def read_config_file(path: str | Path) -> dict[str, Any]:
    """Read settings from a .json, .yaml or .yml file.

    Raises:
        ConfigError: no such file, another ending, or no mapping of names to values in it.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
        if len(data) > MAX_FILE_BYTES:
            raise ConfigError(f"--config {path} is over {MAX_FILE_BYTES // 1024} KiB; shorten it")
        text = data.decode("utf-8")
        if path.suffix == ".json":
            values = json.loads(text)
        elif path.suffix in (".yaml", ".yml"):
            import yaml  # comes with accelerate; only needed for this kind of file

            values = yaml.safe_load(text)
        else:
            raise ConfigError(f"--config {path}: the file must end in .json, .yaml or .yml")
    except OSError as error:
        raise ConfigError(f"--config {path}: {error.strerror or error}") from error
    except ConfigError:
        raise
    except Exception as error:  # yaml's and json's own families of errors
        raise ConfigError(f"--config {path} cannot be read: {_where_and_why(error)}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"--config {path} must hold names and values, like batch_size: 32")
    return {str(k).replace("-", "_"): v for k, v in values.items()}


def _where_and_why(error: Exception) -> str:
    """Say in one line what yaml or json stumbled on, and in which line of the file."""
    mark, why = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    line = mark.line + 1 if mark else getattr(error, "lineno", None)
    why = str(why or getattr(error, "msg", None) or error or type(error).__name__)
    return f"line {line}: {why.splitlines()[0]:.300}" if line else f"{why.splitlines()[0]:.300}"


class _OldFlag(argparse.Action):
    """Refuses a flag's old name with its new one."""

    def __call__(self, _parser: Any, _names: Any, _value: Any, option: str | None = None) -> None:
        new = RENAMED[self.dest]
        raise ConfigError(f"{option} is now called {flag(new)}; give that instead")


def make_parser() -> argparse.ArgumentParser:
    """Derive the command line from TrainConfig."""
    parser = argparse.ArgumentParser(
        prog="train.py",
        description="Train a generator of faces. A flag wins over --config, that over --preset.",
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    parser.add_argument("--preset", choices=sorted(PRESETS), help="named settings to start from")
    parser.add_argument("--config", metavar="FILE", help="settings in a .yaml or .json file")
    for spec in dataclasses.fields(TrainConfig):
        about = f"{spec.metadata['help']} (default: {_shown(spec.default)})".replace("%", "%%")
        kind = _types()[spec.name]
        if kind is bool:
            parser.add_argument(flag(spec.name), action=argparse.BooleanOptionalAction, help=about)
        elif get_origin(kind) is tuple:
            parser.add_argument(flag(spec.name), nargs="+", type=get_args(kind)[0], help=about)
        else:
            options: dict[str, Any] = {"choices": spec.metadata["choices"] or None}
            if bare := spec.metadata["bare"]:
                options |= {"nargs": "?", "const": bare}
            parser.add_argument(flag(spec.name), type=kind, help=about, **options)
    for old in RENAMED:
        parser.add_argument(flag(old), action=_OldFlag, help=argparse.SUPPRESS)
    return parser


def _shown(default: Any) -> str:
    """Show a default in the help."""
    if default == (str(BUNDLED_FACES),):
        return "the bundled assets/faces.zip, drawn by an earlier bundled generator"
    if isinstance(default, tuple):
        return " ".join(map(str, default))
    return repr(default)


def parse_arguments(arguments: list[str] | None = None) -> TrainConfig:
    """Read the command line.

    Raises:
        ConfigError: unusable values. Unknown flags leave through argparse with status 2.
    """
    flags = vars(make_parser().parse_args(arguments))
    preset = PRESETS[flags.pop("preset", "kaogan-64")]
    path = flags.pop("config", None)
    return make_config(preset, read_config_file(path) if path else {}, flags)
