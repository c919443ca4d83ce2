"""Names of the files in `configs` of an installed bundle, for those who do not import MONAI."""

from typing import Final

OVERRIDES: Final = "overrides.json"
"""What a person has set otherwise than the author: ids of the configuration and their values."""
