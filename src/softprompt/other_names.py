"""What other libraries call the settings that have other names here: an error about such a name says what it is here."""

from __future__ import annotations

from collections.abc import Iterable

_TOTAL = " (the rows of a whole step, over all devices)"
_OTHERS: dict[str, tuple[str, str]] = {
    "lr": ("learning_rate", ""),
    "head_lr": ("head_learning_rate", ""),
    "train_batch_size": ("batch_size", ""),
    "per_device_train_batch_size": ("batch_size", _TOTAL),
    "per_gpu_train_batch_size": ("batch_size", _TOTAL),
    "per_device_eval_batch_size": ("batch_size", ""),
    "gradient_accumulation_steps": (
        "accumulation",
        " (the parts that a batch is split into: the batch does not grow)",
    ),
    "num_train_epochs": ("epochs", ""),
    "num_epochs": ("epochs", ""),
    "max_epochs": ("epochs", ""),
    "max_steps": ("steps", ""),
    "num_train_steps": ("steps", ""),
    "eval_steps": ("evaluate_every", " (in steps)"),
    "save_steps": ("checkpoint_every", " (in steps)"),
    "warmup_steps": ("warmup", " (1 or more: a number of steps)"),
    "warmup_ratio": ("warmup", " (below 1: a fraction of all steps)"),
    "lr_scheduler_type": ("schedule", ""),
    "optim": ("optimizer", ""),
    "max_grad_norm": ("clip_norm", ""),
    "adam_beta1": ("betas", " (both as a pair)"),
    "adam_beta2": ("betas", " (both as a pair)"),
    "early_stopping_patience": ("patience", ""),
    "metric_for_best_model": ("main_metric", ""),
    "report_to": ("trackers", ""),
    "max_seq_length": ("max_tokens", ""),
    "max_length": ("max_tokens", ""),
    "torch_compile": ("compile", ""),
    "train_dataset": ("train", ""),
    "eval_dataset": ("validation", ""),
    "validation_dataset": ("validation", ""),
    "test_dataset": ("test", ""),
    "output_dir": ("folder", ""),
    "resume_from_checkpoint": ("resume", ""),
    "compute_metrics": ("metrics", " (a dictionary of functions)"),
    "args": ("recipe", ""),
    "num_virtual_tokens": ("length", ""),
    "num_tokens": ("length", ""),
    "prefix_length": ("length", ""),
    "prompt_tuning_init": ("init", ""),
    "prompt_tuning_init_text": ("init_text", ""),
    "prefix_projection": ("projection", ""),
    "encoder_hidden_size": ("hidden", ""),
    "encoder_dropout": ("dropout", ""),
    "lora_alpha": ("alpha", ""),
    "r": ("rank", ""),
    "target_modules": ("targets", ""),
    "label_list": ("labels", ""),
    "id2label": ("labels", ""),
    "num_labels": ("labels", " (their names)"),
    "text_column": ("template", ' (as in "{text}")'),
    "model": ("backbone", ""),
    "model_name_or_path": ("name", ""),
    "model_name": ("name", ""),
    "torch_dtype": ("dtype", ""),
    "device_map": ("device", ""),
}


def name_here(name: str, known: Iterable[str]) -> str | None:
    """The end of an error about a name of another library, with what it is called here; None: it is no such name.

    known: the names of which one is expected
    """
    ours, remark = _OTHERS.get(name, ("", ""))
    return f"here it is {ours!r}{remark}" if ours in known else None
