"""Networks that see tags in faces, `[N, C, H, W]` in [-1, 1] → logits `[N, L]`.

reader = open_reader("assets/attributes/judge")
logits = reader(images)                     # [N, len(reader.tags)], above 0: the tag is there
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model import NETWORKS, Encoder, KaoganModel, ModelError, load_network, make_trunk, trunk_maps
from training.metrics import EfficientNetLite0

READERS = Path(__file__).resolve().parent.parent / "assets" / "attributes"  # builder, judge
SIZE = 64  # px that the judge looks at, and the builder twice: all of a picture, and its middle
MAX_TAGS = 1000
TURN, SCALE, SHIFT = 0.07, 0.05, 0.05  # of the builder's pictures: radians, share, half widths
CONTRAST, BRIGHTNESS = 0.1, 0.04  # likewise, of pictures in [-1, 1]; standard deviations all


class TagReader(KaoganModel):
    """A network that sees tags in faces.

    `threshold` `[L]` is taken off the logits, so that 0 is where as many pictures of the part kept
    apart are called positive as are labelled so. `typical` `[2, L]` holds the median logits of its
    pictures without and with each tag.

    Args:
        tags: names of the logits.
    Raises:
        ModelError: no list of at least one text.
    """

    size = SIZE  # px of the pictures it looks at, whatever their own size
    balance = 1.0  # exponent of a tag's negatives over its positives, the weight of the latter
    smoothing = 0.0  # of the labels: what a 0 is taken for, and 1 less than that a 1
    threshold: Tensor
    typical: Tensor

    def __init__(self, tags: Sequence[str]) -> None:
        super().__init__()
        fits = isinstance(tags, list | tuple) and all(isinstance(t, str) and t for t in tags)
        if not fits or not 1 <= len(tags) <= MAX_TAGS:
            raise ModelError(f"tags must be a list of 1 to {MAX_TAGS} names, not {tags!r:.80}")
        self.tags = tuple(tags)
        self.register_buffer("threshold", torch.zeros(len(tags)))
        self.register_buffer("typical", torch.zeros(2, len(tags)))

    def prepare(self, images: Tensor) -> Tensor:
        """Turn images `[N, C, H, W]` in [-1, 1] into what `score` takes, `[N, …, W']`."""
        raise NotImplementedError

    def score(self, inputs: Tensor) -> Tensor:
        """Map what `prepare` returned to logits `[N, L]`, thresholds not yet taken off."""
        raise NotImplementedError

    def mirror(self, inputs: Tensor) -> Tensor:
        """Turn what `prepare` returned into what it would about return for mirrored pictures."""
        return inputs.flip(3)

    def augment(self, inputs: Tensor) -> Tensor:
        """Change what `prepare` returned in ways that leave the tags as they are, at random."""
        return inputs

    def see(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Map images `[N, C, H, W]` in [-1, 1] to what tags are read from, `[N, …]`, and logits."""
        inputs = self.prepare(images)
        return inputs, self.score(inputs) - self.threshold

    def forward(self, images: Tensor) -> Tensor:
        """Map images `[N, C, H, W]` in [-1, 1] to logits `[N, L]`, above 0 where a tag is seen."""
        return self.score(self.prepare(images)) - self.threshold


def resize(images: Tensor, size: int) -> Tensor:
    """Repeat grey to three channels, clamp to [-1, 1] and bring pictures to `size` px."""
    images = images.expand(-1, 3, -1, -1).clamp(-1, 1)
    if images.shape[2:] == (size, size):
        return images
    return F.interpolate(images, (size, size), mode="bicubic", align_corners=False, antialias=True)


class PixelReader(TagReader):
    """A residual network of 0.4 M parameters, learned from pixels alone.

    Its last map is read place by place: the faces are aligned, so a cell means the same part.
    """

    balance = 0.5
    smoothing = 0.02
    WIDTHS = (16, 32, 64, 96)  # of the maps of 32, 16, 8 and 4 px
    CELLS = (SIZE // 2 ** len(WIDTHS)) ** 2  # of the last one

    def __init__(self, tags: Sequence[str] = ("smile",)) -> None:
        super().__init__(tags)
        head = (nn.Flatten(), nn.Dropout(0.3), nn.Linear(self.WIDTHS[-1] * self.CELLS, len(tags)))
        self.layers = nn.Sequential(*make_trunk(self.WIDTHS), *head)

    def prepare(self, images: Tensor) -> Tensor:
        """Turn images into `[N, 3, size, size]`."""
        return resize(images, self.size)

    def augment(self, inputs: Tensor) -> Tensor:
        """Turn, scale, shift, blur and tint pictures a little, and hide a part of some."""
        return hide(tint(blur(shake(inputs))))

    def look(self, inputs: Tensor) -> Tensor:
        """Map what `prepare` returned to the last maps, `[N, …, 4, 4]`."""
        return self.layers[:-3](inputs.contiguous(memory_format=torch.channels_last))

    def tell(self, seen: Tensor) -> Tensor:
        """Map what `look` returned to logits `[N, L]`, thresholds not yet taken off."""
        return self.layers[-3:](seen)

    def score(self, inputs: Tensor) -> Tensor:
        """Map what `prepare` returned to logits `[N, L]`."""
        return self.tell(self.look(inputs))

    def see(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Map images `[N, C, H, W]` in [-1, 1] to the last maps `[N, …, 4, 4]` and logits."""
        seen = self.look(self.prepare(images))
        return seen, self.tell(seen) - self.threshold


class TwoViewReader(PixelReader):
    """Two such networks: all of the picture at 64 px, and its middle as it is at 128; the builder.

    The second sees the 64×64 px around eyes and mouth, since a mouth is 3 px wide in the first.
    """

    size = 2 * SIZE

    def __init__(self, tags: Sequence[str] = ("smile",)) -> None:
        super().__init__(tags)
        self.layers, self.middle = make_trunk(self.WIDTHS), make_trunk(self.WIDTHS)
        features = 2 * self.WIDTHS[-1] * self.CELLS
        self.head = nn.Sequential(nn.Flatten(), nn.Dropout(0.3), nn.Linear(features, len(tags)))

    def look(self, inputs: Tensor) -> Tensor:
        """Map `[N, 3, 128, 128]` to the last maps `[N, 192, 4, 4]` of both networks."""
        return torch.cat([maps[-1] for maps in self.maps_of(inputs)], 1)

    def maps(self, images: Tensor) -> list[Tensor]:
        """Map images `[N, C, H, W]` in [-1, 1] to the maps of both networks, 32 to 4 px."""
        whole, middle = self.maps_of(self.prepare(images))
        return whole + middle

    def maps_of(self, inputs: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Map `[N, 3, 128, 128]` to the maps of each network."""
        rows, columns = Encoder.MIDDLE  # which starts from these networks
        whole, middle = F.avg_pool2d(inputs, 2), inputs[:, :, rows, columns]
        return trunk_maps(self.layers, whole), trunk_maps(self.middle, middle)

    def tell(self, seen: Tensor) -> Tensor:
        """Map what `look` returned to logits `[N, L]`, thresholds not yet taken off."""
        return self.head(seen)


class FeatureReader(TagReader):
    """A small head on the frozen maps of an ImageNet network; the judge.

    EfficientNet-Lite0's own weights come from its package and are not stored again.
    """

    extractor: EfficientNetLite0 | None

    MAPS = 3  # of 24, 40 and 112 channels, 16, 8 and 4 px
    SIDE = 8  # px that all maps are brought to; the finest one's 2×2 blocks become channels
    CHANNELS = 4 * 24 + 40 + 112
    WIDTH = 96

    def __init__(self, tags: Sequence[str] = ("smile",)) -> None:
        super().__init__(tags)
        self.head = nn.Sequential(
            nn.BatchNorm2d(self.CHANNELS),
            nn.Dropout2d(0.1),
            nn.Conv2d(self.CHANNELS, self.WIDTH, 1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Dropout(0.5),
            nn.Linear(self.WIDTH * self.SIDE**2, len(tags)),
        )
        self.__dict__["extractor"] = None  # past nn.Module: it is no part of the stored weights

    def prepare(self, images: Tensor) -> Tensor:
        """Turn images into feature maps `[N, 248, 8, 8]`."""
        extractor = self.extractor
        if extractor is None:
            extractor = EfficientNetLite0(None).to(self.threshold.device)
            self.__dict__["extractor"] = extractor
        return self.gather(extractor.feature_maps(resize(images, SIZE)))

    def gather(self, maps: Sequence[Tensor]) -> Tensor:
        """Bring the extractor's feature maps to one size, `[N, 248, 8, 8]`."""
        fine, middle, coarse = maps[: self.MAPS]
        coarse = F.interpolate(coarse, scale_factor=2, mode="nearest")
        return torch.cat([F.pixel_unshuffle(fine, 2), middle, coarse], 1)

    def mirror(self, inputs: Tensor) -> Tensor:
        """Mirror maps `[N, 248, 8, 8]`, the finest one within its 2×2 blocks too."""
        fine = F.pixel_shuffle(inputs[:, : 4 * 24], 2).flip(3)
        return torch.cat([F.pixel_unshuffle(fine, 2), inputs[:, 4 * 24 :].flip(3)], 1)

    def score(self, inputs: Tensor) -> Tensor:
        """Map `[N, 248, 8, 8]` to logits `[N, L]`."""
        return self.head(inputs)


# So that config.json may name them, whoever loads it.
KINDS: dict[str, type[TagReader]] = {
    kind.__name__: kind for kind in (PixelReader, TwoViewReader, FeatureReader)
}
NETWORKS.update(KINDS)


def open_reader(folder: str | Path, device: str | torch.device = "cpu") -> TagReader:
    """Load a reader, or raise ModelError."""
    reader = load_network(folder)
    if not isinstance(reader, TagReader):
        raise ModelError(f"{folder} holds a {type(reader).__name__}, which reads no tags")
    return reader.to(device).freeze()


def open_builder() -> TwoViewReader:
    """Load the bundled reader whose two trunks the encoder starts from, or raise ModelError."""
    reader = open_reader(READERS / "builder")
    assert isinstance(reader, TwoViewReader)
    return reader


def shake(x: Tensor) -> Tensor:
    """Turn, scale and shift each of a batch `[N, C, H, W]` by a little, repeating the edge."""
    turn, scale = TURN * torch.randn(len(x)), 1 + SCALE * torch.randn(len(x))
    rows = torch.stack([scale * turn.cos(), scale * turn.sin(), SHIFT * torch.randn(len(x))], 1)
    more = torch.stack([-rows[:, 1], rows[:, 0], SHIFT * torch.randn(len(x))], 1)
    turned = torch.stack([rows, more], 1).to(x.device)
    grid = F.affine_grid(turned, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, padding_mode="border", align_corners=False)


def blur(x: Tensor) -> Tensor:
    """Mix each of a batch `[N, C, H, W]` with what is left of it at half the size."""
    soft = F.interpolate(F.avg_pool2d(x, 2), scale_factor=2, mode="bilinear", align_corners=False)
    return torch.lerp(x, soft, torch.rand(len(x), 1, 1, 1, device=x.device))


def tint(x: Tensor) -> Tensor:
    """Change contrast and, by channel, brightness of each of a batch `[N, C, H, W]`."""
    contrast = 1 + CONTRAST * torch.randn(len(x), 1, 1, 1, device=x.device)
    return x * contrast + BRIGHTNESS * torch.randn(len(x), x.shape[1], 1, 1, device=x.device)


def hide(x: Tensor) -> Tensor:
    """Lay a grey square a quarter as wide on every other of a batch `[N, C, H, W]`, in place."""
    side, height = x.shape[2] // 4, x.shape[2]
    for face, (top, left) in zip(x[::2], torch.randint(height - side, (len(x), 2)), strict=False):
        face[:, top : top + side, left : left + side] = torch.rand(1).item() * 2 - 1
    return x
