"""What a run of a flow would note."""

from foundry.utils.flow_runs import BuildNote


def build_note(commit):
    return BuildNote(commit=commit, isolated=True, flow_run="0a1b2c3d-9", name="a build", options={}, stages=[])
