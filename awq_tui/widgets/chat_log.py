"""The conversation's scrolling column: stays at the end while text arrives, unless the person scrolled up."""

from __future__ import annotations

from textual.containers import VerticalScroll


class ChatLog(VerticalScroll, can_focus=True):
    """Follows new text; scrolling up stops that, coming back to the end starts it again."""

    DEFAULT_CSS = """
    ChatLog { height: 1fr; padding: 0 1; scrollbar-size-vertical: 1; layout: stream; }
    """

    SLACK = 2
    """Lines above the end that count as the end: the end moves away while a reply is written."""

    def watch_scroll_y(self, old_value: float, new_value: float) -> None:
        super().watch_scroll_y(old_value, new_value)
        if new_value > old_value and new_value >= self.max_scroll_y - self.SLACK and not self.follows:
            self.anchor()

    def release_anchor(self) -> None:
        """Every scrolling by hand releases; one that was already at the end moves nothing, so ask again afterwards."""
        super().release_anchor()
        self.call_after_refresh(self._follow_again)

    def _follow_again(self) -> None:
        if self.scroll_target_y >= self.max_scroll_y and not self.follows:
            self.anchor()

    @property
    def follows(self) -> bool:
        """Whether the view stays at the end by itself."""
        return self.is_anchored and not self._anchor_released
