"""How long a run will take: arithmetic over a few of its steps."""

import pytest

from foundry.config import ConfigError, ModelConfig, TrainConfig, parse_config, read_yaml
from foundry.training import probe
from foundry.training.plan import make_plan
from foundry.utils.log import get_logger

MODEL = ModelConfig(vocab_size=400, dim=32, n_layers=1, n_heads=2, n_kv_heads=1, ffn_dim=48, max_seq_len=32)


class Clock:
    """Steps take as long as `seconds` say, in turn; nothing else takes any time."""

    def __init__(self, seconds):
        self.seconds, self.asked, self.now = seconds, 0, 5.0

    def perf_counter(self):
        if self.asked % 2:
            self.now += self.seconds[self.asked // 2]
        self.asked += 1
        return self.now


def config(steps):
    data = read_yaml("params.yaml")
    data["tokenizer"]["vocab_size"] = 400
    data["model"].update(MODEL.model_dump(exclude={"vocab_size"}))
    data["train"].update(
        {"steps": steps, "tokens_per_step": 64, "warmup_steps": 1, "eval_interval": 20, "eval_tokens": 64}
    )
    data["runtime"].update({"device": "cpu", "threads": 1, "precision": "float32", "compile": "never"})
    return parse_config(data)


@pytest.mark.parametrize(("steps", "probed", "taken"), [(50, 4, [1.0, 5.0, 2.0, 3.0]), (60, None, [2.5] * 20)])
def test_a_run_takes_its_steps_at_the_median_and_its_validations(shards, monkeypatch, steps, probed, taken):
    """Steps at 2.5 s without the first three, and 3 validations at 7 s: after steps 20, 40 and the last (50 or 60)."""
    clock = Clock([90.0, 80.0, 70.0, *taken, 7.0])
    monkeypatch.setattr(probe, "time", clock)
    log = get_logger()
    log.setLevel("INFO")
    assert probe.probe_seconds(config(steps), shards, *([probed] if probed else [])) == steps * 2.5 + 3 * 7
    assert clock.asked == 2 * (3 + len(taken) + 1)
    assert log.level == 20  # as before: the probe silences only the plan


def test_time_on_gpus_comes_from_their_number_and_their_data_sheet():
    plan = make_plan(MODEL, TrainConfig(steps=6, tokens_per_step=256, warmup_steps=1), 10**6)
    for count in (1, 8, 100_000):
        assert probe.gpu_seconds(plan, "H100", count) == pytest.approx(plan.flops / (count * 989e12 * 0.4), rel=1e-12)
    for count in (0, -1, 100_001):
        with pytest.raises(ConfigError, match=rf"must lie in \[1, 100000\], got {count}"):
            probe.gpu_seconds(plan, "H100", count)
