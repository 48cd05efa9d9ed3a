"""Llama: "LLaMA: Open and Efficient Foundation Language Models" (Touvron et al. 2023) and "The Llama 3 Herd of Models" (Dubey
et al. 2024), and what has its architecture: Mistral (Jiang et al. 2023), Qwen2 (Yang et al. 2024), Qwen3 (Yang et al. 2025),
SmolLM2 (Ben Allal et al. 2025).

Pretraining: python -m experiments.pretrain --config=configs/llama.py:VARIANT --workdir=DIR
Finetuning: python -m experiments.finetune --config=configs/llama.py:instruct --workdir=DIR --init_from=FOLDER
    --config.data.train=train.jsonl --config.data.validation=validation.jsonl

| VARIANT        | what                                                                      | expected time and score |
|----------------|---------------------------------------------------------------------------|-------------------------|
| `llama3_8b`    | table 3: 32 layers of 4,096                                               | not run                 |
| `llama3_70b`   | 80 layers of 8,192                                                        | not run                 |
| `mistral_7b`   | 32 layers of 4,096, a window of 4,096                                     | not run                 |
| `qwen2_7b`     | 28 layers of 3,584, biases of queries, keys and values                    | not run                 |
| `qwen3_8b`     | 36 layers of 4,096, norms of queries and keys                             | not run                 |
| `smollm2_135m` | 30 layers of 576                                                          | not run                 |
| `instruct`     | finetuning on conversations, their answers alone; the model of --init_from | not run                |
| `tiny`         | seconds on a CPU, for tests: files given                                  | none                    |

They read token files, which experiments.tokenize makes: --config.data.train=FILES --config.tokenizer.path=TOKENIZER; instruct
reads JSON lines, or one array, of conversations, pairs of prompt and response, or instructions.
"""

from ml_collections import ConfigDict

from configs import base, gpt


def get_config(variant: str = "llama3_8b") -> ConfigDict:
    """The config of a variant; ValueError: there is no such one."""
    variants = {"llama3_8b": (llama3, 3e-4), "llama3_70b": (llama3_70b,), "mistral_7b": (mistral_7b,)}
    variants |= {"qwen2_7b": (qwen2_7b,), "qwen3_8b": (qwen3_8b,), "smollm2_135m": (smollm2_135m,)}
    variants |= {"instruct": (instruct,), "tiny": (tiny,)}
    return base.varied(common(), variants, variant)


def common() -> ConfigDict:
    """Llama 3 8B; section 3.4.1: 8,000 updates of warmup, then a cosine down to a hundredth."""
    config = base.decoder("llama")
    with config.unlocked():
        config.model.variant = "llama"  # or "mistral", "qwen2", "qwen3": names in foreign files
        config.model.kv_heads = 8  # heads of keys and values, each shared by several of queries
        config.model.head_width = 0  # of each head; 0: width / num_heads
        config.model.window = 0  # positions that a token sees; 0: all before it
        config.model.qkv_bias = False  # of queries, keys and values
        config.model.out_bias = False  # of attention's last projection
        config.model.mlp_bias = False  # of the feed-forward
        config.model.qk_norm = False  # norms of each head of queries and keys
        config.model.rope_theta = 500_000.0  # base of the rotary positions
        config.model.rope_scaling = ""  # how they are stretched, see `layers.positions.Rotary`, with the next four
        config.model.rope_factor = 1.0  # how much
        config.model.rope_low_freq_factor = 1.0  # "llama3": wave lengths above original_length over it are stretched whole
        config.model.rope_high_freq_factor = 4.0  # "llama3": those below original_length over it are not
        config.model.rope_original_length = 8192  # positions in pretraining
    config.model.update(layers=32, width=4096, num_heads=32, mlp_width=14_336, max_length=8192, activation="swish")
    config.model.update(dropout=0.0, attention_dropout=0.0, embedding_dropout=0.0, tie_embeddings=False, remat=True)
    config.tokenizer.vocab_size = 128_256
    config.data.update(source="tokens", lengths={"tokens": 8192})
    config.optimizer.decay_pattern = r"(^|/)(kernel|embedding|lm_head)$"
    config.optimizer.update(learning_rate=3e-4, warmup_steps=8000, end_factor=0.01)
    config.training.steps = 1_200_000
    config.mesh.fsdp = -1
    config.mesh.data = 1
    return config


def llama3(config: ConfigDict, learning_rate: float) -> None:
    config.optimizer.learning_rate = learning_rate  # table 3


def llama3_70b(config: ConfigDict) -> None:
    llama3(config, 1.5e-4)
    config.model.update(layers=80, width=8192, num_heads=64, mlp_width=28_672)


def mistral_7b(config: ConfigDict) -> None:
    config.model.update(variant="mistral", window=4096, rope_theta=10_000.0)
    config.tokenizer.vocab_size = 32_000


def qwen2_7b(config: ConfigDict) -> None:
    config.model.update(variant="qwen2", layers=28, width=3584, num_heads=28, kv_heads=4, mlp_width=18_944, qkv_bias=True)
    config.model.update(max_length=32_768, rope_theta=1_000_000.0, norm_epsilon=1e-6)
    config.tokenizer.vocab_size = 152_064


def qwen3_8b(config: ConfigDict) -> None:
    config.model.update(variant="qwen3", layers=36, mlp_width=12_288, head_width=128, qk_norm=True, norm_epsilon=1e-6)
    config.model.update(max_length=32_768, rope_theta=1_000_000.0)
    config.tokenizer.vocab_size = 151_936


def smollm2_135m(config: ConfigDict) -> None:
    """Its second half of training, at a length of 8,192."""
    config.model.update(layers=30, width=576, num_heads=9, kv_heads=3, mlp_width=1536, tie_embeddings=True)
    config.model.rope_theta = 100_000.0
    config.optimizer.decay_pattern = r"(^|/)(kernel|embedding)$"
    config.tokenizer.vocab_size = 49_152
    config.optimizer.learning_rate = 3e-3


def instruct(config: ConfigDict) -> None:
    """Conversations in JSON lines, several a row; all parameters learn, at a rate for small data."""
    smollm2_135m(config)
    base.laptop(config)
    base.instruction(config)
    config.data.update(source="conversations", batching="packing", batch_size=16, lengths={"tokens": 1024})
    config.optimizer.update(schedule="linear", learning_rate=2e-5, end_factor=0.0, warmup_steps=0, warmup_share=0.03)
    config.optimizer.update(weight_decay=0.0, decay_pattern="")
    config.training.update(steps=500, log_every=10, eval_every=100, checkpoint_every=100, keep_checkpoints=1)


def tiny(config: ConfigDict) -> None:
    gpt.tiny(config)
    config.model.update(num_heads=4, kv_heads=2, remat=False)
    config.data.source = "text"
    config.mesh.update(data=-1, fsdp=1)
