"""Two processes, one copy of the weights; and what happens when one of them goes."""

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PretrainedConfig

from server.adapters.sites import join
from server.bases.lending import Lender, Loan, Weights, borrow, device_key
from server.bases.model import BaseModel, load_base
from server.errors import Unavailable
from tests.models import KINDS, Kind, tiny_base, tiny_model

ROOT = Path(__file__).parents[2]
SOURCE = "tiny"


@pytest.fixture(autouse=True)
def by_name() -> Iterator[None]:
    """Shared memory of a CPU that strangers can open: by name, not by an inherited descriptor."""
    before = torch.multiprocessing.get_sharing_strategy()
    torch.multiprocessing.set_sharing_strategy("file_system")
    yield
    torch.multiprocessing.set_sharing_strategy(before)


def logits(base: BaseModel) -> Tensor:
    with torch.inference_mode():
        tokens = torch.arange(3, 20, device=base.device)[None]
        found: Tensor = base.model(tokens).logits
        return found


def config_of(base: BaseModel) -> Callable[[], PretrainedConfig]:
    return lambda: type(base.model.config)(**base.model.config.to_dict())


@contextmanager
def borrowed(base: BaseModel, socket: Path, source: str = SOURCE) -> Iterator[Loan]:
    lender = Lender(Weights.of(base, SOURCE), socket)
    try:
        loan = borrow(socket, source, config_of(base), patience_s=0, stop=threading.Event())
        yield loan
        loan.close()
    finally:
        lender.close()


@contextmanager
def lending(source: Path, socket: Path, device: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "tests.bases.lender", str(source), str(socket), device]
    process = subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("kind", KINDS)
def test_a_borrowed_base_is_the_same_base(kind: Kind, tmp_path: Path) -> None:
    base = tiny_base(kind)
    with borrowed(base, tmp_path / "socket") as loan:
        mine, theirs = loan.base, base
        assert torch.equal(logits(mine), logits(theirs))
        assert mine.fingerprint == theirs.fingerprint
        assert mine.targets.keys() == theirs.targets.keys()
        facts = ("name", "max_context", "vocab_size", "eos_token_ids", "dtype", "num_layers")
        for fact in facts:
            assert getattr(mine, fact) == getattr(theirs, fact), fact
        assert not any(it.requires_grad for it in mine.model.parameters())


def test_nothing_is_copied_not_even_joined_weights(tmp_path: Path) -> None:
    base = tiny_base("llama")
    names = [f"model.layers.0.self_attn.{name}_proj" for name in "qkv"]
    site = join([base.targets[name] for name in names], None)
    weights = Weights.of(base, SOURCE)
    with borrowed(base, tmp_path / "socket") as loan:
        with torch.no_grad():
            site.weight.zero_()
            base.model.get_parameter("lm_head.weight").fill_(3)
        for name in names:
            assert not loan.base.model.get_parameter(f"{name}.weight").any()
        assert (loan.base.model.get_parameter("lm_head.weight") == 3).all()
    own = sum(it.numel() * it.itemsize for it in base.model.parameters())
    assert own <= weights.bytes < 1.01 * own


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_two_processes_share_and_one_may_die(tmp_path: Path, device: str) -> None:
    folder, socket = tmp_path / "model", tmp_path / "socket"
    tiny_model("llama").save_pretrained(folder)
    own = load_base(folder, device=device)
    gone = threading.Event()
    with lending(folder, socket, device) as process:
        loan = borrow(socket, str(folder), config_of(own), patience_s=0, stop=threading.Event())
        assert torch.equal(logits(loan.base), logits(own))

        def watch() -> None:
            loan.wait()
            gone.set()

        threading.Thread(target=watch, daemon=True).start()
        assert not gone.wait(0.2)
        process.kill()
        assert gone.wait(10)
        assert torch.equal(logits(loan.base), logits(own))  # a step under way may end


def test_only_its_user_may_borrow(tmp_path: Path) -> None:
    with borrowed(tiny_base("llama"), tmp_path / "socket"):
        assert (tmp_path / "socket").stat().st_mode & 0o777 == 0o600


def test_another_base_is_not_borrowed(tmp_path: Path) -> None:
    with (
        pytest.raises(Unavailable, match="serves another base: tiny, not other"),
        borrowed(tiny_base("llama"), tmp_path / "socket", source="other"),
    ):
        pass


def test_weights_of_another_shape_are_refused() -> None:
    weights = Weights.of(tiny_base("llama"), SOURCE)
    other = tiny_base("llama", intermediate_size=96)
    with pytest.raises(Unavailable, match="another shape"):
        weights.build(config_of(other)())


def test_memory_that_holds_something_else_is_refused() -> None:
    base = tiny_base("llama")
    weights = replace(Weights.of(base, SOURCE), served="0" * 32)
    with pytest.raises(Unavailable, match="does not hold"):
        weights.build(config_of(base)())


def test_nobody_there_is_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="no engine lends its weights"):
        borrow(
            tmp_path / "socket",
            SOURCE,
            config_of(tiny_base("llama")),
            patience_s=60,
            stop=threading.Event(),
        )


def stale(socket: Path) -> None:
    """What a killed engine leaves: a socket at which nobody listens."""
    program = "import socket, sys; socket.socket(socket.AF_UNIX).bind(sys.argv[1])"
    subprocess.run([sys.executable, "-c", program, str(socket)], check=True)


def test_the_successor_of_a_killed_engine_is_waited_for(tmp_path: Path) -> None:
    base, socket = tiny_base("llama"), tmp_path / "socket"
    stale(socket)
    lenders: list[Lender] = []
    weights = Weights.of(base, SOURCE)
    timer = threading.Timer(0.5, lambda: lenders.append(Lender(weights, socket)))
    timer.start()
    loan = borrow(socket, SOURCE, config_of(base), patience_s=30, stop=threading.Event())
    assert torch.equal(logits(loan.base), logits(base))
    loan.close()
    lenders[0].close()


@pytest.mark.parametrize("stopped", [False, True])
def test_but_not_for_ever(tmp_path: Path, stopped: bool) -> None:
    stale(tmp_path / "socket")
    stop = threading.Event()
    if stopped:
        stop.set()
    with pytest.raises(Unavailable, match="no engine answers"):
        borrow(
            tmp_path / "socket",
            SOURCE,
            config_of(tiny_base("llama")),
            patience_s=60 if stopped else 0.3,
            stop=stop,
        )


def test_handles_that_do_not_open_are_said_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(weights: Weights, config: PretrainedConfig) -> BaseModel:
        raise RuntimeError("invalid device handle")

    monkeypatch.setattr(Weights, "build", broken)
    with (
        pytest.raises(Unavailable, match="cannot be opened: invalid device handle"),
        borrowed(tiny_base("llama"), tmp_path / "socket"),
    ):
        pass


@pytest.mark.gpu
def test_a_cuda_device_is_named_by_itself_and_not_by_its_place() -> None:
    assert device_key(torch.device("cuda")) == device_key(torch.device("cuda", 0)) != "cuda"
