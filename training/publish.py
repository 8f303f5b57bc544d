"""Push a run to the Hub.

    python -m training.publish runs/mine --repo owner/name

`accelerate launch train.py --push-to-hub owner/name` pushes each snapshot while it trains.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from model import CONFIG_NAME, ModelError, load_network
from training.checkpoint import list_checkpoints
from training.config import ConfigError, make_config, read_config_file, renamed
from training.hub.card import format_kimg, read_stats
from training.hub.contents import take_snapshot
from training.hub.errors import PublishError
from training.hub.publisher import Publisher


def find_kimg(folder: Path) -> float:
    """Return the thousand images of a run's newest checkpoint, which its generator is of."""
    checkpoints = list_checkpoints(folder / "checkpoints")
    if checkpoints:
        return float(checkpoints[-1].stem.removeprefix("kimg-"))
    return max((line.get("kimg", 0.0) for line in read_stats(folder)), default=0.0)


def publish(
    folder: Path, repo: str, *, token: str, private: bool, tag: str, changes: dict[str, Any]
) -> bool:
    """Push a run that lies on the disk, `changes` over its settings; tell whether it went up.

    Raises:
        PublishError, ConfigError, ModelError, OSError: nothing there to publish, or no way to.
    """
    config = make_config(renamed(read_config_file(folder / CONFIG_NAME)), changes)
    load_network(folder / "generator")  # what nobody could load is not worth a commit
    kimg = find_kimg(folder)
    tag = tag or f"kimg-{format_kimg(kimg)}"
    snapshot = take_snapshot(folder, config, kimg=kimg, repo=repo, tag=tag)
    publisher = Publisher(repo, token=token, private=private)
    publisher.submit(snapshot)
    return publisher.close(wait=3600.0)


def main(arguments: list[str] | None = None) -> int:
    """Run from the command line; a fault is one sentence and status 2."""
    parser = argparse.ArgumentParser(
        prog="python -m training.publish", description="Push a training run to the Hub."
    )
    parser.add_argument("run", type=Path, help="folder that train.py wrote")
    parser.add_argument("--repo", required=True, help="owner/name on the Hub; made if missing")
    parser.add_argument("--private", action="store_true", help="make the repository private")
    parser.add_argument("--hub-token", default="", help="with write access; rather set HF_TOKEN")
    parser.add_argument("--tag", default="", help="name of the commit (default: kimg-…)")
    for name in ("license", "data-name"):
        parser.add_argument(f"--{name}", help="on the card, in place of the run's own setting")
    options = parser.parse_args(arguments)
    changes = {k: v for k in ("license", "data_name") if (v := getattr(options, k)) is not None}
    try:
        pushed = publish(
            options.run,
            options.repo,
            token=options.hub_token,
            private=options.private,
            tag=options.tag,
            changes=changes,
        )
    except (PublishError, ConfigError, ModelError, ValueError, OSError) as error:
        print(f"publish: {error}", file=sys.stderr)
        return 2
    return 0 if pushed else 2


if __name__ == "__main__":
    sys.exit(main())
