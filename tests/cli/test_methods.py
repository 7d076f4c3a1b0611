"""`verandah methods`: counts of any base model from its configuration."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from server.__main__ import main
from server.adapters.inspecting.counts import count
from server.adapters.learning.targets import resolve_targets
from server.adapters.methods.registry import method_named, method_specs
from server.bases.base_files import load_base, outline_base
from server.bases.model import BaseModel
from server.errors import UnsupportedModel
from tests.models import KINDS, Kind, tiny_model

DOC = Path(__file__).parents[2] / "docs" / "methods.md"
LLAMA_70B = {
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "dtype": "bfloat16",
}


def config_file(folder: Path, kind: str, **fields: object) -> str:
    path = folder / "config.json"
    AutoConfig.for_model(kind, **fields).to_json_file(path)
    return str(path)


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert main(["methods", "--json", *arguments]) == 0
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    return document


def parameters(document: dict[str, Any], method: str, trained: str | None) -> list[int]:
    return [
        row["parameters"]
        for row in document["methods"]
        if (row["method"], row["trained"]) == (method, trained)
    ]


def test_the_numbers_of_a_model_on_disk(
    model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = load_base(model_folder, device="cpu")
    targets = resolve_targets(base, ["q_proj", "up_proj"])
    document = told(
        capsys, "--model", str(model_folder), "--targets", "q_proj,up_proj", "--rank", "3,9"
    )
    assert document["targets"] == list(targets)
    assert document["parameters"] == sum(p.numel() for p in base.model.parameters())
    assert len(document["methods"]) == 2 * sum(
        len(spec.variants) for spec in method_specs().values()
    )
    for row in document["methods"]:
        options = {} if row["trained"] is None else {"trained": row["trained"]}
        counts = count(method_named(row["method"], options), base, targets, row["rank"])
        assert row["parameters"] == counts.parameters
        assert row["bytes_at_rest"] == 4 * counts.parameters
        assert row["basis_bytes"] == counts.basis_bytes


def test_the_usual_ranks_are_those_that_jobs_take(capsys: pytest.CaptureFixture[str]) -> None:
    document = told(capsys)
    assert (document["model"], document["dtype"]) == ("porch", "bfloat16")
    usual = {
        (row["method"], row["trained"]): row["rank"] for row in document["methods"] if row["usual"]
    }
    assert usual == {
        (name, variant.trained): variant.rank
        for name, spec in method_specs().items()
        for variant in spec.variants
    }


def test_veras_table_1_from_the_configuration_of_roberta(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An encoder is counted, though it cannot be served; its own defaults are RoBERTa-base."""
    path = config_file(tmp_path, "roberta")
    document = told(capsys, "--model", path, "--targets", "query,value", "--rank", "1,16,256")
    assert len(document["targets"]) == 24
    assert parameters(document, "lora", None) == [36_864, 589_824, 9_437_184]
    assert parameters(document, "vera", "d+b") == [18_456, 18_816, 24_576]


def test_linears_that_lie_transposed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """GPT-2's Conv1D: c_attn reads 768 and gives 2304, twelve times."""
    path = config_file(tmp_path, "gpt2")
    document = told(capsys, "--model", path, "--targets", "c_attn", "--rank", "4")
    assert parameters(document, "lora", None) == [12 * 4 * (768 + 2304)]
    assert parameters(document, "asymmetric-lora", "B") == [12 * 4 * 2304]
    assert parameters(document, "asymmetric-lora", "A") == [12 * 4 * 768]
    assert parameters(document, "vera", "b") == [12 * 2304]
    assert parameters(document, "randlora", None) == [12 * 192 * (4 + 768)]


def test_seventy_billion_parameters_take_no_memory(tmp_path: Path) -> None:
    base = outline_base(config_file(tmp_path, "llama", **LLAMA_70B))
    assert all(parameter.is_meta for parameter in base.model.parameters())
    assert sum(parameter.numel() for parameter in base.model.parameters()) == 70_553_706_496
    assert len(base.targets) == 80 * 7
    counts = count(method_named("vera"), base, tuple(base.targets), 256)
    gives = 8192 + 1024 + 1024 + 8192 + 28672 + 28672 + 8192
    assert counts.parameters == 80 * (7 * 256 + gives)
    assert counts.basis_bytes == 2 * 256 * 28672 * 2  # A and B, bfloat16


@pytest.mark.parametrize("kind", KINDS)
def test_an_outline_has_the_linears_of_the_model(kind: Kind, tmp_path: Path) -> None:
    model = tiny_model(kind)
    model.config.save_pretrained(tmp_path)
    outline, base = outline_base(tmp_path), BaseModel.of(model, kind)
    assert list(outline.targets) == list(base.targets)  # the order gives layers their streams
    for path, target in base.targets.items():
        shape = (target.in_features, target.out_features)
        assert (outline.targets[path].in_features, outline.targets[path].out_features) == shape


def test_a_quantised_models_linears_are_counted_though_it_is_not_served(tmp_path: Path) -> None:
    path = config_file(tmp_path, "llama", quantization_config={"quant_method": "fp8"})
    assert len(outline_base(path).targets) == 32 * 7
    with pytest.raises(UnsupportedModel, match="quantised"):
        load_base(tmp_path, device="cpu")


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["--model", "/no/such/model"], 1, "is not there"),
        (["--targets", "no_proj"], 1, "no linear of base 'porch' is named 'no_proj'"),
        (["--rank", "0"], 2, "--rank '0': below 1: give at least 1"),
        (["--rank", "8,x"], 2, "--rank 'x': not a whole number: give one"),
    ],
)
def test_what_goes_wrong_is_one_line(
    arguments: list[str], status: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["methods", *arguments]) == status
    error = capsys.readouterr().err
    assert error.startswith("verandah: ") and said in error
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize("kind", ["t5", "mamba", "vit"])
def test_what_has_no_decoder_is_refused(kind: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match=r"config\.json"):
        outline_base(config_file(tmp_path, kind))


def test_rubbish_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text("rubbish")
    with pytest.raises(UnsupportedModel, match="cannot outline"):
        outline_base(path)


def test_a_table_for_people(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("VERANDAH_METHODS_RANK", "64")
    assert main(["methods"]) == 0
    table = capsys.readouterr().out
    assert "porch: 17,308,800 parameters; adapters of 63 linears" in table
    for name in method_specs():
        assert name in table
    cells = [part.strip() for part in table.splitlines()[5].split("│")[1:-1]]
    # 63 times rank 64, and 31,104 outputs; A and B of 64 x 1024 in bfloat16
    assert cells == ["vera d+b", "64*", "35,136", "0.203 %", "137.2 KiB", "256.0 KiB"]


def test_the_documentation_shows_this_table(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")  # an ordinary terminal: no number may be cut
    assert main(["methods"]) == 0
    table = "\n".join(line.rstrip() for line in capsys.readouterr().out.splitlines())
    assert f"```\n{table}\n```" in DOC.read_text(encoding="utf-8"), "paste it there"
