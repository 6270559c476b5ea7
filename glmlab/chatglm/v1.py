"""ChatGLM-6B (the first release) as a transformers model: config, mask and positions, model, generation.

A row is prompt, [gMASK], <sop>, answer. The prompt up to <sop> is read both ways, the answer from left to right. Each token has two
positions: its place in the row, which stays at the mask token for the answer, and its place in the answer, 0 in the prompt. Half of
every head is rotated with the one, half with the other. Weights load from the published folders as they are, under their names.
"""

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, DynamicCache, GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, slice_logits_to_keep
from transformers.models.glm.modeling_glm import eager_attention_forward
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

# --- config ------------------------------------------------------------------------------------------------------

#: Fields of ChatGLM2, ChatGLM3 and GLM-4, which share the model type and are another model.
LATER_FIELDS = ("ffn_hidden_size", "padded_vocab_size")


class ChatGLMConfig(PreTrainedConfig):
    """The published config.json of ChatGLM-6B, field by field, and `residual_alpha_layers`.

    residual_alpha_layers: the L in the factor sqrt(2 L) of the residual. The published code computes with 28 whatever num_layers is.
    Errors: ValueError that lists what this model cannot compute, and special ids that are not in the vocabulary.
    """
    model_type = "chatglm"
    keys_to_ignore_at_inference = ["past_key_values"]
    attribute_map = {"num_hidden_layers": "num_layers", "intermediate_size": "inner_hidden_size",
                     "max_position_embeddings": "max_sequence_length", "layer_norm_eps": "layernorm_epsilon"}

    vocab_size: int = 130528
    hidden_size: int = 4096
    num_layers: int = 28
    num_attention_heads: int = 32
    inner_hidden_size: int = 16384
    layernorm_epsilon: float = 1e-5
    max_sequence_length: int = 2048
    residual_alpha_layers: int = 28
    mask_token_id: int = 130000
    gmask_token_id: int = 130001
    bos_token_id: int = 130004  # <sop>
    eos_token_id: int | list[int] = 130005  # <eop>
    pad_token_id: int | None = 0
    position_encoding_2d: bool = True
    quantization_bit: int | None = 0
    pre_seq_len: int | None = None
    initializer_range: float = 0.02
    use_cache: bool = True
    tie_word_embeddings: bool = True

    def __post_init__(self, **kwargs):
        later = [name for name in LATER_FIELDS if name in kwargs]
        if later:
            raise ValueError(f"a config with {', '.join(later)} is of ChatGLM2, ChatGLM3 or GLM-4, another model under the same model_type "
                             "chatglm; load it with glmlab.chatglm.glm")
        kwargs.pop("auto_map", None)  # names the published code, which is neither run nor saved again
        super().__post_init__(**kwargs)
        self.check()

    def check(self) -> None:
        """Refuse what cannot be computed. Errors: ValueError that lists all of it."""
        problems = []
        if self.hidden_size % self.num_attention_heads or self.hidden_size // self.num_attention_heads % 4:
            problems.append(f"hidden_size={self.hidden_size} with num_attention_heads={self.num_attention_heads}: the size of a head must "
                            "be a multiple of 4, two rotated halves of pairs")
        if not self.position_encoding_2d:
            problems.append("position_encoding_2d=False: only the two rows of positions of the published model are known")
        if self.quantization_bit:
            problems.append(f"quantization_bit={self.quantization_bit}: weights packed as ChatGLM's own integers; load the full checkpoint "
                            "and quantise with BitsAndBytesConfig")
        if self.pre_seq_len:
            problems.append(f"pre_seq_len={self.pre_seq_len}: a P-Tuning prefix beside the weights; load the base without it")
        for name in ("mask_token_id", "gmask_token_id", "bos_token_id", "eos_token_id", "pad_token_id"):
            value = getattr(self, name)
            ids = value if isinstance(value, list) else [value]
            if not all(0 <= token < self.vocab_size for token in ids if token is not None):
                problems.append(f"{name}={value} is not below vocab_size={self.vocab_size}: ids and checkpoint are of different releases "
                                "(130528 ids: [gMASK] 130001, <sop> 130004; 150528 ids: [gMASK] 150001, <sop> 150004)")
        if problems:
            raise ValueError("this is no ChatGLM-6B config that can be loaded:\n" + "\n".join(f"- {problem}" for problem in problems))


# --- mask and positions ------------------------------------------------------------------------------------------

def prefix_mask_and_positions(input_ids: torch.Tensor, attention_mask: torch.Tensor | None,
                              config: ChatGLMConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """Who sees whom and where everybody stands: `(mask bool (b, 1, s, s), True = may look; position_ids (b, 2, s))`.

    input_ids: (b, s), every row with <sop> and before it [gMASK] or [MASK]; with both, [gMASK] counts. attention_mask: (b, s), 1 = real;
    None takes the pad ids at the start of a row for padding. A padded row is what the row without its pads is; a pad sees itself only.
    Errors: ValueError that names the rows without their special tokens.
    """
    real = _real_tokens(input_ids, attention_mask, config)
    positions = _positions(input_ids, real, config)
    prompt = real & (positions[:, 1] == 0)
    length = input_ids.shape[1]
    diagonal = torch.eye(length, dtype=torch.bool, device=input_ids.device)
    causal = torch.ones_like(diagonal).tril()
    mask = (causal | prompt[:, None]) & real[:, None] & real[:, :, None] | diagonal
    return mask[:, None], positions


def padding_of(mask: torch.Tensor) -> torch.Tensor:
    """The attention_mask (b, s), 1 = real, in the published tokenizer's uint8 (b, 1, s, s), 1 = masked, where a pad hides from itself."""
    return 1 - mask[:, 0].diagonal(dim1=1, dim2=2).long()


def _real_tokens(input_ids, attention_mask, config) -> torch.Tensor:
    if attention_mask is None:
        if config.pad_token_id is None:
            return torch.ones_like(input_ids, dtype=torch.bool)
        return (input_ids != config.pad_token_id).cumsum(-1) > 0
    if attention_mask.shape != input_ids.shape:
        raise ValueError(f"attention_mask {tuple(attention_mask.shape)} does not fit input_ids {tuple(input_ids.shape)}")
    return attention_mask.to(input_ids.device).bool()


def _positions(input_ids, real, config) -> torch.Tensor:
    """The two rows of positions, (b, 2, s), counted in real tokens; pads stand where the token before them does, or at 0.

    A mask token behind <sop> does not count, so that no token an answer brings moves those before it.
    """
    place = (real.cumsum(-1) - 1).clamp(min=0)
    start, has_start = _first(real & (input_ids == config.bos_token_id), place)
    before = real & (place < start)
    gmask, has_gmask = _first(before & (input_ids == config.gmask_token_id), place)
    mask, has_mask = _first(before & (input_ids == config.mask_token_id), place)
    _check_rows(has_start, has_gmask | has_mask, config)
    answer = place >= start
    return torch.stack([torch.where(answer, torch.where(has_gmask, gmask, mask), place), torch.where(answer, place - start + 1, 0)], dim=1)


def _first(found, place) -> tuple[torch.Tensor, torch.Tensor]:
    """The place of the first token found in each row, and whether there is one: (b, 1) both."""
    return place.gather(1, found.int().argmax(1, keepdim=True)), found.any(1, keepdim=True)


def _check_rows(has_start, has_mask, config) -> None:
    if bool((has_start & has_mask).all()):
        return
    problems = [f"row {row}: " + (f"no [gMASK] (id {config.gmask_token_id}) or [MASK] (id {config.mask_token_id}) before <sop>" if start
                                  else f"no <sop> (id {config.bos_token_id})")
                for row, (start, mask) in enumerate(zip(has_start.flatten().tolist(), has_mask.flatten().tolist())) if not (start and mask)]
    raise ValueError("a row of ChatGLM-6B is prompt, [gMASK], <sop>, answer; was it cut, or encoded with the ids of the other vocabulary?\n"
                     + "\n".join(problems))


def _given_mask(mask: torch.Tensor) -> torch.Tensor:
    """A caller's 4-D mask as bool (True = may look) or as the additive float that it is; uint8 is the published code's, 1 = masked."""
    if mask.dtype == torch.uint8:
        return mask == 0
    if mask.dtype == torch.bool or mask.is_floating_point():
        return mask
    raise ValueError(f"a 4-D attention_mask of {mask.dtype} could mean either; pass bool (True = may look), float (added to the scores) or "
                     "uint8 (1 = masked)")


# --- rotary positions --------------------------------------------------------------------------------------------

def rotary(position_ids: torch.Tensor, head_dim: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin for the two rows of positions, each (b, 2, s, head_dim / 4) in dtype.

    The published code rounds the frequencies to float16 in every precision, and the angles too when it runs in half precision; so did
    everybody who used the model. For bfloat16 the angles are those of float16: its own would lose whole positions above 256.
    """
    size = head_dim // 2
    places = torch.arange(0, size, 2, dtype=torch.float32, device=position_ids.device)
    frequencies = (1.0 / 10000 ** (places / size)).half().float()
    angles = position_ids[..., None].float() * frequencies
    if dtype in (torch.float16, torch.bfloat16):
        angles = angles.half().float()
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate (b, heads, s, head_dim): the first half of each head by the first row of positions, the second by the second."""
    first, second = states.unflatten(-1, (2, 2, -1)).unbind(-2)  # (b, heads, s, 2, head_dim / 4)
    cos, sin = (angle.transpose(1, 2)[:, None] for angle in (cos, sin))  # (b, 1, s, 2, head_dim / 4)
    return torch.stack([first * cos - second * sin, second * cos + first * sin], dim=-2).flatten(-3)


# --- model -------------------------------------------------------------------------------------------------------

class ChatGLMAttention(nn.Module):
    """One projection to queries, keys and values, head by head; rotary positions; transformers' attention functions."""

    num_key_value_groups = 1  # every head has its own keys and values
    is_causal = True          # where the mask is left out, which only happens behind a cache

    def __init__(self, config: ChatGLMConfig, layer_idx: int):
        super().__init__()
        self.config, self.layer_idx = config, layer_idx
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.query_key_value = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden_states, attention_mask, position_embeddings, past_key_values=None, **kwargs):
        states = self.query_key_value(hidden_states).unflatten(-1, (-1, 3 * self.head_dim)).transpose(1, 2)  # (b, heads, s, 3 head_dim)
        query, key, value = states.chunk(3, dim=-1)
        query, key = rotate(query, *position_embeddings), rotate(key, *position_embeddings)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        output, weights = attend(self, query, key, value, attention_mask, dropout=0.0, scaling=self.head_dim**-0.5, **kwargs)
        return self.dense(output.flatten(-2)), weights


class ChatGLMMLP(nn.Module):
    """Two linear layers around a GELU, in its tanh form."""

    def __init__(self, config: ChatGLMConfig):
        super().__init__()
        self.dense_h_to_4h = nn.Linear(config.hidden_size, config.inner_hidden_size)
        self.dense_4h_to_h = nn.Linear(config.inner_hidden_size, config.hidden_size)

    def forward(self, hidden_states):
        return self.dense_4h_to_h(nn.functional.gelu(self.dense_h_to_4h(hidden_states), approximate="tanh"))


class ChatGLMBlock(GradientCheckpointingLayer):
    """One layer. Its residual carries the normalised input, times alpha.

    torch.autocast computes norms in 32 bit; the residual keeps the format of the embeddings all the same, as without it: twice the memory
    would buy nothing, and FlashAttention takes 16 bit only.
    """

    def __init__(self, config: ChatGLMConfig, layer_idx: int):
        super().__init__()
        self.alpha = (2 * config.residual_alpha_layers) ** 0.5
        self.input_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layernorm_epsilon)
        self.attention = ChatGLMAttention(config, layer_idx)
        self.post_attention_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layernorm_epsilon)
        self.mlp = ChatGLMMLP(config)

    def forward(self, hidden_states, attention_mask, position_embeddings, past_key_values=None, **kwargs):
        normed = self.input_layernorm(hidden_states).to(hidden_states.dtype)
        hidden_states = self.alpha * normed + self.attention(normed, attention_mask, position_embeddings, past_key_values, **kwargs)[0]
        normed = self.post_attention_layernorm(hidden_states).to(hidden_states.dtype)
        return self.alpha * normed + self.mlp(normed)


class ChatGLMPreTrainedModel(PreTrainedModel):
    """What both classes below say to transformers."""
    config_class = ChatGLMConfig
    base_model_prefix = "transformer"
    supports_gradient_checkpointing = True
    _input_embed_layer = "word_embeddings"
    _no_split_modules = ["ChatGLMBlock"]
    _skip_keys_device_placement = ["past_key_values"]
    _keys_to_ignore_on_load_unexpected = [r"rotary_emb\.inv_freq"]  # computed here; the published code does not load it either
    _supports_sdpa = True
    _can_record_outputs = {"hidden_states": ChatGLMBlock, "attentions": ChatGLMAttention}

    def __init__(self, config: ChatGLMConfig):
        config.check()  # options of from_pretrained change a config after it was read
        super().__init__(config)


class ChatGLMModel(ChatGLMPreTrainedModel):
    """The layers, from ids to the last hidden states."""

    def __init__(self, config: ChatGLMConfig):
        super().__init__(config)
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList([ChatGLMBlock(config, layer_idx) for layer_idx in range(config.num_layers)])
        self.final_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layernorm_epsilon)
        self.gradient_checkpointing = False
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    def forward(self, input_ids=None, attention_mask=None, position_ids=None, past_key_values=None, inputs_embeds=None, use_cache=None,
                **kwargs) -> BaseModelOutputWithPast:
        """Mask and positions are found in the ids, or taken from the caller.

        input_ids: (b, s). attention_mask: (b, past + s), 1 = real, or a 4-D mask of who sees whom: bool, additive float, or the published
        code's uint8. position_ids: (b, 2, s). Behind a cache the ids are those of an answer; without position_ids they continue the rows
        that the model itself put there in this order. inputs_embeds: in place of input_ids, with position_ids and a 4-D mask.
        Errors: ValueError for rows without their special tokens, and where the positions cannot be known.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("pass either input_ids or inputs_embeds")
        hidden_states = self.word_embeddings(input_ids) if inputs_embeds is None else inputs_embeds
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        mask, position_ids = self._mask_and_positions(input_ids, hidden_states, attention_mask, position_ids, past_key_values)
        angles = rotary(position_ids, self.config.hidden_size // self.config.num_attention_heads, hidden_states.dtype)
        for layer in self.layers:
            hidden_states = layer(hidden_states, mask, angles, past_key_values=past_key_values, **kwargs)
        last = self.final_layernorm(hidden_states).to(hidden_states.dtype)
        return BaseModelOutputWithPast(last_hidden_state=last, past_key_values=past_key_values)

    def _mask_and_positions(self, input_ids, embeds, attention_mask, position_ids, cache) -> tuple[torch.Tensor | None, torch.Tensor]:
        """The mask as the attention function wants it, and the positions (b, 2, s)."""
        past, length = int(cache.get_seq_length()) if cache is not None else 0, embeds.shape[1]
        if position_ids is not None and (position_ids.dim() != 3 or position_ids.shape[1:] != (2, length)):
            raise ValueError(f"position_ids {tuple(position_ids.shape)}: ChatGLM-6B has two rows of positions, (batch, 2, {length}) here; "
                             "leave them out to have them found in the ids")
        if attention_mask is not None and attention_mask.dim() == 4:
            if position_ids is None:
                if past or input_ids is None:
                    raise ValueError("a 4-D attention_mask needs position_ids here: they can only be found in whole rows of ids")
                position_ids = _positions(input_ids, _real_tokens(input_ids, None, self.config), self.config)
            return self._as_attention_wants(_given_mask(attention_mask), embeds), position_ids
        if input_ids is None:
            raise ValueError("inputs_embeds need a 4-D attention_mask and position_ids: both can only be found in ids")
        if past:
            if attention_mask is not None and attention_mask.shape != (len(input_ids), past + length):
                raise ValueError(f"attention_mask {tuple(attention_mask.shape)} does not fit {past} cached and {length} new tokens")
            if position_ids is None:
                position_ids, attention_mask = _continue_rows(cache, input_ids, attention_mask)
            return create_causal_mask(self.config, embeds, attention_mask, cache), position_ids
        real = _real_tokens(input_ids, attention_mask, self.config)
        mask, found = prefix_mask_and_positions(input_ids, real, self.config)
        if cache is not None:
            if position_ids is None:
                cache.chatglm_rows = (found[..., -1], real)
            longer = cache.get_mask_sizes(length, 0)[0] - length  # a static cache has room for what comes
            mask = nn.functional.pad(mask, (0, longer), value=False)
        return self._as_attention_wants(mask, embeds), found if position_ids is None else position_ids

    def _as_attention_wants(self, mask, embeds) -> torch.Tensor:
        """eager can only add a mask to the scores; sdpa takes bool too."""
        if mask.dtype != torch.bool or self.config._attn_implementation != "eager":
            return mask
        return torch.zeros(mask.shape, dtype=embeds.dtype, device=mask.device).masked_fill_(~mask, torch.finfo(embeds.dtype).min)


def _continue_rows(cache, input_ids, attention_mask) -> tuple[torch.Tensor, torch.Tensor]:
    """Positions (b, 2, s) and real tokens (b, past + s) of ids that continue the rows of a cache the model filled by itself."""
    last, real = getattr(cache, "chatglm_rows", (None, None))  # (b, 2) positions of the last token, bool (b, past)
    if real is None or real.shape != (input_ids.shape[0], int(cache.get_seq_length())):
        raise ValueError("where the rows of this cache stand is not known: pass position_ids (batch, 2, new tokens), the last columns of "
                         "what prefix_mask_and_positions gives for the whole rows")
    if attention_mask is None:
        real = torch.cat([real, torch.ones_like(input_ids, dtype=torch.bool)], dim=1)
    else:
        real = attention_mask.bool()
    block = last[:, 1:] + real[:, -input_ids.shape[1]:].cumsum(-1)
    positions = torch.stack([last[:, :1].expand_as(block), block], dim=1)
    cache.chatglm_rows = (positions[..., -1], real)
    return positions, real


class ChatGLMForCausalLM(ChatGLMPreTrainedModel, GenerationMixin):
    """The model with its head, which is the embedding again; loss, and generation with transformers' `generate`."""
    _tied_weights_keys = {"lm_head.weight": "transformer.word_embeddings.weight"}

    def __init__(self, config: ChatGLMConfig):
        super().__init__(config)
        self.transformer = ChatGLMModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @can_return_tuple
    def forward(self, input_ids=None, attention_mask=None, position_ids=None, past_key_values=None, inputs_embeds=None, labels=None,
                use_cache=None, logits_to_keep: int | torch.Tensor = 0, **kwargs) -> CausalLMOutputWithPast:
        """Inputs as for `ChatGLMModel`. labels: (b, s), -100 without loss; the shift by one is made here. logits_to_keep: as everywhere in
        transformers, a number of last positions, indices, or bool (b, s)."""
        outputs = self.transformer(input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids,
                                   past_key_values=past_key_values, inputs_embeds=inputs_embeds, use_cache=use_cache, **kwargs)
        logits = self.lm_head(slice_logits_to_keep(outputs.last_hidden_state, logits_to_keep))
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=outputs.past_key_values,
                                      hidden_states=outputs.hidden_states, attentions=outputs.attentions)

    def prepare_inputs_for_generation(self, input_ids, next_sequence_length=None, past_key_values=None, attention_mask=None,
                                      position_ids=None, **kwargs):
        """One step's inputs; the positions are found in the whole rows each time, unless the caller of `generate` gave two rows of them.

        Errors: ValueError for padding on the right, and for a cache that ends inside a prompt, which is read both ways.
        """
        real = _real_tokens(input_ids, attention_mask, self.config)
        found = _positions(input_ids, real, self.config)
        if not bool(real[:, -1].all()):
            raise ValueError(f"row {real[:, -1].int().argmin().item()} is padded on the right: an answer continues the last token, pad on "
                             "the left")
        past = input_ids.shape[1] - next_sequence_length if next_sequence_length else 0
        if past and bool((real & (found[:, 1] == 0))[:, past:].any()):
            raise ValueError(f"the cache ends after {past} tokens, inside a prompt; a prompt is read both ways and must be computed whole")
        if position_ids is None or position_ids.dim() != 3:  # with one row, generate made them up
            position_ids = found
        return super().prepare_inputs_for_generation(input_ids, next_sequence_length=next_sequence_length, past_key_values=past_key_values,
                                                     attention_mask=attention_mask, position_ids=position_ids, **kwargs)

    def _update_model_kwargs_for_generation(self, outputs, model_kwargs, **kwargs):
        given = model_kwargs.get("position_ids")
        model_kwargs = super()._update_model_kwargs_for_generation(outputs, model_kwargs, **kwargs)
        if given is not None and given.dim() == 3:  # transformers counts on in every row; the first one stays where it is
            model_kwargs["position_ids"][:, 0, given.shape[-1]:] = given[:, 0, -1:]
        return model_kwargs

    @staticmethod
    def create_masks_for_generate(attention_mask=None, **_):
        """`generate` asks for the mask of a static cache, as if every model were causal: the model makes its own."""
        return attention_mask


def register() -> None:
    """Let AutoConfig, AutoModel and AutoModelForCausalLM load model_type chatglm with these classes; again is the same."""
    AutoConfig.register("chatglm", ChatGLMConfig, exist_ok=True)
    AutoModel.register(ChatGLMConfig, ChatGLMModel, exist_ok=True)
    AutoModelForCausalLM.register(ChatGLMConfig, ChatGLMForCausalLM, exist_ok=True)


register()
