"""Settings that every test needs before torch is imported, and where real photographs lie if there are any."""

import os

# one thread: two test processes on two cores must not fight, and sums come out the same everywhere
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest  # noqa: E402 - the settings above come first


@pytest.fixture(scope="session")
def small_world(tmp_path_factory):
    """A written world of 12 training scenes: its root, its training `Split` and the held `Truth`."""
    from cpgr.data.readers import DataConfig, read_split
    from cpgr.data.records import Problems
    from cpgr.data.scenes.write import write_scenes

    root = tmp_path_factory.mktemp("small") / "world"
    write_scenes(root, seed=3, images=12, held_out=2)
    config = DataConfig(format="refer", root=str(root), dataset="scenes")
    return root, *read_split(config, "train", Problems())


@pytest.fixture(scope="session")
def accelerator():
    from cpgr.training import make_accelerator

    return make_accelerator("fp32")


@pytest.fixture(scope="session")
def small_proposals(small_world):
    """The shipped detector's proposals of the small world's training split."""
    from cpgr.data.proposals import ProposalConfig, build_detector, propose

    config = ProposalConfig(max_regions=6)
    return propose(build_detector("builtin", config), small_world[1], config)


@pytest.fixture(scope="session")
def poisoned():
    """`poisoned(world, target)`: a written world's copy with every region of the training split replaced by noise."""
    return _poisoned


def _poisoned(world, target):
    import json
    import pickle
    import random
    import shutil

    shutil.copytree(world, target)
    rng = random.Random(0)
    refs = pickle.loads((target / "scenes" / "refs(scenes).p").read_bytes())
    train = {ref["image_id"] for ref in refs if ref["split"] == "train"}
    path = target / "scenes" / "instances.json"
    instances = json.loads(path.read_text())
    for ann in instances["annotations"]:
        if ann["image_id"] in train:
            ann["bbox"] = [rng.uniform(0, 60), rng.uniform(0, 60), rng.uniform(1, 60), rng.uniform(1, 60)]
            ann["segmentation"] = [[0, 0, 5, 0, 5, 5]]
            ann["category_id"] = 1
            ann["attributes"] = {"colour": "red", "size": "small", "pattern": "plain"}
    path.write_text(json.dumps(instances))
    return target
