"""The profile of a step, on a tiny shape."""

import pytest

from benchmarks.steps import profile_step
from benchmarks.steps.profile_step import Spent, group_of, lines_of
from tests.benchmarks.running import cells, run


def test_profile_accounts_for_the_whole_step(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(monkeypatch, profile_step, "--shape tiny --rows 2 --steps 2")
    rows = {cells(line)[0]: cells(line)[1:] for line in capsys.readouterr().out.splitlines()}
    assert {"products", "attention", "norm", "gaps"} <= rows.keys()
    assert rows["aten::mm"][0] == "products" and float(rows["aten::mm"][1]) > 0
    assert float(rows["a step"][0]) > 0


def test_gaps_are_what_kernels_leave() -> None:
    kernels = {"nvjet_tst_1": Spent(3.0, 4), "_add_vera": Spent(1.0, 2), "gemm_2": Spent(2.0, 1)}
    assert lines_of(kernels, 8.0) == [
        ("products", 5.0, "62.5%", 5),
        ("adapters", 1.0, "12.5%", 2),
        ("gaps", 2.0, "25.0%", ""),
        ("a step", 8.0, "100.0%", 7),
    ]


@pytest.mark.parametrize(
    ("kernel", "group"),
    [
        ("_gate_vera", "adapters"),
        ("_shrink", "adapters"),
        ("_attend", "attention"),
        ("_join", "attention"),
        ("_add_rms_norm", "norm"),
        ("_rotate_and_store", "rotary and storing"),
        ("_gate_mul", "gate"),
        ("nvjet_tst_64x8_64x16_4x2_h_bz_TNT", "products"),
        ("void at::native::reduce_kernel<512, 1, at::native::ArgMaxOps<float>>", "sampling"),
        ("Memcpy HtoD (Pinned -> Device)", "copies"),
        ("something else", "other"),
    ],
)
def test_kernels_are_counted_as_what_they_do(kernel: str, group: str) -> None:
    assert group_of(kernel) == group
