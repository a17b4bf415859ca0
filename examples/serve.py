"""Put three prompts into a folder to be served: the demo's, its hand-written one, and one that writes.

    make serve            # or: python examples/demo.py; python examples/serve.py; softprompt serve runs/serve

    curl localhost:8000/v1/classify -H 'content-type: application/json' \
        -d '{"model": "reviews", "input": "The battery lasts two days, I am delighted."}'
"""

from __future__ import annotations

import argparse
from pathlib import Path

from demo import MANUAL, TASK

import softprompt as sp

REPLY = sp.TextGeneration("{text}<|im_end|>\n<|im_start|>assistant\n", target="{reply}", max_new_tokens=48)
INSTRUCTION = "<|im_start|>user\nAnswer the customer who wrote this review in one polite sentence.\n\n"


def main() -> None:
    parser = argparse.ArgumentParser(description="Save three prompts into a folder.")
    parser.add_argument(
        "--demo", type=Path, default=Path("runs/demo/prompt"), help="prompt of examples/demo.py"
    )
    parser.add_argument("--output", type=Path, default=Path("runs/serve"))
    arguments = parser.parse_args()

    backbone = sp.load_backbone("smollm2-135m-instruct")
    labelled = [
        {"text": "It broke.", "label": label} for label in TASK.label_words
    ]  # nothing is learned from them
    answered = [{"text": "It broke.", "reply": "We are sorry to hear that."}]
    prompts = {
        "reviews": sp.load(arguments.demo, backbone),
        "reviews-by-hand": sp.fit(backbone, TASK, sp.ManualPrompt(MANUAL), labelled),
        "reply": sp.fit(backbone, REPLY, sp.ManualPrompt(INSTRUCTION), answered),
    }
    for name, tuned in prompts.items():
        print(f"saved to {tuned.save(arguments.output / name, overwrite=True)}")


if __name__ == "__main__":
    main()
