from .conformal import (
    ConformalCalibration as ConformalCalibration,
)
from .convergence import (
    agreement_over_time as agreement_over_time,
)
from .initial import (
    InitialComparison as InitialComparison,
)
from .initial import (
    compare_initial as compare_initial,
)
from .sbc import (
    RankTest as RankTest,
)
from .sbc import (
    coverage as coverage,
)
from .sbc import (
    ranks as ranks,
)
from .score_intervals import (
    expected_scores as expected_scores,
)
from .verdict import (
    Diagnosis as Diagnosis,
)
from .verdict import (
    Verdict as Verdict,
)
from .verdict import (
    diagnose as diagnose,
)
from .verdict import (
    format_diagnosis as format_diagnosis,
)
