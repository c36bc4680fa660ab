"""Words of the built-in world: categories, colours, sizes and patterns, each one lower-case token."""

THINGS = ("house", "tree", "fish", "flower", "cup", "heart", "moon")
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring", "arrow")
CATEGORIES = THINGS + SHAPES

# Hues lie at least 20 degrees apart (or differ in saturation), so that lighting and noise cannot swap two.
COLOURS = {
    "red": (222, 38, 42),
    "green": (46, 168, 62),
    "blue": (48, 98, 228),
    "yellow": (250, 222, 52),
    "orange": (248, 136, 22),
    "purple": (142, 58, 196),
    "pink": (255, 132, 190),
    "white": (248, 248, 246),
}

# Longest side of the full silhouette in 1/128 of the image width, both ends included. The gaps between the
# ranges keep a size word from being a matter of one pixel.
SIZES = {"small": (13, 16), "medium": (19, 25), "large": (28, 37)}

PATTERNS = ("plain", "striped", "dotted")

KEYPOINTS = ("top", "right", "bottom", "left", "centre")


def supercategory(category: str) -> str:
    """`thing` or `shape`."""
    return "thing" if category in THINGS else "shape"


def category_id(category: str) -> int:
    """COCO id, from 1."""
    return CATEGORIES.index(category) + 1
