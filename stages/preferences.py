"""Stage preferences: artifacts/chat/sft/, data/chat/, corpus/ → data/preferences/, reports/preferences.json."""

import logging
from collections import Counter
from pathlib import Path

from foundry.utils.allocator import keep_memory

if __name__ == "__main__":
    keep_memory()  # restarts the process, so it comes before torch is imported

from foundry.chat.examples import read_examples
from foundry.chat.formats import FileAccount, Quarantined, Refused
from foundry.chat.pair_report import preferences_report
from foundry.chat.pairs import prompt_hash, write_pairs
from foundry.chat.preferences import (
    HELD_OUT,
    Gathered,
    add_pairs,
    check_pairs,
    choose_prompts,
    feedback_pair,
    read_pair_file,
    sample_pairs,
    without_conflicts,
)
from foundry.chat.verifiers import VERIFIER_VERSION, load_verifiers
from foundry.config import Config, ConfigError, DataError
from foundry.data.splits import SPLITS
from foundry.models import load_trained_model
from foundry.serving.recording import preferences
from foundry.tokenizers import Tokenizer
from foundry.tokenizers.chat import TEMPLATE_SHA256
from foundry.training.numerics import numerics
from foundry.utils.device import prepare_device
from foundry.utils.distributed import World
from foundry.utils.inputs import find_inputs
from foundry.utils.stage import run_stage


def work(cfg: Config, log: logging.Logger) -> None:
    params, found, tokenizer = cfg.preferences, Gathered(), Tokenizer("artifacts/tokenizer")
    examples = {split: read_examples("data/chat", split) for split in SPLITS}
    made_from = {"tokenizer_sha256": tokenizer.sha256, "template_sha256": TEMPLATE_SHA256}
    if params.sampled:
        for pattern in cfg.chat.verifiers:
            for path in find_inputs(pattern, Path(), "chat.verifiers"):
                load_verifiers(path)
        model, facts = load_trained_model("artifacts/chat/sft")
        if facts.tokenizer_sha256 != tokenizer.sha256 or facts.template_sha256 != TEMPLATE_SHA256:
            raise DataError(
                "artifacts/chat/sft belongs to another tokenizer or chat template: run `dvc repro chat/dvc.yaml`"
            )
        made_from |= {"weights_sha256": facts.weights_sha256, "verifier_version": str(VERIFIER_VERSION)}
        device = prepare_device(cfg.runtime)
        counts = {"train": params.prompts, "val": max(1, params.prompts // HELD_OUT)}
        for split, most in counts.items():
            chosen = choose_prompts(examples[split], params.tasks, most)
            if unknown := sorted(set(params.tasks) - {e.task for e in chosen}):
                raise ConfigError(
                    f"preferences.tasks names {', '.join(unknown)}, of which the {split} split of data/chat has no "
                    "example with a verifier: reports/chat_data.html lists the tasks"
                )
            log.info("%d prompts of %s are answered %d times on %s", len(chosen), split, params.samples, device)
            with numerics(cfg.runtime, World(0, 1, device)):
                sample_pairs(model.to(device), tokenizer, chosen, params, cfg.seed, found)
        for task, account in sorted(found.tasks.items()):
            share = account.passed / max(1, account.answers)
            dropped = ", ".join(f"{n} {reason}" for reason, n in account.dropped.most_common()) or "none dropped"
            log.info(
                "%s: %d pairs of %d prompts (%s); %.1f%% of the answers are right",
                task,
                account.pairs,
                account.prompts,
                dropped,
                100 * share,
            )
    splits = {prompt_hash(e.prompt): split for split in SPLITS for e in examples[split]}
    for path in dict.fromkeys(
        p for pattern in params.sources for p in find_inputs(pattern, Path(), "preferences.sources")
    ):
        pairs = read_pair_file(path, path.as_posix(), found)
        add_pairs(pairs, path.name.split(".")[0], path.as_posix(), splits, found)
    matches = [p for pattern in params.feedback for p in find_inputs(pattern, Path(), "preferences.feedback")]
    for folder in dict.fromkeys(p.parent for p in matches):
        _add_feedback(folder, splits, found)
    without_conflicts(found)
    check_pairs(found)
    write_pairs("data/preferences", found.pairs, made_from)
    report = preferences_report(found, tokenizer, made_from.get("weights_sha256"), cfg.seed)
    report.write("reports/preferences.json")
    dropped = ", ".join(f"{n} {reason}" for reason, n in sorted(report.dropped.items())) or "none"
    log.info(
        "wrote data/preferences: %d training pairs, %d held out; dropped of users: %s",
        report.train,
        report.val,
        dropped,
    )
    if not report.longer_wins.low <= 0.5 <= report.longer_wins.high:
        log.warning(
            "the longer answer is the chosen one in %.1f%% of the pairs: a model would learn length from them",
            100 * report.longer_wins.value,
        )


def _add_feedback(folder: Path, splits: dict[str, str], found: Gathered) -> None:
    account = FileAccount(folder.as_posix(), "recording", quarantined=Counter())
    found.files.append(account)
    pairs = []
    for liked in preferences(folder):
        account.records += 1
        try:
            pairs.append(feedback_pair(liked.prompt, liked.chosen, liked.rejected))
            account.kept += 1
        except Refused as e:
            account.quarantined[e.reason] += 1
            found.quarantined.append(Quarantined(folder.as_posix(), account.records, e.reason, str(liked.prompt)[:80]))
    add_pairs(pairs, "feedback", "feedback", splits, found)


def main() -> None:
    run_stage("preferences", work)


if __name__ == "__main__":
    main()
