"""The built-in world: what is sampled and painted."""

from collections import Counter
from time import perf_counter

import numpy as np
import pytest

from cpgr.data.scenes import (CATEGORIES, COLOURS, PATTERNS, SIZES, Scene, annotations, caption, detection_phrase,
                              expressions, judge, render, resized, sample_scene, scene_from_annotations)
from cpgr.data.scenes.sample import VISIBLE
from cpgr.data.scenes.scene import rim
from cpgr.data.scenes.silhouettes import TURNS, silhouette


def scenes(count, seed=0, pixels=128):
    return [sample_scene(np.random.default_rng([seed, k]), pixels) for k in range(count)]


@pytest.fixture(scope="module")
def world():
    return scenes(400)


def full_area(item, pixels):
    place = item.placement
    return silhouette(item.category, place.turn, place.side, rim(pixels)).area


def test_every_word_of_the_vocabulary_appears(world):
    seen = Counter(word for scene in world for item in scene.objects
                   for word in (item.category, item.colour, item.size, item.pattern))
    words = (*CATEGORIES, *COLOURS, *SIZES, *PATTERNS)
    assert set(seen) == set(words)
    assert all(word.isalpha() and word.islower() for word in words) and len(set(words)) == 14 + 8 + 3 + 3
    assert min(seen.values()) > 50


def test_scenes_hold_what_is_promised(world):
    for scene in world:
        assert 4 <= len(scene.objects) <= 10
        assert 1 <= len({item.category for item in scene.objects}) <= 4
        assert 2 <= len({item.colour for item in scene.objects}) <= 5
        for item in scene.objects:
            low, high = SIZES[item.size]
            assert low - 2 <= item.extent <= high  # a thin tip can cover less than half of its last pixels


def test_most_referents_have_a_distractor_of_their_category(world):
    found = []
    for k, scene in enumerate(world):
        for index in {made.index for made in expressions(scene, np.random.default_rng(k))}:
            found.append(sum(item.category == scene.objects[index].category for item in scene.objects) > 1)
    assert np.mean(found) >= 0.85


@pytest.mark.parametrize("pixels", [64, 128, 200])
def test_masks_boxes_and_keypoints_agree(pixels):
    hidden = 0
    for k, scene in enumerate(scenes(60, 1, pixels)):
        image, masks = render(scene, k)
        assert image.shape == (pixels, pixels, 3) and image.dtype == np.uint8
        assert masks.shape == (len(scene.objects), pixels, pixels) and masks.dtype == bool
        assert masks.sum(0).max() == 1
        for item, mask in zip(scene.objects, masks):
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            assert item.box == (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
            assert item.area == mask.sum() >= 0.6 * full_area(item, pixels)
            points = np.reshape(item.keypoints, (5, 3))
            for x, y, seen in points[:4]:
                assert mask[y, x] == (seen == 2)
            assert points[0, 1] == points[:4, 1].min() and points[2, 1] == points[:4, 1].max()
            assert points[1, 0] == points[:4, 0].max() and points[3, 0] == points[:4, 0].min()
            hidden += int((points[:, 2] == 1).any())
    assert hidden > 10


def test_occlusion_is_partial_and_present(world):
    shares = [item.area / full_area(item, 128) for scene in world for item in scene.objects]
    assert min(shares) >= VISIBLE
    assert 0.03 < np.mean(np.array(shares) < 0.95) < 0.4


def test_objects_look_their_colour():
    """The median pixel of a plain object is nearest to its own colour, whatever light falls on it."""
    names, values = list(COLOURS), np.array(list(COLOURS.values()), float)
    right = []
    for k, scene in enumerate(scenes(80, 2)):
        image, masks = render(scene, k)
        for item, mask in zip(scene.objects, masks):
            if item.pattern == "plain" and item.size != "small":
                colour = np.median(image[mask], 0)
                shape = colour / np.linalg.norm(colour)
                nearest = np.argmax(values @ shape / np.linalg.norm(values, axis=1))
                right.append(names[nearest] == item.colour)
    assert np.mean(right) > 0.98


def test_a_pattern_shows_even_on_small_objects():
    """Within the outermost pixel, patterned objects vary more in brightness than plain ones without inner details."""
    spread = {"plain": [], "striped": [], "dotted": []}
    for k, scene in enumerate(scenes(250, 6)):
        image, masks = render(scene, k)
        for item, mask in zip(scene.objects, masks):
            if item.category in ("circle", "square", "cross", "ring", "heart", "star", "arrow", "triangle", "moon"):
                inner = mask.copy()
                for axis in (0, 1):
                    for step in (-1, 1):
                        inner &= np.roll(mask, step, axis)
                if inner.sum() > 12:
                    bright = image[inner].max(1).astype(float)
                    spread[item.pattern].append(bright.std() / bright.mean())
    assert np.quantile(spread["plain"], 0.9) < 0.32
    assert np.quantile(spread["striped"], 0.03) > 0.32 and np.quantile(spread["dotted"], 0.03) > 0.3


def test_images_are_varied_and_not_degenerate():
    images = [render(scene, k)[0] for k, scene in enumerate(scenes(40, 3))]
    assert len({image.tobytes() for image in images}) == 40
    for image in images:
        assert image.std() > 12 and 60 < image.mean() < 200
        assert (image == 255).mean() < 0.3 and (image == 0).mean() < 0.05


def test_categories_differ_in_shape():
    """No silhouette could be mistaken for another one, even at the smallest size."""
    shapes = {}
    for category in CATEGORIES:
        for turn in range(TURNS.get(category, 1)):
            canvas = np.zeros((24, 24), bool)
            one = silhouette(category, turn, 24).mask
            top, left = (24 - one.shape[0]) // 2, (24 - one.shape[1]) // 2
            canvas[top:top + one.shape[0], left:left + one.shape[1]] = one
            shapes[category, turn] = canvas
    for a, first in shapes.items():
        for b, second in shapes.items():
            if a[0] < b[0]:
                assert (first & second).sum() / (first | second).sum() < 0.87, (a, b)


def test_seeds_decide_everything():
    one, same, other = (sample_scene(np.random.default_rng(seed)) for seed in (7, 7, 8))
    assert one == same and one != other
    assert np.array_equal(render(one, 3)[0], render(same, np.random.default_rng(3))[0])
    assert not np.array_equal(render(one, 3)[0], render(one, 4)[0])


def test_a_scene_can_be_painted_at_another_size():
    scene = scenes(1, 4)[0]
    image, masks = render(scene, 0, pixels=256)
    large = resized(scene, 256)
    assert image.shape == (256, 256, 3) and len(masks) == len(scene.objects)
    for item, twice, mask in zip(scene.objects, large.objects, masks):
        assert mask.sum() == twice.area
        assert np.allclose(np.array(item.box) * 2, twice.box, atol=5)
    with pytest.raises(ValueError, match="64"):
        sample_scene(np.random.default_rng(0), 32)


def test_annotations_give_back_a_scene_that_judges_alike(world):
    for k, scene in enumerate(world[:80]):
        masks = render(scene, k)[1]
        records = annotations(scene, masks, 1, 1)
        again = scene_from_annotations({"width": 128, "height": 128}, records)
        assert isinstance(again, Scene) and [item.box for item in again.objects] == [item.box for item in scene.objects]
        texts = [made.text for made in expressions(scene, np.random.default_rng(k), referents=4)]
        texts += [made.text for made in expressions(world[k + 80], np.random.default_rng(k), referents=2)]
        for text in texts:
            for index in range(len(scene.objects)):
                assert judge(again, text, index) == judge(scene, text, index)
        with pytest.raises(ValueError, match="sample a scene"):
            render(again, 0)


def test_captions_name_only_what_is_there(world):
    for k, scene in enumerate(world[:100]):
        text = caption(scene, np.random.default_rng(k))
        words = text.split()
        named = Counter(word for word in words if word in CATEGORIES)
        assert named == Counter(item.category for item in scene.objects)
        assert {word for word in words if word in COLOURS} <= {item.colour for item in scene.objects}
        short = caption(scene, np.random.default_rng(k), 2)
        assert sum(word in CATEGORIES for word in short.split()) == 2
        for item in scene.objects:
            phrase = detection_phrase(item).split()
            assert phrase[-1] == item.category and item.colour in phrase and item.size in phrase
            assert detection_phrase(item, np.random.default_rng(k))


def test_a_scene_takes_about_a_millisecond():
    pictures = scenes(200, 5)
    start = perf_counter()
    for k, scene in enumerate(pictures):
        render(scene, k)
    # Four times what one core needs: this guards against a lost cache, not against a busy machine.
    assert (perf_counter() - start) / 200 < 0.004
