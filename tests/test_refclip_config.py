"""The published settings: the shipped config says what the dataclasses have, and no size of the built-in world is left in it."""

from dataclasses import asdict

from cpgr.config import make_parser, named_config
from cpgr.grounding.students import GROUNDERS
from cpgr.recipes import refclip
from cpgr.refinement.anchors import AnchorConfig

WHERE = {"visual", "image_size", "proposals", "vectors", "memory_mb"}  # places and memory: the user's


def differing(ours, published) -> dict:
    found = {}
    for key, value in published.items():
        if isinstance(value, dict):
            found |= {f"{key}.{k}": v for k, v in differing(ours[key], value).items()}
        elif key not in WHERE and plain(ours[key]) != plain(value):
            found[key] = ours[key]
    return found


def plain(value):
    return [plain(v) for v in value] if isinstance(value, (list, tuple)) else value


def test_refcoco_is_as_published():
    parser = make_parser(refclip.Config, "refclip", "test")
    config = parser.instantiate(parser.parse_args(["--config", named_config("refclip-refcoco")]))
    assert differing(asdict(config.refinement), asdict(AnchorConfig())) == {"fusion_width": 1024}  # 0 takes the same
    for name, (kind, _) in GROUNDERS.items():
        assert differing(asdict(getattr(config.grounding, name)), asdict(kind())) == {}, name
    assert config.cycles == 1 and config.data.format == "refclip"
