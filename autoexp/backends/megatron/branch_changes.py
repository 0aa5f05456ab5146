"""Which of Megatron-LM's arguments a branch may change while optimizer state is kept, and how.

Source: Megatron-LM of August 2026: check_checkpoint_args and load_checkpoint of
megatron/training/checkpointing.py, build_train_valid_test_data_loaders of
megatron/training/training.py, megatron/core/optimizer_param_scheduler.py.
"""

from autoexp.backends.protocol import Change, fixed, may

_MODEL = fixed("Megatron compares it with the checkpoint's, or its tensors have this shape")
_GROUPS = fixed("Megatron finds the checkpoint's parameter groups by it, and refuses another")
_STATE = fixed("it is in the optimizer's state of the checkpoint, which wins")
_DATA = may(
    "the sampler goes on behind as many samples of the new data as the checkpoint has consumed; "
    "with the branch point as `phase_transition_iterations` it begins at its start",
    data=True,
)
_LAYOUT = may("torch_dist checkpoints are read in any layout; `ckpt_format: torch` refuses it")
_OVER = fixed("the warm-up is over")

BRANCH_CHANGES: dict[str, Change] = {
    "python": may(),
    # What has no entry passes through, and Megatron decides.
    "args": may("passes through: autoexp does not know what Megatron keeps", data=True),
    **dict.fromkeys(("args.lr", "args.min_lr"), _GROUPS),
    **dict.fromkeys(
        ("args.lr_warmup_iters", "args.rampup_batch_size", "args.step_batch_size_schedule"), _OVER
    ),
    "args.train_iters": fixed("a branch ends with its decay"),
    "args.weight_decay": may("`--override-opt_param-scheduler` is given: the new one holds"),
    **dict.fromkeys(("args.adam_beta1", "args.adam_beta2"), _STATE),
    **dict.fromkeys(
        (
            *("args.num_layers", "args.hidden_size", "args.ffn_hidden_size", "args.kv_channels"),
            *("args.num_attention_heads", "args.group_query_attention", "args.num_query_groups"),
            *("args.normalization", "args.position_embedding_type", "args.swiglu"),
            *("args.disable_bias_linear", "args.untie_embeddings_and_output_weights"),
            *("args.tokenizer_type", "args.tokenizer_model", "args.vocab_size"),
        ),
        _MODEL,
    ),
    "args.ckpt_format": fixed("the checkpoint is in its parent's format"),
    "args.use_distributed_optimizer": fixed("the optimizer's state is stored in another way"),
    **dict.fromkeys(
        ("args.data_path", "args.split", "args.mock_data", "args.train_data_path"), _DATA
    ),
    "args.seq_length": may(
        "new samples are of this length; the position goes on in samples", data=True
    ),
    "args.max_position_embeddings": may("rotary embeddings alone: learned ones have this shape"),
    "args.rotary_base": may("from the first iteration of the branch on", data=True),
    "args.global_batch_size": may("the decay is counted in samples, as Megatron's scheduler does"),
    "args.micro_batch_size": may(),
    **dict.fromkeys(
        (
            *("args.tensor_model_parallel_size", "args.pipeline_model_parallel_size"),
            *("args.context_parallel_size", "args.sequence_parallel"),
        ),
        _LAYOUT,
    ),
    "args.seed": may("the random state is the checkpoint's; the order of new data is of this seed"),
    **dict.fromkeys(
        (
            *("args.save_interval", "args.log_interval", "args.eval_interval", "args.eval_iters"),
            *("args.save_retain_interval", "args.async_save", "args.clip_grad", "args.num_workers"),
            *("args.overlap_grad_reduce", "args.overlap_param_gather", "args.transformer_impl"),
            *("args.distributed_timeout_minutes", "args.exit_signal_handler", "args.bf16"),
            *("args.exit_duration_in_mins", "args.exit_interval", "args.log_throughput"),
            *("args.tensorboard_dir", "args.attention_dropout", "args.hidden_dropout"),
            "args.init_method_std",
        ),
        may(),
    ),
}
