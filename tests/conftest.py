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
