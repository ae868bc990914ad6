"""Stage chat_export: artifacts/chat/sft, its evaluation and its data → artifacts/chat/export, a version."""

import logging

from foundry.utils.allocator import keep_memory

if __name__ == "__main__":
    keep_memory()  # restarts the process, so it comes before torch is imported

from foundry.chat.publish import publish
from foundry.config import Config, TrackingError
from foundry.tracking.settings import tracking_uri
from foundry.utils.device import prepare_device
from foundry.utils.stage import run_stage

OUT = "artifacts/chat/export"
SECTIONS = ("chat", "sft", "chat_evaluate", "chat_export")  # that this model depends on


def work(cfg: Config, log: logging.Logger) -> None:
    if cfg.runtime.tracking:
        tracking_uri(cfg.runtime)  # refuses an address that can never work before anything is exported
    device = prepare_device(cfg.runtime)
    parameters = {name: section for name, section in cfg.post_training().items() if name in SECTIONS}
    publish("sft", OUT, "reports/chat.json", cfg.chat_export, parameters, device, log)
    log.info("wrote %s; talk to it: foundry chat %s", OUT, OUT)
    if cfg.runtime.tracking:
        _register(cfg, log)


def _register(cfg: Config, log: logging.Logger) -> None:
    """Registers the export, a side effect (law 10): if it fails, the export is kept and `foundry sync` repeats it."""
    from foundry.project.register import described, register_export

    try:
        done = register_export(cfg, export=OUT)
    except TrackingError as e:
        log.warning("%s", e)
        return
    log.info("%s", described(done))


def main() -> None:
    run_stage("chat_export", work)


if __name__ == "__main__":
    main()
