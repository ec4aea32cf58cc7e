"""Vision transformer."""

from typing import Literal

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

# Features and heads of each size; all have 12 blocks.
SIZES = {"tiny": (192, 3), "small": (384, 6), "base": (768, 12)}


class Attention(nn.Module):
    """Multi-head self-attention; queries, keys and values from one product."""

    heads: int

    @nn.compact
    def __call__(self, x: Float[Array, "n t d"]) -> Float[Array, "n t d"]:
        """Every token's mixture of all tokens."""
        n, t, d = x.shape
        qkv = nn.Dense(3 * d, name="qkv")(x)
        q, k, v = jnp.moveaxis(qkv.reshape(n, t, 3, self.heads, -1), 2, 0)
        scores = jnp.einsum("nqhd,nkhd->nhqk", q, k) / q.shape[-1] ** 0.5
        x = jnp.einsum("nhqk,nkhd->nqhd", nn.softmax(scores), v)
        return nn.Dense(d, name="proj")(x.reshape(n, t, d))


class Block(nn.Module):
    """Attention and two linear layers, each after LayerNorm and around a shortcut."""

    heads: int
    dropout: float

    @nn.compact
    def __call__(self, x: Float[Array, "n t d"], train: bool) -> Float[Array, "n t d"]:
        """The block's tokens."""

        def drop(x):
            return nn.Dropout(self.dropout, deterministic=not train)(x)

        y = nn.LayerNorm(epsilon=1e-6, name="norm1")(x)
        x = x + drop(Attention(self.heads, name="attn")(y))
        y = nn.LayerNorm(epsilon=1e-6, name="norm2")(x)
        y = nn.gelu(nn.Dense(4 * x.shape[-1], name="fc1")(y), approximate=False)
        return x + drop(nn.Dense(x.shape[-1], name="fc2")(drop(y)))


class ViT(nn.Module):
    """Patches as tokens, a class token, 12 pre-norm blocks, a linear head.

    With patches of 16 x 16, images of 224 x 224 and 1,000 classes: tiny has 5,717,416
    parameters, small 22,050,664 and base 86,567,656.

    Attributes:
      num_classes: how many logits.
      size: "tiny" (192 features, 3 heads), "small" (384, 6) or "base" (768, 12).
      patch: side of a patch in pixels; it divides the image's.
      depth: how many blocks.
      dropout: rate, after attention and in the linear layers.

    Source: Dosovitskiy et al.: An image is worth 16 x 16 words, arXiv 2010.11929; the
    two smaller sizes from Touvron et al. (DeiT), arXiv 2012.12877; layers as in timm.
    """

    num_classes: int
    size: Literal["tiny", "small", "base"] = "tiny"
    patch: int = 4
    depth: int = 12
    dropout: float = 0.0

    @nn.compact
    def __call__(
        self, images: Float[Array, "n h w c"], train: bool = False
    ) -> Float[Array, "n k"]:
        """Logits, of the class token; `train` drops out."""
        n, h, w, _ = images.shape
        if h % self.patch or w % self.patch:
            msg = f"ViT cuts images into patches of {self.patch} x {self.patch} pixels, and {h} x {w} cannot be: set patch, or resize."  # noqa: E501
            raise ValueError(msg)
        features, heads = SIZES[self.size]
        kernel = (self.patch, self.patch)
        embed = nn.Conv(features, kernel, kernel, padding="VALID", name="patch_embed")
        x = embed(images).reshape(n, -1, features)
        normal = nn.initializers.normal(0.02)
        token = self.param("cls_token", normal, (1, 1, features))
        place = self.param("pos_embed", normal, (1, x.shape[1] + 1, features))
        tokens = jnp.broadcast_to(token, (n, 1, features)).astype(x.dtype)
        x = jnp.concatenate([tokens, x], axis=1)
        x = x + jnp.broadcast_to(place, x.shape).astype(x.dtype)
        for number in range(self.depth):
            x = Block(heads, self.dropout, name=f"block{number}")(x, train)
        x = nn.LayerNorm(epsilon=1e-6, name="norm")(x)
        return nn.Dense(self.num_classes, name="head")(x[:, 0])
