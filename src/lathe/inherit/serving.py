"""Say how long the models of a comparison take to serve: predicted for a device, and measured where it is here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from lathe import codec
from lathe.bench.here import calibrate_here
from lathe.bench.rows import Measurement, open_rows
from lathe.bench.runner import list_wanted, run_all
from lathe.device import Device
from lathe.errors import StudyError
from lathe.inherit.arms import Arm, Source
from lathe.inherit.results import Serving
from lathe.inherit.study import InheritStudy, Target
from lathe.latency.roofline import predict_latency
from lathe.presets.devices import load_device, save_device
from lathe.shape import Shape
from lathe.workload import PREDICTED_AS, Workload

DEVICE, ASKED, MEASUREMENTS, SHAPES = "device.json", "device-asked.json", "measurements.jsonl", "shapes"
Report = Callable[[str], None]


def find_device(study: InheritStudy, shapes: Mapping[str, Shape], folder: Path, *, report: Report) -> Device:
    """Look the device up; or probe this machine, measure the shapes on it, and fit its overheads to them.

    A machine that was calibrated for the same is not calibrated again. Raises PresetError, CodecError and DeviceError.
    """
    target, workload = study.device, study.workload
    if not target.here:
        device = load_device(target.preset or str(target.file))
        device.peak_flops(workload.dtype)
        return device
    asked = codec.canonical_json({"device": codec.encode(target), "workload": codec.encode(workload)})
    kept, path = folder / ASKED, folder / DEVICE
    if kept.is_file() and path.is_file() and kept.read_text() == asked:
        return load_device(path)
    report("measuring this machine")
    (folder / SHAPES).mkdir(exist_ok=True)
    files = [folder / SHAPES / f"{name}.json" for name in shapes]
    for file, shape in zip(files, shapes.values(), strict=True):
        codec.save(shape, file, kind="shape")
    measured = measure(files, target, workload, folder, report=report)
    device = calibrate_here(measured, device=target.device, threads=target.threads).device
    save_device(device, path)
    kept.write_text(asked)
    return device


def measure(
    places: Sequence[Path], target: Target, workload: Workload, folder: Path, *, report: Report
) -> list[Measurement]:
    """Measure checkpoints or shape files, those of one shape once; what was measured before is read again."""
    known, warning = open_rows(folder / MEASUREMENTS)
    if warning is not None:
        report(warning)
    wanted, _ = list_wanted(places, workload, engines=(target.engine,), device=target.device, threads=target.threads)
    return run_all(wanted, known=known, out=folder / MEASUREMENTS, runs=target.runs)


def predict(shape: Shape, device: Device, study: InheritStudy) -> float:
    """Give the seconds that the workload should take. Raises WorkloadError and DeviceError."""
    engine = PREDICTED_AS[study.device.engine]
    return float(predict_latency(shape, device=device, workload=study.workload, engine=engine).total_s)


def serve(
    shapes: Mapping[Path, Shape], device: Device, study: InheritStudy, folder: Path, *, report: Report
) -> dict[Shape, Serving]:
    """Predict, and on this machine measure, what checkpoints of these shapes take."""
    found = {shape: Serving(predicted_s=predict(shape, device, study)) for shape in shapes.values()}
    if not study.device.here:
        return found
    report("measuring latencies")
    for row in measure(list(shapes), study.device, study.workload, folder, report=report):
        p95_s = (row.latency.p95 or {}).get("total_s")
        found[row.shape] = Serving(
            predicted_s=found[row.shape].predicted_s, measured_s=row.latency.total_s, measured_p95_s=p95_s
        )
    return found


def match_depth(name: str, arm: Arm, source: Source, device: Device, study: InheritStudy) -> int:
    """Find how many blocks make an arm take nearly as long as the inherited one, as predicted.

    Raises StudyError where no depth comes near enough, naming the nearest.
    """
    assert arm.most is not None, f"{name} has one depth alone"
    target_s = predict(source.small, device, study)
    times = {
        blocks: predict(arm.shape(source, blocks), device, study)
        for blocks in range(1, arm.most * source.shape.n_layers + 1)
    }
    nearest = min(times, key=lambda blocks: abs(times[blocks] - target_s))
    off = times[nearest] / target_s - 1
    if abs(off) > study.latency_within:
        depth = arm.shape(source, nearest).n_layers
        raise StudyError(
            f"no depth makes {name} as quick as the inherited layers, predicted to take {target_s * 1e3:.4g} ms: the "
            f"nearest, {depth} layers, takes {times[nearest] * 1e3:.4g} ms, {off:+.0%}; allow that by latency_within, "
            'or leave the arm or equal = "latency" out'
        )
    return nearest
