"""The processes of a launch, as this package's stages call them: see `encoder.runtime.ranks`."""

from encoder.runtime.ranks import Ranks as Ranks
from encoder.runtime.ranks import no_sync as no_sync
from encoder.runtime.ranks import unwrapped as unwrapped
