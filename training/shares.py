"""Networks between two networks, and beyond: shares by layer group, and a search for good ones.

    mixed = combined(A, B, {"8": 0.6, "32": 1.05}, into=copy.deepcopy(B))
    best = search(groups(A), start, attempt)

A share is how far a group of layers goes from the first network (0) to the second (1).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

from model import Generator, KaoganModel
from training.metrics import Scores

Network = TypeVar("Network", bound=KaoganModel)
Shares = dict[str, float]  # group → how far from the first network to the second

LADDER = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0, 1.05, 1.1, 1.2)  # shares that the search tries
UNIFORM = (0.5, 0.8, 1.05)  # of all layers, tried first
MAX_TRIALS = 30
TOLERATED = 1.1  # Fréchet ratio to the better parent that no feature set may exceed
REACH = 2.0  # the largest share; further away no network draws


class CombineError(ValueError):
    """Two networks, or shares, that cannot be combined."""


def group_of(name: str) -> str:
    """Return the group of a tensor: a block's px, or the first word of its name."""
    first, _, rest = name.partition(".")
    return rest.partition(".")[0] if first == "blocks" else first.partition("_")[0]


def groups(network: KaoganModel) -> list[str]:
    """Name a network's groups of layers, in its order."""
    return list(dict.fromkeys(group_of(k) for k in network.state_dict() if k != "w_avg"))


@torch.no_grad()
def combined(A: Network, B: Network, shares: Mapping[str, float], into: Network) -> Network:
    """Set the weights of `into` to A + share · (B - A), group by group, and return it.

    Args:
        A, B: networks of one architecture and the same sizes.
        shares: of each group; 1 where none is given.
        into: another network of that architecture; `w_avg` is computed anew.
    """
    first, second = A.state_dict(), B.state_dict()
    into.load_state_dict(
        {k: torch.lerp(v, second[k], shares.get(group_of(k), 1.0)) for k, v in first.items()}
    )
    if isinstance(into, Generator):
        into.update_w_avg()
    return into


def correlation(A: KaoganModel, B: KaoganModel) -> float:
    """Return the correlation of two networks' weights, the mean over their layers.

    Biases, which are alike in all networks, do not count.
    """
    theirs = B.state_dict()
    found = [
        torch.corrcoef(torch.stack([v.flatten(), theirs[k].flatten()]).double())[0, 1].item()
        for k, v in A.state_dict().items()
        if v.ndim > 1
    ]
    return sum(found) / len(found)


def read_shares(words: Sequence[str], known: Sequence[str]) -> Shares:
    """Read `8=0.6 32=1.05`.

    Returns:
        The share of every group in `known`.
    Raises:
        CombineError: an unknown group, one named twice, or no number that a share can be.
    """
    given: Shares = {}
    for word in words:
        name, _, text = word.partition("=")
        try:
            share = float(text)
        except ValueError:
            share = math.nan
        if name not in (*known, "all") or name in given:
            raise CombineError(f"{word!r:.60}: name each of {', '.join(known)} or all at most once")
        if not -REACH <= share <= REACH:
            raise CombineError(f"{word!r:.60}: a share is a number from {-REACH:g} to {REACH:g}")
        given[name] = share
    rest = given.pop("all", 1.0)
    return {name: given.get(name, rest) for name in known}


def shares_text(shares: Shares) -> str:
    """Write shares as the command line takes them, the most frequent one as `all`."""
    values = list(shares.values())
    rest = max(values, key=values.count)
    named = [f"{name}={share:g}" for name, share in shares.items() if share != rest]
    return " ".join([f"all={rest:g}", *named])


@dataclass(frozen=True)
class Trial:
    """One combination, its figures by feature set, and its Fréchet ratios to the better parent."""

    shares: Shares
    scores: dict[str, Scores]
    ratios: tuple[float, ...]

    @property
    def mean(self) -> float:
        """The geometric mean of the ratios: below 1 it is better than the better parent."""
        return math.exp(sum(map(math.log, self.ratios)) / len(self.ratios))

    @property
    def allowed(self) -> bool:
        """Tell whether no feature set calls it more than a tenth worse."""
        return max(self.ratios) <= TOLERATED


def ratios(scores: Mapping[str, Scores], end: Mapping[str, Scores]) -> tuple[float, ...]:
    """Return the Fréchet distances as ratios to those of another generator."""
    tiny = 1e-12  # faces that are the real ones have a distance of 0
    return tuple((scores[n].frechet + tiny) / (end[n].frechet + tiny) for n in end)


def search(
    known: Sequence[str],
    start: Shares,
    attempt: Callable[[Shares], Trial],
    limit: int = MAX_TRIALS,
) -> Trial | None:
    """Look for better shares: all layers alike, then each group in turn, in smaller and smaller
    steps along LADDER.

    Args:
        known: the groups.
        start: shares of the better parent.
        attempt: measures a combination.
        limit: calls of `attempt`.
    Returns:
        The best trial that is allowed and better than the start; None where there is none.
    """
    tried: dict[tuple[float, ...], float] = {tuple(start.values()): 1.0}
    best: Trial | None = None

    def better(shares: Shares) -> bool:
        nonlocal best
        key = tuple(shares.values())
        if key in tried or len(tried) > limit:
            return False
        trial = attempt(shares)
        tried[key] = trial.mean
        if not trial.allowed or trial.mean >= (best.mean if best else 1.0):
            return False
        best = trial
        return True

    for share in UNIFORM:
        better(dict.fromkeys(known, share))
    for step in (2, 1):
        moved = True
        while moved and len(tried) <= limit:
            moved = False
            for name in known:
                now = best.shares if best else start
                moved |= any(better(now | {name: s}) for s in neighbours(now[name], step))
    return best


def neighbours(share: float, step: int) -> list[float]:
    """Return the shares so many places below and above one on the ladder."""
    below = [s for s in LADDER if s < share][-step:][:1]
    above = [s for s in LADDER if s > share][:step][-1:]
    return below + above
