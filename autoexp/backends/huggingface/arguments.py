"""Transformers' TrainingArguments: those that autoexp uses, and the names of the others."""

from pydantic import ConfigDict, Field

from autoexp.backends.command_line import Argument
from autoexp.model import FrozenModel

# Source: Transformers 5.24, training_args.py; without what autoexp sets, and without secrets.
_NAMES = """
accelerator_config activation_checkpointing activation_checkpointing_kwargs adam_beta1 adam_beta2
adam_epsilon auto_find_batch_size average_tokens_across_devices batch_eval_metrics bf16
bf16_full_eval data_seed dataloader_in_order dataloader_multiprocessing_context
dataloader_num_workers dataloader_persistent_workers dataloader_pin_memory
dataloader_prefetch_factor ddp_backend ddp_broadcast_buffers ddp_bucket_cap_mb
ddp_find_unused_parameters ddp_static_graph ddp_timeout debug deepspeed disable_tqdm do_eval
do_predict do_train eval_accumulation_steps eval_delay eval_do_concat_batches eval_on_start
eval_steps eval_strategy eval_use_gather_object fp16 fp16_full_eval fsdp fsdp_config
full_determinism gradient_checkpointing gradient_checkpointing_kwargs greater_is_better
hub_always_push hub_model_id hub_private_repo hub_revision hub_strategy ignore_data_skip
include_for_metrics include_num_input_tokens_seen label_names label_smoothing_factor
length_column_name liger_kernel_config load_best_model_at_end local_rank
log_level_replica log_on_each_node logging_first_step max_grad_norm metric_for_best_model
neftune_noise_alpha optim optim_args optim_target_modules parallelism_config
per_device_eval_batch_size prediction_loss_only project push_to_hub remove_unused_columns report_to
restore_callback_states_from_checkpoint run_name save_on_each_node seed skip_memory_metrics tf32
torch_compile torch_compile_backend torch_compile_mode torch_empty_cache_steps trackio_bucket_id
trackio_space_id trackio_static_space_id train_sampling_strategy use_cache use_cpu use_liger_kernel
weight_decay
"""

_RESUMES = "the last checkpoint in the job's own folder is given to the script"
OURS = {
    "output_dir": "each job has its own",
    "resume_from_checkpoint": _RESUMES,
    "overwrite_output_dir": _RESUMES,
    "num_train_epochs": "write `max_steps: 3 epochs`, and the data set's size as `samples`",
    "save_strategy": "steps, by `save_steps`",
    "logging_strategy": "steps, by `logging_steps`",
    "logging_nan_inf_filter": "off: a NaN would be averaged away",
    "save_only_model": "off: a branch needs the optimizer",
}
"""Arguments that autoexp sets itself, with the reason."""


class TrainerArgs(FrozenModel):
    """Arguments as TrainingArguments names them."""

    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False)
    __pydantic_extra__: dict[str, Argument]

    max_steps: int = Field(gt=0, description="steps of the trunk")
    save_steps: int = Field(gt=0, description="steps between checkpoints")
    logging_steps: int = Field(10, gt=0, description="steps between log lines")
    save_total_limit: int | None = Field(
        None, gt=0, description="older checkpoints are deleted; not where cooldowns branch"
    )
    learning_rate: float = Field(gt=0, description="peak learning rate")
    warmup_steps: int = Field(0, ge=0, description="steps of linear warm-up")
    lr_scheduler_type: str | None = Field(
        None,
        min_length=1,
        description="schedule of a training from which no cooldown branches, as `cosine` for a "
        "fine-tuning; if unset its rate is constant behind the warm-up",
    )
    lr_scheduler_kwargs: dict[str, int | float | str | bool] | None = Field(
        None, description="settings of that schedule, as `{min_lr_rate: 0.1}`"
    )
    per_device_train_batch_size: int = Field(8, gt=0, description="samples on one device in a pass")
    gradient_accumulation_steps: int = Field(1, gt=0, description="passes of a step")
    dataloader_drop_last: bool | None = Field(
        None, description="leave out the last pass of an epoch if it is not full"
    )
    log_level: str | None = Field(
        "info", description="at info the Trainer logs where it begins; null for the script's own"
    )
    enable_jit_checkpoint: bool | None = Field(
        True, description="save on SIGTERM; null for Transformers before 5"
    )

    @classmethod
    def also_known(cls) -> frozenset[str]:
        """Names that pass through."""
        return frozenset(_NAMES.split())
