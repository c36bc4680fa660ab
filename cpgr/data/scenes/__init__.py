"""The built-in world: small scenes with expressions whose truth can be judged; everything runs with no download.

`sample_scene` draws a scene, `render` paints it, `expressions` refer to its objects, `judge` says whether a text is
true of an object, and `write_scenes` puts a world on disk as REFER files.
"""

from .annotations import annotations, categories, scene_from_annotations
from .captions import caption, detection_phrase
from .grammar import Referring, express, expressions, judge
from .parsing import parse
from .programs import Noun, Program, denote, members
from .render import render
from .sample import sample_scene
from .scene import Placement, Scene, SceneObject, resized
from .vocabulary import CATEGORIES, COLOURS, KEYPOINTS, PATTERNS, SHAPES, SIZES, THINGS, category_id, supercategory
from .write import write_scenes

__all__ = [
    "CATEGORIES", "COLOURS", "KEYPOINTS", "PATTERNS", "SHAPES", "SIZES", "THINGS", "Noun", "Placement", "Program",
    "Referring", "Scene", "SceneObject", "annotations", "caption", "categories", "category_id", "denote",
    "detection_phrase", "express", "expressions", "judge", "members", "parse", "render", "resized", "sample_scene",
    "scene_from_annotations", "supercategory", "write_scenes",
]
