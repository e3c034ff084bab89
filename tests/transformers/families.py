"""Models that others wrote twice: transformers' PyTorch modules and their Flax ports, a function each.

PyTorch's attention is the one that transformers chooses, mostly "sdpa": with "eager", ViT, DINOv2, CLIP and OPT take
their softmax in float32.
"""

import numpy as np
import transformers

from tests.parity.pairs.example import Example, floats
from tests.transformers.building import (
    ANSWER,
    PICTURE,
    TEXT,
    TWO_TEXTS,
    VOCABULARY,
    decoder,
    encoder,
    example,
    mask,
    of_pictures,
    of_two_texts,
    places,
    roberta_like,
    tokens,
)

# Pictures.


def resnet() -> Example:
    """Bottlenecks and a head."""
    sizes = {"embedding_size": 8, "hidden_sizes": [16, 32], "depths": [2, 1]}
    config = transformers.ResNetConfig(**sizes, num_labels=5, layer_type="bottleneck")
    return of_pictures("ResNetForImageClassification", config)


def resnet_basic() -> Example:
    """Basic blocks, without a head. The port's layers have names that transformers' own conversion does not know."""
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 2], layer_type="basic")
    return of_pictures("ResNetModel", config)


def regnet() -> Example:
    """Grouped convolutions, squeeze and excitation."""
    sizes = {"embedding_size": 8, "hidden_sizes": [16, 32], "depths": [2, 1], "groups_width": 8}
    return of_pictures("RegNetForImageClassification", transformers.RegNetConfig(**sizes, num_labels=5))


def vit() -> Example:
    """A vision transformer with a head."""
    return of_pictures("ViTForImageClassification", transformers.ViTConfig(**PICTURE, num_labels=5))


def beit() -> Example:
    """Biases by relative place, layers with a scale."""
    more = {"use_relative_position_bias": True, "use_absolute_position_embeddings": True, "num_labels": 5}
    return of_pictures("BeitForImageClassification", transformers.BeitConfig(**PICTURE, **more))


def dinov2() -> Example:
    """Another vision transformer."""
    return of_pictures("Dinov2ForImageClassification", transformers.Dinov2Config(**PICTURE, num_labels=5))


def clip_vision() -> Example:
    """CLIP's half for pictures."""
    return of_pictures("CLIPVisionModel", transformers.CLIPVisionConfig(**PICTURE))


# Encoders of text.


def clip_text() -> Example:
    """CLIP's half for text."""
    return encoder("CLIPTextModel", transformers.CLIPTextConfig(**TEXT), kinds=False)


def clip() -> Example:
    """Both halves, and their similarity."""
    halves = transformers.CLIPTextConfig(**TEXT), transformers.CLIPVisionConfig(**PICTURE)
    config = transformers.CLIPConfig(*(half.to_dict() for half in halves), projection_dim=16)
    x = floats(2, 3, 16, 16)
    flax_inputs = tokens(), x.transpose(0, 2, 3, 1), mask(), places()
    return example("CLIPModel", config, tokens(), x, mask(), flax_inputs=flax_inputs)


def bert() -> Example:
    """BERT and its pooled output."""
    return encoder("BertModel", transformers.BertConfig(**TEXT))


def bert_masked() -> Example:
    """BERT with a head, whose matrix is that of the embedding."""
    return encoder("BertForMaskedLM", transformers.BertConfig(**TEXT), heads=True)


def roberta() -> Example:
    """BERT with other places."""
    return roberta_like("RobertaModel", transformers.RobertaConfig(**TEXT))


def roberta_prelayernorm() -> Example:
    """RoBERTa with its norms before its blocks."""
    return roberta_like("RobertaPreLayerNormModel", transformers.RobertaPreLayerNormConfig(**TEXT))


def xlm_roberta() -> Example:
    """RoBERTa for many languages."""
    return roberta_like("XLMRobertaModel", transformers.XLMRobertaConfig(**TEXT))


def electra() -> Example:
    """An embedding narrower than the rest."""
    return encoder("ElectraModel", transformers.ElectraConfig(**TEXT, embedding_size=16))


def albert() -> Example:
    """One layer's weights for all."""
    return encoder("AlbertModel", transformers.AlbertConfig(**TEXT, embedding_size=16))


def distilbert() -> Example:
    """BERT without kinds of token."""
    sizes = {"vocab_size": VOCABULARY, "max_position_embeddings": 24, "dim": 32, "n_layers": 2, "n_heads": 4}
    return encoder("DistilBertModel", transformers.DistilBertConfig(**sizes, hidden_dim=48), False, numbered=False)


def big_bird() -> Example:
    """With full attention: the sparse one draws its blocks at random."""
    return encoder("BigBirdModel", transformers.BigBirdConfig(**TEXT, attention_type="original_full"), heads=True)


# Causal models of text.


def gpt2() -> Example:
    """GPT-2, whose head is its embedding."""
    config = transformers.GPT2Config(vocab_size=VOCABULARY, n_positions=24, n_embd=32, n_layer=2, n_head=4)
    return decoder("GPT2LMHeadModel", config, places())


def gpt_neo() -> Example:
    """A global and a local layer."""
    sizes = {"vocab_size": VOCABULARY, "max_position_embeddings": 24, "hidden_size": 32, "num_layers": 2}
    more = {"num_heads": 4, "attention_types": [[["global", "local"], 1]], "window_size": 3}
    return decoder("GPTNeoForCausalLM", transformers.GPTNeoConfig(**sizes, **more), places())


def gptj() -> Example:
    """Rotated queries and keys, attention beside the other layers."""
    sizes = {"vocab_size": VOCABULARY, "n_positions": 24, "n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4}
    return decoder("GPTJForCausalLM", transformers.GPTJConfig(**sizes), places())


def opt() -> Example:
    """An embedding narrower than the rest. Places are counted over the mask."""
    sizes = {"vocab_size": VOCABULARY, "max_position_embeddings": 24, "hidden_size": 32, "num_hidden_layers": 2}
    config = transformers.OPTConfig(**sizes, num_attention_heads=4, ffn_dim=48, word_embed_proj_dim=16)
    return decoder("OPTForCausalLM", config, np.where(mask() == 1, places(), -1))


def bloom() -> Example:
    """Biases by distance."""
    config = transformers.BloomConfig(vocab_size=VOCABULARY, hidden_size=32, n_layer=2, n_head=4)
    return decoder("BloomForCausalLM", config)


def llama() -> Example:
    """Two heads of keys for four of queries."""
    return decoder("LlamaForCausalLM", transformers.LlamaConfig(**TEXT, num_key_value_heads=2), places())


def mistral() -> Example:
    """A window as long as the text."""
    config = transformers.MistralConfig(**TEXT, num_key_value_heads=2, sliding_window=24)
    return decoder("MistralForCausalLM", config, places())


def mistral_window() -> Example:
    """A window shorter than the text: the port's is longer by one token."""
    config = transformers.MistralConfig(**TEXT, num_key_value_heads=2, sliding_window=4)
    return decoder("MistralForCausalLM", config, places())


def gemma() -> Example:
    """LLaMA with a scaled embedding."""
    more = {"num_key_value_heads": 2, "head_dim": 8, "hidden_activation": "gelu_pytorch_tanh"}
    return decoder("GemmaForCausalLM", transformers.GemmaConfig(**TEXT, **more), places())


# Encoders with a decoder.


def bart() -> Example:
    """One embedding for encoder, decoder and head."""
    return of_two_texts("BartForConditionalGeneration", transformers.BartConfig(**TWO_TEXTS))


def mbart() -> Example:
    """BART with its norms before its blocks."""
    return of_two_texts("MBartForConditionalGeneration", transformers.MBartConfig(**TWO_TEXTS))


# Sound.


def whisper() -> Example:
    """An encoder of sound, a decoder of text."""
    config = transformers.WhisperConfig(**TWO_TEXTS, num_mel_bins=8, max_source_positions=10, max_target_positions=12)
    sound, words, real = floats(2, 8, 20), tokens(ANSWER), mask(ANSWER)
    return example(
        "WhisperForConditionalGeneration",
        config,
        sound,
        flax_inputs=(sound, words, real, places(ANSWER)),
        torch_kwargs={"decoder_input_ids": words, "decoder_attention_mask": real, "use_cache": False},
    )
