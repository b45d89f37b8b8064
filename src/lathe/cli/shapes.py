"""Commands about shapes."""

from __future__ import annotations

from tyro.conf import Positional

from lathe.cli.terminal import open_console


def shapes(family: str | None = None) -> None:
    """List the shapes that come with Lathe.

    Example: lathe shapes --family mobilellm

    Args:
        family: show one family only.
    """
    from lathe.errors import PresetError, nearest
    from lathe.presets.shapes import shape_presets
    from lathe.report.accounting import shapes_table

    presets = list(shape_presets().values())
    families = {p.family for p in presets}
    if family is not None and family not in families:
        raise PresetError(f"no family of shapes is called {family!r}{nearest(family, families)}")
    open_console().print(shapes_table(p for p in presets if family in (None, p.family)))


def shape(name: Positional[str], context: int | None = None, json: bool = False) -> None:
    """Show what one shape costs: weights by group, FLOPs, KV cache, memory at each dtype.

    Example: lathe shape mobilellm-125m --context 4096

    Args:
        name: a preset's name (see `lathe shapes`) or a TOML or JSON file.
        context: tokens in the KV cache; the shape's longest if not given.
        json: print the accounting as JSON.
    """
    from lathe.codec import dumps
    from lathe.presets.shapes import load_shape, shape_names, shape_preset
    from lathe.report.accounting import accounting, accounting_table

    found = load_shape(name)
    if json:
        print(dumps(accounting(found, context=context)))
        return
    source = shape_preset(name).source if name in shape_names() else None
    open_console().print(accounting_table(found, name=name, source=source, context=context))
