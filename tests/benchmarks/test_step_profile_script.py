"""What a step is made of: kinds of kernels by name, traces put together, bounds, tries; the script at its smallest."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks import kernel_kinds as kinds  # noqa: E402
from benchmarks import step_profile, step_switches, traces  # noqa: E402
from headshot_ui.prove.random_models import SIZES  # noqa: E402

NAMES = Path(__file__).with_name("kernel_names.tsv")
SMALLEST = ["--size", "tiny", "--side", "64", "--device", "cpu", "--count", "1"]
PEAKS = traces.Peaks(flop=1e12, bytes=1e10)


@pytest.fixture(scope="module", autouse=True)
def shallow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One layer in place of ten wherever the published UNet has a row of them; nothing compiled outlives the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SIZES["tiny"].base["unet"], "transformer_layers_per_block", 1)
        patch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path_factory.mktemp("compiled")))
        yield


# --- names --------------------------------------------------------------------------------------------
def test_real_names_have_their_kinds() -> None:
    rows = [line.split("\t") for line in NAMES.read_text(encoding="utf-8").splitlines()]
    assert {name: kinds.kind_of(name) for _, name in rows} == {name: kind for kind, name in rows}
    assert len({kind for kind, _ in rows}) == 11


def test_an_unknown_name_is_told_by_its_operation_and_listed() -> None:
    began = traces.Operation(1, "aten::native_group_norm", ((2, 4, 8, 8),))
    kernel = traces.Kernel("somebodys_own", 0, 5, began)
    assert traces.kind_of(kernel, None) == kinds.NORMS
    assert traces.kind_of(replace(kernel, operation=None), None) == kinds.UNKNOWN
    assert traces.unknown([kernel, kernel]) == {"somebodys_own": 0.01}
    # A compiled kernel's operation has its name; on a CPU operations stand for kernels, and are told by that table.
    fused = traces.Kernel("triton_poi_fused_add_0", 0, 5, traces.Operation(2, "triton_poi_fused_add_0", ((8, 8),)))
    alone = traces.Kernel("aten::mm", 0, 5, traces.Operation(3, "aten::mm", ((64, 64), (64, 64))))
    assert (traces.kind_of(fused, None), traces.kind_of(alone, None)) == (kinds.COMPILED, kinds.PRODUCTS)
    assert traces.unknown([fused, alone]) == {}


# --- traces ---------------------------------------------------------------------------------------------
PRODUCT, NORM, FLASH = (
    "nvjet_tst_128x128_64x4",
    "void vectorized_layer_norm_kernel<c10::BFloat16>",
    "flash_fwd_kernel<>",
)


def call(number: int, name: str, *shapes: Any, **more: Any) -> dict[str, Any]:
    facts = {"External id": number, "Input Dims": list(shapes), "Input type": ["c10::BFloat16"] * len(shapes)}
    times = {"ts": 10 * number, "dur": 5} | {key: more.pop(key) for key in ("ts", "dur") if key in more}
    return {"cat": "cpu_op", "name": name, "tid": 1, **times, "args": facts | more}


def kernel(name: str, begin: float, lasts: float, number: int | None = None, cat: str = "kernel") -> dict[str, Any]:
    facts = {} if number is None else {"External id": number}
    return {"cat": cat, "name": name, "ts": begin, "dur": lasts, "args": {"stream": 7, **facts}}


LAUNCHED = [
    call(1, "aten::mm", [4096, 640], [640, 640]),
    call(2, "aten::mm", [4096, 640], [640, 16]),
    call(3, "aten::native_layer_norm", [4096, 640]),
    call(4, "aten::_scaled_dot_product_flash_attention", [1, 10, 4096, 64], [1, 10, 77, 64], [1, 10, 77, 64]),
    call(5, "aten::_flash_attention_forward", [1, 4096, 10, 64], ts=41, dur=2),
    call(6, "aten::mm", [4096, 640], [640, 640], ts=43.5, dur=1),
    kernel(PRODUCT, 100, 40, 1), kernel(PRODUCT, 150, 10, 2), kernel(NORM, 160, 20, 3), kernel(FLASH, 180, 30, 5),
]  # fmt: skip
REPLAYED = [
    kernel("Memcpy DtoD (Device -> Device)", 90, 5, cat="gpu_memcpy"),
    kernel(PRODUCT, 100, 30), kernel(PRODUCT, 130, 10), kernel(NORM, 150, 20), kernel(FLASH, 165, 25),
]  # fmt: skip


def test_a_replay_is_told_the_operations_of_the_step_launched_kernel_by_kernel() -> None:
    launched = traces.on_card(LAUNCHED)
    replay = traces.paired(traces.on_card(REPLAYED[::-1]), launched)
    assert [each.name for each in replay][:2] == ["Memcpy DtoD (Device -> Device)", PRODUCT]
    assert [each.operation.number if each.operation else None for each in replay] == [None, 1, 2, 3, 5]
    assert [traces.kind_of(each, 16) for each in replay] == [
        kinds.MEMORY, kinds.PRODUCTS, kinds.LORA_PRODUCTS, kinds.NORMS, kinds.ATTENTION_FORWARD,
    ]  # fmt: skip
    # One more than there were: which is which cannot be told, unless all are of the same shapes.
    more = traces.paired(traces.on_card([*REPLAYED, kernel(PRODUCT, 200, 1), kernel(NORM, 210, 1)]), launched)
    assert [traces.kind_of(each, 16) for each in more if each.name == PRODUCT] == [kinds.UNSHAPED_PRODUCTS] * 3
    norms = [each.operation for each in more if each.name == NORM]
    assert len(norms) == 2 and all(began is not None and began.name == "aten::native_layer_norm" for began in norms)
    assert len({began.number for began in norms if began}) == 2


def test_sums_bounds_and_gaps() -> None:
    replay = traces.paired(traces.on_card(REPLAYED), traces.on_card(LAUNCHED))
    work = traces.arithmetic(traces.operations(LAUNCHED).values(), 16)
    # What attention calls is counted with it.
    assert work[kinds.PRODUCTS] == 2 * 4096 * 640 * 640 and work[kinds.ATTENTION_FORWARD] == 4 * 10 * 4096 * 77 * 64
    found = traces.by_kind(replay, work, PEAKS, 16)
    assert list(found) == [kinds.PRODUCTS, kinds.ATTENTION_FORWARD, kinds.NORMS, kinds.LORA_PRODUCTS, kinds.MEMORY]
    assert sum(row["ms"] for row in found.values()) == pytest.approx(0.09)
    # By hand: 2 m k n; a LoRA's product reads more than it computes; a norm reads and writes its input; attention
    # is two products with the 77 keys.
    assert found[kinds.PRODUCTS]["bound_ms"] == pytest.approx(2 * 4096 * 640 * 640 / 1e9, abs=1e-4)
    read = 2 * (4096 * 640 + 640 * 16 + 4096 * 16)
    assert found[kinds.LORA_PRODUCTS]["bound_ms"] == pytest.approx(read / 1e7, abs=1e-4)
    assert found[kinds.NORMS]["bound_ms"] == pytest.approx(4 * 4096 * 640 / 1e7, abs=1e-4)
    assert found[kinds.ATTENTION_FORWARD]["bound_ms"] == pytest.approx(4 * 10 * 4096 * 77 * 64 / 1e9, abs=1e-4)
    # 90 to 190; none between 95 and 100 and between 140 and 150, two at once from 165 to 170.
    assert traces.busy(replay) == pytest.approx((0.1, 0.085))
    first = traces.longest(replay, 16)[0]
    assert (first["shapes"], first["kernels"]) == ("[4096, 640] [640, 640]", 1)
    assert first["tflops"] == pytest.approx(2 * 4096 * 640 * 640 / 30e-6 / 1e12, rel=1e-3)


def test_what_belongs_to_a_lora_is_told_by_its_shapes() -> None:
    def kind(name: str, *shapes: tuple[int, ...], rank: int | None = 16) -> str:
        return traces.product_kind(traces.Operation(1, name, shapes), rank)

    assert kind("aten::mm", (4096, 640), (640, 48)) == kinds.LORA_PRODUCTS  # query, key and value
    assert kind("aten::addmm_", (4096, 640), (4096, 16), (16, 640)) == kinds.LORA_PRODUCTS
    assert kind("aten::mm", (640, 4096), (4096, 16)) == kinds.LORA_PRODUCTS
    assert kind("aten::addmm", (3072,), (4096, 64), (64, 3072)) == kinds.PRODUCTS  # FLUX.1's first layer, with a bias
    assert kind("aten::bmm", (10, 1024, 64), (10, 64, 77)) == kinds.PRODUCTS  # attention, taken apart
    assert kind("aten::mm", (1, 1280), (1280, 640)) == kinds.SMALL_PRODUCTS
    assert kind("aten::mm", (4096, 640), (640, 16), rank=None) == kinds.PRODUCTS
    assert kind("aten::mm") == kinds.UNSHAPED_PRODUCTS


@pytest.mark.parametrize("name", ["sdxl", "flux"])
def test_arithmetic_is_what_torch_counts(name: str) -> None:
    bench = small_bench(name, "train")
    added = {torch.ops.aten.addmm_: lambda _, a, b, **__: 2 * a[0] * a[1] * b[1]}  # the counter does not know it
    with bench.step() as step:
        step.launched()
        with FlopCounterMode(display=False, custom_mapping=added) as counter:
            step.launched()
        events = step_profile.traced(step.launched, "cpu", shapes=True)
    counted = traces.arithmetic(traces.operations(events).values(), step_profile.RANK)
    assert sum(counted.values()) == counter.get_total_flops() > 1e6
    assert counted[kinds.LORA_PRODUCTS] > 0 and (kinds.CONVOLUTIONS in counted) == (name == "sdxl")


def small_bench(name: str, work: str) -> step_profile.Bench:
    model = step_profile.MODELS[name]("tiny", 64, "none", "cpu", torch.bfloat16)
    setting = step_switches.Setting(name, work, "cpu", torch.bfloat16, model.module)
    return step_profile.Bench(setting, model, model.train() if work == "train" else (), 1)


# --- a card's way, with a profiler that is none -------------------------------------------------------
def profile_of(monkeypatch: pytest.MonkeyPatch, replayed: list[dict[str, Any]]) -> dict[str, Any]:
    def traced(step: Any, device: str, shapes: bool) -> list[dict[str, Any]]:
        step()
        return LAUNCHED if shapes else replayed

    monkeypatch.setattr(step_profile, "traced", traced)
    calls: list[str] = []
    step = step_profile.Step(
        lambda: calls.append("launched"), lambda: calls.append("repeated"), lambda: "repeated" in calls, torch.Tensor
    )
    figures = step_profile.profiled(step, "cuda", 3, PEAKS, 16)
    assert calls == ["launched"] * 2 + ["repeated"] * 6  # a profiler is set up before anything is recorded
    return figures


def test_on_a_card_the_replay_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    figures = profile_of(monkeypatch, REPLAYED)
    assert figures["recorded"] and not figures["remark"] and not figures["unknown_names"]
    assert (figures["kernels"], figures["with_known_operation"]) == (5, 4)
    assert (figures["sum_ms"], figures["span_ms"], figures["busy_ms"], figures["idle_ms"]) == (0.09, 0.1, 0.085, 0.015)
    assert kinds.LORA_PRODUCTS in step_profile.table(figures) and "idle" in step_profile.table(figures)


def test_where_a_replay_shows_nothing_the_launched_step_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    figures = profile_of(monkeypatch, [])
    assert "0 kernels were seen" in figures["remark"] and figures["sum_ms"] == 0.1


def test_a_pass_can_be_hashed_as_what_is_recorded_is_looked_up_by_it() -> None:
    model = small_bench("flux", "draw").model
    assert step_profile.Pass(model) == step_profile.Pass(model) and len({step_profile.Pass(model)}) == 1


# --- tries ----------------------------------------------------------------------------------------------
def test_switches_are_put_back() -> None:
    bench = small_bench("sdxl", "draw")
    weight = bench.model.module.conv_in.weight
    before = weight.detach().clone(), torch.backends.cudnn.benchmark
    products = [getattr(torch.backends.cuda.matmul, name) for name in (step_switches._WHOLE, step_switches._HALF)]
    for switch in step_switches.SWITCHES:
        with switch.on(bench.setting):
            last = weight.is_contiguous(memory_format=torch.channels_last)
            assert last == (switch.name == "channels-last")
            assert torch.backends.cudnn.benchmark == (switch.name == "cudnn-benchmark" or before[1])
            now = [getattr(torch.backends.cuda.matmul, name) for name in (step_switches._WHOLE, step_switches._HALF)]
            assert (now != products) == (switch.name in ("whole-reductions", "fp16-accumulation"))
    assert weight.is_contiguous() and torch.equal(weight, before[0])
    assert torch.backends.cudnn.benchmark == before[1]


def test_tries_tell_failures_and_end_with_a_lost_card(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = small_bench("flux", "draw")
    monkeypatch.setattr(
        step_profile, "SWITCHES", (failing("bad", "no such kernel"), failing("lost", "CUDA error: gone"))
    )
    told: dict[str, Any] = {}
    wanted = ["bad", "batch-2", "lost", "batch-4"]
    assert not step_profile.tries(bench, wanted, float("inf"), told.__setitem__)
    assert list(told) == ["as it is", "bad", "batch-2", "lost"]
    assert told["bad"] == {"failed": "no such kernel"} and told["batch-2"]["differ_by"] < 0.02
    assert told["batch-2"]["seconds_a_picture"] == pytest.approx(told["batch-2"]["seconds"] / 2, abs=1e-5)
    assert step_profile.tries(bench, ["batch-2"], float("-inf"), told.__setitem__)
    assert told["batch-2"] == {"not_tried": "no time was left"}


def failing(name: str, error: str) -> step_switches.Switch:
    def on(_: Any) -> Any:
        raise RuntimeError(f"{error}\nmore of it")

    return step_switches.Switch(name, "", on, lambda _: "")


def test_nothing_is_compiled_on_a_lost_card(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(step_profile, "SWITCHES", (failing("attention-cudnn", "CUDA error: gone"),))
    words = ["--model", "flux", "--work", "draw", *SMALLEST, "--try", "attention-cudnn", "--compiled"]
    assert step_profile.main(words) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["compiled"] == {"not_tried": "a try has lost the card"} and report["ordinary"]["kernels"] > 0


def test_gradients_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = small_bench("flux", "train")
    _, first = bench.timed()
    _, again = bench.timed()
    assert step_profile.apart(first, again) == 0 and first.norm() > 0
    both = {name for name, _ in bench.model.module.named_parameters() if "lora_" in name}
    assert len(both) == len(bench.parameters) and len(first) == sum(each.numel() for each in bench.parameters)
    attend = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", lambda *given: 1.1 * attend(*given))
    assert step_profile.apart(first, bench.timed()[1]) > 0.01


def test_flux_is_never_trained_with_cudnn_attention() -> None:
    last = step_switches.SWITCHES[-1]
    setting = step_switches.Setting("flux", "train", "cuda", torch.bfloat16, None)
    assert last.name == "attention-cudnn" and last.why_not(setting)
    assert not last.why_not(replace(setting, work="draw")) and not last.why_not(replace(setting, model="sdxl"))


# --- the script -----------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "words",
    ["--model sdxl --work train --level partial", "--model sdxl --work draw",
     "--model flux --work train --level full --compiled --backend aot_eager",
     "--model flux --work draw --compiled --backend aot_eager"],
)  # fmt: skip
def test_it_profiles_and_tries(words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "report.json"
    assert step_profile.main([*words.split(), *SMALLEST, "--try", "all", "--report", str(file)]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report == json.loads(file.read_text(encoding="utf-8")) and report["ok"]
    for way in ("ordinary", *(["compiled"] if "--compiled" in words else [])):
        found = report[way]
        assert found["timed"]["seconds"] > 0 and found["unknown_names"] == {}
        assert sum(row["ms"] for row in found["kinds"].values()) == pytest.approx(found["sum_ms"], rel=1e-2)
        assert (kinds.LORA_PRODUCTS in found["kinds"]) == ("train" in words) or "draw" in words
    assert report["tries"]["as it is, again"]["differ_by"] == 0 == report["tries"]["attention-flash"]["differ_by"]
    assert "not_tried" in report["tries"]["attention-cudnn"]
    assert ("batch-16" in report["tries"]) == ("draw" in words)


def test_peaks_that_are_given_count(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--model", "flux", "--work", "draw", *SMALLEST, "--peak-tflops", "1e-6", "--repeats", "1"]
    assert step_profile.main(words) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["peaks"]["tflops_given"] and report["peaks"]["tflops"] == 0
    # A pass has 3,572,992 operations, as torch's counter has it too.
    assert report["ordinary"]["bound_by_arithmetic_ms"] == pytest.approx(3572.992)
