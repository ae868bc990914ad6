"""The model and the recipe of the tests that run on a CPU and on a GPU."""

from foundry.config import ModelConfig, TrainConfig

# Heads of 16: the smallest that FlexAttention takes. Rows of 160 are no multiple of its blocks of 128.
MODEL = ModelConfig(vocab_size=400, dim=64, n_layers=2, n_heads=4, n_kv_heads=2, ffn_dim=96, max_seq_len=160)
TRAIN = TrainConfig(
    steps=8, tokens_per_step=1280, warmup_steps=1, log_interval=1, eval_interval=8, eval_tokens=600, decay_fraction=0.5
)
