from .base import BuildContext as BuildContext
from .base import Method as Method
from .base import PromptModule as PromptModule

# isort: split
# Methods, from catalogue.py: `python -m docs.tools.method_stubs` writes what follows.
from .adept import ADePT as ADePT
from .cocoop import CoCoOp as CoCoOp
from .coop import CoOp as CoOp
from .dapl import DAPL as DAPL
from .dept import DePT as DePT
from .dual_prompt import DualPrompt as DualPrompt
from .l2p import L2P as L2P
from .low_rank import LowRankPromptTuning as LowRankPromptTuning
from .p_tuning import PTuning as PTuning
from .p_tuning_v2 import PTuningV2 as PTuningV2
from .pez import PEZ as PEZ
from .prefix_tuning import PrefixTuning as PrefixTuning
from .prompt_tuning import PromptTuning as PromptTuning
from .residual import ResidualPromptTuning as ResidualPromptTuning
from .trigger_search import TriggerSearch as TriggerSearch
from .ulpt import ULPT as ULPT
from .vpt import VPT as VPT
