"""The script that makes the shipped models, for a few steps: what it writes is what the package loads."""

import numpy as np
import pytest

from cpgr.vocabulary import BUILTIN


@pytest.mark.slow
def test_a_few_steps_of_everything(tmp_path):
    from cpgr.generation.checkpoints import load_blip2
    from cpgr.pretrain import main

    steps = [item for name in ("detector", "bert", "blip2") for item in (f"--{name}-steps", "2")]
    main(["--out", str(tmp_path), "--images", "40", *steps])
    made, shipped = ({str(p.relative_to(root)) for p in root.rglob("*") if p.is_file()} for root in (tmp_path, BUILTIN))
    assert made == shipped
    loaded = load_blip2(str(tmp_path / "blip2"), str(tmp_path / "blip2-itm"))
    assert loaded.captioner.config.num_query_tokens == 8 and set(loaded.parts) == {"embeddings", "vision_projection", "text_projection", "itm_head"}


def test_the_shipped_models_are_small():
    assert sum(p.stat().st_size for p in BUILTIN.rglob("*") if p.is_file()) < 12e6


def test_words_hold_of_the_boxes_they_are_true_of():
    """What is no negative of ITC and ITM: every region that a text is true of, by the scene's own judgement."""
    from cpgr.data.scenes.grammar import judge
    from cpgr.pretrain.phrases import Phrases
    from cpgr.pretrain.scenes import draw

    drawn, rng = draw(6), np.random.default_rng(0)
    for context in (0.0, 1.0):
        phrases = Phrases(drawn, context)
        picks = [(i, k) for i, d in enumerate(drawn) for k in range(len(d.boxes))]
        texts = [phrases.draw(i, k, rng) for i, k in picks]
        holds = phrases.hold(picks, texts)
        assert holds.diagonal().all() and 0 < int(holds.sum()) - len(picks) < len(picks) ** 2 / 2
        for (i, k), row in zip(picks, holds.tolist(), strict=True):
            for (j, m), text, found in zip(picks, texts, row, strict=True):
                assert found == (judge(drawn[i].scene, text, k)[0] or (i, k) == (j, m))


def test_a_prefix_is_the_words_of_a_run():
    from cpgr.pretrain.phrases import Phrases
    from cpgr.pretrain.scenes import draw

    drawn = draw(3)
    phrases = Phrases(drawn, 0.0)
    always = type("Always", (), {"random": lambda self: 0.0})()
    for i, d in enumerate(drawn):
        for k, item in enumerate(d.scene.objects):
            words = phrases.prefix(i, k, always).split()
            assert words[-1] == item.category and item.colour in words and item.size in words
