"""The options of a training job. Knows no defaults: the server has them."""

from typing import Literal, TypedDict


class Hyperparameters(TypedDict, total=False):
    """An option that is left out takes the server's default. The server refuses an option that the
    method does not have.

    `method` is one that `verandah methods` lists.
    `targets` is "all-linear", "attention" or names of linears. `trained` is "d+b", "d" or "b" with
    vera, "B" or "A" with asymmetric-lora; `basis` ("shared" or "per-layer") and `d_initial` go with
    vera, `sparsity` ("dense", "sqrt" or a number) with randlora, `alpha` with both LoRAs.
    `early_stopping` ends a run after so many scores without a better one. `checkpoints` is the
    number of versions published during training. `publish` says whether to publish a result that is
    worse than its start.
    """

    method: str
    rank: int
    targets: str | list[str]
    trained: str
    basis: str
    sparsity: float | str
    alpha: float
    d_initial: float
    dropout: float
    learning_rate: float
    learning_rate_multiplier: float
    n_epochs: int
    batch_size: int
    warmup_ratio: float
    schedule: Literal["cosine", "linear", "constant"]
    max_grad_norm: float
    weight_decay: float
    seed: int
    validation_split: float
    max_tokens_per_batch: int
    early_stopping: int
    checkpoints: int
    publish: Literal["if_better", "always"]
