"""torchtitan's arguments, in its own sections; those without a field pass through by name."""

from collections.abc import Iterator
from typing import Any, Literal

from pydantic import ConfigDict, Field

from autoexp.backends.base import AbsolutePath
from autoexp.backends.command_line import Argument
from autoexp.model import FrozenModel

# Source: torchtitan 0.2.2, config/job_config.py.
SECTIONS = {
    "job": "config_file description print_config save_config_file custom_config_module",
    "profiling": "enable_profiling save_traces_folder profile_freq profiler_active profiler_warmup "
    "enable_memory_snapshot save_memory_snapshot_folder",
    "metrics": "log_freq enable_tensorboard disable_color_printing save_tb_folder "
    "save_for_all_ranks enable_wandb",
    "model": "name flavor hf_assets_path tokenizer_path converters print_after_conversion",
    "optimizer": "name beta1 beta2 eps weight_decay implementation early_step_in_backward",
    "lr_scheduler": "",
    "training": "dataset dataset_path max_norm enable_cpu_offload dtype mixed_precision_param "
    "mixed_precision_reduce gc_freq gc_debug",
    "parallelism": "data_parallel_replicate_degree data_parallel_shard_degree "
    "fsdp_reshard_after_forward disable_loss_parallel enable_async_tensor_parallel "
    "module_fqns_per_model_part pipeline_parallel_first_stage_less_layers "
    "pipeline_parallel_last_stage_less_layers pipeline_parallel_layers_per_stage "
    "pipeline_parallel_schedule pipeline_parallel_schedule_csv pipeline_parallel_microbatch_size "
    "pipeline_parallel_expert_parallel_overlap context_parallel_load_balancer "
    "context_parallel_rotate_method expert_parallel_degree expert_tensor_parallel_degree "
    "expert_parallel_comm_backend",
    "checkpoint": "enable_ft_dataloader_checkpoints export_dtype exclude_from_loading "
    "enable_first_step_checkpoint initial_load_path",
    "activation_checkpoint": "mode selective_ac_option early_stop memory_budget "
    "per_op_sac_force_recompute_mm_shapes_by_fqns visualize_memory_budget_pareto "
    "preserve_rng_state determinism_check debug",
    "compile": "enable components backend",
    "comm": "init_timeout_seconds train_timeout_seconds trace_buf_size save_traces_folder "
    "save_traces_file_prefix mode",
    "memory_estimation": "enable disable_fake_mode",
    "fault_tolerance": "enable process_group process_group_timeout_ms replica_id group_size "
    "min_replica_size semi_sync_method",
    "experimental": "custom_import custom_args_module",
    "validation": "enable dataset dataset_path local_batch_size seq_len freq steps",
    "debug": "seed deterministic deterministic_warn_only moe_force_load_balance",
}
"""Names that pass through, by section. `quantize` can have any depth, and is unchecked."""

_BRANCHES = "the training keeps its rate, and `cooldowns` says where it decays"
OURS = {
    "job": {"dump_folder": "each job has its own save directory"},
    "lr_scheduler": dict.fromkeys(("decay_ratio", "decay_type", "total_steps"), _BRANCHES),
    "checkpoint": {
        "enable": "always on",
        "folder": "each job has its own",
        "keep_latest_k": "always 0: its default of 10 deletes branch points",
        "last_save_model_only": "always off: the last checkpoint could not be continued",
        "initial_load_model_only": "always off: it drops the optimizer and the step",
        "load_step": "a restarted branch would start at that step again",
        "load_only": "without checkpoints there is nothing to branch from",
        "last_save_in_hf": "the last checkpoint could not be continued",
    },
}
"""Arguments that autoexp sets itself, with the reason."""


class Section(FrozenModel):
    """A section of torchtitan's configuration."""

    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False)
    __pydantic_extra__: dict[str, Argument]


class Job(Section):
    """Configuration file and description of the job."""

    config_file: AbsolutePath | None = Field(
        None, description="a TOML file; the command line wins over it"
    )


class Training(Section):
    """Length and batch size."""

    steps: int = Field(gt=0, description="steps of the trunk")
    local_batch_size: int = Field(8, gt=0, description="samples of one replica in a step")
    global_batch_size: int | None = Field(
        None, gt=0, description="samples of a step; the replicas' own if unset"
    )
    seq_len: int = Field(2048, gt=0, description="tokens of a sample")


class Optimizer(Section):
    """The peak learning rate."""

    lr: float = Field(gt=0, description="peak learning rate, constant after the warm-up")


class LRScheduler(Section):
    """Warm-up and the end of decays."""

    warmup_steps: int = Field(200, ge=0, description="steps of linear warm-up")
    min_lr_factor: float = Field(
        0.0, ge=0, lt=1, description="learning rate at a cooldown's end, as a share of the peak"
    )


class Checkpoint(Section):
    """Interval and mode of checkpoints."""

    interval: int = Field(gt=0, description="steps between checkpoints")
    async_mode: Literal["disabled", "async", "async_with_pinned_mem"] = Field(
        "disabled", description="write checkpoints while the training goes on"
    )


class Parallelism(Section):
    """Parallelism of a model replica."""

    tensor_parallel_degree: int = Field(1, gt=0, description="GPUs that share a layer")
    pipeline_parallel_degree: int = Field(1, gt=0, description="stages of layers")
    context_parallel_degree: int = Field(1, gt=0, description="GPUs that share a sequence")


class TorchtitanArgs(FrozenModel):
    """Arguments as torchtitan names them: `training.steps`, `optimizer.lr`."""

    job: Job = Field(default_factory=Job, description="configuration file, description")
    model: Section = Field(default_factory=Section, description="name, flavor, tokenizer")
    training: Training = Field(description="steps, batch size, dataset")
    optimizer: Optimizer = Field(description="learning rate, weight decay")
    lr_scheduler: LRScheduler = Field(default_factory=LRScheduler, description="warm-up")
    checkpoint: Checkpoint = Field(description="interval, asynchronous saves")
    parallelism: Parallelism = Field(default_factory=Parallelism, description="degrees")
    metrics: Section = Field(default_factory=Section, description="logging")
    profiling: Section = Field(default_factory=Section, description="traces")
    activation_checkpoint: Section = Field(default_factory=Section, description="recomputation")
    compile: Section = Field(default_factory=Section, description="torch.compile")
    quantize: Section = Field(default_factory=Section, description="float8 and others")
    comm: Section = Field(default_factory=Section, description="time-outs of collectives")
    memory_estimation: Section = Field(default_factory=Section, description="without training")
    fault_tolerance: Section = Field(default_factory=Section, description="torchft")
    experimental: Section = Field(default_factory=Section, description="custom imports")
    validation: Section = Field(default_factory=Section, description="evaluation")
    debug: Section = Field(default_factory=Section, description="seed, determinism")

    @property
    def replica(self) -> int:
        """GPUs of a model replica."""
        degrees = self.parallelism
        return (
            degrees.tensor_parallel_degree
            * degrees.pipeline_parallel_degree
            * degrees.context_parallel_degree
        )

    def passed_through(self) -> dict[str, dict[str, Argument]]:
        """Arguments without a field, by section."""
        return {name: section.__pydantic_extra__ for name, section in self._sections()}

    def flat(self) -> dict[str, Any]:
        """Arguments by their dotted names."""
        return {
            f"{name}.{key}": value
            for name, section in self._sections()
            for key, value in section.model_dump(exclude_none=True).items()
        }

    def _sections(self) -> Iterator[tuple[str, Section]]:
        return ((name, getattr(self, name)) for name in type(self).model_fields)
