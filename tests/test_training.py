"""The training loop: batches, resuming in the middle, selection, and what a non-finite loss says."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from cpgr.training import Batches, TrainingConfig, make_accelerator, seed_everything, train


class Data(torch.utils.data.Dataset):
    def __init__(self, size=40):
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(size, 8, generator=generator)

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        return self.x[index]


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Dropout(0.5), nn.Linear(16, 1))
        self.frozen = nn.Linear(4, 4).requires_grad_(False)
        self.seen = 0

    def forward(self, batch):
        self.seen += 1
        if self.seen == getattr(self, "stop_at", None):
            raise KeyboardInterrupt
        loss = (self.net(batch) - batch.sum(1, keepdim=True)).pow(2).mean()
        return {"fit": loss, "loss": loss}


CONFIG = TrainingConfig(steps=30, batch_size=8, learning_rate=1e-2, warmup=3)


def make(kind=Model):
    seed_everything("weights")
    return kind()


def go(work, model=None, config=CONFIG, **options):
    model = model or make()
    seed_everything("training")
    history = train(model, Data(), torch.stack, config, make_accelerator("fp32"), seed=3, work=work, what="test", **options)
    return model, history


def test_training_learns_and_keeps_its_state_until_the_caller_has_saved(tmp_path):
    model, history = go(tmp_path / "w")
    assert history.losses["loss"][-1] < history.losses["loss"][0] and not model.training
    again, same = go(tmp_path / "w")
    assert again.seen == 0 and same.losses == history.losses
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))


def test_a_full_disk_does_not_end_the_training(tmp_path, monkeypatch):
    def full(*_):
        raise RuntimeError("PytorchStreamWriter failed writing file: No space left on device")

    monkeypatch.setattr(torch, "save", full)
    model, _ = go(tmp_path / "w", config=TrainingConfig(steps=3, batch_size=8, checkpoint_seconds=1e-9))
    assert model.seen == 3 and not list((tmp_path / "w").iterdir())


@pytest.mark.parametrize(("stop", "ema"), [(1, 0.0), (2, 0.0), (11, 0.0), (29, 0.0), (30, 0.0), (11, 0.9)])
def test_interrupted_and_resumed_is_bit_identical(tmp_path, stop, ema):
    config = replace(CONFIG, ema=ema)
    whole, history = go(tmp_path / "a", config=config)
    broken = make()
    broken.stop_at = stop
    with pytest.raises(KeyboardInterrupt):
        go(tmp_path / "b", broken, config)
    assert (tmp_path / "b" / "training.pt").exists()
    resumed, again = go(tmp_path / "b", config=config)
    assert again.losses == history.losses
    for (name, a), (_, b) in zip(whole.state_dict().items(), resumed.state_dict().items(), strict=True):
        assert torch.equal(a, b), name


class Recorded(Model):
    """Keeps the weights and the running mean of every step as they are before it."""

    def __init__(self):
        super().__init__()
        self.trail = []

    def forward(self, batch):
        self.trail.append([self.net[0].weight.detach().double().clone(), self.net[1].running_mean.double().clone()])
        return super().forward(batch)


def test_the_average_follows_its_formula_buffers_too(tmp_path):
    """decay_t = min(ema, (t + 1) / (t + 10)) of RefCLIP's and SimREC's code, over every step, from the first weights on."""
    last, _ = go(tmp_path / "last", make(Recorded))
    model, _ = go(tmp_path / "ema", make(Recorded), replace(CONFIG, ema=0.6))
    ends = [last.net[0].weight.detach().double(), last.net[1].running_mean.double()]
    for place, kept in enumerate((model.net[0].weight, model.net[1].running_mean)):
        values = [*(step[place] for step in model.trail), ends[place]]
        mean = values[0]
        for t, value in enumerate(values[1:]):
            decay = min(0.6, (t + 1) / (t + 10))
            mean = decay * mean + (1 - decay) * value
        torch.testing.assert_close(kept.double(), mean, rtol=1e-5, atol=1e-6)
        assert not torch.allclose(kept.double(), ends[place], rtol=1e-3)


def test_validation_sees_the_average_and_training_goes_on_from_the_last(tmp_path):
    seen = []
    model = make(Recorded)
    config = replace(CONFIG, ema=0.6, validate_every=10)

    def validate():
        assert not model.training
        seen.append(model.net[0].weight.detach().clone())
        return float(-len(seen))  # the first is the best

    go(tmp_path / "a", model, config, validate=validate)
    plain = go(tmp_path / "b", make(Recorded))[0]
    assert all(torch.equal(a, b) for x, y in zip(model.trail, plain.trail, strict=True) for a, b in zip(x, y, strict=True))
    assert len(seen) == 3 and torch.equal(model.net[0].weight, seen[0])


def test_batches_cover_each_epoch_once():
    one = list(Batches(10, 4, 5, seed=1))
    assert sorted(one[0] + one[1]) == sorted(set(one[0] + one[1])) and one[0] != one[2]
    assert list(Batches(10, 4, 5, seed=1, first=3)) == one[3:]
    assert list(Batches(3, 8, 2, seed=1))[0].__len__() == 3


def test_the_best_validation_is_kept(tmp_path):
    scores = iter([0.1, 0.9, 0.3])
    states = []

    def validate():
        states.append({k: v.clone() for k, v in model.state_dict().items()})
        return next(scores)

    model = make()
    _, history = go(tmp_path / "w", model, TrainingConfig(steps=30, batch_size=8, validate_every=10), validate=validate)
    assert history.validation == [[10, 0.1], [20, 0.9], [30, 0.3]]
    assert all(torch.equal(v, states[1][k]) for k, v in model.state_dict().items())


def test_a_loss_that_is_not_finite_is_an_error(tmp_path):
    class Broken(Model):
        def forward(self, batch):
            loss = super().forward(batch)["loss"] * float("nan")
            return {"loss": loss}

    with pytest.raises(FloatingPointError, match="loss is not finite"):
        go(tmp_path / "w", make(Broken))


def test_the_rate_falls_as_asked():
    from cpgr.training import _rate

    def rates(steps=100, **options):
        config = TrainingConfig(warmup=0, **options)
        return [_rate(step, steps, config) for step in range(steps + 1)]

    stepped = rates(schedule="steps", falls=(0.5, 0.75))
    assert stepped[0] == stepped[49] == 1 and stepped[50] == stepped[74] == pytest.approx(0.1) and stepped[75] == pytest.approx(0.01)
    # MAttNet: the full rate for a while, then a tenth every so many steps
    fallen = rates(steps=300, schedule="exponential", falls=(80 / 300,), final_rate=0.1 ** (220 / 80))
    assert fallen[80] == 1 and fallen[160] == pytest.approx(0.1) and fallen[240] == pytest.approx(0.01)
    cosine = rates(final_rate=0.2)
    assert cosine[0] == 1 and cosine[50] == pytest.approx(0.6) and cosine[100] == pytest.approx(0.2)
