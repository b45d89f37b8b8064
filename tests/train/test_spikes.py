"""Spikes: a normal curve has none, planted ones are all found, and a resumed watch judges as one never stopped."""

import json
import math

import numpy as np
import pytest

from lathe.train.spikes import SpikeWatch

STEPS = 10_000


def falling(seed, *, noise=0.04, steps=STEPS):
    """A loss that falls from 10 along a power law with batch noise, and log-normal gradient norms."""
    random = np.random.default_rng(seed)
    loss = 2.5 + 7.5 * (1 + np.arange(steps) / 20) ** -0.5 + random.normal(0, noise, steps)
    norm = np.exp(random.normal(-1, 0.3, steps)) * (1 + 20 * np.exp(-np.arange(steps) / 30))
    return loss, norm


def judge_all(watch, loss, norm, start=0):
    pairs = zip(loss.tolist(), norm.tolist(), strict=True)
    found = [watch.judge(step, loss=a, grad_norm=b) for step, (a, b) in enumerate(pairs, start)]
    return [spike for spike in found if spike is not None]


@pytest.mark.parametrize(("seed", "noise"), [(0, 0.04), (1, 0.2), (2, 0.001)])
def test_a_normal_curve_has_no_spikes(seed, noise):
    assert judge_all(SpikeWatch(), *falling(seed, noise=noise)) == []


@pytest.mark.parametrize("curve", [np.full(500, 3.0), np.linspace(10, 0, 500), 4 * 0.97 ** np.arange(500)])
def test_smooth_curves_have_no_spikes(curve):
    assert judge_all(SpikeWatch(), curve, np.ones(500)) == []


def test_a_warm_up_that_rises_a_little_is_no_spike():
    loss = np.concatenate([np.linspace(9, 4, 200), np.linspace(4, 4.6, 300), np.linspace(4.6, 3, 300)])
    assert judge_all(SpikeWatch(), loss + np.random.default_rng(0).normal(0, 0.05, 800), np.ones(800)) == []


@pytest.mark.parametrize("spike", [5.0, 10.0])
def test_planted_spikes_are_all_found(spike):
    loss, norm = falling(3)
    by_loss, by_norm = list(range(60, STEPS, 371)), list(range(101, STEPS, 487))
    loss[by_loss] += 1.5 * spike * 0.04
    loss[60] += 0.3 * spike  # here the loss falls by 4 within the window
    norm[by_norm] *= math.exp(2 * spike * 0.3)
    found = judge_all(SpikeWatch(spike=spike), loss, norm)
    assert [s.step for s in found if s.kind == "loss"] == [s for s in by_loss if s not in by_norm]
    assert {s.step for s in found if s.kind == "gradient"} >= set(by_norm) - set(by_loss)


def test_a_spike_says_what_was_usual():
    watch = SpikeWatch(spike=6)
    for step in range(40):
        assert watch.judge(step, loss=3.0 + 0.02 * (-1) ** step, grad_norm=0.5) is None
    spike = watch.judge(40, loss=4.5, grad_norm=0.7)
    assert spike is not None
    assert (spike.step, spike.kind, spike.loss, spike.grad_norm) == (40, "loss", 4.5, 0.7)
    assert spike.usual_loss == pytest.approx(3, abs=0.03)
    assert spike.usual_norm == pytest.approx(0.5)
    assert spike.reason.startswith("step 40: loss 4.5 is ")


@pytest.mark.parametrize(("loss", "norm"), [(math.nan, 1.0), (math.inf, 1.0), (3.0, math.nan), (3.0, math.inf)])
@pytest.mark.parametrize("before", [0, 100])
def test_what_is_no_number_is_always_a_spike(loss, norm, before):
    watch = SpikeWatch()
    judge_all(watch, np.full(before, 3.0), np.ones(before))
    spike = watch.judge(before, loss=loss, grad_norm=norm)
    assert spike is not None
    assert spike.kind == "not a number"
    assert watch.judge(before + 1, loss=3.0, grad_norm=1.0) is None


def test_nothing_else_is_judged_in_the_first_steps():
    watch = SpikeWatch(window=64)
    loss = np.array([1.0, 50.0] * 15)
    assert judge_all(watch, loss, loss) == []


def test_spikes_do_not_become_usual():
    watch = SpikeWatch()
    judge_all(watch, np.full(64, 3.0), np.ones(64))
    assert len(judge_all(watch, np.full(200, 6.0), np.ones(200))) == 200


def test_a_loss_that_climbs_slowly_has_diverged():
    watch = SpikeWatch()
    loss = np.concatenate([np.full(100, 3.0), 3 + 0.004 * np.arange(400)])
    found = judge_all(watch, loss + np.random.default_rng(0).normal(0, 0.1, 500), np.ones(500))
    assert found
    assert {s.kind for s in found} == {"diverged"}
    assert 250 < found[0].step < 350


@pytest.mark.parametrize("cut", [0, 5, 40, 777, 2000])
def test_a_resumed_watch_judges_alike(cut):
    loss, norm = falling(4, steps=2500)
    loss[[300, 800, 1900, 2100]] += 2
    whole = SpikeWatch()
    found = judge_all(whole, loss, norm)
    first = SpikeWatch()
    before = judge_all(first, loss[:cut], norm[:cut])
    second = SpikeWatch(state=json.loads(json.dumps(first.state())))
    after = judge_all(second, loss[cut:], norm[cut:], start=cut)
    assert [s.step for s in found] == [300, 800, 1900, 2100]
    assert before + after == found
    assert second.state() == whole.state()


@pytest.mark.parametrize("window", [1, 2, 3, 16])
def test_small_windows_work(window):
    watch = SpikeWatch(window=window)
    assert judge_all(watch, np.full(50, 2.0), np.ones(50)) == []
    assert watch.judge(50, loss=9.0, grad_norm=1.0) is not None


def test_a_gradient_of_zero_is_judged_too():
    watch = SpikeWatch()
    assert judge_all(watch, np.full(50, 2.0), np.zeros(50)) == []
