"""Keep remarks of importing torchao from standard error: nobody who uses Lathe can act on them."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def mute_torchao() -> Iterator[None]:
    """Drop two remarks of importing torchao, or transformers, which imports it.

    It tries to load CUDA libraries whatever torch was built for, which a CPU build fails at; and it still registers
    enums with torch in a way that became needless.
    """
    remarks = {"torch.utils._pytree": "is now natively supported by torch.compile"}
    if torch.version.cuda is None:
        remarks["torchao"] = "Failed to load"

    def is_news(record: logging.LogRecord) -> bool:
        return remarks[record.name] not in record.getMessage()

    loggers = [logging.getLogger(name) for name in remarks]
    for logger in loggers:
        logger.addFilter(is_news)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(is_news)
