"""The settings, read once. Only `server.wiring` and `server.cli` import them."""

from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import Field, SecretStr, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from server.option_values import WITH_COMMAS, Amount, Origins, Whole

PREFIX: Final = "VERANDAH_"
AUTO: Final = "auto"


class BadOption(Exception):
    """An option or variable has a wrong value; the message is one line."""


class Settings(BaseSettings):
    """Every option of serve, worker and demo; each is also the variable `VERANDAH_<NAME>`."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="forbid")

    home: Path = Field(
        Path("~/.verandah"), description="folder with the adapters, the files and the database"
    )
    database_url: str = Field("", description="SQLAlchemy URL; empty: SQLite under the home")
    host: str = Field("127.0.0.1", description="address to listen on")
    port: int = Field(8000, ge=0, le=65535, description="port to listen on; 0 takes a free one")
    api_key: SecretStr | None = Field(
        None,
        min_length=1,
        description="the key of the server's admin; without it, requests need no key",
    )
    insecure: bool = Field(
        False, description="listen on any address without a key: whoever reaches it may do anything"
    )
    allowed_origins: Origins = Field(
        (),
        description="origins whose pages may use the API in a browser (CORS), with commas between; "
        "*: all",
    )
    metrics_names: Whole = Field(
        50,
        ge=0,
        description="how many owners, and how many adapters, /metrics counts by name: the busiest; "
        "the rest are `other`",
    )
    audit_days: Whole = Field(400, ge=1, description="days for which the trail of changes is kept")
    public_url: str = Field(
        "",
        description="this server's address as browsers reach it, such as https://verandah.example; "
        "empty: http://HOST:PORT of the loopback address",
    )
    oidc_issuer: str = Field(
        "", description="OpenID Connect provider by which people sign in; empty: none may"
    )
    oidc_client_id: str = Field("", description="this server's client id at the provider")
    oidc_client_secret: SecretStr | None = Field(
        None, min_length=1, description="the client's secret; none if the provider gave none"
    )
    oidc_client_secret_file: Path | None = Field(
        None, description="file with the client's secret, instead of the secret itself"
    )
    oidc_scopes: Annotated[tuple[str, ...], *WITH_COMMAS] = Field(
        ("openid", "profile", "email"), description="scopes to ask of the provider, with commas"
    )
    oidc_groups_claim: str = Field(
        "groups", min_length=1, description="claim in which the provider sends a person's groups"
    )
    oidc_groups: Annotated[tuple[str, ...], *WITH_COMMAS] = Field(
        (),
        description="memberships that groups give, with commas: GROUP=OWNER:member, "
        "GROUP=OWNER:admin, or GROUP=*:admin for an admin of the server",
    )
    oidc_default_owner: str = Field(
        "", description="owner of people whom no group gives a membership; empty: they are refused"
    )
    oidc_session_hours: float = Field(
        12, gt=0, le=24 * 365, description="hours that a browser stays signed in"
    )
    oidc_key_days: float = Field(
        7, gt=0, le=365, description="days that a key of `verandah login` is good at most"
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="how much to log"
    )

    model: str = Field(
        AUTO,
        description="base model: porch, a name that `verandah fetch` lists, a folder, a .gguf "
        "file, a hub id, or org/repo:file.gguf; auto: the one of the home's adapters, else "
        "smollm2-q4_1 if it was fetched, else porch",
    )
    served_name: str = Field("base", description="the id by which requests name the base model")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where the model runs")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto",
        description="number format of the weights; auto: as stored, but on a CPU float32 unless "
        "bfloat16 is stored and measured to be faster",
    )
    fused: bool = Field(
        True,
        description="on CUDA, use fused kernels and captured decode steps for models that "
        "they support; no: the model's own forward pass",
    )
    threads: Whole = Field(0, ge=0, description="CPU threads for the engine; 0: all cores but one")
    engine_process: Literal["auto", "yes", "no"] = Field(
        "auto", description="run the engine in a process of its own; auto: on CUDA"
    )
    replicas: int = Field(
        1, ge=1, le=64, description="engines; each has its own process and, on CUDA, its own device"
    )

    max_context: Whole = Field(0, ge=0, description="tokens of context; 0: the model's own limit")
    max_batch_rows: int = Field(
        0, ge=0, le=4096, description="sequences that run at once; 0: 64, on CUDA 256"
    )
    max_step_tokens: Whole = Field(
        0, ge=0, description="tokens of one step; longer prompts take several; 0: 512, on CUDA 2048"
    )
    kv_memory_mb: Whole = Field(
        0,
        ge=0,
        description="MiB for keys and values; 0: 16 full contexts of the base, at most 512 MiB; "
        "on CUDA 60 % of the free memory",
    )
    kv_block_tokens: int = Field(16, ge=1, le=1024, description="tokens in one KV block")
    prefix_cache: bool = Field(
        True, description="reuse keys and values of prompts that begin alike"
    )
    share_prefixes: bool = Field(
        False,
        description="reuse them across owners too; the speed of an answer then tells an owner what "
        "others asked",
    )
    max_waiting: Whole = Field(512, ge=1, description="answers that may wait; others get a 429")
    refuse_long_answers: bool = Field(
        False,
        description="refuse a request whose max_tokens do not fit the context behind its prompt; "
        "no: the answer has as many as fit",
    )
    sanitize_control_tokens: bool = Field(
        True,
        description="in chats, served or trained on, a control token that a person wrote, such as "
        "<|im_start|>, is text; no: it is the token that it spells",
    )
    request_timeout_s: Amount = Field(600, gt=0, description="seconds that an answer may take")
    drain_timeout_s: Amount = Field(
        20, ge=0, description="seconds for running requests at shutdown"
    )

    max_rank: int = Field(256, ge=1, le=1024, description="largest rank that can be served")
    adapter_slots: Whole = Field(1024, ge=1, description="most adapters in device memory at once")
    adapter_memory_mb: Whole = Field(
        0, ge=0, description="device memory for adapters, MiB; 0: 512, on CUDA 4096"
    )
    basis_memory_mb: Whole = Field(
        1024, ge=1, description="device memory for adapters' random matrices, MiB; used as needed"
    )
    dense_memory_mb: Whole = Field(
        2048,
        ge=0,
        description="CUDA memory for dense updates of the busiest RandLoRA adapters, MiB; used as "
        "needed; each is as large as the weights that its adapter changes; 0: none",
    )
    host_cache_mb: Whole = Field(
        512, ge=0, description="host memory for adapters that are not in device memory, MiB"
    )
    pinned: Annotated[tuple[str, ...], *WITH_COMMAS] = Field(
        (), description="adapters that are never evicted: NAME or NAME@VERSION, with commas between"
    )

    max_body_mb: float = Field(
        0,
        ge=0,
        le=1024,
        description="largest JSON request body, MiB; 0: 16 bytes for each token of context, and 2 "
        "at least",
    )
    max_file_mb: float = Field(100, gt=0, le=2**20, description="largest uploaded file, MiB")
    max_connections: int = Field(
        1024,
        ge=1,
        le=2**20,
        description="open connections; the one that is idle longest makes room",
    )

    max_requests_a_minute: Whole = Field(
        0, ge=0, description="model requests of each owner in a minute; 0: no limit"
    )
    max_tokens_a_minute: Whole = Field(
        0,
        ge=0,
        description="tokens of each owner in a minute, of prompts and answers; 0: no limit",
    )
    max_requests_at_once: Whole = Field(
        0, ge=0, description="model requests of each owner that run at once; 0: no limit"
    )
    max_adapters: Whole = Field(0, ge=0, description="adapters of each owner; 0: no limit")
    max_files: Whole = Field(0, ge=0, description="files of each owner; 0: no limit")
    max_stored_mb: Whole = Field(
        0, ge=0, description="files and adapters of each owner, MiB; 0: no limit"
    )
    max_running_jobs: Whole = Field(
        0, ge=0, description="jobs of each owner that train at once, others wait; 0: no limit"
    )
    max_waiting_jobs: Whole = Field(
        0, ge=0, description="jobs of each owner that wait or are paused; 0: no limit"
    )
    max_training_tokens_a_day: Whole = Field(
        0, ge=0, description="tokens that each owner's jobs train in a day; 0: no limit"
    )

    worker: bool = Field(True, description="let serve start and supervise a training worker")
    worker_device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="where the worker trains; auto: on the model's device"
    )
    worker_process: Literal["auto", "yes", "no"] = Field(
        "auto",
        description="run the worker in its own process, with a copy of the base; no: in a thread "
        "of the engine's process, on the engine's base; auto: no if both are on CUDA",
    )
    training_latency: float = Field(
        1.3,
        ge=1,
        description="factor by which training in the engine's process may lengthen the time from "
        "token to token (95th percentile) while requests run; inf: no limit",
    )
    worker_threads: Whole = Field(
        0, ge=0, description="CPU threads of a worker; 0: torch's default"
    )
    worker_poll_s: Amount = Field(0.5, gt=0, description="seconds between checks for a waiting job")
    worker_idle_s: Amount = Field(
        300,
        gt=0,
        description="seconds without a job after which serve's worker process frees its memory",
    )
    worker_jobs: int = Field(8, ge=1, le=256, description="jobs that a worker trains at once")
    worker_step_tokens: Whole = Field(
        0, ge=0, description="tokens of one pass of jobs trained together; 0: 4096, on CUDA 8192"
    )
    lease_s: Amount = Field(
        30, gt=0, description="seconds without a heartbeat after which a job goes to another worker"
    )
    checkpoint_every_s: Amount = Field(20, gt=0, description="seconds between training checkpoints")

    @model_validator(mode="after")
    def _fit_together(self) -> "Settings":
        if not self.served_name or set("@ ") & set(self.served_name):
            raise ValueError(
                f"served_name={self.served_name!r} is no id of a base model: give one without "
                "spaces and without @, which stands before an adapter's version"
            )
        if 0 < self.max_step_tokens < self.max_batch_rows:
            raise ValueError(
                f"max_step_tokens={self.max_step_tokens} is below max_batch_rows="
                f"{self.max_batch_rows}: raise it, since every row takes a token of each step"
            )
        if self.replicas > 1 and self.engine_process == "no":
            raise ValueError(
                f"replicas={self.replicas} needs engines in processes: leave engine_process=no out"
            )
        return self

    @property
    def home_path(self) -> Path:
        """The home folder, absolute."""
        return self.home.expanduser().absolute()

    @property
    def key(self) -> str | None:
        """The API key, in plain text."""
        return None if self.api_key is None else self.api_key.get_secret_value()

    @property
    def database(self) -> str:
        """The database's SQLAlchemy URL."""
        return self.database_url or f"sqlite:///{self.home_path / 'verandah.db'}"
