"""Write docs/reference.md from the code: the options of every command, and the keys of every file of TOML.

Run it as `python docs/make_reference.py` after changing a command or a word; tests/test_reference.py compares.

What an option is comes from its command's function: its type, its default, and its docstring. What a key is comes from
the word that a file is read into; where the word's docstring says nothing of a key, from a command that asks the same.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import textwrap
import types
import typing
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional

from lathe.budget import Budget
from lathe.cli import COMMANDS, GROUPS
from lathe.cli.train import name_flag
from lathe.data.mixture import Mixture
from lathe.device import Device, Origin
from lathe.evals.tasks import Suite, Task
from lathe.shape import Shape
from lathe.sweep import choices, grid
from lathe.sweep.expressions import FUNCTIONS
from lathe.sweep.families import Family
from lathe.sweep.launchers import LAUNCHERS
from lathe.sweep.study import Fitting, Launching, Mixing, Planning, Questions, Span, Study, Target, Text
from lathe.train.settings import list_settings, name_kind
from lathe.workload import Workload

PAGE = Path(__file__).with_name("reference.md")
HEAD = """<!-- Written by docs/make_reference.py from the code: change that, and run it. -->

# Reference

What every command takes, as `lathe COMMAND --help` says it too, and what every TOML file may hold. In files, `1e9` may
stand for a whole number, and an unknown key is an error that names the nearest known one.
"""
NAMES = {bool: "true or false", int: "whole number", float: "number", str: "text", Any: "any value"}
"""What a key's type is called."""
WIDTH = 120
METAVARS = {int: "INT", float: "FLOAT", str: "TEXT", Path: "PATH"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Doc:
    """Hold a docstring: its text, its examples, and a line for each argument."""

    text: str
    examples: tuple[str, ...]
    arguments: dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """Hold an option of a command as its help shows it."""

    name: str
    shown: str
    default: str
    about: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """Say which word is shown under which title, with a `note`; `like` are commands whose options say the same."""

    title: str
    word: type
    note: str = ""
    like: tuple[str, ...] = ()


STUDY = (
    Section(title="study, top level", word=Study),
    Section(title="[text]", word=Text, like=("data build", "data tokenizer")),
    Section(title="[mixture]", word=Mixing, like=("data mix",)),
    Section(title="[law]", word=Fitting, like=("fit",)),
    Section(title="[device]", word=Target, like=("measure",)),
    Section(title="[workload]", word=Workload, like=("latency",)),
    Section(title="[plan]", word=Planning, like=("plan",)),
    Section(title="[plan] d_model and n_layers", word=Span),
    Section(title="[evaluate]", word=Questions, like=("eval",)),
    Section(title="[launch]", word=Launching, like=("sweep",)),
)
OTHERS = (
    Section(title="Budget", word=Budget, note="`lathe plan --budget FILE`.", like=("plan",)),
    Section(title="Workload", word=Workload, note="`--workload FILE` of several commands.", like=("latency",)),
    Section(title="Shape", word=Shape, note="Wherever a shape's name is wanted. What follows from the rest may be left "
            "out: n_kv_heads, d_head and d_ff."),
    Section(title="Device", word=Device, note="Wherever a device's name is wanted; `lathe probe --out` and `lathe "
            "calibrate --out` write one."),
    Section(title="Device: each of origins", word=Origin),
    Section(title="Mixture", word=Mixture, note="`data.train` of a recipe; see [data.md](data.md#mix)."),
    Section(title="Catalogue: each of tasks", word=Task, note="`lathe eval --catalogue FILE`. The file holds "
            "`[defaults]`, and `[tasks]` and `[suites]` by name; `like` takes what a task does not say from another."),
    Section(title="Catalogue: each of suites", word=Suite),
)  # fmt: skip


def make_reference() -> str:
    """Write the page."""
    commands = dict(list_commands())
    parts = [HEAD, "## Commands", *(write_command(name, function) for name, function in commands.items())]
    parts += ["## Files", "### A study", "`lathe run FILE`. Paths in it are relative to the file.", *write_all(STUDY)]
    parts += ["### A grid", "`[grid]` of a study, or a file for `lathe grid` and `lathe sweep`.", *write_grid()]
    parts += ["### Launchers", "`[launch] settings` of a study, or `lathe sweep --with KEY=VALUE`.", *write_launchers()]
    parts += ["### A recipe", write_recipe()]
    parts += ["### Other files", *write_all(OTHERS)]
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def list_commands() -> Iterator[tuple[str, Callable[..., None]]]:
    """Yield the commands by the words that call them, those of a group one by one."""
    for name, function in COMMANDS.items():
        if name in GROUPS:
            yield from ((f"{name} {inner}", one) for inner, one in GROUPS[name].items())
        else:
            yield name, function


def write_command(name: str, function: Callable[..., None]) -> str:
    """Describe a command: what it does, an example, its options."""
    doc = read_doc(function)
    rows = [(f"`{one.shown}`", one.default, one.about) for one in list_options(function)]
    examples = "\n".join(doc.examples)
    return join(
        f"### lathe {name}", doc.text, f"```sh\n{examples}\n```" if examples else "",
        make_table(("option", "default", ""), rows),
    )  # fmt: skip


def list_options(of: Callable[..., Any] | type) -> list[Option]:
    """List what a command's function takes, or a dataclass of options."""
    hints = typing.get_type_hints(of, include_extras=True)
    arguments = read_doc(of).arguments
    found: list[Option] = []
    for name, parameter in inspect.signature(of).parameters.items():
        kind, marks = take_apart(hints[name])
        if isinstance(kind, type) and dataclasses.is_dataclass(kind):
            found += list_options(kind)
        else:
            found.append(make_option(name, kind, marks, parameter.default, arguments.get(name, "")))
    return found


def make_option(name: str, kind: Any, marks: Sequence[Any], default: Any, about: str) -> Option:
    """Describe an option; what `tyro.conf.arg` says of it comes first."""
    said = next((mark for mark in marks if hasattr(mark, "metavar")), None)
    name = ((said and said.name) or name).strip("_").replace("_", "-")
    hint = said and said.help_behavior_hint
    metavar = (said and said.metavar) or name_metavar(kind)
    shown_default = show_default(default) if hint is None else hint.strip("()").removeprefix("default: ")
    if Positional in marks:
        shown = ((said and said.metavar) or name.upper()) + (" …" if typing.get_origin(kind) is tuple else "")
    elif bool in list_members(kind):
        shown = f"--{name}" if default is False else f"--{name}, --no-{name}"
    else:
        shown = f"--{name} {metavar}"
    return Option(name=name, shown=shown, default=shown_default, about=(said and said.help) or about)


def show_default(default: Any) -> str:
    if default is inspect.Parameter.empty:
        return "needed"
    if default is None or default is False or default == ():
        return ""
    return "`" + (" ".join(map(str, default)) if isinstance(default, tuple) else str(default).lower()) + "`"


def name_metavar(kind: Any) -> str:
    """Say in a word what an option wants."""
    (kind, *_) = list_members(kind)
    if typing.get_origin(kind) is Literal:
        return "|".join(map(str, typing.get_args(kind)))
    if typing.get_origin(kind) is tuple:
        one, *more = typing.get_args(kind)
        return f"{name_metavar(one)}…" if more == [...] else " ".join(map(name_metavar, (one, *more)))
    return METAVARS.get(kind, "TEXT")


def write_all(sections: Sequence[Section]) -> Iterator[str]:
    """Describe words, one after another."""
    for section in sections:
        yield join(f"#### {section.title}", section.note, *describe_word(section.word, like=section.like))


def describe_word(word: type, *, like: Sequence[str] = ()) -> tuple[str, str]:
    """Describe what a table holds: in words, and key by key."""
    return read_doc(word).text, make_table(("key", "is", "default", ""), list_keys(word, like=like))


def list_keys(word: type, *, like: Sequence[str] = ()) -> list[tuple[str, str, str, str]]:
    """List the keys of a table: name, type, default, and what each is, unless the words above the table say it."""
    doc, commands, hints = read_doc(word), dict(list_commands()), typing.get_type_hints(word)
    known: dict[str, str] = {}
    for command in like:
        known |= {option.name.replace("-", "_"): option.about for option in list_options(commands[command])}
    rows = []
    for field in dataclasses.fields(word):
        about = "its keys are below" if is_word(hints[field.name]) else doc.arguments.get(field.name, "")
        if not about and f"`{field.name}`" not in doc.text:
            about = known.get(field.name, "")
        rows.append((f"`{field.name}`", name_type(hints[field.name]), show_value(field), about))
    return rows


def is_word(kind: Any) -> bool:
    """Say whether a key holds a table with keys of its own."""
    return dataclasses.is_dataclass(list_members(kind)[0])


def show_value(field: dataclasses.Field[Any]) -> str:
    """Say what a key is where it is left out; nothing where it is then not there."""
    if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
        return "needed"
    value = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    if value in (None, (), {}, "") or dataclasses.is_dataclass(value):
        return ""
    if isinstance(value, tuple):
        return f"`{list(value)}`".replace("'", '"')
    return f'`"{value}"`'.replace("\n", "\\n") if isinstance(value, str) else f"`{str(value).lower()}`"


def name_type(kind: Any) -> str:
    """Say what a key may be."""
    members, words = list_members(kind), []
    for one in members:
        origin, inner = typing.get_origin(one), typing.get_args(one)
        if origin is Literal:
            words += [f'`"{choice}"`' for choice in inner]
        elif origin is tuple:
            words.append(f"list of {name_type(inner[0])}")
        elif origin is dict:
            words.append("table" if inner[1] is Any else f"table of {name_type(inner[1])}")
        else:
            words.append(NAMES.get(one, "table"))
    return " or ".join(words)


def write_grid() -> Iterator[str]:
    """Describe a grid's document by the docstrings of its readers, and its families."""
    what, *lines, rest = inspect.cleandoc(grid.__doc__ or "").split("\n\n")
    yield join(what, show_code("\n\n".join(lines)), rest)
    _, values = (choices.__doc__ or "").split("\n\n")
    yield join("A value is one of", show_code(values))
    yield (
        f"Rules and constraints are expressions: Python's arithmetic and comparisons, and, or, not, `a if c else b`, "
        f"and {', '.join(f'`{name}`' for name in FUNCTIONS)}. They can name the shape's fields and "
        f"{', '.join(f'`{name}`' for name in choices.DERIVED)}; those of settings and constraints also `tokens` and "
        "what else stands at the top of a recipe."
    )
    yield from write_all([Section(title="[[family]]", word=Family)])


def show_code(text: str) -> str:
    return f"```toml\n{textwrap.dedent(text).strip()}\n```"


def write_launchers() -> Iterator[str]:
    """Describe the settings of each launcher."""
    for name, (module, kind) in LAUNCHERS.items():
        yield join(f"#### {name}", *describe_word(getattr(import_module(module), kind)))


def write_recipe() -> str:
    """Describe a recipe's settings, by dotted key, in the words of the flags that `lathe train` has for them."""
    flags = {option.name: option for option in list_options(COMMANDS["train"])}
    rows = []
    for key, setting in list_settings().items():
        option = flags.get(name_flag(key).replace("_", "-"))
        if option is not None and not key.startswith("shape."):
            rows.append((f"`{key}`", f"`{name_kind(setting.kind)}`", option.default, option.about))
    intro = (
        "`lathe train FILE`, `[base]` of a grid, `[training]` of a study. A dotted key is one of a table: "
        "`schedule.name` is `name` under `[schedule]`. `[execution]` says how a training is carried out, and changes "
        "no result; a study has it under `[launch] execution`. `shape` is a preset's name, a file or [a table](#shape)."
    )
    return join(intro, make_table(("key", "is", "default", ""), rows))


def read_doc(word: Any) -> Doc:
    """Take a docstring apart; what it says of errors is for programmers, and left out."""
    body, _, arguments = (inspect.getdoc(word) or "").partition("\nArgs:\n")
    paragraphs = [" ".join(part.split()) for part in re.split(r"\n\n+", body)]
    examples = tuple(part.removeprefix("Example: ") for part in paragraphs if part.startswith("Example: "))
    kept = [re.sub(r"(^|(?<=[.:] ))Raises:? .*", "", part).strip() for part in paragraphs]
    entries = re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", arguments, flags=re.MULTILINE)
    return Doc(
        text="\n\n".join(textwrap.fill(part, WIDTH) for part in kept if part and not part.startswith("Example: ")),
        examples=examples,
        arguments={name: " ".join(text.split()) for name, text in entries},
    )


def take_apart(hint: Any) -> tuple[Any, Sequence[Any]]:
    """Part a type from what is noted beside it."""
    return (hint.__origin__, hint.__metadata__) if typing.get_origin(hint) is Annotated else (hint, ())


def list_members(kind: Any) -> tuple[Any, ...]:
    """List what a kind may be, without none."""
    union = typing.get_origin(kind) in (typing.Union, types.UnionType)
    return tuple(one for one in typing.get_args(kind) if one is not types.NoneType) if union else (kind,)


def make_table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lay rows out in Markdown; nothing where there are none."""
    if not rows:
        return ""
    lines = [titles, ["---"] * len(titles), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def join(*parts: str) -> str:
    return "\n\n".join(part for part in parts if part)


if __name__ == "__main__":
    PAGE.write_text(make_reference(), encoding="utf-8")
    print(f"reference: {PAGE}")
