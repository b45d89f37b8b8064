"""What a training is said to take is what it takes: memory against the allocator's own record, the rest by hand."""

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from lathe.errors import RecipeError
from lathe.model import loss
from lathe.model.init import draw_weights
from lathe.presets.devices import load_device
from lathe.recipe import Data, Optimiser, Recipe, Schedule
from lathe.shape import Shape
from lathe.train import estimate as estimate_module
from lathe.train.engine import open_engine
from lathe.train.estimate import estimate, format_bytes, format_time
from lathe.train.execution import Execution
from lathe.train.meter import Peak
from lathe.train.optim import Ema, build_optimisers

H100, CPU = load_device("h100"), load_device("ryzen-9-7950x")


@pytest.fixture(autouse=True)
def one_thread():
    """Compute with one thread, which small products need no more than."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make_recipe(sequences=8, seq_len=64, *, steps=10, shape=None, **fields):
    shape = Shape.of(**({"d_model": 64, "n_layers": 4, "n_heads": 4, "vocab_size": 512} | (shape or {})))
    batch = sequences * seq_len
    return Recipe(shape=shape, tokens=batch * steps, seq_len=seq_len, batch_tokens=batch, lr=1e-3, **fields)


def make_execution(**fields):
    return Execution(out="runs/tiny", device="cpu", **fields)


def measure_peak_bytes(recipe, execution):
    """Take the most that tensors ever have in the second step: those that stay, and the record of the rest."""
    engine = open_engine(recipe, execution, weights=draw_weights(recipe.shape, scheme="openlm", seed=0))
    optimisers = build_optimisers(engine.module, recipe)
    ema = None if recipe.ema is None else Ema(engine.module, recipe.ema)
    tokens_bt = torch.randint(recipe.shape.vocab_size, (recipe.batch_sequences, recipe.seq_len))
    documents_bt = torch.zeros_like(tokens_bt, dtype=torch.int32)

    def step(number):
        engine.accumulate(tokens_bt, tokens_bt, documents_bt, count=recipe.batch_tokens)
        engine.clip(recipe.clip)
        for optimiser in optimisers:
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        if ema is not None:
            ema.update(number)

    step(0)
    states = [x for one in optimisers for state in one.state.values() for x in state.values() if torch.is_tensor(x)]
    stays = [*engine.module.parameters(), *states, *(() if ema is None else ema.weights.values())]
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        step(1)
    records = [one for one in profiled.profiler.kineto_results.events() if one.name() == "[memory]"]
    taken = most = 0
    for record in sorted(records, key=lambda one: one.start_ns()):
        taken += record.nbytes()
        most = max(most, taken)
    engine.close()
    return sum(x.nbytes for x in stays) + most


GELU = {"mlp": "gelu", "norm": "layernorm", "position": "learned", "bias": "all"}
CASES = {
    "tiny": (make_recipe(), {}),
    "tied": (make_recipe(4, shape={"d_model": 128, "n_heads": 8, "vocab_size": 2048, "tied": True}), {}),
    "few tokens": (make_recipe(1, 16, shape={"d_model": 128}), {}),
    "large vocabulary": (make_recipe(4, shape={"n_layers": 2, "vocab_size": 8192}), {}),
    "gelu": (make_recipe(shape=GELU), {}),
    "grouped queries, micro-batches": (make_recipe(shape={"n_kv_heads": 2}), {"micro_batch": 2}),
    "all recomputed": (make_recipe(shape={"n_layers": 8}), {"recompute_every": 1}),
    "half recomputed": (make_recipe(shape={"n_layers": 8}), {"recompute_every": 2}),
    "documents, average": (make_recipe(ema=0.9, data=Data(train="text", mask_documents=True)), {}),
    "mixed": (make_recipe(dtype="bf16-mixed"), {}),
    "bf16": (make_recipe(dtype="bf16"), {}),
    "muon": (make_recipe(optimiser=Optimiser(name="muon")), {}),
    "shared": (make_recipe(shape={"sharing": "immediate", "sharing_count": 2}), {}),
    "norms of heads": (make_recipe(shape={"qk_norm": "head", "parallel_residual": True, "mlp": "relu"}), {}),
}


@pytest.mark.parametrize("case", CASES)
def test_memory_is_what_a_step_takes(case, monkeypatch):
    monkeypatch.setitem(loss.CHUNK_BYTES, "cpu", 2**22)  # several chunks of a small vocabulary's logits
    recipe, execution = CASES[case][0], make_execution(**CASES[case][1])
    memory = estimate(recipe, execution, device=CPU).memory
    said = sum(size for name, size in memory.items() if name != "copy being saved")
    assert said == pytest.approx(measure_peak_bytes(recipe, execution), rel=0.1)


def test_steps_flops_and_time_follow_from_the_recipe():
    recipe = make_recipe(steps=100)
    found = estimate(recipe, make_execution(micro_batch=2), world=2, device=H100, mfu=0.5)
    flops = recipe.shape.train_flops(recipe.tokens, 64)
    assert found.flops == pytest.approx(flops)
    assert found.step_flops == pytest.approx(flops / 100)
    assert found.seconds == pytest.approx(flops / (2 * 0.5 * H100.peak_flops("fp32")))
    assert (found.layout.micro_batch, found.layout.micro_batches, found.layout.world) == (2, 2, 2)
    again = estimate(recipe, make_execution(recompute_every=1), device=H100, mfu=0.5)
    assert 2 * found.seconds < again.seconds < 2 * found.seconds * 4 / 3
    assert again.flops == found.flops


def test_branches_count_their_decays():
    recipe = make_recipe(steps=100, schedule=Schedule(name="wsd", decay=0.2))
    found = estimate(recipe, make_execution(branch_at=(50 * 512,)), device=H100)
    assert found.branch_steps == 10
    assert found.flops == pytest.approx(110 * found.step_flops)
    assert "runs/tiny/branches/25600/model.safetensors" in found.files


def test_a_mesh_divides_what_it_divides():
    recipe = make_recipe(dtype="bf16-mixed", ema=0.99, shape={"n_layers": 8})
    alone = estimate(recipe, make_execution(), device=H100).memory
    replicas = estimate(recipe, make_execution(mesh={"dp": 4}), device=H100).memory
    shards = estimate(recipe, make_execution(mesh={"fsdp": 4}), device=H100).memory
    slices = estimate(recipe, make_execution(mesh={"tp": 4}), device=H100).memory
    for name in ("weights", "optimiser", "moving average"):
        assert replicas[name] == alone[name]
        assert shards[name] == alone[name] / 4
        assert alone[name] / 4 < slices[name] < alone[name]
    assert replicas["activations"] == pytest.approx(alone["activations"] / 4, rel=0.1)
    assert alone["weights"] == 4 * recipe.shape.params
    assert alone["optimiser"] == 8 * recipe.shape.params


def test_whole_gradients_stand_while_shards_add_them_up():
    recipe = make_recipe(dtype="bf16-mixed")
    found = estimate(recipe, make_execution(mesh={"fsdp": 2}, micro_batch=1), device=H100)
    assert found.memory["gradients"] >= 4 * recipe.shape.params


def test_pipelines_keep_micro_batches_in_flight():
    recipe = make_recipe(16)
    orders = {order: make_execution(mesh={"pp": 2}, micro_batch=2, pipeline=order) for order in ("gpipe", "1f1b")}
    found = {order: estimate(recipe, asked, device=H100).memory["activations"] for order, asked in orders.items()}
    assert found["gpipe"] > 3 * found["1f1b"]


def test_offloading_moves_weights_and_states_to_the_host():
    recipe = make_recipe()
    found = estimate(recipe, make_execution(offload=True), device=H100)
    assert found.host["weights"] == 4 * recipe.shape.params
    assert "weights" not in found.memory
    assert "optimiser" not in found.memory


@pytest.mark.parametrize(
    ("fields", "states"),
    [
        ({}, 1),
        ({"save_every": 10}, 2),
        ({"save_every": 10, "keep_last": 3}, 3),
        ({"save_every": 10, "keep_every": 20}, 5),  # 20, 40, 60, 80, 85
    ],
)
def test_states_on_disk_are_those_that_stay(fields, states):
    recipe = make_recipe(steps=85)
    found = estimate(recipe, make_execution(**fields), device=H100)
    assert found.states_kept == states
    assert found.state_bytes == 12 * recipe.shape.params
    assert found.files["runs/tiny/model.safetensors"] == 4 * recipe.shape.params
    assert found.disk_bytes == (states + 1) * found.state_bytes + sum(found.files.values())


def test_this_machine_is_measured_and_its_processes_share_it(monkeypatch):
    monkeypatch.setattr(estimate_module, "find_peak", lambda device, dtype: Peak(flops_per_s=1e10, origin="measured"))
    recipe = make_recipe()
    found = estimate(recipe, make_execution(), world=2)
    assert found.seconds == pytest.approx(found.flops / (1e10 * 0.6))
    assert found.device == "this CPU"
    assert found.device_bytes is None or found.device_bytes > 1e8


def test_the_text_says_what_is_assumed():
    recipe = make_recipe(4, 2048, dtype="bf16", shape={"d_model": 8192, "n_layers": 64, "n_heads": 64})
    text = estimate(recipe, make_execution(mesh={"dp": 2}), device=H100).text()
    for said in ("10 steps of 4 sequences of 2048 tokens", "2 processes (dp 2)", "at 40% of 9.89e+14 FLOPs/s",
                 "of 80 GiB: TOO MUCH", "optimiser", "runs/tiny/metrics.jsonl", "1 trainer state of"):  # fmt: skip
        assert said in text


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"mesh": {"dp": 3}}, "does not split into 3 data ranks"),
        ({"micro_batch": 3}, "micro-batches of 3"),
        ({"mesh": {"tp": 3}}, "tp=3 does not divide n_kv_heads"),
        ({"mesh": {"pp": 8}}, "more stages than the shape's 4"),
    ],
)
def test_what_cannot_be_trained_is_refused(fields, message):
    with pytest.raises(RecipeError, match=message):
        estimate(make_recipe(), make_execution(**fields), device=H100)


def test_a_mesh_of_other_processes_is_refused():
    with pytest.raises(RecipeError, match="for 4 processes, and there are 2"):
        estimate(make_recipe(), make_execution(mesh={"dp": 4}), world=2, device=H100)


def test_sizes_and_times_are_written_for_people():
    assert [format_bytes(x) for x in (12, 2048, 1020 * 2**20, 5 * 2**30)] == ["12 B", "2 KiB", "0.996 GiB", "5 GiB"]
    assert [format_time(x) for x in (2.5, 90, 7200, 3e5)] == ["2.5 seconds", "1.5 minutes", "2 hours", "3.47 days"]
