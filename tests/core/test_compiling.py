"""Functions compiled in place: once for all that are equal, and back to the ordinary ones whatever happens."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
import torch._dynamo

from headshot_ui import compiling
from headshot_ui.compiling import compiled
from headshot_ui.errors import Cancelled
from headshot_ui.families.requests import Repeated
from headshot_ui.settings import Settings
from tests.compiled_here import nothing_known


class Block(torch.nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x).relu() + x


def doubled(block: Block, x: torch.Tensor) -> torch.Tensor:
    return 2 * Block.forward(block, x)


def broken(block: Block, x: torch.Tensor) -> torch.Tensor:
    return x + 1 if bool(x.sum() > 0) else x  # nothing that can be compiled as a whole


class Counting:
    """A backend that compiles nothing."""

    def __init__(self, fails: bool = False) -> None:
        self.graphs, self.fails = 0, fails

    def __call__(self, graph: Any, inputs: Any) -> Any:
        self.graphs += 1
        if self.fails:
            raise OSError("there is no compiler here")
        return graph.forward


@pytest.fixture(autouse=True)
def only_its_own() -> Iterator[None]:
    with nothing_known():
        yield


@pytest.fixture
def blocks() -> list[Block]:
    torch.manual_seed(0)
    return [Block(width) for width in (4, 4, 4, 6)]


def forwards(blocks: list[Block]) -> tuple[Repeated, ...]:
    return tuple(Repeated(block, "forward") for block in blocks)


def run(blocks: list[Block]) -> list[torch.Tensor]:
    return [block(torch.ones(2, block.layer.in_features)) for block in blocks]


def test_equal_blocks_are_compiled_once_and_are_as_before_afterwards(blocks: list[Block]) -> None:
    backend, plain = Counting(), run(blocks)
    with compiled(forwards(blocks), learning=True, backend=backend) as state:
        found = run(blocks)
        run(blocks)
    assert backend.graphs == state.compilations == 2  # one for each width
    assert all(map(torch.equal, plain, found))
    assert not any("forward" in vars(block) for block in blocks)
    run(blocks)
    with compiled(forwards(blocks), learning=True, backend=backend) as state:
        run(blocks)
    assert backend.graphs == 2 and state.compilations == 0  # still known


def test_what_was_in_the_instance_is_put_back(blocks: list[Block]) -> None:
    backend, before = Counting(), {}
    for block in blocks:
        before[block] = block.forward = partial(doubled, block)
    plain = run(blocks)
    with compiled(forwards(blocks), learning=True, backend=backend):
        assert all(map(torch.equal, plain, run(blocks)))
    assert backend.graphs == 2 and all(vars(block)["forward"] is own for block, own in before.items())


@pytest.mark.parametrize("learning", [True, False])
def test_only_what_it_is_for_is_compiled(blocks: list[Block], learning: bool) -> None:
    backend = Counting()
    with compiled(forwards(blocks), learning, backend=backend), torch.set_grad_enabled(not learning):
        run(blocks)
    assert backend.graphs == 0


def test_a_compiler_that_fails_is_said_once_and_the_ordinary_way_goes_on(
    blocks: list[Block], caplog: pytest.LogCaptureFixture
) -> None:
    backend, plain = Counting(fails=True), run(blocks)
    with caplog.at_level(logging.WARNING), compiled(forwards(blocks), learning=True, backend=backend) as state:
        assert all(map(torch.equal, plain, run(blocks)))
        assert all(map(torch.equal, plain, run(blocks)))
    assert backend.graphs == 1 and "there is no compiler here" in state.failed["Block.forward"]
    assert len([one for one in caplog.records if one.name == "headshot_ui.compiling"]) == 1


def test_a_function_that_is_no_single_graph_stays_as_it_is(blocks: list[Block]) -> None:
    for block in blocks:
        block.forward = partial(broken, block)
    backend, plain = Counting(), run(blocks)
    with compiled(forwards(blocks), learning=True, backend=backend) as state:
        assert all(map(torch.equal, plain, run(blocks)))
    assert backend.graphs == 0 and set(state.failed) == {"broken"}


def test_past_the_most_variants_others_are_ordinary(
    blocks: list[Block], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(compiling, "MOST_VARIANTS", 2)
    backend, sizes = Counting(), (1, 2, 3, 4, 1)
    plain = [blocks[0](torch.ones(size, 4)) for size in sizes]
    with caplog.at_level(logging.WARNING), compiled(forwards(blocks), learning=True, backend=backend) as state:
        found = [blocks[0](torch.ones(size, 4)) for size in sizes]
    assert all(map(torch.equal, plain, found))
    assert backend.graphs == 2 and state.full == {"Block.forward"} and not state.failed
    assert len([one for one in caplog.records if one.name == "headshot_ui.compiling"]) == 1


def test_a_cancel_comes_out_of_the_block_that_was_being_compiled(blocks: list[Block]) -> None:
    def told(done: int) -> None:
        if done == 1:
            raise Cancelled

    backend = Counting()
    with pytest.raises(Cancelled), compiled(forwards(blocks), learning=True, told=told, backend=backend) as state:
        run(blocks)
    assert not state.failed and not any("forward" in vars(block) for block in blocks)
    run(blocks)


def test_an_error_of_the_function_itself_is_its_own(blocks: list[Block]) -> None:
    with compiled(forwards(blocks), learning=True, backend=Counting()) as state:
        run(blocks[:1])
        with pytest.raises(RuntimeError):
            blocks[0](torch.ones(2, 5))
    assert state.compilations == 1


def test_checkpointing_may_end_what_it_computes_again_early(blocks: list[Block]) -> None:
    from torch._dynamo.backends.registry import lookup_backend
    from torch.utils.checkpoint import checkpoint

    with compiled(forwards(blocks), learning=True, backend=lookup_backend("aot_eager")) as state:
        x = torch.ones(2, 4, requires_grad=True)
        for block in blocks[:3]:
            x = checkpoint(block, x, use_reentrant=False)
        x.sum().backward()
    assert not state.failed and blocks[0].layer.weight.grad is not None


def test_only_a_card_with_a_compiler_is_compiled_for(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "“cpu”" in compiling.why_not("cpu")
    monkeypatch.setattr("torch.utils._triton.has_triton", lambda: False)
    assert "Triton" in compiling.why_not("cuda")
    monkeypatch.setattr("torch.utils._triton.has_triton", lambda: True)
    monkeypatch.setattr(compiling.shutil, "which", lambda name: None)
    assert "C compiler" in compiling.why_not("cuda")
    monkeypatch.setattr(compiling.shutil, "which", lambda name: f"/usr/bin/{name}")
    assert compiling.why_not("cuda") == ""


def test_drawing_is_compiled_when_its_first_step_is_recorded_and_no_longer(blocks: list[Block]) -> None:
    from contextlib import ExitStack

    asked: list[bool] = []

    def repeated() -> tuple[Repeated, ...]:
        asked.append(True)
        return forwards(blocks)

    def recorder(step: Any, module: Any) -> Any:
        return step

    with ExitStack() as stack, torch.no_grad():
        record = compiling.when_ready(recorder, repeated, stack, backend=Counting())
        assert not asked
        for _ in range(2):
            record(lambda: run(blocks), blocks[0])()  # type: ignore[arg-type,return-value]
        assert len(asked) == 1 and all("forward" in vars(block) for block in blocks)
    assert not any("forward" in vars(block) for block in blocks)


def test_whether_anything_is_kept(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    assert not compiling.something_kept()
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "compiled"))
    assert not compiling.something_kept()
    (tmp_path / "compiled" / "fxgraph").mkdir(parents=True)
    assert compiling.something_kept()


def test_auto_says_nothing_where_there_is_no_card(
    caplog: pytest.LogCaptureFixture, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings.from_environment(device="cpu", outputs_dir=tmp_path, environment={})
    with caplog.at_level(logging.INFO):
        assert not compiling.wanted(settings, pays=True) and not caplog.records
        assert not compiling.wanted(replace(settings, compile="always")) and "CUDA cards only" in caplog.text
