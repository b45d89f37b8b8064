"""Tests of the conditions of a training: what is recorded, what would change its bits, and energy."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from lathe import __version__
from lathe.train import conditions
from lathe.train.conditions import EnergyMeter, differences, git_state, record


def test_conditions_go_through_json_and_differ_from_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MKL_CBWR", "COMPATIBLE")
    found = record("cpu")
    assert found["versions"]["torch"] == torch.__version__
    assert found["versions"]["numpy"] == np.__version__
    assert found["versions"]["lathe"] == __version__
    assert found["threads"] == torch.get_num_threads()
    assert found["MKL_CBWR"] == "COMPATIBLE"
    assert found["ranks"] == 1
    assert found["machine"]
    assert differences(json.loads(json.dumps(found)), record("cpu")) == []


def test_only_what_changes_bits_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    then = record("cpu")
    now = {**then, "threads": then["threads"] + 1, "git": "other", "system": "other", "MKL_CBWR": "AVX2"}
    now["versions"] = {**then["versions"], "torch": "9.9", "python": "9.9"}
    assert differences({**then, "MKL_CBWR": None}, now) == [
        f"torch's version was {torch.__version__} and is 9.9 now",
        f"the number of threads was {then['threads']} and is {then['threads'] + 1} now",
        "$MKL_CBWR was unset and is AVX2 now",
    ]
    assert "the number of ranks was unset and is 1 now" in differences({}, then)  # a state that recorded nothing


def git(folder: Path, *words: str) -> None:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", *identity, *words], cwd=folder, check=True, capture_output=True)


def test_git_states(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert git_state(tmp_path) is None
    git(tmp_path, "init")
    assert git_state(tmp_path) is None  # no commit yet
    (tmp_path / "a").write_text("a")
    git(tmp_path, "add", "a")
    git(tmp_path, "commit", "-m", "a")
    clean = git_state(tmp_path)
    assert clean is not None
    assert len(clean) == 40
    (tmp_path / "untracked").write_text("")
    assert git_state(tmp_path) == clean
    (tmp_path / "a").write_text("b")
    assert git_state(tmp_path) == f"{clean}-dirty"
    monkeypatch.setenv("PATH", "")
    assert git_state(tmp_path) is None


def make_zone(folder: Path, name: str, joules: float, span: float = 1000.0) -> None:
    (folder / name).mkdir(exist_ok=True)
    (folder / name / "energy_uj").write_text(f"{joules * 1e6:.0f}\n")
    (folder / name / "max_energy_range_uj").write_text(f"{span * 1e6:.0f}\n")


def test_energy_adds_up_packages_and_survives_their_overflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conditions, "POWERCAP", tmp_path)
    assert EnergyMeter().read() is None
    make_zone(tmp_path, "intel-rapl:0", 900.0)
    make_zone(tmp_path, "intel-rapl:1", 10.0)
    make_zone(tmp_path, "intel-rapl:0:0", 5.0)  # a part of package 0
    meter = EnergyMeter()
    assert meter.read() == 0.0
    make_zone(tmp_path, "intel-rapl:0", 950.0)
    make_zone(tmp_path, "intel-rapl:0:0", 50.0)
    assert meter.read() == pytest.approx(50.0)
    make_zone(tmp_path, "intel-rapl:0", 30.0)
    make_zone(tmp_path, "intel-rapl:1", 15.0)
    assert meter.read() == pytest.approx(50.0 + 80.0 + 5.0)
    (tmp_path / "intel-rapl:1" / "energy_uj").unlink()  # as where only root may read
    make_zone(tmp_path, "intel-rapl:0", 40.0)
    assert meter.read() == pytest.approx(145.0)
