"""torchtitan 0.2's names in the words of 0.3, whose settings are Python functions.

Source: torchtitan main of 21 August 2026 (b5bcd76c6), config/manager.py, config/configs.py and
tests/unit_tests/test_no_new_cli_options.py, which freezes its options.
"""

from typing import Any

# Of options; what is not here is said by the function that --config names.
_OPTIONS = {
    "activation_checkpoint": "debug determinism_check memory_budget preserve_rng_state "
    "visualize_memory_budget_pareto",
    "checkpoint": "async_mode enable enable_first_step_checkpoint exclude_from_loading "
    "export_dtype folder initial_load_model_only initial_load_path interval keep_latest_k "
    "last_save_model_only",
    "comm": "init_timeout_seconds mode save_traces_file_prefix save_traces_folder trace_buf_size "
    "train_timeout_seconds",
    "compile": "backend components enable",
    "debug": "deterministic deterministic_warn_only moe_force_load_balance seed",
    "lr_scheduler": "decay_ratio decay_type min_lr_factor total_steps warmup_steps",
    "metrics": "disable_color_printing enable_tensorboard enable_wandb log_freq save_for_all_ranks "
    "save_tb_folder",
    "optimizer": "implementation",
    "parallelism": "context_parallel_degree context_parallel_load_balancer "
    "data_parallel_replicate_degree data_parallel_shard_degree expert_parallel_degree "
    "fsdp_reshard_after_forward module_fqns_per_model_part pipeline_parallel_degree "
    "pipeline_parallel_first_stage_less_layers pipeline_parallel_last_stage_less_layers "
    "pipeline_parallel_layers_per_stage pipeline_parallel_schedule pipeline_parallel_schedule_csv "
    "tensor_parallel_degree",
    "training": "dtype enable_cpu_offload gc_debug gc_freq max_norm mixed_precision_param "
    "mixed_precision_reduce steps",
}
_SAME = {f"{section}.{name}" for section, names in _OPTIONS.items() for name in names.split()}
_MOVED = {
    "job.dump_folder": "dump_folder",
    "job.print_config": "debug.print_config",
    "job.save_config_file": "debug.save_config_file",
    "model.hf_assets_path": "hf_assets_path",
    "activation_checkpoint.per_op_sac_force_recompute_mm_shapes_by_fqns": (
        "activation_checkpoint.force_recompute_mm_shapes_by_fqns"
    ),
    "parallelism.enable_async_tensor_parallel": "compile.enable_async_tensor_parallel",
    "profiling.enable_profiling": "profiler.enable_profiling",
    "profiling.enable_memory_snapshot": "profiler.enable_memory_snapshot",
    "profiling.profile_freq": "profiler.profile_freq",
    "profiling.profiler_active": "profiler.profiler_active",
    "profiling.profiler_warmup": "profiler.profiler_warmup",
    "profiling.save_memory_snapshot_folder": "profiler.save_memory_snapshot_folder",
    "profiling.save_traces_folder": "profiler.save_traces_folder",
    "validation.enable": "validator.enable",
    "validation.freq": "validator.freq",
    "validation.steps": "validator.steps",
}
# Said in other words: the function that is named, and batches in tokens.
_CHOSEN = {"model.name", "model.flavor", "optimizer.lr"}
_BATCH = ("training.local_batch_size", "training.global_batch_size", "training.seq_len")


def in_new_words(values: dict[str, Any]) -> dict[str, Any]:
    """Settings of 0.2, by dotted name, as options of 0.3; what it has no option for is left out."""
    found = {_MOVED.get(name, name): x for name, x in values.items() if name in {*_SAME, *_MOVED}}
    local, whole, length = (values.get(name) for name in _BATCH)
    if length is not None:
        found["training.max_context_length"] = length
        if local is not None:
            found["training.num_tokens_per_microbatch_per_dp_rank"] = local * length
        if whole is not None:
            found["training.num_tokens_per_train_step"] = whole * length
    return found


def without_a_word(values: dict[str, Any]) -> list[str]:
    """Names of settings that 0.3 takes from the function alone."""
    return sorted(values.keys() - _SAME - _MOVED.keys() - _CHOSEN - {*_BATCH})
