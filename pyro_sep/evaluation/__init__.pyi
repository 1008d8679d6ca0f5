from .metrics import (
    residual_db as residual_db,
)
from .metrics import (
    si_sdr as si_sdr,
)
from .metrics import (
    si_sdr_improvement as si_sdr_improvement,
)
from .tracks import (
    TrackScores as TrackScores,
)
from .tracks import (
    evaluate as evaluate,
)
