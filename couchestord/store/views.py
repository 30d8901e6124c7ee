"""What processes that read beside this one may still see: space is freed once none of them can see what lies there."""

from collections.abc import Callable

from couchestord.io.sharedpage import SharedPage


class Views:
    """Asked before something is freed that readers of an older state of the catalog would look for.

    Without other processes everything may go at once: pins (`store.pins`) say what readers of this one hold.
    """

    def __init__(self) -> None:
        self._page: SharedPage | None = None
        self.workers: Callable[[], list[int]] = list
        """Ids of the workers that read now."""
        self._noted: dict[int, int] = {}
        self._point: tuple[int, int] | None = None

    def share(self, page: SharedPage, workers: Callable[[], list[int]]) -> None:
        """Others read from now on and say in `page` what they see. `workers` answers the process ids of some."""
        self._page, self.workers = page, workers

    def is_unseen(self, segment: int) -> bool:
        """Whether nobody can see a segment any more that was dead when this was asked for the first time.

        Ask again later when not. Who reads longer has pinned it by then.
        """
        page = self._page
        if page is None:
            return True
        noted = self._noted.setdefault(segment, page.version)
        if page.seen_by_all() < noted:
            return False
        del self._noted[segment]
        return True

    def trim_point(self, wanted: int) -> int:
        """Up to where records may go, of which nobody needs those before `wanted`: the last such point that everybody
        has seen. 0 when there is none yet.
        """
        page = self._page
        if page is None:
            return wanted
        seen = page.seen_by_all()
        if self._point is None:
            self._point = (page.version, wanted)
        version, point = self._point
        if seen < version:
            return 0
        if seen >= page.version:
            point = wanted
        self._point = None
        return min(point, wanted)
