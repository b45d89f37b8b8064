"""Commands that train, and that average what was trained."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import DisallowNone, OmitArgPrefixes, Positional, arg

from lathe.cli.terminal import Words
from lathe.train.execution import Execution
from lathe.train.settings import BY_LAW, HEADS, NONE, REQUIRED, SECTIONS, STEP_LAW, Setting, list_settings, name_kind

if TYPE_CHECKING:
    from lathe.recipe import Recipe
    from lathe.runs import Run

DERIVED = ("data.content", "init.content", "distil.content")
"""Settings that are hashes: for files, or --set."""
OPEN = "if not given"
FIRST = ("shape", "tokens", "tokens_per_param")
"""The recipe's settings that help begins with."""
SHOWN = {
    "tokens_per_param": NONE,
    "execution.out": "runs/ and the recipe's id",
    "execution.mesh": "all are replicas",
    "data.repeats": "once",
    "distil.teacher": NONE,
    "data.validation": "what the training data hold out",
}
"""Defaults that are not those of the words, or say more."""

HELP: dict[str, str] = {
    "shape": "a preset's name (see `lathe shapes`), or a TOML or JSON file",
    "tokens": "to train on, in all",
    "tokens_per_param": "tokens for each of the model's params, instead of --tokens",
    "seq_len": "tokens of a sequence",
    "batch_tokens": "tokens of a step, whole sequences; or step-law",
    "lr": "peak learning rate; or step-law",
    "seed": "of first weights and of the data's order",
    "dtype": "to compute in; bf16-mixed keeps weights in fp32",
    "clip": "the gradient's largest norm",
    "z_loss": "weight of the squared log-partition in the loss, such as 1e-4",
    "ema": "memory of a moving average of the weights, such as 0.999, which is then what is evaluated and kept",
    "data.train": "a dataset's folder (`lathe data build`), or a mixture's TOML file",
    "data.validation": "datasets whose held-out loss is measured, by name",
    "data.repeats": "how often the dataset may be read; a mixture says so in its file",
    "data.mask_documents": "let no token see another document",
    "data.across_documents": "count a document's first token as a target",
    "optimiser.name": "how to step",
    "optimiser.beta1": "memory of the gradient's mean",
    "optimiser.beta2": "memory of the gradient's square",
    "optimiser.eps": "added to the root of the square",
    "optimiser.weight_decay": "share of a weight taken off, times the learning rate",
    "optimiser.decay": "what weight decay acts on; matrices leaves out norms and biases",
    "optimiser.momentum": "of Muon",
    "optimiser.embedding_lr": "peak learning rate of embedding and positions, where it is another",
    "schedule.name": "how the learning rate goes after its warmup",
    "schedule.warmup_steps": "steps over which the learning rate rises",
    "schedule.final": "the last step's share of the peak",
    "schedule.decay": "share of the steps that WSD decays over",
    "schedule.decay_shape": "how WSD decays",
    "schedule.power_a": "of the power schedule",
    "schedule.power_b": "of the power schedule",
    "init.scheme": "how first weights are drawn",
    "init.base": "the narrow shape that was tuned, for init=mup: a preset's name, or a TOML or JSON file",
    "init.checkpoint": "a checkpoint's folder to take them from instead",
    "distil.teacher": "a checkpoint's folder: its distribution is learned beside the text",
    "distil.temperature": "by which both distributions are softened",
    "distil.weight": "the teacher's share of the loss; the rest is cross-entropy's",
    "execution.mesh": "ranks along each axis (dp replicas, fsdp shards, tp tensor, pp pipeline), such as fsdp=4,tp=2",
    "execution.recompute_every": "recompute every k-th block in the backward pass instead of keeping what it made",
    "execution.save_every": "steps between checkpoints, beside the last",
    "execution.evaluate_tokens": "tokens of each validation set that count in between; the last evaluation reads all",
    "execution.trackers": "what also gets the metrics: tensorboard, wandb, trackio",
    "execution.spike": "deviations over the median of the last losses from which a loss is far above them",
    "execution.spike_window": "how many losses it is compared with",
    "execution.branch_at": "tokens at which WSD branches end, each a run of its own, such as 1e9,2e9",
}
"""What each setting is, where `Execution` does not say it."""


def _make_flag(key: str) -> tuple[str, Any, Any]:
    setting = list_settings().get(key, Setting(kind=str, default=REQUIRED))
    flips = setting.kind is bool
    metavar = None if flips else name_kind(setting.kind) + f"|{STEP_LAW}" * (key in BY_LAW)
    flag = name_flag(key)
    about = arg(
        name=flag, aliases=[f"--{key}"] if flag == key.partition(".")[0] != key else None, help=_explain(key),
        metavar=metavar, help_behavior_hint=_name_default(key, setting),
    )  # fmt: skip
    kind = DisallowNone[bool | None] if flips else str | None
    return key.replace(".", "__"), Annotated[kind, about], dataclasses.field(default=None)


def name_flag(key: str) -> str:
    """Name a setting's flag: its key, without the execution's prefix, and a section's name alone for its chief key."""
    section, _, name = key.rpartition(".")
    return section if HEADS.get(section) == name else name if section == "execution" else key


def _explain(key: str) -> str:
    return HELP.get(key) or _execution_help().get(key.removeprefix("execution."), "")  # python -OO keeps no docstrings


@functools.cache
def _execution_help() -> dict[str, str]:
    """Read what `Execution` says of its fields."""
    arguments = (inspect.getdoc(Execution) or "").partition("Args:\n")[2]
    entries = re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", arguments, flags=re.MULTILINE)
    return {name: " ".join(text.split()).replace("if None", OPEN).rstrip(".") for name, text in entries}


def _name_default(key: str, setting: Setting) -> str:
    if key in SHOWN:
        return f"(default: {SHOWN[key]})"
    if setting.default is REQUIRED:
        return "(needed, here or in the file)"
    if setting.default in (None, {}, ()):
        return "" if OPEN in _explain(key) else f"(default: {NONE})"
    return f"(default: {str(setting.default).lower() if isinstance(setting.default, bool) else setting.default})"


def _make_group(section: str) -> type:
    """Make the flags of a section's settings, each of which may be left out."""
    keys = [key for key in list_settings() if key.rpartition(".")[0] == section and key not in DERIVED]
    flags = [_make_flag(key) for key in (keys if section else dict.fromkeys([*FIRST, *keys]))]
    return dataclasses.make_dataclass(f"{section}_flags", flags, frozen=True)


def _make_groups() -> type:
    groups = {section or "recipe": _make_group(section) for section in ("", *SECTIONS) if section != "shape"}
    return dataclasses.make_dataclass(
        "Flags", [(name, OmitArgPrefixes[group], group()) for name, group in groups.items()], frozen=True
    )  # pyright: ignore[reportInvalidTypeForm]


if TYPE_CHECKING:
    Flags = Any
else:
    Flags = _make_groups()
NOTHING = None if TYPE_CHECKING else Flags()
Set = Annotated[Words, arg(name="set", metavar="KEY=VALUE", help_behavior_hint="")]


def train(
    file: Annotated[Path | None, Positional, arg(metavar="[RECIPE]", help_behavior_hint="")] = None,
    nproc: Annotated[int, arg(help_behavior_hint="(default: 1)")] = 1,
    dry_run: bool = False,
    device_preset: Annotated[str | None, arg(metavar="NAME", help_behavior_hint="")] = None,
    set_: Set = (),
    flags: Annotated[Flags, OmitArgPrefixes, arg(name="")] = NOTHING,
) -> None:
    """Train a model, or go on with a training that was stopped; what is finished is left as it is.

    Flags take the place of the file's settings; without a file they say all. A training that a signal stops saves what
    it has and ends with exit code 75: run the same command to go on.

    Example: lathe train recipe.toml --lr 1e-3 --tokens 1e7 --schedule wsd --schedule.final 0 --out runs/tiny

    Args:
        file: a TOML or JSON file of settings, such as the recipe that `lathe plan --recipe` writes.
        nproc: processes to start on this machine; `torchrun` does for several machines.
        dry_run: say what it would take, and what it would write; train and write nothing.
        device_preset: the device to say it for (see `lathe devices`), or a TOML file; this machine if not given.
        set_: any setting by its key in the file, such as --set shape.d_model=256 optimiser.beta2=0.99.
    """
    from lathe.errors import RecipeError, Stopped
    from lathe.train.request import check_request, read_request

    settings = _gather(flags) | _split(set_)
    if file is None and not settings:
        raise RecipeError("nothing says what to train; give a file, such as lathe train recipe.toml, or flags (--help)")
    if nproc < 1:
        raise RecipeError(f"nproc={nproc}; wanted 1 or more")
    main = int(os.environ.get("RANK", "0")) == 0
    starts = nproc > 1 and "RANK" not in os.environ and not dry_run
    asked = read_request(file, settings, need_data=not dry_run, report=_note if main and not starts else None)
    if dry_run:
        _print_estimate(*asked, device_preset, nproc)
        return
    check_request(*asked, world=int(os.environ.get("WORLD_SIZE", nproc)))
    if starts:
        _launch(nproc)
    from lathe.train.loop import train as train_recipe

    try:
        run = train_recipe(*asked, report=print)
    except Stopped as stopped:
        if main:
            print(f"lathe: {stopped}", file=sys.stderr)
        from lathe.train.launch import STOPPED

        sys.exit(STOPPED)
    if main:
        _print_run(run, asked[1])


def average(run: Positional[Path], out: Path, last: int | None = None, steps: tuple[int, ...] = ()) -> None:
    """Average the weights of a run's checkpoints into a new one.

    Example: lathe average runs/tiny --last 5 --out runs/tiny-averaged

    Args:
        run: the run's folder.
        out: the folder to write.
        last: how many of the newest checkpoints to average; all that the run kept if not given.
        steps: the steps of the checkpoints to average, instead.
    """
    from lathe.train.average import average_checkpoints

    averaged = average_checkpoints(run, out, last=last, steps=steps or None)
    print(f"averaged: weights after step {', '.join(map(str, averaged))}")
    print(f"checkpoint: {out}")


def _gather(flags: Any) -> dict[str, Any]:
    """List the settings that flags give."""
    groups = [getattr(flags, field.name) for field in dataclasses.fields(flags)]
    named = {name.replace("__", "."): value for group in groups for name, value in vars(group).items()}
    return {key: value for key, value in named.items() if value is not None}


def _split(pairs: Words) -> dict[str, str]:
    from lathe.errors import RecipeError
    from lathe.train.settings import name_key

    found: dict[str, str] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not (key and equals):
            raise RecipeError(f"--set {pair!r} is no KEY=VALUE, such as optimiser.beta2=0.99")
        found[name_key(key)] = value
    return found


def _launch(nproc: int) -> None:
    """Run this command in several processes, and end as they do."""
    from lathe.train.launch import launch

    sys.exit(launch([sys.executable, "-m", "lathe", *sys.argv[1:]], nproc=nproc))


def _print_estimate(recipe: Recipe, execution: Execution, preset: str | None, nproc: int) -> None:
    from lathe.presets.devices import load_device
    from lathe.train.estimate import estimate

    print(estimate(recipe, execution, device=None if preset is None else load_device(preset), world=nproc).text())


def _print_run(run: Run, execution: Execution) -> None:
    for name, loss in run.losses.items():
        error = f" ± {run.loss_ses[name]:.4f}" if name in run.loss_ses else ""
        print(f"loss on {name}: {loss:.4f}{error} nats a token")
    if execution.branch_at:
        from lathe.train.folder import BRANCHES

        print(f"branches: {Path(execution.out) / BRANCHES}")
    print(f"run: {execution.out}")


def _note(text: str) -> None:
    print(f"note: {text}", file=sys.stderr)
