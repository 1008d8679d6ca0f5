from .api import (
    PRESETS as PRESETS,
)
from .api import (
    Separation as Separation,
)
from .api import (
    resolve_settings as resolve_settings,
)
from .api import (
    separate as separate,
)
from .api import (
    separate_batch as separate_batch,
)
from .cost import (
    Cost as Cost,
)
from .cost import (
    estimate_cost as estimate_cost,
)
