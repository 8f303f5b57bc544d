"""Snapshots → commits of one repository, from a thread that training never waits for.

publisher = Publisher("owner/name", token="…")
publisher.submit(snapshot)
publisher.close()
"""

from __future__ import annotations

import contextlib
import re
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from huggingface_hub import CommitOperationAdd, HfApi, get_session, get_token, set_client_factory
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import disable_progress_bars, logging, validate_repo_id

from training.hub.contents import Snapshot
from training.hub.errors import PublishError

PAUSES = (2.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)  # seconds before another try
START_TRIES = 3  # before a run starts, at a Hub that fails
LAST_TRIES = 3  # after a run has ended
LONGEST_REQUEST = 3600  # seconds that a Hub may ask us to wait
PERMANENT = (400, 401, 402, 403, 404, 413, 422)  # statuses that waiting alone does not mend
LARGE = (".safetensors", ".png")


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
        configure_client(silence)
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
                if is_permanent(error):
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
                assert snapshot is not None  # _take took one
                if error is None:
                    self._failures = 0
                    continue
                self._fault = self._describe(error)
                self._pending = self._pending or snapshot
                self._failures += 1
                if self._closing and (is_permanent(error) or self._failures >= LAST_TRIES):
                    return
                if self._failures == 1 and not self._closing:
                    self._say(
                        f"{snapshot.message} could not be pushed to {self.repo} ({self._fault}). "
                        f"It is all in {snapshot.folder}; training continues, and so do the tries."
                    )

                def begins_to_close(was_closing: bool = self._closing) -> bool:
                    return self._closing and not was_closing

                self._changed.wait_for(begins_to_close, self._pause(error))

    def _take(self) -> bool:
        """Wait for a snapshot and make it the current one; False when closed and none is left."""
        with self._changed:
            self._changed.wait_for(lambda: self._pending or self._closing)
            self._current, self._pending = self._pending, None
            return self._current is not None

    def _try(self) -> Exception | None:
        """Push the current snapshot; return what went wrong."""
        snapshot = self._current
        assert snapshot is not None
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
        words: dict[int | None, str] = {
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


def configure_client(silence: float) -> None:
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


def is_permanent(error: BaseException) -> bool:
    """Tell whether waiting alone will not mend this."""
    return status_of(error) in PERMANENT
