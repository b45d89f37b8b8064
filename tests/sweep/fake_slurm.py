"""Stand in for Slurm's commands: reads what a real cluster would read, and runs it on this machine.

Called under a command's name (sbatch, squeue, …), with its state in the folder FAKE_SLURM:

    <job>/script.sh options.json       what was submitted
    <job>/<index>.pid  <index>.end     a task that began, one that ended
    calls.txt                          all calls, a line each
"""

import contextlib
import fcntl
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

STATE = Path(os.environ["FAKE_SLURM"])
NUMBER = r"\d+"
OPTIONS = {
    "account": r"\w+", "array": r"\d+-\d+(%\d+)?", "comment": ".+", "constraint": ".+", "cpus-per-task": NUMBER,
    "error": "/.+", "gpus-per-node": NUMBER, "job-name": r"[\w.-]+", "mem": r"\d+(\.\d+)?(K|M|G|T)B?",
    "nice": NUMBER, "nodes": NUMBER, "ntasks-per-node": NUMBER, "open-mode": "append|truncate", "output": "/.+",
    "partition": r"\w+", "qos": r"\w+", "requeue": "", "signal": r"(R|B|RB)?:?(\w+)@\d+",
    "time": r"\d+|(\d+-)?\d+:\d\d:\d\d", "wckey": r"\w+",
}  # fmt: skip
"""What sbatch's manual says of the options that may come, as patterns of their values."""


def sbatch(path: str) -> None:
    script = Path(path).read_text()
    options = read_options(script)
    if options.get("partition") == "closed":
        sys.exit("sbatch: error: invalid partition specified: closed")
    job = next_job()
    folder = STATE / job
    folder.mkdir()
    (folder / "script.sh").write_text(script)
    (folder / "options.json").write_text(json.dumps(options))
    for index in indices(options):
        start(job, index)
    print(f"Submitted batch job {job}")


def read_options(script: str) -> dict[str, str]:
    lines = script.splitlines()
    if not lines[0].startswith("#!"):
        sys.exit("sbatch: error: This does not look like a batch script.")
    options = {}
    for line in lines[1:]:
        if line and not line.startswith("#"):  # the manual: nothing is read after the first command
            break
        if line.startswith("#SBATCH"):
            (word,) = shlex.split(line.removeprefix("#SBATCH"))
            name, _, value = word.removeprefix("--").partition("=")
            if not word.startswith("--") or not re.fullmatch(OPTIONS.get(name, "(?!)"), value):
                sys.exit(f"sbatch: error: invalid option: {word}")
            options[name] = value
    return options


def next_job() -> str:
    with open(STATE / "count", "a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write("x")
        file.flush()
        return str(100 + os.fstat(file.fileno()).st_size)


def indices(options: dict[str, str]) -> list[str]:
    if "array" not in options:
        return [""]
    first, last = options["array"].partition("%")[0].split("-")
    return [str(i) for i in range(int(first), int(last) + 1)]


def start(job: str, index: str) -> None:
    """Begin a task in the background, unless the cluster is full, as FAKE_FULL says."""
    if (STATE / "full").exists():
        return
    environment = {**os.environ, "SLURM_JOB_ID": str(int(job) + int(index or 0)), "SLURM_JOB_NODELIST": "localhost"}
    if index:
        environment |= {"SLURM_ARRAY_JOB_ID": job, "SLURM_ARRAY_TASK_ID": index}
    subprocess.Popen(
        [sys.executable, __file__, "run", job, index], env=environment, start_new_session=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip


def run(job: str, index: str) -> None:
    folder, name = STATE / job, index or "one"
    (folder / f"{name}.pid").write_text(str(os.getpid()))
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # its steps are told, the script is not
    script = subprocess.Popen(
        ["bash", folder / "script.sh"], restore_signals=True, preexec_fn=lambda: signal.signal(signal.SIGUSR2, 1)
    )
    code = script.wait()
    if (folder / f"{name}.again").exists():
        (folder / f"{name}.again").unlink()
        (folder / f"{name}.pid").unlink()
        start(job, index)
    else:
        (folder / f"{name}.end").write_text(str(code))


def srun(*words: str) -> None:
    """Run a step: its own options first, then a command for every rank."""
    rest, outputs = list(words), {}
    while rest[0].startswith("--"):
        option = rest.pop(0)
        if option in ("--output", "--error"):
            outputs[option] = rest.pop(0)
        elif option != "--unbuffered":
            sys.exit(f"srun: unrecognized option '{option}'")
    job = os.environ.get("SLURM_ARRAY_JOB_ID", os.environ["SLURM_JOB_ID"])
    named = {"%A": job, "%a": os.environ.get("SLURM_ARRAY_TASK_ID", ""), "%j": os.environ["SLURM_JOB_ID"], "%t": "0"}
    files = []
    for option in ("--output", "--error"):
        path = outputs[option]
        for sign, value in named.items():
            path = path.replace(sign, value)
        files.append(open(path, "a"))  # noqa: SIM115
    os.environ |= {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_NTASKS": "1"}
    os.environ |= {"SLURM_JOB_NUM_NODES": "1"}
    os.dup2(files[0].fileno(), 1)
    os.dup2(files[1].fileno(), 2)
    os.execvp(rest[0], rest)


def squeue(*words: str) -> None:
    given = dict(word.removeprefix("--").partition("=")[::2] for word in words)
    assert given["format"] == "%i", words
    assert {"noheader", "user"} <= given.keys(), words
    for folder in sorted(STATE.glob("[0-9]*")):
        options = json.loads((folder / "options.json").read_text())
        if given.get("name") in (None, options["job-name"]):
            left = [i for i in indices(options) if not (folder / f"{i or 'one'}.end").exists()]
            names = [f"{folder.name}_{i}" if i else folder.name for i in left]
            print("\n".join(names))


def sacct(*words: str) -> None:
    print("JobID|State|NodeList")
    for folder in sorted(STATE.glob("[0-9]*")):
        for index in indices(json.loads((folder / "options.json").read_text())):
            end = folder / f"{index or 'one'}.end"
            state = "RUNNING" if not end.exists() else "COMPLETED" if end.read_text() == "0" else "FAILED"
            print(f"{folder.name}_{index}|{state}|localhost" if index else f"{folder.name}|{state}|localhost")


def scancel(*words: str) -> None:
    given = dict(word.removeprefix("--").partition("=")[::2] for word in words)
    for folder in STATE.glob("[0-9]*"):
        options = json.loads((folder / "options.json").read_text())
        if options["job-name"] == given["name"]:
            for index in indices(options):
                (folder / f"{index or 'one'}.end").write_text("cancelled")
                with contextlib.suppress(OSError):
                    os.killpg(int((folder / f"{index or 'one'}.pid").read_text()), signal.SIGKILL)


def scontrol(word: str, job: str) -> None:
    assert word == "requeue"
    base, _, index = job.partition("_")
    (STATE / base / f"{index or 'one'}.again").touch()


COMMANDS = {one.__name__: one for one in (sbatch, srun, squeue, sacct, scancel, scontrol, run)}

if __name__ == "__main__":
    name, *words = sys.argv[1:]
    if name != "run":
        with open(STATE / "calls.txt", "a") as calls:
            calls.write(shlex.join([name, *words]) + "\n")
    COMMANDS[name](*words)
