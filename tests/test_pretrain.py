"""The script that makes the shipped models, for a few steps: what it writes is what the package loads."""

import pytest

from cpgr.vocabulary import BUILTIN


@pytest.mark.slow
def test_a_few_steps_of_everything(tmp_path):
    from cpgr.generation.checkpoints import load_blip2
    from cpgr.pretrain import main

    steps = [item for name in ("detector", "bert", "blip2", "prefix") for item in (f"--{name}-steps", "2")]
    main(["--out", str(tmp_path), "--images", "40", *steps])
    made, shipped = ({str(p.relative_to(root)) for p in root.rglob("*") if p.is_file()} for root in (tmp_path, BUILTIN))
    assert made == shipped
    loaded = load_blip2(str(tmp_path / "blip2"), str(tmp_path / "blip2-itm"))
    assert loaded.captioner.config.num_query_tokens == 8 and set(loaded.parts) == {"embeddings", "vision_projection", "text_projection", "itm_head"}


def test_the_shipped_models_are_small():
    assert sum(p.stat().st_size for p in BUILTIN.rglob("*") if p.is_file()) < 12e6
