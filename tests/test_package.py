"""The package as a whole: quick to import, whole in its names, and free of torch."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

import lathe

HEAVY = ("torch", "pandas", "scipy", "numpy")

# stands before every script that must never load torch: an installed torch would otherwise be needed to notice
NO_TORCH = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        assert name.partition(".")[0] not in ("torch", "safetensors", "transformers"), f"{name} was imported"
sys.meta_path.insert(0, Refuse())
"""


def run_python(script: str, *arguments: str, cwd: Path | None = None) -> str:
    """Run a script in a process of its own and return what it printed."""
    command = [sys.executable, "-W", "error", "-c", script, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("module", ["lathe", "lathe.cli", "lathe.runs", "lathe.shape", "lathe.codec"])
def test_import_loads_nothing_heavy(module: str) -> None:
    script = f"import {module}, sys, json; print(json.dumps([m for m in {HEAVY!r} if m in sys.modules]))"
    assert json.loads(run_python(script)) == []


def test_every_public_name_resolves() -> None:
    assert len(set(lathe.__all__)) == len(lathe.__all__)
    for name in lathe.__all__:
        assert getattr(lathe, name) is not None
    assert dir(lathe) == sorted(lathe.__all__)


def test_every_name_with_a_home_is_public_and_typed() -> None:
    """A name stands in three places: `__all__`, its home, and the imports that type checkers read."""
    assert set(lathe._HOME) | {"__version__"} == set(lathe.__all__)
    source = Path(lathe.__file__).read_text(encoding="utf-8").partition("if TYPE_CHECKING:")[2].partition("_HOMES")[0]
    for name, module in lathe._HOME.items():
        assert getattr(lathe, name) is getattr(importlib.import_module(module), name)
        line = next(line for line in source.splitlines() if line.strip().startswith(f"from {module} import"))
        assert name in line.replace(",", " ").split()


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'lathe' has no attribute 'fitt'"):
        lathe.fitt  # noqa: B018


def test_commands_never_load_torch(tmp_path: Path) -> None:
    script = NO_TORCH + (
        "from lathe.cli import main\n"
        "main(['fit', 'morph-2025', '--form', 'chinchilla', '--draws', '10', '--out', 'law.json'])\n"
        "main(['predict', '--law', 'law.json', '--shape', 'scale_open_lm_1b_v8', '--tokens', '29e9'])\n"
        "main(['shape', 'mobilellm-125m'])\n"
        "print('torch' in sys.modules)\n"
    )
    assert run_python(script, cwd=tmp_path).rstrip().endswith("False")
    assert (tmp_path / "law.json").is_file()


NEEDS_TORCH = {"lathe.bench", "lathe.evals", "lathe.hub", "lathe.model"}


def test_public_names_need_torch_only_where_models_are_run() -> None:
    plain = [name for name, module in lathe._HOME.items() if module.rpartition(".")[0] not in NEEDS_TORCH]
    assert len(plain) > 30
    script = NO_TORCH + "import lathe, sys\nprint(len([getattr(lathe, name) for name in sys.argv[1:]]))\n"
    assert int(run_python(script, *plain)) == len(plain)


ABSENT_TORCH = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise ModuleNotFoundError("No module named 'torch'", name="torch")
sys.meta_path.insert(0, Absent())
"""


def test_without_torch_its_extra_is_named() -> None:
    script = (
        ABSENT_TORCH + "import lathe\ntry:\n    lathe.generate\nexcept lathe.LatheError as error:\n    print(error)\n"
    )
    assert run_python(script) == (
        'lathe.generate needs packages that are not installed; run: pip install "lathe[train]"\n'
    )
    script = ABSENT_TORCH + "from lathe.cli import main\nmain(['generate', '.', '--prompt', 'x'])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2
    assert done.stderr.startswith("lathe: lathe generate needs packages")
    assert 'pip install "lathe[train]"' in done.stderr
