"""A run's model card, and its way to the Hub.

    accelerate launch train.py --data FOLDER --push-to-hub owner/name    # each snapshot, meanwhile
    python -m training.publish runs/mine --repo owner/name               # a run of earlier

The repository gets the generator at its root (config.json, model.safetensors, the card as
README.md, and directions.safetensors if it has one), discriminator/, the heads of a projected
discriminator in projected/ if the run has one, grids, stats.jsonl, and train_config.json without
local paths.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import (
    CommitOperationAdd,
    EvalResult,
    HfApi,
    ModelCard,
    ModelCardData,
    get_session,
    get_token,
    set_client_factory,
)
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import disable_progress_bars, logging, validate_repo_id
from safetensors import SafetensorError, safe_open

from model import CONFIG_NAME, DIRECTIONS_NAME, WEIGHTS_NAME, ModelError, load_network
from training.checkpoint import list_checkpoints
from training.config import (
    BUNDLED_FACES,
    ConfigError,
    TrainConfig,
    make_config,
    read_config_file,
    renamed,
)

PAUSES = (2.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)  # seconds before another try
START_TRIES = 3  # before a run starts, at a Hub that fails
LAST_TRIES = 3  # after a run has ended
LONGEST_REQUEST = 3600  # seconds that a Hub may ask us to wait
HOPELESS = (400, 401, 402, 403, 404, 413, 422)  # statuses that waiting alone does not mend
LARGE = (".safetensors", ".png")
# Settings that name things of the trainer's machine or account.
LOCAL = ("data", "out", "resume", "workers", "push_to_hub", "private", "hub_token")
FACTS = ("hardware", "pictures", "parameters", "torch")  # of facts.json, for the card
UNTOLD = (*LOCAL, "data_name", "license", "log_with")


class PublishError(RuntimeError):
    """A repository that cannot be written, or a run that cannot be published."""


# ------------------------------------------------------------------------------------------
# The card


def make_card(
    folder: Path,
    config: TrainConfig,
    *,
    kimg: float,
    repo: str = "",
    tag: str = "",
    picture: str = "",
) -> str:
    """Write a run's model card: metadata, how to draw, how it was trained, figures, limits.

    Args:
        folder: the run's; stats.jsonl, metrics.json and facts.json are used where they exist.
        kimg: thousand images that the generator has seen.
        repo: owner/name of the repository the card is for, if any.
        tag: its revision there, if it has a name.
        picture: address of a sample grid, relative to the card.
    Raises:
        ValueError: huggingface_hub refuses the metadata.
    """
    name = repo.split("/")[-1] or f"kaogan-{config.resolution}"
    metrics = read_metrics(folder, kimg)
    dataset, dataset_name = describe_data(config)
    data = ModelCardData(
        model_name=name,
        library_name="kaogan",
        pipeline_tag="unconditional-image-generation",
        license=config.license,
        datasets=[dataset] if dataset else None,
        tags=["gan", "anime", "image-generation"],
        eval_results=list_results(metrics, dataset, dataset_name) or None,
    )
    size = f"{config.resolution}×{config.resolution}"
    parts = [
        f"# {name}",
        f"A GAN that draws {size} px faces, one for each seed, trained from scratch on "
        f"{dataset_name} for {kimg * 1000:,.0f} images.",
        f"![Faces of the seeds 0 to 63, unselected]({picture})" if picture else "",
        how_to_draw(config, repo, tag),
        how_it_was_trained(folder, config, kimg, published=bool(repo)),
        how_good_it_is(metrics),
        "## Limits\n\nIt knows only the kind of face it was shown, at this size, and repeats the "
        "leanings of those pictures. A face is made up from a random number; it may still come "
        "close to a picture that was shown.",
    ]
    body = "\n\n".join(part for part in parts if part)
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n{body}\n"))


def describe_data(config: TrainConfig) -> tuple[str, str]:
    """Return the data set's id on the Hub, or "", and what to call it; never a local path."""
    found = [re.match(r"hf://([\w.-]+/[\w.-]+)", source) for source in config.data]
    source = found[0][1] if len(found) == 1 and found[0] else ""
    name = config.data_name
    dataset = name if re.fullmatch(r"[\w.-]+/[\w.-]+", name) else source
    if config.data == (str(BUNDLED_FACES),):
        name = name or "the faces that come with Kaogan"
    return dataset, name or dataset or "a private collection of pictures"


def list_results(metrics: dict[str, Any], dataset: str, name: str) -> list[EvalResult]:
    """Return the figures for the card's model-index."""
    features = metrics.get("features", "")
    titles = {
        "frechet": ("fid" if features == "inception" else "frechet-distance", "Fréchet distance"),
        "kid": ("kid", "Kernel distance"),
        "precision": ("precision", "Precision"),
        "recall": ("recall", "Recall"),
    }
    return [
        EvalResult(
            task_type="unconditional-image-generation",
            dataset_type=dataset or "pictures",
            dataset_name=name,
            metric_type=kind,
            metric_name=f"{title} ({features} features)",
            metric_value=metrics[key],
            metric_args={k: metrics[k] for k in ("num_real", "num_fake", "psi") if k in metrics},
        )
        for key, (kind, title) in titles.items()
        if isinstance(metrics.get(key), int | float)
    ]


def how_to_draw(config: TrainConfig, repo: str, tag: str) -> str:
    """Return the card's section on using the weights."""
    place = repo or "FOLDER"
    pinned = f', revision="{tag}"' if repo and tag else ""
    flag = f" --revision {tag}" if repo and tag else ""
    shape = f"[8, {config.img_channels}, {config.resolution}, {config.resolution}]"
    return f"""## Draw

With Kaogan's `model.py` (PyTorch, safetensors, no pickle):

```python
from model import load_network, latents_from_seeds

G = load_network("{place}"{pinned})
faces = G(latents_from_seeds(range(8), G.z_dim), 0.7)  # {shape} in about [-1, 1]
```

```bash
python app.py --model {place}{flag}
python -m studio --seeds 0-63 --out faces --model {place}{flag}
```"""


def how_it_was_trained(folder: Path, config: TrainConfig, kimg: float, *, published: bool) -> str:
    """Return the card's section on the run: figures, settings other than the default, command."""
    facts = read_json(folder / "facts.json")
    lines = [line for line in read_stats(folder) if line.get("kimg", 0) <= kimg]
    rows = {"images seen": f"{kimg * 1000:,.0f}"}
    if lines and "minutes" in lines[-1]:
        rows["minutes"] = f"{lines[-1]['minutes']:.1f}"
    rows |= {k: str(facts[k]) for k in FACTS if k in facts}
    default = TrainConfig().public()
    rows |= {
        k.replace("_", " "): ", ".join(map(str, v)) if isinstance(v, tuple) else f"{v}"
        for k, v in config.public().items()
        if k not in UNTOLD and v != default[k]
    }
    settings = "train_config.json" if published else "../config.json"
    table = "\n".join(f"| {k} | {v} |" for k, v in rows.items())
    return f"""## Training

| | |
|---|---|
{table}

Every setting stands in `{settings}`. With pictures of your own:

```bash
accelerate launch train.py --config {settings} --data FOLDER_OR_ZIP --out runs/mine
```"""


def how_good_it_is(metrics: dict[str, Any]) -> str:
    """Return the card's section on the metrics, or "" where none were measured."""
    keys = ("frechet", "kid", "precision", "recall")
    if not all(isinstance(metrics.get(k), int | float) for k in keys):
        return ""
    return (
        "## Figures\n\n| Fréchet distance | KID | precision | recall |\n|---|---|---|---|\n| "
        + " | ".join(f"{metrics[k]:.4g}" for k in keys)
        + f" |\n\n{metrics.get('features')} features of {metrics.get('num_real')} real and "
        f"{metrics.get('num_fake')} drawn faces at psi {metrics.get('psi', 1.0):g}; figures with "
        "other features or counts do not compare."
    ) + (
        f" The weights are the average of G with a half-life of {metrics['ema_kimg']:g} thousand "
        "images, chosen among several by these figures."
        if isinstance(metrics.get("ema_kimg"), int | float)
        else ""
    )


def kimg_text(kimg: float) -> str:
    """Write thousand images without needless digits."""
    return f"{kimg:.3f}".rstrip("0").rstrip(".")


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file; an empty one where there is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def read_metrics(folder: Path, kimg: float) -> dict[str, Any]:
    """Return the metrics of this very generator; those of an earlier one do not count."""
    metrics = read_json(folder / "metrics.json")
    return metrics if metrics.get("kimg") == kimg else {}


def read_stats(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the lines of stats.jsonl that are whole."""
    with contextlib.suppress(OSError):
        for line in (folder / "stats.jsonl").read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(ValueError):
                yield json.loads(line)


# ------------------------------------------------------------------------------------------
# What one commit holds


@dataclass(frozen=True)
class Snapshot:
    """What one commit uploads, read at one moment, so that training may overwrite its files.

    Attributes:
        folder: the run's.
        kimg: thousand images that its generator has seen.
        files: path in the repository → contents.
        tag: a name for the commit; none if empty.
    """

    folder: Path
    kimg: float
    files: dict[str, bytes]
    tag: str = ""

    @property
    def message(self) -> str:
        """The commit's message."""
        return f"{kimg_text(self.kimg)} kimg" + (f", {self.tag}" if self.tag else "")


def take_snapshot(
    folder: Path, config: TrainConfig, *, kimg: float, repo: str = "", tag: str = ""
) -> Snapshot:
    """Read what a run publishes.

    Raises:
        PublishError: it holds no generator yet.
        OSError: a file cannot be read.
        ValueError: no valid card can be made of it.
    """
    places = {name: folder / "generator" / name for name in (CONFIG_NAME, WEIGHTS_NAME)}
    for path in places.values():
        if not path.is_file():
            raise PublishError(f"{path} is missing: {folder} holds no generator to publish yet")
    if fit_directions(folder / "generator"):
        places[DIRECTIONS_NAME] = folder / "generator" / DIRECTIONS_NAME
    for name in (CONFIG_NAME, WEIGHTS_NAME):
        for network in ("discriminator", "projected", "enlarger"):
            places[f"{network}/{name}"] = folder / network / name
    places["enlarger/README.md"] = folder / "enlarger" / "README.md"  # it names the teacher
    grids = find_grids(folder)
    places |= grids
    places["stats.jsonl"] = folder / "stats.jsonl"
    if read_metrics(folder, kimg):
        places["metrics.json"] = folder / "metrics.json"
    files = {name: path.read_bytes() for name, path in places.items() if path.is_file()}
    picture = "grid-psi0.7.png" if "grid-psi0.7.png" in grids else next(iter(grids), "")
    card = make_card(folder, config, kimg=kimg, repo=repo, tag=tag, picture=picture)
    files["README.md"] = card.encode()
    files["train_config.json"] = (json.dumps(shareable(config), indent=2) + "\n").encode()
    return Snapshot(folder, kimg, files, tag)


def fit_directions(generator: Path) -> bool:
    """Tell whether directions lie beside a generator's weights and were made for just these."""
    path = generator / DIRECTIONS_NAME
    if not path.is_file():
        return False
    try:
        with safe_open(path, framework="pt") as file:
            made_for = (file.metadata() or {}).get("generator")
    except SafetensorError:
        return False
    return made_for == hashlib.sha256((generator / WEIGHTS_NAME).read_bytes()).hexdigest()


def find_grids(folder: Path) -> dict[str, Path]:
    """Return the newest grid, and those of the run's end unless the run went on since then."""
    newest = sorted((folder / "grids").glob("kimg-*.png"))[-1:]
    found = {f"grids/{path.name}": path for path in newest}
    for path in (folder / "grid-psi1.png", folder / "grid-psi0.7.png"):
        if path.is_file() and all(path.stat().st_mtime >= n.stat().st_mtime for n in newest):
            found[path.name] = path
    return found


def shareable(config: TrainConfig) -> dict[str, Any]:
    """Return the settings that others can use; data only where it lies on the Hub."""
    settings = {k: v for k, v in config.public().items() if k not in LOCAL}
    if all(source.startswith("hf://") for source in config.data):
        settings["data"] = list(config.data)
    return settings


# ------------------------------------------------------------------------------------------
# Pushing


class Publisher:
    """Pushes snapshots to one repository from a thread of its own; training never waits for it.

    Making one creates the repository, or finds it writable. At most one snapshot waits: a newer
    one takes its place. A failing Hub is tried again with growing pauses and reported once.

    Args:
        repo: owner/name.
        token: with write access; that of the environment or of `hf auth login` if empty.
        private: make the repository private; refuse one that is public.
        endpoint: the Hub's address; huggingface_hub's own if None.
        pauses: seconds between tries, the last one for ever.
        silence: seconds without a byte after which a request has failed.
        say: prints one line.
    Raises:
        PublishError: a malformed name, no token, or a repository that cannot be written.
    """

    def __init__(
        self,
        repo: str,
        *,
        token: str = "",
        private: bool = False,
        endpoint: str | None = None,
        pauses: Sequence[float] = PAUSES,
        silence: float = 60.0,
        say: Callable[[str], None] = print,
    ) -> None:
        self.repo = check_repo(repo)
        self._token = check_token(token or get_token() or "")
        self._pauses, self._say = pauses, say
        calm_client(silence)
        self._api = HfApi(endpoint=endpoint, token=self._token, library_name="kaogan")
        self._changed = threading.Condition()
        self._pending: Snapshot | None = None  # waits
        self._current: Snapshot | None = None  # is being pushed
        self._failures = 0  # since the last push that succeeded
        self._closing = False
        self._fault = ""
        self._thread: threading.Thread | None = None
        self._open(private)

    def _open(self, private: bool) -> None:
        """Create the repository or find it writable, or raise PublishError."""
        for left in reversed(range(START_TRIES)):
            try:
                self._api.create_repo(self.repo, private=private or None, exist_ok=True)
                self._api.auth_check(self.repo, write=True)
                is_public = private and not self._api.model_info(self.repo).private
                break
            except Exception as error:  # the client's HTTP library has errors of its own family
                reason = self._describe(error)
                if is_hopeless(error):
                    raise PublishError(f"cannot push to {self.repo}: {reason}") from error
                if not left:
                    raise PublishError(
                        f"cannot push to {self.repo}: {reason}; try later, or train without "
                        f"--push-to-hub and publish the run when it has ended"
                    ) from error
                self._failures += 1
                time.sleep(min(30.0, self._pause(error)))
        self._failures = 0
        if is_public:
            raise PublishError(
                f"{self.repo} exists and is public: make it private in its settings, choose "
                f"another name, or leave --private out"
            )

    def submit(self, snapshot: Snapshot) -> None:
        """Have a snapshot pushed, in place of one that still waits; returns at once."""
        with self._changed:
            self._pending = snapshot
            if self._thread is None:
                # Daemonic, so that a Hub that never answers cannot keep the program from ending.
                self._thread = threading.Thread(target=self._work, name="push", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def close(self, wait: float = 300.0) -> bool:
        """Push what is left, for at most `wait` seconds, and tell whether all went up.

        Where it did not, one line says why, and which command pushes it later. Ctrl-C ends the
        waiting.
        """
        with self._changed:
            self._closing, self._failures = True, 0
            self._changed.notify_all()
        with contextlib.suppress(KeyboardInterrupt):
            self._join(wait)
        with self._changed:
            left = self._pending or self._current
            say, self._say = self._say, lambda _line: None
            self._pending, self._failures = None, LAST_TRIES  # the thread, if it lives, ends soon
        if left:
            say(
                f"{left.message} could not be pushed to {self.repo} "
                f"({self._fault or 'the Hub was too slow'}). It is all in {left.folder}; push it "
                f"later with: python -m training.publish {left.folder} --repo {self.repo}"
            )
        return not left

    def _join(self, wait: float) -> None:
        """Wait for the thread, with a word about it where that takes long."""
        if self._thread is None:
            return
        first = min(wait, 5.0)
        self._thread.join(first)
        if self._thread.is_alive() and wait > first:
            self._say(f"Waiting for {self.repo}, at most {wait:.0f} s; Ctrl-C ends the waiting.")
            self._thread.join(wait - first)

    def _work(self) -> None:
        """Push snapshot after snapshot until closed."""
        while self._take():
            error = self._try()
            with self._changed:
                snapshot, self._current = self._current, None
                if error is None:
                    self._failures = 0
                    continue
                self._fault = self._describe(error)
                self._pending = self._pending or snapshot
                self._failures += 1
                if self._closing and (is_hopeless(error) or self._failures >= LAST_TRIES):
                    return
                if self._failures == 1 and not self._closing:
                    self._say(
                        f"{snapshot.message} could not be pushed to {self.repo} ({self._fault}). "
                        f"It is all in {snapshot.folder}; training goes on, and so do the tries."
                    )
                was_closing = self._closing
                self._changed.wait_for(
                    lambda was=was_closing: self._closing and not was, self._pause(error)
                )

    def _take(self) -> bool:
        """Wait for a snapshot and make it the current one; False when closed and none is left."""
        with self._changed:
            self._changed.wait_for(lambda: self._pending or self._closing)
            self._current, self._pending = self._pending, None
            return self._current is not None

    def _try(self) -> Exception | None:
        """Push the current snapshot; return what went wrong."""
        snapshot = self._current
        try:
            commit, note = self._push(snapshot)
        except Exception as error:  # whatever a failing Hub makes the client raise
            return error
        self._say(f"{snapshot.message} is at {self.repo}, commit {commit[:12]}{note}.")
        return None

    def _push(self, snapshot: Snapshot) -> tuple[str, str]:
        """Make one commit, and its tag; return the commit's id and a remark.

        Files that the repository already holds are left out by the client, so a push whose answer
        got lost is not repeated as a second commit.
        """
        additions = [CommitOperationAdd(path, data) for path, data in snapshot.files.items()]
        for addition in additions:
            # One by one: several at a time go through a pool of threads, which Python waits for
            # when it ends, however long the Hub is silent.
            if addition.path_in_repo.endswith(LARGE):
                self._api.preupload_lfs_files(self.repo, [addition])
        commit = self._api.create_commit(self.repo, additions, commit_message=snapshot.message)
        return commit.oid, self._tag(snapshot.tag, commit.oid) if snapshot.tag else ""

    def _tag(self, tag: str, commit: str) -> str:
        """Name a commit; an existing tag keeps its place. Returns a remark."""
        try:
            self._api.create_tag(self.repo, tag=tag, revision=commit)
        except HfHubHTTPError as error:
            if status_of(error) != 409:
                raise
            held = {t.name: t.target_commit for t in self._api.list_repo_refs(self.repo).tags}
            if tag not in held:
                raise
            if held[tag] != commit:
                return f" (the tag {tag} stays at an older commit, {held[tag][:12]})"
        return ""

    def _pause(self, error: Exception) -> float:
        """Return the seconds until the next try: growing ones, or longer if the Hub asks."""
        asked = getattr(response_of(error), "headers", {}).get("Retry-After", "")
        pause = self._pauses[min(self._failures, len(self._pauses)) - 1]
        return max(pause, min(int(asked), LONGEST_REQUEST) if asked.isdecimal() else 0.0)

    def _describe(self, error: Exception) -> str:
        """Say in words what went wrong, without the token."""
        status = status_of(error)
        words = {
            401: "the Hub refused the token: make one that may write at "
            "https://huggingface.co/settings/tokens and set HF_TOKEN",
            403: "this token may not write there",
            404: "it does not exist, or this token may not see it",
            429: "the Hub asks for fewer requests",
        }
        text = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        if status is None and isinstance(error, ValueError | KeyError | TypeError | AttributeError):
            text = f"the Hub's answer makes no sense ({text})"
        return words.get(status, text).replace(self._token, "***")


def check_repo(repo: str) -> str:
    """Return `repo` if it can name a repository, or raise PublishError."""
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise PublishError(
            f"{repo!r:.100} names no repository: write owner/name, each of letters, digits, - . "
            f"and _"
        ) from error
    if repo.count("/") != 1:
        raise PublishError(f"{repo!r:.100} names no repository: write owner/name")
    return repo


def check_token(token: str) -> str:
    """Return `token` if it can be sent, or raise PublishError."""
    if not token:
        raise PublishError("pushing needs a token: set HF_TOKEN, or run `hf auth login`")
    if not re.fullmatch(r"[!-~]+", token):
        raise PublishError("the token holds blanks or other signs that no token has: set it anew")
    return token


def calm_client(silence: float) -> None:
    """Let huggingface_hub give up on silent connections, and print nothing of its own."""
    client = get_session()
    kind, hooks = type(client), client.event_hooks  # httpx's or its successor's, by version
    set_client_factory(lambda: kind(event_hooks=hooks, follow_redirects=True, timeout=silence))
    disable_progress_bars()
    logging.set_verbosity_error()


def response_of(error: BaseException) -> Any:
    """Return the Hub's answer behind an error, or None."""
    seen: BaseException | None = error
    while seen is not None:
        if (response := getattr(seen, "response", None)) is not None:
            return response
        seen = seen.__cause__
    return None


def status_of(error: BaseException) -> int | None:
    """Return the HTTP status behind an error, or None."""
    return getattr(response_of(error), "status_code", None)


def is_hopeless(error: BaseException) -> bool:
    """Tell whether waiting alone will not mend this."""
    return status_of(error) in HOPELESS


# ------------------------------------------------------------------------------------------
# The command


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
    tag = tag or f"kimg-{kimg_text(kimg)}"
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
