"""Megatron-LM's arguments that autoexp uses, with their bounds; others pass through checked."""

from typing import Any, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from autoexp.backends.batches import Batches, Ramp, Stage
from autoexp.backends.command_line import Argument
from autoexp.backends.megatron.known_arguments import PASSED_THROUGH
from autoexp.model import FrozenModel

_SUFFIXES = {"K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}


def read_schedule(text: str, seq_length: int, last: int) -> tuple[Stage, ...]:
    """The stages of `0:768 250B:1536` before the last size, which has to be `last`.

    Source: Megatron-LM, megatron/core/num_microbatches_calculator.py. Raises ValueError.
    """
    try:
        pairs = [entry.split(":") for entry in text.replace(",", " ").split()]
        found = sorted((_number(tokens) // seq_length, _number(size)) for tokens, size in pairs)
    except (ValueError, OverflowError):
        raise ValueError(
            f"step_batch_size_schedule {text!r}: pairs of tokens and batch size, `0:768 250B:1536`"
        ) from None
    starts, sizes = [start for start, _ in found], [size for _, size in found]
    if not found or starts[0] != 0 or len(set(starts)) < len(starts) or min(sizes) < 1:
        raise ValueError(
            f"step_batch_size_schedule {text!r}: the first pair is for 0 tokens, each one for more"
        )
    if sizes[-1] != last:
        raise ValueError(
            f"step_batch_size_schedule ends with {sizes[-1]}: set global_batch_size to it"
        )
    return tuple(map(Stage, sizes[:-1], starts[1:]))


def _number(text: str) -> int:
    factor = _SUFFIXES.get(text[-1:].upper(), 1)
    return int(float(text[:-1] if factor > 1 else text) * factor)


class MegatronArgs(FrozenModel):
    """Arguments as Megatron-LM names them, with `_` for `-`. Unset ones keep Megatron's default."""

    # Arguments without a field pass through; the backend refuses those that Megatron does not know.
    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False)
    __pydantic_extra__: dict[str, Argument]

    train_iters: int = Field(gt=0, description="iterations of the trunk")
    save_interval: int = Field(gt=0, description="iterations between checkpoints")
    log_interval: int = Field(10, gt=0, description="iterations between log lines")
    # Always given: since core_v0.16 Megatron has no default of its own, and divides by it.
    # Null in sessions that are older than this.
    eval_interval: int | None = Field(1000, gt=0, description="iterations between evaluations")
    eval_iters: int | None = Field(None, ge=0, description="iterations of an evaluation; 0: none")
    save_retain_interval: int | None = Field(
        None, gt=0, description="older checkpoints are deleted, but for multiples of this"
    )
    ckpt_format: Literal["torch_dist", "torch"] = Field(
        "torch_dist", description="format of checkpoints on disk"
    )
    async_save: bool = Field(False, description="write checkpoints while the training goes on")

    lr: float = Field(gt=0, description="peak learning rate, constant after the warm-up")
    min_lr: float = Field(0.0, ge=0, description="learning rate at the end of every cooldown")
    lr_warmup_iters: int = Field(0, ge=0, description="iterations of linear warm-up")
    weight_decay: float | None = Field(None, ge=0, description="AdamW's decoupled weight decay")
    adam_beta1: float | None = Field(None, ge=0, lt=1, description="Adam's first moment")
    adam_beta2: float | None = Field(None, ge=0, lt=1, description="Adam's second moment")
    clip_grad: float | None = Field(None, ge=0, description="norm at which gradients are clipped")
    init_method_std: float | None = Field(None, gt=0, description="deviation of initial weights")
    seed: int | None = Field(None, ge=0, description="seed of weights, dropout and data order")

    micro_batch_size: int = Field(gt=0, description="samples in one pass of one model replica")
    global_batch_size: int = Field(gt=0, description="samples of an iteration")
    rampup_batch_size: tuple[int, int, int] | None = Field(
        None,
        description="first batch size, its increment, samples until the final one; up to "
        "core_v0.17, ignored from core_v0.18 on",
    )
    step_batch_size_schedule: str | None = Field(
        None,
        description="batch sizes from tokens on, `0:768 250B:1536`, the last one "
        "`global_batch_size`; from core_v0.18 on",
    )
    seq_length: int = Field(gt=0, description="tokens of a sample")
    max_position_embeddings: int = Field(gt=0, description="longest sequence; at least seq_length")

    num_layers: int = Field(gt=0, description="transformer layers")
    hidden_size: int = Field(gt=0, description="width of the model")
    ffn_hidden_size: int | None = Field(None, gt=0, description="width of the MLPs")
    num_attention_heads: int = Field(gt=0, description="attention heads")
    group_query_attention: bool = Field(False, description="heads share keys and values")
    num_query_groups: int | None = Field(None, gt=0, description="groups of such heads")
    kv_channels: int | None = Field(None, gt=0, description="width of a head")
    normalization: Literal["LayerNorm", "RMSNorm"] | None = Field(None, description="which norm")
    position_embedding_type: (
        Literal["learned_absolute", "rope", "mrope", "yarn", "relative", "none"] | None
    ) = Field(None, description="position embedding")
    rotary_base: int | None = Field(None, gt=0, description="base of rotary embeddings")
    swiglu: bool = Field(False, description="gated MLPs")
    disable_bias_linear: bool = Field(False, description="linear layers without bias")
    untie_embeddings_and_output_weights: bool = Field(False, description="two matrices, not one")
    attention_dropout: float | None = Field(None, ge=0, lt=1, description="dropout of attention")
    hidden_dropout: float | None = Field(None, ge=0, lt=1, description="dropout of hidden states")

    tensor_model_parallel_size: int = Field(1, gt=0, description="GPUs that share a layer")
    pipeline_model_parallel_size: int = Field(1, gt=0, description="stages of layers")
    context_parallel_size: int = Field(1, gt=0, description="GPUs that share a sequence")
    sequence_parallel: bool = Field(False, description="norms are shared along the sequence")
    use_distributed_optimizer: bool = Field(False, description="replicas share optimizer states")
    overlap_grad_reduce: bool = Field(False, description="reduce gradients while computing")
    overlap_param_gather: bool = Field(False, description="gather parameters while computing")
    bf16: bool = Field(False, description="train in bfloat16")
    transformer_impl: Literal["local", "transformer_engine", "inference_optimized"] | None = Field(
        None, description="which implementation of the layers"
    )
    distributed_timeout_minutes: int | None = Field(
        None, gt=0, description="minutes until a hanging collective ends the job"
    )

    data_path: tuple[str | float, ...] | None = Field(
        None, min_length=1, description="prefix of a dataset, or weights and prefixes by turns"
    )
    split: str | None = Field(None, description="shares of training, validation and test: 99,1,0")
    mock_data: bool = Field(False, description="random data instead of a dataset")
    tokenizer_type: str | None = Field(None, description="which tokenizer, such as NullTokenizer")
    tokenizer_model: str | None = Field(None, description="its file or name")
    vocab_size: int | None = Field(None, gt=0, description="tokens, for NullTokenizer")
    num_workers: int | None = Field(None, ge=0, description="processes that load data")

    exit_signal_handler: bool = Field(
        True, description="save and exit on SIGTERM; without it a time limit loses work"
    )
    exit_duration_in_mins: int | None = Field(
        None, gt=0, description="save and exit after this long; the next attempt goes on"
    )
    exit_interval: int | None = Field(
        None, gt=0, description="save and exit at multiples of this; the next attempt goes on"
    )
    log_throughput: bool = Field(False, description="TFLOP/s of each GPU in the log line")
    tensorboard_dir: str | None = Field(None, description="where TensorBoard's files go")

    @classmethod
    def also_known(cls) -> frozenset[str]:
        """Names that pass through."""
        return PASSED_THROUGH

    @property
    def passed_through(self) -> dict[str, Argument]:
        """Arguments that no field describes."""
        return self.__pydantic_extra__

    @property
    def parameters(self) -> int | None:
        """Weights of attention and MLPs, without embeddings, norms and biases.

        None for a mixture of experts. Source: Megatron-LM, num_floating_point_operations and the
        defaults of validate_args.
        """
        if "num_experts" in self.passed_through:
            return None
        hidden, heads = self.hidden_size, self.num_attention_heads
        head = self.kv_channels or hidden // heads
        groups = (self.num_query_groups or 1) if self.group_query_attention else heads
        attention = 2 * hidden * head * (heads + groups)
        narrow = int(4 * hidden * 2 / 3 / 64) * 64
        ffn = self.ffn_hidden_size or (narrow if self.swiglu else 4 * hidden)
        return self.num_layers * (attention + hidden * ffn * (3 if self.swiglu else 2))

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        """Refuse what Megatron answers with a bare AssertionError, or not at all."""
        if self.lr_warmup_iters >= self.train_iters:
            raise ValueError(
                f"lr_warmup_iters {self.lr_warmup_iters} has to be below train_iters "
                f"{self.train_iters}"
            )
        if self.max_position_embeddings < self.seq_length:
            raise ValueError(
                f"max_position_embeddings {self.max_position_embeddings} is below seq_length "
                f"{self.seq_length}"
            )
        if self.min_lr > self.lr:
            raise ValueError(f"min_lr {self.min_lr:g} is above lr {self.lr:g}")
        if self.data_path is not None and self.mock_data:
            raise ValueError("`mock_data` ignores `data_path`: give only one of them")
        if self.rampup_batch_size is not None:
            start, increment, samples = self.rampup_batch_size
            if min(self.rampup_batch_size) < 1 or start > self.global_batch_size:
                raise ValueError(
                    "rampup_batch_size: three positive numbers, the first at most "
                    f"the global batch size of {self.global_batch_size}"
                )
            if (self.global_batch_size - start) % increment:
                raise ValueError(
                    f"rampup_batch_size: steps of {increment} do not lead from {start} to "
                    f"{self.global_batch_size}"
                )
            del samples
        if self.step_batch_size_schedule is not None:
            if self.rampup_batch_size is not None:
                raise ValueError("give `rampup_batch_size` or `step_batch_size_schedule`")
            read_schedule(self.step_batch_size_schedule, self.seq_length, self.global_batch_size)
        return self

    @property
    def may_overlap_gathers(self) -> bool:
        """True if Megatron takes `overlap_param_gather` with the others."""
        others = self.passed_through
        sharded = self.use_distributed_optimizer or others.get("optimizer") == "dist_muon"
        return self.overlap_grad_reduce and (sharded or bool(others.get("use_megatron_fsdp")))

    @property
    def uses_fsdp(self) -> bool:
        """True if parameters are sharded by FSDP, torch's or Megatron's own."""
        names = ("use_torch_fsdp2", "use_megatron_fsdp", "use_custom_fsdp")
        return any(self.passed_through.get(name) for name in names)

    @property
    def grows(self) -> bool:
        """True if the batch size changes, so that lengths are given in samples."""
        return self.rampup_batch_size is not None or self.step_batch_size_schedule is not None

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """What all batch sizes are sums of: a number of processes has to fit each."""
        return (
            self.global_batch_size,
            *(self.rampup_batch_size or ())[:2],
            *(stage.size for stage in self.batches.stages),
        )

    @property
    def batches(self) -> Batches:
        """Samples of each iteration."""
        size, length = self.global_batch_size, self.seq_length
        if self.step_batch_size_schedule is not None:
            stages = read_schedule(self.step_batch_size_schedule, length, size)
            return Batches(size, length, stages=stages)
        ramp = Ramp(*self.rampup_batch_size) if self.rampup_batch_size else None
        return Batches(size, length, ramp)

    def for_command_line(self) -> dict[str, Any]:
        """Arguments without those that differ between a trunk and its branches."""
        apart = {"train_iters", "lr_warmup_iters"}
        if self.step_batch_size_schedule is not None:
            apart |= {"global_batch_size"}  # Megatron takes one of the two
        return self.model_dump(exclude=apart, exclude_none=True)
