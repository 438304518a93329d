"""Every setting of every command: frozen dataclasses whose fields document themselves.

`options` holds the mechanism (fields with help, range and symbol; parsing; merging), `files` reads
those that are kept in one, `commands`, `assessment`,
`shared`, `images` and `student` the settings, `presets` what `auto` means. The command line and
docs/cli.md are generated from them.
"""

from dreamkd.config.assessment import CROP_MODES, INTERPOLATIONS, EvalConfig, InspectConfig
from dreamkd.config.commands import COMMANDS, DistillConfig, InvertConfig
from dreamkd.config.files import read_file
from dreamkd.config.images import BY_PRESET, CompetitionConfig, ImageConfig
from dreamkd.config.options import Option, OptionField, merge, option, options
from dreamkd.config.presets import OTHER_IMAGES, PRESETS, settle
from dreamkd.config.shared import LimitConfig, ModelConfig, OutputConfig, RuntimeConfig

__all__ = [
    "BY_PRESET",
    "COMMANDS",
    "CROP_MODES",
    "INTERPOLATIONS",
    "OTHER_IMAGES",
    "PRESETS",
    "CompetitionConfig",
    "DistillConfig",
    "EvalConfig",
    "ImageConfig",
    "InspectConfig",
    "InvertConfig",
    "LimitConfig",
    "ModelConfig",
    "Option",
    "OptionField",
    "OutputConfig",
    "RuntimeConfig",
    "merge",
    "option",
    "options",
    "read_file",
    "settle",
]
