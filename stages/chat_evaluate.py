"""Stage chat_evaluate: the base model, artifacts/chat/sft and their data → artifacts/chat/evaluation, reports.

The reports are reports/chat.json and chat_report.html.
"""

import logging

from foundry.utils.allocator import keep_memory

if __name__ == "__main__":
    keep_memory()  # restarts the process, so it comes before torch is imported

from foundry.chat.assessment import assess, write_tables
from foundry.chat.report_page import write_chat_page
from foundry.config import Config
from foundry.utils.device import prepare_device
from foundry.utils.stage import run_stage


def work(cfg: Config, log: logging.Logger) -> None:
    device = prepare_device(cfg.runtime)
    found = assess(["sft"], cfg.chat_evaluate, cfg.chat.verifiers, cfg.seed, device, log)
    report, tables = found.evaluation.report, found.evaluation.tables
    write_tables("artifacts/chat/evaluation", tables)
    write_chat_page("reports/chat_report.html", report, found.prompts, tables)
    report.write("reports/chat.json")
    log.info("wrote reports/chat.json; the report to read is reports/chat_report.html")


def main() -> None:
    run_stage("chat_evaluate", work)


if __name__ == "__main__":
    main()
