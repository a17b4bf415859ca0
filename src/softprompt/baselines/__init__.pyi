from .lora import merged as merged

# isort: split
# Methods, from catalogue.py: `python -m docs.tools.method_stubs` writes what follows.
from .adapter import Adapter as Adapter
from .bit_fit import BitFit as BitFit
from .full_tuning import FullTuning as FullTuning
from .linear_probe import LinearProbe as LinearProbe
from .lora import LoRA as LoRA
from .mlp_probe import MLPProbe as MLPProbe
from .partial import PartialTuning as PartialTuning
from .side_tuning import SideTuning as SideTuning
from .untrained import FewShot as FewShot
from .untrained import ManualPrompt as ManualPrompt
from .untrained import ZeroShot as ZeroShot
