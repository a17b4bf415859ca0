"""The error that reading a prompt from disk raises, and the check that its tensors are finite."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor


class PromptFileError(ValueError):
    """A folder holds no prompt, or one that is damaged or in another format."""


def check_finite(tensors: Mapping[str, Tensor], where: str) -> None:
    """Raise PromptFileError, naming the tensor, if one holds NaN or infinite numbers. where: the file, for the error."""
    for name, tensor in tensors.items():
        if not (tensor.is_floating_point() or tensor.is_complex()):
            continue
        wide = (
            tensor.float() if tensor.element_size() == 1 else tensor
        )  # torch cannot ask this of 8-bit floats
        if count := int((~wide.isfinite()).sum()):
            raise PromptFileError(
                f"{where}: {count} of the {tensor.numel()} numbers of {name} are NaN or infinite: its training had diverged, "
                "or the file is damaged; train it again, or copy it again"
            )
