"""The first run on data of one's own: `propose` looks at rows and says task, columns, labels, split, backbone and method;
`suggest` tries methods on them."""

from softprompt.beginning.decisions import Decision, Proposal, Wishes
from softprompt.beginning.proposing import propose
from softprompt.beginning.written import written

__all__ = ["Decision", "Proposal", "Wishes", "propose", "written"]
