"""What a picture is exported for, as data: size, how large the head is in it, and where the eyes are.

Where the numbers come from:

- LinkedIn shows a profile picture as a circle, advises that the face takes up about 60 % of the frame and takes
  squares from 400 pixels; twice that stays sharp on fine screens. 60 % is read as the head with its hair, which is
  0.52 from crown to chin by the proportions in ``framing.py``. A head alone in the middle of a circle looks
  lifted, so the eyes are a little above the middle.
- A portrait in a CV is 3:4. The head takes a bit more than two fifths of the height, so that the shoulders, about
  twice as wide as the head, just fit; the eyes at 40 %, near the upper third where a portrait is looked at first.
- A badge follows passport photos: 35 x 45 mm at 300 dpi, and by ICAO Doc 9303 the head from crown to chin takes
  70 to 80 % of the height and the eyes lie in the middle of the picture or above it. The lower end leaves room
  for hair.
"""

from __future__ import annotations

from dataclasses import dataclass

from headshot_ui.errors import SpecError


@dataclass(frozen=True)
class Layout:
    """One purpose. Width and height 0: the whole picture in its own size, and nothing is cut."""

    id: str
    title: str
    purpose: str  # one sentence for people
    width: int  # pixels
    height: int
    head_share: float = 0.0  # crown to chin, of the height
    eye_level: float = 0.0  # from the top, of the height
    circle: bool = False  # shown as a circle, so the whole head lies within the one that touches the edges
    dpi: int = 0  # 0: a picture for screens, where dots per inch mean nothing

    @property
    def whole(self) -> bool:
        """True when nothing is cut."""
        return not self.height

    @property
    def aspect(self) -> float:
        """Width over height; only for layouts that cut."""
        return self.width / self.height


LAYOUTS: tuple[Layout, ...] = (
    Layout("linkedin", "LinkedIn", "A square for profile pictures: the head stays whole when it is shown as a circle.",
           800, 800, head_share=0.52, eye_level=0.45, circle=True),
    Layout("cv", "CV", "An upright picture of head and shoulders for a CV or an application.",
           900, 1200, head_share=0.42, eye_level=0.40, dpi=300),
    Layout("badge", "Badge", "35 x 45 mm with a large face, for name badges and staff cards; not for a passport.",
           413, 531, head_share=0.72, eye_level=0.50, dpi=300),
    Layout("full", "Full size", "The whole picture in its own size, with nothing cut.", 0, 0),
)  # fmt: skip


def find_layout(layout_id: str) -> Layout:
    """The layout of that id. Raises SpecError, listing what there is."""
    for layout in LAYOUTS:
        if layout.id == layout_id:
            return layout
    known = ", ".join(layout.id for layout in LAYOUTS)
    raise SpecError("layouts", f"There is no layout “{layout_id}”; choose from {known}.")
