"""The built-in world on disk, drawn when a run asks for it."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

from .readers import DataConfig
from .scenes.write import write_scenes

log = logging.getLogger("cpgr")


def ensure_world(config: DataConfig, folder: Path) -> DataConfig:
    """The data config of a world of `config.world_images` training scenes in `folder` (or `config.root`), as any REFER
    data set. An existing world is read as it is: it was written whole."""
    root = Path(config.root) if config.root else folder
    if not (root / config.dataset).exists():
        log.info("drawing %d training scenes of seed %d into %s", config.world_images, config.seed, root)
        write_scenes(root, seed=config.seed, images=config.world_images, name=config.dataset)
    return replace(config, format="refer", root=str(root))
