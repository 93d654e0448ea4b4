# SPDX-License-Identifier: Apache-2.0
"""The peer of train_gpu.py: the softmax model and its training step in plain PyTorch.

It is the decoder of Qwen3 under Hugging Face's names, so that the weights of our checkpoints load.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel


@dataclass
class Config:
    """The fields of config.json that the model follows."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float
    rope_theta: float
    tie_word_embeddings: bool

    @classmethod
    def read(cls, values: dict) -> "Config":
        mixers = values.get("mixers", ["softmax"])  # a Qwen3 file has none of these fields
        plain = values.get("qk_norm", True) and not values.get("attention_bias", False)
        if set(mixers) != {"softmax"} or not plain:
            raise ValueError("the peer has softmax attention, QK norms and no biases")
        return cls(**{field.name: values[field.name] for field in fields(cls)})


class RmsNorm(nn.Module):
    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        x = x.float()
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * self.weight


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [B, H, T, D]; dimension i turns with i + D / 2."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


class Attention(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        self.head_dim = config.head_dim
        self.is_grouped = config.num_key_value_heads != config.num_attention_heads
        q_size = config.num_attention_heads * config.head_dim
        kv_size = config.num_key_value_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, q_size, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, kv_size, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, kv_size, bias=False)
        self.o_proj = nn.Linear(q_size, config.hidden_size, bias=False)
        self.q_norm = RmsNorm(config.head_dim, config.rms_norm_eps)
        self.k_norm = RmsNorm(config.head_dim, config.rms_norm_eps)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        def heads(projected):
            return projected.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)

        q = rotate(self.q_norm(heads(self.q_proj(x))), cos, sin)
        k = rotate(self.k_norm(heads(self.k_proj(x))), cos, sin)
        v = heads(self.v_proj(x))
        q, k = q.to(v.dtype), k.to(v.dtype)
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=self.is_grouped)
        return self.o_proj(out.transpose(1, 2).flatten(-2))


class Mlp(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        hidden, inner = config.hidden_size, config.intermediate_size
        self.gate_proj = nn.Linear(hidden, inner, bias=False)
        self.up_proj = nn.Linear(hidden, inner, bias=False)
        self.down_proj = nn.Linear(inner, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        self.input_layernorm = RmsNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RmsNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = Mlp(config)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.model = nn.Module()
        self.model.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.model.layers = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))
        self.model.norm = RmsNorm(config.hidden_size, config.rms_norm_eps)
        if not config.tie_word_embeddings:
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """The mean of -log p(target) over tokens, int64 [B, T], in nats."""
        exponents = torch.arange(0, self.config.head_dim, 2, device=tokens.device)
        frequencies = self.config.rope_theta ** (-exponents.float() / self.config.head_dim)
        positions = torch.arange(tokens.shape[1], device=tokens.device).float()
        angles = torch.outer(positions, frequencies)
        cos, sin = angles.cos(), angles.sin()
        x = self.model.embed_tokens(tokens)
        for layer in self.model.layers:
            x = layer(x, cos, sin)
        tied = self.config.tie_word_embeddings
        head = self.model.embed_tokens.weight if tied else self.lm_head.weight
        logits = F.linear(self.model.norm(x), head)
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())


def load_decoder(values: dict, tensors: dict[str, Tensor], device: torch.device) -> Decoder:
    """The model of a config.json with the tensors of a model.safetensors, all of them."""
    with torch.device("meta"):
        model = Decoder(Config.read(values))
    model.load_state_dict({name: x.to(device) for name, x in tensors.items()}, assign=True)
    return model.requires_grad_().train()


def loss_and_gradient_norm(
    model: Decoder, tokens: Tensor, targets: Tensor, dtype: torch.dtype
) -> tuple[float, float]:
    with torch.autocast(tokens.device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
        loss = model(tokens, targets)
    loss.backward()
    norms = [parameter.grad.double().norm() for parameter in model.parameters()]
    model.zero_grad(set_to_none=True)
    return loss.item(), torch.stack(norms).norm().item()


@contextmanager
def fastest_attention(device: torch.device) -> Iterator[None]:
    """scaled_dot_product_attention on cuDNN before FlashAttention, where both take the call."""
    order = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION,
             SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]  # fmt: skip
    if device.type != "cuda":
        yield
        return
    with sdpa_kernel(order, set_priority=True):
        yield


def make_step(
    model: Decoder, recipe: dict, dtype: torch.dtype, compiles: bool
) -> Callable[[Tensor], float]:
    """A function that trains on windows [B, T + 1] as the recipe's optimizer does; its mean loss.

    Constant learning rate; Muon for the hidden matrices, AdamW for the rest, as PyTorch ships them.
    """
    optimizer, train = recipe["optimizer"], recipe["train"]
    rate, decay = optimizer["lr"], optimizer["weight_decay"]
    hidden, gains, tables = [], [], []
    for name, parameter in model.named_parameters():
        is_table = "embed_tokens" in name or "lm_head" in name
        (gains if parameter.ndim == 1 else tables if is_table else hidden).append(parameter)
    muon = torch.optim.Muon(
        hidden, lr=rate, weight_decay=decay, momentum=optimizer["momentum"],
        nesterov=optimizer["nesterov"], adjust_lr_fn=optimizer["scaling"],
    )  # fmt: skip
    adamw = torch.optim.AdamW(
        [
            {"params": tables, "lr": rate * optimizer["embedding_lr_multiplier"],
             "weight_decay": decay},
            {"params": gains, "lr": rate * optimizer["norm_lr_multiplier"], "weight_decay": 0.0},
        ],
        betas=(optimizer["beta1"], optimizer["beta2"]), eps=optimizer["eps"], fused=True,
    )  # fmt: skip
    compute = torch.compile(model, fullgraph=True, dynamic=False) if compiles else model

    def step(windows: Tensor) -> float:
        parts = windows.split(train["micro_batch_size"] or len(windows))
        total = torch.zeros((), device=windows.device)
        for part in parts:
            with torch.autocast(part.device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
                loss = compute(part[:, :-1], part[:, 1:]) / len(parts)
            loss.backward()
            total += loss.detach()
        if train["clip_norm"] > 0:
            nn.utils.clip_grad_norm_(model.parameters(), train["clip_norm"])
        muon.step()
        adamw.step()
        for chosen in (muon, adamw):
            chosen.zero_grad(set_to_none=True)
        return total.item()

    return step


def time_steps(
    step: Callable[[Tensor], float], batches: list[Tensor], device: torch.device
) -> list[float]:
    """Seconds of each step. The batches wait in the host's memory and are copied in their step."""
    seconds = []
    with fastest_attention(device):
        for batch in batches:
            start = time.perf_counter()
            step(batch.to(device, non_blocking=True))  # the loss that it reads waits for all of it
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            seconds.append(time.perf_counter() - start)
    return seconds
