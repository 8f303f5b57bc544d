"""The networks that the page and the training run share.

    from model import Generator, latents_from_seeds

    G = Generator.from_pretrained("assets/generator")        # or "owner/name", revision="<commit>"
    z = latents_from_seeds([42, 43], G.z_dim)                # [2, z_dim], always the same
    faces = G(z, psi=0.7)                                    # [2, 3, H, W] in about [-1, 1]

`Generator` and `Discriminator` follow StyleGAN2 (Karras et al. 2020, arXiv 1912.04958) without
its per-pixel noise, so that a seed alone decides the face. `ArticleGenerator` and
`ArticleDiscriminator` are the networks of the tutorial that this project starts from.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import itertools
import json
import math
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from huggingface_hub import (
    HfApi,
    PyTorchModelHubMixin,
    get_hf_file_metadata,
    hf_hub_download,
    hf_hub_url,
)
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"
DIRECTIONS_NAME = "directions.safetensors"  # named directions in w, beside the weights
SEED_MAX = 2**32 - 1
LRELU_SLOPE = 0.2
LRELU_GAIN = math.sqrt(2)  # keeps the second moment through a leaky ReLU of slope 0.2, nearly
# First pictures are nearly grey: loud ones take thousands of steps to fade, for weights of unit
# variance move by Adam's step size, a few thousandths, and D learns nothing from noise meanwhile.
FAINT = 10.0
# What activations may reach where products are computed in float16, which ends at 65,504. With
# weights normalised to a length of at most 1 an output, sums of √4,096 times that still fit (as in
# StyleGAN2-ADA, Karras et al. 2020, arXiv 2006.06676).
MAX_HALF = 256.0
MAX_CONFIG_BYTES = 64 * 1024
OURS = f"a folder or Hub repository with the {CONFIG_NAME} and {WEIGHTS_NAME} that train.py writes"
# What other libraries keep, told by a key of their config.json …
FOREIGN_KEYS = {
    "_class_name": "a model of diffusers",
    "architectures": "a model of transformers",
    "model_type": "a model of transformers",
    "num_classes": "a model of timm",
}
# … or by the names of their files; the first that fits.
FOREIGN_FILES = {
    r"model_index\.json": "a pipeline of diffusers",
    r"adapter_config\.json|.*lora.*\.safetensors": "a LoRA, which only changes another model",
    r".*\.pkl": "a pickle, as StyleGAN's trainers write it and as is never loaded",
    r".*\.(bin|pt|pth|ckpt)": "pickled weights, which are never loaded",
    r".*\.(gguf|onnx|h5|keras|msgpack)": "weights of another library",
    r".*\.safetensors": "weights without their sizes",
}
MAX_RESOLUTION = 1024  # px
PATCHES = (1, 2, 4)  # px
MAX_CHANNELS = 2048
MAX_LATENT = 4096
TRUNK_ENDS = (3, 5, 7, 11)  # layers of a trunk that end its maps
MAX_ENLARGER = 400_000  # parameters


class ModelError(ValueError):
    """Weights, configuration or constructor arguments that cannot make one of our networks."""


class ForeignError(ModelError):
    """A config.json that describes none of our networks; `content` is what it holds."""

    def __init__(self, message: str, content: Any) -> None:
        super().__init__(message)
        self.content = content


# ------------------------------------------------------------------------------------------
# Seeds


def latents_from_seeds(seeds: Iterable[int], z_dim: int) -> Tensor:
    """Draw one latent for each seed, the same on every machine and in every batch.

    NumPy's `RandomState` is used because its stream is frozen by NumPy's compatibility policy,
    while those of `torch.randn` differ between devices, versions and even batch sizes.

    Args:
        seeds: integers 0 … 2³²−1.
        z_dim: length of a latent.
    Returns:
        z `[N, z_dim]`, float32, standard normal.
    Raises:
        ModelError: a seed that is no integer of that range.
    """
    rows = [np.random.RandomState(check_seed(s)).standard_normal(z_dim) for s in seeds]
    return torch.from_numpy(np.array(rows, dtype=np.float32).reshape(len(rows), z_dim))


def check_seed(seed: Any) -> int:
    """Return `seed` as an int of 0 … 2³²−1, or raise ModelError with a sentence."""
    whole = isinstance(seed, int | np.integer) and not isinstance(seed, bool)
    if not whole or not 0 <= seed <= SEED_MAX:
        raise ModelError(f"a seed is a whole number from 0 to {SEED_MAX}, not {seed!r:.60}")
    return int(seed)


# ------------------------------------------------------------------------------------------
# Saving and loading


class KaoganModel(
    nn.Module,
    PyTorchModelHubMixin,
    library_name="kaogan",
    license="mit",
    tags=["gan", "anime", "image-generation"],
):
    """A network that travels as `config.json` + `model.safetensors` and is loaded strictly."""

    num_ws = 0  # styles that synthesis takes; 0 where a network has no w
    # Networks that draw or judge faces have the first two, generators z_dim, those with a w w_dim.
    resolution: int
    img_channels: int
    z_dim: int
    w_dim: int
    _storage_dtype: torch.dtype | dict[str, torch.dtype] | None

    def freeze(self) -> Self:
        """Make this network one that never learns again, and return it."""
        return self.eval().requires_grad_(False)

    # Both take less than the mixin's, under names of their own.
    def save_pretrained(  # type: ignore[override]
        self,
        directory: str | Path,
        *,
        dtype: torch.dtype | dict[str, torch.dtype] | None = None,
        **hub: Any,
    ) -> str | None:
        """Write `config.json`, `model.safetensors` and, where none is there, a card.

        Args:
            directory: made if missing.
            dtype: storage type of the weights (`torch.float16` halves the file), or that of
                some of them by their name in `state_dict`; as they are when None. They come back
                as float32 from `from_pretrained`.
            hub: what `PyTorchModelHubMixin.save_pretrained` takes besides.
        """
        self._storage_dtype = dtype
        try:
            return super().save_pretrained(directory, config=self.config, **hub)
        finally:
            self._storage_dtype = None

    @property
    def config(self) -> dict[str, Any]:
        """The constructor's arguments and the network's name, as they stand in config.json."""
        arguments = json.loads(json.dumps(self._hub_mixin_config or {}))  # tuples become lists
        return {"architecture": type(self).__name__, **arguments}

    def _save_pretrained(self, save_directory: Path) -> None:
        state = self.state_dict()
        dtypes = getattr(self, "_storage_dtype", None) or {}
        if isinstance(dtypes, torch.dtype):
            dtypes = {k: dtypes for k, v in state.items() if v.is_floating_point()}
        state = {
            k: v.detach().to("cpu", dtypes.get(k, v.dtype)).contiguous() for k, v in state.items()
        }
        path = Path(save_directory) / WEIGHTS_NAME
        part = path.with_suffix(".part")
        save_file(state, part, metadata={"format": "pt"})
        part.chmod(0o644)  # safetensors makes files for the owner alone
        part.replace(path)

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        path_or_repo: str | Path,
        *,
        revision: str | None = None,
        subfolder: str = "",
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
    ) -> Self:
        """Load a network from a folder or a Hub repository, in evaluation mode, as float32.

        Args:
            path_or_repo: a folder that holds `config.json` and `model.safetensors`, or a Hub
                repository `owner/name`; an existing folder wins.
            revision: commit, tag or branch of the repository; not for a folder.
            subfolder: where in the folder or repository the two files lie.
            token, cache_dir, local_files_only: as `huggingface_hub.hf_hub_download` takes them.
        Raises:
            ModelError: missing, foreign or broken files, or tensors that do not fit exactly.
        """
        access: dict[str, Any] = {
            "token": token, "cache_dir": cache_dir, "local_files_only": local_files_only
        }  # fmt: skip
        place = (path_or_repo, subfolder)
        config = fetch_file(*place, CONFIG_NAME, revision, MAX_CONFIG_BYTES, **access)
        try:
            kind, arguments = read_config(config)
        except ForeignError as error:
            found = _look_around(*place, revision, token, error.content)
            where = f"{CONFIG_NAME} of {path_or_repo}"
            raise ModelError(f"{where} is not a configuration of ours: {found}") from error
        if cls is not KaoganModel and kind is not cls:
            raise ModelError(
                f"{config} describes a {kind.__name__}, not a {cls.__name__}; "
                f"load it with {kind.__name__}.from_pretrained"
            )
        with torch.device("meta"):  # nothing of the asked size is allocated before the file agrees
            network = kind(**arguments)
        assert isinstance(network, cls)
        limit = MAX_CONFIG_BYTES + 8 * sum(v.numel() for v in network.state_dict().values())
        if not Path(path_or_repo).is_dir():  # of the same commit, even if the branch has moved on
            revision = config.parents[len(Path(subfolder).parts)].name
        weights = fetch_file(*place, WEIGHTS_NAME, revision, limit, **access)
        if (size := weights.stat().st_size) > limit:  # its header alone could fill the memory
            raise ModelError(
                f"{weights} is {size:,} bytes large, where at most {limit:,} can be right"
            )
        state = read_weights(weights, network.state_dict())
        network.load_state_dict(state, strict=True, assign=True)
        return network.eval()


def load_network(path_or_repo: str | Path, **options: Any) -> KaoganModel:
    """Load whichever of NETWORKS the configuration names; options as `from_pretrained`."""
    return KaoganModel.from_pretrained(path_or_repo, **options)


def load_generator(path_or_repo: str | Path, **options: Any) -> KaoganModel:
    """Load a network as `load_network` does, and refuse one that draws nothing from z."""
    G = load_network(path_or_repo, **options)
    if not hasattr(G, "z_dim"):
        raise ModelError(f"{path_or_repo} holds a {type(G).__name__}, which draws no faces")
    return G


def weights_digest(path: Path) -> str:
    """Return the SHA-256 of a weights file, 64 hex digits; the first 12 name a revision."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def fetch_file(
    path_or_repo: str | Path,
    subfolder: str,
    name: str,
    revision: str | None,
    max_bytes: int,
    **access: Any,
) -> Path:
    """Return the local path of one file, downloading it if it is on the Hub.

    Args:
        path_or_repo, subfolder, name, revision: which file.
        max_bytes: refused beyond this, before a download.
        access: token, cache_dir, local_files_only, as `hf_hub_download` takes them.
    Raises:
        ModelError: no such file, too large, damaged, or the Hub is out of reach; caused by the
            client's error where there is one.
    """
    if Path(path_or_repo).is_dir():
        folder = Path(path_or_repo) / subfolder
        if not (folder / name).is_file():
            raise ModelError(_missing_file(folder, name))
        return folder / name
    if Path(path_or_repo).is_file():
        found = describe_foreign([Path(path_or_repo).name])
        raise ModelError(f"{path_or_repo} is one file, {found}; give {OURS}")
    where = {"filename": name, "subfolder": subfolder or None, "revision": revision}
    try:
        return _download({"repo_id": str(path_or_repo), **where}, max_bytes, **access)
    except ModelError:
        raise
    except HFValidationError as error:
        raise ModelError(
            f"{str(path_or_repo)!r:.200} is neither a folder nor a Hub repository owner/name"
        ) from error
    except Exception as error:  # the client's HTTP library, which its version decides, has its own
        at = f" at revision {revision}" if revision else ""
        why = hub_fault(error)
        if name == CONFIG_NAME and isinstance(error, RemoteEntryNotFoundError):
            why = _look_around(path_or_repo, subfolder, revision, access.get("token"))
        raise ModelError(
            f"could not fetch {name} of {path_or_repo}{at} from the Hub: {why}"
        ) from error


def _download(
    where: dict[str, Any],
    max_bytes: int,
    *,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
) -> Path:
    """Return a file of the Hub: from the cache if its commit is fixed or the Hub is out of reach.

    A download is under a temporary name until it is whole, so a cached file is never half of one.
    """
    access: dict[str, Any] = {"token": token, "cache_dir": cache_dir}
    cached = None
    with contextlib.suppress(LocalEntryNotFoundError):
        cached = Path(hf_hub_download(**where, **access, local_files_only=True))
    if cached and (local_files_only or re.fullmatch(r"[0-9a-f]{40}", where["revision"] or "")):
        return _check_hash(cached)
    try:
        if not local_files_only:
            # Asked without hf_hub_download's minutes of retries; and before its gigabytes.
            size = get_hf_file_metadata(hf_hub_url(**where), token=token, timeout=10).size
            if size is not None and size > max_bytes:
                raise ModelError(
                    f"{where['filename']} of {where['repo_id']} is {size:,} bytes large, where at "
                    f"most {max_bytes:,} can be right; it is not downloaded"
                )
        found = Path(hf_hub_download(**where, **access, local_files_only=local_files_only))
    except ModelError:
        raise
    except Exception:
        if cached is None:
            raise
        found = cached
    return _check_hash(found)


def _check_hash(path: Path) -> Path:
    """Return a file of the Hub's cache, or discard it if its bytes are not those of its name.

    The cache names a file by its SHA-256 or, where it is small, by git's SHA-1; the client compares
    only sizes. Where the system has no symbolic links the name is lost, and nothing is checked.
    """
    if not path.is_symlink():
        return path
    blob = path.parent / path.readlink()
    content = path.read_bytes()
    if re.fullmatch(r"[0-9a-f]{64}", blob.name):
        fits = hashlib.sha256(content).hexdigest() == blob.name
    elif re.fullmatch(r"[0-9a-f]{40}", blob.name):
        fits = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest() == blob.name
    else:
        fits = True
    if not fits:
        with contextlib.suppress(OSError):
            path.unlink()
            blob.unlink()
        raise ModelError(
            f"{path.name} was damaged on its way from the Hub or in the cache, and is discarded; "
            f"try again"
        )
    return path


def _fits(pattern: str, name: str) -> bool:
    """Tell whether a file lies in the folder itself and is named as a pattern says."""
    return re.fullmatch(pattern, name, re.IGNORECASE) is not None and "/" not in name


def list_files(
    path_or_repo: str | Path, subfolder: str, revision: str | None, token: str | bool | None
) -> list[str]:
    """Return the names of a folder's files, or of a repository's as far as the Hub tells them."""
    folder = Path(path_or_repo) / subfolder
    if folder.is_dir():
        return [path.name for path in sorted(folder.iterdir())]
    with contextlib.suppress(Exception):  # the sentence that wants them is worth saying without
        info = HfApi().model_info(str(path_or_repo), revision=revision, timeout=10, token=token)
        start = f"{subfolder}/" if subfolder else ""
        names = [file.rfilename for file in info.siblings or () if file.rfilename.startswith(start)]
        return [name.removeprefix(start) for name in sorted(names)]
    return []


def _look_around(
    path_or_repo: str | Path,
    subfolder: str,
    revision: str | None,
    token: str | bool | None,
    config: Any = None,
) -> str:
    """Say what is there in a network's place, and what to give instead."""
    run = Path(path_or_repo) / subfolder
    if (run / "generator" / CONFIG_NAME).is_file():
        return f"it is a training run; give its {run / 'generator'}"
    names = list_files(path_or_repo, subfolder, revision, token)
    if not names and config is None:
        return f"it holds no network; give {OURS}"
    return f"{path_or_repo} holds {describe_foreign(names, config)}; give {OURS}"


def describe_foreign(names: Sequence[str], config: Any = None) -> str:
    """Say what a folder or repository of another library holds.

    Args:
        names: of its files, "/" between folders.
        config: what its config.json holds, if it has one.
    """
    entries = config if isinstance(config, dict) else {}
    by_file = [
        (kind, next((name for name in names if _fits(pattern, name)), ""))
        for pattern, kind in FOREIGN_FILES.items()
    ]
    by_key = [(kind, _named(key, entries)) for key, kind in FOREIGN_KEYS.items()]
    for kind, example in (by_file[0], *by_key, *by_file[1:]):
        if example:
            return f"{kind} ({example:.80})"
    return "no network that we know"


def _named(key: str, entries: dict[str, Any]) -> str:
    """Return what another library's configuration with a key calls its network, "" without it."""
    named = entries.get("architecture") if key == "num_classes" else entries.get(key)
    return repr(named) if key in entries else ""


def hub_fault(error: Exception) -> str:
    """Say in words why the Hub gave no file."""
    reasons = {
        RevisionNotFoundError: "the repository has no such revision",
        RemoteEntryNotFoundError: "the repository has no such file; pickled weights are not loaded",
        GatedRepoError: "its owner must let you in: ask on its page, then set HF_TOKEN",
        RepositoryNotFoundError: "there is no such repository, or it is private",
        OfflineModeIsEnabled: "HF_HUB_OFFLINE is set, and the cache holds no copy",
        LocalEntryNotFoundError: "the Hub cannot be reached, and the cache holds no copy",
    }
    status = getattr(getattr(error, "response", None), "status_code", None) or 0
    answers = {401: "the Hub refuses the token", 403: "the token may not read it"}
    answers[429] = "the Hub asks for fewer requests; try later"
    kinds = [kind.__name__ for kind in type(error).__mro__]
    if reason := next((v for k, v in reasons.items() if isinstance(error, k)), answers.get(status)):
        return reason
    if "TransportError" in kinds:  # by name: which HTTP library it is, the client's version decides
        return f"the Hub cannot be reached ({_first_line(error)}); check the network"
    return f"the Hub answers {status}; try later" if status >= 500 else _first_line(error)


def _first_line(error: BaseException) -> str:
    """Return an error's first line, its class where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def _missing_file(folder: Path, name: str) -> str:
    """Word the error for a folder that lacks one of the two files."""
    pickles = [p.name for p in folder.glob("*") if p.suffix in (".bin", ".pt", ".pth", ".pkl")]
    if name == WEIGHTS_NAME and pickles:
        return (
            f"{folder} holds {pickles[0]} but no {WEIGHTS_NAME}; pickled weights are never "
            f"loaded, convert them to safetensors first"
        )
    return f"{folder} has no {name}: {_look_around(folder, '', None, None)}"


def read_config(path: Path) -> tuple[type[KaoganModel], dict[str, Any]]:
    """Read config.json: the network's class and its constructor's arguments.

    Raises:
        ModelError: no JSON object, another library's, an unknown or unusable argument.
    """
    if path.stat().st_size > MAX_CONFIG_BYTES:
        raise ModelError(f"{path} is larger than {MAX_CONFIG_BYTES} bytes, so it is none of ours")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} is not valid JSON: {_first_line(error)}") from error
    name = config.get("architecture") if isinstance(config, dict) else None
    kind = NETWORKS.get(str(name))
    if kind is None:
        raise ForeignError(f"{path} is not a configuration of ours", config)
    del config["architecture"]
    known = set(kind._hub_mixin_init_parameters) - {"self"}
    if unknown := sorted(set(config) - known):
        raise ModelError(f"{path} has unknown entries: {', '.join(unknown)[:200]}")
    try:
        with torch.device("meta"):
            kind(**config)
    except (ModelError, TypeError) as error:
        raise ModelError(f"{path}: {_first_line(error)}") from error
    return kind, config


def read_weights(path: Path, expected: dict[str, Tensor]) -> dict[str, Tensor]:
    """Read a safetensors file whose names and shapes must be exactly the expected ones.

    Returns:
        float32 tensors by name; 16-bit ones are widened.
    Raises:
        ModelError: not safetensors, a missing, extra, misshapen or non-finite tensor.
    """
    try:
        with safe_open(path, framework="pt") as file:
            shapes = {k: tuple(file.get_slice(k).get_shape()) for k in file.keys()}  # noqa: SIM118
            _check_shapes(path, shapes, {k: tuple(v.shape) for k, v in expected.items()})
            state = {name: file.get_tensor(name) for name in shapes}
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"{path} is not a readable safetensors file: {_first_line(error)}"
        ) from error
    for name, tensor in state.items():
        if tensor.is_floating_point() != expected[name].is_floating_point():
            raise ModelError(f"{path}: tensor {name} has the type {tensor.dtype}")
        if not torch.isfinite(tensor).all():
            raise ModelError(f"{path}: tensor {name} holds values that are no finite numbers")
    return {k: v.float() if v.is_floating_point() else v for k, v in state.items()}


def _check_shapes(
    path: Path, found: dict[str, tuple[int, ...]], expected: dict[str, tuple[int, ...]]
) -> None:
    """Raise ModelError unless both hold the same names with the same shapes."""
    problems = {
        "lacks": sorted(expected.keys() - found.keys()),
        "has unknown": sorted(found.keys() - expected.keys()),
        "has misshapen": [
            f"{k} {list(found[k])} instead of {list(expected[k])}"
            for k in sorted(expected.keys() & found.keys())
            if found[k] != expected[k]
        ],
    }
    for verb, names in problems.items():
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise ModelError(f"{path} {verb} tensors: {', '.join(names[:3])}{more}")


# ------------------------------------------------------------------------------------------
# Layers


def first_weights(*shape: int, divisor: float = 1.0) -> Tensor:
    """Return standard normal numbers over `divisor`, or on the meta device a shape alone.

    There nearly every operator, torch.full too, imports SymPy and with it half a second.
    """
    weights = torch.empty(shape)
    return weights if weights.is_meta else weights.normal_().div_(divisor)


class EqualLinear(nn.Module):
    """Linear layer with an equalised learning rate (Karras et al. 2018, arXiv 1710.10196).

    Weights are stored at unit variance and scaled when used, so that one Adam step size suits
    every layer; `lr_multiplier` slows the layer by that factor, `gain` scales what it returns.
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        *,
        bias: float = 0.0,
        lr_multiplier: float = 1.0,
        gain: float = 1.0,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(first_weights(out_dim, in_dim, divisor=lr_multiplier))
        self.bias = nn.Parameter(torch.empty(out_dim).fill_(bias / lr_multiplier))
        self.gain = gain
        self.weight_gain = gain * lr_multiplier / math.sqrt(in_dim)
        self.bias_gain = gain * lr_multiplier
        self.scaled: tuple[Tensor, Tensor] | None = None  # of a frozen layer

    def forward(self, x: Tensor) -> Tensor:
        """Map `[N, in_dim]` to `[N, out_dim]`."""
        if autocasts_to_float16(x):  # small, and styles may be of any size
            with torch.autocast(x.device.type, enabled=False):
                return F.linear(x.float(), *self.scale())
        return F.linear(x, *(self.scaled or self.scale()))

    def scale(self) -> tuple[Tensor, Tensor]:
        """Return weights `[out_dim, in_dim]` and bias `[out_dim]` as they are used."""
        return self.weight * self.weight_gain, self.bias * self.bias_gain


def autocasts_to_float16(x: Tensor) -> bool:
    """Tell whether products with x are computed in float16 by an autocast around."""
    kind = x.device.type
    return torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) is torch.float16


def normalise_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Divide each weight `[out, …]` by its largest number times √(numbers an output).

    Returns:
        weights whose product with numbers up to m is at most m · √(numbers an output), and what
        they were divided by, `[out, 1, …]`; both float32.
    """
    rows = weight.float().flatten(1)
    scale = rows.abs().amax(1).clamp_min(1e-8) * math.sqrt(rows.shape[1])
    scale = scale.view(-1, *[1] * (weight.ndim - 1))
    return weight.float() / scale, scale


def activate(x: Tensor) -> Tensor:
    """Leaky ReLU in place; its gain is left to the scale that stands before it."""
    return F.leaky_relu_(x, LRELU_SLOPE)


class EqualConv2d(nn.Module):
    """Convolution with an equalised learning rate, optionally bias and leaky ReLU after it."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, *, act: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(first_weights(out_channels, in_channels, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(out_channels)) if act else None
        self.gain = (LRELU_GAIN if act else 1.0) / math.sqrt(in_channels * kernel**2)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[N, in, H, W]` to `[N, out, H, W]`."""
        half, padding = autocasts_to_float16(x), self.weight.shape[-1] // 2
        if half:
            weight, scale = normalise_rows(self.weight)
            x = F.conv2d(x, weight, padding=padding)
            x = x * (scale * self.gain).to(x.dtype).view(1, -1, 1, 1)
        else:
            # The gain rides on the weights (a small tensor) instead of the images (a large one).
            x = F.conv2d(x, self.weight * self.gain, padding=padding)
        if self.bias is not None:
            x = activate(x.add_(self.bias.to(x.dtype).view(1, -1, 1, 1)))
        return x.clamp(-MAX_HALF, MAX_HALF) if half else x


class StyledConv(nn.Module):
    """Modulated, demodulated 3×3 convolution, bias and leaky ReLU (arXiv 1912.04958, sec. 2.2).

    The style scales the input channels and the demodulation the output channels, instead of
    making one set of weights for each sample: the same function with one plain convolution for
    the whole batch, so a face does not depend on its batch.
    """

    def __init__(self, in_channels: int, out_channels: int, w_dim: int, *, up: bool) -> None:
        super().__init__()
        # The gain of the weights (a large tensor) rides on the styles (a small one).
        self.affine = EqualLinear(w_dim, in_channels, bias=1.0, gain=1 / math.sqrt(in_channels * 9))
        self.weight = nn.Parameter(first_weights(out_channels, in_channels, 3, 3))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.up = up
        self.squares: Tensor | None = None  # of a frozen layer's weights

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        """Map x `[N, in, H, W]` and w `[N, w_dim]` to `[N, out, H or 2H, W or 2W]`."""
        style, half = self.affine(w), autocasts_to_float16(x)  # [N, in]
        weight: Tensor = self.weight
        if half:
            style, weight, demod = self.normalised(style)
        else:
            squares = self.sum_squares() if self.squares is None else self.squares
            demod = torch.rsqrt(style.square() @ squares + 1e-8 / LRELU_GAIN**2)  # [N, out]
        x = F.conv2d(x * style.to(x.dtype)[:, :, None, None], weight, padding=1)
        bias = self.bias.to(x.dtype).view(1, -1, 1, 1)
        # mul, add_: the backward of addcmul would copy the picture once more. Both stand before
        # the upsampling, which changes neither of them, on a quarter of the pixels.
        x = (x * demod.to(x.dtype)[:, :, None, None]).add_(bias)
        x = activate(upsample(x) if self.up else x)
        return x.clamp(-MAX_HALF, MAX_HALF) if half else x

    def normalised(self, style: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return style, weights and demodulation for a product in float16, all of them float32.

        Styles are divided by their largest number and weights as `normalise_rows` says; the
        demodulation, computed from both, undoes that.
        """
        with torch.autocast(style.device.type, enabled=False):
            style = style / style.abs().amax(1, keepdim=True).clamp_min(1e-8)
            weight, _ = normalise_rows(self.weight)
            squares = weight.square().sum((2, 3)).t() / LRELU_GAIN**2
            return style, weight, torch.rsqrt(style.square() @ squares + 1e-8)

    def sum_squares(self) -> Tensor:
        """Return the sum over the window of the squared weights, `[in, out]`.

        They are divided by the square of the activation's gain, which demodulation thus brings in.
        """
        return self.weight.square().sum((2, 3)).t() / LRELU_GAIN**2


class ToRGB(nn.Module):
    """Modulated 1×1 convolution to image channels, without demodulation."""

    def __init__(self, in_channels: int, img_channels: int, w_dim: int) -> None:
        super().__init__()
        self.affine = EqualLinear(w_dim, in_channels, bias=1.0, gain=1 / math.sqrt(in_channels))
        self.weight = nn.Parameter(first_weights(img_channels, in_channels, 1, 1, divisor=FAINT))
        self.bias = nn.Parameter(torch.zeros(img_channels))

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        """Map x `[N, in, H, W]` and w `[N, w_dim]` to `[N, img_channels, H, W]`."""
        style = self.affine(w)
        # Weights for each sample: few numbers are scaled instead of all of x.
        weight = self.weight.flatten(1) * style[:, None]  # [N, img_channels, in]
        n, c, h, wide = x.shape
        pixels = x.permute(0, 2, 3, 1).reshape(n, h * wide, c)  # a view, in channels_last
        if autocasts_to_float16(x):
            weight, scale = normalise_rows(weight)  # one length for each sample's
            picture = (weight @ pixels.transpose(1, 2)).float() * scale
        else:
            picture = at_least_float32(weight.to(x.dtype) @ pixels.transpose(1, 2))
        return picture.add_(self.bias[:, None]).view(n, -1, h, wide)


class ToPatches(nn.Module):
    """Modulated 3×3 convolution to the pixels of patches (sub-pixel convolution, Shi et al. 2016,
    arXiv 1609.05158), smoothed so that no grid of patches shows.

    It looks at the neighbours too: from one place alone, a slanted line comes out as stairs.
    """

    def __init__(self, in_channels: int, img_channels: int, w_dim: int, patch: int) -> None:
        super().__init__()
        self.patch = patch
        self.affine = EqualLinear(w_dim, in_channels, bias=1.0, gain=1 / math.sqrt(in_channels * 9))
        pixels = img_channels * patch**2
        self.weight = nn.Parameter(first_weights(pixels, in_channels, 3, 3, divisor=FAINT))
        self.bias = nn.Parameter(torch.zeros(img_channels * patch**2))

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        """Map x `[N, in, H, W]` and w `[N, w_dim]` to `[N, img_channels, H·patch, W·patch]`."""
        style = self.affine(w)
        if autocasts_to_float16(x):
            largest = style.abs().amax(1).clamp_min(1e-8).view(-1, 1, 1, 1)
            weight, scale = normalise_rows(self.weight)
            pixels = F.conv2d(
                x * (style[:, :, None, None] / largest).to(x.dtype), weight, padding=1
            )
            pixels = pixels.float() * largest * scale.view(1, -1, 1, 1)
            pixels = pixels + self.bias.view(1, -1, 1, 1)
        else:
            style = style.to(x.dtype)
            pixels = F.conv2d(x * style[:, :, None, None], self.weight, self.bias, padding=1)
            pixels = at_least_float32(pixels)
        pixels = pixels.contiguous()  # three channels are shuffled and added quicker plane by plane
        return smooth_patches(F.pixel_shuffle(pixels, self.patch), self.patch)


def at_least_float32(picture: Tensor) -> Tensor:
    """Widen a picture of 16 bits: summed in bf16, near white its steps are half an 8-bit level."""
    return picture.to(torch.promote_types(picture.dtype, torch.float32))


def upsample(x: Tensor, factor: int = 2) -> Tensor:
    """Enlarge height and width bilinearly."""
    return F.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=False)


def smooth_patches(x: Tensor, patch: int) -> Tensor:
    """Filter by a triangle of 2·patch - 1 px, which removes whatever repeats every `patch` px.

    A generator learns only late to paint the places of a patch alike; until then its pictures
    look woven. Two box filters of `patch` px make the triangle.
    """
    x = F.pad(x, (patch - 1,) * 4, mode="replicate")
    for axis in (2, 3, 2, 3):
        step = 1
        while step < patch:  # a box of 2 px, of 4, …: far quicker than avg_pool2d of 3 channels
            rest = x.shape[axis] - step
            x = x.narrow(axis, 0, rest) + x.narrow(axis, step, rest)
            step *= 2
    return x / patch**4


# ------------------------------------------------------------------------------------------
# Kaogan's networks


def default_channels(resolution: int, channel_base: int, channel_max: int) -> tuple[int, ...]:
    """Return the width of every level, from the base (3, 4 or 6 px) up to `resolution`.

    A level of r px gets `channel_base / r` channels, at most `channel_max`, rounded to a
    multiple of 16 (at least 16): each level then costs about the same.
    """
    levels = [resolution // 2**k for k in range(count_levels(resolution))]
    return tuple(
        min(channel_max, max(16, round(channel_base / r / 16) * 16)) for r in reversed(levels)
    )


def count_levels(resolution: int) -> int:
    """Return k + 1 for a resolution of base·2^k with base 4, 6 or 3 px, else raise ModelError."""
    if isinstance(resolution, int) and 3 <= resolution <= MAX_RESOLUTION:
        odd = resolution & -resolution  # the largest power of two that divides it
        if resolution == odd and resolution >= 4:
            return odd.bit_length() - 2
        if resolution // odd == 3:
            return max(1, odd.bit_length() - 1)  # 3 -> 1 level, 6 -> 1, 12 -> 2, 96 -> 5
    raise ModelError(
        f"resolution must be 3, 4 or 6 times a power of two, from 3 to {MAX_RESOLUTION} px, "
        f"not {resolution!r:.40}"
    )


def last_level(resolution: int, patch: int) -> int:
    """Return the px of the last level of features, resolution / patch, else raise ModelError."""
    if type(patch) is not int or patch not in PATCHES:
        raise ModelError(f"patch must be one of {PATCHES}, not {patch!r:.40}")
    if type(resolution) is not int or resolution % patch:
        raise ModelError(f"resolution must be a multiple of patch {patch}, not {resolution!r:.40}")
    if resolution > MAX_RESOLUTION:
        raise ModelError(f"resolution must be at most {MAX_RESOLUTION} px, not {resolution!r:.40}")
    return resolution // patch


def _check_sizes(
    resolution: int, channels: Sequence[int], img_channels: int, patch: int, **dims: int
) -> tuple[int, ...]:
    """Validate constructor arguments that may come from a stranger's config.json."""
    levels = count_levels(last_level(resolution, patch))
    sizes = channels if isinstance(channels, list | tuple) else ()
    whole = all(type(c) is int and 1 <= c <= MAX_CHANNELS for c in sizes)
    if len(sizes) != levels or not whole:
        raise ModelError(
            f"channels must be {levels} whole numbers from 1 to {MAX_CHANNELS} "
            f"for {resolution} px, not {channels!r:.80}"
        )
    if img_channels not in (1, 3):
        raise ModelError(f"img_channels must be 1 (grey) or 3 (RGB), not {img_channels!r:.40}")
    for name, value in dims.items():
        if type(value) is not int or not 1 <= value <= MAX_LATENT:
            raise ModelError(
                f"{name} must be a whole number from 1 to {MAX_LATENT}, not {value!r:.40}"
            )
    return tuple(sizes)


class Mapping(nn.Module):
    """z → w: normalise, then a few slowly learning fully connected layers."""

    def __init__(self, z_dim: int, w_dim: int, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            EqualLinear(z_dim if i == 0 else w_dim, w_dim, lr_multiplier=0.01, gain=LRELU_GAIN)
            for i in range(layers)
        )

    def forward(self, z: Tensor) -> Tensor:
        """Map z `[N, z_dim]` to w `[N, w_dim]`."""
        w = z * torch.rsqrt(z.square().mean(1, keepdim=True) + 1e-8)
        for layer in self.layers:
            w = activate(layer(w))
        return w


class SynthesisBlock(nn.Module):
    """One resolution of the generator: one or two styled convolutions, and a picture.

    With a `patch` of p, each place of the features paints p×p pixels of the picture.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        w_dim: int,
        img_channels: int,
        *,
        first: bool,
        patch: int = 1,
    ) -> None:
        super().__init__()
        self.patch = patch
        self.conv0 = None if first else StyledConv(in_channels, out_channels, w_dim, up=True)
        self.conv1 = StyledConv(out_channels, out_channels, w_dim, up=False)
        self.to_rgb: ToRGB | ToPatches
        if patch == 1:
            self.to_rgb = ToRGB(out_channels, img_channels, w_dim)
        else:
            self.to_rgb = ToPatches(out_channels, img_channels, w_dim, patch)

    def forward(self, x: Tensor, rgb: Tensor | None, ws: Tensor) -> tuple[Tensor, Tensor]:
        """Take features, the smaller picture and this block's ws `[N, 1 or 2, w_dim]`."""
        if self.conv0 is not None:
            x = self.conv0(x, ws[:, 0])
        x = self.conv1(x, ws[:, -1])
        picture = self.to_rgb(x, ws[:, -1])
        if rgb is not None:
            picture = upsample(rgb, 2 * self.patch) + picture
        return x, picture


class Generator(
    KaoganModel,
    pipeline_tag="unconditional-image-generation",
):
    """Style-based generator: z → w → a picture.

    Args:
        resolution: height and width in px: `patch` times 3, 4 or 6 times a power of two.
        channels: width of each level, from the smallest (3, 4 or 6 px) up to resolution / patch.
        z_dim, w_dim: lengths of the latents.
        mapping_layers: depth of the mapping network.
        img_channels: 3 for RGB, 1 for grey.
        patch: side in px of what one place of the last level paints: 1, 2 or 4. The costly last
            levels are left out where it is more than 1.
    Raises:
        ModelError: sizes that are out of range or do not fit together.
    """

    w_avg: Tensor

    def __init__(
        self,
        resolution: int = 64,
        channels: Sequence[int] = (192, 192, 96, 48, 32),
        z_dim: int = 128,
        w_dim: int = 128,
        mapping_layers: int = 2,
        img_channels: int = 3,
        patch: int = 1,
    ) -> None:
        super().__init__()
        widths = _check_sizes(
            resolution,
            channels,
            img_channels,
            patch,
            z_dim=z_dim,
            w_dim=w_dim,
            mapping_layers=mapping_layers,
        )
        self.resolution, self.img_channels = resolution, img_channels
        self.z_dim, self.w_dim = z_dim, w_dim
        base = resolution // patch // 2 ** (len(widths) - 1)
        self.num_ws = 2 * len(widths) - 1
        self.mapping_network = Mapping(z_dim, w_dim, mapping_layers)
        self.register_buffer("w_avg", torch.zeros(w_dim))
        self.const = nn.Parameter(first_weights(widths[0], base, base))
        self.blocks = nn.ModuleDict(
            {
                str(base * 2**i): SynthesisBlock(
                    widths[max(i - 1, 0)],
                    width,
                    w_dim,
                    img_channels,
                    first=i == 0,
                    patch=patch if i == len(widths) - 1 else 1,
                )
                for i, width in enumerate(widths)
            }
        )

    @property
    def layer_groups(self) -> dict[str, slice]:
        """Which of the `num_ws` styles are coarse (pose, shape), middle (features), fine (colour).

        Coarse are blocks up to 8 px and always the first one, middle those of 16 px (up to 32 px
        where the last block has 128 or more), fine the rest. Small generators lack the last ones:
        their slices are empty.
        """
        sizes = [int(size) for size in self.blocks]
        middle = 32 if sizes[-1] >= 128 else 16
        coarse_end = 2 * max(1, sum(size <= 8 for size in sizes)) - 1
        middle_end = max(coarse_end, 2 * sum(size <= middle for size in sizes) - 1)
        return {
            "coarse": slice(0, coarse_end),
            "middle": slice(coarse_end, middle_end),
            "fine": slice(middle_end, self.num_ws),
        }

    def forward(self, z: Tensor, psi: float = 1.0, fine: float | None = None) -> Tensor:
        """Draw pictures.

        Args:
            z: `[N, z_dim]`, standard normal.
            psi: truncation (Karras et al. 2019, arXiv 1812.04948, sec. B): 1 leaves w as it is,
                0 gives the average face, 0.5 … 0.8 trades variety for quality.
            fine: truncation of the fine layers; that of the others when None.
        Returns:
            `[N, img_channels, resolution, resolution]`, about [-1, 1], not clamped.
        """
        return self.synthesis(self.mapping(z, psi, fine))

    def mapping(self, z: Tensor, psi: float = 1.0, fine: float | None = None) -> Tensor:
        """Map z `[N, z_dim]` to one w for each layer, `[N, num_ws, w_dim]`, truncated by psi."""
        w = self.mapping_network(z)
        ws = self._truncate(w, psi).unsqueeze(1).expand(-1, self.num_ws, -1)
        if fine is None or fine == psi:
            return ws
        layers = self.layer_groups["fine"]
        fine_ws = self._truncate(w, fine).unsqueeze(1).expand_as(ws[:, layers])
        return torch.cat([ws[:, : layers.start], fine_ws], 1)

    def _truncate(self, w: Tensor, psi: float) -> Tensor:
        """Move w `[N, w_dim]` towards the average one."""
        return w if psi == 1.0 else torch.lerp(self.w_avg.to(w.dtype), w, psi)

    def synthesis(self, ws: Tensor) -> Tensor:
        """Draw pictures `[N, C, H, W]` from ws `[N, num_ws, w_dim]`, coarse layers first."""
        const = self.const.expand(ws.shape[0], -1, -1, -1)
        x = const.contiguous(memory_format=torch.channels_last)
        rgb: Tensor | None = None
        used = 0
        for block in self.blocks.values():
            count = 1 if block.conv0 is None else 2
            x, rgb = block(x, rgb, ws[:, used : used + count])
            used += count
        assert rgb is not None  # there is a block
        return rgb

    def freeze(self) -> Self:
        """Make this generator one that only draws: for good, and faster for it; return it.

        What depends on the weights alone is computed now, so later changes of weights would go
        half unseen; and weights take the layout that pictures have, which spares each
        convolution a copy of them.
        """
        super().freeze().to(memory_format=torch.channels_last)
        for layer in self.modules():
            if isinstance(layer, StyledConv):
                layer.squares = layer.sum_squares()
            elif isinstance(layer, EqualLinear):
                layer.scaled = layer.scale()
        return self

    @torch.no_grad()
    def update_w_avg(self, samples: int = 8192) -> None:
        """Set `w_avg` to the mean w of `samples` fixed latents.

        Computing the mean when it is needed follows the averaged weights exactly and is the same
        for any number of processes, which a running mean over training batches is not.
        """
        z = np.random.RandomState(0).standard_normal((samples, self.z_dim)).astype(np.float32)
        w = self.mapping_network(torch.from_numpy(z).to(self.w_avg.device))
        self.w_avg.copy_(w.mean(0))


class DiscriminatorBlock(nn.Module):
    """Residual block that halves the picture."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv0 = EqualConv2d(in_channels, in_channels, 3, act=True)
        self.conv1 = EqualConv2d(in_channels, out_channels, 3, act=True)
        self.skip = EqualConv2d(in_channels, out_channels, 1, act=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[N, in, H, W]` to `[N, out, H/2, W/2]`."""
        # Halving before the second convolution costs a quarter of halving after it.
        skip = self.skip(F.avg_pool2d(x, 2))
        x = self.conv1(F.avg_pool2d(self.conv0(x), 2))
        halved: Tensor = (x + skip) * math.sqrt(0.5)
        return halved


class Discriminator(KaoganModel):
    """Residual critic without normalisation: a picture → how real it looks.

    Args:
        resolution, channels, img_channels: as `Generator` takes them, smallest level first.
        group_size: pictures that minibatch statistics look at together (Karras et al. 2018,
            arXiv 1710.10196); groups are consecutive, so a batch split over processes keeps them.
        patch: side in px of the squares that the first layer takes in as one place: 1, 2 or 4.
    Raises:
        ModelError: sizes that are out of range or do not fit together.
    """

    def __init__(
        self,
        resolution: int = 64,
        channels: Sequence[int] = (192, 192, 96, 48, 32),
        img_channels: int = 3,
        group_size: int = 4,
        patch: int = 1,
    ) -> None:
        super().__init__()
        widths = _check_sizes(resolution, channels, img_channels, patch, group_size=group_size)
        self.resolution, self.img_channels, self.group_size = resolution, img_channels, group_size
        self.patch = patch
        base = resolution // patch // 2 ** (len(widths) - 1)
        self.from_rgb = EqualConv2d(img_channels * patch**2, widths[-1], 1, act=True)
        self.blocks = nn.ModuleDict(
            {
                str(base * 2**i): DiscriminatorBlock(widths[i], widths[i - 1])
                for i in range(len(widths) - 1, 0, -1)
            }
        )
        self.conv = EqualConv2d(widths[0] + 1, widths[0], 3, act=True)
        self.hidden = EqualLinear(widths[0] * base**2, widths[0], gain=LRELU_GAIN)
        self.out = EqualLinear(widths[0], 1)

    def features(self, images: Tensor) -> list[Tensor]:
        """Return what the first layer and then each block see in images `[N, C, H, W]` in [-1, 1].

        Each is `[N, channels, H / patch / 2^i, W / patch / 2^i]`, i from 0.
        """
        images = F.pixel_unshuffle(images, self.patch)
        seen = [self.from_rgb(images.contiguous(memory_format=torch.channels_last))]
        for block in self.blocks.values():
            seen.append(block(seen[-1]))
        return seen

    def forward(self, images: Tensor) -> Tensor:
        """Map images `[N, C, H, W]` in [-1, 1] to logits `[N]`; N a multiple of group_size."""
        x = self.features(images)[-1]
        x = self.conv(self._append_deviation(x))
        x = activate(self.hidden(x.flatten(1)))
        logits: Tensor = self.out(x)
        return logits.squeeze(1)

    @torch.no_grad()
    def most_real(self, images: Tensor, n: int) -> Tensor:
        """Find in each n images in a row the one that looks most real.

        The n are judged as one group of the minibatch statistics, so that a choice depends on
        nothing else that is drawn.

        Args:
            images: `[N, C, H, W]` in [-1, 1]; the last group may be short.
            n: images of a group, at least 1.
        Returns:
            positions of the chosen ones in `images`, `[ceil(N / n)]`.
        """
        best = [int(self(group).argmax()) for group in torch.split(images, n)]
        return torch.tensor([i * n + place for i, place in enumerate(best)], dtype=torch.long)

    def _append_deviation(self, x: Tensor) -> Tensor:
        """Append one channel: the mean standard deviation over each group of pictures."""
        n, c, h, w = x.shape
        group = math.gcd(n, self.group_size)
        y = x.float().reshape(n // group, group, c, h, w)
        y = (y.var(1, unbiased=False) + 1e-8).sqrt().mean((1, 2, 3))  # [n / group]
        y = y.repeat_interleave(group).to(x.dtype).view(n, 1, 1, 1).expand(n, 1, h, w)
        return torch.cat([x, y], 1).contiguous(memory_format=torch.channels_last)


# ------------------------------------------------------------------------------------------
# The enlarger


class Enlarger(KaoganModel, pipeline_tag="image-to-image"):
    """A drawn face → the same face four times as large, with the lines of an ink drawing.

    The layers are SRVGGNetCompact's of Real-ESRGAN (Wang et al. 2021, arXiv 2107.10833): all work
    is done at the small size, and what the last layer adds to the nearest-neighbour enlargement
    becomes pixels by a sub-pixel shuffle (Shi et al. 2016, arXiv 1609.05158).

    Args:
        width: channels of the hidden layers, 8 … 128.
        layers: hidden 3×3 convolutions, 1 … 32.
    Raises:
        ModelError: sizes that are out of range, or more than MAX_ENLARGER parameters.
    """

    scale = 4

    def __init__(self, width: int = 48, layers: int = 6) -> None:
        super().__init__()
        for name, value, low, high in (("width", width, 8, 128), ("layers", layers, 1, 32)):
            if type(value) is not int or not low <= value <= high:
                raise ModelError(
                    f"{name} of an enlarger is a whole number from {low} to {high}, "
                    f"not {value!r:.40}"
                )
        body: list[nn.Module] = [nn.Conv2d(3, width, 3, padding=1), nn.PReLU(width)]
        for _ in range(layers):
            body += [nn.Conv2d(width, width, 3, padding=1), nn.PReLU(width)]
        body.append(nn.Conv2d(width, 3 * self.scale**2, 3, padding=1))
        self.body = nn.Sequential(*body)
        if (count := count_parameters(self)) > MAX_ENLARGER:
            raise ModelError(
                f"an enlarger has at most {MAX_ENLARGER:,} parameters, not {count:,}: "
                f"take fewer layers or a smaller width"
            )

    def forward(self, images: Tensor) -> Tensor:
        """Map images `[N, 3, H, W]` in [-1, 1] to `[N, 3, 4H, 4W]`, about [-1, 1], not clamped."""
        detail = self.body(images.contiguous(memory_format=torch.channels_last))
        detail = F.pixel_shuffle(detail.contiguous(), self.scale)
        return detail + F.interpolate(images, scale_factor=self.scale, mode="nearest")

    def freeze(self) -> Self:
        """Make this network one that only draws, with weights in the layout of its pictures."""
        super().freeze().to(memory_format=torch.channels_last)
        return self

    @torch.inference_mode()
    def enlarge(self, images: Tensor) -> Tensor:
        """Map uint8 `[N, C, H, W]`, C 1 or 3, to uint8 `[N, C, 4H, 4W]`.

        Grey pictures are enlarged as three equal channels, whose mean is taken.
        """
        grey = images.shape[1] == 1
        large = self(dequantise(images.expand(-1, 3, -1, -1)))
        return quantise(large.mean(1, keepdim=True) if grey else large)


# ------------------------------------------------------------------------------------------
# The encoder


class Whitening(nn.Module):
    """w as v, whose numbers have unit variance over seeds: |v|² tells how unlikely a w is.

    Truncation by psi scales v by psi.

    Args:
        w_dim: length of w.
    """

    mean: Tensor
    scales: Tensor
    axes: Tensor

    def __init__(self, w_dim: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(w_dim))
        self.register_buffer("scales", torch.ones(w_dim))  # standard deviations along …
        self.register_buffer("axes", torch.eye(w_dim))  # … these columns

    @classmethod
    @torch.no_grad()
    def of(cls, G: Generator, samples: int = 8192) -> Self:
        """Measure the covariance of w over the first seeds of a generator."""
        whitening = cls(G.w_dim)
        w = G.mapping_network(latents_from_seeds(range(samples), G.z_dim)).double()
        values, axes = torch.linalg.eigh(torch.cov(w.T))
        whitening.mean.copy_(G.w_avg)
        whitening.scales.copy_(values.clamp(min=1e-4 * values.max()).sqrt())
        whitening.axes.copy_(axes)
        return whitening

    def to_w(self, v: Tensor) -> Tensor:
        """Map v `[..., w_dim]` to w of the same shape."""
        return self.mean + v * self.scales @ self.axes.T

    def to_v(self, w: Tensor) -> Tensor:
        """Map w `[..., w_dim]` to v of the same shape."""
        return (w - self.mean) @ self.axes / self.scales


class ResidualBlock(nn.Module):
    """Two 3×3 convolutions added to their input (He et al. 2016, arXiv 1603.05027)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map `[N, channels, H, W]` to the same shape."""
        change: Tensor = self.layers(x)
        return x + change


def make_trunk(widths: Sequence[int]) -> nn.Sequential:
    """Return a network from `[N, 3, S, S]` to `[N, widths[-1], S / 2**len(widths), …]`."""
    first, *rest = widths
    layers: list[nn.Module] = [
        nn.Conv2d(3, first, 4, 2, 1, bias=False),
        nn.BatchNorm2d(first),
        nn.ReLU(),
        nn.Conv2d(first, first, 3, 1, 1),
    ]
    for narrow, wide in zip(widths, rest, strict=False):
        layers += [nn.Conv2d(narrow, wide, 4, 2, 1), ResidualBlock(wide)]
    return nn.Sequential(*layers, nn.BatchNorm2d(widths[-1]), nn.ReLU())


def trunk_maps(trunk: nn.Sequential, x: Tensor) -> list[Tensor]:
    """Map x `[N, 3, S, S]` to the maps of a trunk of four widths, S / 2 to S / 16 px."""
    x, maps = x.contiguous(memory_format=torch.channels_last), []
    for index, layer in enumerate(trunk):
        x = layer(x)
        if index in TRUNK_ENDS:
            maps.append(x)
    return maps


class Encoder(KaoganModel, pipeline_tag="image-feature-extraction"):
    """A picture → one w for each layer of one generator, whose face is like the picture.

    Two trunks see all of the picture at 64 px and its middle, eyes and mouth, at 128 px. Their last
    maps and the picture at 16 px go through a linear map of low rank, and through a hidden layer
    whose output is added.

    Args:
        num_ws, w_dim: the generator's.
        widths: channels of the maps of 32, 16, 8 and 4 px.
        rank: of the linear map.
        hidden: numbers of the hidden layer.
        generator: SHA-256 of the weights of the generator that it was fitted to, 64 hex digits.
    Raises:
        ModelError: sizes that are out of range.
    """

    SIZE = 128  # px of the pictures it looks at, whatever their own size
    MIDDLE = (slice(40, 104), slice(32, 96))  # rows and columns of the second view
    COLOURS = 16  # px of the picture that the head sees itself
    shift: Tensor
    scale: Tensor

    def __init__(
        self,
        num_ws: int = 11,
        w_dim: int = 256,
        widths: Sequence[int] = (16, 32, 64, 96),
        rank: int = 384,
        hidden: int = 128,
        generator: str = "",
    ) -> None:
        super().__init__()
        for name, value in {
            "num_ws": num_ws, "w_dim": w_dim, "rank": rank, "hidden": hidden
        }.items():  # fmt: skip
            if type(value) is not int or not 1 <= value <= MAX_LATENT:
                raise ModelError(
                    f"{name} must be a whole number from 1 to {MAX_LATENT}, not {value!r:.40}"
                )
        sizes = widths if isinstance(widths, list | tuple) else ()
        if len(sizes) != 4 or not all(type(c) is int and 1 <= c <= MAX_CHANNELS for c in sizes):
            raise ModelError(
                f"widths must be 4 whole numbers from 1 to {MAX_CHANNELS}, not {widths!r:.80}"
            )
        if not isinstance(generator, str) or not re.fullmatch("[0-9a-f]{64}|", generator):
            raise ModelError("generator of an encoder is a SHA-256 of 64 hex digits")
        self.num_ws, self.w_dim, self.generator = num_ws, w_dim, generator
        self.whole, self.middle = make_trunk(sizes), make_trunk(sizes)
        features = 2 * sizes[-1] * 16 + 3 * self.COLOURS**2
        self.register_buffer("shift", torch.zeros(features))
        self.register_buffer("scale", torch.ones(features))
        self.down = nn.Linear(features, rank, bias=False)
        self.up = nn.Linear(rank, num_ws * w_dim)
        self.hidden = nn.Sequential(
            nn.Linear(features, hidden), nn.ReLU(), nn.Linear(hidden, num_ws * w_dim, bias=False)
        )
        nn.init.zeros_(self.hidden[2].get_parameter("weight"))
        self.whitening = Whitening(w_dim)

    def prepare(self, images: Tensor) -> Tensor:
        """Bring images `[N, C, H, W]` to three channels and SIZE px."""
        x, size = images.expand(-1, 3, -1, -1), (self.SIZE, self.SIZE)
        if x.shape[2:] == size:
            return x
        return F.interpolate(x, size, mode="bicubic", align_corners=False, antialias=True)

    def maps(self, images: Tensor) -> list[Tensor]:
        """Map images `[N, C, H, W]` in [-1, 1] to the maps of both trunks, 32 to 4 px."""
        x = self.prepare(images)
        rows, columns = self.MIDDLE
        whole = trunk_maps(self.whole, F.avg_pool2d(x, 2))
        return whole + trunk_maps(self.middle, x[:, :, rows, columns])

    def features(self, images: Tensor) -> Tensor:
        """Map images `[N, C, H, W]` in [-1, 1] to what the head sees, `[N, features]`."""
        x = self.prepare(images)
        maps = self.maps(x)
        ends = [maps[3], maps[7], F.adaptive_avg_pool2d(x, self.COLOURS)]
        return torch.cat([m.flatten(1) for m in ends], 1)

    def encode(self, images: Tensor) -> Tensor:
        """Map images `[N, C, H, W]` in [-1, 1] to v `[N, num_ws, w_dim]`, as `Whitening` has it."""
        x = (self.features(images) - self.shift) / self.scale
        v: Tensor = self.up(self.down(x)) + self.hidden(x)
        return torch.unflatten(v, 1, (self.num_ws, self.w_dim))

    def forward(self, images: Tensor) -> Tensor:
        """Map images `[N, C, H, W]` in [-1, 1] to ws `[N, num_ws, w_dim]`."""
        return self.whitening.to_w(self.encode(images))


# ------------------------------------------------------------------------------------------
# The article's networks


def _check_z_dim(z_dim: int) -> int:
    """Validate the length of a latent, which may come from a stranger's config.json."""
    if type(z_dim) is not int or not 1 <= z_dim <= MAX_LATENT:
        raise ModelError(f"z_dim must be a whole number from 1 to {MAX_LATENT}, not {z_dim!r:.40}")
    return z_dim


class ArticleGenerator(
    KaoganModel,
    pipeline_tag="unconditional-image-generation",
):
    """The tutorial's "dimension conversion" generator for 96×96 RGB, layer for layer.

    It has no w: `psi` scales z, which draws faces nearer to that of z = 0.

    Args:
        z_dim: length of the latent.
    """

    resolution, img_channels = 96, 3

    def __init__(self, z_dim: int = 100) -> None:
        super().__init__()
        self.z_dim = _check_z_dim(z_dim)
        self.project = nn.Linear(z_dim, 15 * 192 * 192)
        self.layers = nn.Sequential(
            nn.BatchNorm2d(15),
            nn.ReLU(inplace=True),
            nn.Conv2d(15, 50, 3, padding=1),
            nn.BatchNorm2d(50),
            nn.ReLU(inplace=True),
            nn.Conv2d(50, 25, 3, padding=1),
            nn.BatchNorm2d(25),
            nn.ReLU(inplace=True),
            nn.Conv2d(25, 3, 2, stride=2),
            nn.Tanh(),
        )

    def forward(self, z: Tensor, psi: float = 1.0) -> Tensor:
        """Draw pictures `[N, 3, 96, 96]` in [-1, 1] from z `[N, z_dim]`, scaled by psi."""
        images: Tensor = self.layers(self.project(z * psi).view(-1, 15, 192, 192))
        return images


class ArticleDeconvGenerator(
    KaoganModel,
    pipeline_tag="unconditional-image-generation",
):
    """The route that the tutorial names and leaves out: transposed convolutions, 6 → 96 px.

    Layers and first weights follow DCGAN (Radford et al. 2016, arXiv 1511.06434); the widths give
    it the capacity of `ArticleDiscriminator`, 16 million parameters. `psi` scales z.

    Args:
        z_dim: length of the latent.
    """

    resolution, img_channels = 96, 3
    WIDTHS = (1152, 512, 256, 128)  # at 6, 12, 24 and 48 px

    def __init__(self, z_dim: int = 100) -> None:
        super().__init__()
        self.z_dim = _check_z_dim(z_dim)
        layers: list[nn.Module] = []
        for index, (narrow, wide) in enumerate(itertools.pairwise((z_dim, *self.WIDTHS))):
            kernel, stride, padding = (4, 2, 1) if index else (6, 1, 0)
            layers += [
                nn.ConvTranspose2d(narrow, wide, kernel, stride, padding, bias=False),
                nn.BatchNorm2d(wide),
                nn.ReLU(inplace=True),
            ]
        last = nn.ConvTranspose2d(self.WIDTHS[-1], self.img_channels, 4, 2, 1)
        self.layers = nn.Sequential(*layers, last, nn.Tanh())
        for layer in self.layers:
            if isinstance(layer, nn.ConvTranspose2d):
                nn.init.normal_(layer.weight, std=0.02)

    def forward(self, z: Tensor, psi: float = 1.0) -> Tensor:
        """Draw pictures `[N, 3, 96, 96]` in [-1, 1] from z `[N, z_dim]`, scaled by psi."""
        images: Tensor = self.layers((z * psi)[:, :, None, None])
        return images


class ArticleDiscriminator(KaoganModel):
    """The tutorial's discriminator for 96×96 RGB, layer for layer.

    `forward` gives the number before the last sigmoid, for losses that are finite where the
    sigmoid rounds to 0 or 1; `probability` is the tutorial's own output.
    """

    resolution, img_channels = 96, 3

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 32, 5, padding=2),
            nn.LeakyReLU(LRELU_SLOPE, inplace=True),
            nn.AvgPool2d(2, stride=2),
            nn.Conv2d(32, 64, 5, padding=2),
            nn.LeakyReLU(LRELU_SLOPE, inplace=True),
            nn.AvgPool2d(2, stride=3),
        )
        self.classifier = nn.Sequential(
            nn.Linear(64 * 16 * 16, 1024),
            nn.LeakyReLU(LRELU_SLOPE, inplace=True),
            nn.Linear(1024, 1),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Map images `[N, 3, 96, 96]` in [-1, 1] to logits `[N]`."""
        logits: Tensor = self.classifier(self.features(images).flatten(1))
        return logits.squeeze(1)

    def probability(self, images: Tensor) -> Tensor:
        """Map images `[N, 3, 96, 96]` to the probability `[N]` that each is real."""
        return torch.sigmoid(self(images))


class DenseGenerator(
    KaoganModel,
    pipeline_tag="unconditional-image-generation",
):
    """The dense generator for 28×28 grey pictures in a comment below the tutorial.

    Its own latent is uniform in [-1, 1]. Seeds give normal numbers everywhere in this project, so
    it first takes each through the normal distribution function, u = 2Φ(z) - 1 = erf(z / √2),
    which makes exactly that. `psi` scales u; there is no w.

    Args:
        z_dim: length of the latent.
    """

    resolution, img_channels = 28, 1

    def __init__(self, z_dim: int = 100) -> None:
        super().__init__()
        self.z_dim = _check_z_dim(z_dim)
        self.layers = nn.Sequential(
            nn.Linear(z_dim, 128),
            nn.LeakyReLU(0.01, inplace=True),
            nn.Linear(128, 128),
            nn.LeakyReLU(0.01, inplace=True),
            nn.Linear(128, 28 * 28),
            nn.Tanh(),
        )

    def forward(self, z: Tensor, psi: float = 1.0) -> Tensor:
        """Draw pictures `[N, 1, 28, 28]` in [-1, 1] from z `[N, z_dim]`, standard normal."""
        images: Tensor = self.layers(torch.erf(z * math.sqrt(0.5)) * psi)
        return images.view(-1, 1, 28, 28)


class DenseDiscriminator(KaoganModel):
    """The dense discriminator for 28×28 grey pictures in a comment below the tutorial."""

    resolution, img_channels = 28, 1

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(28 * 28, 128),
            nn.LeakyReLU(0.01, inplace=True),
            nn.Linear(128, 128),
            nn.LeakyReLU(0.01, inplace=True),
            nn.Linear(128, 1),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Map images `[N, 1, 28, 28]` in [-1, 1] to logits `[N]`."""
        logits: Tensor = self.layers(images.flatten(1))
        return logits.squeeze(1)


NETWORKS: dict[str, type[KaoganModel]] = {
    "Generator": Generator,
    "Discriminator": Discriminator,
    "Enlarger": Enlarger,
    "Encoder": Encoder,
    "ArticleGenerator": ArticleGenerator,
    "ArticleDeconvGenerator": ArticleDeconvGenerator,
    "ArticleDiscriminator": ArticleDiscriminator,
    "DenseGenerator": DenseGenerator,
    "DenseDiscriminator": DenseDiscriminator,
}


def quantise(images: Tensor) -> Tensor:
    """Round images in [-1, 1] (beyond: clamped) to uint8 of the same shape, 0 … 255."""
    return ((images.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def dequantise(pixels: Tensor) -> Tensor:
    """Turn uint8 pixels, 0 … 255, into float32 images in [-1, 1] of the same shape."""
    return pixels.float() / 127.5 - 1


def keep_freed_memory() -> None:
    """Let this process keep large freed blocks instead of giving them back to the system.

    glibc returns each block of some megabytes at once, and the next layer pays for fresh, zeroed
    pages; keeping them doubled the speed of a forward pass of 32 faces. Elsewhere a no-op.
    """
    if not sys.platform.startswith("linux"):
        return
    m_trim_threshold, m_mmap_threshold = -1, -3  # of mallopt(3)
    with contextlib.suppress(AttributeError, OSError):  # another C library
        libc = ctypes.CDLL(None)
        libc.mallopt(m_mmap_threshold, 1 << 30)
        libc.mallopt(m_trim_threshold, (1 << 31) - 1)


def count_parameters(network: nn.Module) -> int:
    """Return the number of learned numbers in a network."""
    return sum(p.numel() for p in network.parameters())
