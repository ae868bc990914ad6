"""Whether this machine and this folder can do what Foundry does. Behind `foundry doctor`."""

from foundry.project.doctor.examination import examine
from foundry.project.doctor.finding import Finding

__all__ = ["Finding", "examine"]
