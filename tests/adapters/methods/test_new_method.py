"""One file and one entry in the list add a method: it trains, is served, counted and exported."""

import json
from pathlib import Path

import pytest
import torch

from server.__main__ import main
from server.adapters.learning.trainable import TrainableAdapter
from server.adapters.methods import registry
from server.adapters.porting.service import PortingService
from server.bases.model import BaseModel
from server.errors import InvalidRequest
from server.jobs.queue.continuing import inherited
from server.jobs.queue.train_options import TrainOptions, check_method
from server.training.job.start import adapter_options
from server.training.run.defaults import plan_for
from tests.adapters.conftest import Serve
from tests.adapters.made import Made, make_adapter, merged_logits
from tests.adapters.methods.shift_method import SHIFT
from tests.models import tiny_base

TOKENS = torch.arange(3, 20)


@pytest.fixture(autouse=True)
def _listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "METHODS", (*registry.METHODS, SHIFT))


def trained(base: BaseModel, steps: int = 5) -> tuple[Made, list[float]]:
    """An adapter after some steps with a job's defaults, and the losses."""
    plan = plan_for(TrainOptions(method="shift"), seed=0, max_rank=32, lines=9)
    options = adapter_options(plan, base)
    adapter = TrainableAdapter(base, plan.method, plan.rank, plan.basis_seed, plan.targets, options)
    optimizer = torch.optim.Adam(adapter.parameters(), lr=plan.learning_rate)
    losses = []
    for _ in range(steps):
        with adapter.active():
            logits = base.model(TOKENS[None], use_cache=False).logits[0]
        loss = torch.nn.functional.cross_entropy(logits[:-1], TOKENS[1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return Made(adapter.manifest(created_at=0, provenance={}), adapter.tensors()), losses


def test_its_options_are_checked() -> None:
    specs = registry.method_specs()
    check_method(TrainOptions(method="shift", alpha=3.0), specs)
    with pytest.raises(InvalidRequest, match="no option of method 'shift', only of randlora"):
        check_method(TrainOptions(method="shift", sparsity=3), specs)
    with pytest.raises(InvalidRequest, match=r"alpha is no option of .* lora and shift: leave it"):
        check_method(TrainOptions(alpha=3.0), specs)


def test_a_job_continues_from_it() -> None:
    made, _ = trained(tiny_base("llama"), steps=0)
    specs = registry.method_specs()
    options = inherited("pet@1", made.manifest, {"n_epochs": 2, "alpha": 2.0}, specs)
    assert options == {"method": "shift", "rank": 1, "n_epochs": 2}
    with pytest.raises(InvalidRequest, match=r"alpha=3.0 contradicts pet@1, which has 2.0"):
        inherited("pet@1", made.manifest, {"alpha": 3.0}, specs)


def test_it_learns_and_is_served_in_a_mixed_batch(serve: Serve) -> None:
    served = serve()
    made, losses = trained(served.base)
    assert losses[-1] < losses[0] - 0.01
    others = [make_adapter(served.base, draw=1), make_adapter(served.base, method="lora", draw=2)]
    mades = [made, *others, None]
    slots = [
        0 if it is None else served.acquire(served.publish(it, f"a{i}"))
        for i, it in enumerate(mades)
    ]
    answers = served.logits(TOKENS.expand(4, -1), slots)
    for answer, it in zip(answers, mades, strict=True):
        expected = merged_logits(served.base, it, TOKENS)
        torch.testing.assert_close(answer, expected, rtol=1e-3, atol=1e-3)
    plan = served.adapters.steps.plan(slots[:2], replayed=True)
    assert [group.without_kernels is None for group in plan.groups] == [False, True]


def test_it_is_counted(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods", "--json", "--rank", "1"]) == 0
    rows = json.loads(capsys.readouterr().out)["methods"]
    [row] = [row for row in rows if row["method"] == "shift"]
    assert (row["parameters"], row["basis_bytes"], row["usual"]) == (31_104, 0, True)


@pytest.mark.parametrize("form", ["peft", "peft-lora"])
def test_an_export_that_it_lacks_is_refused(form: str, serve: Serve, tmp_path: Path) -> None:
    served = serve()
    ref = served.publish(trained(served.base, steps=1)[0])
    porting = PortingService(served.base, served.store, "porch", tmp_path / "out", max_rank=32)
    with pytest.raises(InvalidRequest, match=r"'shift' is no product .* export it as merged"):
        porting.export_adapter(ref, form)
