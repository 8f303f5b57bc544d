"""Combine two generators of one run by layer, with shares that are given or searched for.

    python -m training.combine runs/1 runs/2 --out runs/3 --data FACES      # searches the shares
    python -m training.combine runs/1 runs/2 --out runs/3 8=0.6 32=1.05     # these shares
    python -m training.combine runs/1/start runs/1 --out runs/3 all=0.5     # the mean of both

The second generator was trained on from the first, or both from a third. A share is how far a group
of layers goes from the first (0) to the second (1): between them it averages (Wortsman et al. 2022,
arXiv 2203.05482), beyond 1 it continues in the direction of training. Groups are `mapping`,
`const` and each block by its px; `all` stands for those that are not named, which else are 1.

The search takes the lowest geometric mean of the Fréchet ratios to the better of the two, over all
feature sets, among trials that no set calls more than a tenth worse. What it chose is measured
again on seeds that it has not seen; where it is not better there, nothing is written. OUT holds
generator/ (with the draft of a model card), the second's discriminator/ and projected/ if it has
them, and combine.json with every trial.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import re
import shutil
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from model import (
    CONFIG_NAME,
    WEIGHTS_NAME,
    Generator,
    ModelError,
    keep_freed_memory,
    latents_from_seeds,
    quantise,
)
from training.data import DataError, Faces, pack
from training.metrics import (
    FEATURES,
    MetricsError,
    Scores,
    build_extractor,
    compute_features,
    evaluate,
    real_features,
    real_images,
)
from training.shares import (
    MAX_TRIALS,
    CombineError,
    Shares,
    Trial,
    combined,
    correlation,
    groups,
    ratios,
    read_shares,
    search,
    shares_text,
)

ALIKE = 0.3  # correlation of weights below which two networks are strangers
FAR_WORSE = 1.5  # halfway between strangers the Fréchet distance is worse than both by this
DRAWN = 64  # faces at once


# ------------------------------------------------------------------------------------------
# Measuring


class Judge:
    """Measures generators against the same real faces, by several feature sets at once."""

    def __init__(self, faces: Faces, features: Sequence[str], device: torch.device) -> None:
        self.device = device
        self.extractors = {name: build_extractor(name, device=device) for name in features}
        self.real = {
            name: real_features(faces.images, e, cache_dir=faces.path, data_key=faces.key)
            for name, e in self.extractors.items()
        }

    @torch.no_grad()
    def measure(self, G: Generator, seeds: Sequence[int]) -> dict[str, Scores]:
        """Draw the seeds' faces once, at psi 1, and return their figures by feature set."""
        latents = latents_from_seeds(seeds, G.z_dim).split(DRAWN)
        drawn = [quantise(G(z.to(self.device))).permute(0, 2, 3, 1).cpu() for z in latents]
        pixels = torch.cat(drawn).numpy()  # uint8 [N, H, W, C]
        rows = torch.arange(len(pixels)).numpy()
        return {
            name: evaluate(
                self.real[name],
                compute_features(real_images(pixels, rows), extractor),
                features=name,
                device=self.device,
            )
            for name, extractor in self.extractors.items()
        }


# ------------------------------------------------------------------------------------------
# Tables


def head(features: Iterable[str]) -> str:
    """Return the table's head: over each feature set's columns its name, then what they are."""
    columns = f"{'Fréchet':>9} {'KID':>9} {'precision':>9} {'recall':>7} |"
    names = "".join(f"{name:^37} |" for name in features)
    return f"{names}\n{columns * names.count('|')} mean ratio | shares"


def row(label: str, scores: Mapping[str, Scores], mean: float, remark: str = "") -> str:
    """Return one generator's line."""
    cells = "".join(
        f"{s.frechet:9.4g} {s.kid:9.4g} {s.precision:9.3f} {s.recall:7.3f} |"
        for s in scores.values()
    )
    return f"{cells} {mean:10.3f} | {label} {remark}".rstrip()


def note_kindness(features: Sequence[str]) -> str:
    """Say which figures are kind to which generators."""
    names = " and ".join(features)
    text = f"The figures of {names} choose here, so they are kind to what they chose."
    if "efficientnet-lite0" in features:
        text += (
            " efficientnet-lite0 is also what a projected discriminator looks through, so it is "
            "kind to a generator that learned from one."
        )
    return text


# ------------------------------------------------------------------------------------------
# The command


def open_parent(place: str) -> Generator:
    """Load a generator from its folder, a run's folder or the Hub."""
    inner = Path(place) / "generator"
    return Generator.from_pretrained(inner if inner.is_dir() else place)


def check_pair(A: Generator, B: Generator) -> float:
    """Return how alike two generators' weights are, or raise CombineError."""
    ours, theirs = A.config, B.config
    if ours != theirs:
        apart = next(k for k in ours if ours[k] != theirs.get(k))
        raise CombineError(
            f"the two have other sizes: {apart} {ours[apart]} and {theirs.get(apart)}; combine "
            f"generators of which one was trained on from the other"
        )
    if all(torch.equal(v, B.state_dict()[k]) for k, v in A.state_dict().items() if k != "w_avg"):
        raise CombineError("the two have the same weights, so there is nothing to combine")
    return correlation(A, B)


class Session:
    """Two parents and what is measured of their combinations."""

    def __init__(self, A: Generator, B: Generator, judge: Judge, samples: int) -> None:
        self.A, self.B, self.judge = A, B, judge
        self.seeds, self.unseen = range(samples), range(samples, 2 * samples)
        self.mixed = Generator(**{k: v for k, v in A.config.items() if k != "architecture"})
        self.mixed.to(judge.device).eval()
        self.trials: list[Trial] = []

    def measure_ends(self, seeds: Sequence[int]) -> tuple[dict[str, Scores], dict[str, Scores]]:
        """Measure both parents."""
        return self.judge.measure(self.A, seeds), self.judge.measure(self.B, seeds)

    def measure(self, shares: Shares, seeds: Sequence[int]) -> dict[str, Scores]:
        """Measure a combination."""
        return self.judge.measure(combined(self.A, self.B, shares, self.mixed), seeds)


def find_shares(session: Session, limit: int) -> Trial | None:
    """Search the shares and print every trial; None where none is better than both parents."""
    known = groups(session.A)
    with tqdm(total=limit + 2, unit="trial", disable=None) as bar:

        def tell(line: str) -> None:
            bar.update()
            bar.write(line, file=sys.stdout)
            sys.stdout.flush()  # trials take long: a log shows each at once

        first, second = session.measure_ends(session.seeds)
        second_leads = math.prod(ratios(second, first)) <= 1
        end = second if second_leads else first
        bar.write(head(end), file=sys.stdout)
        for label, scores in (("the first", first), ("the second", second)):
            trial = Trial({}, scores, ratios(scores, end))
            tell(row(label, scores, trial.mean))

        def attempt(shares: Shares) -> Trial:
            scores = session.measure(shares, session.seeds)
            trial = Trial(shares, scores, ratios(scores, end))
            session.trials.append(trial)
            tell(row(shares_text(shares), scores, trial.mean, "" if trial.allowed else "refused"))
            return trial

        best = search(known, dict.fromkeys(known, float(second_leads)), attempt, limit)
    halfway = next(t for t in session.trials if set(t.shares.values()) == {0.5})
    if min(halfway.ratios) > FAR_WORSE and min(ratios(halfway.scores, first)) > FAR_WORSE:
        print(
            "Halfway between the two, faces are worse than either's by every feature set: they "
            "are strangers to each other, or too far apart to average."
        )
    return best


def check_again(session: Session, shares: Shares) -> Trial:
    """Measure a combination on seeds that no search has seen, beside both parents."""
    first, second = session.measure_ends(session.unseen)
    scores = session.measure(shares, session.unseen)
    end = second if math.prod(ratios(second, first)) <= 1 else first
    print(f"Again, on the seeds {session.unseen[0]} to {session.unseen[-1]}:\n{head(end)}")
    rows = {"the first": first, "the second": second, shares_text(shares): scores}
    for label, figures in rows.items():
        print(row(label, figures, Trial({}, figures, ratios(figures, end)).mean))
    return Trial(shares, scores, ratios(scores, end))


def card_line(parents: Sequence[str], shares: Shares, trial: Trial | None) -> str:
    """Return the model card's draft: the parents, the shares, the figures."""
    names = " and ".join(f"`{name_of(parent)}`" for parent in parents)
    listed = ", ".join(f"{name} {share:g}" for name, share in shares.items())
    text = f"Combined by layer from {names} (0: the first, 1: the second): {listed}."
    if trial:
        figures = "; ".join(scores.line() for scores in trial.scores.values())
        text += f" On seeds that the choice had not seen: {figures}."
    return text


def name_of(place: str) -> str:
    """Name a parent by its repository, or by the end of its path: the rest is a machine's own."""
    if not Path(place).is_dir():
        return place
    return "/".join([p for p in Path(place).parts if p not in ("generator", "/")][-2:])


def write(out: Path, G: Generator, second: str, card: str, record: Mapping[str, Any]) -> None:
    """Write the combination's folder whole or not at all."""
    out.parent.mkdir(parents=True, exist_ok=True)
    run = Path(second).parent if Path(second).name == "generator" else Path(second)
    with tempfile.TemporaryDirectory(prefix=f"{out.name}.", dir=out.parent) as scratch:
        part = Path(scratch) / out.name
        G.save_pretrained(part / "generator")
        draft = part / "generator" / "README.md"
        metadata = draft.read_text(encoding="utf-8").split("---\n")[1]
        draft.write_text(f"---\n{metadata}---\n\n{card}\n", encoding="utf-8")
        for network in ("discriminator", "projected"):
            files = [run / network / name for name in (CONFIG_NAME, WEIGHTS_NAME)]
            if all(path.is_file() for path in files):
                (part / network).mkdir()
                for path in files:
                    shutil.copyfile(path, part / network / path.name)
        text = json.dumps(record, indent=2, ensure_ascii=False) + "\n"
        (part / "combine.json").write_text(text, encoding="utf-8")
        part.replace(out)


def as_record(trial: Trial) -> dict[str, Any]:
    """Return a trial fit for JSON."""
    return {
        "shares": trial.shares,
        "mean_ratio": trial.mean,
        "allowed": trial.allowed,
        "scores": {name: scores.to_dict() for name, scores in trial.scores.items()},
    }


def run(options: argparse.Namespace) -> int:
    """Combine as the command line says; return the exit status: 1 where nothing was better."""
    if options.out.exists() and not (options.out.is_dir() and not any(options.out.iterdir())):
        raise CombineError(f"{options.out} exists already; give another --out")
    parents = [options.first, options.second]
    A, B = (open_parent(place) for place in parents)
    alike = check_pair(A, B)
    known = groups(A)
    shares = read_shares(options.shares, known) if options.shares else None
    print(f"Groups: {', '.join(known)}. The weights of the two correlate by {alike:.3f}.")
    if alike < ALIKE:
        print("So they are strangers to each other: expect nothing of what lies between them.")
    session = open_session(A, B, options) if options.data else None
    check = choose(session, shares, options.trials) if session else None
    if check and not shares:
        if check.mean >= 1 or not check.allowed:
            print("On these seeds the choice is not better: nothing is written.")
            return 1
        shares = check.shares
    if shares is None:
        print("No combination is better than the better of the two: nothing is written.")
        return 1
    card = card_line(parents, shares, check)
    record = {"parents": [name_of(p) for p in parents], "correlation": alike, "shares": shares}
    record |= {"check": as_record(check)} if check else {}
    record["trials"] = [as_record(trial) for trial in (session.trials if session else ())]
    mixed = combined(A.cpu(), B.cpu(), shares, copy.deepcopy(B).cpu())
    write(options.out, mixed, options.second, card, record)
    print(f"{card}\n{options.out / 'generator'} draws these faces.")
    return 0


def open_session(A: Generator, B: Generator, options: argparse.Namespace) -> Session:
    """Pack the real faces and look at them."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    faces = pack(options.data, A.resolution, channels=A.img_channels)
    judge = Judge(faces, options.features, device)
    print(note_kindness(options.features))
    return Session(A.to(device), B.to(device), judge, options.samples)


def choose(session: Session, shares: Shares | None, limit: int) -> Trial | None:
    """Search the shares unless they are given, and measure them on unseen seeds."""
    if shares is None:
        best = find_shares(session, limit)
        shares = best.shares if best else None
    return check_again(session, shares) if shares else None


def make_parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m training.combine",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    where = "folder of a generator or of a run, or a Hub repository"
    parser.add_argument("first", help=f"the earlier generator: {where}")
    parser.add_argument("second", help="the later one, likewise")
    parser.add_argument("shares", nargs="*", help="GROUP=SHARE; none: they are searched for")
    parser.add_argument("--out", type=Path, required=True, help="folder to write; must be new")
    parser.add_argument("--data", nargs="+", help="real faces, as train.py takes them, to measure")
    parser.add_argument(
        "--features", nargs="+", default=["efficientnet-lite0", "hog"], choices=sorted(FEATURES)
    )
    parser.add_argument("--samples", type=int, default=1000, help="faces of each trial")
    parser.add_argument(
        "--trials", type=int, default=MAX_TRIALS, help=f"of the search, at most {MAX_TRIALS}"
    )
    return parser


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line; shares may stand anywhere in it. Raises CombineError."""
    options = make_parser().parse_intermixed_args(arguments)
    data = options.data or []
    strays = [d for d in data if re.fullmatch(r"\w+=[-+.\d]+", d) and not Path(d).exists()]
    options.shares += strays  # --data takes all that follows it
    options.data = [d for d in data if d not in strays]
    if not (options.data or options.shares):
        raise CombineError("give --data to search the shares, or shares such as 8=0.6")
    if not 1 <= options.trials <= MAX_TRIALS:
        raise CombineError(f"--trials takes 1 to {MAX_TRIALS}, not {options.trials}")
    if not 8 <= options.samples <= 100_000:
        raise CombineError(f"--samples takes 8 to 100,000, not {options.samples}")
    return options


def main(arguments: list[str] | None = None) -> int:
    """Run from the command line; a fault is one sentence and status 2."""
    keep_freed_memory()
    try:
        return run(parse_arguments(arguments))
    except (CombineError, ModelError, DataError, MetricsError, OSError) as error:
        print(f"combine: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
