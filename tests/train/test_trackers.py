"""Trackers: what each is told, and that none of them ever stops training. Real packages are used where they are."""

import importlib.util
import sys

import pytest

from lathe.errors import MissingExtraError, RecipeError
from lathe.train import execution
from lathe.train import trackers as trackers_module
from lathe.train.trackers import TRACKERS, Tracked, Trackers, check_trackers, flatten

STAND_IN = """
calls = []
down = {"init": False, "log": False}

class Settings:
    model_fields = {"console": None, "silent": None, "init_timeout": None}

    def __init__(self, **given):
        calls.append(("settings", given))

class Run:
    def log(self, values, step):
        calls.append(("log", values, step))
        if down["log"]:
            raise ConnectionError("no route to host\\nand more")

    def finish(self):
        calls.append(("finish",))

def init(**given):
    calls.append(("init", given))
    if down["init"] and given.get("mode") == "online":
        raise ConnectionError("timed out")
    return Run()
"""


@pytest.fixture
def tracked(tmp_path):
    return Tracked(out=tmp_path, name="tiny", run_id="0123", config={"lr": 0.1, "shape": {"d_model": 8}}, step=20)


@pytest.fixture(params=["wandb", "trackio"])
def stand_in(request, tmp_path, monkeypatch):
    """Put a module in the package's place that notes how it is called."""
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / f"{request.param}.py").write_text(STAND_IN)
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    for name in [n for n in sys.modules if n.partition(".")[0] == request.param]:
        monkeypatch.delitem(sys.modules, name)
    importlib.invalidate_caches()
    yield importlib.import_module(request.param)
    sys.modules.pop(request.param)


def test_a_run_is_opened_logged_and_finished(stand_in, tracked):
    name, said = stand_in.__name__, []
    trackers = Trackers([name], tracked, report=said.append)
    trackers.log({"step": 21, "loss": 3.0, "mfu": float("nan"), "memory": None, "held-out": {"wiki": 2}}, 21)
    trackers.close()
    trackers.close()
    calls = [call for call in stand_in.calls if call[0] != "settings"]
    opened = calls[0][1]
    assert (opened["project"], opened["resume"], opened["config"]) == ("lathe", "allow", tracked.config)
    assert calls[1:] == [("log", {"loss": 3.0, "held-out/wiki": 2.0}, 21), ("finish",)]
    assert said == []


def test_a_tracker_that_fails_warns_once_and_is_tried_again(stand_in, tracked):
    said = []
    trackers = Trackers([stand_in.__name__], tracked, report=said.append)
    stand_in.down["log"] = True
    for step in range(3):
        trackers.log({"loss": 1.0}, step)
    stand_in.down["log"] = False
    trackers.log({"loss": 1.0}, 3)
    trackers.close()
    assert said == [f"warning: {stand_in.__name__} failed (no route to host); training goes on"]
    assert [call[2] for call in stand_in.calls if call[0] == "log"] == [0, 1, 2, 3]


@pytest.mark.parametrize("stand_in", ["wandb"], indirect=True)
@pytest.mark.parametrize(
    ("given", "mode"),
    [({}, "offline"), ({"WANDB_API_KEY": "x"}, "online"), ({"WANDB_API_KEY": "x", "WANDB_MODE": "offline"}, "offline")],
)
def test_wandb_goes_online_only_where_it_need_not_ask(stand_in, tracked, monkeypatch, given, mode):
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    Trackers(["wandb"], tracked).close()
    settings, opened = stand_in.calls[0][1], stand_in.calls[1][1]
    assert opened["mode"] == mode
    assert opened["id"] == "0123"
    assert settings == {"console": "off", "silent": True, "init_timeout": 30.0}  # what this version knows


@pytest.mark.parametrize("stand_in", ["wandb"], indirect=True)
def test_wandb_is_kept_offline_where_the_service_is_not_reached(stand_in, tracked, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "x")
    stand_in.down["init"], said = True, []
    trackers = Trackers(["wandb"], tracked, report=said.append)
    trackers.log({"loss": 1.0}, 1)
    opened = [call[1] for call in stand_in.calls if call[0] == "init"]
    assert [(one["mode"], one["id"]) for one in opened] == [("online", "0123"), ("offline", "0123-offline")]
    assert len(said) == 1
    assert "timed out" in said[0]
    assert ("log", {"loss": 1.0}, 1) in stand_in.calls


def test_a_tracker_that_cannot_be_opened_warns_and_the_others_go_on(tracked, monkeypatch):
    noted, said = [], []

    class Good:
        def __init__(self, tracked, report):
            pass

        def log(self, values, step):
            noted.append((values, step))

        def close(self):
            noted.append("closed")

    def bad(tracked, report):
        raise PermissionError("not here")

    monkeypatch.setattr(trackers_module, "check_trackers", lambda names: None)
    monkeypatch.setitem(TRACKERS, "bad", bad)
    monkeypatch.setitem(TRACKERS, "good", Good)
    trackers = Trackers(["bad", "good"], tracked, report=said.append)
    trackers.log({"loss": 2.0}, 5)
    trackers.close()
    assert said == ["warning: bad failed (not here); training goes on"]
    assert noted == [({"loss": 2.0}, 5), "closed"]


def test_unknown_and_missing_trackers_are_refused(monkeypatch):
    with pytest.raises(RecipeError, match="did you mean 'wandb'"):
        check_trackers(["wand"])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r'tracking with trackio .*pip install "lathe\[track\]"'):
        check_trackers(["trackio"])


def test_every_tracker_of_an_execution_can_be_opened():
    assert tuple(TRACKERS) == execution.TRACKERS


def test_numbers_are_named_by_their_tables():
    assert flatten({"a": 1, "b": {"c": 2.5, "d": {"e": 3}}, "f": "text", "step": 9, "g": float("inf")}) == {
        "a": 1.0, "b/c": 2.5, "b/d/e": 3.0,
    }  # fmt: skip


def need(package):
    if importlib.util.find_spec(package) is None:
        pytest.skip(f'needs {package}; run: pip install "lathe[track]"')


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # tensorboard's protobuf
def test_real_tensorboard_keeps_what_it_is_told(tracked):
    need("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for start, stop in ((0, 30), (20, 40)):
        said = []
        trackers = Trackers(["tensorboard"], tracked._replace(step=start), report=said.append)
        for step in range(start + 1, stop + 1):
            trackers.log({"loss": 1 / step}, step)
        trackers.close()
        assert said == []
    events = EventAccumulator(str(tracked.out / "tensorboard"))
    events.Reload()
    assert [e.step for e in events.Scalars("loss")] == list(range(1, 41))


@pytest.mark.filterwarnings("ignore")  # wandb's and pydantic's own
def test_real_wandb_works_offline(tracked, monkeypatch):
    need("wandb")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")
    said = []
    trackers = Trackers(["wandb"], tracked, report=said.append)
    trackers.log({"loss": 1.0}, 21)
    trackers.close()
    assert said == []
    assert [*tracked.out.glob("wandb/offline-run-*-0123/run-0123.wandb")]


@pytest.mark.filterwarnings("ignore")  # trackio's own
def test_real_trackio_keeps_what_it_is_told(tracked, monkeypatch):
    need("trackio")
    monkeypatch.setenv("TRACKIO_DIR", str(tracked.out / "trackio"))
    said = []
    trackers = Trackers(["trackio"], tracked, report=said.append)
    trackers.log({"loss": 1.0}, 21)
    trackers.close()
    assert said == []
    assert (tracked.out / "trackio" / "lathe.db").stat().st_size > 0
