"""Two processes against one: losses and gradients to rounding, labels and evaluation bit for bit, and what a failure does.

The processes talk over gloo; dropout is off, as each draws its own.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cpgr.data.scenes.write import write_scenes
from cpgr.labels import LabelTable

pytestmark = pytest.mark.slow

LAUNCH = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1", "--main_process_port", "0"]
LAUNCH += ["--mixed_precision", "no", "--dynamo_backend", "no"]
MADE = ("proposals.parquet", "basic.parquet", "refined.parquet", "predictions-val.parquet", "predictions-testA.parquet", "predictions-testB.parquet")


def launched(script, *args, processes=2):
    """The command that runs a script, or a module's name, in so many processes."""
    module = [] if str(script).endswith(".py") else ["-m"]
    start = LAUNCH if processes > 1 else []
    return [sys.executable, *start, *module, str(script), *map(str, args)]


def finish(command, timeout=300, log=None):
    """Run it; the exit code and all that it wrote."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True)
    try:
        out, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        pytest.fail(f"still running after {timeout} s: {process.communicate()[0][-2000:]}")
    return process.returncode, out


# -- the module -----------------------------------------------------------------------------------------------------

SUMS = """
import sys, torch
from torch import nn
from cpgr import processes
from cpgr.training import TrainingConfig, make_accelerator, train

class Model(nn.Module):
    '''Contrast of rows with all others: nothing that could be split; `spare` has no part in odd steps.'''
    def __init__(self):
        super().__init__()
        self.inner, self.spare, self.scale = nn.Linear(6, 5), nn.Linear(6, 5), nn.Parameter(torch.tensor(1.5))
    def read(self, x):
        return self.inner(x).tanh()
    def also(self, x):
        return self.spare(x).tanh()

class Step(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model, self.shared, self.step = model, processes.Rowwise(model, ("read", "also")), 0
    def forward(self, x):
        z = self.shared.read(x)
        self.step += 1
        other = self.shared.also(x) if self.step % 2 else z.flip(1)
        loss = nn.functional.cross_entropy(z @ other.t() * self.model.scale, torch.arange(len(x)))
        return {"contrast": loss, "loss": loss}

class Plain(nn.Module):
    '''A loss that is a weighted mean over rows.'''
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1))
    def forward(self, batch):
        x, w = batch
        return {"loss": ((self.net(x)[:, 0] - x.sum(1)) ** 2 * w).sum() / w.sum()}

class Rows(torch.utils.data.Dataset):
    def __init__(self):
        g = torch.Generator().manual_seed(0)
        self.x, self.w = torch.randn(40, 6, generator=g), torch.rand(40, generator=g) + 0.1
    def __len__(self): return 40
    def __getitem__(self, i): return i
    def whole(self, rows): return self.x[rows]
    def shared(self, rows): SEEN.append(len(rows)); return self.x[rows], self.w[rows]

class Weighted(Rows):
    def row_weights(self, rows): return self.w[rows]

SEEN = []
acc = make_accelerator("fp32")
config = TrainingConfig(steps=20, batch_size=7, learning_rate=1e-2, warmup=2)  # 7 rows: no two equal shares
out = {}
for name, model, data, collate in (("contrast", Step(Model()), Rows(), "whole"), ("mean", Plain(), Weighted(), "shared")):
    torch.manual_seed(1)
    for p in model.parameters():
        nn.init.normal_(p, std=0.3)
    history = train(model, data, getattr(data, collate), config, acc, seed=3, work=__import__("pathlib").Path(sys.argv[1]) / name, what=name)
    out[name] = history.losses["loss"] + torch.cat([p.detach().flatten() for p in model.parameters()]).tolist()
assert set(SEEN) == ({7} if processes.count() == 1 else {3 + processes.index()}), SEEN
parts = processes.joined({"a": {processes.index(): [1]}})
assert list(parts["a"]) == list(range(processes.count()))
assert processes.joined(list(processes.share(list(range(11))))) == list(range(11))
seen = processes.by_main(lambda: processes.index())()
assert seen == 0
if processes.is_main():
    torch.save(out, sys.argv[1] + "/out.pt")
processes.leave(0)
"""


def test_losses_and_weights_are_those_of_one_process(tmp_path):
    import torch

    script = tmp_path / "sums.py"
    script.write_text(SUMS)
    found = []
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        folder.mkdir()
        code, out = finish(launched(script, folder, processes=processes), timeout=120)
        assert code == 0, out[-3000:]
        found.append(torch.load(folder / "out.pt"))
    for name in found[0]:
        torch.testing.assert_close(torch.tensor(found[1][name]), torch.tensor(found[0][name]), rtol=1e-4, atol=1e-5)


FAILING = """
import sys, torch
from cpgr import execution, processes, run
from cpgr.errors import CpgrError

def work(argv, prog):
    processes.wait()
    if processes.index() == int(sys.argv[1]):
        raise CpgrError("the disk is full") if sys.argv[2] == "mistake" else KeyError("a bug")
    processes.joined([1])  # waits for the one that fails

execution.command = work
sys.exit(run.main([]))
"""


@pytest.mark.parametrize("who", [0, 1])
@pytest.mark.parametrize("kind", ["mistake", "bug"])
def test_one_failure_ends_all_and_is_told_once(tmp_path, who, kind):
    script = tmp_path / "failing.py"
    script.write_text(FAILING)
    start = time.monotonic()
    code, out = finish(launched(script, who, kind), timeout=90)
    assert code != 0 and time.monotonic() - start < 80
    told = "error: the disk is full" if kind == "mistake" else f"error: process {who} failed"
    assert out.count(told) == 1, out
    assert "gloo" not in out.lower()


# -- whole runs -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A world, and the text encoder without its dropout."""
    import cpgr

    root = tmp_path_factory.mktemp("processes")
    write_scenes(root / "world", seed=5, images=24)
    shutil.copytree(Path(cpgr.__file__).parent / "builtin" / "bert", root / "bert")
    config = json.loads((root / "bert" / "config.json").read_text())
    config.update(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    (root / "bert" / "config.json").write_text(json.dumps(config))
    return root


def command(place, out, processes, *more):
    options = ["cpgr", "--config", "smallest", "--threads", "1", "--precision", "fp32", "--data.format", "refer", "--data.root", place / "world"]
    options += ["--data.dataset", "scenes", "--grounding.text", place / "bert", "--out", out]
    options += ["--grounding.training.steps", "20", "--generation.training.steps", "10", *more]
    return launched("cpgr.run", *options, processes=processes)


def run(place, out, processes, *more):
    code, said = finish(command(place, out, processes, *more))
    assert code == 0, said[-3000:]
    return said


@pytest.fixture(scope="module")
def one(place):
    run(place, place / "one", 1)
    return place / "one"


def table(path):
    return repr(list(LabelTable.load(path)))


def losses(folder):
    return json.loads((folder / "history.json").read_text())["losses"]


def test_a_run_of_two_processes(place, one):
    """Labels of the first cycle bit for bit; losses to rounding, as it grows in 20 steps of AdamW; one log."""
    said = run(place, place / "two", 2)
    for name in ("proposals.parquet", "basic.parquet", "refined.parquet"):
        assert table(place / "two" / "cycle-1" / name) == table(one / "cycle-1" / name), name
    for part in ("cycle-1/grounding", "cycle-2/generation"):
        mine, theirs = losses(place / "two" / part), losses(one / part)
        assert mine.keys() == theirs.keys() and mine
        for name in mine:
            assert mine[name] == pytest.approx(theirs[name], rel=2e-4), (part, name)
    assert said.count("cycle 2 of 2") == 1
    assert (place / "two" / "report.html").stat().st_size > 10_000
    assert not [p for p in (place / "two").rglob("*") if p.suffix == ".tmp" or p.name.endswith(".partial")]


def test_the_same_weights_give_the_same_labels_and_figures(place, one):
    """Generation, judging, attention and evaluation are shared by batches, so not a bit changes."""
    again = place / "again"
    shutil.copytree(one, again)
    second = again / "cycle-2"
    for path in [*second.glob("predictions-*"), second / "basic.parquet", second / "refined.parquet", second / "metrics.json"]:
        path.unlink()
    run(place, again, 2, "--resume")
    for name in MADE:
        assert table(second / name) == table(one / "cycle-2" / name), name
    assert json.loads((second / "metrics.json").read_text()) == json.loads((one / "cycle-2" / "metrics.json").read_text())


def test_killed_and_resumed_in_two_processes(place):
    """kill -9 of all at some moments; the run ends with the labels and weights of one that was left alone."""
    options = ["--grounding.training.checkpoint_seconds", "0.5", "--generation.training.checkpoint_seconds", "0.5", "--cycles", "2"]
    start = time.monotonic()
    run(place, place / "left-alone", 2, *options)
    length = time.monotonic() - start
    out = place / "killed"
    for share in (0.45, 0.6, 0.5):
        resume = ["--resume"] if (out / "config.yaml").exists() else []
        process = subprocess.Popen(
            command(place, out, 2, *options, *resume), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        time.sleep(share * length)
        _kill_all(process)
    run(place, out, 2, *options, *(["--resume"] if (out / "config.yaml").exists() else []))
    made = sorted((place / "left-alone").glob("cycle-*/**/*"))
    assert {"proposals.parquet", "refined.parquet", "model.safetensors", "adapter_model.safetensors"} <= {path.name for path in made}
    for path in made:
        other = out / path.relative_to(place / "left-alone")
        if path.suffix == ".safetensors":
            assert other.read_bytes() == path.read_bytes(), path
        elif path.suffix == ".parquet":
            assert table(other) == table(path), path


def _kill_all(process):
    """The launcher and what it started: its processes are sessions of their own."""
    import psutil

    try:
        family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
    except psutil.NoSuchProcess:
        return
    for member in family:
        try:
            member.kill()
        except psutil.NoSuchProcess:
            pass
    process.wait()
