"""Other weights than the page's own, by the `rev` of an address.

An address names weights by the first 12 hex digits of their SHA-256. The last releases of Kaogan
lie in assets/earlier, in a folder of that name each; other weights are looked for in the repository
that the page was started with. The Hub tells the SHA-256 of a large file
without sending it, so the commit that holds them is found by asking, for each tag, branch and
commit of that repository, what its `model.safetensors` would be.
"""

from __future__ import annotations

import logging
import re
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from threading import Event, Lock, Thread
from typing import Any, Generic, Protocol, TypeVar

from huggingface_hub import constants, get_hf_file_metadata, get_session, hf_hub_url
from huggingface_hub.errors import RemoteEntryNotFoundError
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status

from model import WEIGHTS_NAME, ModelError

MAX_COMMITS = 64  # whose weights' SHA-256 is asked for
MAX_SECONDS = 10.0  # of asking, and of silence in one request
PATIENCE = 20.0  # seconds that a visitor waits for other weights
FRESH = 60.0  # seconds before the Hub is asked again for weights that it did not have
KEPT = 2  # opened generators
EARLIER = Path(__file__).resolve().parent.parent / "assets" / "earlier"
MAX_SEARCHES = 4  # at once


class Opened(Protocol):
    """What is opened: something that knows which weights it has."""

    revision: str  # first 12 hex digits of their SHA-256


Kind = TypeVar("Kind", bound=Opened)


class Search(Generic[Kind]):
    """One revision that somebody waits for."""

    def __init__(self) -> None:
        self.done = Event()
        self.found: Kind | None = None


class Revisions(Generic[Kind]):
    """Finds, opens and keeps a few other revisions, of the bundle or of one repository.

    Args:
        load: (folder or repository, commit or None) → what is opened; raises ModelError.
    """

    def __init__(self, load: Callable[[str | Path, str | None], Kind]) -> None:
        self._load = load
        self._lock = Lock()  # of what is kept; never held while the Hub is asked
        self._asking = Lock()
        self._opened: OrderedDict[str, Kind] = OrderedDict()
        self._searches: dict[str, Search[Kind]] = {}
        self._commits: dict[str, str] = {}  # first 12 hex digits of the weights → commit
        self._asked: set[str] = set()  # commits whose weights are known
        self._asked_all_at = float("-inf")

    def open(self, repo: str, rev: str, patience: float = PATIENCE) -> Kind | None:
        """Return what was opened of the weights that `rev` names, or None.

        None: no revision of the bundle or of this repository ("": there is none), none that can
        be used, or the Hub is slow; it may then be there when asked again.
        """
        if not re.fullmatch("[0-9a-f]{12}", rev):
            return None
        with self._lock:
            if rev in self._opened:
                self._opened.move_to_end(rev)
                return self._opened[rev]
            search = self._searches.get(rev)
            if search is None:
                if len(self._searches) >= MAX_SEARCHES:
                    return None
                search = self._searches[rev] = Search()
                # Daemonic, so that a silent Hub cannot keep the page from ending.
                Thread(target=self._run, args=(repo, rev, search), daemon=True).start()
        search.done.wait(patience)
        return search.found

    def _run(self, repo: str, rev: str, search: Search[Kind]) -> None:
        """Find and open a revision, and keep it."""
        try:
            with self._asking:
                search.found = self._open(repo, rev)
        finally:
            with self._lock:
                if search.found is not None:
                    self._opened[rev] = search.found
                while len(self._opened) > KEPT:
                    self._opened.popitem(last=False)
                del self._searches[rev]
            search.done.set()

    def _open(self, repo: str, rev: str) -> Kind | None:
        """Open a revision, or return None and tell the operator why."""
        try:
            if is_bundled(rev):
                return self._load(EARLIER / rev, None)
            commit = find_cached(repo, rev) or self._find(repo, rev) if repo else None
            opened = self._load(repo, commit) if commit else None
        except (
            Exception
        ) as error:  # the client's HTTP library, which its version decides, has its own
            if not isinstance(error, ModelError):
                self._asked_all_at = time.monotonic()  # a Hub that fails is left alone for a while
            logging.getLogger(__name__).warning("revision %s of %s: %s", rev, repo, error)
            return None
        return opened if opened and opened.revision == rev else None

    def _find(self, repo: str, rev: str) -> str | None:
        """Return the commit whose weights start with `rev`; ask the Hub if it is not known."""
        if rev in self._commits or time.monotonic() - self._asked_all_at < FRESH:
            return self._commits.get(rev)
        deadline = time.monotonic() + MAX_SECONDS
        new = (c for c in list_commits(repo) if c not in self._asked)
        for commit in islice(new, MAX_COMMITS):
            if time.monotonic() > deadline:
                break
            weights = weights_of(repo, commit)
            if weights is not None:
                self._asked.add(commit)
                self._commits.setdefault(weights[:12], commit)
            if rev in self._commits:
                return self._commits[rev]
        self._asked_all_at = time.monotonic()
        return None


def is_bundled(rev: str) -> bool:
    """Tell whether the weights of an earlier release lie in the bundle; `rev` may be anything."""
    return bool(re.fullmatch("[0-9a-f]{12}", rev)) and (EARLIER / rev / WEIGHTS_NAME).is_file()


def list_commits(repo: str) -> Iterator[str]:
    """Yield a repository's tagged commits, its branches' heads, then the newest ones of all."""
    refs = ask(f"/api/models/{repo}/refs")
    yield from (str(ref["targetCommit"]) for kind in ("tags", "branches") for ref in refs[kind])
    yield from (str(commit["id"]) for commit in ask(f"/api/models/{repo}/commits/main"))


def ask(path: str) -> Any:
    """Return the Hub's answer, JSON, to one question."""
    answer = get_session().get(
        constants.ENDPOINT + path, headers=build_hf_headers(), timeout=MAX_SECONDS
    )
    hf_raise_for_status(answer)
    return answer.json()


def weights_of(repo: str, commit: str) -> str | None:
    """Return the SHA-256 of a commit's weights: 64 hex digits, "" for none, None if not told."""
    if not re.fullmatch("[0-9a-f]{40}", commit):
        return ""
    try:
        url = hf_hub_url(repo, WEIGHTS_NAME, revision=commit)
        etag = get_hf_file_metadata(url, timeout=MAX_SECONDS).etag or ""
    except RemoteEntryNotFoundError:
        return ""
    except Exception:  # of the client's HTTP library, which its version decides
        return None
    return etag if re.fullmatch("[0-9a-f]{64}", etag) else ""


def find_cached(repo: str, rev: str) -> str | None:
    """Return a downloaded commit whose weights start with `rev`; the Hub is not asked."""
    folder = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repo, repo_type="model")
    for weights in sorted(folder.glob(f"snapshots/*/{WEIGHTS_NAME}")):
        # The cache names a large file by its SHA-256; its bytes are checked when it is opened.
        if weights.is_symlink() and weights.readlink().name.startswith(rev):
            return weights.parent.name
    return None
