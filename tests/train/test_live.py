"""The live line: what it says, and how seldom it says it."""

import io

import pytest
from rich.console import Console

from lathe.train import live as live_module
from lathe.train.live import LiveLine, format_rate, format_seconds


def row(step, **values):
    given = {"step": step, "loss": 3.25, "lr": 3e-4, "tokens_per_s": 20_400.0, "mfu": 0.512, "grad_norm": 0.7}
    return given | {"seconds": 2.0} | values


def test_plain_lines_come_every_few_steps_and_at_the_end():
    out = io.StringIO()
    with LiveLine(steps=25, log_every=10, console=Console(file=out, width=40)) as line:
        for step in range(1, 26):
            line.step(row(step))
            if step == 15:
                line.evaluated({"wiki": 3.5})
                line.say("saved [step 15]")
    assert out.getvalue().splitlines() == [
        "step 10/25 · loss 3.2500 · lr 0.0003 · 20.4k tokens/s · MFU 51.2% · grad norm 0.7 · 30s left",
        "saved [step 15]",
        "step 20/25 · loss 3.2500 · lr 0.0003 · 20.4k tokens/s · MFU 51.2% · grad norm 0.7 · 10s left · wiki 3.5000",
        "step 25/25 · loss 3.2500 · lr 0.0003 · 20.4k tokens/s · MFU 51.2% · grad norm 0.7 · 0s left · wiki 3.5000",
    ]


def test_a_terminal_is_renewed_at_most_five_times_a_second(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(live_module.time, "monotonic", lambda: now[0])
    out = io.StringIO()
    line = LiveLine(steps=1000, console=Console(file=out, force_terminal=True, width=200))
    with line:
        for step in range(1, 1001):
            now[0] += 0.01
            line.step(row(step))
        shown = out.getvalue().count("step ")
        line.say("a message")
    assert 40 <= shown <= 50
    assert "a message" in out.getvalue()
    assert "step 1000/1000" in out.getvalue()


def test_the_time_left_follows_the_last_steps():
    line = LiveLine(steps=200, console=Console(file=io.StringIO()))
    assert line.describe() == "step 0/200"
    line.step(row(1, seconds=60.0))
    for step in range(2, 101):
        line.step(row(step, seconds=1.0))
    assert "2m 17s left" in line.describe()


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.2, "0s"), (59.6, "1m 00s"), (185, "3m 05s"), (25920, "7h 12m"), (2 * 86400 + 10900, "2d 03h")],
)
def test_times_are_written_in_two_units(seconds, said):
    assert format_seconds(seconds) == said


@pytest.mark.parametrize(("rate", "said"), [(812, "812"), (20444, "20.4k"), (1.312e6, "1.31M"), (0.5, "0.5")])
def test_rates_are_written_in_three_digits(rate, said):
    assert format_rate(rate) == said
