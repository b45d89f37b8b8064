"""Train a job inside a Slurm allocation: what submitit runs there, and how it saves when its time is up.

Slurm warns before it ends a job, and submitit then calls `checkpoint` from a signal handler: in the midst of whatever
runs, which is no place to save a training from. So the training is a child process, which is asked to save and end
as by Ctrl-C; the job then goes back into the queue, and the training goes on from there.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from multiprocessing.connection import Connection
from typing import Any

from lathe.errors import Stopped
from lathe.sweep.jobs import Job, train_job
from lathe.train.launch import STOPPED

ENDS = (STOPPED, -signal.SIGTERM)
"""Exit codes of a training that was asked to end, with its state saved or before it had any."""


class Training:
    """Hold a job for submitit to call; with more ranks than one, each calls it.

    `save_s` is how long the training has to save once it is asked to end.
    """

    def __init__(self, job: Job, *, save_s: float) -> None:
        self.job, self.save_s = job, save_s
        self._child: Any = None

    def __call__(self) -> str | None:
        """Train; gives in a line what went wrong, if anything."""
        _meet_ranks()
        receiver = self._fork()
        try:
            error = receiver.recv()  # not join: a handler that joins too may interrupt this
        except EOFError:
            error = None
        self._child.join()
        code = self._child.exitcode
        if code in ENDS:
            # Slurm told this process too, and does not tell why: for another's sake, when it puts the job back itself,
            # or because it was cancelled. Either way this ends here, and what is said next is never said.
            time.sleep(self.save_s)
            return "stopped by a signal; its state is saved"
        return f"killed by {signal.Signals(-code).name}" if code < 0 else error

    def checkpoint(self) -> Any:
        """Have the training save and end; gives what is to run when the job's turn comes again."""
        from submitit.helpers import DelayedSubmission

        if self._child is not None:
            self._child.terminate()
            self._child.join(self.save_s)
            self._child.kill()
        return DelayedSubmission(Training(self.job, save_s=self.save_s))

    def _fork(self) -> Connection:
        context = multiprocessing.get_context("fork")
        receiver, sender = context.Pipe(duplex=False)
        self._child = context.Process(target=_train, args=(self.job, sender))
        ours = {signal.SIGTERM, _usr_signal()}
        before = signal.pthread_sigmask(signal.SIG_BLOCK, ours)  # the child shall not run this process's handlers
        try:
            self._child.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        sender.close()
        return receiver


def _train(job: Job, sender: Connection) -> None:
    usr = _usr_signal()
    signal.signal(usr, signal.SIG_IGN)  # Slurm sends it to every process; this one's parent answers
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM, usr})
    try:
        sender.send(train_job(job))
    except Stopped:
        sys.exit(STOPPED)


def _usr_signal() -> signal.Signals:
    from submitit import JobEnvironment

    return JobEnvironment._usr_sig()


def _meet_ranks() -> None:
    """Say where the ranks meet as torchrun would, if there are more than one."""
    from submitit import JobEnvironment
    from submitit.helpers import TorchDistributedEnvironment

    if JobEnvironment().num_tasks > 1:
        TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)
        os.environ.setdefault("OMP_NUM_THREADS", os.environ.get("SLURM_CPUS_PER_TASK", "1"))
