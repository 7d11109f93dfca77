"""What only a GPU needs: its memory, told by fakes; and its bits, where there is one."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pynvml
import pytest
import structlog
import torch

from models.backends import graphs
from models.backends.backend import Backend, NotCompiledError
from models.backends.eager import Eager
from models.backends.fused import CudaKernels, Fused
from models.backends.memory import host_memory
from models.network.ensemble import WorldModelEnsemble
from models.prediction import Array, Prediction
from service.engine import Engine
from service.engine.device_memory import DeviceMemory
from service.engine.engine import _pick_device
from service.engine.parts import Parts
from service.errors import StartupError
from tests.test_models.test_backends.driver import Driver
from tests.test_models.test_backends.test_memory import unpinnable
from tests.test_service.test_engine.test_engine import checkpoint, inputs, moody, row_bits


class FakeMemory:
    def __init__(self, uuid: str) -> None:
        self.uuid = uuid
        self.is_closed = False

    def start(self) -> None:
        pass

    def read(self) -> Mapping[str, int]:
        return {"device_used": 3, "device_total": 8}

    def utilization(self) -> float | None:
        return 0.5

    def close(self) -> None:
        self.is_closed = True


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A CUDA runtime that only answers questions."""
    calls: dict[str, Any] = {}
    properties = SimpleNamespace(total_memory=8 * 2**30, uuid="abc")
    for name, answer in {
        "get_device_properties": lambda device: properties,
        "set_per_process_memory_fraction": lambda share, device: calls.update(share=share),
        "get_device_name": lambda device: "NVIDIA Fake",
        "memory_allocated": lambda device: 1,
        "memory_reserved": lambda device: 2,
        "max_memory_allocated": lambda device: 4,
        "synchronize": lambda: None,
        "empty_cache": lambda: calls.update(emptied=calls.get("emptied", 0) + 1),
    }.items():
        monkeypatch.setattr(torch.cuda, name, answer)
    return calls


TOO_OLD = (
    "CUDA initialization: The NVIDIA driver on your system is too old (found version 11040).\n"
    "Please update. (Triggered internally at /pytorch/c10/cuda/CUDAFunctions.cpp:119.)"
)
TOO_OLD_IN_SHORT = TOO_OLD.partition(" (Trig")[0].replace("\n", " ")


@pytest.fixture
def old_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch that says once why there is no device, as the real one does."""
    sayings = [TOO_OLD]

    def is_available() -> bool:
        if sayings:
            warnings.warn(sayings.pop(), stacklevel=2)
        return False

    monkeypatch.setattr(torch.cuda, "is_available", is_available)


def test_a_driver_that_is_too_old_is_told_where_the_cpu_is_taken(old_driver: None) -> None:
    with structlog.testing.capture_logs() as lines:
        device = _pick_device("auto")

    assert device.type == "cpu"
    assert lines == [{"event": "no GPU used", "reason": TOO_OLD_IN_SHORT, "log_level": "warning"}]


def test_a_driver_that_is_too_old_is_told_where_a_gpu_is_demanded(old_driver: None) -> None:
    with pytest.raises(StartupError) as caught:
        _pick_device("cuda")

    assert str(caught.value).endswith(f"no CUDA device is usable: {TOO_OLD_IN_SHORT}")


def test_where_there_is_no_gpu_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    with structlog.testing.capture_logs() as lines:
        assert _pick_device("auto").type == "cpu"

    assert lines == []


def test_a_gpu_is_not_asked_about_where_the_cpu_is_wanted(
    old_driver: None,
) -> None:
    with structlog.testing.capture_logs() as lines:
        assert _pick_device("cpu").type == "cpu"

    assert lines == []


def test_a_gpu_that_cannot_be_had_stops_the_start_in_one_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse() -> int:
        raise RuntimeError("CUDA error: all CUDA-capable devices are busy\nor unavailable")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", refuse)

    with pytest.raises(StartupError, match=r"usable: CUDA error: all .* are busy or unavailable"):
        _pick_device("auto")


def test_the_memory_budget_is_enforced_and_reported(
    cuda: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.engine.engine.DeviceMemory", FakeMemory)
    engine = Engine(checkpoint(), vram_budget_bytes=2 * 2**30)
    engine._device = torch.device("cuda", 0)
    engine._start_cuda()
    engine._backend = graphs.Graphs(checkpoint().ensemble)

    assert cuda["share"] == 0.25
    assert engine.vram() == {
        "allocated": 1,
        "reserved": 2,
        "peak": 4,
        "budget": 2 * 2**30,
        "device_used": 3,
        "device_total": 8,
    }
    assert engine.utilization() == 0.5
    assert engine.describe().device == "NVIDIA Fake (graphs)"
    engine.close()
    assert cuda["emptied"] == 1


def test_a_budget_beyond_the_device_is_cut_to_it(
    cuda: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.engine.engine.DeviceMemory", FakeMemory)
    engine = Engine(checkpoint(), vram_budget_bytes=16 * 2**30)
    engine._device = torch.device("cuda", 0)
    engine._start_cuda()

    assert cuda["share"] == 1.0
    assert (engine.vram() or {})["budget"] == 8 * 2**30


def test_memory_is_given_back_before_a_launch_is_split(cuda: dict[str, Any]) -> None:
    ensemble, _ = moody(fits_rows=16)
    backend = Eager(cast(WorldModelEnsemble, ensemble))
    counted: list[str] = []

    Parts(backend, (8, 16, 32), *inputs(32, 2), 32, counted.append).run()

    assert (cuda["emptied"], counted) == (1, ["out_of_memory"])
    assert ensemble.launches == [32, 16, 16, 16, 16]


@pytest.fixture
def graphs_on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def on_cpu(ensemble: WorldModelEnsemble) -> graphs.Graphs:
        return graphs.Graphs(ensemble, capture=lambda work: work, wait=lambda: None)

    monkeypatch.setattr("service.engine.engine.Graphs", on_cpu)
    monkeypatch.setattr("service.engine.engine._LONGEST_STEP_S", math.inf)  # on any machine


def rolled_out_as_on_a_gpu(engine: Engine) -> tuple[list[list[bytes]], Engine]:
    """Return the bits of 20 rows and 21 steps by the GPU's backend of an engine, computed here."""
    engine.start()
    engine._is_cpu = False
    engine._backend = engine._gpu_backend()
    states, actions = inputs(20, 21)

    begun = engine.begin(states, actions, 20)
    assert (begun.advance(1), begun.is_complete) == (21, True)

    assert not engine.is_quick_to_call
    return [row_bits(begun.result(), k) for k in range(20)], engine


def test_without_fused_kernels_launches_are_taken_whole_by_recorded_graphs(
    graphs_on_cpu: None,
) -> None:
    eager = Engine(checkpoint(), device="cpu", threads=1)
    eager.start()
    truth = eager.rollout(*inputs(20, 21))

    seen, engine = rolled_out_as_on_a_gpu(Engine(checkpoint(), device="cpu", threads=1))

    assert seen == [row_bits(truth, k) for k in range(20)]
    assert engine.describe().device == "cpu (graphs)"


def test_fused_kernels_are_used_if_they_can_be_had(driver: Driver, library: Path) -> None:
    seen, engine = rolled_out_as_on_a_gpu(
        Engine(checkpoint(), device="cpu", threads=1, library=lambda: library)
    )

    truth = checkpoint().ensemble.rollout(*(torch.from_numpy(x) for x in inputs(20, 21)))
    first = np.frombuffer(seen[0][0], np.float32).reshape(22, -1)
    np.testing.assert_allclose(first, truth.states[0].numpy(), rtol=1e-5, atol=1e-5)
    assert engine.describe().device == "cpu"


def test_kernels_do_without_pinned_memory(
    driver: Driver, library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def wanted_pinned(*shape: int, is_pinned: bool) -> torch.Tensor:
        asked.extend(shape)
        return host_memory(*shape, is_pinned=True)

    short = unpinnable(RuntimeError("CUDA error: out of memory"))
    truth, _ = rolled_out_as_on_a_gpu(
        Engine(checkpoint(), device="cpu", threads=1, library=lambda: library)
    )
    monkeypatch.setattr("models.backends.fused.host_memory", wanted_pinned)
    monkeypatch.setattr(torch, "empty", short)

    seen, _ = rolled_out_as_on_a_gpu(
        Engine(checkpoint(), device="cpu", threads=1, library=lambda: library)
    )

    assert seen == truth
    assert asked


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory."), RuntimeError("CUDA error: out of memory")],
    ids=str,
)
def test_fewer_rows_are_compared_where_memory_is_missing_anywhere(
    cuda: dict[str, Any], error: RuntimeError
) -> None:
    compared: list[int] = []

    def check(states: Array, actions: Array, members: int | None = None) -> None:
        compared.append(len(states))
        if len(states) > 30:
            raise error

    fused = SimpleNamespace(busy_rows=100, check=check)
    Engine(checkpoint())._compare(cast(Fused, fused))

    assert compared == [8, 8, 100, 50, 25]
    assert cuda["emptied"] == 2


def test_another_fault_ends_the_comparison() -> None:
    def check(states: Array, actions: Array, members: int | None = None) -> None:
        if len(states) > 30:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    fused = SimpleNamespace(busy_rows=100, check=check)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        Engine(checkpoint())._compare(cast(Fused, fused))


def test_without_nvidias_compiler_graphs_do_it_and_it_is_said(
    graphs_on_cpu: None, driver: Driver, library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(architecture: str) -> bytes:
        raise NotCompiledError("no compiler")

    monkeypatch.setattr("models.backends.fused.compile_gpu", refuse)

    with structlog.testing.capture_logs() as lines:
        rolled_out_as_on_a_gpu(
            Engine(checkpoint(), device="cpu", threads=1, library=lambda: library)
        )

    assert (lines[0]["event"], lines[0]["reason"]) == (
        "no fused kernels: steps are graphs, slower",
        "no compiler",
    )


class Compared:
    """What is launched where the kernels are compared with the model: blocks, rows and steps."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.launches: list[tuple[str, int, int, int]] = []
        launch = CudaKernels._launch

        def noted(kernels: CudaKernels, kernel: Any, blocks: tuple[int, int], *given: Any) -> None:
            rows_and_steps = given[-1]
            if kernel in (kernels._rollout, kernels._large):
                name = "small" if kernel is kernels._rollout else "large"
                self.launches.append((name, blocks[0] * blocks[1], *rows_and_steps))
            launch(kernels, kernel, blocks, *given)

        monkeypatch.setattr(CudaKernels, "_launch", noted)


def engine_with_kernels(library: Path) -> Engine:
    """Return a started engine that has what fused kernels need."""
    engine = Engine(checkpoint(), device="cpu", threads=1, library=lambda: library)
    engine.start()
    return engine


@pytest.mark.parametrize("multiprocessors", [3, 13, 48])
def test_kernels_are_compared_over_16_steps_and_on_all_multiprocessors(
    driver: Driver, library: Path, monkeypatch: pytest.MonkeyPatch, multiprocessors: int
) -> None:
    driver.multiprocessors(multiprocessors)
    compared = Compared(monkeypatch)

    assert engine_with_kernels(library)._gpu_backend().label == ""

    few, by_one, many = compared.launches
    assert few[0] == by_one[0] == "small"
    assert many[0] == "large"
    assert few[1] == 2 * by_one[1]  # blocks: of two members, and of one
    assert many[1] >= 2 * multiprocessors
    assert {steps for *_, steps in compared.launches} == {16}


def test_as_many_rows_are_compared_as_fit_the_memory(
    driver: Driver, library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    emptied: list[bool] = []

    class Small(Fused):
        def compute(
            self,
            states: Array,
            actions: Array,
            prediction: Prediction,
            members: int | None = None,
        ) -> None:
            if len(states) > 200:
                raise torch.OutOfMemoryError("full")
            super().compute(states, actions, prediction, members)

    driver.multiprocessors(48)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(True))
    monkeypatch.setattr("service.engine.engine.Fused", Small)
    compared = Compared(monkeypatch)

    with structlog.testing.capture_logs() as lines:
        assert engine_with_kernels(library)._gpu_backend().label == ""

    assert [rows for _, _, rows, _ in compared.launches] == [8, 8, 1536 // 8]
    fewer = [line["rows"] for line in lines if line["event"] == "fewer rows compared"]
    assert fewer == [1536, 768, 384]
    assert len(emptied) == 3


class OneFeature(Fused):
    """A feature that is a little off."""

    def compute(
        self,
        states: Array,
        actions: Array,
        prediction: Prediction,
        members: int | None = None,
    ) -> None:
        super().compute(states, actions, prediction, members)
        prediction.states[:, 1:, 2] *= 1.001


class LastStep(Fused):
    """The sixteenth step is not taken."""

    def compute(
        self,
        states: Array,
        actions: Array,
        prediction: Prediction,
        members: int | None = None,
    ) -> None:
        super().compute(states, actions, prediction, members)
        if actions.shape[1] >= 16:
            prediction.states[:, 16] = prediction.states[:, 15]


class OneMember(Fused):
    """One member is another one."""

    def __init__(self, ensemble: WorldModelEnsemble, device: torch.device) -> None:
        wrong = copy.deepcopy(ensemble)
        next(list(wrong.members)[1].parameters()).mul_(1.05)
        super().__init__(wrong, device)
        self._ensemble = ensemble


class LastTile(Fused):
    """The last of many tiles is not computed: that of a multiprocessor few rows do not reach."""

    def compute(
        self,
        states: Array,
        actions: Array,
        prediction: Prediction,
        members: int | None = None,
    ) -> None:
        super().compute(states, actions, prediction, members)
        if len(states) == self.busy_rows:
            prediction.states[-32:, 1:] = prediction.states[:32, 1:]


@pytest.mark.parametrize("faulty", [OneFeature, LastStep, OneMember, LastTile])
def test_kernels_with_a_fault_give_way_to_graphs_and_it_is_said(
    graphs_on_cpu: None,
    driver: Driver,
    library: Path,
    monkeypatch: pytest.MonkeyPatch,
    faulty: type[Fused],
) -> None:
    driver.multiprocessors(48)
    monkeypatch.setattr("service.engine.engine.Fused", faulty)

    with structlog.testing.capture_logs() as lines:
        _, engine = rolled_out_as_on_a_gpu(
            Engine(checkpoint(), device="cpu", threads=1, library=lambda: library)
        )

    assert engine.describe().device == "cpu (graphs)"
    assert lines[0]["event"] == "no fused kernels: steps are graphs, slower"
    assert "differ from the model's" in lines[0]["reason"]


def test_without_the_driver_the_device_wide_figures_are_absent(
    cuda: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(self: FakeMemory) -> None:
        raise OSError("no driver")

    monkeypatch.setattr("service.engine.engine.DeviceMemory", FakeMemory)
    monkeypatch.setattr(FakeMemory, "start", absent)
    engine = Engine(checkpoint())
    engine._device = torch.device("cuda", 0)
    engine._start_cuda()

    assert "device_used" not in (engine.vram() or {})
    assert engine.utilization() is None


def test_nvml_reads_the_device_by_uuid(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(pynvml, "nvmlInit", lambda: None)
    monkeypatch.setattr(pynvml, "nvmlShutdown", lambda: asked.append("shutdown"))
    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByUUID", asked.append)
    monkeypatch.setattr(
        pynvml, "nvmlDeviceGetMemoryInfo", lambda handle: SimpleNamespace(used=5, total=9)
    )
    monkeypatch.setattr(
        pynvml, "nvmlDeviceGetUtilizationRates", lambda handle: SimpleNamespace(gpu=42, memory=7)
    )
    memory = DeviceMemory("abc")
    memory.start()

    assert memory.read() == {"device_used": 5, "device_total": 9}
    assert memory.utilization() == 0.42
    memory.close()
    assert asked == ["GPU-abc", "GPU-abc", "shutdown"]


def test_nvml_reads_a_slice_of_a_device_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def known(uuid: str) -> str:
        if not uuid.startswith("MIG-"):
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return uuid

    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByUUID", known)
    monkeypatch.setattr(
        pynvml, "nvmlDeviceGetMemoryInfo", lambda handle: SimpleNamespace(used=5, total=9)
    )

    for uuid in ("abc", "GPU-abc", "MIG-abc"):
        assert DeviceMemory(uuid).read() == {"device_used": 5, "device_total": 9}


def lost(*_: Any) -> None:
    raise RuntimeError("CUDA error: an illegal memory access was encountered\nmore")


def test_a_device_that_does_not_take_its_memory_back_can_be_closed(
    cuda: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "empty_cache", lost)
    engine = Engine(checkpoint())
    engine._device = torch.device("cuda", 0)

    with structlog.testing.capture_logs() as lines:
        engine.close()

    assert lines[0]["event"] == "device memory not given back"
    assert lines[0]["error"] == "CUDA error: an illegal memory access was encountered"


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    kept: list[object] = []
    monkeypatch.setattr("service.engine.context._kept", kept)
    return kept


@pytest.mark.parametrize("is_known", [True, False])
def test_nothing_of_a_lost_device_is_freed(
    cuda: dict[str, Any], monkeypatch: pytest.MonkeyPatch, kept: list[object], is_known: bool
) -> None:
    """Whether a canary has noticed it, or the end of the service does."""
    if not is_known:
        monkeypatch.setattr(torch.cuda, "synchronize", lost)
    engine = Engine(checkpoint())
    engine._device = torch.device("cuda", 0)
    backend = engine._backend = graphs.Graphs(checkpoint().ensemble)
    engine.is_lost = is_known

    engine.close()

    assert engine.is_lost
    assert kept == [engine]
    assert engine._backend is backend
    assert "emptied" not in cuda


@pytest.mark.parametrize("does_last", [True, False])
def test_rows_under_way_are_kept_if_they_lose_the_device(
    cuda: dict[str, Any], monkeypatch: pytest.MonkeyPatch, kept: list[object], does_last: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    if does_last:
        monkeypatch.setattr(torch.cuda, "synchronize", lost)
    backend = SimpleNamespace(blank=Prediction.blank, start=lost)
    parts = Parts(cast(Backend, backend), (8,), *inputs(8, 2), 8, lambda kind: None)

    with pytest.raises(RuntimeError, match="illegal memory access"):
        parts.run()

    assert kept == ([parts] if does_last else [])


def test_nvml_that_is_gone_at_the_end_is_no_fault(
    cuda: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone() -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)

    monkeypatch.setattr(pynvml, "nvmlShutdown", gone)
    engine = Engine(checkpoint())
    engine._device = torch.device("cuda", 0)
    engine._device_memory = DeviceMemory("abc")

    engine.close()

    assert cuda["emptied"] == 1


@pytest.mark.parametrize("does_last", [True, False])
def test_a_device_is_lost_if_its_error_lasts(
    monkeypatch: pytest.MonkeyPatch, does_last: bool
) -> None:
    def failing(*_: Any) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    engine = Engine(checkpoint(), threads=1)
    engine._device = torch.device("cuda", 0)
    monkeypatch.setattr(engine, "rollout", failing)
    monkeypatch.setattr(torch.cuda, "synchronize", failing if does_last else lambda: None)

    with pytest.raises(RuntimeError, match="illegal memory access"):
        engine.canary()

    assert engine.is_lost is does_last


def test_a_cpu_is_never_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: Any) -> None:
        raise RuntimeError("something else")

    engine = Engine(checkpoint(), threads=1)
    monkeypatch.setattr(engine, "rollout", failing)

    with pytest.raises(RuntimeError, match="something else"):
        engine.canary()

    assert not engine.is_lost


def test_nvml_that_fails_is_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_UNKNOWN)

    monkeypatch.setattr(pynvml, "nvmlInit", fail)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByUUID", fail)

    assert DeviceMemory("GPU-abc").read() == {}
    assert DeviceMemory("GPU-abc").utilization() is None
    with pytest.raises(OSError, match="NVML is not available"):
        DeviceMemory("GPU-abc").start()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("way", ["fused", "graphs"])
def test_on_a_gpu_a_row_has_the_same_bits_in_any_launch(way: str, library: Path) -> None:
    is_fused = way == "fused"
    engine = Engine(checkpoint(), device="cuda", library=(lambda: library) if is_fused else None)
    engine.start()
    assert engine.describe().device.endswith("(graphs)") is not is_fused
    states, actions = inputs(300, 16)
    together = engine.rollout(states, actions)

    for row in (0, 7, 63, 64, 255, 299):
        alone = engine.rollout(states[row : row + 1], actions[row : row + 1])
        assert row_bits(alone, 0) == row_bits(together, row)
    usage = engine.vram() or {}
    assert 0 < usage["allocated"] <= usage["reserved"] <= usage["budget"]
    engine.close()
