"""Arguments of Megatron-LM that no model of autoexp describes, and those that autoexp sets itself.

The first pass through unchanged. A readable checkout is used first (`backend.source`); the names of
releases serve where there is none to read. `autoexp backend check megatron --source DIR` compares.
"""

from autoexp.backends.megatron.release_names import NAMES

OURS = {
    **dict.fromkeys(("save", "load"), "each job has its own save directory, and loads from it"),
    "ckpt_step": "a branch that loads its parent's checkpoint loses its own progress",
    "finetune": "it starts at iteration 0 and drops optimizer, RNG and scheduler",
    **dict.fromkeys(("no_load_optim", "no_load_rng"), "a branch is the same run, going on"),
    **dict.fromkeys(
        ("lr_decay_style", "lr_decay_iters", "lr_decay_samples", "lr_wsd_decay_iters"),
        "the training keeps its rate, and `cooldowns` says where it decays",
    ),
    **dict.fromkeys(
        ("lr_wsd_decay_samples", "lr_wsd_decay_style"), "`cooldowns` says where it decays, and how"
    ),
    **dict.fromkeys(
        ("train_samples", "lr_warmup_samples"), "counted from iterations where a ramp asks for it"
    ),
    "override_opt_param_scheduler": "always given: a checkpoint's schedule must not win",
    "use_checkpoint_opt_param_scheduler": "a branch would keep its parent's constant rate",
    "exit_on_missing_checkpoint": "given for every branch",
    "exit_signal": "the payload sends SIGTERM, which is the default",
}
"""Arguments that autoexp sets itself, with the reason."""

PASSED_THROUGH = NAMES - OURS.keys()
