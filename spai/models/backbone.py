"""The vision transformer of the MFM family, with the output of each block as it is computed.

It is timm's Beit with absolute positions; this file only fixes its options and the way through it.

B: images, L: patch tokens of an image (without CLS), d: width.
"""

from collections.abc import Iterator

import torch
from timm.models.beit import Attention, Beit
from torch import Tensor, nn


def build_backbone(
    *,
    image_size: int,
    patch_size: int,
    width: int,
    depth: int,
    heads: int,
    mlp_ratio: float,
    qkv_bias: bool,
    layer_scale: float | None,
    absolute_positions: bool,
    dropout: float,
    drop_path: float,
    final_norm: bool,
) -> Beit:
    """Build the backbone with random weights.

    Args:
        image_size: side of the square input, pixels.
        patch_size: side of a token's square, pixels.
        width: d.
        depth: number of blocks.
        heads: attention heads of a block.
        mlp_ratio: hidden width of a block's MLP over d.
        qkv_bias: learnable biases of queries and values (keys never have one).
        layer_scale: initial value of the layer scale, None for none.
        absolute_positions: add a learnable embedding of each token's place.
        dropout: rate after the embedding and inside the blocks.
        drop_path: stochastic depth of the last block; it grows linearly from 0.
        final_norm: keep the LayerNorm after the last block (stage 1); SPAI reads raw block outputs.
    """
    vit = Beit(
        img_size=image_size,
        patch_size=patch_size,
        embed_dim=width,
        depth=depth,
        num_heads=heads,
        mlp_ratio=mlp_ratio,
        qkv_bias=qkv_bias,
        init_values=layer_scale,
        use_abs_pos_emb=absolute_positions,
        use_rel_pos_bias=False,
        pos_drop_rate=dropout,
        proj_drop_rate=dropout,
        drop_path_rate=drop_path,
        num_classes=0,
        global_pool="token" if final_norm else "avg",
    )
    for module in vit.modules():
        if isinstance(module, Attention) and module.q_bias is not None:
            # Not in any file, so real zeros also in a model that is built without memory.
            zeros = torch.zeros(module.q_bias.shape, device="cpu")
            module.register_buffer("k_bias", zeros, persistent=False)
    if not final_norm:
        vit.norm = vit.fc_norm = nn.Identity()
    return vit


def use_fused_attention(vit: Beit, fused: bool) -> None:
    """Choose between torch's fused attention kernel and explicit matrix products.

    The kernel saves memory and time on a GPU. On the CPU it rounds more coarsely than explicit
    products, enough to use up the tolerance of the recorded logits.
    """
    for module in vit.modules():
        if isinstance(module, Attention):
            # Final for TorchScript's sake, but timm itself sets it on instances.
            module.fused_attn = fused  # type: ignore[misc]


def stream_blocks(vit: Beit, images: Tensor) -> Iterator[Tensor]:
    """Yield the patch tokens after each block, first block first.

    Args:
        vit: the backbone.
        images: [B, 3, S, S], normalised.

    Yields:
        [B, L, d]: the raw output of a block without CLS and without a final norm.
    """
    tokens = vit.patch_embed(images)
    tokens = torch.cat((vit.cls_token.expand(tokens.shape[0], -1, -1), tokens), dim=1)
    if vit.pos_embed is not None:
        tokens = tokens + vit.pos_embed
    tokens = vit.pos_drop(tokens)  # [B, 1 + L, d]
    for block in vit.blocks:
        tokens = block(tokens)
        yield tokens[:, 1:]
