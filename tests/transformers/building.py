"""How transformers' PyTorch modules and their Flax ports are built: small, with random weights, nothing downloaded."""

from importlib import import_module
from typing import Any

import jax.numpy as jnp
import numpy as np
import torch
import transformers

from tests.parity.pairs.example import Example, floats

VOCABULARY, LENGTH, ANSWER = 40, 7, 5


# Sizes by the names that configurations have for them.
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
TEXT = {"vocab_size": VOCABULARY, "max_position_embeddings": 24, **SIZES}
PICTURE = {"image_size": 16, "patch_size": 4, **SIZES}
TWO_TEXTS = {
    **{"vocab_size": VOCABULARY, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2},
    **{"encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48},
    **{"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1},
    "forced_eos_token_id": None,
}


def tokens(length: int = LENGTH, seed: int = 0) -> np.ndarray:
    """Draw two rows of tokens, none of them a special one."""
    return np.random.default_rng(seed).integers(4, VOCABULARY, (2, length))


def mask(length: int = LENGTH) -> np.ndarray:
    """Say that the second row's last two tokens are filling."""
    return (np.arange(length) < [[length], [length - 2]]).astype(np.int64)


def places(length: int = LENGTH) -> np.ndarray:
    """Count the tokens of each row."""
    return np.tile(np.arange(length), (2, 1))


def example(
    name: str,
    config: Any,
    *inputs: np.ndarray,
    flax_inputs: tuple[np.ndarray, ...] | None = None,
    torch_kwargs: dict[str, Any] | None = None,
    flax_kwargs: dict[str, Any] | None = None,
) -> Example:
    """Build transformers' class `name` and the module of its Flax port, both of which return tuples."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        torch_module = getattr(transformers, name)(config).eval()
        trained = [number for number in torch_module.parameters() if number.requires_grad]
        averages = [number for key, number in torch_module.named_buffers() if "running_" in key]
        with torch.no_grad():  # as drawn, biases are zeros and scales are ones, which hides mistakes
            for number in [*trained, *averages]:
                number.add_(0.1 * torch.randn_like(number))
    port = import_module(type(config).__module__.replace("configuration_", "modeling_flax_"))
    flax_class = getattr(port, f"Flax{name.removesuffix('Model')}Module")
    options = {
        "flax_inputs": inputs if flax_inputs is None else flax_inputs,
        "torch_kwargs": {"return_dict": False, **(torch_kwargs or {})},
        "flax_kwargs": {"return_dict": False, **(flax_kwargs or {})},
    }
    return Example(torch_module, flax_class(config, dtype=jnp.float32), inputs, options)


def of_pictures(name: str, config: Any) -> Example:
    """Build a model of pictures: channels first in PyTorch, last in Flax."""
    x = floats(2, 3, 16, 16)
    return example(name, config, x, flax_inputs=(x.transpose(0, 2, 3, 1),))


def encoder(name: str, config: Any, kinds: bool = True, numbered: bool = True, heads: bool = False) -> Example:
    """Build an encoder of text: kinds of token, their places and a mask of heads where the port asks for them."""
    inputs = (tokens(), mask(), *(np.array([[0, 0, 0, 1, 1, 1, 1]] * 2),) * kinds)
    flax_inputs = (*inputs, *(places(),) * numbered)
    return example(name, config, *inputs, flax_inputs=flax_inputs, flax_kwargs={"head_mask": None} if heads else {})


def roberta_like(name: str, config: Any) -> Example:
    """Build an encoder that counts places from the filling's number: PyTorch finds them, the port is told."""
    filling, real = config.pad_token_id, mask() == 1
    inputs = np.where(real, tokens(), filling), mask(), np.zeros_like(mask())
    return example(name, config, *inputs, flax_inputs=(*inputs, np.where(real, places() + filling + 1, filling)))


def decoder(name: str, config: Any, *numbers: np.ndarray) -> Example:
    """Build a causal model of text; `numbers` are the places of its tokens, for the port only."""
    kwargs = {"attention_mask": mask(), "use_cache": False}
    return example(name, config, tokens(), flax_inputs=(tokens(), mask(), *numbers), torch_kwargs=kwargs)


def of_two_texts(name: str, config: Any, numbered: bool = True, filled: bool = True) -> Example:
    """Build an encoder and a decoder of text."""
    masks = [mask(length) if filled else np.ones_like(mask(length)) for length in (LENGTH, ANSWER)]
    inputs = tokens(), masks[0], tokens(ANSWER, seed=1), masks[1]
    flax_inputs = (*inputs, *(places(), places(ANSWER)) * numbered)
    return example(name, config, *inputs, flax_inputs=flax_inputs, torch_kwargs={"use_cache": False})
