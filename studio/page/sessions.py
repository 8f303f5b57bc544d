"""Sessions of the page that cost nothing to open.

Gradio describes every component of a page anew for each session: inspected signatures, JSON
schemas. With as many as this page has, that is most of the time of a caller's request, because a
program that asks over plain HTTP opens a session with each question, and half a megabyte for each
visitor. The descriptions are always the same until a session changes a component, so here they are
made once and shared.
"""

from __future__ import annotations

from typing import Any

from gradio.blocks import Block, Blocks, BlocksConfig


class SharedConfig(BlocksConfig):
    """Like Gradio's, but a component of the page itself is described only once.

    Args:
        page: a finished page; put the result into its `default_config`.
    """

    def __init__(self, page: Blocks) -> None:
        super().__init__(page)
        self.__dict__.update(vars(page.default_config))
        self._page_blocks = dict(self.blocks)
        self._described: dict[int, dict[str, Any]] = {}

    def __copy__(self) -> SharedConfig:
        """Return what a new session starts with."""
        new = object.__new__(SharedConfig)
        new.__dict__.update(vars(super().__copy__()), _page_blocks=self._page_blocks)
        new._described = self._described
        return new

    # Gradio's is static, but called of an instance, whose components this one knows.
    def config_for_block(  # type: ignore[override]
        self, _id: int, rendered_ids: list[int], block: Block, renderable: Any = None
    ) -> dict[str, Any]:
        """Describe a component; the answer is the caller's to change, except inside its values."""
        if renderable is not None or self._page_blocks.get(_id) is not block:
            return super().config_for_block(_id, rendered_ids, block, renderable)
        known = self._described.get(_id)
        if known is None:
            known = self._described[_id] = super().config_for_block(_id, rendered_ids, block)
        return {**known, "props": {**known["props"]}}
