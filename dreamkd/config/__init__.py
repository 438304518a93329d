"""Every setting of every command: frozen dataclasses whose fields document themselves.

`options` holds the mechanism (fields with help, range and symbol; parsing; merging), `commands` the
settings. The command line and docs/cli.md are generated from them.
"""

from dreamkd.config.commands import (
    COMMANDS,
    DistillConfig,
    EvalConfig,
    ImageConfig,
    InspectConfig,
    InvertConfig,
    ModelConfig,
    OutputConfig,
    RuntimeConfig,
)
from dreamkd.config.options import Option, OptionField, merge, option, options, read_file
from dreamkd.config.presets import PRESETS, settle

__all__ = [
    "COMMANDS",
    "PRESETS",
    "DistillConfig",
    "EvalConfig",
    "ImageConfig",
    "InspectConfig",
    "InvertConfig",
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
