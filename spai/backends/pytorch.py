"""The patch encoder run by torch, on any device."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from spai.models.backbone import use_fused_attention
from spai.models.features import PatchSummary
from spai.models.spai import SpectralEncoder


class TorchBackend:
    """Runs the encoder where it is, in a precision."""

    def __init__(
        self,
        encoder: SpectralEncoder,
        *,
        device: torch.device,
        dtype: torch.dtype,
        chunk: int,
        compile_model: bool,
    ) -> None:
        """Take over an encoder: it is moved to the device.

        Args:
            encoder: with its weights, in evaluation mode.
            device: where it runs.
            dtype: of the matrix products.
            chunk: most patches encoded at once.
            compile_model: run it through torch.compile.
        """
        self._device, self._dtype = device, dtype
        self._encoder = encoder.to(device)
        use_fused_attention(encoder.vit, device.type != "cpu")
        if dtype != torch.float32:
            _convert_products(encoder, dtype)
        self._summarise = (
            torch.compile(self._summary, dynamic=True) if compile_model else self._summary
        )
        # Products with few rows round differently for each number of rows. One patch at a time
        # keeps a score on the CPU independent, to the last bit, of what shares its chunk.
        self._combined = 1 if device.type == "cpu" else chunk

    @torch.inference_mode()
    def encode(self, patches: Tensor) -> Tensor:
        """Turn uint8 patches [P, 3, S, S] into vectors [P, V] on the device."""
        mixed = self._dtype != torch.float32
        with torch.autocast(self._device.type, self._dtype if mixed else None, enabled=mixed):
            summary = self._summarise(patches.to(self._device, non_blocking=True))
            parts = [
                PatchSummary(*part)
                for part in zip(
                    *(self._parts(values, len(patches)) for values in summary), strict=True
                )
            ]
            combine = self._encoder.features_processor.combine
            return torch.cat([combine(part) for part in parts])

    def _summary(self, patches: Tensor) -> PatchSummary:
        return self._encoder.summarise(self._encoder.spectral_views(patches))

    def _parts(self, values: Tensor | None, patches: int) -> Sequence[Tensor | None]:
        if values is None:
            return (None,) * -(-patches // self._combined)
        return values.split(self._combined)


def _convert_products(encoder: SpectralEncoder, dtype: torch.dtype) -> None:
    """Store the weights of the encoder's matrix products as autocast would convert them.

    Norms, statistics and what combines them stay in float32.
    """
    for part in (encoder.vit, encoder.features_processor.patch_projector):
        for module in part.modules():
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                module.to(dtype)
