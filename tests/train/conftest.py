"""Fixtures of the trainer's tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def make_saver(tmp_path: Path) -> Iterator[Callable[..., Any]]:
    from small_training import fail_on_report

    from lathe.train.state import Saver

    made: list[Saver] = []

    def make(**options: Any) -> Saver:
        made.append(Saver(tmp_path, **{"report": fail_on_report, **options}))
        return made[-1]

    yield make
    for saver in made:
        saver.close()
