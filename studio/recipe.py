"""A face's recipe: what must be kept to draw the same face again.

Recipe ⇄ the query of an address (`?seed=42&psi=0.55&fine=0.9&mix=77@middle&rev=…`), ⇄ the text
inside a PNG, ⇄ JSON. All three hold the same names and the same short texts:

    psi=0.55                  truncation of all layers
    fine=0.9                  truncation of the fine layers, where it is another one
    mix=77@middle,9@fine      layers taken over from other seeds
    edit=smile:1.5,hair:3fa34d   sliders, in their units, and colours
    vary=5:0.3                a step of radius 0.3 in w, in the direction that seed 5 names
    vary=5:0.3,8:1@fine,9:1@16   likewise, and steps in some layers: of a group, of the 16-px block
    between=77:0.5            half of the way to seed 77
    w=…                       a latent that no seed has, as `studio.latents.encode_ws` writes it
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Self
from urllib.parse import urlencode

import numpy as np

from model import SEED_MAX, check_seed

# Truncation where a recipe names none, chosen by counting faces without a visible fault: low for
# the layers that draw shapes, high for those that draw colours, which hardly ever fail.
DEFAULT_PSI, DEFAULT_FINE = 0.55, 0.9
PSI_LIMIT = 2.0  # |psi| beyond this leaves what a generator can draw
MAX_SEEDS = 1_000_000  # seeds that one list may name
SEED_RULE = f"a seed is a whole number from 0 to {SEED_MAX}"
GROUPS = ("coarse", "middle", "fine")
MAX_MIXES = 8
MAX_STEPS = 16  # one for all layers, three groups and every block that there can be
MAX_EDITS = 48  # all sliders of a directions file at once
MAX_EDIT = 10.0  # units of a slider; a directions file sets narrower ranges
MAX_RADIUS = 2.0
MAX_W_TEXT = 4096  # characters: 3,072 bytes in base64
MAX_TEXT = 1024  # characters of any other part, so that an address stays one
MAX_JSON = 8192  # bytes
MAX_PNG = 10_000_000  # bytes
PNG_HEAD = 256 * 1024  # bytes, of which the text before the pixels needs a few thousand
NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
BLOCK = re.compile(r"[1-9][0-9]{0,3}")
COLOUR = re.compile(r"#?([0-9a-f]{6})")


class RecipeError(ValueError):
    """A recipe or list of seeds that cannot be drawn; the message is for people."""


# ------------------------------------------------------------------------------------------
# Parts


@dataclass(frozen=True)
class Mix:
    """The layers of one group taken over from another seed: `77@middle`."""

    seed: int
    group: str  # one of GROUPS

    def __post_init__(self) -> None:
        object.__setattr__(self, "seed", whole_seed(self.seed))
        if self.group not in GROUPS:
            raise RecipeError(
                "a mix is SEED@GROUP, such as 77@middle; groups are coarse, middle, fine"
            )

    def __str__(self) -> str:
        return f"{self.seed}@{self.group}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `77@middle`."""
        seed, _, group = text.partition("@")
        return cls(read_seed(seed), group)


@dataclass(frozen=True)
class Edit:
    """One slider's position, or a colour: `smile:1.5`, `hair:3fa34d`.

    Args:
        name: of a slider or, with a colour, of a part of the face.
        value: -10 … 10 in the slider's units, 0 changes nothing; or "#rrggbb".
    """

    name: str
    value: float | str

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or len(self.name) > 40 or not NAME.fullmatch(self.name):
            raise RecipeError("the name of an edit is written in a-z, 0-9 and -, such as long-hair")
        object.__setattr__(self, "value", self._check_value())

    def _check_value(self) -> float | str:
        """Return the value as a float or as "#rrggbb"."""
        if isinstance(self.value, str):
            match = COLOUR.fullmatch(self.value[:8].lower())
            if match is None:
                raise RecipeError(f"a colour for {self.name} is written like #3fa34d")
            return f"#{match[1]}"
        return check_number(self.value, -MAX_EDIT, MAX_EDIT, f"{self.name} takes a number")

    def __str__(self) -> str:
        value = self.value
        return f"{self.name}:{value[1:] if isinstance(value, str) else number_text(value)}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `smile:1.5` or `hair:3fa34d`; also with = for the colon.

        Six hexadecimal digits are a colour: no number of the range is written like that.
        """
        name, _, value = text.replace("=", ":", 1).partition(":")
        if not value:
            raise RecipeError(
                "an edit is NAME:NUMBER or NAME:COLOUR, such as smile:1.5, hair:3fa34d"
            )
        is_colour = value.startswith("#") or COLOUR.fullmatch(value.lower())
        return cls(name, value if is_colour else read_number(value))


@dataclass(frozen=True)
class Vary:
    """A step in w around the face, `5:0.3`, in all layers or in some, `5:0.3@fine`, `5:1@16`.

    Args:
        seed: names the direction.
        radius: 0 … 2; 1 is as far as another face is from the average one.
        layers: "" for all; one of GROUPS; or the px of a block, "4" … "1024".
    """

    seed: int
    radius: float
    layers: str = ""

    def __post_init__(self) -> None:
        if self.layers not in ("", *GROUPS) and not BLOCK.fullmatch(str(self.layers)):
            raise RecipeError(
                "a variation in some layers is SEED:RADIUS@LAYERS, such as 5:0.3@fine; layers are "
                "coarse, middle, fine, or the px of a block, such as 16"
            )
        object.__setattr__(self, "seed", whole_seed(self.seed))
        radius = check_number(self.radius, 0.0, MAX_RADIUS, "the radius of a variation is a number")
        object.__setattr__(self, "radius", radius)

    def __str__(self) -> str:
        where = f"@{self.layers}" if self.layers else ""
        return f"{self.seed}:{number_text(self.radius)}{where}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `5:0.3` or `5:0.3@fine`."""
        pair, at, layers = text.partition("@")
        if at and not layers:
            raise RecipeError(RULES["vary"])
        return cls(*read_pair(pair), layers)

    @property
    def place(self) -> tuple[int, int]:
        """Where it stands among other steps: groups first, then blocks by their px."""
        return (0, GROUPS.index(self.layers)) if self.layers in GROUPS else (1, int(self.layers))


@dataclass(frozen=True)
class Between:
    """A share, 0 … 1, of the way to another seed: `77:0.5`."""

    seed: int
    share: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "seed", whole_seed(self.seed))
        share = check_number(self.share, 0.0, 1.0, "the share of a way is a number")
        object.__setattr__(self, "share", share)

    def __str__(self) -> str:
        return f"{self.seed}:{number_text(self.share)}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `77:0.5`."""
        return cls(*read_pair(text))


NUMBERS = ("seed", "psi", "fine")
RULES = {
    "mix": "a mix is SEED@GROUP, such as 77@middle",
    "edit": "an edit is NAME:NUMBER or NAME:COLOUR, such as smile:1.5",
    "vary": "a variation is SEED:RADIUS, such as 5:0.3",
    "between": "a face between two is SEED:SHARE, such as 77:0.5",
    "w": "a latent is written in base64",
}


# ------------------------------------------------------------------------------------------
# The recipe


@dataclass(frozen=True)
class Recipe:
    """One face of a generator; the only state there is. Equal faces have equal recipes: edits are
    kept in the order of their names, mixes in that of their groups, and what changes nothing is
    left out.

    Args:
        seed: 0 … 2³²−1; a whole float (42.0, as forms and JSON may send it) becomes an int.
        psi: truncation, -2 … 2; 0 is the average face, 1 the untouched one. DEFAULT_PSI when None.
        fine: truncation of the fine layers, likewise. When None it is `psi`, or DEFAULT_FINE
            where `psi` is None too.
        mix: at most 8; of several for one group the last one counts.
        edits: at most 48, and 1,024 characters as text; of several with one name the last one
            counts.
        vary, between: or None. A `vary` of some layers becomes one of `steps`.
        steps: variations in some layers, at most 16; of several in the same the last one counts.
        w: a latent instead of the seed's, which then only names the face; psi acts on it too, so
            a latent that is to stay as it was found goes with psi 1.
    Raises:
        RecipeError: anything else.
    """

    seed: int
    psi: float | None = None
    fine: float | None = None
    mix: tuple[Mix, ...] = ()
    edits: tuple[Edit, ...] = ()
    vary: Vary | None = None
    between: Between | None = None
    w: str = ""
    steps: tuple[Vary, ...] = ()

    def __post_init__(self) -> None:
        mixes = {m.group: m for m in check_parts(self.mix, Mix, "mixes", MAX_MIXES)}
        edits = {e.name: e for e in check_parts(self.edits, Edit, "edits", MAX_EDITS)}
        vary, between = check_part(self.vary, Vary), check_part(self.between, Between)
        psi, fine = check_truncation(self.psi, self.fine)
        steps = {s.layers: s for s in check_parts(self.steps, Vary, "variations", MAX_STEPS)}
        if vary:
            steps[vary.layers] = vary
        vary = steps.pop("", None)
        values = {
            "seed": whole_seed(self.seed),
            "psi": psi,
            "fine": None if fine == psi else fine,
            "mix": tuple(mixes[group] for group in GROUPS if group in mixes),
            "edits": tuple(edits[name] for name in sorted(edits) if edits[name].value != 0),
            "vary": vary if vary and vary.radius else None,
            "between": between if between and between.share else None,
            "w": check_w_text(self.w),
            "steps": tuple(sorted((s for s in steps.values() if s.radius), key=lambda s: s.place)),
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)
        if len(self.texts().get("edit", "")) > MAX_TEXT:
            raise RecipeError(f"the edits of a recipe are at most {MAX_TEXT:,} characters long")

    @property
    def truncation(self) -> tuple[float, float]:
        """Return psi of the coarse and middle layers, and of the fine ones."""
        assert self.psi is not None  # as of __post_init__
        return self.psi, self.psi if self.fine is None else self.fine

    def plain(self, seed: int | None = None) -> Self:
        """Return the face of a seed, this one's when None, at the same truncation."""
        return type(self)(self.seed if seed is None else seed, self.psi, self.fine)

    def texts(self) -> dict[str, str]:
        """Return what addresses, PNGs and JSON share: names and short texts, defaults left out."""
        varied = (*filter(None, [self.vary]), *self.steps)
        lists = {"mix": self.mix, "edit": self.edits, "vary": varied}
        texts = {"seed": str(self.seed), "psi": number_text(self.truncation[0])}
        texts |= {} if self.fine is None else {"fine": number_text(self.fine)}
        texts |= {name: ",".join(map(str, parts)) for name, parts in lists.items() if parts}
        ones = {"between": self.between, "w": self.w}
        return texts | {name: str(part) for name, part in ones.items() if part}

    def query(self, revision: str = "") -> str:
        """Return the query of an address that shows this face: `?seed=42&psi=0.7`.

        A `revision` (first 12 hex digits of the weights' SHA-256) is added as `rev`, so that a
        page with other weights can say that its face is another one.
        """
        texts = self.texts() | ({"rev": revision} if revision else {})
        return "?" + urlencode(texts, safe="@:,")

    def png_text(self, revision: str) -> dict[str, str]:
        """Return the keys and values that a PNG of this face carries as text."""
        return self.texts() | {"revision": revision}

    def to_json(self) -> dict[str, Any]:
        """Return the recipe as a JSON object: seed, psi and fine are numbers, the rest texts."""
        numbers = {"seed": self.seed, "psi": self.psi, "fine": self.fine}
        return self.texts() | {k: v for k, v in numbers.items() if v is not None}

    @classmethod
    def from_json(cls, value: str | bytes | Mapping[str, Any]) -> Self:
        """Read what `to_json` gave, as an object or as its text; strict.

        Raises:
            RecipeError: too long, no JSON object, unknown keys, or anything that a recipe refuses.
                The message repeats nothing of it.
        """
        found = load_json(value) if isinstance(value, str | bytes) else value
        if not isinstance(found, Mapping) or "seed" not in found:
            raise RecipeError("a recipe in JSON is an object with at least a seed")
        if not set(found) <= {*NUMBERS, *RULES}:
            raise RecipeError(f"a recipe in JSON holds only {', '.join((*NUMBERS, *RULES))}")
        parts, faults = {}, []
        for name in RULES:
            parts[name], fits = read_part(name, found.get(name, ""))
            faults += [] if fits else [name]
        if faults:
            raise RecipeError(f"the {faults[0]} of this recipe cannot be used: {RULES[faults[0]]}")
        numbers = {name: found[name] for name in NUMBERS if name in found}
        if any(number is None or isinstance(number, str) for number in numbers.values()):
            raise RecipeError("seed, psi and fine of a recipe in JSON are numbers")
        try:
            return cls(**numbers, **as_fields(parts))
        except RecipeError:
            raise RecipeError(f"a recipe's {SEED_RULE}, its psi and fine from -2 to 2") from None


def as_fields(parts: Mapping[str, Any]) -> dict[str, Any]:
    """Rename parts from an address' words to a recipe's fields."""
    names = {"edit": "edits", "vary": "steps"}  # among these a recipe finds its `vary` itself
    return {names.get(name, name): part for name, part in parts.items()}


def load_json(text: str | bytes) -> Any:
    """Parse a short JSON text or raise RecipeError."""
    if len(text) > MAX_JSON:
        raise RecipeError(f"a recipe in JSON is at most {MAX_JSON:,} bytes long")
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise RecipeError("this is not valid JSON") from None


# ------------------------------------------------------------------------------------------
# Checks


def whole_seed(seed: Any) -> int:
    """Return a seed as an int, whole floats too, or raise RecipeError."""
    if isinstance(seed, float | np.floating) and math.isfinite(seed) and seed == int(seed):
        seed = int(seed)
    try:
        return check_seed(seed)
    except ValueError as error:
        raise RecipeError(str(error)) from None


def check_number(value: Any, low: float, high: float, what: str) -> float:
    """Return a number as a float of low … high, or raise RecipeError with a sentence."""
    number = isinstance(value, int | float | np.integer | np.floating)
    # NaN is not within bounds, and no integer is too long for the comparison.
    if not number or isinstance(value, bool) or not low <= value <= high:
        raise RecipeError(f"{what} from {low:g} to {high:g}, not {value!r:.60}")
    return float(value) + 0.0  # -0.0 would be another text for the same face


def check_psi(psi: Any, low: float = -PSI_LIMIT, high: float = PSI_LIMIT) -> float:
    """Return psi as a float of low … high, or raise RecipeError with a sentence."""
    return check_number(psi, low, high, "psi is a number")


def check_truncation(psi: Any, fine: Any) -> tuple[float, float]:
    """Return psi of the coarse and middle layers and of the fine ones, or raise RecipeError.

    A missing `fine` follows a given psi, so that what names only psi draws as it always did.
    """
    if fine is None:
        fine = DEFAULT_FINE if psi is None else psi
    return check_psi(DEFAULT_PSI if psi is None else psi), check_psi(fine)


def check_parts(parts: Any, kind: type, name: str, most: int) -> tuple[Any, ...]:
    """Return a short list of parts of one kind as a tuple, or raise RecipeError."""
    if not isinstance(parts, list | tuple) or not all(isinstance(part, kind) for part in parts):
        raise RecipeError(f"{name} are a list of {kind.__name__}")
    if len(parts) > most:
        raise RecipeError(f"a recipe holds at most {most} {name}, not {len(parts)}")
    return tuple(parts)


def check_part(part: Any, kind: type) -> Any:
    """Return a part of one kind or None, or raise RecipeError."""
    if part is not None and not isinstance(part, kind):
        raise RecipeError(f"{kind.__name__.lower()} is a {kind.__name__} or None")
    return part


def check_w_text(w: Any) -> str:
    """Return the text of a latent if it can be one, or raise RecipeError."""
    if not isinstance(w, str) or not re.fullmatch(f"[A-Za-z0-9_-]{{0,{MAX_W_TEXT}}}", w):
        raise RecipeError(f"w is at most {MAX_W_TEXT:,} letters, digits, - and _")
    return w


# ------------------------------------------------------------------------------------------
# Texts


def number_text(number: float) -> str:
    """Write a number as shortly as it can be without changing it: `0.7`, `1`."""
    return f"{number:g}" if float(f"{number:g}") == number else repr(number)


def read_number(text: str) -> float:
    """Read a decimal number of at most 40 characters."""
    if not re.fullmatch(r"[+-]?[0-9]*\.?[0-9]*([eE][+-]?[0-9]{1,3})?", text[:41]) or len(text) > 40:
        raise RecipeError("this is no number")
    try:
        return float(text)
    except ValueError:  # such as "" or "."
        raise RecipeError("this is no number") from None


def read_seed(text: str) -> int:
    """Read a seed in decimal digits."""
    if not re.fullmatch("[0-9]{1,10}", text) or int(text) > SEED_MAX:
        raise RecipeError(SEED_RULE)
    return int(text)


def read_pair(text: str) -> tuple[int, float]:
    """Read a seed and a number, `5:0.3`."""
    seed, _, number = text.partition(":")
    return read_seed(seed), read_number(number)


def read_part(name: str, text: Any) -> tuple[Any, bool]:
    """Read one part's text; return what of it can be used, and whether that is all."""
    if not isinstance(text, str) or len(text) > (MAX_W_TEXT if name == "w" else MAX_TEXT):
        return empty_part(name), False
    if not text:
        return empty_part(name), True
    lists = {
        "mix": (Mix.parse, MAX_MIXES), "edit": (Edit.parse, MAX_EDITS),
        "vary": (Vary.parse, MAX_STEPS),
    }  # fmt: skip
    if name in lists:
        return read_parts(text, *lists[name])
    read: dict[str, Callable[[str], Any]]
    read = {"between": Between.parse, "w": check_w_text}
    try:
        return read[name](text), True
    except RecipeError:
        return empty_part(name), False


def empty_part(name: str) -> Any:
    """Return what a recipe without this part holds."""
    return {"mix": (), "edit": (), "vary": (), "w": ""}.get(name)


def read_parts(text: str, read: Callable[[str], Any], most: int) -> tuple[tuple[Any, ...], bool]:
    """Read a list with commas; return its usable entries, and whether that is all."""
    entries = text.split(",")
    found = []
    length = -1  # of the entries as they will be written, maybe longer than they were typed
    for entry in entries[:most]:
        try:
            part = read(entry.strip())
        except RecipeError:
            continue
        length += len(str(part)) + 1
        if length <= MAX_TEXT:
            found.append(part)
    return tuple(found), len(found) == len(entries)


def recipe_from_query(
    query: Mapping[str, str],
    fallback_seed: int,
    revision: str = "",
    *,
    psi_range: tuple[float, float] = (0.0, 1.0),
    source: str = "address",
) -> tuple[Recipe, str]:
    """Read a recipe and `rev` from the query of an address that anyone may have typed.

    Args:
        query: names and values; a missing one is not a fault.
        fallback_seed: the face to show where no usable seed is given.
        revision: of the weights in use; another `rev` gets a sentence.
        psi_range: what psi and fine may be; the page's own sliders go from 0 to 1.
        source: what the sentences call the place that the query came from.
    Returns:
        the recipe, and a sentence about each part that could not be used, or "". They never
        repeat what the address said.
    """
    seed, faults = fallback_seed, []
    if "seed" in query:
        try:
            seed = read_seed(query["seed"])
        except RecipeError:
            faults.append(
                f"The seed in this {source} cannot be used ({SEED_RULE}), so here is another face."
            )
    psis, more = read_truncation(query, psi_range, source)
    faults += more
    parts: dict[str, Any] = {}
    for name, rule in RULES.items():
        parts[name], fits = read_part(name, query.get(name, ""))
        if not fits:
            faults.append(f"The {name} in this {source} cannot all be used ({rule}).")
    if query.get("rev", revision) != revision:
        faults.append(f"This {source} was made with other weights, so its face may differ here.")
    return Recipe(seed, **as_fields(psis | parts)), " ".join(faults)


def read_truncation(
    query: Mapping[str, str], psi_range: tuple[float, float], source: str
) -> tuple[dict[str, float], list[str]]:
    """Return what can be used of `psi` and `fine` in a query, and a sentence about each fault."""
    found: dict[str, float] = {}
    faults = []
    for name in ("psi", "fine"):
        if name not in query:
            continue
        try:
            found[name] = check_psi(read_number(query[name]), *psi_range)
        except RecipeError:
            (low, high), usual = psi_range, {"psi": DEFAULT_PSI}.get(name, DEFAULT_FINE)
            faults.append(
                f"The {name} in this {source} cannot be used ({name} is a number from {low:g} to "
                f"{high:g}), so here it is {found.get('psi', usual):g}."
            )
    return found, faults


def recipe_from_png(
    source: str | Path | IO[bytes], revision: str = ""
) -> tuple[Recipe | None, str]:
    """Read the recipe that a PNG carries as text; its pixels are never decoded.

    Args:
        source: a file that anyone may have made, or its path.
        revision: of the weights in use.
    Returns:
        the recipe and sentences, as `recipe_from_query` gives them, psi within -2 … 2; None and
        one sentence where the picture holds no usable seed.
    """
    try:
        text = read_png_text(source)
    except RecipeError as error:
        return None, f"{error}"
    if "seed" not in text:
        return None, "This picture carries no recipe; only PNGs that were saved here do."
    limits = (-PSI_LIMIT, PSI_LIMIT)
    query = text | {"rev": text.get("revision", revision)}
    recipe, line = recipe_from_query(query, 0, revision, psi_range=limits, source="picture")
    if line.startswith("The seed"):
        return None, f"The seed in this picture cannot be used ({SEED_RULE})."
    return recipe, line


def read_png_text(source: str | Path | IO[bytes]) -> dict[str, str]:
    """Return the recipe's texts (and `revision`) in a PNG of at most 10 MB.

    Raises:
        RecipeError: no readable PNG, or a larger one; the message is a whole sentence.
    """
    from PIL import Image  # here: a recipe alone should not wait for it

    try:
        size = Path(source).stat().st_size if isinstance(source, str | Path) else measure(source)
        if size > MAX_PNG:
            raise RecipeError(f"A picture with a recipe has at most {MAX_PNG // 10**6} MB.")
        with open_file(source) as file:
            head = io.BytesIO(file.read(PNG_HEAD))
        with Image.open(head, formats=("PNG",)) as image:  # reads up to the pixels, not them
            info = dict(image.info)
    except RecipeError:
        raise
    except Exception:  # Pillow raises whatever its parsing stumbled on
        raise RecipeError("This file is not a readable PNG, so it holds no recipe.") from None
    known = (*NUMBERS, *RULES, "revision")
    return {k: str(info[k])[: MAX_W_TEXT + 1] for k in known if isinstance(info.get(k), str)}


def open_file(source: str | Path | IO[bytes]) -> contextlib.AbstractContextManager[IO[bytes]]:
    """Open a path; an open file stays open afterwards."""
    if isinstance(source, str | Path):
        return Path(source).open("rb")
    return contextlib.nullcontext(source)


def measure(file: IO[bytes]) -> int:
    """Return an open file's size in bytes."""
    size = file.seek(0, 2)
    file.seek(0)
    return size


# ------------------------------------------------------------------------------------------
# Lists of seeds


def parse_seeds(text: str) -> list[int]:
    """Read a list of seeds such as `0-63,100`, both ends included, in the order written.

    A seed that is named twice is drawn once.

    Raises:
        RecipeError: no such list, a backward range, or more than a million seeds.
    """
    ranges = parse_seed_ranges(text)
    if sum(len(r) for r in ranges) > MAX_SEEDS:
        raise RecipeError(f"these are more than {MAX_SEEDS:,} seeds; draw them in several runs")
    return list(dict.fromkeys(seed for r in ranges for seed in r))


def parse_seed_ranges(text: str) -> list[range]:
    """Read a list of seeds as `parse_seeds` does, of any length, without writing it out."""
    return [_parse_range(part.strip()) for part in text.split(",")]


def _parse_range(part: str) -> range:
    """Read `7` or `0-63`."""
    match = re.fullmatch(r"([0-9]{1,10})(?:\s*-\s*([0-9]{1,10}))?", part)
    if match is None:
        raise RecipeError(f"{part!r:.60} is no seed and no range; write seeds like 0-63,100")
    first = int(match[1])
    last = int(match[2] or first)
    if last > SEED_MAX or first > SEED_MAX:
        raise RecipeError(f"{max(first, last)} is too large: {SEED_RULE}")
    if last < first:
        raise RecipeError(f"the range {part:.60} runs backwards; write {last}-{first}")
    return range(first, last + 1)
